"""A folder of compiled graphs that outlives the process, so that a run that is started again need not compile again."""

import os
from importlib import metadata
from pathlib import Path

VARIABLES = "XLA_PERSISTENT_CACHE_PATH", "XLA_PERSISTENT_CACHE_READ_ONLY"
NOTE = (
    "note: --compile-cache {folder} is left out: XLA on the cpu cannot load what it compiled earlier (torch_xla "
    "writes it, and then reports 'Deserializing serialized executable not supported')"
)


def use_compile_cache(folder: str) -> str:
    """Before the runtime starts, which reads this once. The note to show where it is of no use; else empty.

    One folder for each pair of versions: the runtime's own key does not name the compiler. Several hosts may share it,
    each writes what it lacks. OSError where it cannot be made.
    """
    if os.environ.get("PJRT_DEVICE") == "CPU":
        return NOTE.format(folder=folder)
    place = Path(folder).absolute() / "-".join(f"{name}{_version(name)}" for name in ("torch_xla", "libtpu"))
    place.mkdir(parents=True, exist_ok=True)
    os.environ.update(zip(VARIABLES, (str(place), "0"), strict=True))
    return ""


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""

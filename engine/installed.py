"""Which packages are installed, and whether their versions are those that this toolkit asks for. Imports none."""

import platform
import re
from importlib import metadata

from engine.finding import Finding

SECTION = "versions"
PACKAGE = "robust-bits"
# Without the toolkit's own metadata (never installed, only checked out) these are looked for.
NEEDED = (
    *(
        "torch",
        "torchvision",
        "timm",
        "webdataset",
        "accelerate",
        "pyyaml",
        "pydantic",
        "rich",
        "tensorboard",
    ),
    *("matplotlib", "safetensors", "scipy", "numpy", "pillow", "simplejpeg", "fsspec"),
)
OPTIONAL = {
    "torch_xla": "TPUs, and XLA on the CPU (launch_xla.py): pip install -e .[xla]",
    "scikit-learn": "the demo digits of `make quickstart`: pip install -e .[demo]",
    "wandb": "run.wandb, curves at Weights & Biases: pip install wandb",
    "pytest": "the tests: pip install -e .[test]",
}


def look_at_packages() -> list[Finding]:
    """One line each; what is missing and needed would stop a run."""
    found = [Finding(SECTION, "python", f"{platform.python_version()} (3.11 to 3.13)")]
    needed, extras = _requirements()
    found += [_needed(name, wanted) for name, wanted in (needed or dict.fromkeys(NEEDED, "")).items()]
    found += [_optional(name, what, extras.get(name, "")) for name, what in OPTIONAL.items()]
    if not needed:
        text = "not installed as a package, so required versions are unknown; run `pip install -e .`"
        found.append(Finding(SECTION, PACKAGE, text, "advice"))
    return found


def version(name: str) -> str | None:
    """Installed version of a distribution, None where there is none."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def is_missing(findings: list[Finding], name: str) -> bool:
    """Whether look_at_packages found that package `name` is not there."""
    return any(f.name == name and f.text.startswith("missing") for f in findings)


def _needed(name: str, wanted: str) -> Finding:
    there = version(name)
    if there is None:
        return Finding(SECTION, name, f"missing{_asked(wanted)}; run `pip install -e .`", "failed")
    return _installed(name, there, wanted)


def _optional(name: str, what: str, wanted: str) -> Finding:
    there = version(name)
    if there is None:
        return Finding(SECTION, name, f"not installed (optional); it brings {what}")
    return _installed(name, there, wanted)


def _installed(name: str, there: str, wanted: str) -> Finding:
    if wanted and not _fits(there, wanted):
        return Finding(SECTION, name, f"{there}, outside {wanted}: untested here", "advice")
    return Finding(SECTION, name, f"{there}{_asked(wanted)}")


def _asked(wanted: str) -> str:
    return f" ({wanted})" if wanted else ""


def _requirements() -> tuple[dict[str, str], dict[str, str]]:
    """Version ranges by name as the toolkit's own metadata has them, needed ones and those of extras; both empty
    where it was never installed."""
    try:
        lines = metadata.requires(PACKAGE) or []
    except metadata.PackageNotFoundError:
        return {}, {}
    needed: dict[str, str] = {}
    extras: dict[str, str] = {}
    for line in lines:
        requirement, _, marker = line.partition(";")
        if match := re.match(r"([\w.-]+)(?:\[[^]]*\])?\s*(.*)", requirement.strip()):
            (extras if "extra" in marker else needed)[match[1].lower()] = match[2].strip()
    return needed, extras


def _fits(there: str, wanted: str) -> bool:
    try:
        from packaging.specifiers import SpecifierSet
    except ModuleNotFoundError:  # part of nearly every installation, but not asked for by name
        return True
    return SpecifierSet(wanted).contains(there, prereleases=True)

"""index.json: what a data set is called, what its classes and shards are, and a name for the whole.

Small enough to be read at every start; whatever is in it is checked before anything is made of it, for it may have
come from anywhere.
"""

import hashlib
import json
import os
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

SCHEMA_VERSION: Final = 1
INDEX_FILE: Final = "index.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """One tar: `index_sha256` and `keys_sha256` are of the two array files beside it."""

    name: str
    size: int
    sha256: str
    num_samples: int
    index_sha256: str
    keys_sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    """Contents of index.json. `key_hash`: sum modulo 2**64 of hash64(string key) over all samples, 16 hex
    digits.
    """

    dataset: str
    split: str
    classes: tuple[str, ...]
    num_samples: int
    key_hash: str
    shards: tuple[Shard, ...]
    created_by: str
    version: int = SCHEMA_VERSION

    def to_json(self) -> str:
        """Canonical: sorted keys, no spaces, UTF-8 as it is."""
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":"), ensure_ascii=False)

    @property
    def dataset_id(self) -> str:
        """sha256 of the canonical JSON without `created_by`: the same samples keep their name when a newer
        version of the toolkit indexes them again.
        """
        content = asdict(self)
        del content["created_by"]
        canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return hashlib.sha256(canonical.encode()).hexdigest()


def save_index(root: Path, description: Description) -> None:
    """Write index.json as a whole or not at all."""
    partial = root / f"{INDEX_FILE}.partial-{os.getpid()}"
    partial.write_text(description.to_json(), encoding="utf-8")
    partial.replace(root / INDEX_FILE)


def read_description(root: Path) -> Description:
    """Parse and check index.json alone."""
    path = root / INDEX_FILE
    if not path.is_file():
        raise FileNotFoundError(
            f"no {INDEX_FILE} in {root}; write one with `shards index {root}`, or use `shards make`"
        )
    return parse_description(path.read_bytes(), source=str(path), root=str(root))


def parse_description(text: bytes, *, source: str, root: str) -> Description:
    """index.json's contents, checked; ValueError naming `source`."""
    try:
        content = json.loads(text)
        found = content.get("version") if isinstance(content, dict) else None
        if found != SCHEMA_VERSION:
            raise ValueError(f"schema version {found!r}, this program reads version {SCHEMA_VERSION}")
        return _parse(content)
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ValueError(f"{source}: {error}; write it again with `shards index {root}`") from None


def _parse(content: dict[str, Any]) -> Description:
    shards = tuple(Shard(**shard) for shard in content["shards"])
    description = Description(**{**content, "shards": shards, "classes": tuple(content["classes"])})
    if not shards:
        raise ValueError("it names no shards")
    if len({shard.name for shard in shards}) != len(shards):
        raise ValueError("it names a shard twice")
    for shard in shards:
        if Path(shard.name).name != shard.name or shard.name in ("", ".", ".."):
            raise ValueError(f"shard name {shard.name!r} is not a plain file name")
        # Hashes name files in the cache, so a hostile index must not put a path there.
        for found in (shard.sha256, shard.index_sha256, shard.keys_sha256):
            if not re.fullmatch("[0-9a-f]{64}", found):
                raise ValueError(f"shard {shard.name} has the hash {found!r}, not 64 hex digits")
        if not (isinstance(shard.size, int) and shard.size > 0):
            raise ValueError(f"shard {shard.name} has size {shard.size!r}")
    total = sum(shard.num_samples for shard in shards)
    if total != description.num_samples:
        raise ValueError(f"num_samples {description.num_samples} but its shards hold {total}")
    return description

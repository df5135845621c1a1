"""Folders of tars as public hubs hold them: which of them belong to one split, and what their own notes say of them."""

import json
from pathlib import Path
from typing import Any, Final, NamedTuple

from data.classes import some

_NOTES: Final = ("_info.json", "info.json")  # written for timm's reader
_SPLITS: Final = (("train", "training"), ("val", "validation", "valid"), ("test", "testing"))
_CLASS_FILES: Final = ("classes.txt", "classnames.txt")


class Tars(NamedTuple):
    """The tars of one split. `lengths`: samples in them, where notes tell. `is_all`: no other tars lie there."""

    paths: list[Path]
    lengths: dict[str, int]
    is_all: bool


def find_tars(folder: Path, *, split: str | None) -> Tars:
    """The tars in `folder`, or those of `split` where several splits lie together, by the folder's notes or by names
    such as imagenet1k-validation-07.tar. ValueError where the choice is open, or a tar that the notes name is missing.
    """
    paths = sorted(folder.glob("*.tar"))
    if not paths:
        raise FileNotFoundError(f"no *.tar files in {folder}; give the folder that holds the shards")
    notes = _read_notes(folder, {path.name for path in paths})
    if notes:
        name = _choose(list(notes), split, folder)
        lengths = notes[name]
        if missing := sorted(lengths.keys() - {path.name for path in paths}):
            raise ValueError(
                f"{folder} lacks {len(missing)} shards of its notes: {some(missing)}; fetch them"
            )
        chosen = [path for path in paths if path.name in lengths]
        return Tars(
            chosen, {n: count for n, count in lengths.items() if count >= 0}, len(chosen) == len(paths)
        )
    groups: dict[str, list[Path]] = {}
    for path in paths:
        groups.setdefault(_split_of(path), []).append(path)
    if len(groups) == 1 or "" in groups:
        return Tars(paths, {}, True)
    return Tars(groups[_choose(list(groups), split, folder)], {}, False)


def class_file(folder: Path) -> Path | None:
    """The class list beside the tars, one class a line."""
    return next((folder / name for name in _CLASS_FILES if (folder / name).is_file()), None)


def _read_notes(folder: Path, there: set[str]) -> dict[str, dict[str, int]]:
    """Split -> tar -> number of samples (-1: not told), of the splits with a tar here."""
    for path in (folder / name for name in _NOTES):
        if path.is_file():
            try:
                notes = _parse(json.loads(path.read_text(encoding="utf-8")))
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise ValueError(
                    f"{path} cannot be read as timm's notes of splits ({error!r}); fetch it again, or move it away"
                ) from None
            return {split: tars for split, tars in notes.items() if tars.keys() & there}
    return {}


def _parse(content: Any) -> dict[str, dict[str, int]]:
    notes = {}
    for split, entry in content.get("splits", {}).items():
        names = [Path(name).name for name in entry["filenames"]]
        counts = [int(count) for count in entry.get("shard_lengths") or [-1] * len(names)]
        tars = dict(zip(names, counts, strict=True))
        if -1 not in counts and int(entry.get("num_samples", sum(counts))) != sum(counts):
            raise ValueError(f"num_samples {entry['num_samples']} and shards of {sum(counts)}")
        notes[split] = tars
    return notes


def _choose(names: list[str], split: str | None, folder: Path) -> str:
    found = [name for name in names if split is not None and name in (split, *_also_called(split))]
    if len(names) == 1 and (split is None or not _also_called(names[0])):
        return names[0]
    if not found:
        wanted = f"no split {split}" if split else "several splits"
        raise ValueError(f"{folder} holds {wanted}: there are {', '.join(names)}; choose with --split")
    return found[0]


def _also_called(split: str) -> tuple[str, ...]:
    return next((words for words in _SPLITS if split in words), ())


def _split_of(path: Path) -> str:
    """train of imagenet1k-train-0007.tar; '' where no part of the name is a split's."""
    parts = path.stem.lower().replace("_", "-").replace(".", "-").split("-")
    return next((words[0] for part in reversed(parts) for words in _SPLITS if part in words), "")

"""`shards`: image folders to shards, indexes for existing shards, checks, and facts."""

import argparse
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from data import shards
from data.classes import read_classes
from data.cue64 import Cue64, make_cue64
from data.digits import write_digits
from data.each import image_folders, is_packed
from data.info import info
from data.shifts import SHIFTS
from engine.cli import Launch
from engine.counter import Counter
from engine.shard_facts import describe, show_report

_QUICK_SAMPLES = 1000  # images whose crc32 `verify --quick` reads
_WORTH_WORKERS = 50_000_000  # bytes of shards: one process reads them while the workers still start
_OWNERS = {
    "each": ("make",),
    "depth": ("make",),
    "classes": ("make", "index"),
    "no_decode": ("make", "index", "verify"),
    "allow_no_eof": ("index",),
    "quick": ("verify",),
    "paintings": ("stylize",),
    "weights": ("stylize",),
    "textures": ("stylize",),
    "kinds": ("corrupt",),
    "severities": ("corrupt",),
}


def run(arguments: argparse.Namespace, launch: Launch) -> dict[str, Any]:
    """Facts about the shards; `verify` lists every problem and ends with exit code 2 when there is one."""
    if os.environ.get("RANK", "0") != "0":
        return {}  # under an outside launcher one process does it all
    if arguments.workers is not None and arguments.workers < 0:
        raise ValueError(f"--workers {arguments.workers}: give 0 (in this process) or more")
    _check_owners(arguments)
    _check_cue64_flags(arguments)
    if arguments.action == "stylize":
        from engine.stylizing import write_stylized  # brings torch

        src, dst = _paths(arguments, ("SRC", "DST"))
        with _watching("stylize") as watch:
            write_stylized(arguments, launch, src, dst, watch=watch)
        return describe(dst)
    if arguments.action == "corrupt":
        from engine.corrupting import write_corrupted  # brings torch

        src, dst = _paths(arguments, ("SHARDS", "OUT"))
        with _watching("corrupt") as watch:
            return write_corrupted(arguments, launch, src, dst, watch=watch)
    action = {"make": _make, "index": _index, "verify": _verify, "info": _info, "digits": _digits}
    return action[arguments.action](arguments)


def _check_owners(arguments: argparse.Namespace) -> None:
    for name, owners in _OWNERS.items():
        if getattr(arguments, name) not in (None, False) and arguments.action not in owners:
            owned = " and ".join(owners)
            takes = ", info takes one folder" if arguments.action == "info" else ""
            raise ValueError(f"--{name.replace('_', '-')} is a flag of shards {owned}; drop it{takes}")
    if arguments.depth is not None and not arguments.each:
        raise ValueError(f"--depth {arguments.depth} says how deep --each looks; add --each, or drop it")
    if arguments.depth is not None and arguments.depth < 1:
        raise ValueError(f"--depth {arguments.depth} must be at least 1")


@contextmanager
def _watching(name: str) -> Iterator[Counter]:
    """Progress on stderr. Ctrl-C says in one line what stays."""
    counter = Counter(name)
    try:
        yield counter
    except KeyboardInterrupt as error:
        counter.close()
        print(f"interrupted: {error}" if str(error) else "interrupted", file=sys.stderr, flush=True)
        raise
    finally:
        counter.close()


def _paths(arguments: argparse.Namespace, names: tuple[str, ...]) -> list[Path]:
    if len(arguments.paths) != len(names):
        raise ValueError(
            f"shards {arguments.action} takes {' '.join(names)}; {len(arguments.paths)} paths were given"
        )
    return list(arguments.paths)


def _make(arguments: argparse.Namespace) -> dict[str, Any]:
    src, dst = _paths(arguments, ("SRC", "DST"))
    if _is_cue64(arguments):
        return _make_cue64(arguments, dst)
    if arguments.each:
        return _make_each(arguments, src, dst)
    _pack(arguments, src, dst, split=arguments.split or src.name)
    return describe(dst)


_CUE64_FLAGS = ("correlation", "num_train", "num_val", "num_classes")


def _is_cue64(arguments: argparse.Namespace) -> bool:
    """A folder of that name is reached by another spelling, such as its full path."""
    return bool(arguments.action == "make" and arguments.paths[0] == Path("cue64"))


def _check_cue64_flags(arguments: argparse.Namespace) -> None:
    given = [name for name in _CUE64_FLAGS if getattr(arguments, name) is not None]
    if given and not _is_cue64(arguments):
        flag = f"--{given[0].replace('_', '-')}"
        raise ValueError(f"{flag} is a flag of `shards make cue64 DST`; drop it, or make cue64")


def _make_cue64(arguments: argparse.Namespace, dst: Path) -> dict[str, Any]:
    """DST/train, DST/val and the shifted tests, each whole or not at all; what an earlier call made stays."""
    if arguments.each or arguments.split is not None:
        raise ValueError("--each and --split are for image folders; shards make cue64 writes all its sets")
    given = {name: value for name in _CUE64_FLAGS if (value := getattr(arguments, name)) is not None}
    settings = Cue64(seed=arguments.seed, **given)
    made = make_cue64(
        dst, settings, samples_per_shard=arguments.samples_per_shard, num_workers=arguments.workers
    )
    facts, reused = {}, []
    for folder in made:
        made_info = facts[folder.path.name] = dict(info(folder.path))
        reused += [folder.path.name] if folder.is_reused else []
        counts = f"{made_info['num_samples']} images, {made_info['num_classes']} classes"
        counts = f"{counts}, shards: {made_info['num_shards']}"
        print(f"{'reusing' if folder.is_reused else 'made   '} {folder.path}: {counts}", flush=True)
    return {"folders": facts, "reused": reused}


def _make_each(arguments: argparse.Namespace, src: Path, dst: Path) -> dict[str, Any]:
    """DST/NAME of every image folder SRC/NAME, whole or not at all; what an earlier call packed stays."""
    if arguments.split is not None:
        raise ValueError("--split and --each: every split is named after its folder; drop one of the two")
    found = image_folders(src, dst, depth=arguments.depth or 1)
    for path in found.others:
        print(f"passing over {path}: no image folder (CLASS/IMAGE)")
    classes = _classes(arguments)
    facts, reused = {}, []
    for folder in found.folders:
        name = folder.relative_to(src).as_posix()
        target = dst / name
        if is_packed(folder, target, classes=classes):
            reused.append(name)
        else:
            _pack(arguments, folder, target, split=name.replace("/", "-"), dataset=name)
        found_info = info(target)
        facts[name] = dict(found_info)
        counts = f"{found_info['num_samples']} images, {found_info['num_classes']} classes"
        state = "reusing" if name in reused else "packed "
        print(f"{state} {target}: {counts}, shards: {found_info['num_shards']}", flush=True)
    others = [path.relative_to(src).as_posix() for path in found.others]
    return {"folders": facts, "reused": reused, "passed_over": others}


def _pack(
    arguments: argparse.Namespace, src: Path, dst: Path, *, split: str, dataset: str | None = None
) -> None:
    with _watching(str(dst)) as watch:
        shards.make(
            src,
            dst,
            split=split,
            samples_per_shard=arguments.samples_per_shard,
            seed=arguments.seed,
            num_workers=arguments.workers,
            classes=_classes(arguments),
            dataset=dataset,
            descend=arguments.split is not None,
            decode=not arguments.no_decode,
            watch=watch,
        )


def _classes(arguments: argparse.Namespace) -> tuple[str, ...] | None:
    return None if arguments.classes is None else read_classes(arguments.classes)


def _workers(arguments: argparse.Namespace, folder: Path) -> int:
    if arguments.workers is not None:
        return int(arguments.workers)
    return 2 if sum(path.stat().st_size for path in folder.glob("*.tar")) > _WORTH_WORKERS else 0


def _index(arguments: argparse.Namespace) -> dict[str, Any]:
    names = ("SRC", "DST") if len(arguments.paths) == 2 else ("DST",)
    paths = _paths(arguments, names)
    with _watching(f"index {paths[0]}") as watch:
        shards.index_existing(
            paths[0],
            into=paths[-1],
            split=arguments.split,
            classes=_classes(arguments),
            num_workers=_workers(arguments, paths[0]),
            decode=not arguments.no_decode,
            allow_no_end=arguments.allow_no_eof,
            watch=watch,
        )
    return describe(paths[-1])


def _info(arguments: argparse.Namespace) -> dict[str, Any]:
    (dst,) = _paths(arguments, ("DST",))
    return describe(dst)


def _verify(arguments: argparse.Namespace) -> dict[str, Any]:
    (dst,) = _paths(arguments, ("DST",))
    with _watching(f"verify {dst}") as watch:
        report = shards.verify(
            dst,
            full=not arguments.quick,
            sample=_QUICK_SAMPLES,
            decode=not (arguments.quick or arguments.no_decode),
            num_workers=0 if arguments.quick else _workers(arguments, dst),
            watch=watch,
        )
    return show_report(dst, report, decoded=not (arguments.quick or arguments.no_decode))


def _digits(arguments: argparse.Namespace) -> dict[str, Any]:
    (dst,) = _paths(arguments, ("DST",))
    size = 32 if arguments.size is None else arguments.size
    write_digits(dst, size=size)
    names = ["train", "val", *(f"digits-{name}" for name in SHIFTS)]
    print(f"{dst}: image folders of scikit-learn's scanned digits, {size} px: {', '.join(names)}")
    return {"output": str(dst), "folders": names}

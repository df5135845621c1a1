"""`shards`: image folders to shards, indexes for existing shards, checks, and facts."""

import argparse
import os
from pathlib import Path
from typing import Any

from data import shards, verify
from data.cue64 import Cue64, make_cue64
from data.digits import write_digits
from data.each import image_folders, is_packed
from data.shifts import SHIFTS
from data.suite import list_suites
from engine.cli import Launch
from engine.failure import EXIT_USER_ERROR


def run(arguments: argparse.Namespace, launch: Launch) -> dict[str, Any]:
    """Facts about the shards; `verify` lists every problem and ends with exit code 2 when there is one."""
    if os.environ.get("RANK", "0") != "0":
        return {}  # under an outside launcher one process does it all
    if arguments.workers is not None and arguments.workers < 0:
        raise ValueError(f"--workers {arguments.workers}: give 0 (in this process) or more")
    if arguments.each and arguments.action != "make":
        raise ValueError(f"--each is a flag of shards make; drop it, {arguments.action} takes one folder")
    _check_cue64_flags(arguments)
    action = {"make": _make, "index": _index, "verify": _verify, "info": _info, "digits": _digits}
    return action[arguments.action](arguments)


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
    _pack(arguments, src, dst)
    return _describe(dst)


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
        info = facts[folder.path.name] = dict(verify.info(folder.path))
        reused += [folder.path.name] if folder.is_reused else []
        counts = f"{info['num_samples']} images, {info['num_classes']} classes, shards: {info['num_shards']}"
        print(f"{'reusing' if folder.is_reused else 'made   '} {folder.path}: {counts}", flush=True)
    return {"folders": facts, "reused": reused}


def _make_each(arguments: argparse.Namespace, src: Path, dst: Path) -> dict[str, Any]:
    """DST/NAME of every image folder SRC/NAME, whole or not at all; what an earlier call packed stays."""
    if arguments.split is not None:
        raise ValueError("--split and --each: every split is named after its folder; drop one of the two")
    found = image_folders(src, dst)
    for name in found.others:
        print(f"passing over {src / name}: no image folder (CLASS/IMAGE)")
    facts, reused = {}, []
    for folder in found.folders:
        target = dst / folder.name
        if is_packed(folder, target):
            reused.append(folder.name)
        else:
            _pack(arguments, folder, target)
        info = verify.info(target)
        facts[folder.name] = dict(info)
        counts = f"{info['num_samples']} images, {info['num_classes']} classes, shards: {info['num_shards']}"
        print(f"{'reusing' if folder.name in reused else 'packed '} {target}: {counts}", flush=True)
    return {"folders": facts, "reused": reused, "passed_over": found.others}


def _pack(arguments: argparse.Namespace, src: Path, dst: Path) -> None:
    shards.make(
        src,
        dst,
        split=arguments.split or src.name,
        samples_per_shard=arguments.samples_per_shard,
        seed=arguments.seed,
        num_workers=arguments.workers,
    )


def _index(arguments: argparse.Namespace) -> dict[str, Any]:
    (dst,) = _paths(arguments, ("DST",))
    num_workers = 2 if arguments.workers is None else arguments.workers
    shards.index_existing(dst, split=arguments.split, num_workers=num_workers)
    return _describe(dst)


def _info(arguments: argparse.Namespace) -> dict[str, Any]:
    (dst,) = _paths(arguments, ("DST",))
    return _describe(dst)


def _verify(arguments: argparse.Namespace) -> dict[str, Any]:
    (dst,) = _paths(arguments, ("DST",))
    report = verify.verify(dst, full=not arguments.quick)
    for problem in report.problems:
        print(f"problem: {problem}")
    print(
        f"{dst}: {report.num_samples} samples in {report.num_shards} shards, {len(report.problems)} problems"
    )
    return {"exit_code": EXIT_USER_ERROR if report.problems else 0, "problems": list(report.problems)}


def _digits(arguments: argparse.Namespace) -> dict[str, Any]:
    (dst,) = _paths(arguments, ("DST",))
    write_digits(dst, size=arguments.size)
    names = ["train", "val", *(f"digits-{name}" for name in SHIFTS)]
    print(f"{dst}: image folders of scikit-learn's scanned digits, {arguments.size} px: {', '.join(names)}")
    return {"output": str(dst), "folders": names}


def _describe(dst: Path) -> dict[str, Any]:
    info = dict(verify.info(dst))
    # A folder that bears a suite's name is that suite to `eval`.
    for suite in list_suites():
        if suite.id == dst.resolve().name:
            info["suite"] = suite.id
            print(f"{'suite':<12} {suite.title}: {suite.description}")
    for name in (
        "dataset",
        "split",
        "num_samples",
        "num_classes",
        "num_shards",
        "bytes",
        "formats",
        "dataset_id",
    ):
        print(f"{name:<12} {info[name]}")
    return info

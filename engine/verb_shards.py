"""`shards`: image folders to shards, indexes for existing shards, checks, and facts."""

import argparse
import os
from pathlib import Path
from typing import Any

from data import shards, verify
from data.digits import write_digits
from engine.cli import Launch
from engine.failure import EXIT_USER_ERROR


def run(arguments: argparse.Namespace, launch: Launch) -> dict[str, Any]:
    """Facts about the shards; `verify` lists every problem and ends with exit code 2 when there is one."""
    if os.environ.get("RANK", "0") != "0":
        return {}  # under an outside launcher one process does it all
    if arguments.workers < 0:
        raise ValueError(f"--workers {arguments.workers}: give 0 (in this process) or more")
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
    shards.make(
        src,
        dst,
        split=arguments.split or src.name,
        samples_per_shard=arguments.samples_per_shard,
        seed=arguments.seed,
        num_workers=arguments.workers,
    )
    return _describe(dst)


def _index(arguments: argparse.Namespace) -> dict[str, Any]:
    (dst,) = _paths(arguments, ("DST",))
    shards.index_existing(dst, split=arguments.split, num_workers=arguments.workers)
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
    print(f"{dst}: image folders train/ and val/ of scikit-learn's scanned digits, {arguments.size} px")
    return {"output": str(dst)}


def _describe(dst: Path) -> dict[str, Any]:
    info = dict(verify.info(dst))
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

"""What `shards` prints about a folder of shards: its facts, and what a verification found."""

from pathlib import Path
from typing import Any

from data.info import Spread, info
from data.suite import list_suites
from data.verify import Report
from engine.failure import EXIT_USER_ERROR


def show_report(dst: Path, report: Report, *, decoded: bool) -> dict[str, Any]:
    """Every problem a line, then a summary; exit code 2 where there is one."""
    for problem in report.problems:
        print(f"problem: {problem}")
    looked = f"read and decoded {report.num_read}" if decoded else f"read {report.num_read}"
    print(
        f"{dst}: {report.num_samples} samples in {report.num_shards} shards, {looked} of them, "
        f"{len(report.problems)} problems"
    )
    return {
        "exit_code": EXIT_USER_ERROR if report.problems else 0,
        "problems": list(report.problems),
        "num_read": report.num_read,
    }


def describe(dst: Path) -> dict[str, Any]:
    """Prints the facts and returns them."""
    found = info(dst)
    result: dict[str, Any] = dict(found)
    # A folder that bears a suite's name is that suite to `eval`.
    for suite in list_suites():
        if suite.id == dst.resolve().name:
            result["suite"] = suite.id
            print(f"{'suite':<12} {suite.title}: {suite.description}")
    for name in ("dataset", "split", "num_samples", "num_classes"):
        print(f"{name:<12} {result[name]}")
    empty = f", {found['empty_classes']} classes have none" if found["empty_classes"] else ""
    print(f"{'per class':<12} {_span(found['images_per_class'])} images{empty}")
    for name in ("num_shards", "bytes"):
        print(f"{name:<12} {result[name]}")
    print(f"{'per image':<12} {_span(found['image_bytes'])} bytes")
    print(f"{'width':<12} {_span(found['width'])} px")
    print(f"{'height':<12} {_span(found['height'])} px")
    print(f"{'formats':<12} {_counts(found['formats'])}")
    print(f"{'flags':<12} {_counts(found['flags']) or 'none'}")
    print(f"{'dataset_id':<12} {found['dataset_id']}")
    return result


def _span(spread: Spread) -> str:
    if spread["min"] == spread["max"]:
        return str(spread["min"])
    return f"{spread['min']} to {spread['max']}, median {spread['median']:g}"


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{number} {name}" for name, number in counts.items() if number)

"""A suite's result on the screen beyond one share: the number beside the headline, errors of its parts."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

_INDENT = " " * 20


def suite_lines(result: Mapping[str, Any]) -> str:
    """Lines to stand below the one of the headline; empty for most suites."""
    lines = [*_beside(result), *_parts(result)]
    return "".join(f"\n{_INDENT} {line}" for line in lines)


def _beside(result: Mapping[str, Any]) -> Iterator[str]:
    """The same predictions in another view, such as all 1000 classes."""
    for name, other in result.get("beside", {}).items():
        low, high = other["interval"]
        yield f"{name}: {100 * other['top1']:.2f} %  [{100 * low:.2f}, {100 * high:.2f}]"


def _parts(result: Mapping[str, Any]) -> Iterator[str]:
    if "parts" not in result:
        return
    is_error = result["metric"] == "error"
    if result["mean_error"] is None:
        yield f"no mean error: {len(result['missing'])} parts are missing"
    else:
        mce = f", mCE {result['mce']:.2f} (AlexNet: 100)" if "mce" in result else ""
        mean = f"{100 * result['mean_error']:.2f}" if is_error else f"{100 - 100 * result['mean_error']:.2f}"
        yield f"mean {'error' if is_error else 'top-1'} {mean} % over {len(result['errors'])} kinds{mce}"
    if "groups" in result and is_error:
        yield "  ".join(f"{name} {100 * error:.2f}" for name, error in result["groups"].items())
    if "severities" in result and is_error:
        yield "severity 1 to 5: " + "  ".join(f"{100 * error:.2f}" for error in result["severities"])
    yield from _kinds(result)


def _kinds(result: Mapping[str, Any]) -> Iterator[str]:
    """A line for each kind: its errors, their mean, over AlexNet's, and what the training has that looks like it."""
    overlap: Mapping[str, Sequence[str]] = result.get("overlap", {})
    ratios: Mapping[str, float] = result.get("corruption_errors", {})
    for kind, errors in result["errors"].items():
        shown = errors if result["metric"] == "error" else [1 - error for error in errors]
        values = " ".join(f"{100 * value:6.2f}" for value in shown)
        mean = f"  mean {100 * sum(shown) / len(shown):6.2f}" if len(shown) > 1 else ""
        ratio = f"  CE {ratios[kind]:6.2f}" if kind in ratios else ""
        alike = f"  overlap: {', '.join(overlap[kind])}" if kind in overlap else ""
        yield f"{kind:<27}{values}{mean}{ratio}{alike}"

"""log.jsonl as a training curve, and how far the run came."""

import json
import math
from collections.abc import Mapping, Sequence

from engine.folder import RunFolder
from engine.log import read_log
from engine.report.facts import Progress, State, TrainPoint

Entry = Mapping[str, object]
EXITS = {75: "stopped by a signal; the same command goes on", 2: "ended by an error"}


def read_progress(folder: RunFolder, recipe: Mapping[str, object]) -> tuple[Progress, list[str]]:
    """The run's progress by its log and exit.json; `recipe` has dotted names. Warnings for what is unreadable."""
    warnings: list[str] = []
    entries: list[Entry] = []
    try:
        entries = [e for e in read_log(folder.log) if isinstance(e, dict) and _number(e, "time") is not None]
    except FileNotFoundError:
        warnings.append("it has no log.jsonl: training curves and progress are unknown")
    except (OSError, UnicodeDecodeError) as error:
        warnings.append(f"log.jsonl cannot be read: {error}")
    points = _curve(entries)
    state, detail = _state(folder, entries, _steps(points, recipe))
    starts = [e for e in entries if e.get("event") == "start"]
    progress = Progress(
        state=state,
        detail=detail,
        started=_number(starts[0], "time") if starts else None,
        busy_s=_busy(entries),
        points=points,
        norm_stats=next((str(e["norm_stats"]) for e in reversed(starts) if "norm_stats" in e), None),
        compiled=_compiled(entries),
        recipes=tuple(dict.fromkeys(str(e["recipe"]) for e in starts if "recipe" in e)),
    )
    return progress, warnings


def _number(entry: Entry, name: str) -> float | None:
    value = entry.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def _compiled(entries: Sequence[Entry]) -> str | None:
    """What XLA did since the last start, as it counted; None where nothing compiles."""
    begin = max((place for place, e in enumerate(entries) if e.get("event") == "start"), default=0)
    counted = [e for e in entries[begin:] if e.get("event") == "train" and _number(e, "compiles")]
    if not counted:
        return None
    graphs, reads, fallbacks = (
        int(_number(counted[-1], name) or 0) for name in ("compiles", "host_reads", "fallbacks")
    )
    step = next(e.get("step") for e in counted if _number(e, "compiles") == graphs)
    return f"{graphs} graphs compiled, the last by step {step}; {reads} reads by the host, {fallbacks} fallbacks to it"


def _curve(entries: Sequence[Entry]) -> tuple[TrainPoint, ...]:
    points: list[TrainPoint] = []
    for entry in entries:
        step = _number(entry, "step")
        if entry.get("event") in ("start", "rollback") and step is not None:
            # A run goes on from its last checkpoint, or goes back: what it had logged after that is made once more.
            points = [point for point in points if point.step <= step]
        epoch = _number(entry, "epoch")
        if entry.get("event") != "train" or step is None or epoch is None:
            continue
        loss, top1, lr, speed = (_number(entry, name) for name in ("loss", "top1", "lr", "images_per_s"))
        points.append(
            TrainPoint(epoch=epoch, step=int(step), loss=loss, top1=top1, lr=lr, images_per_s=speed)
        )
    return tuple(points)


def _steps(points: Sequence[TrainPoint], recipe: Mapping[str, object]) -> tuple[int | None, int | None]:
    """Steps made and planned. The data set's size is not in a recipe: the log's epochs give it."""
    step = points[-1].step if points else None
    epochs, accumulate = recipe.get("run.epochs"), recipe.get("optim.accumulate", 1)
    limit = recipe.get("run.max_steps")
    if not points or points[-1].epoch <= 0 or not isinstance(epochs, int) or not isinstance(accumulate, int):
        return step, None
    batches = round(points[-1].step / points[-1].epoch * accumulate)
    total = batches * epochs // accumulate
    return step, min(total, limit) if isinstance(limit, int) else total


def _state(
    folder: RunFolder, entries: Sequence[Entry], steps: tuple[int | None, int | None]
) -> tuple[State, str]:
    made, planned = steps
    last = next((e for e in reversed(entries) if e.get("event") in ("start", "end", "stop", "error")), None)
    if last is None and made is None:
        return "not trained here", "no training in its log"
    code = _exit_code(folder)
    if last is not None and last["event"] == "end" and code in (None, 0):
        return "finished", f"{made if made is not None else last.get('step', '?')} steps"
    where = f"step {0 if made is None else made} of {'?' if planned is None else planned}"
    return "unfinished", f"{where}; {_reason(last, code)}"


def _reason(last: Entry | None, code: int | None) -> str:
    if last is not None and last["event"] == "error":
        return f"ended by an error: {last.get('error', '')}"
    if code is not None and code != 0:
        return EXITS.get(code, f"exit code {code}")
    if last is not None and last["event"] == "stop":
        return EXITS[75]
    return "its log has no end: still running, or killed"


def _exit_code(folder: RunFolder) -> int | None:
    try:
        value = json.loads((folder.root / "exit.json").read_text())
    except (OSError, ValueError):
        return None
    code = value.get("exit_code") if isinstance(value, dict) else None
    return code if isinstance(code, int) else None


def _busy(entries: Sequence[Entry]) -> float | None:
    """Seconds from each start to the last word of `train` after it, summed."""
    total, begin, until, is_any = 0.0, 0.0, 0.0, False
    for entry in entries:
        now = _number(entry, "time") or 0.0
        if entry.get("event") == "start":
            total, begin, until, is_any = total + until - begin, now, now, True
        elif entry.get("event") in ("train", "end", "stop", "error"):
            until = now
    return total + until - begin if is_any else None

"""What a run has cost, beside what it was to cost: receipt.json of a run folder, from its log."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from bits.checkpoint import write_atomic
from bits.environment import Environment
from engine.log import read_log
from engine.passes import passes_of
from engine.planner import eval_forwards
from engine.recipe import Recipe

RECEIPT = "receipt.json"


def planned(recipe: Recipe, *, updates: int, eval_images: int | None) -> dict[str, Any]:
    """By the recipe alone; passes count as forward passes of one image."""
    images = updates * recipe.optim.accumulate * recipe.run.batch_size
    passes = passes_of(recipe.objective, recompute=recipe.model.recompute)
    return {
        "updates": updates,
        "images": images,
        "passes_per_image": passes._asdict(),
        "train_forwards": images * passes.as_forwards,
        "teacher_forwards": images * passes.teacher,
        "eval_forwards": None if eval_images is None else eval_forwards(recipe, eval_images),
    }


def used(entries: Iterable[Mapping[str, Any]], *, images_per_update: int) -> dict[str, Any]:
    """By the log: seconds between one entry and the next count for what the later one is about; pauses between two
    starts count for nothing. Updates that were made twice, after a kill or a rollback, count twice."""
    seconds = {"train": 0.0, "eval": 0.0, "other": 0.0}
    counts = {"start": 0, "rollback": 0, "alarm": 0}
    updates = skipped = 0
    before = step = expected_from = None
    first_speed = None
    for entry in entries:
        event, at = str(entry.get("event")), entry.get("time")
        counts[event] = counts.get(event, 0) + 1
        if before is not None and at is not None and event != "start":
            kind = "train" if event in ("train", "health") else "eval" if event == "eval" else "other"
            seconds[kind] += max(0.0, at - before)
        before = at
        if event in ("start", "rollback"):
            step = entry.get("step", 0)
        if event == "train":
            updates += entry["step"] - (step or 0)
            step, skipped = entry["step"], skipped + int(entry.get("skipped") or 0)
            if expected_from is None:
                expected_from = step
            elif first_speed is None:
                first_speed = entry.get("images_per_s") or None
    images = updates * images_per_update
    return {
        "updates": updates,
        "images": images,
        "images_per_s": round(images / seconds["train"], 2) if seconds["train"] else None,
        "images_per_s_at_first": first_speed,
        "train_hours": seconds["train"] / 3600,
        "eval_hours": seconds["eval"] / 3600,
        "eval_share": seconds["eval"] / (sum(seconds.values()) or 1.0),
        "starts": counts["start"],
        "rollbacks": counts["rollback"],
        "alarms": counts["alarm"],
        "updates_left_out": skipped,
    }


def write_receipt(
    folder: Path, recipe: Recipe, env: Environment, *, updates: int, eval_images: int | None
) -> str:
    """Writes it (rank 0) and gives it in one line."""
    images = recipe.optim.accumulate * recipe.run.batch_size
    plan = planned(recipe, updates=updates, eval_images=eval_images)
    cost = used(read_log(folder / "log.jsonl"), images_per_update=images)
    speed = cost["images_per_s_at_first"]
    plan["train_hours"] = plan["images"] / speed / 3600 if speed else None  # by the first updates
    memory, memory_of = env.peak_memory()
    cost |= {"memory_bytes": memory, "memory_of": memory_of}
    receipt = {"recipe": recipe.hash, "backend": env.backend, "planned": plan, "used": cost}
    write_atomic(folder / RECEIPT, (json.dumps(receipt, indent=1) + "\n").encode())
    said = f"{cost['images']:,} images trained on of {plan['images']:,}, {cost['images_per_s'] or 0:.0f} images/s"
    return (
        f"receipt: {said}, {cost['train_hours']:.2f} h of training and {cost['eval_hours']:.2f} h of evaluations, "
        f"{cost['starts']} starts, peak memory {memory / (1 << 30):.2f} GiB ({memory_of})"
    )

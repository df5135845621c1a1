"""What a PGD-1 step costs beside a clean step of the same model: passes counted, CPU-seconds measured in turn.

    OMP_NUM_THREADS=1 python benchmarks/pgd_step.py [--repeats 7]

By passes (forward 1, full backward 2, input-only backward 1) a PGD-1 step is (1 + 1 + 1 + 2) / (1 + 2) = 5/3.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch

from benchmarks.record import markdown_table, write_result
from bits.environment import Environment, open_environment
from bits.meters import Meters
from data.batch import NUM_DRAWS, Batch
from engine.build import batch_layout, build_state
from engine.guard import Guard
from engine.knobs import pack_knobs
from engine.recipe import parse_recipe
from engine.step import TrainStep, meter_names, step_settings

MODELS = (
    ("resnet18", 112, 16),
    ("resnet50", 112, 8),
    ("deit_tiny_patch16_224", 112, 16),
    ("deit_small_patch16_224", 112, 8),
)
ATTACK = {"norm": "linf", "eps": "4/255", "step_size": "4/255", "steps": 1}


def make_step(env: Environment, name: str, image_size: int, batch: int, *, adversarial: bool) -> TrainStep:
    """A train step of `name` with fresh weights; both kinds differ in the attack alone."""
    objective = {"kind": "adversarial", "attack": ATTACK} if adversarial else {"kind": "clean"}
    recipe = parse_recipe(
        {
            "data": {"train": "unused", "image_size": image_size},
            "model": {"name": name},
            "optim": {"name": "adamw", "lr": 1e-4, "weight_decay": 0.05},
            "objective": objective,
            "run": {"epochs": 1, "batch_size": batch},
        }
    )
    state = build_state(recipe, env, num_classes=1000, layout=batch_layout(batch, env))
    state.model.train()
    settings = step_settings(recipe, 1000)
    return TrainStep(
        env=env,
        state=state,
        forward=env.wrap(state.model),
        settings=settings,
        meters=Meters(meter_names(settings), env.device),
        guard=Guard(state.model, limit=recipe.run.health.max_skips or 1, device=env.device),
    )


def random_batch(image_size: int, batch: int) -> Batch:
    generator = torch.Generator().manual_seed(0)
    return Batch(
        image=torch.randint(
            0, 256, (batch, 3, image_size, image_size), dtype=torch.uint8, generator=generator
        ),
        label=torch.randint(0, 1000, (batch,), generator=generator),
        mask=torch.ones(batch, dtype=torch.bool),
        key=torch.arange(batch),
        seed=torch.arange(batch),
        draw=torch.zeros(batch, NUM_DRAWS),
    )


def cpu_seconds(step: TrainStep, batch: Batch) -> float:
    start = time.process_time()
    step(batch, pack_knobs(lr=1e-4, eps=4 / 255, step_size=4 / 255, step=0))
    return time.process_time() - start


def measure(env: Environment, name: str, image_size: int, batch: int, repeats: int) -> dict[str, object]:
    """Clean and PGD-1 in turn, after one warm-up each; the ratio is taken pair by pair."""
    data = random_batch(image_size, batch)
    clean = make_step(env, name, image_size, batch, adversarial=False)
    attacked = make_step(env, name, image_size, batch, adversarial=True)
    cpu_seconds(clean, data), cpu_seconds(attacked, data)
    pairs = [(cpu_seconds(clean, data), cpu_seconds(attacked, data)) for _ in range(repeats)]
    ratios = [b / a for a, b in pairs]
    return {
        "model": name,
        "image_size": image_size,
        "batch": batch,
        "clean_cpu_s": statistics.median(a for a, _ in pairs),
        "pgd1_cpu_s": statistics.median(b for _, b in pairs),
        "ratio": statistics.median(ratios),
        "ratio_min": min(ratios),
        "ratio_max": max(ratios),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=7)
    repeats = parser.parse_args().repeats
    env = open_environment("cpu")
    rows = [measure(env, *settings, repeats) for settings in MODELS]
    header = ["model", "px", "batch", "clean CPU-s", "PGD-1 CPU-s", "ratio (median)", "min", "max"]
    cells = [
        [
            r["model"],
            r["image_size"],
            r["batch"],
            f"{r['clean_cpu_s']:.3f}",
            f"{r['pgd1_cpu_s']:.3f}",
            f"{r['ratio']:.2f}",
            f"{r['ratio_min']:.2f}",
            f"{r['ratio_max']:.2f}",
        ]
        for r in rows
    ]
    text = [
        "A PGD-1 step is 2 forward, 1 full and 1 input-only backward pass (counted in tests/engine/test_step.py);",
        f"by passes 5/3 = 1.67 of a clean step. Steps in turn, {repeats} pairs, AdamW, float32, goal 1.80.",
        "",
        *markdown_table(header, cells),
    ]
    print(
        write_result(
            "pgd-step", title="PGD-1 step beside a clean step", text=text, data={"rows": rows}
        ).read_text()
    )


if __name__ == "__main__":
    main()

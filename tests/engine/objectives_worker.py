"""Three updates of every kind of objective on one backend, from the same weights. Run as a program:

    python objectives_worker.py BACKEND WORLD DEVICES OUT

OUT gets from rank 0, for each kind: `weights` (3, P) after each update, `means` of the meters, `compiles` (graphs
compiled since the start, after each update) and `fallbacks`.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import torch

from bits.environment import Environment, open_environment
from bits.meters import Meters
from data.batch import LAM, NUM_DRAWS, START, Batch
from engine.build import batch_layout, build_state
from engine.free import make_step
from engine.knobs import Knobs, feed_knobs, pack_knobs
from engine.recipe import Recipe, parse_recipe
from engine.step import TrainStep, meter_names, step_settings

BATCH, SIZE, NUM_CLASSES, UPDATES = 16, 16, 10, 3
KINDS = {
    "targeted": {"kind": "adversarial", "clean_weight": 0.5, "loss": "bce"},
    "trades": {"kind": "trades", "mixup": 0.2},
    "mart": {"kind": "mart"},
    "advprop": {"kind": "advprop"},
    "free": {"kind": "free", "replays": 2},
}


def recipe_of(name: str) -> Recipe:
    # Smooth, because a ReLU's gradient jumps, and without a sign: a pixel whose gradient is within rounding of 0 would
    # go to the other side.
    attack = {"norm": "l2", "eps": 1.0, "step_size": 0.5, "steps": 1 if name == "free" else 2}
    tree = {
        "data": {"train": "unused", "image_size": SIZE},
        "model": {
            "name": "small_cnn",
            "norm_stats": "ghost:4",
            "split_norm": name == "advprop",
            "args": {"width": 8, "act_layer": "gelu"},
        },
        "optim": {"name": "sgd", "lr": 0.1, "momentum": 0.9, "clip_norm": 1.0},
        "objective": {**KINDS[name], "attack": attack | ({"targeted": True} if name == "targeted" else {})},
        "run": {"epochs": 1, "batch_size": BATCH},
    }
    return parse_recipe(tree, name)


def global_batch(number: int) -> Batch:
    generator = torch.Generator().manual_seed(number)
    draw = torch.zeros(BATCH, NUM_DRAWS)
    draw[:, LAM] = torch.rand(BATCH // 2, generator=generator).repeat_interleave(2)
    draw[:, START] = torch.rand(BATCH, generator=generator)
    return Batch(
        image=torch.randint(0, 256, (BATCH, 3, SIZE, SIZE), generator=generator, dtype=torch.uint8),
        label=torch.randint(0, NUM_CLASSES, (BATCH,), generator=generator),
        mask=torch.ones(BATCH, dtype=torch.bool),
        key=torch.arange(BATCH),
        seed=torch.randint(0, 1 << 62, (BATCH,), generator=generator),
        draw=draw,
    )


def fed(env: Environment, number: int) -> tuple[Batch, Knobs]:
    each = BATCH // env.world_size
    mine = slice(env.rank * each, (env.rank + 1) * each)
    batch = {name: tensor[mine] for name, tensor in global_batch(number)._asdict().items()}
    knobs = pack_knobs(lr=0.1 / (number + 1), eps=1.0 / (number + 1), step_size=0.5, step=number)
    return Batch(**env.feed(batch)), feed_knobs(env, knobs)


def step_of(env: Environment, name: str) -> TrainStep:
    recipe = recipe_of(name)
    state = build_state(recipe, env, num_classes=NUM_CLASSES, layout=batch_layout(BATCH, env))
    state.model.train()
    settings = step_settings(recipe, NUM_CLASSES)
    meters = Meters(meter_names(settings), env.device)
    return make_step(env=env, state=state, forward=env.wrap(state.model), settings=settings, meters=meters)


def run(env: Environment, name: str) -> dict[str, object]:
    step = step_of(env, name)
    weights, compiles = [], []
    for number in range(UPDATES):
        batch, knobs = fed(env, number)
        assert step(batch, knobs)
        env.cut()
        weights.append([p.detach().clone() for p in step.state.model.parameters()])
        env.cut()
        compiles.append(env.counters()["compiles"])
    totals = env.reduce(step.meters.snapshot()).cpu()
    flat = torch.stack([torch.cat([p.cpu().double().reshape(-1) for p in each]) for each in weights])
    return {
        "weights": flat,
        "means": step.meters.means(totals),
        "compiles": compiles,
        "fallbacks": env.counters()["fallbacks"],
    }


def main() -> None:
    backend, world, devices, out = sys.argv[1:]
    env = open_environment(backend, world_size=int(world), num_devices=int(devices))  # type: ignore[arg-type]
    results = {name: run(env, name) for name in KINDS}
    if env.rank == 0:
        torch.save(results, out)
    env.close()


if __name__ == "__main__":
    main()

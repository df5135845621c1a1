"""The step under torch.compile, and without a host read on CUDA: what XLA's counters show there, shown here."""

from collections.abc import Iterator

import pytest
import torch
from torch._dynamo.utils import counters

from bits.environment import Environment, open_environment
from bits.meters import Meters
from data.batch import NUM_DRAWS, Batch
from engine.build import batch_layout, build_state
from engine.guard import Guard
from engine.knobs import Knobs, feed_knobs, pack_knobs
from engine.recipe import Recipe, parse_recipe
from engine.step import TrainStep, meter_names, step_settings

BATCH = 8
CUDA = pytest.param("cuda", "inductor", marks=pytest.mark.gpu)


def recipe() -> Recipe:
    return parse_recipe(
        {
            "data": {"train": "unused", "image_size": 32},
            "model": {"name": "small_cnn", "norm_stats": "ghost:4"},
            "optim": {"name": "adamw", "lr": 1e-3, "clip_norm": 1.0, "ema": 0.9},
            "objective": {
                "kind": "adversarial",
                "mixup": 0.2,
                "attack": {"norm": "linf", "eps": "8/255", "step_size": "8/255", "steps": 1},
            },
            "run": {"epochs": 1, "batch_size": BATCH},
        }
    )


def make_step(env: Environment) -> TrainStep:
    settings = recipe()
    state = build_state(settings, env, num_classes=10, layout=batch_layout(BATCH, env))
    state.model.train()
    constants = step_settings(settings, 10)
    return TrainStep(
        env=env,
        state=state,
        forward=state.model,
        settings=constants,
        meters=Meters(meter_names(constants), env.device),
        guard=Guard(state.model, limit=10, device=env.device),
    )


def fed(env: Environment, number: int) -> tuple[Batch, Knobs]:
    generator = torch.Generator().manual_seed(number)
    draw = torch.rand(BATCH, NUM_DRAWS, generator=generator)
    batch = Batch(
        image=torch.randint(0, 256, (BATCH, 3, 32, 32), dtype=torch.uint8, generator=generator),
        label=torch.randint(0, 10, (BATCH,), generator=generator),
        mask=torch.ones(BATCH, dtype=torch.bool),
        key=torch.arange(BATCH),
        seed=torch.arange(BATCH) + number,
        draw=draw,
    )
    knobs = pack_knobs(lr=1e-3 / (number + 1), eps=number / 255, step_size=number / 255, step=number)
    device = Batch(**env.feed(batch._asdict()))
    return device, feed_knobs(env, knobs)


@pytest.fixture(autouse=True)
def fresh_counters() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize(("device", "backend"), [("cpu", "aot_eager"), CUDA])
def test_the_update_compiles_as_one_graph_and_once(device: str, backend: str) -> None:
    """`fullgraph` raises at a graph break; lr and eps change at each step and make no new graph."""
    env = open_environment(device)  # type: ignore[arg-type]
    step = make_step(env)
    step.forward = torch.compile(step.state.model, fullgraph=True, backend=backend)  # type: ignore[assignment]
    graphs = []
    for number in range(5):
        assert step(*fed(env, number))
        graphs.append(counters["stats"]["unique_graphs"])
    assert graphs[0] >= 1
    assert graphs[1:] == [graphs[1]] * 4, "a graph was made after the second update"


@pytest.mark.gpu
def test_no_host_read_in_a_step_on_cuda() -> None:
    env = open_environment("cuda")
    step = make_step(env)
    for number in range(2):
        step(*fed(env, number))
    inputs = [fed(env, number) for number in range(2, 5)]
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for batch, knobs in inputs:
            step(batch, knobs)
    finally:
        torch.cuda.set_sync_debug_mode("default")

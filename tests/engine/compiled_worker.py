"""A small train step on XLA, and what the compiler made of it. Run as a program:

    XLA_FLAGS="--xla_dump_to=DUMPS ..." python compiled_worker.py DEVICES DUMPS OUT CASE...

A CASE is NORM,PRECISION,REDUCE_DTYPE. OUT gets one JSON object: for each case the text files that the compiler wrote of
the train step and of a verdict, the tensors of state that an update writes, and the counters after each step.
"""

import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import torch
from torch import nn

from bits.ema import Ema
from bits.environment import Environment, open_environment
from bits.meters import Meters
from bits.state import TrainState
from data.batch import Batch
from engine.clipping import clip_by_norm
from engine.free import make_step
from engine.guard import Guard
from engine.knobs import feed_knobs, pack_knobs
from engine.objective import ObjectiveSettings
from engine.optim import AdamW
from engine.step import StepSettings, TrainStep, meter_names
from engine.verdict import judge
from models.norm import set_norm_stats
from tests.engine.one_step import ATTACK, EPS, NUM_CLASSES, make_batch

BATCH, STEPS = 16, 4


class Tiny(nn.Module):
    """A strided and a depthwise convolution, linear layers on tokens and on what they sum up to."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *(nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU()),
            *(nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.BatchNorm2d(8), nn.ReLU()),
        )
        self.mixed, self.head = nn.Linear(8, 12), nn.Linear(12, NUM_CLASSES)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        tokens = self.features(image).flatten(2).transpose(1, 2)  # (N,64,8)
        logits: torch.Tensor = self.head(self.mixed(tokens).relu().mean(1))
        return logits


def step_of(env: Environment, norm_stats: str) -> TrainStep:
    """PGD-1 with guard, average and clipping: all that a step can hold."""
    torch.manual_seed(0)
    model = set_norm_stats(Tiny(), norm_stats, num_devices=env.num_devices, native=env.native_batch_norm)
    env.place(model.train())
    optimizer = AdamW(model.parameters(), betas=(0.9, 0.999), eps=1e-8, weight_decay=0.1)
    optimizer.prime()
    settings = StepSettings(
        objective=ObjectiveSettings(num_classes=NUM_CLASSES, mixing=False, kind="adversarial", attack=ATTACK),
        smoothing=0.1,
        clip=partial(clip_by_norm, limit=1.0),
        accumulate=1,
        preview=6,
    )
    step = make_step(
        env=env,
        state=TrainState(model=model, optimizer=optimizer, ema=Ema(model, 0.9)),
        forward=env.wrap(model),
        settings=settings,
        meters=Meters(meter_names(settings), env.device),
        guard=Guard(model, limit=5, device=env.device),
    )
    env.cut()
    return step


def train(env: Environment, step: TrainStep) -> list[dict[str, int]]:
    """The counters after each step."""
    found = []
    for number in range(STEPS):
        env.seed(number)
        knobs = feed_knobs(env, pack_knobs(lr=0.1 / (1 + number), eps=EPS, step_size=EPS, step=number))
        step(Batch(**env.feed(make_batch(BATCH, number)._asdict())), knobs)
        step.state.step += 1
        env.barrier()
        found.append(env.counters())
    return found


@torch.no_grad()
def judged(env: Environment, step: TrainStep) -> None:
    batch = Batch(**env.feed(make_batch(BATCH)._asdict()))
    verdicts = judge(step.state.model.eval()(batch.image.float() / 255.0), batch.label)
    env.cut()
    env.barrier()
    del verdicts


def state_tensors(step: TrainStep) -> int:
    """Weights, running statistics, optimizer state, average, meters and guard: what every update writes."""
    state = step.state
    assert state.ema is not None
    running = [b for name, b in state.model.named_buffers() if "running" in name]
    weights = [*state.model.parameters(), *running]
    slots = [tensor for entry in state.optimizer.state.values() for tensor in entry.values()]
    return 2 * len(weights) + len(slots) + len(state.optimizer.param_groups) + 2


def main() -> None:
    devices, dumps, out = int(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3])
    results: dict[str, Any] = {}
    for case in sys.argv[4:]:
        norm_stats, precision, reduce_dtype = case.split(",")
        env = open_environment(
            "xla",
            precision=precision,  # type: ignore[arg-type]
            num_devices=devices,
            reduce_dtype=reduce_dtype,  # type: ignore[arg-type]
        )
        step = step_of(env, norm_stats)
        seen, result = set(dumps.glob("*.txt")), dict[str, Any]()
        result["counters"] = train(env, step)
        result["train"] = sorted(str(path) for path in set(dumps.glob("*.txt")) - seen)
        result["state_tensors"] = state_tensors(step)
        seen = set(dumps.glob("*.txt"))
        judged(env, step)
        result["eval"] = sorted(str(path) for path in set(dumps.glob("*.txt")) - seen)
        results[case] = result
    out.write_text(json.dumps(results))


if __name__ == "__main__":
    main()

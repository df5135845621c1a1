"""A train step on the cpu with small models and made batches, and a counter of its passes."""

from collections import Counter
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from bits.environment import Environment
from bits.meters import Meters
from bits.state import TrainState
from data.batch import LAM, NUM_DRAWS, START, Batch
from engine.fields import AttackSection
from engine.free import make_step as step_of_kind
from engine.knobs import Knobs, pack_knobs
from engine.objective import ObjectiveSettings
from engine.optim import SGD
from engine.step import StepSettings, TrainStep, meter_names
from models.registry import create_model

NUM_CLASSES = 5
EPS = 8 / 255
ATTACK = AttackSection(norm="linf", eps=EPS, step_size=EPS, steps=1)
OF_OBJECTIVE = ("kind", "attack", "mixing", "loss", "clean_weight", "beta", "distill")


class CountPasses(TorchDispatchMode):
    """Counts images through convolutions: forward, and backward by which gradients were asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.ops.aten.convolution.default:
            self.counts["forward"] += args[0].shape[0]
        if func is torch.ops.aten.convolution_backward.default:
            image, weight = args[-1][:2]  # the mask of wanted gradients: input, weight, bias
            kind = {(1, 1): "both", (1, 0): "input", (0, 1): "weight"}[int(image), int(weight)]
            self.counts[kind] += args[0].shape[0]
        return func(*args, **(kwargs or {}))


def cnn(**changes: Any) -> nn.Module:
    torch.manual_seed(0)
    settings: dict[str, Any] = {"norm_stats": "local"} | changes
    return create_model(
        "small_cnn", num_classes=NUM_CLASSES, image_size=16, mean=[0.5] * 3, std=[0.5] * 3, **settings
    )


def without_norm() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 14 * 14, NUM_CLASSES))


def make_step(env: Environment, model: nn.Module, **changes: Any) -> TrainStep:
    """Of kind adversarial where only an attack is given. `changes` are fields of either settings."""
    optimizer = SGD(model.parameters(), momentum=0.0, nesterov=False, weight_decay=0.0)
    kind = "clean" if changes.get("attack") is None else "adversarial"
    mine = {"num_classes": NUM_CLASSES, "mixing": False, "kind": kind}
    mine |= {name: changes.pop(name) for name in OF_OBJECTIVE if name in changes}
    settings: dict[str, Any] = {"smoothing": 0.0, "clip": None, "accumulate": 1} | changes
    teacher = settings.pop("teacher", None)
    step = StepSettings(objective=ObjectiveSettings(**mine), **settings)
    return step_of_kind(
        env=env,
        state=TrainState(model=model.train(), optimizer=optimizer, ema=None),
        forward=env.wrap(model),
        settings=step,
        meters=Meters(meter_names(step), env.device),
        teacher=teacher,
    )


def make_batch(num: int = 8, seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    draw = torch.zeros(num, NUM_DRAWS)
    draw[:, LAM] = 1.0
    draw[:, START] = torch.rand(num, generator=generator)
    return Batch(
        image=torch.randint(0, 256, (num, 3, 16, 16), generator=generator, dtype=torch.uint8),
        label=torch.randint(0, NUM_CLASSES, (num,), generator=generator),
        mask=torch.ones(num, dtype=torch.bool),
        key=torch.arange(num),
        seed=torch.randint(0, 1 << 62, (num,), generator=generator),
        draw=draw,
    )


def knobs(*, lr: float = 0.1, eps: float = EPS, step_size: float = EPS) -> Knobs:
    return pack_knobs(lr=lr, eps=eps, step_size=step_size, step=0)


def count_passes(step: TrainStep, batch: Batch, model: nn.Module) -> dict[str, int]:
    """Passes of one step over the batch, by name: forward, input (backward that reaches the image only), full.

    Counted over all convolutions; the first one needs no gradient of its input in training.
    """
    unit = sum(isinstance(module, nn.Conv2d) for module in model.modules()) * len(batch.label)
    with CountPasses() as passes:
        assert step(batch, knobs())
    found = dict(passes.counts)
    found["full"] = found.pop("weight", 0) + found.pop("both", 0)
    assert all(count % unit == 0 for count in found.values()), found
    return {name: count // unit for name, count in found.items()}

"""Components in lanes on XLA:CPU beside the cpu: prints a line of JSON a component. Run by test_lanes_xla.py."""

import json
import sys

import torch
from torch import Tensor, nn

from bits.xla import open_environment
from robust.apgd import Apgd
from robust.apgd_l1 import ApgdL1
from robust.fab import Fab
from robust.fab_untargeted import FabUntargeted
from robust.lanes import Component
from robust.square import Square
from robust.square_l1 import SquareL1
from robust.square_l2 import SquareL2
from robust.stage import Device, Stage

NUM, CLASSES, LANES = 32, 5, 8
EPS = {"linf": 0.004, "l2": 0.04, "l1": 0.3}

COMPONENTS: dict[str, tuple[Component, str, int]] = {
    "apgd-ce linf": (Apgd(loss="ce", iterations=10), "linf", 0),
    "apgd-dlr l2, eot 2": (Apgd(loss="dlr", norm="l2", iterations=10, eot=2), "l2", 0),
    "apgd-t linf": (Apgd(loss="dlr-targeted", iterations=10), "linf", 2),
    "apgd-pm l1": (ApgdL1(loss="probability-margin", iterations=25), "l1", 0),
    "apgd-ce l1, larger balls": (ApgdL1(iterations=10, large_first=True), "l1", 0),
    "fab-t linf": (Fab(iterations=6), "linf", 2),
    "fab-t l2": (Fab(norm="l2", iterations=6), "l2", 2),
    "fab-t l1": (Fab(norm="l1", iterations=6), "l1", 2),
    "fab linf": (FabUntargeted(num_classes=CLASSES, iterations=4, random_start=True, at_once=2), "linf", 0),
    "square linf": (Square(queries=20), "linf", 0),
    "square l2": (SquareL2(queries=20), "l2", 0),
    "square l1": (SquareL1(queries=20), "l1", 0),
}


def small_net() -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(
        *(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.AvgPool2d(2)),
        *(
            nn.Conv2d(8, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.GELU(),
            nn.Flatten(),
            nn.Linear(8 * 25, CLASSES),
        ),
    )
    for layer in net.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.normal_(std=0.3)
            layer.running_var.uniform_(0.5, 2.0)
    net.eval().requires_grad_(False)
    head = net[-1]
    head.bias -= net(torch.rand(64, 3, 10, 10)).mean(0)  # so that no class wins everywhere
    return net


def stage_of(
    component: Component,
    model: nn.Module,
    image: Tensor,
    label: Tensor,
    eps: float,
    device: Device,
    chunk: int,
) -> Stage:
    return Stage(
        component=component,
        predict=model,
        image=device.feed(image),
        label=device.feed(label),
        eps=device.feed(torch.tensor(eps)),
        keys=range(len(image)),
        seed=3,
        num_lanes=LANES,
        chunk=chunk,
        device=device,
    )


def answers(stage: Stage, tries: dict[int, list[int]]) -> tuple[list[bool], int]:
    """Verdict of each image, and how many chunks it took."""
    chunks = []
    stage.on_chunk = lambda stage: chunks.append(1)
    found = {a.row: a.found for a in stage.run(tries) if a.is_last}
    return [found[row] for row in range(len(tries))], len(chunks)


def main(names: list[str]) -> None:
    env = open_environment("xla", precision="float32", num_devices=1, deterministic=False)
    on_cpu, on_xla = small_net(), env.place(small_net())
    here = Device(feed=lambda tensor: tensor)
    there = Device(
        feed=lambda tensor: env.feed({"t": tensor}, split=False)["t"], cut=env.cut, repeated=env.repeated
    )
    calls: list[int] = []
    on_xla.register_forward_hook(lambda *_: calls.append(1))
    image = torch.rand(2 * NUM, 3, 10, 10, generator=torch.Generator().manual_seed(9))
    ranks = on_cpu(image).argsort(dim=1, descending=True)
    for name in names or COMPONENTS:
        component, norm, targets = COMPONENTS[name]
        report: dict[str, object] = {"name": name, "found": 0, "different": 0}
        for block, chunk in ((0, 3), (1, 5)):
            rows = slice(block * NUM, (block + 1) * NUM)
            asked = ranks[rows].tolist()
            tries = {row: asked[row][1 : 1 + targets] if targets else [asked[row][0]] for row in range(NUM)}
            settings = image[rows], ranks[rows, 0], EPS[norm]
            wanted, _ = answers(stage_of(component, on_cpu, *settings, here, chunk), tries)
            stage = stage_of(component, on_xla, *settings, there, chunk)
            env.cut()
            before = env.counters()
            calls.clear()
            got, chunks = answers(stage, tries)
            made = {key: value - before[key] for key, value in env.counters().items()}
            report[f"block {block}"] = made | {"chunks": chunks, "calls": len(calls)}
            report["found"] = int(report["found"]) + sum(wanted)  # type: ignore[call-overload]
            report["different"] = int(report["different"]) + sum(  # type: ignore[call-overload]
                a != b for a, b in zip(wanted, got, strict=True)
            )
        print(json.dumps(report), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])

"""Traces small steps with the export environment and says what came out as JSON. A program: its devices are virtual.

xla_export_worker.py NUM_DEVICES CASE...
"""

import hashlib
import json
import os
import sys
from pathlib import Path

os.environ |= {"PJRT_DEVICE": "CPU", "CPU_NUM_DEVICES": sys.argv[1]}
sys.path.insert(0, str(Path(__file__).parents[2]))

import torch
from torch import Tensor, nn

from bits.xla_export import fallbacks, open_export

BATCH = 8
env = open_export(precision="float32", num_devices=int(sys.argv[1]))
model = env.place(nn.Linear(4, 4, bias=False))
wide = env.place(nn.Linear(4, BATCH, bias=False))  # its weight's first axis is as long as a batch
optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
counts = torch.zeros(3, dtype=torch.int64, device=env.device)
last = torch.zeros(BATCH, 4, device=env.device)


def update(image: Tensor) -> None:
    model(image).square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    counts.add_(1)
    last.copy_(image * 2)  # which torch_xla does not number anew
    env.cut()


def attacked(image: Tensor) -> None:
    for _ in range(3):
        image = image + 0.1 * model(image).detach()
        env.cut()
    update(image)


def accumulated(image: Tensor) -> None:
    for _ in range(2):
        wide(image).square().sum().backward()
        env.cut()
    wide.zero_grad()


def needs_a_read(image: Tensor) -> None:
    if model(image).sum().item() > 0:
        update(image)


def needs_the_host(image: Tensor) -> None:
    update(image[torch.nonzero(model(image)[:, 0])[:, 0]])


def of_the_batch_alone(image: Tensor) -> None:
    """What was fed has values, so this one does not crash."""
    torch.nonzero(image)
    update(image)


def batch() -> Tensor:
    return env.feed({"image": torch.rand(BATCH, 4)})["image"]


def trace(name: str) -> dict[str, object]:
    env.settle()
    update(batch())  # makes the momentum
    env.settle()
    image = batch()
    graphs = env.record(lambda: CASES[name](image))
    return {
        "graphs": [[len(g.donated), len(g.divided), g.num_changed, g.stablehlo[:2].decode()] for g in graphs],
        "distinct": len({g.stablehlo for g in graphs}),
        "programs": [hashlib.sha256(g.stablehlo).hexdigest() for g in graphs],
        "fallbacks": fallbacks(),
        "executes": env.counters()["executes"],
        "pairs": [list(map(list, g.donated)) for g in graphs],
    }


CASES = {
    each.__name__: each
    for each in (update, attacked, accumulated, needs_a_read, needs_the_host, of_the_batch_alone)
}
print(json.dumps([trace(name) for name in sys.argv[2:]]))

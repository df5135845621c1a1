"""What the XLA environment says of steps that are not alike, and of batches that are not divided. Run as a program:

    CPU_NUM_DEVICES=2 python xla_worker.py OUT

OUT gets one JSON object: for each case the warnings and errors of its run.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from unittest import mock

sys.path.insert(0, str(Path(__file__).parents[2]))

import torch
import torch.nn.functional as F
import torch_xla.distributed.spmd as spmd
from torch import Tensor

from bits.environment import open_environment
from bits.xla import XlaEnvironment
from bits.xla_mesh import enter
from bits.xla_watch import XlaWatch

Body = Callable[[Tensor, int], Tensor]
STEPS = 8
NUM_DEVICES = 2


def alike(x: Tensor, number: int) -> Tensor:
    return x * (0.31 + 0.07 * number)  # a number that travels as data


def other_exponent(x: Tensor, number: int) -> Tensor:
    return x ** (1.5 if number < 4 else 0.1 + number)  # HERE exponent


def other_operation(x: Tensor, number: int) -> Tensor:
    if number < 4:
        return x.relu()
    return x.sigmoid() if number % 2 else x.relu().exp()  # HERE operation


def reads_the_host(x: Tensor, number: int) -> Tensor:
    return x * (1.0 if number < 4 else x.sum().item())  # HERE read


def reads_what_is_there(x: Tensor, number: int) -> Tensor:
    if number >= 4:
        x.cpu()  # HERE copy
    return x * 2.0


def falls_back(x: Tensor, number: int) -> Tensor:
    return x * 2.0 if number < 4 else x * torch.nonzero(x >= 0.0).shape[0]  # HERE fallback


def only_once(x: Tensor, number: int) -> Tensor:
    return x.tanh() if number == 4 else x.sinh()  # HERE once


def two_graphs(x: Tensor, number: int) -> Tensor:
    return x.relu() if number % 2 else x.sigmoid()


def in_the_backward_pass(x: Tensor, number: int) -> Tensor:
    leaf = x.detach().requires_grad_(True)
    (leaf ** (1.5 if number < 4 else 0.1 + number)).sum().backward()  # HERE backward
    assert leaf.grad is not None
    return leaf.grad


CASES: dict[str, tuple[Body, int]] = {
    "alike": (alike, 1),
    "exponent": (other_exponent, 1),
    "operation": (other_operation, 1),
    "read": (reads_the_host, 1),
    "copy": (reads_what_is_there, 1),
    "fallback": (falls_back, 1),
    "backward": (in_the_backward_pass, 1),
    "two calls": (two_graphs, 2),
    "once": (only_once, 1),
    "shape": (alike, 1),
}


def run(env: XlaEnvironment, name: str, *, strict: bool) -> dict[str, object]:
    """STEPS calls of a step, as a loop makes them."""
    body, calls = CASES[name]
    said: list[str] = []
    watch = XlaWatch(calls=calls, warn=said.append, strict=strict)
    error, number = None, 0
    try:
        for number in range(STEPS):
            rows = 6 if name == "shape" and number >= 4 else 4
            # Other shapes, or what the first run compiled would be there.
            fed = env.feed({"x": torch.rand(rows, 5 if strict else 3), "label": torch.arange(rows)})
            with watch.step(fed, at=f"step {number}"):
                found = body(fed["x"], number)
                env.cut()
            del found
    except RuntimeError as raised:
        error = f"{type(raised).__name__}: {raised}"
    env.cut()
    return {"said": said, "error": error, "number": number}


def feeding(env: XlaEnvironment) -> dict[str, str]:
    """What `feed` says when labels are left on one device, or when the mesh is not the one that was asked for."""
    batch = {"image": torch.rand(4, 3), "label": torch.arange(4), "mask": torch.ones(4, dtype=torch.bool)}
    env.feed(batch)
    env.feed(batch, split=False)
    found = {}

    def only_images(tensor: Tensor, mesh: spmd.Mesh) -> Tensor:
        return enter(tensor, mesh) if tensor.dim() > 1 else tensor.to(env.device)

    def replicated(tensor: Tensor, mesh: spmd.Mesh) -> Tensor:
        on_device = tensor.to(env.device)
        spmd.mark_sharding(on_device, mesh, (None,) * tensor.dim())
        return on_device

    for fault in (only_images, replicated):
        with mock.patch("bits.xla.enter", fault):
            try:
                env.feed(batch)
                found[fault.__name__] = "nothing"
            except RuntimeError as error:
                found[fault.__name__] = str(error)
    env.cut()
    return found


def refused() -> str:
    """What a float32 run hears that asks for sums in bf16."""
    try:
        open_environment("xla", num_devices=NUM_DEVICES, reduce_dtype="bf16")
    except ValueError as error:
        return str(error)
    return "nothing"


# (stride, padding, dilation, groups) and the kernel's height and width
CONVOLUTIONS = {
    "plain": ((1, 1, 1, 1), (3, 3)),
    "strided": (((2, 1), (1, 0), 1, 1), (3, 2)),
    "unused pixels": ((3, 2, 2, 1), (2, 3)),
    "padded point": ((2, 1, 1, 1), (1, 1)),
    "grouped": ((2, 1, 2, 2), (3, 3)),
    "depthwise": ((1, 1, 1, 4), (3, 3)),
    "patches": (((3, 2), 0, 1, 1), (3, 2)),  # a row and a column in none of them
}


def gradients(env: XlaEnvironment) -> dict[str, float]:
    """How far those of a convolution and a linear layer are from the cpu's, relative to the largest."""
    found = {}
    for name, (how, kernel) in CONVOLUTIONS.items():
        torch.manual_seed(0)
        host = [torch.randn(4, 4, 11, 9), torch.randn(8, 4 // how[3], *kernel), torch.randn(8)]
        found[name] = distance(env, host, lambda x, w, b, how=how: F.conv2d(x, w, b, *how))
    host = [torch.randn(4, 5, 3), torch.randn(7, 3), torch.randn(7)]
    return found | {"linear": distance(env, host, F.linear)}


def distance(env: XlaEnvironment, host: list[Tensor], layer: Callable[..., Tensor]) -> float:
    sides = []
    for device in (env.device, torch.device("cpu")):
        given = [tensor.to(device).requires_grad_(True) for tensor in (t.detach().clone() for t in host)]
        out = layer(*given)
        (out * torch.linspace(0.0, 1.0, out.numel()).reshape(out.shape).to(device)).sum().backward()
        env.cut()
        sides.append([t.grad.cpu() for t in given if t.grad is not None])
    assert [len(side) for side in sides] == [3, 3]
    return max(((a - b).abs().max() / b.abs().max()).item() for a, b in zip(*sides, strict=True))


def main() -> None:
    env = open_environment("xla", num_devices=NUM_DEVICES)
    assert isinstance(env, XlaEnvironment)
    results: dict[str, object] = {"feed": feeding(env), "refused": refused(), "gradients": gradients(env)}
    for name in CASES:
        results[name] = {str(strict): run(env, name, strict=strict) for strict in (False, True)}
    Path(sys.argv[1]).write_text(json.dumps(results))


if __name__ == "__main__":
    main()

"""Reduced models on XLA's cpu device beside torch's. Run as a program with places in the list of tests/models/every.py:

    python xla_worker.py f32|bf16 NUMBER[,NUMBER...]

One JSON line for each: `fallbacks`, the operators that went back to the host; how far logits and gradients of a train
step are from the cpu's in float32; `still`, the parameters that an optimizer step on the device left as they were; how
far the eval logits are, of a file's weights on the cpu and one image alone; `error`. Number -1 is a toy model with an
operator that XLA does not have.
"""

import json
import math
import sys
import traceback
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import torch
import torch.nn.functional as F
import torch_xla
import torch_xla.debug.metrics as metrics
from torch import Tensor, nn

from models.load import load_weights
from models.weight_export import to_safetensors
from robust.gradient import input_gradient
from tests.models.every import EVERY, NUM_CLASSES, backward, batch, build, distance


class Toy(nn.Module):
    """Warps the image with grid_sample, which XLA leaves to the host."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, NUM_CLASSES)

    def forward(self, image: Tensor) -> Tensor:
        grid = F.affine_grid(
            torch.eye(2, 3, device=image.device).expand(len(image), 2, 3), list(image.shape), False
        )
        logits: Tensor = self.head(F.grid_sample(image, grid, align_corners=False).mean((2, 3)))
        return logits


def make(number: int, seed: int) -> nn.Module:
    if number < 0:
        torch.manual_seed(seed)
        return Toy()
    case = EVERY[number]
    return build(case, size=case.odd, seed=seed, native_norm=False)


def examine(number: int, *, bf16: bool) -> dict[str, Any]:
    device = torch_xla.device()
    image, target = batch(32 if number < 0 else EVERY[number].odd, 2)
    metrics.clear_all()
    # train: forward, backward, optimizer step
    ours, theirs = make(number, 0).to(device).train(), make(number, 0).train()
    before = {name: p.detach().clone() for name, p in theirs.named_parameters()}
    # its steps are as long for the small gradients behind a layer scale of 1e-6 as for any
    optimizer = torch.optim.AdamW(ours.parameters(), lr=1e-3, weight_decay=0.0, eps=1e-12)
    logits = backward(ours, image.to(device), target.to(device), bf16=bf16)
    optimizer.step()
    torch_xla.sync()
    expected = backward(theirs, image, target)
    gradient = torch.cat([p.grad.cpu().float().reshape(-1) for p in ours.parameters() if p.grad is not None])
    if number >= 0 and EVERY[number].slow_start:
        backward(ours, image.to(device), target.to(device), bf16=bf16)
        optimizer.step()
        torch_xla.sync()
    wanted = torch.cat([p.grad.reshape(-1) for p in theirs.parameters() if p.grad is not None])
    after = {name: p.detach().cpu() for name, p in ours.named_parameters()}
    # eval, an image of nan beside the first; against a model on the cpu with the exported weights, and one image
    again = make(number, 1).eval()
    with TemporaryDirectory() as folder:
        path = Path(folder) / "exported.safetensors"
        path.write_bytes(to_safetensors(ours.state_dict(), {}))
        load_weights(again, path)
    beside = image.clone()
    beside[1] = math.nan
    found, attacked = _eval(ours.eval(), beside.to(device), target.to(device), bf16=bf16)
    alone, reference = _eval(again, image[:1], target[:1], bf16=False)
    return {
        "train_logits": distance(logits.cpu(), expected),
        "train_gradient": distance(gradient, wanted),
        "still": [name for name in before if torch.equal(before[name], after[name])],
        "eval_logits": distance(found[:1].cpu(), alone),
        "eval_gradient": distance(attacked[:1].cpu(), reference),
        "fallbacks": [name for name in metrics.counter_names() if name.startswith("aten::")],
    }


def _eval(model: nn.Module, image: Tensor, target: Tensor, *, bf16: bool) -> tuple[Tensor, Tensor]:
    """Logits, and the gradient with respect to the image as attacks take it, in one graph."""
    kept: list[Tensor] = []

    def loss(logits: Tensor) -> Tensor:
        kept.append(logits.detach())
        return F.cross_entropy(logits, target, reduction="sum")

    def predict(pixels: Tensor) -> Tensor:
        with torch.autocast(pixels.device.type, dtype=torch.bfloat16, enabled=bf16):
            logits: Tensor = model(pixels)
        return logits.float()

    gradient = input_gradient(predict, image, loss)
    if image.device.type == "xla":
        torch_xla.sync()
    return kept[0], gradient


def main() -> None:
    """For each number a line, whatever happens to the others."""
    for number in map(int, sys.argv[2].split(",")):
        try:
            report = examine(number, bf16=sys.argv[1] == "bf16")
        except Exception:
            report = {"error": traceback.format_exc()}
        print(json.dumps({"number": number, **report}), flush=True)


if __name__ == "__main__":
    main()

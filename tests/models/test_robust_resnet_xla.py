"""The four Robust-ResNets on XLA, in a process of its own: as on the cpu, bf16, recomputing, no fallback."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# less optimising: half the time to compile, and these models run for milliseconds
QUICK = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"

SCRIPT = """
import sys
import torch
import torch.nn.functional as F
import torch_xla
import torch_xla.debug.metrics as met
from bits.xla_recompute import recompute
from models.registry import create_model
from robust.gradient import gradient_and_logits

device = torch_xla.device()
image, label = torch.rand(4, 3, 64, 64), torch.arange(4)


def build(kind, **extra):
    torch.manual_seed(0)
    settings = dict(num_classes=10, image_size=64, mean=[0.5] * 3, std=[0.2] * 3, native_norm=False)
    settings |= dict(depths=(1, 1, 1, 1), dims=(8, 16, 32, 64), layer_scale_init_value=0.5)
    model = create_model(f"robust_resnet_{kind}_small", **(settings | extra)).train()
    for module in model.modules():  # fresh weights make nearly constant outputs
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.normal_(module.weight, std=module.weight[0].numel() ** -0.5)
    return model


def update(model, where, *, bf16=False):
    model = model.to(where)
    x, y = image.to(where), label.to(where)
    with torch.autocast(torch.device(where).type, dtype=torch.bfloat16, enabled=bf16):
        logits = model(x)
    F.cross_entropy(logits.float(), y).backward()
    gradients = [p.grad for p in model.parameters()]
    torch_xla.sync()
    attack, judged = gradient_and_logits(model.eval(), x[:1], lambda logits: logits.logsumexp(1).sum())
    found = [logits.detach(), judged, attack, *gradients, *model.buffers()]
    return [tensor.float().cpu() for tensor in found]


def compare(kind, found, expected, tolerance):
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected):
        assert torch.isfinite(ours).all(), kind
        torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


kind = sys.argv[1]
expected = update(build(kind), "cpu")
compare(kind, update(build(kind), device), expected, 1e-4)
compare(kind, update(build(kind), device, bf16=True), expected, 0.3)
if kind == "dw":  # all positions, the other padding, each block computed twice; then drop path as well
    settings = dict(norms=["norm1", "norm2", "norm3"], acts=["act1", "act2", "act3"], padding_mode="replicate")
    saving = build(kind, **settings)
    saving.backbone.set_grad_checkpointing(checkpoint=recompute)
    compare(kind, update(saving, device), update(build(kind, **settings), "cpu"), 1e-4)
    dropping = build(kind, drop_path=0.5)
    dropping.backbone.set_grad_checkpointing(checkpoint=recompute)
    assert all(torch.isfinite(tensor).all() for tensor in update(dropping, device))

fallbacks = [name for name in met.counter_names() if name.startswith("aten::")]
assert not fallbacks, fallbacks
print("xla ok")
"""


@pytest.mark.skipif(importlib.util.find_spec("torch_xla") is None, reason="torch_xla is not installed")
@pytest.mark.parametrize("kind", ["dw", "inverted_dw", "up_inverted_dw", "down_inverted_dw"])
def test_on_xla_as_on_the_cpu(kind: str) -> None:
    environment = {**os.environ, "PJRT_DEVICE": "CPU", "XLA_FLAGS": QUICK, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, kind],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=540,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "xla ok" in done.stdout

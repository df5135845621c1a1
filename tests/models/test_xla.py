"""Group statistics on four XLA:CPU devices (SPMD, a process of its own) equal those of the cpu."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

SCRIPT = """
import copy
import numpy as np
import torch
import torch.nn.functional as F
import torch_xla
import torch_xla.debug.metrics as met
import torch_xla.distributed.spmd as xs
import torch_xla.runtime as xr
from models.norm import set_norm_stats
from models.registry import create_model

xr.use_spmd()
assert xr.global_runtime_device_count() == 4
mesh = xs.Mesh(np.arange(4), (4,), ("data",))
device = torch_xla.device()
image, label = torch.rand(16, 3, 32, 32), torch.arange(16) % 10


def update(model, where):
    x, y = image.to(where), label.to(where)
    if where != "cpu":
        xs.mark_sharding(x, mesh, ("data", None, None, None))
        xs.mark_sharding(y, mesh, ("data",))
    loss = F.cross_entropy(model.train()(x), y)
    loss.backward()
    gradients = [p.grad for p in model.parameters()]
    torch_xla.sync()
    return float(loss.detach().cpu()), [g.cpu() for g in gradients], [b.cpu() for b in model.buffers()]


def parity(on_xla, on_cpu):
    torch.manual_seed(0)
    settings = dict(num_classes=10, image_size=32, mean=[0.5] * 3, std=[0.5] * 3)
    model = create_model("small_cnn", **settings)
    twin = copy.deepcopy(model)
    set_norm_stats(model, **on_cpu)
    set_norm_stats(twin, **on_xla)
    cpu, xla = update(model, "cpu"), update(twin.to(device), device)
    assert abs(cpu[0] - xla[0]) < 1e-5, (on_xla, cpu[0], xla[0])
    # Of the whole tensor: single elements near zero differ with the order in which a processor's kernels sum.
    for ours, theirs in zip(xla[1] + xla[2], cpu[1] + cpu[2], strict=True):
        away = (ours.double() - theirs.double()).norm()
        assert away <= 1e-3 * theirs.double().norm() + 1e-6, (on_xla, ours.shape, float(away))
    return cpu[0]


ghost = dict(norm_stats="ghost:4")
losses = [
    parity(ghost, ghost),
    parity(dict(norm_stats="local", num_devices=4), ghost),  # 4 images per device
    parity(dict(norm_stats="global", num_devices=4, native=False), dict(norm_stats="global")),
]
assert losses[0] != losses[2]
# bf16 autocast: statistics stay float32 (XLA's autocast takes means in bf16, whose steps at 100 are 0.5)
norm = set_norm_stats(torch.nn.BatchNorm2d(3), "ghost:4").to(device)
x = (torch.randn(8, 3, 4, 4) + 100).bfloat16()
with torch.autocast("xla", dtype=torch.bfloat16):
    output = norm(x.to(device))
assert output.dtype == torch.bfloat16
torch.testing.assert_close(norm.running_mean.cpu(), 0.1 * x.float().mean((0, 2, 3)), rtol=1e-5, atol=1e-5)

fallbacks = [name for name in met.counter_names() if name.startswith("aten::")]
assert not fallbacks, fallbacks
print("xla ok")
"""


@pytest.mark.skipif(importlib.util.find_spec("torch_xla") is None, reason="torch_xla is not installed")
def test_norm_stats_mean_the_same_on_four_devices() -> None:
    environment = {**os.environ, "PJRT_DEVICE": "CPU", "CPU_NUM_DEVICES": "4", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "xla ok" in done.stdout

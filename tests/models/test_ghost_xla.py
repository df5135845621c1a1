"""A small ghost ResNet trains and is attacked on XLA as on cpu: no host fallback, one graph for all copies."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

SCRIPT = """
import copy
import torch
import torch.nn.functional as F
import torch_xla
import torch_xla.debug.metrics as met
import timm
from models.convert import set_norm
from models.ghost import attacking
from robust.gradient import input_gradient

device = torch_xla.device()
torch.manual_seed(0)
settings = dict(layers=(1, 1, 1, 1), channels=(8, 16, 16, 16), zero_init_last=False, act_layer="gelu")
plain = timm.create_model("resnet18", num_classes=4, **settings)
plain.layer3 = plain.layer4 = torch.nn.Identity()  # compiling is what this test's time goes to
image, label = torch.rand(8, 3, 32, 32), torch.arange(8) % 4


def train(model, where, steps):
    x, y = image.to(where), label.to(where)
    for step in range(steps):
        model.eval()
        with attacking(model):
            gradient = input_gradient(model, x, lambda logits: F.cross_entropy(logits, y, reduction="sum"))
        model.train().zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        torch_xla.sync()
        if step == 1:
            before = met.metric_data("CompileTime")[0] if where != "cpu" else 0
    found = [loss.detach(), gradient, *(p.grad for p in model.parameters()), *model.buffers()]
    found = [t.cpu() for t in found]
    if where != "cpu":  # the chosen copy is a value, not a graph
        assert met.metric_data("CompileTime")[0] == before, (before, met.metric_data("CompileTime")[0])
    return found


model = set_norm(plain, "ghost", groups=2, copies=3, grouping="modulo")
twin = copy.deepcopy(model).to(device)
for ours, theirs in zip(train(twin, device, 4), train(model, "cpu", 4), strict=True):
    torch.testing.assert_close(ours, theirs, rtol=2e-3, atol=2e-4)

norm = set_norm(torch.nn.BatchNorm2d(3), "ghost", groups=2, copies=2).to(device)
x = (torch.randn(8, 3, 4, 4) + 100).bfloat16()
with torch.autocast("xla", dtype=torch.bfloat16):
    output = norm(x.to(device))
assert output.dtype == torch.bfloat16
mean = norm.running_mean.cpu().view(2, 2, 3)
torch.testing.assert_close(mean[0], 0.1 * x.float().view(2, 4, 3, 4, 4).mean((1, 3, 4)), rtol=1e-5, atol=1e-5)
assert not mean[1].any()
fallbacks = [name for name in met.counter_names() if name.startswith("aten::")]
assert not fallbacks, fallbacks
print("xla ok")
"""


DEVICES = """
import copy
import numpy as np
import torch
import torch_xla
import torch_xla.debug.metrics as met
import torch_xla.distributed.spmd as xs
import torch_xla.runtime as xr
from models.norm import set_norm_stats

xr.use_spmd()
assert xr.global_runtime_device_count() == 4
mesh = xs.Mesh(np.arange(4), (4,), ("data",))
device = torch_xla.device()
x = torch.randn(16, 3, 4, 4) + 3 * torch.randn(16, 3, 1, 1)
for text in ("groups:2x3", "groups:2:modulo"):
    whole = set_norm_stats(torch.nn.BatchNorm2d(3), text, num_devices=4).to(device)
    parts = [set_norm_stats(torch.nn.BatchNorm2d(3), text) for _ in range(4)]
    for step in range(3):
        shared = (x + step).to(device)
        xs.mark_sharding(shared, mesh, ("data", None, None, None))
        output = whole(shared)
        torch_xla.sync()
        wanted = torch.cat([part(rows) for part, rows in zip(parts, (x + step).chunk(4))])
        torch.testing.assert_close(output.detach().cpu(), wanted.detach(), rtol=1e-4, atol=1e-4)
    for name in ("running_mean", "running_var"):
        mean = torch.stack([getattr(part, name) for part in parts]).mean(0)
        torch.testing.assert_close(getattr(whole, name).cpu(), mean, rtol=1e-4, atol=1e-4)
fallbacks = [name for name in met.counter_names() if name.startswith("aten::")]
assert not fallbacks, fallbacks
print("xla ok")
"""


def run(script: str, *, num_devices: int) -> None:
    environment = {
        **os.environ,
        "PJRT_DEVICE": "CPU",
        "CPU_NUM_DEVICES": str(num_devices),
        "PYTHONPATH": str(ROOT),
    }
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "xla ok" in done.stdout


pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("torch_xla") is None, reason="torch_xla is not installed"
)


def test_a_ghost_resnet_trains_on_xla_as_on_cpu() -> None:
    run(SCRIPT, num_devices=1)


def test_four_devices_do_what_four_processes_do() -> None:
    run(DEVICES, num_devices=4)

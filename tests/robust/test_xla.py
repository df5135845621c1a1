"""PGD on XLA:CPU in its own process: the gradient through eval-mode BatchNorm, no fallbacks, few graphs.

And the l2 threat model, restarts and the best iterate: equal to the cpu, also under autocast.
"""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

SCRIPT = """
import torch
import torch.nn.functional as F
import torch_xla
import torch_xla.debug.metrics as met
from models.registry import create_model
from robust.gradient import input_gradient
from robust.pgd import PGD

torch.manual_seed(0)
device = torch_xla.device()
model = create_model("small_cnn", num_classes=10, image_size=32, mean=[0.5] * 3, std=[0.5] * 3).eval()
for norm in model.modules():
    if isinstance(norm, torch.nn.BatchNorm2d):
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2.0)
        torch.nn.init.normal_(norm.weight)
image, label = torch.rand(8, 3, 32, 32), torch.arange(8)
probe = torch.rand(8, 3, 32, 32)


def noise(seed, shape):
    return probe.to(seed.device)


def gradient(where):
    y = label.to(where)
    return input_gradient(model, image.to(where), lambda z: F.cross_entropy(z, y, reduction="sum")).cpu()


def attack(where, steps, cut):
    knobs = torch.tensor([8 / 255, 2 / 255]).to(where)
    pgd = PGD(steps=steps, step_size=knobs[1], noise=noise, clean_prob=knobs[0], cut=cut)
    start_u = torch.linspace(0, 1, 8).to(where)
    seed = torch.arange(8).to(where)
    adversarial = pgd(model, image.to(where), label.to(where), eps=knobs[0], seed=seed, start_u=start_u)
    return adversarial.cpu()


cpu = gradient("cpu"), attack("cpu", 20, lambda: None)
model.to(device)
xla_gradient = gradient(device)
torch_xla.sync()
met.clear_all()
attack(device, 3, torch_xla.sync)
compiled = met.counter_value("UncachedCompile")
assert compiled == 2, compiled  # init and step: one graph each, for any number of steps
met.clear_all()
for _ in range(4):  # repeated, because a graph with a stray live tensor shows up at random
    xla_image = attack(device, 20, torch_xla.sync)
bad = [name for name in met.counter_names() if name.startswith("aten::") or name == "UncachedCompile"]
assert not bad, bad
difference = (xla_gradient - cpu[0]).abs().max().item()
assert cpu[0].abs().max().item() > 1e-3
assert difference < 1e-5, difference
moved = ((xla_image - cpu[1]).abs() > 1e-5).float().mean().item()
assert moved < 0.02, moved  # a pixel whose gradient is zero within rounding may take the other sign
assert (xla_image - image).abs().max().item() <= 8 / 255 + 1e-6
print("xla ok")
"""


L2_SCRIPT = """
import torch
import torch_xla
import torch_xla.debug.metrics as met
from robust.noise import noise
from models.registry import create_model
from robust.pgd import PGD, another_seed
from robust.threat import L2

torch.manual_seed(0)
device = torch_xla.device()
model = create_model("small_cnn", num_classes=10, image_size=32, mean=[0.5] * 3, std=[0.5] * 3).eval()
image, label, seed = torch.rand(8, 3, 32, 32), torch.arange(8), torch.randint(0, 1 << 62, (8,))


def parts(where):
    x, eps = image.to(where), torch.tensor(2.0).to(where)
    start = L2().random_start(x, eps, noise, seed.to(where))
    moved = L2().step(start, start - 0.5, eps / 4)
    blind = L2().step(start, torch.zeros_like(start), eps / 4)
    return [t.cpu() for t in (start, moved, blind, L2().project(3 * moved, x, eps))]


def attack(where, steps, restarts, best_iterate, cut):
    knobs = torch.tensor([2.0, 0.5]).to(where)
    extra = {"restarts": restarts, "best_iterate": best_iterate, "threat": L2()}
    pgd = PGD(steps=steps, step_size=knobs[1], noise=noise, cut=cut, **extra)
    return pgd(model, image.to(where), label.to(where), eps=knobs[0], seed=seed.to(where)).cpu()


assert torch.equal(another_seed(seed.to(device)).cpu(), another_seed(seed))
host = parts("cpu")
with torch.autocast("xla", dtype=torch.bfloat16):
    for ours, theirs in zip(parts(device), host, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-6)
cpu = {kept: attack("cpu", 8, *kept, lambda: None) for kept in ((1, False), (3, True))}
model.to(device)
torch_xla.sync()
met.clear_all()
attack(device, 2, 2, True, torch_xla.sync)
compiled = met.counter_value("UncachedCompile")
assert compiled == 4, compiled  # init, step, judge, restart: for any number of steps and restarts
met.clear_all()
found = attack(device, 8, 3, True, torch_xla.sync)
bad = [name for name in met.counter_names() if name.startswith("aten::") or name == "UncachedCompile"]
assert not bad, bad
torch.testing.assert_close(found, cpu[3, True], rtol=0, atol=2e-4)
torch.testing.assert_close(attack(device, 8, 1, False, torch_xla.sync), cpu[1, False], rtol=0, atol=2e-4)
assert not torch.equal(cpu[1, False], cpu[3, True])
print("xla ok")
"""


@pytest.mark.skipif(importlib.util.find_spec("torch_xla") is None, reason="torch_xla is not installed")
@pytest.mark.parametrize("script", [SCRIPT, L2_SCRIPT], ids=["eval_batchnorm", "l2_restarts_best_iterate"])
def test_attack_on_xla(script: str) -> None:
    environment = {**os.environ, "PJRT_DEVICE": "CPU", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "xla ok" in done.stdout

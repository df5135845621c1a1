"""Blocks that run again on XLA, in a process of its own: equal to those that do not, and behind barriers."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

SCRIPT = """
import sys
import torch
import torch.nn.functional as F
import torch_xla
import torch_xla.debug.metrics as metrics
from bits.xla_gradients import install
from bits.xla_recompute import recompute
from models.recompute import recompute_blocks
from models.registry import create_model
from robust.gradient import input_gradient

# The kernels of a run. With them, under bf16, one gradient of ConvNeXt differs by 6e-5; without them none does.
if sys.argv[1] != "convnext":
    install(reduce_float32=True)
device = torch_xla.device()
image, label = torch.rand(4, 3, 64, 64), torch.arange(4)
MODELS = {
    "resnet": ("resnet18", dict(layers=(1, 1, 1, 1), channels=(8, 8, 16, 16), zero_init_last=False), 4),
    "vit": ("deit_mini_patch16_224", dict(embed_dim=64, num_heads=2, depth=2, proj_drop_rate=0.2), 2),
    "robust_resnet": ("robust_resnet_dw_small", dict(depths=(1, 1, 1, 1), dims=(8, 16, 32, 64)), 4),
    "convnext": ("convnext_tiny", dict(depths=(1, 1, 1, 1), dims=(8, 16, 32, 64)), 7),
}
HLO = torch_xla._XLAC._get_xla_tensors_hlo


def update(name, args, bf16, checkpoint):
    torch.manual_seed(0)
    settings = dict(num_classes=10, image_size=64, mean=[0.5] * 3, std=[0.2] * 3, native_norm=False, drop_path=0.3)
    model = create_model(name, **settings, **args).train()
    count = recompute_blocks(model, checkpoint) if checkpoint else 0
    model, x, y = model.to(device), image.to(device), label.to(device)
    torch_xla.sync()
    torch_xla.manual_seed(3)
    with torch.autocast("xla", dtype=torch.bfloat16, enabled=bf16):
        logits = model(x)
    loss = F.cross_entropy(logits.float(), y)
    loss.backward()
    gradients = [p.grad for p in model.parameters()]
    text = HLO([loss, *gradients])
    torch_xla.sync()
    found = [t.detach().cpu() for t in (loss, *gradients, *model.buffers())]
    for p in model.parameters():
        p.grad = None
    with torch.autocast("xla", dtype=torch.bfloat16, enabled=bf16):
        attack = input_gradient(model.eval(), x, lambda logits: F.cross_entropy(logits.float(), y, reduction="sum"))
    assert all(p.grad is None for p in model.parameters())
    attacked = HLO([attack])
    torch_xla.sync()
    barriers = [each.count("opt-barrier(") for each in (text, attacked)]
    products = [each.count(" dot(") + each.count(" convolution(") for each in (text, attacked)]
    return [*found, attack.cpu()], count, barriers, products


name, args, blocks = MODELS[sys.argv[1]]
for bf16 in (False, True):
    plain, _, barriers, products = update(name, args, bf16, None)
    saving, count, more_barriers, more_products = update(name, args, bf16, recompute)
    assert count == blocks
    assert barriers == [0, 0] and more_barriers == [blocks, blocks], (barriers, more_barriers)
    assert all(more > few for few, more in zip(products, more_products, strict=True)), "nothing ran again"
    for number, (ours, theirs) in enumerate(zip(saving, plain, strict=True)):
        assert torch.equal(ours, theirs), (bf16, number, (ours - theirs).abs().max())
fallbacks = [name for name in metrics.counter_names() if name.startswith("aten::")]
assert not fallbacks, fallbacks
print("xla ok")
"""


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("torch_xla") is None, reason="torch_xla is not installed")
@pytest.mark.parametrize("kind", ["resnet", "vit", "robust_resnet", "convnext"])
def test_recomputing_on_xla(kind: str) -> None:
    quick = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    environment = {**os.environ, "PJRT_DEVICE": "CPU", "XLA_FLAGS": quick, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, kind],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=1500,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "xla ok" in done.stdout

"""The device's augmentation on XLA:CPU in its own process, on one device and divided over two: one graph whatever the
draws, nothing on the host, no sample sent to another device, and the cpu's pixels.
"""

import importlib.util
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

SCRIPT = """
import sys
import numpy as np
import torch
import torch_xla
import torch_xla.debug.metrics as met
import torch_xla.distributed.spmd as spmd
import torch_xla.runtime as runtime
from robust.noise import noise
from data.augment import device_augment, with_augment
from data.batch import NUM_DRAWS
from data.erase import Erase
from data.jitter import Jitter
from data.order import sample_seed
from data.transform import AugmentSettings

devices, text = int(sys.argv[1]), sys.argv[2]
if devices > 1:
    runtime.use_spmd()
mesh = spmd.Mesh(np.arange(devices), (devices,), ("data",)) if devices > 1 else None
where = torch_xla.device()


def settings(magnitude):
    return AugmentSettings(
        randaug=text, magnitude=magnitude, randaug_on="device", jitter=Jitter(brightness=0.4, hue=0.1),
        jitter_on="device", erase=Erase(prob=0.5, mode="pixel"),
    )


augment = device_augment(settings(0.0), erase_after_mix=False, mean=(0.5,) * 3, std=(0.2,) * 3, noise=noise)
generator = torch.Generator().manual_seed(0)
coarse = torch.rand(8, 3, 5, 5, generator=generator)
smooth = torch.nn.functional.interpolate(coarse, size=(24, 24), mode="bilinear")
image = (smooth * 255).round().to(torch.uint8)
differences = []
for step, magnitude in enumerate((0.0, 1.0, 5.0, 10.0)):
    seeds = sample_seed(np.arange(8 * step, 8 * step + 8), seed=0, epoch=0)
    draws = np.zeros((8, NUM_DRAWS), np.float32)
    draw = torch.from_numpy(with_augment(draws, seeds, settings(magnitude), image_size=24))
    seed = torch.from_numpy(seeds)
    fed = [tensor.to(where) for tensor in (image, draw, seed)]
    for tensor in fed if mesh else ():
        spmd.mark_sharding(tensor, mesh, ("data",) + (None,) * (tensor.dim() - 1))
    found = augment.before_mix(*fed)
    if mesh:
        spmd.mark_sharding(found, mesh, ("data", None, None, None))
    torch_xla.sync(wait=True)
    if step == 0:
        compiled = met.metric_data("CompileTime")[0]
        assert compiled == 1, compiled
    else:
        assert met.metric_data("CompileTime")[0] == compiled, (step, compiled)
    found = found.cpu()
    compiled = met.metric_data("CompileTime")[0]  # reading a divided tensor compiles a small graph
    differences.append((found - augment.before_mix(image, draw, seed)).abs() * 255)
difference = torch.stack(differences)
names = [name for name in met.counter_names() if name.startswith("aten::")]
assert not names, names
print("different", (difference > 0.01).float().mean().item(), "worst mean", difference.mean((2, 3, 4)).max().item())
"""


@pytest.mark.skipif(importlib.util.find_spec("torch_xla") is None, reason="torch_xla is not installed")
@pytest.mark.parametrize(
    ("devices", "text"), [(1, "rand-m9-mstd0.5-inc1"), (2, "rand-m9-mstd0.5-inc1"), (1, "rand-m9-t3aw")]
)
def test_one_graph_without_fallbacks_and_the_cpus_pixels(
    devices: int, text: str, process_environment: Callable[..., dict[str, str]], tmp_path: Path
) -> None:
    flags = f"--xla_backend_optimization_level=0 --xla_dump_to={tmp_path} --xla_dump_hlo_as_text"
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(devices), text],
        env=process_environment(CPU_NUM_DEVICES=str(devices), XLA_FLAGS=flags, PYTHONPATH=str(ROOT)),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    share, worst = map(float, re.findall(r"[\d.e-]+$|(?<=different )[\d.e-]+", done.stdout.strip()))
    assert share < 1e-3, "a level may round otherwise, and a later layer may widen that"
    assert worst < 0.1
    graphs = list(tmp_path.glob("*SyncTensorsGraph*after_optimizations.txt"))
    assert len(graphs) == 1
    assert not re.findall(r"all-gather|all-to-all|collective-permute|all-reduce", graphs[0].read_text())

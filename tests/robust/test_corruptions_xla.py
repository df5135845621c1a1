"""Every kind on XLA:CPU in a process of its own: the cpu's pixels, nothing done on the host, one compile a severity."""

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
import torch_xla
import torch_xla.debug.metrics as met
from robust.corruptions import jpeg
from robust.corruptions.apply import corrupt

jpeg.find_spec = lambda name: None  # the tensor model of JPEG on both
y, x = torch.linspace(0, 1, 40)[:, None].expand(40, 48), torch.linspace(0, 1, 48).expand(40, 48)
torch.manual_seed(0)
image = (torch.stack([y, x, 0.5 + 0.5 * torch.sin(6 * y)]) + 0.05 * torch.rand(2, 3, 40, 48)).clamp(0, 1)
seed = torch.tensor([11, -(2**62) - 5])
there = image.to(torch_xla.device()), seed.to(torch_xla.device())
torch_xla.sync()
for kind in sys.argv[2].split(","):
    severities = [int(word) for word in sys.argv[1].split(",")]
    met.clear_all()
    for batch in there, (there[0].flip(0), there[1] + 1):
        torch_xla.sync()  # of the change to the batch
        known = met.counter_value("UncachedCompile") or 0
        for severity in severities:
            found = corrupt(batch[0], kind, severity, seed=batch[1])
            torch_xla.sync()
        compiled = (met.counter_value("UncachedCompile") or 0) - known
        most = len(severities) if batch is there else 0  # other pixels and seeds: the same graphs
        assert compiled <= most, (kind, compiled)
    on_host = [name for name in met.counter_names() if name.startswith("aten::")]
    assert not on_host, (kind, on_host)
    for severity in severities:
        found = corrupt(there[0], kind, severity, seed=there[1]).cpu()
        levels = ((found - corrupt(image, kind, severity, seed=seed)) * 255).abs()
        # A value that is whole but for rounding may lose a level; a threshold may fall to the other side.
        assert (levels > 0.5).float().mean() < 0.002, (kind, severity, levels.max())
print("xla ok")
"""


def run(severities: str, kinds: str) -> None:
    environment = {
        **os.environ,
        "PJRT_DEVICE": "CPU",
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "XLA_FLAGS": "--xla_backend_optimization_level=0",
    }
    command = [sys.executable, "-c", SCRIPT, severities, kinds]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "xla ok" in done.stdout


needs_xla = pytest.mark.skipif(
    importlib.util.find_spec("torch_xla") is None, reason="torch_xla is not installed"
)


@needs_xla
def test_some_kinds_on_xla() -> None:
    run("3", "gaussian_noise,pixelate")


@needs_xla
@pytest.mark.slow
@pytest.mark.parametrize("group", ["common", "extra", "c-bar"])
def test_all_kinds_on_xla(group: str) -> None:
    from robust.corruptions.names import list_corruptions

    run("1,2,3,4,5", ",".join(list_corruptions(group)))

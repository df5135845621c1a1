"""`run.precision`: what is computed in it, and what stays float32. By the operations themselves, not by settings."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from bits.ema import Ema
from bits.environment import open_environment
from engine.guard import Guard
from engine.optim import AdamW
from tests.engine.one_step import ATTACK, cnn, knobs, make_batch, make_step

ROOT = Path(__file__).parents[2]
WORK = ("convolution", "convolution_backward", "mm", "addmm", "bmm")


class SeeTypes(TorchDispatchMode):
    """The types of what matrix work is given, by operation."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[str, set[torch.dtype]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = func.overloadpacket.__name__
        if name in WORK:
            found = {a.dtype for a in args if isinstance(a, torch.Tensor) and a.dim() > 1}
            self.seen.setdefault(name, set()).update(found)
        return func(*args, **(kwargs or {}))


def one_update(precision: Any, backend: Any = "cpu") -> tuple[Any, dict[str, set[torch.dtype]]]:
    env = open_environment(backend, precision=precision)
    model = env.place(cnn())
    step = make_step(env, model, attack=ATTACK.model_copy(update={"steps": 2}))
    step.state.optimizer = AdamW(model.parameters(), betas=(0.9, 0.999), eps=1e-8, weight_decay=0.1)
    step.state.ema = Ema(model, 0.9)
    step.guard = Guard(model, limit=3, device=env.device)
    batch = type(make_batch())(**env.feed(make_batch()._asdict()))
    fed = knobs()
    fed = type(fed)(**env.feed({"floats": fed.floats, "ints": fed.ints}, split=False))
    with SeeTypes() as types:
        assert step(batch, fed)
    return step, types.seen


def assert_masters_are_float32(step: Any) -> None:
    assert {t.dtype for t in step.state.model.parameters()} == {torch.float32}
    assert {t.dtype for t in step.state.ema.module.parameters()} == {torch.float32}
    assert {t.dtype for entry in step.state.optimizer.state.values() for t in entry.values()} == {
        torch.float32
    }
    floats = [b for b in step.state.model.buffers() if b.is_floating_point()]
    assert {b.dtype for b in floats} == {torch.float32}
    assert step.meters.totals.dtype == torch.float32
    assert step.meters.totals.isfinite().all()


@pytest.mark.parametrize(("precision", "wanted"), [("float32", torch.float32), ("bf16", torch.bfloat16)])
def test_matrix_work_of_a_step_is_in_the_precision_and_nothing_else(
    precision: str, wanted: torch.dtype
) -> None:
    step, seen = one_update(precision)
    assert {"convolution", "convolution_backward", "addmm"} <= seen.keys()
    assert {dtype for found in seen.values() for dtype in found} == {wanted}, seen
    assert_masters_are_float32(step)


@pytest.mark.gpu
@pytest.mark.parametrize(("precision", "wanted"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_on_cuda_too(precision: str, wanted: torch.dtype) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    step, seen = one_update(precision, "cuda")
    # In fp16 the attack runs in float32, see training_attack.py.
    allowed = {wanted} if precision == "bf16" else {wanted, torch.float32}
    assert wanted in seen["convolution_backward"]
    assert {dtype for found in seen.values() for dtype in found} <= allowed, seen
    assert_masters_are_float32(step)
    if precision == "fp16":
        assert "scale" in step.env.state_dict()


HLO = """
import re, sys
sys.path.insert(0, {root!r})
import torch, torch_xla
from bits.environment import open_environment
from engine.free import make_step
from tests.engine.one_step import ATTACK, cnn, knobs, make_batch, make_step

# Gradients of weights are float32 where they are to be summed in float32, which is another test's matter.
env = open_environment("xla", precision={precision!r}, reduce_dtype={reduce!r})
model = env.place(cnn())
step = make_step(env, model, attack=ATTACK)
batch, values = make_batch(), knobs()
batch = type(batch)(**env.feed(batch._asdict()))
values = type(values)(**env.feed({{"floats": values.floats, "ints": values.ints}}, split=False))
env.cut()
type(env).cut = lambda self: None  # the whole step in one graph, not run
step(batch, values)
text = torch_xla._XLAC._get_xla_tensors_hlo(list(model.parameters()) + [step.meters.totals])
for kind in ("convolution", "dot"):
    print(kind, *sorted(set(re.findall(rf"= (\\w+)\\[[^ ]* {{kind}}\\(", text))))
print("parameters", *sorted({{str(p.dtype) for p in model.parameters()}}), step.meters.totals.dtype)
"""


@pytest.mark.parametrize(("precision", "wanted"), [("float32", "f32"), ("bf16", "bf16")])
def test_on_xla_the_graph_itself_says_so(precision: str, wanted: str) -> None:
    code = HLO.format(root=str(ROOT), precision=precision, reduce=precision)
    environment = {"PJRT_DEVICE": "CPU", "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=300, env=environment
    )
    assert done.returncode == 0, done.stderr[-2000:]
    lines = dict(line.split(" ", 1) for line in done.stdout.splitlines())
    assert lines["convolution"] == wanted, done.stdout
    assert lines["dot"] == wanted, done.stdout
    assert lines["parameters"] == "torch.float32 torch.float32"

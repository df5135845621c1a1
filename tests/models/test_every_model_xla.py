"""Every architecture, reduced, on XLA's cpu device as on torch's; and none may send an operator back to the host."""

import importlib.util
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.models.every import EVERY, label

WORKER = Path(__file__).with_name("xla_worker.py")
# A compile takes seconds and these hold every kind of layer; the other models wait for the slow tests, where these
# come again, in both precisions.
QUICK = {
    "f32": ("small_cnn", "deit_mini_distilled_patch16_224", "poolformer_s12"),
    "bf16": ("small_vit", "convnext_tiny", "swin_tiny_patch4_window7_224"),
}
FASTER = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"  # to compile
TOY = -1

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("torch_xla") is None, reason="torch_xla is not installed"
)
Report = dict[str, Any]


def examine(environment: dict[str, str], precision: str, numbers: list[int]) -> dict[int, Report]:
    command = [sys.executable, "-W", "ignore", str(WORKER), precision, ",".join(map(str, numbers))]
    done = subprocess.run(
        command,
        env=environment | {"XLA_FLAGS": FASTER},
        capture_output=True,
        text=True,
        timeout=3000,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    reports = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"number"')]
    return {report.pop("number"): report for report in reports}


def check(report: Report, *, dead: str, bf16: bool) -> None:
    """What holds for a model that may be used on XLA; AssertionError where the report says otherwise."""
    assert "error" not in report, report["error"]
    assert not report["fallbacks"], f"operators that XLA leaves to the host: {report['fallbacks']}"
    near, far = (0.1, 0.5) if bf16 else (1e-3, 1e-2)
    assert report["train_logits"] < near
    assert report["eval_logits"] < near
    assert report["train_gradient"] < far
    assert report["eval_gradient"] < far
    alive = [name for name in report["still"] if not re.search(rf"\.({dead})$", name)]
    assert not alive, f"an optimizer step left {alive} as they were"


@pytest.fixture(scope="module")
def quick(process_environment: Callable[..., dict[str, str]]) -> dict[str, dict[int, Report]]:
    """By precision and number; the toy with the first."""
    numbers = {key: [i for i, c in enumerate(EVERY) if c.name in names] for key, names in QUICK.items()}
    numbers["f32"].insert(0, TOY)
    return {key: examine(process_environment(), key, numbers[key]) for key in numbers}


@pytest.mark.parametrize(("precision", "name"), [(key, name) for key in QUICK for name in QUICK[key]])
def test_as_on_the_cpu(precision: str, name: str, quick: dict[str, dict[int, Report]]) -> None:
    """Train step with the optimizer, weights through a file, eval at an odd size beside an image of nan, attack."""
    number = next(i for i, case in enumerate(EVERY) if case.name == name)
    check(quick[precision][number], dead=EVERY[number].dead, bf16=precision == "bf16")


def test_the_check_finds_a_fallback(quick: dict[str, dict[int, Report]]) -> None:
    """A model with grid_sample computes the right thing on XLA, by way of the host."""
    report = quick["f32"][TOY]
    assert "aten::grid_sampler_2d" in report["fallbacks"]
    with pytest.raises(AssertionError, match=r"leaves to the host: .*grid_sampler_2d"):
        check(report, dead="-", bf16=False)
    check({**report, "fallbacks": []}, dead="-", bf16=False)


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("error", "Traceback", "Traceback"),
        ("still", ["backbone.head.weight"], "left .*head.weight"),
        ("train_logits", 0.2, "0.2"),
        ("eval_gradient", float("nan"), "nan"),
    ],
)
def test_the_check_finds_other_faults(
    field: str, value: object, words: str, quick: dict[str, dict[int, Report]]
) -> None:
    report = {**quick["f32"][TOY], "fallbacks": []}
    with pytest.raises(AssertionError, match=words):
        check({**report, field: value}, dead="-", bf16=False)


@pytest.fixture(scope="module", params=["f32", "bf16"])
def full(
    request: pytest.FixtureRequest, process_environment: Callable[..., dict[str, str]]
) -> tuple[bool, dict[int, Report]]:
    """Whether it is bf16, and the reports on all."""
    return request.param == "bf16", examine(process_environment(), request.param, list(range(len(EVERY))))


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("number", range(len(EVERY)), ids=[label(case) for case in EVERY])
def test_every_model_as_on_the_cpu(number: int, full: tuple[bool, dict[int, Report]]) -> None:
    bf16, reports = full
    check(reports[number], dead=EVERY[number].dead, bf16=bf16)

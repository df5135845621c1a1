"""`doctor RECIPE --backends ...`: a fault of each class, planted in one side, is found with its cause and its place."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bits.state import TrainState
from data.batch import Batch
from engine.cli import Launch, main
from engine.parity.doctor import Parity
from engine.parity.session import Session
from engine.parity.side import Side, Tamper

RECIPE = """
data: {{train: {shards}, image_size: 32, num_workers: 0, erase_prob: 1.0, erase_mode: pixel}}
model: {{name: small_cnn, args: {{width: 8, act_layer: gelu}}}}
optim: {{lr: 1e-3, weight_decay: 0.05, ema: 0.9}}
objective:
  kind: adversarial
  mixup: 0.8
  attack: {{norm: linf, eps: 8/255, step_size: 8/255, steps: 1}}
run: {{epochs: 2, batch_size: 8}}
"""
CLEAN = ("objective.kind=clean", "objective.attack=null")
Clinic = Callable[..., "Chart"]


class Chart:
    """What a comparison found."""

    def __init__(self, parity: Parity) -> None:
        self.findings = list(parity.examine())
        self.table = parity.table

    @property
    def cause(self) -> str | None:
        diagnosis = self.table[-1]["diagnosis"]
        return None if diagnosis is None else str(diagnosis["cause"])

    @property
    def evidence(self) -> str:
        return str(self.table[-1]["diagnosis"]["evidence"])

    def holds(self, *kinds: str) -> bool:
        rows = [row for entry in self.table for row in entry["rows"] if row["kind"] in kinds]
        assert rows, f"nothing of {kinds} was looked at"
        return all(row["holds"] for row in rows)


@pytest.fixture
def recipe(few_digits: Path, tmp_path: Path) -> Path:
    path = tmp_path / "little.yaml"
    path.write_text(RECIPE.format(shards=few_digits))
    return path


@pytest.fixture
def clinic(recipe: Path) -> Clinic:
    """clinic(*changes of the other side, both=changes of both, tamper=..., steps=1): cpu against cpu, here."""

    def examine(
        *changes: str, both: tuple[str, ...] = (), tamper: Tamper | None = None, steps: int = 1
    ) -> Chart:
        def open_side(side: Side, *words: Any, **more: Any) -> Session:
            session = Session(side, *words, **more)
            if isinstance(side.tamper, Inside):
                side.tamper.enter(session)
            return session

        other = Side(backend="cpu", overrides=changes, tamper=tamper or Tamper())
        sides = [Side(backend="cpu"), other]
        parity = Parity(recipe=recipe, overrides=both, sides=sides, num_steps=steps, open_side=open_side)
        return Chart(parity)

    return examine


class Inside(Tamper):
    """A fault that needs the other side's session."""

    def enter(self, session: Session) -> None:
        self.session = session


# ---- the same on both sides


@pytest.mark.parametrize(
    "changes",
    [
        (),
        ("objective.kind=trades", "optim.accumulate=2", "optim.clip_norm=1.0"),
        ("objective.kind=free", "objective.replays=2", "objective.mixup=0.0"),
        ("objective.kind=advprop", "model.split_norm=true", "data.erase_after_mix=true"),
        (*CLEAN, "run.precision=bf16", "model.name=small_vit", "model.args={patch_size: 8}"),
    ],
    ids=["pgd", "trades, two micro-batches", "free", "advprop", "clean vit in bf16"],
)
def test_a_backend_agrees_with_itself_to_the_bit(clinic: Clinic, changes: tuple[str, ...]) -> None:
    chart = clinic("run.report_every=7", both=changes, steps=2)
    assert chart.cause is None
    assert [row for entry in chart.table for row in entry["rows"] if row["relative"]] == []
    kinds = {row["kind"] for row in chart.table[0]["rows"]}
    assert {"batch", "image", "target", "activation", "loss", "gradient", "update", "average"} <= kinds
    assert ("attacked" in kinds) == ("clean" not in str(changes))
    assert {f.state for f in chart.findings} == {"", "ok"}


# ---- planted faults


class OtherGenerator(Tamper):
    def seed(self, value: int) -> int:
        return value + 1


class GradientsInBf16(Tamper):
    def gradients_(self, model: nn.Module) -> None:
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter.grad = parameter.grad.bfloat16().float()


class AverageTimesTooMuch(Tamper):
    """decay * shadow + (1 - decay) * model in float32 has this factor."""

    def updated_(self, state: TrainState) -> None:
        assert state.ema is not None
        for parameter in state.ema.module.parameters():
            parameter.mul_(1.0003)


class OtherMean(Tamper):
    def updated_(self, state: TrainState) -> None:
        next(b for name, b in state.model.named_buffers() if name.endswith("running_mean")).add_(1e-3)


class BiasedVariance(Inside):
    """As torch_xla's own BatchNorm keeps it."""

    def seed(self, value: int) -> int:
        self.before = {name: b.clone() for name, b in self._variances()}
        return value

    def updated_(self, state: TrainState) -> None:
        count = self.session.layout.global_batch * 16 * 16  # of the widest layer, the least that can be off
        for name, variance in self._variances():
            old = self.before[name]
            variance.copy_(old + (variance - old) - 0.1 * ((variance - 0.9 * old) / 0.1) / count)

    def _variances(self) -> list[tuple[str, Tensor]]:
        named = self.session.state.model.named_buffers()
        return [(name, b) for name, b in named if name.endswith("running_var")]


class ProductsInBf16(Inside):
    """What a TPU's default precision does to float32."""

    def enter(self, session: Session) -> None:
        layer = session.state.model.get_submodule("backbone.stages.1.down.conv")
        layer.register_forward_hook(lambda module, args, out: out.bfloat16().float(), prepend=True)


class NotFinite(Tamper):
    def gradients_(self, model: nn.Module) -> None:
        grad = next(p.grad for p in reversed(list(model.parameters())) if p.grad is not None)
        grad[0] = torch.nan


class OtherImage(Tamper):
    def batch(self, batch: Batch) -> Batch:
        return batch._replace(image=batch.image ^ 1)


DROPS = ("model.drop_path=0.5",)
PLANTED = [
    # cause, changes of the other side, changes of both, tamper, where
    ("dropout", (), DROPS, OtherGenerator(), "backbone.stages.1.drop_path"),
    ("order of mixing and erasing", ("data.erase_after_mix=true",), (), None, "image"),
    ("autocast", ("run.precision=bf16",), (), None, "logits"),
    ("autocast", ("run.precision=bf16",), CLEAN, None, "conv"),
    ("BatchNorm grouping", ("model.norm_stats=ghost:4",), (), None, "backbone.stem.norm"),
    ("reduction dtype", (), (), GradientsInBf16(), "backbone.head"),
    ("average", (), (), AverageTimesTooMuch(), "backbone.stem.conv.weight"),
    ("running statistics", (), (), OtherMean(), "backbone.stem.norm.running_mean"),
    ("biased variance", (), (), BiasedVariance(), "running_var"),
    ("optimizer", ("optim.eps=1e-5",), (), None, "weight"),
    ("weight decay", ("optim.weight_decay=0.1",), (), None, "weight"),
    ("learning rate", ("optim.lr=2e-3",), (), None, "weight"),
    ("clipping", ("optim.clip_norm=0.01",), (), None, "weight"),
    ("matmul precision", (), (), ProductsInBf16(), "backbone.stages.1.down.conv"),
    ("mixing", ("objective.smoothing=0.1",), (), None, "target"),
    ("loader", (), (), OtherImage(), "batch (image)"),
    ("loader", ("objective.mixup=0.2",), (), None, "batch (draw)"),
    ("attack start", ("objective.attack.random_start=false",), (), None, "attack start"),
    ("attack steps", ("objective.attack.steps=2",), (), None, "attacked"),
    ("attack steps", ("objective.attack.step_size=2/255",), (), None, "attacked"),
    ("backward pass", (), (), NotFinite(), "backbone.head"),
]


@pytest.mark.parametrize(
    ("cause", "changes", "both", "tamper", "where"), PLANTED, ids=[f"{p[0]} {p[1]}{p[4]}" for p in PLANTED]
)
def test_a_planted_fault_is_found(
    clinic: Clinic,
    cause: str,
    changes: tuple[str, ...],
    both: tuple[str, ...],
    tamper: Tamper | None,
    where: str,
) -> None:
    chart = clinic(*changes, both=both, tamper=tamper)
    assert chart.cause == cause, chart.evidence
    named = {f.name: f for f in chart.findings}
    assert named["step 1"].state == named["first divergence"].state == "failed"
    assert named["first divergence"].text.startswith("step 1, ")
    assert where in named["first divergence"].text
    assert named["likely cause"].text.startswith(f"{cause}: ")
    assert named["remedy"].text


def test_a_fault_is_seen_where_it_is_made_not_where_it_grew(clinic: Clinic) -> None:
    """Behind the first divergence the sides get the reference's values, so what else is wrong would show."""
    chart = clinic(tamper=GradientsInBf16())
    assert chart.holds(
        "image", "attacked", "activation", "loss", "statistics", "clipped", "update", "average"
    )
    chart = clinic("objective.attack.steps=2")
    assert chart.holds("activation", "loss", "gradient", "update")


def test_the_first_divergence_is_told_once(clinic: Clinic) -> None:
    chart = clinic("optim.eps=1e-5", steps=3)
    assert [f.name for f in chart.findings].count("first divergence") == 1
    assert [f.state for f in chart.findings if f.name.startswith("step ")] == ["failed"] * 3


def test_steps_are_spread_over_the_run(clinic: Clinic) -> None:
    chart = clinic("run.report_every=7", steps=2)  # of two epochs of eight updates
    assert [(entry["update"], entry["epoch"]) for entry in chart.table] == [(5, 0), (13, 1)]


def test_images_are_generated_where_the_recipe_has_none(clinic: Clinic) -> None:
    chart = clinic("run.report_every=7", both=("data.train=nowhere", "data.num_classes=5"))
    assert chart.cause is None
    text = next(f.text for f in chart.findings if f.name == "images")
    assert text.startswith("generated (")
    assert "nowhere" in text


def test_a_large_batch_is_made_small_and_that_is_said(clinic: Clinic, recipe: Path) -> None:
    recipe.write_text(recipe.read_text().replace("batch_size: 8", "batch_size: 64"))
    chart = clinic("run.report_every=7")
    text = next(f.text for f in chart.findings if f.name == "images")
    assert "batches of 32, not 64 (run.batch_size=N asks for N)" in text
    chart = clinic("run.report_every=7", both=("run.batch_size=64",))
    assert "batches of 64" in next(f.text for f in chart.findings if f.name == "images")


# ---- the command


@pytest.fixture
def doctor(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> Callable[..., tuple[int, str, str, Any]]:
    def run(*words: str | Path) -> tuple[int, str, str, Any]:
        path = tmp_path / "doctor.json"
        path.unlink(missing_ok=True)
        words = (*map(str, words), "--json", str(path))
        code = main(["doctor", *words], Launch(backend="cpu"), program="launch_gpu.py")
        out, err = capfd.readouterr()
        return code, out, err, json.loads(path.read_text()) if path.exists() else None

    return run


Doctor = Callable[..., tuple[int, str, str, Any]]


def test_the_command_compares_in_processes_of_their_own(doctor: Doctor, recipe: Path) -> None:
    code, out, err, result = doctor(
        recipe, "--backends", "cpu,cpu:run.report_every=7,cpu:optim.eps=1e-5", "--steps", "1"
    )
    assert (code, err) == (2, ""), "a divergence counts as what would stop a run"
    assert "  ok    step 1 " in out
    assert "  FAIL  first divergence     step 1, update of " in out
    assert "  note  likely cause         optimizer: " in out
    assert [entry["side"] for entry in result["parity"]] == ["cpu:run.report_every=7", "cpu:optim.eps=1e-5"]
    assert all(row["holds"] for row in result["parity"][0]["rows"])
    assert "NaN" not in json.dumps(result)
    assert "Infinity" not in json.dumps(result)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("--backends cpu", "one backend has nothing to be compared with; write --backends cpu,xla"),
        ("--backends cpu,tpx", "unknown backend 'tpx'; known are cpu, cuda, xla, tpu"),
        ("--backends cpu,cpu", "names one side twice"),
        ("--backends cpu:2,xla", "several devices in one process need xla"),
        ("--backends cpu,xla:four", "'four' is neither a number of devices nor key=value"),
        ("--backends cpu,xla --steps 0", "--steps 0: compare 1 step or more"),
        ("--backends cpu,xla --steps -1", "--steps -1: compare 1 step or more"),
        ("--steps 2", "--steps 2: these are of a comparison; add --backends cpu,xla"),
        ("--backends cpu,cpu:optim.lrr=1", "optim.lrr is not a field; did you mean optim.lr?"),
        ("--backends cpu,cpu:run.precision=fp16", "run.precision fp16 needs CUDA"),
        ('--backends cpu,cpu:model.args={"width":9}', "model or optimizer is not the reference's"),
    ],
)
def test_bad_input_is_one_line(doctor: Doctor, recipe: Path, words: str, says: str) -> None:
    code, _, err, _ = doctor(recipe, *words.split())
    assert (code, err.count("\n")) == (2, 1)
    assert says in err


def test_cuda_that_is_not_there(doctor: Doctor, recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert doctor(recipe, "--backends", "cpu,cuda")[2].endswith("no CUDA device; leave cuda out\n")


def test_a_native_tpu_that_is_not_there(
    doctor: Doctor, recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bits.tpu.missing", lambda: "no TPU answers")
    code, _, err, _ = doctor(recipe, "--backends", "cpu,tpu")
    assert (code, err) == (2, "error: --backends: backend tpu: no TPU answers; leave tpu out\n")


def test_a_comparison_needs_a_recipe(doctor: Doctor) -> None:
    code, _, err, _ = doctor("--backends", "cpu,xla")
    assert (code, err.count("\n")) == (2, 1)
    assert "write `doctor RECIPE.yaml --backends cpu,xla`" in err


def test_a_missing_teacher_is_one_line(doctor: Doctor, recipe: Path) -> None:
    teacher = "objective.distill={teacher: nowhere}"
    code, _, err, _ = doctor(recipe, teacher, "--backends", "cpu,cpu:run.report_every=7")
    assert (code, err.count("\n")) == (2, 1)
    assert "objective.distill.teacher nowhere does not exist" in err


# ---- XLA


def xla_doctor(launch: Any, recipe: Path, tmp_path: Path, *words: str) -> tuple[int, Any, str]:
    path = tmp_path / "xla.json"
    done = launch("gpu", "--cpu", "doctor", recipe, *words, "--json", path, timeout=900)
    assert done.stderr == ""
    return done.returncode, json.loads(path.read_text()), done.stdout


def test_cpu_and_xla_train_alike(
    launch: Any, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The same graphs, compiled in less time.
    monkeypatch.setenv("XLA_FLAGS", "--xla_backend_optimization_level=0")
    words = ("model.args={width: 4, act_layer: gelu}", "--backends", "cpu,xla", "--steps", "2")
    code, result, out = xla_doctor(launch, recipe, tmp_path, *words)
    assert code == 0, out
    assert out.endswith("all is well\n")
    rows = [row for entry in result["parity"] for row in entry["rows"]]
    assert {row["holds"] for row in rows} == {True}
    assert any(row["relative"] for row in rows), "two backends round differently; were there two?"


@pytest.mark.slow
def test_dropout_and_devices_part_cpu_and_xla(
    launch: Any, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XLA_FLAGS", "--xla_backend_optimization_level=0")
    words = ("--backends", "cpu,xla,xla:2", "--steps", "1")
    code, result, out = xla_doctor(launch, recipe, tmp_path, "model.norm_stats=local", *words)
    causes = [entry["diagnosis"] and entry["diagnosis"]["cause"] for entry in result["parity"]]
    assert (code, causes) == (2, [None, "BatchNorm grouping"]), out
    code, result, out = xla_doctor(
        launch, recipe, tmp_path, "model.drop_path=0.5", *words[:1], "cpu,xla", *words[2:]
    )
    assert (code, result["parity"][0]["diagnosis"]["cause"]) == (2, "dropout"), out

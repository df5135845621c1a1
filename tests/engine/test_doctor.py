"""`doctor`: facts, a self-test that finds planted faults and keeps its time, and recipes that cannot run here."""

import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

import engine.installed
import engine.machine
import engine.outlook
import engine.recipe_check
import engine.selftest
from engine.cli import Launch, main
from engine.finding import Finding
from engine.installed import look_at_packages
from engine.machine import look_at_storage, look_for_traps, threads_advice, usable_cores
from engine.outlook import backend_of
from engine.recipe import load_recipe
from engine.selftest import STEPS, self_test

ROOT = Path(__file__).parents[2]
CPU = Launch(backend="cpu")
RECIPE = """
data: {{train: {shards}, val: {shards}, image_size: 32, num_workers: 0, eval_resize: squash}}
model: {{name: small_cnn, norm_stats: "ghost:4"}}
optim: {{lr: 1e-3, ema: 0.9}}
objective: {{kind: adversarial, attack: {{norm: linf, eps: 8/255, step_size: 8/255, steps: 2}}}}
evals: [{{suite: clean}}, {{attack: pgd, norm: linf, eps: 4/255, step_size: 1/255, steps: 2}}]
run: {{epochs: 2, batch_size: 8, output: {shards}/run, keep_checkpoints: 3}}
"""


class Report(NamedTuple):
    code: int
    out: str
    findings: list[Finding]

    def states(self, section: str) -> dict[str, str]:
        return {f.name: f.state for f in self.findings if f.section == section}

    def text(self, section: str, name: str) -> str:
        return next(f.text for f in self.findings if (f.section, f.name) == (section, name))


Doctor = Callable[..., Report]


@pytest.fixture
def doctor(capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Doctor:
    monkeypatch.setattr(engine.selftest, "LIMIT_S", 300.0)  # a busy machine is no fault

    def run(*words: str | Path, launch: Launch = CPU) -> Report:
        path = tmp_path / "doctor.json"
        code = main(["doctor", *map(str, words), "--json", str(path)], launch, program="launch_gpu.py")
        out, err = capfd.readouterr()
        assert err == ""
        return Report(code, out, [Finding(**f) for f in json.loads(path.read_text())["findings"]])

    return run


@pytest.fixture
def recipe(few_digits: Path, tmp_path: Path) -> Path:
    path = tmp_path / "little.yaml"
    path.write_text(RECIPE.format(shards=few_digits))
    return path


# ---- facts


def test_facts(doctor: Doctor) -> None:
    report = doctor("--no-self-test")
    assert report.code == 0
    sections = list(dict.fromkeys(f.section for f in report.findings))
    assert sections == ["versions", "machine", "storage", "traps", "devices", "a run here"]
    assert report.text("versions", "torch").startswith(torch.__version__.split("+")[0])
    assert report.text("a run here", "backend") == "cpu (--cpu was given)"
    assert report.text("a run here", "threads").startswith(f"{torch.get_num_threads()} in torch")
    assert "`python launch_xla.py doctor` tests XLA" in report.text("a run here", "other launcher")
    assert re.fullmatch(r"[\d.]+ GiB", report.text("machine", "memory"))
    for finding in report.findings:
        assert f"  {finding.name:<20} {finding.text}\n" in report.out, "what --json has is what was printed"
    assert "FAIL" not in report.out


def test_its_first_lines_need_no_torch() -> None:
    """A broken installation is what somebody may want explained."""
    code = "import engine.verb_doctor, sys; assert 'torch' not in sys.modules and 'timm' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def without(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    real = engine.installed.metadata.version

    def version(name: str) -> str:
        if name in names:
            raise engine.installed.metadata.PackageNotFoundError(name)
        return str(real(name))

    monkeypatch.setattr(engine.installed.metadata, "version", version)


@pytest.mark.parametrize("name", ["torch", "simplejpeg"])
def test_a_missing_package_stops_a_run(doctor: Doctor, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    without(monkeypatch, name)
    report = doctor()
    assert report.code == 2
    assert report.states("versions")[name] == "failed"
    assert "run `pip install -e .`" in report.text("versions", name)
    assert report.states("devices") == {"all": "advice"}
    assert f"{name} missing" in report.text("devices", "all")
    assert f"FAIL  {name} " in report.out


def test_a_missing_optional_package_is_named_with_its_use(monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, "torch_xla")
    found = {f.name: f for f in look_at_packages()}
    assert found["torch_xla"].state == ""
    assert re.match(r"not installed \(optional\); it brings TPUs", found["torch_xla"].text)


def test_versions_outside_what_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        engine.installed.metadata,
        "requires",
        lambda name: ["torch==1.0.*", "numpy>=1.26", 'pytest<2; extra == "test"'],
    )
    found = {f.name: f for f in look_at_packages()}
    assert found["torch"].state == found["pytest"].state == "advice"
    assert found["torch"].text.endswith("outside ==1.0.*: untested here")
    assert found["numpy"].state == ""
    assert found["numpy"].text.endswith(" (>=1.26)")
    assert "torchvision" not in found, "the metadata says what is needed"


def test_a_checkout_that_was_never_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def requires(name: str) -> list[str]:
        raise engine.installed.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(engine.installed.metadata, "requires", requires)
    found = {f.name: f for f in look_at_packages()}
    assert found["robust-bits"].state == "advice"
    assert found["timm"].text == engine.installed.metadata.version("timm")


# ---- machine, storage, traps


@pytest.mark.parametrize(
    ("threads", "processes", "cores", "says"),
    [
        (2, 1, 2, None),
        (1, 2, 2, None),
        (4, 1, 2, "OMP_NUM_THREADS=2"),
        (8, 4, 8, "OMP_NUM_THREADS=2"),
        (2, 4, 2, "OMP_NUM_THREADS=1"),
    ],
)
def test_thread_advice(threads: int, processes: int, cores: int, says: str | None) -> None:
    advice = threads_advice(threads, processes, cores)
    assert (advice is None) == (says is None)
    assert says is None or (advice is not None and advice.endswith(says))


def test_too_many_threads_are_a_note(doctor: Doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine.outlook, "usable_cores", lambda: 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    report = doctor("--no-self-test")
    assert report.code == 0
    assert "1 x 3 threads on 1 usable cores: too many; set OMP_NUM_THREADS=1" in report.out


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({"cpu.max": "150000 100000"}, 1.5),
        ({"cpu.max": "max 100000"}, None),
        ({"cpu/cpu.cfs_quota_us": "400000", "cpu/cpu.cfs_period_us": "100000"}, 4.0),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None),
        ({}, None),
    ],
)
def test_container_quota(files: dict[str, str], cores: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        engine.machine, "_cgroup", lambda *names: next((files[n] for n in names if n in files), None)
    )
    assert engine.machine._cgroup_cores() == cores
    monkeypatch.setattr(engine.machine.os, "sched_getaffinity", lambda pid: set(range(16)))
    assert usable_cores() == (16 if cores is None else int(cores))


def test_free_space_where_the_run_would_be(tmp_path: Path) -> None:
    [found] = look_at_storage(tmp_path / "not" / "yet" / "there")
    assert found.text.endswith(f"GiB free at {tmp_path}")


def test_image_loading_says_what_would_be_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = {"JPEG regions": False, "resize": True}
    monkeypatch.setattr(engine.outlook, "native_parts", lambda: parts)
    monkeypatch.delenv("ROBUST_BITS_NATIVE", raising=False)
    found = engine.outlook.look_at_decoding()
    assert found.state == "advice"
    assert "for JPEG regions:" in found.text
    monkeypatch.setenv("ROBUST_BITS_NATIVE", "0")
    assert engine.outlook.look_at_decoding().state == ""
    parts["JPEG regions"] = True
    assert "equal to Pillow" in engine.outlook.look_at_decoding().text


def test_traps() -> None:
    assert all(f.state == "ok" for f in look_for_traps({}))
    found = look_for_traps(
        {"ACCELERATE_USE_FSDP": "1", "XLA_USE_BF16": "1", "NVIDIA_TF32_OVERRIDE": "1", "OMP_NUM_THREADS": "1"}
    )
    said = [f.text for f in found if f.state == "advice"]
    assert len(said) == 3
    assert any("ACCELERATE_USE_FSDP set" in text for text in said)
    assert any("XLA_USE_BF16 is set" in text for text in said)
    assert any("NVIDIA_TF32_OVERRIDE=1" in text for text in said)


def test_torch_xla_of_another_release(monkeypatch: pytest.MonkeyPatch) -> None:
    import engine.launch

    monkeypatch.setattr(
        engine.launch.metadata, "version", lambda name: "2.8.0" if name == "torch_xla" else "2.9.1"
    )
    (finding,) = [f for f in look_for_traps({}) if f.name == "torch and torch_xla"]
    assert finding.state == "advice"
    assert "torch 2.9.1 and torch_xla 2.8.0 do not fit together" in finding.text


def test_backend_and_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PJRT_DEVICE", "CPU")
    assert backend_of(Launch(backend="xla")) == ("xla", "launch_xla.py was started; PJRT_DEVICE=CPU")
    assert backend_of(CPU) == ("cpu", "--cpu was given")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", None)
    assert backend_of(Launch(backend="auto")) == ("cpu", "CUDA: none: this torch is built without CUDA")
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert backend_of(Launch(backend="auto"))[1].endswith("sees no device, CUDA_VISIBLE_DEVICES is ''")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert backend_of(Launch(backend="auto"))[0] == "cuda"
    advice = engine.outlook._processes(Launch(backend="auto"), "cuda")
    assert (advice.state, "--num-processes 4" in advice.text) == ("advice", True)


# ---- the self-test

CHECKS = ["device", "noise", "data", "training", "checkpoint", "evaluation"]


def test_self_test_passes(doctor: Doctor) -> None:
    report = doctor()
    assert report.code == 0, report.out
    assert report.states("self-test") == dict.fromkeys(CHECKS, "ok")
    assert f"{STEPS} of {STEPS} adversarial steps (PGD-1) of small_cnn" in report.text(
        "self-test", "training"
    )


@pytest.mark.parametrize("precision", ["bf16"])
def test_self_test_in_the_recipes_precision(precision: Any) -> None:
    found = list(self_test(CPU, precision=precision, limit_s=300))
    assert [f.state for f in found] == ["ok"] * len(CHECKS), found
    assert found[0].text.endswith("bf16")


def plant_noise(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(engine.selftest, "noise", lambda seed, shape: torch.rand(len(seed), *shape))
    return "noise"


def plant_frozen(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(engine.selftest.TrainStep, "_update", lambda self, knobs: None)
    return "training"


def plant_nan(monkeypatch: pytest.MonkeyPatch) -> str:
    real = engine.selftest.build_state

    def build(*args: Any, **kwargs: Any) -> Any:
        state = real(*args, **kwargs)
        with torch.no_grad():
            state.model.backbone.head.bias.fill_(float("nan"))
        return state

    monkeypatch.setattr(engine.selftest, "build_state", build)
    return "training"


def plant_ledger(monkeypatch: pytest.MonkeyPatch) -> str:
    real = engine.selftest.read_ledger

    class Short:
        def __init__(self, folder: Path) -> None:
            self.book = real(folder)

        def rows(self, evaluation: str) -> list[Any]:
            return list(self.book.rows(evaluation))[1:]

    monkeypatch.setattr(engine.selftest, "read_ledger", Short)
    return "evaluation"


def plant_checkpoint(monkeypatch: pytest.MonkeyPatch) -> str:
    real = engine.selftest.load_checkpoint

    def load(path: Path) -> Any:
        state = real(path)
        state["model"]["backbone.head.bias"] += 1
        return state

    monkeypatch.setattr(engine.selftest, "load_checkpoint", load)
    return "checkpoint"


def plant_data(monkeypatch: pytest.MonkeyPatch) -> str:
    def make(*args: Any, **kwargs: Any) -> Any:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(engine.selftest, "make", make)
    return "data"


@pytest.mark.parametrize(
    "plant", [plant_noise, plant_frozen, plant_nan, plant_ledger, plant_checkpoint, plant_data]
)
def test_a_planted_fault_is_found(
    doctor: Doctor, monkeypatch: pytest.MonkeyPatch, plant: Callable[[pytest.MonkeyPatch], str]
) -> None:
    name = plant(monkeypatch)
    report = doctor()
    assert report.code == 2
    found = report.states("self-test")
    assert [n for n, state in found.items() if state == "failed"] == [name], found
    assert list(found) == CHECKS[: CHECKS.index(name) + 1], "what builds upon it is not tried"
    assert re.search(r"^1 failed, \d+ to note$", report.out, re.M)


def test_self_test_stops_on_time(monkeypatch: pytest.MonkeyPatch) -> None:
    found = list(self_test(CPU, precision="float32", limit_s=0.0))
    assert [f.state for f in found] == ["ok"] + ["advice"] * 5
    assert found[1].text == "not tried: 0 s were over"

    real = engine.selftest.TrainStep.__call__

    def slow(self: Any, *args: Any) -> Any:
        time.sleep(3)
        return real(self, *args)

    monkeypatch.setattr(engine.selftest.TrainStep, "__call__", slow)
    named = {f.name: f for f in self_test(CPU, precision="float32", limit_s=2.5)}
    assert named["training"].state in ("ok", "advice")
    assert named["evaluation"].state == "advice"
    if named["training"].state == "ok":
        assert named["training"].text.startswith(f"1 of {STEPS} adversarial steps")


def test_a_backend_that_is_not_there() -> None:
    if torch.cuda.is_available():
        pytest.skip("a CUDA device is here")
    (finding,) = self_test(Launch(backend="cuda"), precision="float32", limit_s=10)
    assert (finding.name, finding.state) == ("device", "failed")
    assert "this machine has no CUDA device; use --cpu" in finding.text


def test_under_an_outside_launcher(doctor: Doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its other ranks do not take part: a process group would wait for them."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    report = doctor(launch=Launch(backend="cpu", world_size=None))
    assert report.states("self-test") == {"device": "advice"}
    assert report.text("a run here", "processes") == "2, by the outside launcher"


def test_on_xla(process_environment: Any, tmp_path: Path) -> None:
    code = (
        "import sys, engine.selftest; from engine.cli import Launch, main; engine.selftest.LIMIT_S = 300.0; "
        f"words = ['doctor', '--json', '{tmp_path}/x.json']; "
        "sys.exit(main(words, Launch(backend='xla'), program='launch_xla.py'))"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        env=process_environment(),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    findings = [Finding(**f) for f in json.loads((tmp_path / "x.json").read_text())["findings"]]
    report = Report(0, done.stdout, findings)
    assert report.states("self-test") == dict.fromkeys(CHECKS, "ok")
    assert report.text("self-test", "device").startswith("xla, xla:0")
    assert report.text("a run here", "backend") == "xla (launch_xla.py was started; PJRT_DEVICE=CPU)"


# ---- a recipe


def test_a_recipe_that_can_run(doctor: Doctor, recipe: Path, few_digits: Path) -> None:
    report = doctor(recipe, "--no-self-test")
    assert report.code == 0, report.out
    loaded = load_recipe(recipe)
    assert report.text("recipe", "recipe") == f"little, hash {loaded.hash}"
    assert report.text("recipe", "data.train") == "70 images, 10 classes, 3 shards; 8 batches of 8 an epoch"
    assert report.text("recipe", "model") == "small_cnn, 162,994 parameters, 10 classes"
    macs = 5_570_304 - 96 * 990
    cost = f"one image: {macs / 1e6:.3g} MMACs forward, about {7 * macs / 1e6:.3g} MMACs to train on with PGD-2 (7 "
    assert report.text("recipe", "cost").startswith(cost)
    size = 162_994 * 4 * 4  # weights, two moments, average
    assert report.text("recipe", "disk").startswith(
        f"4 checkpoints of {size / 1e6:.3g} MB need {4 * size / 1e6:.3g} MB"
    )
    assert report.text("recipe", "batch") == "8 images, 8 on each device, in float32"


def test_groups_of_a_device_are_a_note(doctor: Doctor, recipe: Path) -> None:
    report = doctor(recipe, "model.norm_stats=groups:2x4", "optim.accumulate=2", "--no-self-test")
    assert report.states("recipe")["model.norm_stats"] == "advice"
    said = report.text("recipe", "model.norm_stats")
    assert said.startswith(
        "groups:2x4 on 1 devices: 2 groups of 4 images in a batch; on another number of devices"
    )
    assert said.endswith("4 copies of them, but optim.accumulate is 2")
    plain = doctor(recipe, "--no-self-test")
    assert "model.norm_stats" not in plain.states("recipe")


@pytest.mark.parametrize(
    ("override", "name", "says"),
    [
        ("data.train=/nowhere", "data.train", r"no index\.json in /nowhere"),
        ("data.num_classes=7", "data.train", "has 10 classes and data.num_classes is 7"),
        ("run.batch_size=400", "data.train", "makes no update from the 70 images of data.train; lower it"),
        ("data.val=/nowhere", "evals", r"no index\.json in /nowhere"),
        ("model.name=small_cnnn", "model", "unknown model 'small_cnnn'"),
        ("model.args.widht=3", "model", "has no setting 'widht'"),
        ("model.norm_stats=ghost:3", "batch", "8 images per process do not split into groups of 3"),
        ("run.precision=fp16", "batch", "fp16 needs CUDA"),
    ],
)
def test_a_recipe_that_cannot_run_here(
    doctor: Doctor, recipe: Path, override: str, name: str, says: str
) -> None:
    report = doctor(recipe, override, "--no-self-test")
    assert report.code == 2
    wrong = [f for f in report.findings if f.state == "failed"]
    assert {f.name for f in wrong} == {name}, wrong
    assert re.search(says, wrong[0].text), wrong
    assert "\n" not in wrong[0].text


def test_every_mistake_of_a_recipe_is_named_at_once(doctor: Doctor, recipe: Path) -> None:
    words = ("data.train=/nowhere", "model.name=small_cnnn", "run.precision=fp16")
    report = doctor(recipe, *words, "--no-self-test")
    assert {f.name for f in report.findings if f.state == "failed"} == {"data.train", "model", "batch"}


def test_not_enough_disk(doctor: Doctor, recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(engine.recipe_check.shutil, "disk_usage", lambda path: usage._replace(free=1_000_000))
    report = doctor(recipe, "--no-self-test")
    assert report.code == 2
    assert "has 1 MB free; lower run.keep_checkpoints or change run.output" in report.text("recipe", "disk")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["absent.yaml"], r"recipe absent\.yaml does not exist"),
        (["{recipe}", "optim.lrr=1"], r"optim\.lrr is not a field; did you mean optim\.lr\?"),
        (
            ["run.epochs=3"],
            r"run\.epochs=3: an override needs a recipe; write `doctor RECIPE\.yaml run\.epochs=3`",
        ),
        (["{recipe}", "--self-test"], "unrecognized arguments: --self-test"),
    ],
)
def test_bad_words_are_one_line(
    recipe: Path, capfd: pytest.CaptureFixture[str], words: list[str], says: str
) -> None:
    words = [word.format(recipe=recipe) for word in words]
    assert main(["doctor", *words], CPU, program="launch_gpu.py") == 2
    out, err = capfd.readouterr()
    assert (out, len(err.splitlines())) == ("", 1)
    assert re.search(says, err), err

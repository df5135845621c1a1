"""A teacher beside the labels: the loss by its formula, the teacher as it was, runs that learn from one and go on."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import yaml
from torch import Tensor, nn

from bits.checkpoint import latest_checkpoint, list_checkpoints, load_checkpoint, read_meta
from bits.environment import Environment, open_environment
from engine.build import build_model
from engine.cli import Launch, main
from engine.distillation import distillation_loss
from engine.exported import load_exported
from engine.fields import ObjectiveSection
from engine.folder import RunFolder
from engine.log import read_log
from engine.objective import Inputs, Losses
from engine.receipt import planned
from engine.recipe import load_recipe
from engine.recipe_check import check_recipe
from engine.step import TrainStep
from engine.subject import open_subject
from engine.teacher import Teacher, _class_problem, build_teacher, open_teacher, resized
from engine.verdict import weights_hash
from engine.weight_fields import DistillSection
from engine.words import objective_words
from models.deit import set_distilled_training
from models.pixel import PixelModel
from models.registry import create_model
from tests.engine.one_step import ATTACK, NUM_CLASSES, cnn, count_passes, knobs, make_batch, make_step

CPU = Launch(backend="cpu")
RECIPE: dict[str, Any] = {
    "data": {"image_size": 16, "num_workers": 0, "scale": [0.8, 1.0], "flip": 0.0},
    "model": {"name": "small_cnn", "norm_stats": "ghost:6"},
    "optim": {"lr": 3e-3},
    "objective": {"mixup": 0.2},
    "run": {"epochs": 12, "batch_size": 12, "report_every": 1, "checkpoint_every": 3, "tensorboard": False},
}


@pytest.fixture(scope="module")
def env() -> Environment:
    return open_environment("cpu")


def section(**changes: Any) -> DistillSection:
    return DistillSection(teacher="unused", **changes)


def a_teacher(*, in_bf16: bool = False, image_size: int = 16) -> Teacher:
    torch.manual_seed(7)
    model = create_model(
        "small_cnn", num_classes=NUM_CLASSES, image_size=image_size, mean=[0.4] * 3, std=[0.2] * 3
    )
    model(torch.rand(8, 3, image_size, image_size))  # statistics that say something
    model.eval().requires_grad_(False)
    return Teacher(model=model, in_bf16=in_bf16, sha256="", about="")


def two_heads() -> PixelModel:
    torch.manual_seed(0)
    return create_model(
        "deit_mini_distilled_patch16_224",
        num_classes=NUM_CLASSES,
        image_size=16,
        mean=[0.5] * 3,
        std=[0.5] * 3,
        depth=1,
        embed_dim=32,
        num_heads=2,
    )


def losses_of(step: TrainStep) -> tuple[Losses, Tensor, Tensor]:
    batch = make_batch()
    image, target = step._inputs(batch)
    return step.objective(step.forward, Inputs(image, target, batch, knobs())), image, target


# ---- the loss


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_soft_distillation_is_the_formula(temperature: float) -> None:
    """batchmean is Hinton's t^2 KL(teacher || student), numel what the reference code has."""
    torch.manual_seed(0)
    student, teacher = torch.randn(6, 5, requires_grad=True), torch.randn(6, 5)
    for normalise in ("batchmean", "numel"):
        found = distillation_loss(section(temperature=temperature, normalise=normalise), student, teacher)
        assert found.shape == (6,)
        log_q, log_p = ((x / temperature).log_softmax(1) for x in (student, teacher))
        if normalise == "batchmean":
            wanted = F.kl_div(log_q, log_p.exp(), reduction="batchmean") * temperature**2
        else:
            total = F.kl_div(log_q, log_p, reduction="sum", log_target=True)
            wanted = total * (temperature * temperature) / student.numel()
        torch.testing.assert_close(found.mean(), wanted)
        grads = [torch.autograd.grad(loss, student, retain_graph=True)[0] for loss in (found.mean(), wanted)]
        torch.testing.assert_close(*grads)


def test_hard_distillation_is_cross_entropy_with_the_teachers_choice() -> None:
    student, teacher = torch.randn(6, 5), torch.randn(6, 5)
    found = distillation_loss(section(kind="hard"), student, teacher)
    for i in range(6):
        wanted = -student[i].log_softmax(0)[int(teacher[i].argmax())]
        torch.testing.assert_close(found[i], wanted)


def test_losses_are_float32_and_finite_on_sure_logits() -> None:
    student, teacher = (torch.tensor([[300.0, -300.0]], dtype=torch.bfloat16) * sign for sign in (1, -1))
    found = distillation_loss(section(), student, teacher)
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(600, rel=0.01)


# ---- the objective


@pytest.mark.parametrize("attack", [None, ATTACK], ids=["clean", "adversarial"])
def test_the_student_learns_from_both(attack: Any, env: Environment) -> None:
    """The student of an attacked image learns what the teacher says of the clean one."""
    teacher, settings = a_teacher(), {"alpha": 0.3, "temperature": 2.0}
    alone, _, target = losses_of(make_step(env, cnn(), attack=attack))
    taught, image, _ = losses_of(
        make_step(env, cnn(), attack=attack, distill=section(**settings), teacher=teacher)
    )
    assert torch.equal(alone.logits, taught.logits)
    base = -(target * alone.logits.log_softmax(1)).sum(1)
    log_p, log_q = ((x / 2.0).log_softmax(1) for x in (teacher.model(image), alone.logits))
    kd = 4.0 * (log_p.exp() * (log_p - log_q)).sum(1)
    torch.testing.assert_close(taught.loss, 0.7 * base + 0.3 * kd)
    torch.testing.assert_close(taught.values["distill_loss"], kd)
    same = (alone.logits.argmax(1) == teacher.model(image).argmax(1)).float()
    assert torch.equal(taught.values["agreement"], same)
    if attack is not None:
        assert taught.attacked is not None
        assert torch.equal(taught.attacked, alone.attacked)


def test_alpha_0_is_the_objective_and_1_the_teacher_alone(env: Environment) -> None:
    teacher = a_teacher()
    alone, _, _ = losses_of(make_step(env, cnn()))
    for alpha, name in ((0.0, "base"), (1.0, "distill")):
        found, _, _ = losses_of(make_step(env, cnn(), distill=section(alpha=alpha), teacher=teacher))
        wanted = alone.loss if name == "base" else found.values["distill_loss"]
        torch.testing.assert_close(found.loss, wanted)


@pytest.mark.parametrize("kind", ["soft", "hard"])
def test_two_heads_as_in_deit(kind: str, env: Environment) -> None:
    """The class head learns from the label, the distillation head from the teacher; accuracy is that of the mean."""
    teacher, model = a_teacher(), two_heads()
    step = make_step(env, model, distill=section(kind=kind, two_heads=True), teacher=teacher)
    found, image, target = losses_of(step)
    set_distilled_training(model, True)
    first, second = model.train()(image)
    set_distilled_training(model, False)
    logits = teacher.model(image)
    kd = F.cross_entropy(second, logits.argmax(1), reduction="none")
    if kind == "soft":
        kd = F.kl_div(second.log_softmax(1), logits.softmax(1), reduction="none").sum(1)
    wanted = 0.5 * F.cross_entropy(first, target, reduction="none") + 0.5 * kd
    torch.testing.assert_close(found.loss, wanted)
    torch.testing.assert_close(found.logits, (first + second) / 2)
    heads: Any = model.backbone
    (by_label,) = torch.autograd.grad(
        found.values["distill_loss"].sum(), heads.head.weight, allow_unused=True
    )
    assert by_label is None, "the teacher reaches the class head"


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_two_heads_are_attacked_as_one(mode: str, env: Environment) -> None:
    model = two_heads()
    attack = ATTACK.model_copy(update={"mode": mode})
    step = make_step(env, model, attack=attack, distill=section(two_heads=True), teacher=a_teacher())
    assert step(make_batch(), knobs())
    assert model.train()(torch.rand(2, 3, 16, 16)).shape == (2, NUM_CLASSES), (
        "outside the step it is one tensor"
    )


@pytest.mark.parametrize("steps", [0, 2])
def test_the_teacher_costs_one_forward_pass(steps: int, env: Environment) -> None:
    model = cnn()
    attack = ATTACK.model_copy(update={"steps": steps}) if steps else None
    step = make_step(env, model, attack=attack, distill=section(), teacher=a_teacher())
    found = count_passes(step, make_batch(), model)
    assert found == {"forward": steps + 2, "full": 1} | ({"input": steps} if steps else {})


def test_the_teacher_stays_as_it_was(env: Environment) -> None:
    teacher, model = a_teacher(), cnn()
    step = make_step(env, model, attack=ATTACK, distill=section(), teacher=teacher)
    before = {name: tensor.clone() for name, tensor in teacher.model.state_dict().items()}
    for _ in range(2):
        assert step(make_batch(), knobs())
    after = teacher.model.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    assert not any(module.training for module in teacher.model.modules())
    assert all(p.grad is None and not p.requires_grad for p in teacher.model.parameters())
    own = {id(p) for group in step.state.optimizer.param_groups for p in group["params"]}
    assert not own & {id(p) for p in teacher.model.parameters()}
    assert step.state.state_dict()["model"].keys() == model.state_dict().keys()


# ---- the teacher's view


@pytest.mark.parametrize(("before", "after"), [(32, 16), (16, 24), (32, 20), (17, 32), (64, 7)])
def test_resizing_is_torchs_antialiased_bilinear(before: int, after: int) -> None:
    image = torch.rand(2, 3, before, before)
    wanted = F.interpolate(image, size=(after, after), mode="bilinear", antialias=True, align_corners=False)
    torch.testing.assert_close(resized(image, after), wanted, rtol=0, atol=1e-5)
    assert resized(image, before) is image


def test_a_teacher_of_another_size_sees_its_own() -> None:
    teacher = a_teacher(image_size=32)
    seen: list[tuple[int, ...]] = []
    teacher.model.register_forward_pre_hook(lambda _, inputs: seen.append(tuple(inputs[0].shape)))
    assert teacher(torch.rand(2, 3, 16, 16)).shape == (2, NUM_CLASSES)
    assert seen == [(2, 3, 32, 32)]


@pytest.mark.parametrize("in_bf16", [False, True])
def test_the_precision_of_the_teacher_is_its_own(in_bf16: bool) -> None:
    teacher, seen = a_teacher(in_bf16=in_bf16), list[torch.dtype]()
    convolution = next(m for m in teacher.model.modules() if isinstance(m, nn.Conv2d))
    convolution.register_forward_hook(lambda _, __, out: seen.append(out.dtype))
    with torch.autocast("cpu", dtype=torch.float16):
        assert teacher(torch.rand(2, 3, 16, 16)).dtype == torch.float32
    assert seen == [torch.bfloat16 if in_bf16 else torch.float32]


# ---- runs


def write(path: Path, shards: Path, **changes: Any) -> Path:
    tree = {name: {**values, **changes.get(name, {})} for name, values in RECIPE.items()}
    tree["data"]["train"] = str(shards)
    path.write_text(yaml.safe_dump(tree))
    return path


def train(recipe: Path, output: Path, *words: str) -> int:
    return main(["train", str(recipe), *words, "--output", str(output), "--quiet"], CPU, program="p")


@pytest.fixture(scope="module")
def world(few_digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """teacher/, a run at 24 px with an average; teacher.safetensors, its export; student.yaml, which learns from it."""
    root = tmp_path_factory.mktemp("distill")
    bigger = write(root / "teacher.yaml", few_digits, data={"image_size": 24}, optim={"ema": 0.9})
    assert train(bigger, root / "teacher") == 0
    words = ["weights", "export", str(root / "teacher"), str(root / "teacher.safetensors")]
    assert main(words, CPU, program="p") == 0
    objective = {"distill": {"teacher": str(root / "teacher"), "alpha": 0.7}}
    write(root / "student.yaml", few_digits, objective=objective)
    return root


@pytest.fixture(scope="module")
def student(world: Path) -> Path:
    assert train(world / "student.yaml", world / "student") == 0
    return world / "student"


def state_of(run: Path) -> dict[str, Any]:
    found = latest_checkpoint(run / "checkpoints")
    assert found is not None
    return found[1]


def assert_same_weights(run: Path, wanted: Path) -> None:
    found, reference = state_of(run), state_of(wanted)
    assert found["step"] == reference["step"]
    assert found.keys() == reference.keys()
    for name, tensor in reference["model"].items():
        assert torch.equal(found["model"][name], tensor), name


def test_a_student_comes_to_agree(student: Path, world: Path) -> None:
    entries = [entry for entry in read_log(student / "log.jsonl") if entry["event"] == "train"]
    agreement = [entry["agreement"] for entry in entries]
    assert sum(agreement[-10:]) / 10 > sum(agreement[:10]) / 10 + 0.2, agreement
    assert entries[-1]["distill_loss"] < entries[0]["distill_loss"] / 2
    assert all("distill_loss" not in entry for entry in read_log(world / "teacher/log.jsonl"))


def test_only_the_student_is_kept(student: Path, world: Path) -> None:
    wanted = state_of(world / "teacher")
    found = state_of(student)
    assert found["model"].keys() == wanted["model"].keys()
    assert len(found["optimizer"]["state"]) == len(list(cnn().parameters()))


def test_killed_and_resumed_with_the_teacher_elsewhere(student: Path, world: Path, tmp_path: Path) -> None:
    """An export of the teacher holds the same weights as the run, so it is the same teacher."""
    recipe = world / "student.yaml"
    assert train(recipe, tmp_path / "run", "run.max_steps=8") == 0
    newest = list_checkpoints(tmp_path / "run/checkpoints")[-1]
    newest.unlink()  # as if killed before it
    assert train(recipe, tmp_path / "run", f"objective.distill.teacher={world}/teacher.safetensors") == 0
    starts = [entry for entry in read_log(tmp_path / "run/log.jsonl") if entry["event"] == "start"]
    assert [entry["step"] for entry in starts] == [0, 6]
    assert starts[0]["teacher"] == starts[1]["teacher"]
    assert_same_weights(tmp_path / "run", student)


def test_another_teacher_is_refused_on_resume(
    student: Path, world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = world / "other.pt"
    state = load_exported(world / "teacher.safetensors").state["model"]
    torch.save({name: t * 1.01 if t.is_floating_point() else t for name, t in state.items()}, other)
    words = [f"objective.distill.teacher={other}"]
    before = load_recipe(world / "student.yaml").hash
    assert load_recipe(world / "student.yaml", words).hash == before, "the place is no part of the hash"
    words = [*words, "objective.distill.teacher_model=small_cnn"]
    assert train(world / "student.yaml", student, *words) == 2
    assert "objective.distill.teacher_model differ" in capsys.readouterr().err
    shutil.copytree(world / "teacher", world / "teacher2")
    newest = list_checkpoints(world / "teacher2/checkpoints")[-1]
    for path in (newest, newest.with_suffix(".json")):
        path.unlink()
    assert train(world / "student.yaml", student, f"objective.distill.teacher={world}/teacher2") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "was taught by weights" in error
    assert "another --output" in error


def test_two_processes_learn_as_one(
    student: Path, world: Path, tmp_path: Path, launch: Callable[..., Any]
) -> None:
    words = ["--output", tmp_path / "run", "run.max_steps=4"]
    done = launch("gpu", "--cpu", "--num-processes", "2", "train", world / "student.yaml", *words)
    assert done.returncode == 0, done.stderr[-2000:]
    assert train(world / "student.yaml", tmp_path / "one", "run.max_steps=4") == 0
    found, wanted = state_of(tmp_path / "run"), state_of(tmp_path / "one")
    for name, tensor in wanted["model"].items():
        torch.testing.assert_close(found["model"][name], tensor, rtol=1e-3, atol=2e-4)


def test_one_graph_and_no_read_on_xla(
    world: Path, tmp_path: Path, launch: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The teacher's other size and precision are in it; between two reports the host reads nothing but a report. And a
    student starts from weights there, as on the cpu."""
    monkeypatch.setenv(
        "XLA_FLAGS", "--xla_backend_optimization_level=0"
    )  # the same graphs, compiled without care
    words = ["objective.distill.precision=bf16", "run.max_steps=9", "run.report_every=4"]
    words += ["run.preview_images=0", "run.checkpoint_every=1000", f"model.init.path={world}/teacher"]
    done = launch("xla", "train", world / "student.yaml", *words, "--output", tmp_path / "run")
    assert done.returncode == 0, done.stderr[-2000:]
    entries = [entry for entry in read_log(tmp_path / "run/log.jsonl") if entry["event"] == "train"]
    assert len(entries) < 9
    assert train(world / "student.yaml", tmp_path / "cpu", *words, "run.max_steps=1") == 0
    wanted = next(entry for entry in read_log(tmp_path / "cpu/log.jsonl") if entry["event"] == "train")
    for name in ("loss", "distill_loss", "agreement"):
        assert entries[0][name] == pytest.approx(wanted[name], rel=0.01), name
    assert entries[-1]["compiles"] == entries[1]["compiles"] > 0
    assert {entry["fallbacks"] for entry in entries} == {0}
    reads = [entry["host_reads"] for entry in entries]
    # What a report asks for is read when the next one is made.
    assert [b - a for a, b in pairwise(reads)] == [0] + [1] * (len(reads) - 2)


@pytest.mark.parametrize("form", ["run", "checkpoint", "export", "ema", "file"])
def test_every_form_of_a_teacher(form: str, world: Path, few_digits: Path, tmp_path: Path) -> None:
    checkpoint = list_checkpoints(world / "teacher/checkpoints")[-1]
    torch.save(load_checkpoint(checkpoint)["model"], tmp_path / "bare.pth")
    distill: dict[str, Any] = {
        "run": {"teacher": str(world / "teacher")},
        "checkpoint": {"teacher": str(checkpoint)},
        "export": {"teacher": str(world / "teacher.safetensors")},
        "ema": {"teacher": str(world / "teacher"), "teacher_weights": "ema"},
        "file": {
            "teacher": str(tmp_path / "bare.pth"),
            "teacher_model": "small_cnn",
            "teacher_image_size": 24,
        },
    }[form]
    recipe = write(tmp_path / "form.yaml", few_digits, objective={"distill": distill})
    assert train(recipe, tmp_path / "run", "run.max_steps=1") == 0
    facts = read_meta(list_checkpoints(tmp_path / "run/checkpoints")[-1]).facts
    by_run = json.loads(next((world / "student/checkpoints").glob("*.json")).read_text())["facts"]["teacher"]
    assert (facts["teacher"] == by_run) == (form != "ema")


def test_the_teacher_of_a_recipe(world: Path, env: Environment) -> None:
    """In eval mode, without gradients, with the answers of its run; in bf16 where the student is not in float32."""
    for words, in_bf16 in (
        ([], False),
        (["objective.distill.precision=bf16"], True),
        (["run.precision=bf16"], True),
        (["run.precision=bf16", "objective.distill.precision=float32"], False),
    ):
        recipe = load_recipe(world / "student.yaml", words)
        classes = [str(label) for label in range(10)]
        subject = open_teacher(recipe, classes=classes, folder=RunFolder(world / "new"))
        assert subject is not None
        teacher = build_teacher(subject, recipe, env)
        assert teacher.in_bf16 == in_bf16
        assert not any(module.training for module in teacher.model.modules())
        assert not any(parameter.requires_grad for parameter in teacher.model.parameters())
    wanted = build_model(subject.recipe, env, num_classes=10, layout=None).eval()
    subject.load_into(wanted)
    image = torch.rand(3, 3, 24, 24)
    torch.testing.assert_close(teacher(image), wanted(image))
    assert teacher.sha256 == weights_hash(wanted.state_dict())


def test_doctor_looks_at_weights_from_elsewhere(world: Path, tmp_path: Path) -> None:
    given = [f"model.init.path={world}/teacher", f"objective.distill.teacher={world}/teacher"]
    missing = ["model.init.path=nowhere", "objective.distill.teacher=nowhere"]
    for words, state in ((given, "ok"), (missing, "failed")):
        recipe = load_recipe(world / "student.yaml", words)
        found = {each.name: each for each in check_recipe(recipe, CPU, tmp_path / "run")}
        for name in ("model.init", "teacher"):
            assert found[name].state == state, found[name]


# ---- refusals


REFUSED: list[tuple[list[str], str]] = [
    (["objective.distill.alpha=1.5"], "objective.distill.alpha is 1.5, but must be less than or equal to 1"),
    (["objective.distill.alpha=-0.1"], "objective.distill.alpha is -0.1"),
    (["objective.distill.temperature=0"], "objective.distill.temperature is 0, but must be greater than 0"),
    (["objective.distill.teacher=''"], "objective.distill.teacher is ''"),
    (["objective.distill.kind=hard", "objective.distill.temperature=2.0"], "kind is hard, which has none"),
    (["objective.distill.kind=hard", "objective.distill.normalise=numel"], "kind is hard, which has none"),
    (["objective.distill.two_heads=true"], "has one head, no distillation head"),
    (
        ["objective.distill.teacher=nowhere"],
        "objective.distill.teacher nowhere does not exist; give a run folder",
    ),
    (["objective.distill.teacher=timm:resnet50x"], "unknown model 'resnet50x'"),
    (["objective.distill.teacher=pyproject.toml"], "pyproject.toml"),
    (["objective.distill.teacher_model=resnet18"], "objective.distill.teacher: "),
    (["objective.distill.teacher=RUN"], "lies in this run's own folder"),
    (["objective.distill.teacher=RUN/checkpoints/step-00000001.pt"], "lies in this run's own folder"),
]
ATTACKED = "objective.attack={norm: linf, eps: 4/255, step_size: 4/255, steps: 1}"
REFUSED += [
    (
        [f"objective.kind={kind}", ATTACKED, "objective.mixup=0"],
        f"objective.kind is {kind}, whose loss has no place",
    )
    for kind in ("trades", "mart", "free")
]
REFUSED += [
    (
        ["objective.kind=adversarial", ATTACKED, "objective.clean_weight=0.5"],
        "clean_weight is 0.5, which makes two",
    )
]


@pytest.mark.parametrize(("words", "says"), REFUSED)
def test_refusals(
    words: list[str], says: str, world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [word.replace("RUN", str(tmp_path / "run")) for word in words]
    assert train(world / "student.yaml", tmp_path / "run", *words) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert says in error
    assert not (tmp_path / "run").exists()


def test_a_teacher_with_other_classes(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = create_model(
        "small_cnn", num_classes=3, image_size=24, mean=[0.5] * 3, std=[0.5] * 3
    ).state_dict()
    torch.save(state, tmp_path / "three.pth")
    words = [f"objective.distill.teacher={tmp_path}/three.pth", "objective.distill.teacher_model=small_cnn"]
    assert train(world / "student.yaml", tmp_path / "run", *words) == 2
    assert "three.pth has 3 classes and data.train 10; a teacher must have" in capsys.readouterr().err
    subject = open_subject(world / "teacher", weights="raw")
    names = [f"digit {label}" for label in range(10)]
    named = replace(subject, classes=names)
    assert not _class_problem(named, names)
    assert not _class_problem(subject, names), "who has numbers alone has no names to compare"
    assert not _class_problem(named, subject.classes)
    problem = _class_problem(named, [*names[:2], "digit 3", "digit 2", *names[4:]])
    assert problem == "has class 'digit 2' as number 2, data.train 'digit 3'"


# ---- the plan of a run with a teacher


def dry_run(recipe: Path, tmp_path: Path, *words: str) -> dict[str, Any]:
    flags = ["--dry-run", "--output", str(tmp_path / "run"), "--json", str(tmp_path / "plan.json")]
    assert main(["train", str(recipe), *words, *flags], CPU, program="p") == 0
    plan: dict[str, Any] = json.loads((tmp_path / "plan.json").read_text())["plan"]
    return plan


def test_a_plan_counts_the_teacher(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = dry_run(world / "student.yaml", tmp_path)
    assert (plan["forward"], plan["teacher"]) == (1, 1)
    assert plan["teacher_cost"] == pytest.approx((24 / 16) ** 2, rel=0.02), (
        "convolutions at 24 px for ones at 16"
    )
    assert plan["step_images_per_s"] > 0
    assert not [note for note in plan["notes"] if "teacher" in note], "it was there in the updates measured"
    lines = dict(line.split("  ", 1) for line in capsys.readouterr().err.splitlines() if "  " in line)
    assert lines["passes of the teacher"].strip().startswith("1 forward, each as 2.2")
    recipe = load_recipe(world / "student.yaml")
    found = planned(recipe, updates=10, eval_images=None)
    assert (found["passes_per_image"]["teacher"], found["teacher_forwards"]) == (1, 120)


@pytest.mark.parametrize(("words", "says"), [case for case in REFUSED if "timm:" not in case[0][0]][-6:])
def test_a_dry_run_refuses_what_a_run_would(
    words: list[str], says: str, world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [word.replace("RUN", str(tmp_path / "run")) for word in words]
    for more in ([], ["--no-measure"]):
        flags = ["--dry-run", *more, "--output", str(tmp_path / "run")]
        assert main(["train", str(world / "student.yaml"), *words, *flags], CPU, program="p") == 2
        assert says in capsys.readouterr().err


def test_a_teacher_whose_weights_do_not_fit_is_refused_before_anything_runs(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = create_model("small_cnn", num_classes=3, image_size=24, mean=[0.5] * 3, std=[0.5] * 3)
    torch.save(state.state_dict(), tmp_path / "three.pth")
    words = [f"objective.distill.teacher={tmp_path}/three.pth", "objective.distill.teacher_model=small_cnn"]
    flags = ["--dry-run", "--no-measure", "--output", str(tmp_path / "run")]
    assert main(["train", str(world / "student.yaml"), *words, *flags], CPU, program="p") == 2
    assert "has 3 classes and data.train 10" in capsys.readouterr().err


def test_a_name_of_timms_is_only_said(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str) -> None:
        raise AssertionError(f"{name} was fetched")

    for module in ("engine.start", "engine.foreign"):
        monkeypatch.setattr(f"{module}.fetch", refuse)
    words = ["objective.distill.teacher=timm:resnet18", "model.init.path=timm:resnet18"]
    plan = dry_run(world / "student.yaml", tmp_path, *words, "--no-measure")
    assert [note.split(" was not looked at")[0] for note in plan["notes"]] == [
        "model.init.path timm:resnet18",
        "objective.distill.teacher timm:resnet18",
    ]
    assert (plan["teacher"], plan["teacher_cost"]) == (1, None)


def test_the_teacher_in_words() -> None:
    objective = ObjectiveSection(distill=section(alpha=0.25))
    assert objective_words(objective) == "clean, soft distillation of 0.25 from unused"

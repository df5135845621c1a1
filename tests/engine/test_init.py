"""`model.init`: the weights in the file are those of step 0, whatever file it is; a resumed run does not read it."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

import engine.start
from bits.checkpoint import latest_checkpoint, list_checkpoints, load_checkpoint, read_meta
from bits.environment import Environment, open_environment
from bits.state import TrainState
from engine.agreement import is_same_hash
from engine.build import batch_layout, build_state
from engine.cli import Launch, main
from engine.exported import load_exported, portable_recipe
from engine.log import read_log
from engine.recipe import load_recipe
from engine.start import open_start
from engine.verdict import weights_hash
from models.defaults import Defaults
from models.hub import Fetched
from models.registry import create_model

CPU = Launch(backend="cpu")
RECIPE: dict[str, Any] = {
    "data": {"image_size": 16, "num_workers": 0},
    "model": {"name": "small_cnn", "norm_stats": "ghost:4"},
    "optim": {"lr": 3e-3, "ema": 0.9},
    "run": {"epochs": 2, "batch_size": 8, "report_every": 1, "checkpoint_every": 3, "tensorboard": False},
}


@pytest.fixture(scope="module")
def env() -> Environment:
    return open_environment("cpu")


def train(recipe: Path, output: Path, *words: str) -> int:
    return main(["train", str(recipe), *words, "--output", str(output), "--quiet"], CPU, program="p")


@pytest.fixture(scope="module")
def world(few_digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """plain.yaml and its run before/; before.safetensors, its export; init.yaml, the same recipe from these weights."""
    root = tmp_path_factory.mktemp("init")
    tree = RECIPE | {"data": {**RECIPE["data"], "train": str(few_digits)}}
    (root / "plain.yaml").write_text(yaml.safe_dump(tree))
    assert train(root / "plain.yaml", root / "before") == 0
    for kept in ("raw", "ema"):
        name = root / f"before{'-ema' * (kept == 'ema')}.safetensors"
        words = ["weights", "export", str(root / "before"), str(name), "--weights", kept]
        assert main(words, CPU, program="p") == 0
    tree["model"] = {**RECIPE["model"], "init": {"path": str(root / "before.safetensors")}}
    (root / "init.yaml").write_text(yaml.safe_dump(tree))
    return root


def state_of(run: Path) -> dict[str, Any]:
    found = latest_checkpoint(run / "checkpoints")
    assert found is not None
    return found[1]


def begun(env: Environment, recipe: Path, *words: str, num_classes: int = 10) -> TrainState:
    """The state before the first update."""
    loaded = load_recipe(recipe, words)
    start = open_start(loaded)
    load = None if start is None else start.load_into
    layout = batch_layout(loaded.run.batch_size, env)
    return build_state(loaded, env, num_classes=num_classes, layout=layout, start=load)


def assert_equal(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert torch.equal(found[name], tensor), name


# ---- what a run starts with


@pytest.mark.parametrize("form", ["run", "checkpoint", "export", "ema of the run", "ema export", "bare"])
def test_step_0_has_exactly_the_weights_of_the_file(
    form: str, env: Environment, world: Path, tmp_path: Path
) -> None:
    before = state_of(world / "before")
    torch.save(before["model"], tmp_path / "bare.pth")
    checkpoint = list_checkpoints(world / "before/checkpoints")[-1]
    path, kept = {
        "run": (world / "before", "raw"),
        "checkpoint": (checkpoint, "raw"),
        "export": (world / "before.safetensors", "raw"),
        "ema of the run": (world / "before", "ema"),
        "ema export": (world / "before-ema.safetensors", "ema"),
        "bare": (tmp_path / "bare.pth", "raw"),
    }[form]
    words = [f"model.init.path={path}", f"model.init.weights={kept}"]
    state = begun(env, world / "init.yaml", *words)
    wanted = before["model" if kept == "raw" else "ema"]
    assert_equal(state.model.state_dict(), wanted)
    assert state.ema is not None
    assert_equal(state.ema.module.state_dict(), wanted)
    slots = [tensor for entry in state.optimizer.state_dict()["state"].values() for tensor in entry.values()]
    assert not any(tensor.any() for tensor in slots), "nothing was carried over"
    assert state.step == 0


def test_a_run_notes_what_it_started_from(world: Path, tmp_path: Path) -> None:
    assert train(world / "init.yaml", tmp_path / "run", "run.max_steps=1") == 0
    sha256 = weights_hash(load_exported(world / "before.safetensors").state["model"])
    (start, *_) = read_log(tmp_path / "run/log.jsonl")
    assert start["init"] == sha256
    assert read_meta(list_checkpoints(tmp_path / "run/checkpoints")[-1]).facts["init"] == sha256
    (plain, *_) = read_log(world / "before/log.jsonl")
    assert (plain["init"], plain["teacher"]) == (None, None)


def test_a_resumed_run_does_not_read_the_file(world: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved.safetensors"
    moved.write_bytes((world / "before.safetensors").read_bytes())
    assert train(world / "init.yaml", tmp_path / "whole") == 0
    assert train(world / "init.yaml", tmp_path / "run", f"model.init.path={moved}", "run.max_steps=5") == 0
    list_checkpoints(tmp_path / "run/checkpoints")[-1].unlink()  # as if killed before it
    moved.unlink()
    assert train(world / "init.yaml", tmp_path / "run", f"model.init.path={moved}") == 0
    starts = [entry for entry in read_log(tmp_path / "run/log.jsonl") if entry["event"] == "start"]
    assert [entry["step"] for entry in starts] == [0, 3]
    assert starts[0]["init"] == starts[1]["init"]
    found, wanted = state_of(tmp_path / "run"), state_of(tmp_path / "whole")
    for part in ("model", "ema"):
        assert_equal(found[part], wanted[part])


def test_a_plain_run_cannot_be_resumed_as_one_with_init(
    world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(world / "init.yaml", world / "before") == 2
    assert "was made with another recipe: model.init" in capsys.readouterr().err


def test_two_processes_start_alike(world: Path, tmp_path: Path, launch: Callable[..., Any]) -> None:
    words = ["train", world / "init.yaml", "--output", tmp_path / "run", "run.max_steps=1", "optim.lr=1e-20"]
    done = launch("gpu", "--cpu", "--num-processes", "2", *words)
    assert done.returncode == 0, done.stderr[-2000:]
    wanted = load_exported(world / "before.safetensors").state["model"]
    found = state_of(tmp_path / "run")["model"]
    assert all(torch.equal(found[n], t) for n, t in wanted.items() if n.endswith(("weight", "bias")))


@pytest.mark.parametrize("other", [0, 1])
def test_another_hash_on_another_process_is_noticed(other: int) -> None:
    """Of two processes: `agree` is the largest value."""
    mine, theirs = "0" * 13 + "1" + "0" * 50, f"{other:064x}" if other else "0" * 13 + "1" + "0" * 50
    values = [int(digest[:14], 16) for digest in (mine, theirs)]
    env: Any = SimpleNamespace(agree=lambda value: max(values) if value >= 0 else max(-v for v in values))
    assert is_same_hash(env, mine) == (mine == theirs)


# ---- another head, another size, another form


def test_a_new_head(env: Environment, world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match=r"head of 10 classes .* train a new head with reset_head"):
        begun(env, world / "init.yaml", num_classes=4)
    words = ["model.init.reset_head=true"]
    found = begun(env, world / "init.yaml", *words, num_classes=4).model.state_dict()
    fresh = begun(env, world / "plain.yaml", num_classes=4).model.state_dict()
    before = state_of(world / "before")["model"]
    head = [name for name in found if found[name].shape != before[name].shape]
    assert len(head) == 2
    for name, tensor in found.items():
        assert torch.equal(tensor, fresh[name] if name in head else before[name]), name


def test_a_linear_probe(env: Environment, world: Path) -> None:
    state = begun(env, world / "init.yaml", "model.init.reset_head=true", "model.trainable=head")
    trained = [name for name, p in state.model.named_parameters() if p.requires_grad]
    before = state_of(world / "before")["model"]
    assert 0 < len(trained) <= 2
    for name, tensor in state.model.state_dict().items():
        assert torch.equal(tensor, before[name]) == (name not in trained), name


def test_what_fits_is_loaded_where_that_is_asked_for(env: Environment, world: Path, tmp_path: Path) -> None:
    before = state_of(world / "before")["model"]
    first = next(name for name in before if name.endswith("weight"))
    part = {name: tensor for name, tensor in before.items() if name != first}
    torch.save(part, tmp_path / "part.pth")
    words = [f"model.init.path={tmp_path}/part.pth"]
    with pytest.raises(ValueError, match="1 missing"):
        begun(env, world / "init.yaml", *words)
    found = begun(env, world / "init.yaml", *words, "model.init.strict=false").model.state_dict()
    assert_equal({n: t for n, t in found.items() if n != first}, part)
    torch.save({"other": torch.zeros(3)}, tmp_path / "none.pth")
    words = [f"model.init.path={tmp_path}/none.pth", "model.init.strict=false"]
    with pytest.raises(ValueError, match="has no tensor that fits small_cnn"):
        begun(env, world / "init.yaml", *words)


def test_positions_are_resampled(env: Environment, world: Path, tmp_path: Path) -> None:
    arguments = {"depth": 1, "embed_dim": 32, "num_heads": 2}
    small = create_model(
        "deit_mini_patch16_224", num_classes=10, image_size=32, mean=[0.5] * 3, std=[0.5] * 3, **arguments
    )
    state = {name.removeprefix("backbone."): t for name, t in small.state_dict().items() if "." in name}
    torch.save(state, tmp_path / "small.pth")
    words = [
        f"model.init.path={tmp_path}/small.pth",
        "model.name=deit_mini_patch16_224",
        "data.image_size=64",
    ]
    words += [f"model.args.{name}={value}" for name, value in arguments.items()]
    found = begun(env, world / "init.yaml", *words).model.state_dict()
    assert found["backbone.pos_embed"].shape == (1, 17, 32)
    assert torch.equal(found["backbone.head.weight"], state["head.weight"])


def test_a_name_of_timms(env: Environment, world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Published weights bring the mean and std that they were trained with; another one would be a silent mistake."""
    state = {
        n.removeprefix("backbone."): t for n, t in state_of(world / "before")["model"].items() if "." in n
    }
    own = load_recipe(world / "plain.yaml").model

    def fetch(mean: tuple[float, ...]) -> Callable[[str], Fetched]:
        defaults = Defaults(
            image_size=16,
            mean=mean,
            std=own.std,
            interpolation="bicubic",
            crop_pct=0.9,
            crop_mode="center",
            num_classes=10,
            license="",
        )
        return lambda name: Fetched("small_cnn", {}, 10, state, defaults)

    monkeypatch.setattr(engine.start, "fetch", fetch(own.mean))
    found = begun(env, world / "init.yaml", "model.init.path=timm:small_cnn").model.state_dict()
    assert_equal(found, state_of(world / "before")["model"])
    monkeypatch.setattr(engine.start, "fetch", fetch((0.5, 0.5, 0.5)))
    with pytest.raises(
        ValueError, match=r"trained with mean \[0.5, 0.5, 0.5\].*set model.mean=\[0.5,0.5,0.5\]"
    ):
        begun(env, world / "init.yaml", "model.init.path=timm:small_cnn")


def test_an_export_names_no_folder_of_this_machine(world: Path) -> None:
    recipe = load_recipe(world / "init.yaml", ["objective.distill={teacher: a/b/teacher.pt}"])
    portable = portable_recipe(recipe)
    assert portable.model.init is not None
    assert portable.objective.distill is not None
    assert portable.model.init.path == "before.safetensors"
    assert portable.objective.distill.teacher == "teacher.pt"
    named = portable_recipe(load_recipe(world / "init.yaml", ["model.init.path=hf-hub:org/name"]))
    assert named.model.init is not None
    assert named.model.init.path == "hf-hub:org/name"


# ---- refusals


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["model.init.path=nowhere.pth"], "model.init.path nowhere.pth does not exist; give a run folder"),
        (["model.init.path=pyproject.toml"], "model.init.path: pyproject.toml"),
        (["model.init.path=tests"], "model.init.path: tests has no checkpoint"),
        (["model.init.path=timm:resnet50x"], "unknown model 'resnet50x'"),
        (["model.init.path=timm:resnet50", "model.init.weights=ema"], "has one kind of weights"),
        (["model.init.weights=ema"], "does not say that it holds averaged weights; use model.init"),
        (["model.init.weights=best"], "model.init.weights is 'best', but must be 'raw' or 'ema'"),
        (["model.init={}"], "model.init.path is missing"),
        (
            ["model.mean=[0.5,0.5,0.5]"],
            "was trained with mean [0.485, 0.456, 0.406], and model.mean is [0.5, 0.5, 0.5]",
        ),
        (["model.name=small_vit"], "does not fit the model"),
        (["model.args={pretrained: true}"], "model.args has pretrained, which is set by other fields"),
    ],
)
def test_refusals(
    words: list[str], says: str, world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(world / "init.yaml", tmp_path / "run", *words) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert says in error
    assert not (tmp_path / "run").exists()


def test_weights_that_are_not_finite(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = load_checkpoint(list_checkpoints(world / "before/checkpoints")[-1])["model"]
    state[next(name for name in state if name.endswith("weight"))].view(-1)[0] = float("nan")
    torch.save(state, tmp_path / "nan.pth")
    assert train(world / "init.yaml", tmp_path / "run", f"model.init.path={tmp_path}/nan.pth") == 2
    assert "holds 1 values that are not finite" in capsys.readouterr().err


# ---- a dry run


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["model.init.path=nowhere"], "model.init.path nowhere does not exist"),
        (["model.init.weights=ema"], "model.init"),
        (["model.mean=[0.1, 0.2, 0.3]"], "was trained with mean"),
        (["model.name=small_vit"], "model.init.path"),
    ],
)
def test_a_dry_run_tries_the_weights_on(
    words: list[str], says: str, world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [
        "train",
        str(world / "init.yaml"),
        "--dry-run",
        "--no-measure",
        "--output",
        str(tmp_path / "run"),
    ]
    assert main(command, CPU, program="p") == 0
    capsys.readouterr()
    assert main([*command, *words], CPU, program="p") == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1
    command[-1] = str(world / "before")  # a run that goes on reads none
    assert main([*command, "model.init.path=nowhere"], CPU, program="p") == 0


def test_without_classes_a_dry_run_reads_the_weights_and_says_so(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["data.train=nowhere", "--dry-run", "--no-measure", "--output", str(tmp_path / "run")]
    assert main(["train", str(world / "init.yaml"), *words], CPU, program="p") == 0
    assert "model.init.path was read; whether it fits is unknown" in capsys.readouterr().err

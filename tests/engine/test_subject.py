"""Weights from elsewhere under `eval` and `attack`: the run's own numbers, and every mistake in one line."""

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

from engine.cli import Launch, main
from engine.foreign import Stated, open_foreign
from engine.subject import open_subject
from models.registry import create_model

CPU = Launch(backend="cpu")
RECIPE = """
data: {{train: {shards}, val: {shards}, image_size: 32, num_workers: 0, flip: 0.0}}
model: {{name: small_cnn, args: {{width: 8}}}}
optim: {{lr: 1e-3, ema: 0.5}}
evals: [{{suite: clean}}]
run: {{epochs: 1, batch_size: 14, tensorboard: false, gallery_images: 0}}
"""


@pytest.fixture(scope="module")
def run(few_digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("subject")
    (root / "r.yaml").write_text(RECIPE.format(shards=few_digits))
    assert main(["train", str(root / "r.yaml"), "--output", str(root / "run")], CPU, program="p") == 0
    return root / "run"


@pytest.fixture(scope="module")
def checkpoint(run: Path) -> dict[str, Any]:
    (path,) = sorted((run / "checkpoints").glob("step-*.pt"))[-1:]
    content: dict[str, Any] = torch.load(path, weights_only=True)
    return content


def timm_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {n.removeprefix("backbone."): t for n, t in state.items() if n.startswith("backbone.")}


@pytest.fixture
def measured(
    few_digits: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> Callable[..., dict[str, Any]]:
    """measured(file, *words): the one result of eval."""

    def call(path: Path, *words: str) -> dict[str, Any]:
        result = tmp_path / "result.json"
        line = ["eval", str(path), *words, "--data", str(few_digits), "--output", str(tmp_path / "out")]
        assert main([*line, "--json", str(result)], CPU, program="p") == 0, capfd.readouterr().err
        (found,) = json.loads(result.read_text())["results"]
        return dict(found)

    return call


def test_a_foreign_file_gives_the_runs_numbers(
    run: Path,
    checkpoint: dict[str, Any],
    measured: Callable[..., dict[str, Any]],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """The same weights, so the same id: raw and averaged, without and with ours in the names."""
    words = ("--model", "small_cnn", "model.args.width=8")
    expected = {
        w: json.loads((run / f"results/clean{s}.json").read_text()) for w, s in (("raw", ""), ("ema", "-ema"))
    }
    foreign = {"state_dict": timm_names(checkpoint["model"]), "state_dict_ema": timm_names(checkpoint["ema"])}
    torch.save(
        {key: {f"module.{n}": t for n, t in s.items()} for key, s in foreign.items()}, tmp_path / "f.pth"
    )
    for weights in ("raw", "ema"):
        found = measured(tmp_path / "f.pth", *words, "--weights", weights)
        assert found["evaluation"] == expected[weights]["evaluation"]
        assert found["num_correct"] == expected[weights]["num_correct"]
        assert (found["weights"], found["recipe"]) == (weights, "")
    assert "prefix module. removed; the file has no mean and std" in capfd.readouterr().err
    torch.save(checkpoint, tmp_path / "alone.pt")
    assert measured(tmp_path / "alone.pt", *words)["evaluation"] == expected["raw"]["evaluation"]
    found = measured(tmp_path / "alone.pt", *words, "data.crop_pct=1.0")
    assert found["contract"] == "default/center1-bicubic-32px"


def test_a_converted_file_names_its_model(
    checkpoint: dict[str, Any], measured: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    path = tmp_path / "c.safetensors"
    metadata = {"model": "small_cnn", "weights": "ema"}
    safetensors.torch.save_file(timm_names(checkpoint["ema"]), path, metadata)
    found = measured(path, "model.args.width=8")
    assert (found["weights"], found["name"]) == ("ema", "clean")


def test_what_a_model_sees_is_its_own(tmp_path: Path) -> None:
    """Normalisation, size and resize by timm's default configuration; words of the user over it."""
    half = (0.5, 0.5, 0.5)
    model = create_model("resnet18", num_classes=7, image_size=32, mean=half, std=half)
    torch.save(model.backbone.state_dict(), tmp_path / "w.pth")
    found = open_foreign(tmp_path / "w.pth", Stated(model="resnet18.tv_in1k"), use_ema=False)
    data = found.recipe.data
    assert (found.num_classes, data.image_size, data.interpolation) == (7, 224, "bilinear")
    assert (data.crop_pct, data.eval_resize) == (0.875, "crop")
    assert found.recipe.model.mean == (0.485, 0.456, 0.406)
    stated = Stated(
        model="resnet18", image_size=64, words=["model.mean=[0.5,0.5,0.5]", "data.eval_resize=none"]
    )
    found = open_foreign(tmp_path / "w.pth", stated, use_ema=False)
    assert found.recipe.model.mean == (0.5, 0.5, 0.5)
    assert (found.recipe.data.image_size, found.recipe.data.eval_resize) == (64, "none")
    subject = open_subject(tmp_path / "w.pth", weights="raw", stated=stated)
    assert (subject.is_foreign, subject.is_run, subject.recipe_hash, len(subject.classes)) == (
        True,
        False,
        "",
        7,
    )


class Bomb:
    """Makes a folder when it is unpickled without restriction."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.path),)


def spoilt(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {**state, "head.bias": torch.full_like(state["head.bias"], float("nan"))}


def test_mistakes_are_one_line_and_exit_2(
    run: Path,
    checkpoint: dict[str, Any],
    few_digits: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    good = timm_names(checkpoint["model"])
    files = {
        "good": good,
        "bomb": {"model": good, "x": Bomb(tmp_path / "it ran")},
        "nan": spoilt(good),
        "few": {**good, "head.weight": torch.ones(7, 32), "head.bias": torch.ones(7)},
    }
    for name, content in files.items():
        torch.save(content, tmp_path / f"{name}.pth")
    (tmp_path / "page.pth").write_text("<!doctype html>Sign in")
    (tmp_path / "cut.pth").write_bytes((tmp_path / "good.pth").read_bytes()[:-900])
    out = tmp_path / "out"
    model, place = ("--model", "small_cnn", "model.args.width=8"), ("--output", str(out))
    cases = [
        (("page.pth", *model, *place), "page.pth is an HTML page, not weights"),
        (("cut.pth", *model, *place), "cut.pth is truncated or damaged"),
        (("bomb.pth", *model, *place), r"holds Python objects \(posix\.mkdir\).*`weights convert bomb\.pth"),
        (("nan.pth", *model, *place), r"holds 10 values that are not finite \(head\.bias\)"),
        (("few.pth", *model, *place), "has 10 classes and the model has 7; the model would be misjudged"),
        (("good.pth", *model, *place, "--num-classes", "7"), "has 10 classes and the model has 7"),
        (("good.pth", *model), "is no run with a place for results; give --output DIR"),
        (("good.pth", *place), "does not say which model it belongs to.*name it: --model NAME"),
        (("good.pth", *place, "--model", "small_cnnn"), "unknown model 'small_cnnn'.*nearest: small_cnn"),
        (("good.pth", *place, "--model", "small_cnn"), r"does not fit the model: \d+ of another shape"),
        (
            ("good.pth", *place, "--model", "resnet18"),
            r"has no head under the names of resnet18; is it the right",
        ),
        (("good.pth", *model, *place, "optim.lr=1"), "optim.lr=1 cannot be set for weights from elsewhere"),
        (("good.pth", *model, *place, "data.crop_pt=1"), "data.crop_pt.*crop_pct"),
        (("absent.pth", *model, *place), r"absent\.pth does not exist"),
        (("absent.pth", *place), r"absent\.pth is no run folder.*any weights with --model NAME"),
        ((str(run), *model, *place), "is a run, whose recipe says all about its model; drop --model"),
        (("timm:resnet18", *model, *place), "says which model it is; drop --model small_cnn"),
        (("timm:resnet1888", *place), "unknown model 'resnet1888'"),
    ]
    for (path, *words), says in cases:
        path = path if "/" in path or ":" in path else str(tmp_path / path)
        capfd.readouterr()
        assert main(["eval", path, *words, "--data", str(few_digits)], CPU, program="p") == 2, path
        stdout, err = capfd.readouterr()
        assert (stdout, len(err.splitlines())) == ("", 1), err
        assert err.startswith("error: ")
        assert re.search(says, err), err
        assert not out.exists() or not list(out.iterdir())
    assert not (tmp_path / "it ran").exists()


def test_an_export_needs_no_model(run: Path, few_digits: Path, tmp_path: Path, capfd: Any) -> None:
    path = tmp_path / "e.safetensors"
    assert main(["weights", "export", str(run), str(path)], CPU, program="p") == 0
    words = ["eval", str(path), "--model", "small_cnn", "--data", str(few_digits)]
    capfd.readouterr()
    assert main(words, CPU, program="p") == 2
    assert "is an export and says all about its model; drop --model" in capfd.readouterr().err


def test_attack_on_a_foreign_file(
    checkpoint: dict[str, Any], few_digits: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    torch.save(timm_names(checkpoint["model"]), tmp_path / "w.pth")
    words = [
        "attack",
        str(tmp_path / "w.pth"),
        "model.args.width=8",
        "--model",
        "small_cnn",
        "--eps",
        "8/255",
    ]
    words += [
        "--steps",
        "2",
        "--num-images",
        "20",
        "--data",
        str(few_digits),
        "--output",
        str(tmp_path / "out"),
    ]
    assert main(words, CPU, program="p") == 0, capfd.readouterr().err
    assert (tmp_path / "out/results/pgd2_linf8.json").is_file()

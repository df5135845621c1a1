"""Suites of an evaluation, the average beside the live weights, the best checkpoint, and the gallery's pictures."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

from bits.checkpoint import keep_best, list_checkpoints, load_checkpoint, read_meta, save_checkpoint
from bits.environment import open_environment
from data.index import load_index
from data.shards import make
from data.suite import own_suite
from engine import suites
from engine.build import build_model
from engine.cli import Launch, main
from engine.folder import RunFolder
from engine.ledger import read_ledger
from engine.log import read_log
from engine.recipe import load_recipe
from engine.sources import Access
from engine.subject import find_weights
from engine.suite_places import locate
from engine.suites import open_eval_set
from engine.verdict import weights_hash

CPU = Launch(backend="cpu")
RECIPE = """
data:
  train: {root}/shards/train
  val: {root}/shards/val
  suites: {root}/shards
  image_size: 32
  num_workers: 0
  eval_resize: squash
model: {{name: small_cnn, mean: [0.5, 0.5, 0.5], std: [0.5, 0.5, 0.5], args: {{width: 8}}}}
optim: {{lr: 2e-3, ema: 0.9}}
run: {{epochs: 3, batch_size: 10, report_every: 50, keep_checkpoints: 1, best: clean-ema, gallery_images: 3}}
evals:
  - {{suite: clean, every: 1}}
  - {{suite: dark, weights: raw}}
  - {{attack: pgd, norm: linf, eps: 16/255, step_size: 8/255, steps: 2, weights: ema, num_images: 20}}
"""


def run(*words: str | Path) -> int:
    return main([str(word) for word in words], CPU, program="launch_gpu.py")


@pytest.fixture(scope="module")
def world(few_digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """shards/ with train, val and a suite `dark` (the images of val under the same names), and a trained run."""
    root = tmp_path_factory.mktemp("suites")
    shutil.copytree(few_digits, root / "shards/train")
    images = few_digits.parent / "images"
    make(images, root / "shards/val", split="val", seed=1)
    make(images, root / "shards/dark", split="dark", seed=2)
    (root / "recipe.yaml").write_text(RECIPE.format(root=root))
    assert run("train", root / "recipe.yaml", "--output", root / "run") == 0
    return root


def results(folder: Path) -> dict[str, dict[str, object]]:
    return {path.stem: json.loads(path.read_text()) for path in (folder / "results").iterdir()}


def test_every_entry_is_judged_with_the_weights_it_names(world: Path) -> None:
    found = results(world / "run")
    last = {name for name in found if "-epoch" not in name}
    assert last == {"clean", "clean-ema", "dark", "pgd2_linf16-ema"}
    assert {f"{w}-epoch{n}" for w in ("clean", "clean-ema") for n in (1, 2, 3)} <= set(found)
    state = find_weights(world / "run")[1]
    assert found["clean"]["weights_sha256"] == weights_hash(state["model"])
    assert found["clean-ema"]["weights_sha256"] == weights_hash(state["ema"])
    assert found["clean"]["evaluation"] != found["clean-ema"]["evaluation"]
    assert str(found["dark"]["suite"]).startswith("dark@")
    assert found["dark"]["num_images"] == 70


def test_best_is_the_epoch_with_the_best_average(world: Path) -> None:
    found = results(world / "run")
    scores = [float(str(found[f"clean-ema-epoch{epoch}"]["top1"])) for epoch in (1, 2, 3)]
    best = read_meta(world / "run/checkpoints/best.pt")
    assert best.facts["value"] == max(scores)
    assert best.step == 7 * (1 + scores.index(max(scores)))
    assert best.facts["metric"] == "clean-ema"
    assert (
        len(list_checkpoints(world / "run/checkpoints")) == 1
    )  # it neither counts as one of the last nor is pruned
    state = load_checkpoint(best.path)
    assert weights_hash(state["ema"]) == found[f"clean-ema-epoch{best.step // 7}"]["weights_sha256"]


def test_eval_and_attack_take_the_best_checkpoint_and_the_average(world: Path, tmp_path: Path) -> None:
    words = ("--weights", "ema", "--output", tmp_path / "out")
    assert run("eval", world / "run/checkpoints/best.pt", "--suite", "all", *words) == 0
    assert run("attack", world / "run", "--eps", "8/255", "--steps", "1", *words) == 0
    found = results(tmp_path / "out")
    assert set(found) == {"clean-ema", "dark-ema", "pgd1_linf8-ema"}
    best = load_checkpoint(world / "run/checkpoints/best.pt")
    assert found["dark-ema"]["weights_sha256"] == weights_hash(best["ema"])


def test_training_from_best_goes_on(world: Path, tmp_path: Path) -> None:
    """--resume best.pt ends where the whole run ended, to the bit."""
    path = world / "run/checkpoints/best.pt"
    assert run("train", world / "recipe.yaml", "--resume", path, "--output", tmp_path / "again") == 0
    whole, again = (find_weights(folder)[1] for folder in (world / "run", tmp_path / "again"))
    assert weights_hash(whole["model"]) == weights_hash(again["model"])
    assert weights_hash(whole["ema"]) == weights_hash(again["ema"])


def test_pictures_are_the_judged_ones(world: Path) -> None:
    folder, found = RunFolder(world / "run"), results(world / "run")
    names = {}
    for stem in ("clean", "clean-ema", "dark", "pgd2_linf16-ema"):
        path = folder.gallery / f"{stem}.safetensors"
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata()
        assert metadata["evaluation"] == found[stem]["evaluation"]
        names[stem] = json.loads(metadata["names"])
        assert load_file(path)["image"].shape == (3, 3, 32, 32)
    assert names["clean"] == names["dark"]  # the same scans, though the shards were shuffled otherwise
    pictures = load_file(folder.gallery / "pgd2_linf16-ema.safetensors")
    delta = pictures["attacked"] - pictures["image"].float() / 255
    assert 0 < float(delta.abs().max()) <= 16 / 255 + 1e-6
    index = load_index(world / "shards/val")
    place = {index.name(key): key for key in range(index.num_samples)}
    clean = load_file(folder.gallery / "clean.safetensors")["image"]
    rows = read_ledger(folder.ledger).rows(str(found["clean"]["evaluation"]), "clean")
    assert {name: place[name] for name in names["clean"]} == {
        row.key: row.position for row in rows if row.key in names["clean"]
    }
    assert clean.dtype == torch.uint8


def test_attacked_pictures_give_the_ledgers_predictions(world: Path) -> None:
    """The picture that is shown is the image that was judged."""
    folder = RunFolder(world / "run")
    result = results(folder.root)["pgd2_linf16-ema"]
    with safe_open(folder.gallery / "pgd2_linf16-ema.safetensors", framework="pt") as file:
        names, attacked = json.loads(file.metadata()["names"]), file.get_tensor("attacked")
    env = open_environment("cpu")
    model = build_model(load_recipe(folder.recipe), env, num_classes=10, layout=None).eval()
    model.load_state_dict(find_weights(folder.root)[1]["ema"])
    with torch.no_grad():
        prediction = model(attacked).argmax(1).tolist()
    rows = {row.key: row for row in read_ledger(folder.ledger).rows(str(result["evaluation"]), "pgd2_linf16")}
    assert [rows[name].prediction for name in names] == prediction


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["eval", "RUN", "--suite", "night"], "no shards in .*/shards/night; .* has the suites"),
        (["eval", "RUN", "--suite", "all", "--data", "NONE"], "--suite all: no suite in"),
        (["eval", "RUN", "--suite", "clean,dark", "--data", "ROOT/shards/val"], "give the folder above it"),
        (["eval", "RUN", "--suite", "../x"], "--suite is '../x', but"),
        (
            ["train", "RECIPE", "run.best=dark"],
            "run.best is 'dark', but the evaluations with `every` are: clean",
        ),
        (["train", "RECIPE", "optim.ema=null", "run.best=null"], "weights is ema but optim.ema is null"),
        (["train", "RECIPE", "data.suites=null"], "suite is dark, but neither its data nor data.suites"),
        (["train", "RECIPE", "data.suites=NONE", "--output", "NONE/out"], "suite dark: .* does not exist"),
    ],
)
def test_mistakes_are_one_line(
    words: list[str], says: str, world: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    places = {"RUN": world / "run", "RECIPE": world / "recipe.yaml", "ROOT": world, "NONE": tmp_path / "none"}
    for name, place in places.items():
        words = [word.replace(name, str(place)) for word in words]
    capfd.readouterr()
    assert run(*words) == 2
    line = capfd.readouterr().err
    assert len(line.splitlines()) == 1
    assert re.search(says, line), line


def test_a_run_without_an_average_has_none_to_evaluate(
    world: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    recipe = world / "recipe.yaml"
    words = ("optim.ema=null", "run.best=null", "evals=[]", "run.max_steps=1", "--output", tmp_path / "run")
    assert run("train", recipe, *words) == 0
    assert run("eval", tmp_path / "run", "--weights", "ema") == 2
    assert "keeps no average of its weights" in capfd.readouterr().err


def test_a_suite_with_other_classes_is_refused(
    world: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for name in ("a", "b"):
        (tmp_path / "images" / name).mkdir(parents=True)
        Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(tmp_path / "images" / name / "1.png")
    make(tmp_path / "images", tmp_path / "other", split="other")
    assert run("eval", world / "run", "--suite", "other", "--data", tmp_path) == 2
    assert "has 2 classes and the training shards have 10" in capfd.readouterr().err


def test_a_prescribed_resize_replaces_the_recipes(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = load_recipe(world / "recipe.yaml")
    entry = recipe.evals[1]
    assert open_eval_set(recipe, entry, Access()).transform.mode == "squash"
    manifest = replace(own_suite("dark"), resize="crop", interpolation="bilinear")
    monkeypatch.setattr(suites, "manifest_of", lambda name: manifest)
    transform = open_eval_set(recipe, entry, Access()).transform
    assert (transform.mode, transform.interpolation) == ("center", "bilinear")


def test_places_of_suites(world: Path) -> None:
    recipe, shards = load_recipe(world / "recipe.yaml"), world / "shards"
    assert locate(["clean"], recipe, None) == [{"suite": "clean"}]
    assert locate(["clean"], recipe, shards / "val") == [{"suite": "clean", "data": str(shards / "val")}]
    assert locate(["clean", "dark"], recipe, shards) == [
        {"suite": "clean", "data": str(shards / "val")},
        {"suite": "dark", "data": str(shards / "dark")},
    ]
    assert [entry["suite"] for entry in locate(["all"], recipe, shards)] == ["clean", "dark"]


def test_keep_best_keeps_the_first_of_equals_and_mends_a_torn_one(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        save_checkpoint(tmp_path, step, {"x": torch.tensor(step)}, facts={})
    assert keep_best(tmp_path, 1, metric="clean", value=0.5)
    assert not keep_best(tmp_path, 2, metric="clean", value=0.5)
    assert int(load_checkpoint(tmp_path / "best.pt")["x"]) == 1
    (tmp_path / "best.pt").write_bytes(b"torn")
    assert keep_best(tmp_path, 2, metric="clean", value=0.5)
    assert keep_best(tmp_path, 3, metric="other", value=0.1)  # the user asked for another metric
    assert int(load_checkpoint(tmp_path / "best.pt")["x"]) == 3
    assert read_meta(tmp_path / "best.pt").facts == {"metric": "other", "value": 0.1}


def test_an_exported_file_is_judged_like_its_run(world: Path, tmp_path: Path) -> None:
    """Equal weights, suite, contract and seed: the same evaluation id, so the same verdicts."""
    file = tmp_path / "model.safetensors"
    assert run("weights", "export", world / "run", file, "--weights", "ema") == 0
    assert run("eval", file, "--suite", "clean", "--data", world / "shards") == 0
    (result,) = results(tmp_path / "model").values()
    assert result == results(world / "run")["clean-ema"]
    assert run("attack", file, "--eps", "16/255", "--steps", "2", "--data", world / "shards/val") == 0
    assert set(results(tmp_path / "model")) == {"clean-ema", "pgd2_linf16-ema"}


def test_a_second_result_of_a_name_is_logged_as_its_file_is_called(world: Path, tmp_path: Path) -> None:
    for shards in ("val", "dark"):
        words = ("--suite", "clean", "--data", world / "shards" / shards, "--output", tmp_path / "out")
        assert run("eval", world / "run", *words) == 0
    logged = [str(entry["name"]) for entry in read_log(tmp_path / "out/log.jsonl")]
    assert logged[0] == "clean"
    assert set(logged) == set(results(tmp_path / "out"))
    assert len(set(logged)) == 2


def test_an_exported_file_needs_images_and_has_one_kind_of_weights(
    world: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "raw.safetensors"
    assert run("weights", "export", world / "run", file) == 0
    capfd.readouterr()
    assert run("eval", file) == 2
    assert "names no data.val; give --data FOLDER" in capfd.readouterr().err
    assert run("eval", file, "--weights", "ema", "--data", world / "shards/val") == 2
    assert "holds raw weights; drop --weights" in capfd.readouterr().err


def test_an_exported_files_results_never_land_in_a_run(
    world: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """run.safetensors beside a run folder `run`: its default output is taken."""
    shutil.copytree(world / "run", tmp_path / "run")
    assert run("weights", "export", tmp_path / "run", tmp_path / "run.safetensors") == 0
    capfd.readouterr()
    assert run("eval", tmp_path / "run.safetensors", "--data", world / "shards/val") == 2
    assert "holds another run; choose another --output" in capfd.readouterr().err

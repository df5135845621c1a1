"""`weights info` and `weights export`: true facts, a file that needs no run folder, a card with the run's numbers."""

import hashlib
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from bits.checkpoint import latest_checkpoint
from engine.card import card_path, constructor_arguments, model_card
from engine.cli import Launch, main
from engine.exported import describe_export, load_exported, portable_recipe
from engine.ledger import read_ledger, wilson_interval
from engine.recipe import Recipe, load_recipe, parse_recipe
from engine.verdict import weights_hash
from models.registry import create_model
from models.weight_export import read_exported, to_safetensors
from models.weight_facts import describe_state

RECIPE = """
name: little
data:
  {{train: {shards}, val: {shards}, image_size: 32, num_workers: 0, flip: 0.0, eval_resize: squash}}
model:
  {{name: small_vit, mean: [0.4, 0.5, 0.6], std: [0.2, 0.25, 0.3], args: {{patch_size: 8, depth: 1, embed_dim: 24}}}}
optim: {{lr: 1e-3, ema: 0.5}}
objective: {{kind: adversarial, attack: {{norm: linf, eps: 8/255, step_size: 8/255, steps: 1}}}}
evals:
  - {{suite: clean, weights: all}}
  - {{attack: pgd, norm: linf, eps: 4/255, step_size: 1/255, steps: 2, num_images: 30, weights: all}}
run: {{epochs: 2, batch_size: 16, tensorboard: false, gallery_images: 0, best: clean}}
"""
CPU = Launch(backend="cpu")
Refusal = Callable[..., str]


@pytest.fixture(scope="module")
def run(few_digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 8 updates with raw and averaged weights, evaluated; best.pt of its first epoch or its second."""
    root = tmp_path_factory.mktemp("weights")
    text = RECIPE.format(shards=few_digits).replace("clean, weights: all", "clean, weights: all, every: 1")
    (root / "little.yaml").write_text(text)
    assert main(["train", str(root / "little.yaml"), "--output", str(root / "run")], CPU, program="p") == 0
    return root / "run"


@pytest.fixture
def done(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> Callable[..., tuple[str, Any]]:
    """done(*words) runs `weights` to success; stdout, and what --json wrote."""

    def call(*words: str | Path) -> tuple[str, Any]:
        result = tmp_path / "result.json"
        capfd.readouterr()
        assert main(["weights", *map(str, words), "--json", str(result)], CPU, program="p") == 0
        out, err = capfd.readouterr()
        assert err == ""
        return out, json.loads(result.read_text())

    return call


@pytest.fixture
def refused(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> Refusal:
    """One line, exit code 2, nothing written."""

    def call(*words: str | Path, says: str) -> str:
        before = sorted(tmp_path.rglob("*"))
        capfd.readouterr()
        assert main(["weights", *map(str, words)], CPU, program="launch_gpu.py") == 2
        out, err = capfd.readouterr()
        assert (out, len(err.splitlines())) == ("", 1), err
        assert err.startswith("error: ")
        assert re.search(says, err), err
        assert sorted(tmp_path.rglob("*")) == before
        return err

    return call


def newest(run: Path) -> tuple[Path, dict[str, Any]]:
    found = latest_checkpoint(run / "checkpoints")
    assert found is not None
    return found[0].path, found[1]


# ---- info


def test_info_of_a_checkpoint(run: Path, done: Callable[..., tuple[str, Any]]) -> None:
    path, state = newest(run)
    out, facts = done("info", path)
    values = state["model"].values()
    assert facts["container"] == "torch zip, checkpoint of this toolkit"
    assert facts["bytes"] == path.stat().st_size
    assert facts["num_tensors"] == len(values)
    assert facts["num_parameters"] == sum(t.numel() for t in values) - 6
    assert facts["weights_sha256"] == weights_hash(state["model"])
    assert (facts["step"], facts["has_ema"], facts["matches_json"]) == (8, True, True)
    assert (facts["model"], facts["classes"]) == ("small_vit", [str(digit) for digit in range(10)])
    assert facts["contents"]["ema"] == len(values)
    assert facts["num_nonfinite"] == 0
    assert re.search(r"^sha256 +[0-9a-f]{64}$", out, re.M)
    assert re.search(r"^model +small_vit$", out, re.M)


def test_info_of_an_altered_checkpoint_by_itself(
    run: Path, done: Callable[..., tuple[str, Any]], tmp_path: Path
) -> None:
    """Another file's facts beside it do not pass for its own; without any it still has its tensors."""
    path, state = newest(run)
    state["model"]["backbone.head.bias"][:3] = float("nan")
    torch.save(state, tmp_path / path.name)
    out, facts = done("info", tmp_path / path.name)
    assert facts["num_nonfinite"] == 3
    assert "is missing beside it" in facts["note"]
    shutil.copy(path.with_suffix(".json"), tmp_path)
    out, facts = done("info", tmp_path / path.name)
    assert facts["matches_json"] is False
    assert re.search(r"^matches_json +no$", out, re.M)


def test_info_of_foreign_files(done: Callable[..., tuple[str, Any]], tmp_path: Path) -> None:
    state = {f"layer{number}.weight": torch.ones(2, 2) for number in range(30)}
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "a.pth")
    out, facts = done("info", tmp_path / "a.pth")
    assert facts["container"] == "torch zip, {'state_dict': ...}"
    assert (facts["first"][0], facts["last"][-1]) == ("layer0.weight", "layer29.weight")
    assert "model" not in facts
    safetensors.torch.save_file(state, tmp_path / "a.safetensors", {"note": "x" * 500})
    out, facts = done("info", tmp_path / "a.safetensors")
    assert facts["metadata"] == {"note": "x" * 500}
    assert max(map(len, out.splitlines())) < 200, "long values are shortened for people"


def test_info_refuses(refused: Refusal, tmp_path: Path, run: Path) -> None:
    (tmp_path / "empty.pth").touch()
    (tmp_path / "page.pth").write_text("<!doctype html><title>404</title>")
    path, _ = newest(run)
    (tmp_path / "cut.pt").write_bytes(path.read_bytes()[:-2000])
    refused("info", tmp_path / "empty.pth", says=r"empty\.pth is empty \(0 bytes\)")
    refused("info", tmp_path / "page.pth", says="is an HTML page, not weights")
    refused("info", tmp_path / "cut.pt", says="is truncated or damaged")
    refused("info", run, says="is a folder; give a weight file")
    refused("info", tmp_path / "absent.pth", says=r"absent\.pth does not exist")
    refused("info", says="required: PATH")
    refused("info", path, path, says="weights info takes FILE; 2 paths were given")
    refused("inform", path, says="invalid choice: 'inform'")


# ---- export


@pytest.mark.parametrize("weights", ["raw", "ema"])
def test_export(run: Path, done: Callable[..., tuple[str, Any]], tmp_path: Path, weights: str) -> None:
    path = tmp_path / "little.safetensors"
    out, result = done("export", run, path, "--weights", weights)
    checkpoint, expected = newest(run)
    expected = expected["model" if weights == "raw" else "ema"]
    state, metadata = read_exported(path)
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], expected[name]) for name in expected)
    assert {"mean", "std", "backbone.head.weight"} <= state.keys()
    recipe = load_recipe(run / "recipe.yaml")
    facts = json.loads(checkpoint.with_suffix(".json").read_text())["facts"]
    said = {
        name: metadata[name]
        for name in ("model", "num_classes", "image_size", "step", "weights", "recipe_hash")
    }
    assert said == {
        "model": "small_vit",
        "num_classes": "10",
        "image_size": "32",
        "step": "8",
        "weights": weights,
        "recipe_hash": recipe.hash,
    }
    assert json.loads(metadata["mean"]) == [0.4, 0.5, 0.6]
    assert json.loads(metadata["classes"]) == facts["classes"]
    assert metadata["dataset_id"] == facts["dataset_id"]
    assert metadata["weights_sha256"] == weights_hash(expected)
    assert str(run.parent) not in path.read_bytes().decode("latin-1"), "no path of this machine"
    assert result["output"] == str(path)
    assert str(path) in out
    assert str(card_path(path)) in out
    assert not list(tmp_path.glob(".*")), "no partial file stays"


def test_export_of_a_checkpoint_and_of_best(
    run: Path, done: Callable[..., tuple[str, Any]], tmp_path: Path
) -> None:
    best = torch.load(run / "checkpoints" / "best.pt", weights_only=True)
    done("export", run / "checkpoints" / "best.pt", tmp_path / "best.safetensors")
    state, metadata = read_exported(tmp_path / "best.safetensors")
    assert weights_hash(state) == weights_hash(best["model"])
    assert metadata["step"] == str(best["step"])
    assert metadata["dataset_id"] != ""


def test_an_export_loads_as_a_model(run: Path, done: Callable[..., tuple[str, Any]], tmp_path: Path) -> None:
    path = tmp_path / "little.safetensors"
    done("export", run, path, "--weights", "ema")
    found = load_exported(path)
    assert (found.weights, found.step, len(found.classes)) == ("ema", 8, 10)
    assert found.recipe.hash == load_recipe(run / "recipe.yaml").hash
    assert (found.recipe.data.val, found.recipe.evals, found.recipe.run.output) == (None, (), None)
    recipe = found.recipe
    model = create_model(
        recipe.model.name,
        num_classes=10,
        image_size=recipe.data.image_size,
        mean=recipe.model.mean,
        std=recipe.model.std,
        **recipe.model.args,
    )
    model.load_state_dict(found.state["ema"])


def test_eval_of_an_export_gives_the_runs_numbers(
    run: Path, few_digits: Path, done: Callable[..., tuple[str, Any]], tmp_path: Path, capfd: Any
) -> None:
    path, result = tmp_path / "little.safetensors", tmp_path / "eval.json"
    done("export", run, path, "--weights", "ema")
    words = ["eval", str(path), "--data", str(few_digits), "--json", str(result)]
    assert main(words, CPU, program="p") == 0, capfd.readouterr().err
    (found,) = json.loads(result.read_text())["results"]
    expected = json.loads((run / "results" / "clean-ema.json").read_text())
    assert found["evaluation"] == expected["evaluation"]
    assert found["num_correct"] == expected["num_correct"]


def test_an_altered_export_is_refused(
    run: Path, done: Callable[..., tuple[str, Any]], tmp_path: Path
) -> None:
    path = tmp_path / "little.safetensors"
    done("export", run, path)
    state, metadata = read_exported(path)
    state["backbone.head.bias"] += 1
    path.write_bytes(to_safetensors(state, metadata))
    with pytest.raises(ValueError, match="its tensors are not those that were exported; export it again"):
        load_exported(path)
    state["backbone.head.bias"] -= 1
    for name, value, says in (
        ("recipe", "[]", "no usable 'recipe' or 'classes'"),
        ("recipe", "{}", "recipe: data is missing"),
        ("classes", "{", "no usable 'classes'"),
    ):
        facts = metadata | {"weights_sha256": weights_hash(state), name: value}
        path.write_bytes(to_safetensors(state, facts))
        with pytest.raises(ValueError, match=says) as caught:
            load_exported(path)
        assert "\n" not in str(caught.value)


def test_export_refuses(run: Path, refused: Refusal, tmp_path: Path) -> None:
    good = tmp_path / "a.safetensors"
    refused("export", run, tmp_path / "a.pth", says=r"is a \.safetensors file; name it a\.safetensors")
    refused("export", run, tmp_path / "a", says=r"name it a\.safetensors")
    refused("export", run, tmp_path / "no" / "a.safetensors", says="no is no folder; make it")
    refused("export", run, says=r"weights export takes RUN DST\.safetensors; 1 paths were given")
    refused("export", tmp_path, good, says="is no run folder")
    refused("export", tmp_path / "absent", good, says="is no run folder")
    refused("export", run / "checkpoints" / "step-00000099.pt", good, says=r"step-00000099\.json is missing")
    refused("export", tmp_path / "b.safetensors", good, says="is an export already; give a run folder")
    refused("export", run, good, "--weights", "best", says="invalid choice: 'best'")
    (tmp_path / "dir.safetensors").mkdir()
    refused("export", run, tmp_path / "dir.safetensors", says="is a folder; give another path")


def test_nothing_is_overwritten_without_force(
    run: Path, refused: Refusal, done: Callable[..., tuple[str, Any]], tmp_path: Path
) -> None:
    path, card = tmp_path / "a.safetensors", tmp_path / "a.md"
    card.write_text("mine")
    refused("export", run, path, says=r"a\.md exists already; give another path, or --force to replace it")
    assert card.read_text() == "mine"
    done("export", run, path, "--force")
    refused("export", run, path, says=r"a\.safetensors exists already; .*--force")
    first = path.read_bytes()
    done("export", run, path, "--force")
    assert path.read_bytes() == first, "the same export is the same bytes"


def test_no_average_to_export(run: Path, refused: Refusal, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    path, state = newest(copy)
    del state["ema"]
    torch.save(state, path)
    meta = json.loads(path.with_suffix(".json").read_text())
    data = path.read_bytes()
    meta |= {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
    path.with_suffix(".json").write_text(json.dumps(meta))
    says = r"keeps no average of its weights \(optim\.ema was off\); use --weights raw"
    refused("export", copy, tmp_path / "a.safetensors", "--weights", "ema", says=says)


# ---- the card


def exported_card(run: Path, tmp_path: Path, weights: str) -> str:
    path = tmp_path / "little.safetensors"
    assert main(["weights", "export", str(run), str(path), "--weights", weights], CPU, program="p") == 0
    return card_path(path).read_text()


@pytest.mark.parametrize("weights", ["raw", "ema"])
def test_the_cards_table_is_the_ledger(run: Path, tmp_path: Path, weights: str) -> None:
    """Every number from the rows of exactly these weights; results of other weights or steps are left out."""
    card = exported_card(run, tmp_path, weights)
    rows = re.findall(
        r"^\| (\S+) \| (.*?) \| \S+ \| ([\d.]+) % \| ([\d.]+) to ([\d.]+) % \| (\d+) \|$", card, re.M
    )
    suffix = "" if weights == "raw" else "-ema"
    names = [row[0] for row in rows]
    assert {f"clean{suffix}", f"pgd2_linf4{suffix}"} == set(names)
    for name, what, share, low, high, n in rows:
        result = json.loads((run / "results" / f"{name}.json").read_text())
        verdicts = list(read_ledger(run / "ledger").rows(result["evaluation"]))
        wrong = {row.key for row in verdicts if not row.correct}
        keys = {row.key for row in verdicts}
        bounds = wilson_interval(len(keys) - len(wrong), len(keys))
        assert int(n) == len(keys)
        assert share == f"{100 * (len(keys) - len(wrong)) / len(keys):.2f}"
        assert (low, high) == tuple(f"{100 * bound:.2f}" for bound in bounds)
        assert what == (
            "suite clean" if "clean" in name else "PGD-2, linf, eps 4/255, step 1/255, random start"
        )


def test_the_card_says_what_matters(run: Path, tmp_path: Path) -> None:
    card = exported_card(run, tmp_path, "raw")
    state, metadata = read_exported(tmp_path / "little.safetensors")
    front, _, body = card.removeprefix("---\n").partition("\n---\n")
    assert "license: unknown # yours to choose" in front
    assert "- adversarial-robustness" in front
    assert body.startswith("\n# little\n")
    parameters = sum(tensor.numel() for tensor in state.values()) - 6
    for words in (
        f"{parameters:,} parameters, 10 classes",
        "adversarial: PGD-1, linf, eps 8/255",
        "both sides to 32 x 32",
        "mean [0.4, 0.5, 0.6]",
        "PGD accuracies are upper bounds",
        metadata["weights_sha256"],
        metadata["recipe_hash"],
        metadata["dataset_id"],
        "python launch_gpu.py eval little.safetensors --suite clean --data SHARDS",
    ):
        assert words in body, words
    assert str(run.parent) not in card


def test_the_cards_python_gives_the_same_logits(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = exported_card(run, tmp_path, "raw")
    (code,) = re.findall(r"^```python\n(.*?)^```$", card, re.M | re.S)
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    names: dict[str, Any] = {}
    exec(code, names)
    recipe = load_recipe(run / "recipe.yaml")
    model = create_model(
        recipe.model.name,
        num_classes=10,
        image_size=32,
        mean=recipe.model.mean,
        std=recipe.model.std,
        **recipe.model.args,
    )
    model.load_state_dict(newest(run)[1]["model"])
    assert torch.equal(names["logits"], model.eval()(names["image"]))


def test_a_card_without_results(run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    shutil.rmtree(copy / "results")
    assert "These weights were not evaluated before they were exported." in exported_card(
        copy, tmp_path, "raw"
    )


def test_a_broken_result_is_one_line(run: Path, refused: Refusal, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    (copy / "results" / "clean.json").write_text("{}")
    refused(
        "export", copy, tmp_path / "a.safetensors", says=r"clean\.json is not a result of an evaluation; move"
    )
    (copy / "results" / "clean.json").write_text("{")
    refused("export", copy, tmp_path / "a.safetensors", says=r"clean\.json is not a result")


def recipe_of(name: str, size: int) -> Recipe:
    return parse_recipe(
        {
            "data": {"train": "a", "image_size": size},
            "model": {"name": name},
            "optim": {"lr": 0.1},
            "run": {"epochs": 1, "batch_size": 8},
        }
    )


def test_an_image_size_goes_to_models_that_know_one() -> None:
    assert constructor_arguments(recipe_of("deit_tiny_patch16_224", 64)) == {"img_size": 64}
    assert constructor_arguments(recipe_of("resnet18", 64)) == {}


def test_a_portable_recipe_keeps_its_hash() -> None:
    recipe = recipe_of("resnet18", 64)
    assert portable_recipe(recipe).hash == recipe.hash


@pytest.mark.parametrize(
    "changes",
    [{"norm_stats": "groups:2x3:modulo"}, {"norm_stats": "groups:2:average"}, {"split_norm": True}],
    ids=["copies", "average", "split"],
)
def test_the_cards_python_makes_norms_plain(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    """timm has no norms with statistics of groups; the card's model evaluates as the trained one does."""
    tree = recipe_of("small_cnn", 32).model_dump(mode="json")
    tree["model"] |= changes
    if "split_norm" in changes:
        attack = {"norm": "linf", "eps": 0.01, "step_size": 0.01, "steps": 1}
        tree["objective"] |= {"kind": "advprop", "attack": attack}
    recipe = parse_recipe(tree)
    torch.manual_seed(0)
    model = create_model(
        "small_cnn", num_classes=3, image_size=32, mean=recipe.model.mean, std=recipe.model.std, **changes
    )
    for name, tensor in model.state_dict().items():
        if "running" in name:
            tensor.copy_(torch.rand(tensor.shape) + 0.5)
    state = model.state_dict()
    facts = describe_export(recipe, state, classes=["a", "b", "c"], step=1, weights="raw", dataset_id="")
    (tmp_path / "w.safetensors").write_bytes(to_safetensors(state, facts))
    card = model_card(recipe, describe_state(state), facts, file_name="w.safetensors", measured=[])
    (code,) = re.findall(r"^```python\n(.*?)^```$", card, re.M | re.S)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(code, names)
    assert torch.allclose(names["logits"], model.eval()(names["image"]), atol=1e-6)

"""`--suite c-on-the-fly`: corruptions made on the way to the model, against the same made by hand, and resumed."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import data.suite
from bits.environment import open_environment
from data.index import load_index
from data.shards import make
from engine.corrupted import key_seeds
from engine.eval_fields import SuiteEval
from engine.ledger import read_ledger
from engine.measure import describe, evaluators, judged
from engine.recipe import Recipe, parse_recipe
from engine.sources import Access
from robust.corruptions.apply import corrupt

KINDS = {"noise": ("impulse_noise",), "digital": ("contrast",)}
CLASSES = ("dark", "light")


class IsLight(nn.Module):
    """Logits [N,2] by the spread of an image's pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.border = nn.Parameter(torch.tensor(0.2))
        self.seen: list[Tensor] = []

    def forward(self, image: Tensor) -> Tensor:
        self.seen.append(image.detach().clone())
        spread = image.flatten(1).std(dim=1)
        return torch.stack([self.border - spread, spread - self.border], dim=1)


@pytest.fixture
def shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Ten grey or chequered pictures; the suite has two kinds alone."""
    for number in range(10):
        label = CLASSES[number % 2]
        (tmp_path / "images" / label).mkdir(parents=True, exist_ok=True)
        image = Image.new("RGB", (32, 32), (90 + number,) * 3)
        if label == "light":
            image.paste((250, 250, 250), (0, 0, 16, 32))
        image.save(tmp_path / "images" / label / f"{number}.png")
    make(tmp_path / "images", tmp_path / "val", split="val")
    real = data.suite._read

    def read(path: Path) -> Any:
        suite = real(path)
        return replace(suite, parts=KINDS) if suite.id == "c-on-the-fly" else suite

    monkeypatch.setattr(data.suite, "_read", read)
    return tmp_path / "val"


def recipe_of(shards: Path) -> Recipe:
    tree = {
        "data": {
            "train": str(shards),
            "val": str(shards),
            "num_workers": 0,
            "image_size": 32,
            "eval_resize": "none",
        },
        "model": {"name": "small_cnn"},
        "optim": {"lr": 1.0},
        "run": {"epochs": 1, "batch_size": 4},
    }
    return parse_recipe(tree | {"evals": []}, "test")


def run(shards: Path, ledger: Path, model: IsLight, **fields: Any) -> dict[str, Any]:
    entry = SuiteEval(suite="c-on-the-fly", **fields)
    ((evaluator, _),) = evaluators(
        open_environment("cpu"),
        recipe_of(shards),
        ledger,
        {"raw": model},
        [entry],
        Access(),
        recipe_hash="1",
        classes=CLASSES,
    )
    return judged(evaluator, entry)


def test_every_part_is_judged_on_its_own_corruption_of_the_clean_images(shards: Path, tmp_path: Path) -> None:
    model = IsLight()
    result = run(shards, tmp_path / "ledger", model)
    names = [f"{kind}/{severity}" for kind in ("impulse_noise", "contrast") for severity in range(1, 6)]
    assert list(result["parts"]) == names
    assert (result["num_images"], result["missing"]) == (100, [])
    assert result["contract"].endswith("-corrupted")
    assert "mce" not in result, "AlexNet's errors are of ImageNet"
    assert result["mean_error"] == pytest.approx(1 - result["top1"])
    assert any("not JPEG-compressed" in note for note in result["notes"])
    assert 0.5 < result["errors"]["contrast"][4] + result["errors"]["impulse_noise"][4] <= 2
    # Three batches of four a part; the second part's first batch is the corruption of the first batch's keys.
    index = load_index(shards)
    clean = [torch.from_numpy(_pixels(index, key)) for key in range(4)]
    image = torch.stack(clean).float() / 255
    expected = corrupt(image, "impulse_noise", 2, seed=key_seeds(torch.arange(4)))
    assert torch.equal(model.seen[3], expected)
    rows = list(read_ledger(tmp_path / "ledger").rows(result["parts"]["contrast/5"]["evaluation"]))
    assert len(rows) == 10
    assert "mean error" in describe("c-on-the-fly", result)


def _pixels(index: Any, key: int) -> Any:
    import io

    import numpy as np

    shard, _ = index.locate(key)
    record = index.record(key)
    with (index.root / index.shards[shard].name).open("rb") as file:
        file.seek(int(record["offset"]))
        content = file.read(int(record["size"]))
    return np.asarray(Image.open(io.BytesIO(content))).transpose(2, 0, 1).copy()


def test_the_same_pixels_whatever_the_batch_size_and_from_the_ledger_afterwards(
    shards: Path, tmp_path: Path
) -> None:
    first = run(shards, tmp_path / "ledger", IsLight())
    model = IsLight()
    assert run(shards, tmp_path / "ledger", model) == first
    assert model.seen == [], "nothing was left to judge"
    other = run(shards, tmp_path / "other", IsLight(), batch_size=7)
    assert (other["errors"], other["evaluation"]) == (first["errors"], first["evaluation"])

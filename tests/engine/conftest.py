"""A data set small enough for runs that are started many times, and what is attacked in the tests of AutoAttack."""

import shutil
from pathlib import Path

import pytest
import torch
import yaml
from torch import Tensor

from bits.environment import open_environment
from data.index import load_index
from data.loader import eval_loader
from data.transform import EvalTransform
from engine.cli import Launch, main
from engine.eval_fields import AutoAttackEval
from engine.evaluate import Evaluator
from engine.verdict import weights_hash
from robust import versions
from tests.engine.autoattack_cases import EPS, LANES, NUM, SIZE, NearestMean, short


@pytest.fixture(scope="session")
def few_digits(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of shards with 70 of the training digits, 7 of each class, 32 px, in 3 shards."""
    from data.shards import make

    folder = tmp_path_factory.mktemp("few_digits")
    for label in range(10):
        (folder / "images" / str(label)).mkdir(parents=True)
        for image in sorted((digits / "images/train" / str(label)).iterdir())[:7]:
            shutil.copy(image, folder / "images" / str(label))
    make(folder / "images", folder / "train", split="train", samples_per_shard=30)
    return folder / "train"


@pytest.fixture(scope="session")
def images(digits: Path) -> tuple[Tensor, Tensor]:
    """All of digits/val: float32 (359,3,16,16) in [0,1], and labels."""
    (batch,) = eval_loader(
        load_index(digits / "val"),
        keys=None,
        global_batch=359,
        rank=0,
        world_size=1,
        image_size=SIZE,
        resize=EvalTransform(mode="squash"),
        num_workers=0,
        seed=0,
    )
    return batch.image.float() / 255, batch.label


@pytest.fixture
def entry(monkeypatch: pytest.MonkeyPatch) -> AutoAttackEval:
    monkeypatch.setitem(versions.VERSIONS, "short", short)  # type: ignore[arg-type]
    return AutoAttackEval(
        attack="autoattack", norm="linf", eps=EPS, version="short", num_images=NUM, batch_size=LANES
    )


@pytest.fixture
def evaluator(digits: Path, images: tuple[Tensor, Tensor], tmp_path: Path) -> Evaluator:
    image, label = images
    model = NearestMean(torch.stack([image[label == c].mean(0) for c in range(10)]))
    return Evaluator(
        env=open_environment("cpu"),
        model=model,
        weights_sha256=weights_hash(model.state_dict()),
        index=load_index(digits / "val"),
        transform=EvalTransform(mode="squash"),
        suite="clean",
        weights="raw",
        image_size=SIZE,
        batch_size=50,
        num_workers=0,
        seed=7,
        ledger=tmp_path / "run/ledger",
        recipe="0" * 16,
    )


@pytest.fixture(scope="session")
def made(few_digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 30 updates on 70 digits, which are also what it is judged on."""
    root = tmp_path_factory.mktemp("autoattack")
    tree = {
        "data": {
            "train": str(few_digits),
            "val": str(few_digits),
            "image_size": SIZE,
            "num_workers": 0,
            "flip": 0.0,
            "scale": [0.8, 1.0],
        },
        "model": {"name": "small_cnn", "norm_stats": "ghost:14", "mean": [0.5] * 3, "std": [0.5] * 3},
        "optim": {"lr": 3e-3},
        "run": {"epochs": 6, "batch_size": 14},
    }
    (root / "recipe.yaml").write_text(yaml.safe_dump(tree))
    assert (
        main(
            ["train", str(root / "recipe.yaml"), "--output", str(root / "run")],
            Launch(backend="cpu"),
            program="p",
        )
        == 0
    )
    return root / "run"

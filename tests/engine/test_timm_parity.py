"""A model of timm's judged here and by timm's own validation pipeline (transform, dataset and loader as in its
validate.py) on one folder of images: the same pixels, the same logits, the same top-1.
"""

from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from timm.data import create_dataset, create_loader
from torch import nn

from bits.environment import open_environment
from data.index import load_index
from data.loader import eval_loader
from data.shards import make
from engine.build import eval_transform
from engine.cli import Launch, main
from engine.eval_fields import SuiteEval
from engine.foreign import Stated, build_foreign, open_foreign
from engine.ledger import read_ledger
from engine.measure import evaluators, judged
from engine.sources import Access, numbered
from models.load import place_weights

# timm's dataset leaves the files of its images open.
pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
MODEL, SIZE, NUM_CLASSES, PER_CLASS = "test_resnet", 64, 5, 6
SHAPES = ((80, 120), (150, 90), (64, 64), (97, 61), (200, 200), (65, 64))  # height, width


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """odd/: photographs' shapes, JPEG and PNG; exact/: files of the model's size. Smooth noise: a resize shows."""
    root, rng = tmp_path_factory.mktemp("parity"), np.random.default_rng(0)
    for kind, shapes in (("odd", SHAPES), ("exact", ((SIZE, SIZE),) * PER_CLASS)):
        for label in range(NUM_CLASSES):
            folder = root / kind / f"class{label}"
            folder.mkdir(parents=True)
            for number, (height, width) in enumerate(shapes):
                coarse = rng.integers(0, 256, (9, 9, 3), dtype=np.uint8)
                image = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
                image.save(folder / f"{number}.{'jpg' if number % 2 else 'png'}", quality=90)
        make(root / kind, root / "shards" / kind, split=kind)
    return root


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights, spread so that the classes are told apart."""
    torch.manual_seed(0)
    model = timm.create_model(MODEL, num_classes=NUM_CLASSES)
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    state["fc.weight"] = 3 * torch.randn_like(state["fc.weight"])
    path = tmp_path_factory.mktemp("weights") / "m.safetensors"
    save_file(state, str(path))
    return path


@cache
def timms_model(weights: Path) -> nn.Module:
    return timm.create_model(MODEL, num_classes=NUM_CLASSES, checkpoint_path=str(weights)).eval()


@cache
def our_model(weights: Path) -> nn.Module:
    found = open_foreign(weights, Stated(model=MODEL, image_size=SIZE), use_ema=False)
    model = build_foreign(found)
    place_weights(model, found.state, source=str(weights))
    return model.eval()


def by_timm(
    folder: Path, weights: Path, *, interpolation: str, crop_mode: str, crop_pct: float
) -> dict[str, torch.Tensor]:
    """Logits by file, as timm's validate.py makes them."""
    model = timms_model(weights)
    config = timm.data.resolve_data_config({}, model=model)
    dataset = create_dataset("", root=str(folder))
    loader = create_loader(
        dataset,
        input_size=(3, SIZE, SIZE),
        batch_size=7,
        use_prefetcher=False,
        interpolation=interpolation,
        mean=config["mean"],
        std=config["std"],
        num_workers=0,
        crop_pct=crop_pct,
        crop_mode=crop_mode,
        device=torch.device("cpu"),
    )
    with torch.no_grad():
        logits = torch.cat([model(image) for image, _ in loader])
    names = dataset.filenames(basename=False)
    return {str(Path(name).with_suffix("")): row for name, row in zip(names, logits, strict=True)}


def words(*, interpolation: str, resize: str, crop_pct: float) -> list[str]:
    return [
        f"data.interpolation={interpolation}",
        f"data.eval_resize={resize}",
        f"data.crop_pct={crop_pct}",
        "data.num_workers=0",
    ]


def by_us(shards: Path, weights: Path, settings: list[str]) -> Iterator[tuple[str, torch.Tensor]]:
    """Logits by key."""
    found = open_foreign(weights, Stated(model=MODEL, image_size=SIZE, words=settings), use_ema=False)
    model, index = our_model(weights), load_index(shards)
    loader = eval_loader(
        index,
        keys=None,
        global_batch=8,
        rank=0,
        world_size=1,
        image_size=SIZE,
        resize=eval_transform(found.recipe),
        num_workers=0,
        seed=0,
    )
    with torch.no_grad():
        for batch in loader:
            logits = model(batch.image.float() / 255)
            for key, row in zip(batch.key.tolist(), logits, strict=True):
                if key >= 0:
                    yield index.name(key), row


CASES = [
    *[("odd", "crop", "center", interpolation, 0.875) for interpolation in ("bilinear", "bicubic")],
    *[("odd", "squash", "squash", interpolation, 1.0) for interpolation in ("bilinear", "bicubic")],
    *[("exact", "none", "center", interpolation, 1.0) for interpolation in ("bilinear", "bicubic")],
]


@pytest.mark.parametrize(("kind", "resize", "crop_mode", "interpolation", "crop_pct"), CASES)
def test_logits_agree(
    kind: str, resize: str, crop_mode: str, interpolation: str, crop_pct: float, images: Path, weights: Path
) -> None:
    theirs = by_timm(
        images / kind, weights, interpolation=interpolation, crop_mode=crop_mode, crop_pct=crop_pct
    )
    settings = words(interpolation=interpolation, resize=resize, crop_pct=crop_pct)
    ours = dict(by_us(images / "shards" / kind, weights, settings))
    assert set(ours) == set(theirs)
    assert len(ours) == NUM_CLASSES * PER_CLASS
    spread = torch.stack(list(theirs.values())).std(dim=0).min()
    for name, row in ours.items():
        # Normalisation is a subtraction and a division here and there, of numbers rounded otherwise.
        torch.testing.assert_close(row, theirs[name], rtol=0, atol=2e-4 * float(spread), msg=name)


def test_another_interpolation_gives_other_logits(images: Path, weights: Path) -> None:
    """What the tolerance above would notice."""
    first, other = (
        dict(by_us(images / "shards/odd", weights, words(interpolation=name, resize="crop", crop_pct=0.875)))
        for name in ("bilinear", "bicubic")
    )
    assert min(float((first[name] - other[name]).abs().max()) for name in first) > 0.01


@pytest.mark.parametrize(("kind", "resize", "crop_mode", "interpolation", "crop_pct"), CASES)
def test_top1_is_timms(
    kind: str,
    resize: str,
    crop_mode: str,
    interpolation: str,
    crop_pct: float,
    images: Path,
    weights: Path,
    tmp_path: Path,
) -> None:
    """Through the command line, into the ledger."""
    theirs = by_timm(
        images / kind, weights, interpolation=interpolation, crop_mode=crop_mode, crop_pct=crop_pct
    )
    place = ["--suite", kind, "--data", str(images / "shards" / kind), "--output", str(tmp_path / "out")]
    settings = words(interpolation=interpolation, resize=resize, crop_pct=crop_pct)
    command = ["eval", str(weights), "--model", MODEL, "--image-size", str(SIZE), *place, *settings]
    assert main(command, Launch(backend="cpu"), program="launch_gpu.py") == 0
    book = read_ledger(tmp_path / "out/ledger")
    (identity,) = book.evaluations()
    rows = {row.key: row for row in book.rows(identity)}
    assert {name: row.prediction for name, row in rows.items()} == {
        name: int(logits.argmax()) for name, logits in theirs.items()
    }
    right = sum(int(logits.argmax()) == int(name[5]) for name, logits in theirs.items())
    assert sum(row.correct for row in rows.values()) == right
    assert 0 < right < len(rows)


def test_a_suites_own_protocol_goes_before_the_models(images: Path, weights: Path, tmp_path: Path) -> None:
    """wang2023 asks for 224 px bicubic whatever the model's default says."""
    found = open_foreign(
        weights, Stated(model=MODEL, image_size=224, words=["data.num_workers=0"]), use_ema=False
    )
    place = str(images / "shards/odd")
    entry = SuiteEval(suite="clean", data=place, protocol="wang2023", num_images=2)
    ((evaluator, _),) = evaluators(
        open_environment("cpu"),
        found.recipe,
        tmp_path / "ledger",
        {"raw": build_foreign(found)},
        [entry],
        Access(),
        recipe_hash="",
        classes=numbered(NUM_CLASSES),
    )
    result = judged(evaluator, entry)
    assert result["contract"] == "wang2023/center0.875-bicubic-224px"
    assert result["name"] == "clean-wang2023"

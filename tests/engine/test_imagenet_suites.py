"""ImageNet's sets end to end, on pictures that say their label: class maps, views, parts, resuming, refusals."""

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image, ImageOps
from torch import nn

from bits.environment import open_environment
from data.shards import make
from data.suite import NotForThis
from data.wnids import wnids
from engine.eval_fields import SuiteEval
from engine.fitting import fitting
from engine.ledger import read_ledger
from engine.measure import describe, evaluators, judged
from engine.metrics.mce import corruption_result
from engine.recipe import Recipe
from engine.sources import Access, numbered
from engine.suite_places import locate
from engine.suites import OWN_CORRUPTIONS, open_eval_set
from tests.engine.imagenet_sets import (
    ALL,
    SIZE,
    WRONG_REAL,
    SeesLabels,
    make_corrupted,
    make_numbered,
    make_subset,
    make_table,
    make_validation,
    picture,
    recipe_of,
    write_objectnet,
)

UNNAMED = numbered(1000)
KINDS = ("gaussian_noise", "fog")


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of shards per set."""
    root = tmp_path_factory.mktemp("imagenet")
    images, shards = root / "images", root / "shards"
    make_validation(images / "imagenet", shards / "imagenet")
    make_numbered(images / "v2", shards / "v2-top-images")
    for name in ("a", "r"):
        make_subset(images / name, shards / name, name)
    make_table(images / "cue-conflict", shards / "cue-conflict", "cue-conflict")
    for attribute in ("background", "texture", "material"):
        make_table(images / attribute, shards / "imagenet-d" / attribute, "imagenet-d")
    make_corrupted(images / "c", shards / "c", kinds=KINDS, size=SIZE)
    return shards


@pytest.fixture
def small_c(monkeypatch: pytest.MonkeyPatch) -> None:
    """ImageNet-C with files of SIZE px and no more kinds than KINDS."""
    use_small_c(monkeypatch.setattr)


def use_small_c(setattr: Any, *, all_kinds: bool = False) -> None:
    import data.suite

    real = data.suite._read

    def read(path: Path) -> Any:
        from dataclasses import replace

        suite = real(path)
        kinds = suite.parts if all_kinds else {"noise": KINDS[:1], "weather": KINDS[1:]}
        return replace(suite, image_size=SIZE, parts=kinds) if suite.id == "c" else suite

    setattr(data.suite, "_read", read)


def run(
    sets: Path,
    output: Path,
    suite: str,
    *,
    model: nn.Module | None = None,
    classes: Sequence[str] = UNNAMED,
    recipe: Recipe | None = None,
    **fields: Any,
) -> dict[str, Any]:
    found = evaluators(
        open_environment("cpu"),
        recipe or recipe_of(),
        output / "ledger",
        {"raw": SeesLabels() if model is None else model},
        [SuiteEval(suite=suite, data=fields.pop("data", str(sets / suite)), **fields)],
        Access(),
        recipe_hash="",
        classes=classes,
    )
    ((evaluator, entry),) = found
    return judged(evaluator, entry)


@pytest.mark.parametrize(
    ("suite", "is_shuffled"),
    [
        *((suite, False) for suite in ("v2-top-images", "a", "r", "cue-conflict", "imagenet-d")),
        *((suite, True) for suite in ("a", "cue-conflict")),
    ],
)
def test_a_model_that_sees_labels_is_always_right(
    suite: str, is_shuffled: bool, sets: Path, tmp_path: Path
) -> None:
    """Also one whose training had the classes in another order, by their names."""
    order = torch.randperm(1000, generator=torch.Generator().manual_seed(0))
    model = SeesLabels(order) if is_shuffled else SeesLabels()
    classes = [ALL[label] for label in order.tolist()] if is_shuffled else UNNAMED
    result = run(sets, tmp_path, suite, model=model, classes=classes)
    assert result["top1"] == 1.0, describe(suite, result)
    for beside in result.get("beside", {}).values():
        assert beside["top1"] == 1.0


def test_200_classes_are_the_headline_and_1000_stand_beside(sets: Path, tmp_path: Path) -> None:
    """A model that is one label off: among 200 it is right now and then, among 1000 never."""
    result = run(sets, tmp_path, "a", model=SeesLabels(torch.arange(1000) + 1))
    full = result["beside"]["full1000"]
    assert result["contract"].endswith("-masked200")
    assert full["contract"].endswith("-full1000")
    assert (result["num_images"], full["num_images"], full["num_correct"]) == (200, 200, 0)
    assert 0 < result["num_correct"] < 200
    assert "full1000: 0.00 %" in describe("a", result)
    rows = list(read_ledger(tmp_path / "ledger").rows(full["evaluation"]))
    assert {row.label for row in rows} == {ALL.index(wnid) for wnid in wnids("a")}
    assert {row.prediction - row.label for row in rows} == {-1}
    rows = list(read_ledger(tmp_path / "ledger").rows(result["evaluation"]))
    assert {row.label for row in rows} == set(range(200)), "in the numbers of the set's classes"


def test_real_takes_any_of_an_images_labels(sets: Path, tmp_path: Path) -> None:
    result = run(sets, tmp_path, "real", data=str(sets / "imagenet"))
    num_images = result["num_images"]
    assert num_images == 943, "of the first 1000 images, those that ReaL has a label for"
    assert result["num_correct"] == num_images - WRONG_REAL
    assert result["contract"].endswith("-real")
    assert any("1,000 images, where a whole ImageNet ReaL has 50,000" in note for note in result["notes"])


def test_objectnet_judges_the_classes_that_imagenet_has_inside_the_frame(tmp_path: Path) -> None:
    """A red frame of 2 px is on every picture; air fresheners are no class of ImageNet."""
    shown = {"alarm_clock": (409, 530, 504), "mug": (504,), "air_freshener": (1, 2)}
    for name, labels in shown.items():
        for number, label in enumerate(labels):
            path = tmp_path / "images" / name / f"{number}.png"
            picture(path, label)
            framed = ImageOps.expand(Image.open(path), border=2, fill=(255, 0, 0))
            framed.save(path)
    make(tmp_path / "images", tmp_path / "objectnet", split="test")
    write_objectnet(tmp_path / "objectnet")
    result = run(tmp_path, tmp_path, "objectnet")
    assert (result["num_images"], result["num_correct"]) == (4, 3), (
        "either of an alarm clock's labels; one is a mug"
    )
    assert result["contract"].endswith("-border2-masked2")
    assert result["beside"]["full1000"]["num_correct"] == 3


def test_real_needs_the_images_own_names(tmp_path: Path) -> None:
    for number, wnid in enumerate(ALL):
        picture(tmp_path / "images" / wnid / f"{number}.png", number)
    make(tmp_path / "images", tmp_path / "shards", split="val")
    with pytest.raises(ValueError, match="is not called ILSVRC2012_val_NUMBER, so its labels are not known"):
        run(tmp_path, tmp_path, "real", data=str(tmp_path / "shards"))


def test_a_subset_of_images_holds_those_with_a_label(sets: Path, tmp_path: Path) -> None:
    result = run(sets, tmp_path, "real", data=str(sets / "imagenet"), num_images=100)
    assert 80 < result["num_images"] < 100
    assert result["suite"].startswith("real[100]@")


# ---- parts


def test_parts_give_one_result_with_errors_by_kind_and_severity(
    sets: Path, tmp_path: Path, small_c: None
) -> None:
    result = run(sets, tmp_path, "c")
    dialled = [0.0, 0.25, 0.5, 0.75, 1.0]
    assert result["errors"] == {"gaussian_noise": dialled, "fog": dialled}
    assert result["severities"] == dialled
    assert (result["mean_error"], result["groups"]) == (0.5, {"noise": 0.5, "weather": 0.5})
    assert (result["num_images"], result["num_correct"], result["top1"]) == (40, 20, 0.5)
    assert result["contract"] == "default/none-16px"
    assert "mce" not in result, "of 15 kinds alone"
    assert len({part["evaluation"] for part in result["parts"].values()}) == 10
    low, high = result["interval"]
    assert low < 0.5 < high
    assert high - low > 0.5, "4 photographs, not 40"
    text = describe("c", result)
    assert "mean error 50.00 % over 2 kinds" in text
    assert "severity 1 to 5: 0.00  25.00  50.00  75.00  100.00" in text


def test_15_kinds_give_mce_and_what_overlaps_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_small_c(monkeypatch.setattr, all_kinds=True)
    make_corrupted(tmp_path / "images", tmp_path / "c", size=SIZE)
    recipe = recipe_of(randaug="rand-m9-mstd0.5-inc1")
    found = evaluators(
        open_environment("cpu"),
        recipe,
        tmp_path / "ledger",
        {"raw": SeesLabels()},
        [SuiteEval(suite="c", data=str(tmp_path / "c"), batch_size=4)],
        Access(),
        recipe_hash="1",
        classes=UNNAMED,
    )
    ((evaluator, entry),) = found
    result = judged(evaluator, entry)
    assert (result["num_images"], result["mean_error"], result["missing"]) == (300, 0.5, [])
    assert result["mce"] == corruption_result(result["errors"])["mce"]
    assert result["overlap"]["contrast"] == [
        f"RandAugment {n}" for n in ("Contrast", "AutoContrast", "Equalize")
    ]
    assert set(result["overlap"]) == {"contrast", "brightness", "defocus_blur"}
    text = describe("c", result)
    assert "overlap: RandAugment Brightness" in text
    assert f"mCE {result['mce']:.2f} (AlexNet: 100)" in text


def test_corruptions_made_here_are_told_from_the_published_files(
    sets: Path, tmp_path: Path, small_c: None
) -> None:
    images = sets.parent / "images/c/fog/3"
    name = "val, fog severity 3, 16 px, seed 0"  # as `shards corrupt` calls it
    make(images, tmp_path / "c/fog/3", split="fog-3", classes=ALL, dataset=name)
    assert run(tmp_path, tmp_path, "c")["notes"][-1] == OWN_CORRUPTIONS
    assert OWN_CORRUPTIONS not in run(sets, tmp_path, "c").get("notes", ())


def test_a_part_that_is_not_there_is_named_and_there_is_no_mean(
    sets: Path, tmp_path: Path, small_c: None
) -> None:
    (tmp_path / "c").mkdir()
    (tmp_path / "c/gaussian_noise").symlink_to(sets / "c/gaussian_noise")
    (tmp_path / "c/fog/2").mkdir(parents=True)
    result = run(tmp_path, tmp_path, "c")
    assert result["missing"] == [f"fog/{severity}" for severity in range(1, 6)]
    assert result["mean_error"] is None
    assert "no mean error: 5 parts are missing" in describe("c", result)
    assert result["notes"][0].startswith(
        "5 of 10 parts are missing: fog/1, fog/2, fog/3, fog/4, fog/5; a mean"
    )


def test_a_folder_without_any_part_is_one_line(tmp_path: Path, small_c: None) -> None:
    (tmp_path / "c/fog/2").mkdir(parents=True)
    with pytest.raises(
        ValueError, match=r"suite c: no part of it in .*/c, such as .*/c/gaussian_noise/1; shards make"
    ):
        run(tmp_path, tmp_path, "c")


KILLED = """
import os, signal, sys
from pathlib import Path
import data.suite, engine.evaluate
from tests.engine.test_imagenet_suites import run, use_small_c
use_small_c(setattr)
real, count = engine.evaluate.LedgerWriter.write, 0
def write(writer, rows):
    global count
    real(writer, rows)
    count += 1
    if count == {batches}:
        os.kill(os.getpid(), signal.SIGKILL)
engine.evaluate.LedgerWriter.write = write
run(Path({sets!r}), Path({out!r}), "c", batch_size=2)
"""


@pytest.mark.parametrize("batches", [7])
def test_killed_in_the_middle_it_goes_on(
    batches: int, sets: Path, tmp_path: Path, small_c: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """kill -9 behind the seventh batch, in the fourth part: no image is judged twice, and the result is the same."""
    whole = run(sets, tmp_path / "whole", "c", batch_size=2)
    program = KILLED.format(batches=batches, sets=str(sets), out=str(tmp_path / "cut"))
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    killed = subprocess.run(
        [sys.executable, "-c", program], env=environment, check=False, capture_output=True
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()[-2000:]
    ids = [part["evaluation"] for part in whole["parts"].values()]
    book = read_ledger(tmp_path / "cut/ledger")
    before = {(identity, row.key) for identity in ids for row in book.rows(identity)}
    assert len(before) == 2 * batches
    model = SeesLabels()
    seen: list[int] = []
    model.register_forward_hook(lambda module, given, logits: seen.append(len(logits)))
    assert run(sets, tmp_path / "cut", "c", batch_size=2, model=model) == whole
    assert sum(seen) == 40 - len(before), "only what was left went through the model"


def test_a_ledger_of_another_model_stays_and_counts_for_nothing(sets: Path, tmp_path: Path) -> None:
    other = run(sets, tmp_path, "a", model=SeesLabels(torch.arange(1000) + 1))
    result = run(sets, tmp_path, "a")
    assert result["top1"] == 1.0
    assert len(list(read_ledger(tmp_path / "ledger").rows(other["evaluation"]))) == 200


# ---- all that lies in a folder


def test_all_takes_what_is_there_and_fits_and_names_the_rest(sets: Path) -> None:
    recipe = recipe_of()
    entries = locate(["all"], recipe, sets)
    here = ["a", "c", "cue-conflict", "imagenet", "imagenet-d", "r", "real", "v2-top-images"]
    assert [entry["suite"] for entry in entries] == here
    asked = recipe.model_copy(update={"evals": [SuiteEval.model_validate(entry) for entry in entries]})
    kept, lines = fitting(asked, Access(), UNNAMED, suites="all", root=str(sets))
    assert [entry.name for entry in kept.evals] == [name for name in here if name != "c"]
    assert lines[0].startswith("passed over: suite c has files of 224 px that are never resized")
    missing = {line.split()[0]: line for line in lines[1:]}
    assert set(missing) & set(here) == set()
    assert {"sketch", "stylized", "objectnet", "c-bar", "3dcc", "v2-threshold-0.7", "imagenet-e"} <= set(
        missing
    )
    assert "github.com/HaohanWang/ImageNet-Sketch" in missing["sketch"]
    with pytest.raises(NotForThis, match="suite c has files of 224 px"):
        fitting(asked, Access(), UNNAMED, suites="a,c", root=str(sets))
    with pytest.raises(
        ValueError, match="--suite all: none of the suites fits this model; passed over: suite a"
    ):
        fitting(asked, Access(), numbered(10), suites="all", root=str(sets))


def test_names_families_and_folders_of_suites(sets: Path, tmp_path: Path) -> None:
    recipe = recipe_of()
    assert locate(["imagenet-a"], recipe, sets) == [{"suite": "a", "data": str(sets / "a")}]
    assert locate(["c"], recipe, sets / "c") == [{"suite": "c", "data": str(sets / "c")}]
    assert locate(["real"], recipe, sets) == [{"suite": "real", "data": str(sets / "imagenet")}]
    with pytest.raises(
        ValueError, match=r"--suite v2-matched-frequency: no shards in .*; get it: huggingface\.co"
    ):
        locate(["v2"], recipe, sets)
    (tmp_path / "val").symlink_to(sets / "imagenet")
    assert locate(["imagenet"], recipe, tmp_path) == [{"suite": "imagenet", "data": str(tmp_path / "val")}]
    assert [entry["suite"] for entry in locate(["all"], recipe, tmp_path)] == ["clean", "real"]
    assert locate(["c-on-the-fly"], recipe, tmp_path / "val") == [
        {"suite": "c-on-the-fly", "data": str(tmp_path / "val")}
    ]


# ---- what does not fit


def test_a_class_without_images_is_one_line(sets: Path, tmp_path: Path) -> None:
    """199 folders packed with the list of 200, and 999 of V2's."""
    for name, classes in (("a", wnids("a")), ("v2-top-images", ALL)):
        lost = classes[37] if name == "a" else "37"
        kept = [path for path in (sets.parent / "images" / name.split("-")[0]).iterdir() if path.name != lost]
        images = tmp_path / name
        images.mkdir()
        for path in kept:
            (images / path.name).symlink_to(path)
        make(images, tmp_path / "shards" / name, split="x", classes=classes)
        with pytest.raises(
            ValueError, match=f"1 of its {len(classes)} classes have no image: {classes[37]}; unpack"
        ):
            run(tmp_path / "shards", tmp_path, name)


def test_a_set_of_other_wnids_is_refused(sets: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="suite a has 200 classes, these shards lack 114 of them"):
        run(sets, tmp_path, "a", data=str(sets / "r"))
    with pytest.raises(NotForThis, match="none of the model's 200"):
        run(sets, tmp_path, "a", classes=wnids("r"))


def test_a_wrong_resolution_is_refused_before_anything_runs(sets: Path) -> None:
    with pytest.raises(NotForThis, match="suite c has files of 224 px that are never resized"):
        open_eval_set(recipe_of(), SuiteEval(suite="c", data=str(sets / "c")), Access(), classes=UNNAMED)
    entry = SuiteEval(suite="a", data=str(sets / "a"), protocol="wang2023")
    with pytest.raises(NotForThis, match="protocol wang2023 is for 224 px, and the model sees 16 px"):
        open_eval_set(recipe_of(), entry, Access(), classes=UNNAMED)


def test_a_protocol_stands_in_name_and_contract(sets: Path, tmp_path: Path) -> None:
    result = run(sets, tmp_path, "a", recipe=recipe_of(size=224), protocol="bai2021", num_images=8)
    assert result["name"] == "a-bai2021"
    assert result["contract"] == "bai2021/center0.875-bilinear-224px-masked200"

"""`shards corrupt`: ImageNet-C's folders of somebody's shards, the pixels that `c-on-the-fly` shows, and going on."""

import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import robust
from data import shards
from data.batch import NUM_DRAWS, Batch
from data.decode import Picture
from data.index import load_index
from data.read import ShardReader
from engine import corrupting
from engine.cli import Launch, main
from engine.corrupted import change_of, corrupted, key_seeds, notes_of

CPU = Launch(backend="cpu")
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Shards of 12 images of 48 px in 3 classes, 5 a shard."""
    for label in range(3):
        (tmp_path / "images" / f"class{label}").mkdir(parents=True)
        for number in range(4):
            y, x = np.mgrid[:48, :48]
            tones = (y * (label + 1) + 9 * number, x * 4, (x + y) * 2)
            picture = Image.fromarray(np.stack(tones, axis=-1).astype(np.uint8))
            picture.save(tmp_path / "images" / f"class{label}" / f"{number}.png")
    shards.make(tmp_path / "images", tmp_path / "val", split="val", samples_per_shard=5)
    return tmp_path / "val"


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    def call(*words: str | Path) -> tuple[int, str, str]:
        capfd.readouterr()
        code = main([str(word) for word in words], CPU, program="launch_gpu.py")
        return code, *capfd.readouterr()

    return call


def pictures(folder: Path) -> torch.Tensor:
    """(N,3,H,W) in [0, 1], by key."""
    index = load_index(folder)
    reader = ShardReader(index)
    found = [Picture(reader.read(key)).pixels() for key in range(index.num_samples)]
    reader.close()
    return torch.from_numpy(np.stack(found)).permute(0, 3, 1, 2).float() / 255


def test_folders_of_kinds_and_severities(source: Path, tmp_path: Path, run: Run) -> None:
    words = ("shards", "corrupt", source, tmp_path / "c", "--size", "48")
    told = tmp_path / "told.json"
    code, _, err = run(*words, "--kinds", "fog,noise", "--severities", "5,1", "--json", told)
    assert (code, err) == (0, "")
    kinds = ["fog", "gaussian_noise", "impulse_noise", "shot_noise"]
    assert sorted(path.name for path in (tmp_path / "c").iterdir()) == kinds
    for kind in kinds:
        assert sorted(path.name for path in (tmp_path / "c" / kind).iterdir()) == ["1", "5"]
    result = json.loads(told.read_text())
    assert len(result["folders"]) == 8
    assert result["reused"] == []
    about, clean = load_index(tmp_path / "c/fog/5").description, load_index(source).description
    assert (about.key_hash, about.classes, about.split) == (clean.key_hash, clean.classes, "val")
    assert about.dataset == f"{clean.dataset}, fog severity 5, 48 px, seed 0"
    code, _, _ = run(*words, "--kinds", "noise,fog,contrast", "--severities", "1", "--json", told)
    result = json.loads(told.read_text())
    assert code == 0
    assert sorted(result["reused"]) == [f"{kind}/1" for kind in kinds]
    assert "contrast/1" in result["folders"]


@pytest.mark.parametrize("kind", ["gaussian_noise", "elastic_transform"])
def test_written_pictures_are_those_on_the_fly_but_for_jpeg(
    source: Path, tmp_path: Path, run: Run, kind: str
) -> None:
    assert run("shards", "corrupt", source, tmp_path / "c", "--size", "48", "--kinds", kind)[0] == 0
    image = pictures(source)
    key = torch.arange(len(image))
    batch = Batch(
        image=(image * 255).round().to(torch.uint8),
        label=torch.zeros_like(key),
        mask=key >= 0,
        key=key,
        seed=key * 7,  # the recipe's: must not matter
        draw=torch.zeros(len(key), NUM_DRAWS),
    )
    for severity in (1, 5):
        seen = change_of(kind, severity)(image, batch)
        assert torch.equal(seen, robust.corrupt(image, kind, severity, seed=key_seeds(key)))
        expected = []
        for picture in (seen * 255).round().to(torch.uint8).permute(0, 2, 3, 1):
            file = io.BytesIO()
            Image.fromarray(picture.numpy()).save(file, "JPEG", quality=85, optimize=True)
            expected.append(torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1))
        found = pictures(tmp_path / "c" / kind / str(severity))
        assert torch.equal((found * 255).round().to(torch.uint8), torch.stack(expected))
    other = change_of(kind, 5, seed=1)(image, batch)
    assert not torch.equal(other, seen)


def test_neighbouring_keys_have_other_noise() -> None:
    image = torch.full((3, 3, 32, 32), 0.5)
    found = corrupted(image, key_seeds(torch.tensor([0, 1, -1])), "gaussian_noise", 3).flatten(1)
    assert float((torch.corrcoef(found) - torch.eye(3)).abs().max()) < 0.08


def test_it_goes_on_where_it_was_interrupted(
    source: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = (
        "shards",
        "corrupt",
        source,
        tmp_path / "c",
        "--size",
        "48",
        "--kinds",
        "snow",
        "--severities",
        "2",
    )
    plain, written = corrupting._write_part, []

    def interrupted(path: Path, part: corrupting.Part, **options: Path) -> object:
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(part.number)
        return plain(path, part, **options)

    monkeypatch.setattr(corrupting, "_write_part", interrupted)
    code, _, err = run(*words)
    assert code != 0
    assert "2 of 3 shards are whole and stay" in err
    assert not (tmp_path / "c/snow/2").exists()
    written.clear()
    assert run(*words)[0] == 0
    assert written == [2], "the two whole shards stayed"
    monkeypatch.undo()
    once = tmp_path / "once"
    assert run("shards", "corrupt", source, once, *words[4:])[0] == 0
    ids = {load_index(folder / "snow/2").description.dataset_id for folder in (tmp_path / "c", once)}
    assert len(ids) == 1, "the same bytes as in one go"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("corrupt {val} {new} --kinds foog", "corruption 'foog' does not exist; the nearest is fog"),
        ("corrupt {val} {new} --severities 1,6", "severity 6 must be a whole number from 1 to 5"),
        ("corrupt {val} {new} --severities x", "severity 'x' must be a whole number"),
        ("corrupt {val} {new} --size 16", "--size 16: corruptions need images of at least 32 px"),
        ("corrupt {val}", "shards corrupt takes SHARDS OUT; 1 paths were given"),
        ("corrupt {new} {val}", "no index.json in"),
        ("info {val} --kinds fog", "--kinds is a flag of shards corrupt; drop it"),
        ("info {val} --severities 1", "--severities is a flag of shards corrupt; drop it"),
    ],
)
def test_one_line_for_a_mistake(source: Path, tmp_path: Path, run: Run, words: str, says: str) -> None:
    code, _, err = run("shards", *words.format(val=source, new=tmp_path / "new").split())
    assert code == 2
    assert says in err
    assert len(err.strip().splitlines()) == 1


def test_folders_of_other_pictures_are_not_touched(source: Path, tmp_path: Path, run: Run) -> None:
    words = ("shards", "corrupt", source, tmp_path / "c", "--kinds", "contrast", "--severities", "1")
    assert run(*words, "--size", "48")[0] == 0
    code, _, err = run(*words, "--size", "40")
    assert code == 2
    assert "contrast/1 holds other images" in err
    assert "40 px, seed 0); remove it" in err
    (tmp_path / "d/contrast/1").mkdir(parents=True)
    (tmp_path / "d/contrast/1/mine").touch()
    code, _, err = run(*words[:3], tmp_path / "d", *words[4:])
    assert code == 2
    assert "is not empty" in err


def test_notes_say_how_images_were_made() -> None:
    assert "generated" in notes_of("frost", "cpu")[1]
    assert "Pillow" in notes_of("jpeg_compression", "cpu")[1]
    assert "tensor model" in notes_of("jpeg_compression", "cuda")[1]
    assert len(notes_of("fog", "xla")) == 1

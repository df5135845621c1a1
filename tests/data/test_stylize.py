"""Stylized shards: AdaIN's closed form, the layout of the published weights, textures without a network."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data import stylize as module
from data.adain import StyleTransfer, adaptive_instance_norm, load_style_transfer
from data.band_match import bands, match_bands, match_values, texture
from data.index import DatasetIndex, load_index
from data.journal import partial_folder
from data.read import ShardReader
from data.shards import make, verify
from data.stylize import Paintings, Textures, find_paintings, stylize
from tests.data.trees import content, encode, write_images

ENCODER_KEYS = (0, 2, 5, 9, 12, 16, 19, 22, 25, 29)  # of the convolutions in pytorch-AdaIN's two files
DECODER_KEYS = (1, 5, 8, 11, 14, 18, 21, 25, 28)


@pytest.fixture(autouse=True)
def _forget_weights() -> None:
    load_style_transfer.cache_clear()


@pytest.fixture
def src(tmp_path: Path) -> DatasetIndex:
    write_images(tmp_path / "tree", {"a": 5, "b": 6}, size=(40, 32))
    return make(tmp_path / "tree", tmp_path / "src", split="val", samples_per_shard=4)


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """Random weights in the layout of the published files; the encoder's goes on, as theirs does."""
    torch.manual_seed(0)
    network = StyleTransfer()
    folder = tmp_path / "weights"
    folder.mkdir()
    longer = {"32.weight": torch.zeros(512, 512, 3, 3), "32.bias": torch.zeros(512)}
    torch.save({**network.encoder.state_dict(), **longer}, folder / "vgg_normalised.pth")
    torch.save(network.decoder.state_dict(), folder / "decoder.pth")
    return folder


@pytest.fixture
def paintings(tmp_path: Path) -> Path:
    folder = tmp_path / "paintings"
    (folder / "sub").mkdir(parents=True)
    for number in range(4):
        name = folder / ("sub" if number % 2 else "") / f"{number}.jpg"
        name.write_bytes(encode(number, size=(60, 45)))
    (folder / ".DS_Store").write_bytes(b"x")
    return folder


def pictures(root: Path) -> dict[str, np.ndarray]:
    index = load_index(root)
    reader = ShardReader(index)
    found = {index.name(key): module.read_picture(reader, key, None) for key in range(index.num_samples)}
    reader.close()
    return found


def test_features_take_the_moments_of_the_style() -> None:
    torch.manual_seed(0)
    content, style = torch.randn(2, 5, 9, 7) * 3 + 1, torch.randn(2, 5, 4, 6) * 0.2 - 2
    mixed = adaptive_instance_norm(content, style)
    assert torch.allclose(mixed.mean((2, 3)), style.mean((2, 3)), atol=1e-5)
    assert torch.allclose(mixed.std((2, 3)), style.std((2, 3)), rtol=1e-3)
    assert torch.allclose(adaptive_instance_norm(content, content), content, atol=1e-5)
    assert torch.isfinite(adaptive_instance_norm(torch.ones(1, 2, 3, 3), style[:1, :2])).all(), "flat content"


def test_the_layout_is_that_of_the_published_files() -> None:
    network = StyleTransfer()
    for part, numbers in ((network.encoder, ENCODER_KEYS), (network.decoder, DECODER_KEYS)):
        keys = [f"{number}.{name}" for number in numbers for name in ("weight", "bias")]
        assert list(part.state_dict()) == keys
    image = torch.rand(1, 3, 48, 64)
    assert network.encoder(image).shape == (1, 512, 6, 8)
    assert network(image, torch.rand(1, 3, 32, 32)).shape == image.shape


def test_keys_labels_and_order_stay(
    src: DatasetIndex, paintings: Path, weights: Path, tmp_path: Path
) -> None:
    style = find_paintings(paintings, weights, seed=0, device="cpu")
    assert style.files == ("0.jpg", "2.jpg", "sub/1.jpg", "sub/3.jpg")
    made = stylize(src.root, tmp_path / "s", style, size=32)
    assert [made.name(key) for key in range(11)] == [src.name(key) for key in range(11)]
    assert made.labels().tolist() == src.labels().tolist()
    assert [shard.num_samples for shard in made.shards] == [4, 4, 3]
    assert made.classes == src.classes
    assert made.description.dataset == "tree, AdaIN in the styles of 4 paintings, seed 0"
    assert {image.shape for image in pictures(tmp_path / "s").values()} == {(32, 32, 3)}
    assert verify(tmp_path / "s", full=True, decode=True).ok
    assert sorted(path.name for path in tmp_path.iterdir() if path.name[0] == ".") == []


def test_a_picture_is_what_the_network_makes_of_it(
    src: DatasetIndex, paintings: Path, weights: Path, tmp_path: Path
) -> None:
    style = find_paintings(paintings, weights, seed=3, device="cpu")
    stylize(src.root, tmp_path / "s", style, size=32)
    key = src.name(6)
    reader = ShardReader(src)
    image = Image.fromarray(module.read_picture(reader, 6, None))
    reader.close()
    small = image.resize((int(40 * 37 / 32), 37), Image.Resampling.BILINEAR)  # 37 is 32 * 256 / 224
    cut = np.asarray(small.crop((7, 2, 39, 34)))
    torch.manual_seed(0)
    network = StyleTransfer().eval()
    with torch.no_grad():
        tensors = [
            torch.from_numpy(array.copy()).permute(2, 0, 1)[None].float() / 255
            for array in (cut, style.painting(key, 32))
        ]
        found = network(*tensors)[0].mul(255).add(0.5).clamp(0, 255).to(torch.uint8).permute(1, 2, 0)
    difference = np.abs(pictures(tmp_path / "s")[key].astype(int) - found.numpy())
    assert difference.max() <= 1


def test_the_painting_follows_from_the_key_alone(paintings: Path, weights: Path) -> None:
    style = find_paintings(paintings, weights, seed=0, device="cpu")
    names = [f"a/{number}" for number in range(40)]
    chosen = [style.painting(name, 32).tobytes() for name in names]
    assert [style.painting(name, 32).tobytes() for name in reversed(names)] == chosen[::-1]
    assert len(set(chosen)) == 4, "all of them are used"
    other = find_paintings(paintings, weights, seed=1, device="cpu")
    assert [other.painting(name, 32).tobytes() for name in names] != chosen


def test_paintings_that_cannot_be_used_are_passed_over(paintings: Path, weights: Path) -> None:
    (paintings / "0.jpg").write_bytes(b"no image")
    (paintings / "2.jpg").write_bytes(encode(9, size=(31, 90)))
    style = find_paintings(paintings, weights, seed=0, device="cpu")
    good = {style.painting(f"a/{number}", 32).tobytes() for number in range(40)}
    assert len(good) == 2
    with pytest.raises(ValueError, match=r"20 paintings in a row are no images of at least 64x64"):
        style.painting("a/0", 64)


def test_equal_settings_give_equal_bytes(src: DatasetIndex, tmp_path: Path) -> None:
    style = Textures(number=5, seed=2)
    stylize(src.root, tmp_path / "a", style, size=None)
    stylize(src.root, tmp_path / "b", style, size=None, num_workers=2)
    assert content(tmp_path / "a") == content(tmp_path / "b")
    stylize(src.root, tmp_path / "c", Textures(number=5, seed=3), size=None)
    assert pictures(tmp_path / "a").keys() == pictures(tmp_path / "c").keys()
    assert load_index(tmp_path / "a").dataset_id != load_index(tmp_path / "c").dataset_id
    assert "no AdaIN" in load_index(tmp_path / "a").description.dataset
    assert pictures(tmp_path / "a")["a/00"].shape == (32, 40, 3)


def test_it_goes_on_behind_whole_shards(
    src: DatasetIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    style = Textures(number=2)
    stylize(src.root, tmp_path / "whole", style, size=None)
    calls: list[int] = []
    real = Textures.apply

    def stop(self: Textures, images: list[np.ndarray], keys: list[str]) -> list[np.ndarray]:
        calls.append(len(keys))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(self, images, keys)

    monkeypatch.setattr(Textures, "apply", stop)
    with pytest.raises(KeyboardInterrupt, match="2 of 3 shards are whole"):
        stylize(src.root, tmp_path / "s", style, size=None)
    assert partial_folder(tmp_path / "s").is_dir()
    stylize(src.root, tmp_path / "s", style, size=None)
    assert calls == [4, 4, 3, 3]
    assert content(tmp_path / "s") == content(tmp_path / "whole")


def test_bands_add_up_and_take_the_textures_values() -> None:
    rng = np.random.default_rng(0)
    plane, wanted = rng.normal(size=(40, 50)), rng.normal(size=(40, 50)) ** 3
    assert np.allclose(np.sum(bands(plane), axis=0), plane)
    matched = match_values(plane, wanted)
    assert np.array_equal(np.sort(matched, axis=None), np.sort(wanted, axis=None))
    assert np.array_equal(np.argsort(matched, axis=None), np.argsort(plane, axis=None))
    assert np.array_equal(match_values(plane, plane), plane)


def test_a_matched_picture_has_the_textures_colours_and_its_own_shapes() -> None:
    y, x = np.mgrid[:96, :96]
    disc = np.where(((y - 48) ** 2 + (x - 48) ** 2 < 30**2)[..., None], [230, 60, 40], [20, 40, 90]).astype(
        np.uint8
    )
    style = texture(3, (96, 96), seed=5)
    found = match_bands(disc, style)
    assert np.allclose(found.mean((0, 1)), style.mean((0, 1)), atol=4)
    for way in (
        [1, 1, 1],
        [1, -1, 0],
        [1, 1, -2],
    ):  # in which colours are matched; values are cut to [0, 255]
        assert np.isclose((found @ np.array(way)).std(), (style @ np.array(way)).std(), rtol=0.05)
    grey, shape = found.mean(2), disc.mean(2)
    assert abs(np.corrcoef(grey.ravel(), shape.ravel())[0, 1]) > 0.5


def test_textures_differ_and_fit_any_size() -> None:
    made = {texture(number, (40, 300), seed=1).tobytes() for number in range(30)}
    assert len(made) == 30
    assert texture(0, (500, 31), seed=1).shape == (500, 31, 3)


@pytest.mark.parametrize("name", ["vgg_normalised.pth", "decoder.pth"])
def test_weights_that_do_not_fit(weights: Path, paintings: Path, name: str, tmp_path: Path) -> None:
    path = weights / name
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1))
    torch.save(network.state_dict(), path)
    with pytest.raises(ValueError, match=rf"{name} has .* under '[01].weight', not shape"):
        load_style_transfer(weights, "cpu")
    torch.save([1], path)
    with pytest.raises(ValueError, match=rf"{name} holds list, not a state dict"):
        load_style_transfer(weights, "cpu")
    path.write_bytes(b"<html>")
    with pytest.raises(ValueError, match=rf"{name} is no file of weights"):
        load_style_transfer(weights, "cpu")
    torch.save({"0.weight": _Bomb(tmp_path / "ran")}, path)
    with pytest.raises(ValueError, match=rf"{name} is no file of weights"):
        load_style_transfer(weights, "cpu")
    assert not (tmp_path / "ran").exists(), "a pickle in the file is never run"
    path.unlink()
    with pytest.raises(FileNotFoundError, match=rf"no {name} in .*pytorch-AdaIN"):
        find_paintings(paintings, weights, seed=0, device="cpu")


class _Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.path),)


def test_refusals(src: DatasetIndex, weights: Path, tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    with pytest.raises(FileNotFoundError, match=r"no files in .*none"):
        find_paintings(tmp_path / "none", weights, seed=0, device="cpu")
    with pytest.raises(FileNotFoundError, match=r"no folder .*nowhere"):
        find_paintings(tmp_path / "nowhere", weights, seed=0, device="cpu")
    style = Paintings(folder=tmp_path, files=("x",), weights=weights)
    for size in (None, 8, 100):
        with pytest.raises(ValueError, match=f"size {size} must be a multiple of 8 from 16"):
            stylize(src.root, tmp_path / "s", style, size=size)
    with pytest.raises(ValueError, match="src is not empty"):
        stylize(src.root, src.root, Textures(number=1), size=None)

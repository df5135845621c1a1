"""The tensor model of JPEG beside Pillow's, and which of the two runs."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_image

import robust
from robust.corruptions import jpeg
from robust.corruptions.jpeg_tensor import _chroma_table, _luma_table, _scaled, compressed

QUALITIES = (25, 18, 15, 10, 7)


def photo(height: int, width: int) -> np.ndarray:
    return load_sample_image("china.jpg")[100 : 100 + height, 60 : 60 + width]


def by_pillow(picture: np.ndarray, quality: int) -> np.ndarray:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file))


@pytest.mark.parametrize("quality", QUALITIES)
def test_quantisation_tables_are_libjpegs(quality: int) -> None:
    file = io.BytesIO()
    Image.new("RGB", (16, 16)).save(file, "JPEG", quality=quality)
    with Image.open(file) as image:
        tables = image.quantization
    assert _scaled(_luma_table(), quality).flatten().tolist() == tables[0]
    assert _scaled(_chroma_table(), quality).flatten().tolist() == tables[1]


@pytest.mark.parametrize("quality", QUALITIES)
def test_the_model_is_within_a_level_of_pillow_in_96_of_100_values(quality: int) -> None:
    picture = photo(224, 224)
    levels = torch.from_numpy(picture.transpose(2, 0, 1).copy()).float()[None]
    found = compressed(levels, quality)[0].numpy().transpose(1, 2, 0)
    difference = np.abs(found - by_pillow(picture, quality).astype(float))
    assert difference.mean() < 0.25
    assert (difference > 1).mean() < 0.04
    assert np.abs(found - picture).mean() > 20 * difference.mean()


def test_sides_that_no_block_divides() -> None:
    picture = photo(75, 61)
    levels = torch.from_numpy(picture.transpose(2, 0, 1).copy()).float()[None]
    found = compressed(levels, 15)[0].numpy().transpose(1, 2, 0)
    assert found.shape == picture.shape
    assert np.abs(found - by_pillow(picture, 15).astype(float)).mean() < 0.6


def test_the_host_has_the_codec_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    assert jpeg.codec("cpu").startswith("JPEG by Pillow")
    assert jpeg.codec("meta").startswith("tensor model")
    picture = photo(64, 64)
    image = torch.from_numpy(picture.transpose(2, 0, 1).copy()).float()[None] / 255
    for severity, quality in enumerate(QUALITIES, start=1):
        found = robust.corrupt(image, "jpeg_compression", severity, seed=torch.tensor([0]))
        levels = (found[0] * 255).round().numpy().transpose(1, 2, 0)
        assert np.array_equal(levels, by_pillow(picture, quality))
    monkeypatch.setattr(jpeg, "find_spec", lambda name: None)
    assert jpeg.codec("cpu").startswith("tensor model")
    model = robust.corrupt(image, "jpeg_compression", 5, seed=torch.tensor([0]))
    assert 0 < float((model - found).abs().mean()) < 1 / 255

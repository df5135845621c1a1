"""PixelModel: images in [0, 1] in, logits out, normalisation inside."""

import pytest
import torch
from torch import nn

from models.pixel import PixelModel

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.5)


def pixel_model(backbone: nn.Module | None = None) -> PixelModel:
    return PixelModel(backbone or nn.Identity(), MEAN, STD, num_classes=10, image_size=8, name="identity")


def test_normalises_each_channel() -> None:
    image = torch.rand(2, 3, 8, 8)
    expected = torch.stack([(image[:, c] - MEAN[c]) / STD[c] for c in range(3)], 1)
    torch.testing.assert_close(pixel_model()(image), expected)


def test_normalisation_travels_with_the_weights() -> None:
    model = pixel_model()
    assert (model.num_classes, model.image_size, model.name) == (10, 8, "identity")
    assert set(model.state_dict()) == {"mean", "std"}
    assert not list(model.parameters())
    other = PixelModel(nn.Identity(), (0, 0, 0), (1, 1, 1), num_classes=10, image_size=8, name="identity")
    other.load_state_dict(model.state_dict())
    image = torch.rand(2, 3, 8, 8)
    assert torch.equal(other(image), model(image))


@pytest.mark.parametrize(("mean", "std"), [((0.5,), STD), (MEAN, (1.0, 1.0)), (MEAN, (0.2, 0.0, 0.2))])
def test_bad_normalisation(mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="must hold 3 numbers each, std above 0"):
        PixelModel(nn.Identity(), mean, std, num_classes=10, image_size=8, name="identity")

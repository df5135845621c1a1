"""Low precision for searches: the first layer in float32, the rest not, gradients that are of use."""

import torch
from torch import Tensor, nn

from robust.gradient import input_gradient
from robust.low_precision import low_precision

SEEN: list[torch.dtype] = []


class Looked(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        SEEN.append(x.dtype)
        return x


def model() -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Sequential(
        *(nn.Conv2d(3, 8, 3), Looked(), nn.ReLU(), nn.Conv2d(8, 8, 3), Looked()),
        *(nn.Flatten(), nn.Linear(8 * 16, 10)),
    )
    return layers.eval().requires_grad_(False)


def autocast() -> torch.autocast:
    return torch.autocast("cpu", torch.bfloat16)


def test_the_first_layer_is_float32_and_the_others_are_not() -> None:
    SEEN.clear()
    cheap, image = low_precision(model(), autocast), torch.rand(2, 3, 8, 8)
    for _ in range(2):
        assert cheap(image).dtype == torch.float32
    assert [torch.float32, torch.bfloat16] * 2 == SEEN


def test_a_perturbation_below_bf16_reaches_the_network() -> None:
    """1e-4 at 0.7 is nothing in bf16; the first layer sees it."""
    cheap, image = (
        low_precision(nn.Sequential(nn.Conv2d(3, 4, 1), nn.Flatten()), autocast),
        torch.full((1, 3, 2, 2), 0.7),
    )
    assert torch.equal((image + 1e-4).bfloat16(), image.bfloat16())
    assert not torch.equal(cheap(image), cheap(image + 1e-4))


def test_gradients_have_the_right_size_and_direction() -> None:
    net, image = model(), torch.rand(4, 3, 8, 8)
    wanted = input_gradient(net, image, lambda z: z[:, 0].sum())
    found = input_gradient(low_precision(net, autocast), image, lambda z: z[:, 0].sum())
    assert torch.nn.functional.cosine_similarity(wanted.flatten(1), found.flatten(1)).min() > 0.999
    assert found.dtype == torch.float32


def test_a_gradient_that_is_not_a_number_counts_as_zero() -> None:
    def predict(x: Tensor) -> Tensor:
        return (x.flatten(1) - 0.5).abs().sqrt()

    image = torch.full((1, 3, 1, 1), 0.5)
    image[0, 0] = 0.75
    found = input_gradient(low_precision(predict, autocast), image, lambda z: z.square().sum())
    assert torch.isfinite(found).all()
    assert found[0, 0] != 0

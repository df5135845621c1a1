"""The short attack before the long one: counts by hand on a linear model, and a model whose gradients lead astray."""

import torch
from torch import Tensor

from robust.probe import SEEDS, Probe, probe


def linear(image: Tensor) -> Tensor:
    """Two classes by the mean value, the border at 1/2."""
    value = image.mean(dim=(1, 2, 3)) - 0.5
    return torch.stack((-value, value), dim=1)


def test_on_a_linear_model_seeds_and_steps_do_not_matter() -> None:
    image = torch.linspace(0.3, 0.7, 20).view(-1, 1, 1, 1).expand(20, 3, 4, 4).contiguous()
    label = (image.mean(dim=(1, 2, 3)) > 0.5).to(torch.int64)
    found = probe(linear, image, label, eps=torch.tensor(0.1), norm="linf", keys=torch.arange(20))
    exact = int(((image[:, 0, 0, 0] - 0.5).abs() > 0.1).sum())
    assert found.num_images == 20
    assert found.right == (exact,) * SEEDS
    assert found.right_after_more == exact
    assert (found.seed_spread, found.undecided, found.more_is_weaker) == (0.0, 0, False)


def test_its_words() -> None:
    found = Probe(num_images=50, right=(20, 23, 21), undecided=4, right_after_more=22)
    assert found.seed_spread == 3 / 50
    assert found.more_is_weaker
    assert not found._replace(right_after_more=21).more_is_weaker, "one image is no more than the start"
    steps, seeds = found.notes
    assert "50 steps left 22 of 50 images right and with 10 steps 20" in steps
    assert "20 to 23 of 50" in seeds
    assert found._replace(right=(20, 21, 21), right_after_more=20).notes == (), "one of 50 is 2 %"
    few = Probe(num_images=8, right=(3, 4, 3), undecided=1, right_after_more=3)
    assert few.notes == (), "one image of few"
    assert len(few._replace(right=(2, 4, 3)).notes) == 1


def test_an_attack_of_more_steps_that_is_weaker_is_seen() -> None:
    """Gradients that point the wrong way: the random start breaks an image near the border, further steps mend it."""

    class Astray(torch.autograd.Function):
        @staticmethod
        def forward(ctx: object, value: Tensor) -> Tensor:
            return value.clone()

        @staticmethod
        def backward(ctx: object, gradient: Tensor) -> Tensor:
            return -gradient

    image = torch.full((16, 3, 2, 2), 0.5)
    label = torch.zeros(16, dtype=torch.int64)
    good = probe(linear, image, label, eps=torch.tensor(0.1), norm="linf", keys=torch.arange(16))
    poor = probe(
        lambda x: linear(Astray.apply(x)),
        image,
        label,
        eps=torch.tensor(0.1),
        norm="linf",
        keys=torch.arange(16),
    )
    assert good.right_after_more == 0
    assert poor.right_after_more == 16

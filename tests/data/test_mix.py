"""Mixing against a slow reference written per pixel, and against closed forms."""

import numpy as np
import pytest
import torch

from data.batch import BOX_X1, BOX_Y0, CUTMIX, LAM, MIX_ON, NUM_DRAWS
from data.draws import MixSettings, draw_eval, draw_train
from data.mix import mix

SETTINGS = MixSettings(mixup_alpha=0.8, cutmix_alpha=1.0, prob=0.8, group=2)


def reference(
    image: np.ndarray, label: np.ndarray, draw: np.ndarray, *, num_classes: int, smoothing: float
) -> tuple[np.ndarray, np.ndarray]:
    num, _, height, width = image.shape
    mixed, target = np.empty_like(image), np.empty((num, num_classes))
    for i in range(num):
        j = i + 1 if i % 2 == 0 else i - 1
        lam, _, cutmix, y0, y1, x0, x1, _ = draw[i]
        for y in range(height):
            for x in range(width):
                if cutmix:
                    source = j if y0 <= y < y1 and x0 <= x < x1 else i
                    mixed[i, :, y, x] = image[source, :, y, x]
                else:
                    mixed[i, :, y, x] = lam * image[i, :, y, x] + (1 - lam) * image[j, :, y, x]
        for k in range(num_classes):
            on, off = 1 - smoothing + smoothing / num_classes, smoothing / num_classes
            target[i, k] = lam * (on if label[i] == k else off) + (1 - lam) * (on if label[j] == k else off)
    return mixed, target


def random_batch(num: int = 40, size: int = 9) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(num, 3, size, size, generator=generator)
    label = torch.randint(0, 7, (num,), generator=generator)
    draw = draw_train(np.arange(num), SETTINGS, seed=0, epoch=0, batch_start=0, image_size=size)
    assert {0.0, 1.0} == set(draw[:, MIX_ON]) == set(draw[:, CUTMIX]), "all branches are wanted"
    return image, label, torch.from_numpy(draw)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_mix_equals_the_reference(smoothing: float) -> None:
    image, label, draw = random_batch()
    mixed, target = mix(image, label, draw, num_classes=7, smoothing=smoothing)
    expected = reference(image.numpy(), label.numpy(), draw.numpy(), num_classes=7, smoothing=smoothing)
    np.testing.assert_allclose(mixed.numpy(), expected[0], atol=1e-6)
    np.testing.assert_allclose(target.numpy(), expected[1], atol=1e-6)
    assert target.dtype == torch.float32


def test_targets_sum_to_one_and_images_stay_in_range() -> None:
    image, label, draw = random_batch()
    mixed, target = mix(image, label, draw, num_classes=7, smoothing=0.1)
    torch.testing.assert_close(target.sum(1), torch.ones(40))
    assert mixed.min() >= 0
    assert mixed.max() <= 1


def test_no_mixing_returns_the_image_bit_for_bit() -> None:
    image, label, _ = random_batch()
    mixed, target = mix(image, label, torch.from_numpy(draw_eval(40)), num_classes=7, smoothing=0.0)
    assert torch.equal(mixed, image)
    assert torch.equal(target, torch.nn.functional.one_hot(label, 7).float())


def test_a_pair_keeps_its_total() -> None:
    """Mixup and cutmix with one draw per pair only move mass: image i + image i^1 and their targets are
    unchanged.
    """
    image, label, draw = random_batch()
    mixed, target = mix(image, label, draw, num_classes=7, smoothing=0.0)
    torch.testing.assert_close(mixed[0::2] + mixed[1::2], image[0::2] + image[1::2])
    clean = torch.nn.functional.one_hot(label, 7).float()
    torch.testing.assert_close(target[0::2] + target[1::2], clean[0::2] + clean[1::2])


def test_cutmix_weight_is_the_visible_share() -> None:
    image = torch.stack([torch.zeros(3, 9, 9), torch.ones(3, 9, 9)])
    draw = torch.zeros(2, NUM_DRAWS)
    draw[:, MIX_ON] = draw[:, CUTMIX] = 1
    draw[:, BOX_Y0 : BOX_X1 + 1] = torch.tensor([0.0, 4.0, 7.0, 9.0])
    draw[:, LAM] = 1 - 8 / 81
    mixed, target = mix(image, torch.tensor([0, 1]), draw, num_classes=2, smoothing=0.0)
    torch.testing.assert_close(1 - mixed.mean((1, 2, 3)), torch.tensor([1 - 8 / 81, 8 / 81]))
    torch.testing.assert_close(target[0], torch.tensor([1 - 8 / 81, 8 / 81]))
    assert mixed[0, 0, 0, 7] == 1
    assert mixed[0, 0, 4, 7] == 0
    assert mixed[0, 0, 0, 6] == 0


def test_mix_is_one_graph_with_static_shapes() -> None:
    """Tracing fails on a host read or a shape that follows values."""
    image, label, draw = random_batch()
    program = torch.export.export(_Mix(), (image, label, draw))
    assert torch.equal(
        program.module()(image, label, draw)[0], mix(image, label, draw, num_classes=7, smoothing=0.1)[0]
    )


class _Mix(torch.nn.Module):
    def forward(
        self, image: torch.Tensor, label: torch.Tensor, draw: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return mix(image, label, draw, num_classes=7, smoothing=0.1)

"""Masked sums: closed forms."""

import math

import pytest
import torch

from bits.meters import Meters

CPU = torch.device("cpu")


def test_means_count_with_the_mask() -> None:
    meters = Meters(["loss", "top1"], CPU)
    mask = torch.tensor([True, True, False])
    meters.add_({"loss": torch.tensor([1.0, 2.0, 100.0]), "top1": torch.tensor([1.0, 0.0, 1.0])}, mask)
    meters.add_({"loss": torch.tensor([6.0, 0.0, 0.0]), "top1": torch.tensor([1.0, 1.0, 1.0])}, ~mask | mask)
    assert meters.means(meters.totals) == {"loss": 9.0 / 5, "top1": 4.0 / 5}


@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_padding_cannot_poison_a_sum(poison: float) -> None:
    meters = Meters(["loss"], CPU)
    meters.add_({"loss": torch.tensor([3.0, poison])}, torch.tensor([True, False]))
    assert meters.means(meters.totals) == {"loss": 3.0}


def test_nan_of_a_real_sample_is_seen() -> None:
    meters = Meters(["loss"], CPU)
    meters.add_({"loss": torch.tensor([3.0, math.nan])}, torch.tensor([True, True]))
    assert math.isnan(meters.means(meters.totals)["loss"])


def test_nothing_counted_is_nan_and_not_zero() -> None:
    meters = Meters(["loss"], CPU)
    assert math.isnan(meters.means(meters.totals)["loss"])


def test_snapshot_stays_and_reset_starts_anew() -> None:
    meters = Meters(["loss"], CPU)
    one = torch.ones(1, dtype=torch.bool)
    meters.add_({"loss": torch.tensor([2.0])}, one)
    snapshot = meters.snapshot()
    meters.reset_()
    meters.add_({"loss": torch.tensor([8.0])}, one)
    assert meters.means(snapshot) == {"loss": 2.0}
    assert meters.means(meters.totals) == {"loss": 8.0}


def test_sums_of_two_processes_give_the_mean_over_all_samples() -> None:
    """Uneven shares: the mean of means would be 3.5."""
    shares = [torch.tensor([1.0, 2.0, 3.0]), torch.tensor([5.0])]
    totals = torch.zeros(2, 1)
    for share in shares:
        meters = Meters(["loss"], CPU)
        meters.add_({"loss": share}, torch.ones(len(share), dtype=torch.bool))
        totals += meters.snapshot()
    assert meters.means(totals) == {"loss": 11.0 / 4}


def test_bf16_values_are_summed_in_float32() -> None:
    """2048 additions of 1 end at 256 in bf16."""
    meters = Meters(["hit"], CPU)
    for _ in range(8):
        meters.add_({"hit": torch.ones(256, dtype=torch.bfloat16)}, torch.ones(256, dtype=torch.bool))
    assert meters.totals.tolist() == [[2048.0], [2048.0]]


def test_names() -> None:
    with pytest.raises(ValueError, match="repeat"):
        Meters(["loss", "loss"], CPU)
    meters = Meters(["loss", "top1"], CPU)
    with pytest.raises(AssertionError, match="meters"):
        meters.add_({"loss": torch.zeros(1)}, torch.ones(1, dtype=torch.bool))

"""Shape bias of decisions whose truth is dialled, and what images' names say."""

import numpy as np
import pytest

from engine.metrics.intervals import wilson_interval
from engine.metrics.shape_bias import Cues, blind_to_texture, cue_names, is_cue64, of_counts, shape_bias

CUES = [Cues(i % 10, (i + 1 + i // 10 % 9) % 10) for i in range(900)]


def test_by_hand() -> None:
    found = shape_bias([(Cues(1, 2), 1), (Cues(1, 2), 1), (Cues(1, 2), 2), (Cues(1, 2), 7), (Cues(3, 3), 3)])
    assert (found["shape"], found["texture"], found["other"]) == (2, 1, 1)  # cues that agree say nothing
    assert found["value"] == pytest.approx(2 / 3)
    assert found["interval"] == list(wilson_interval(2, 3))


def test_the_ends() -> None:
    assert not any(cues.agree for cues in CUES)
    assert shape_bias((cues, cues.shape) for cues in CUES)["value"] == 1
    assert shape_bias((cues, cues.texture) for cues in CUES)["value"] == 0
    nothing = shape_bias((cues, 99) for cues in CUES)
    assert (nothing["value"], nothing["interval"], nothing["other"]) == (None, None, 900)


@pytest.mark.parametrize("dial", [0.05, 0.3, 0.5, 0.9])
def test_the_dialled_share_is_found_at_the_promised_rate(dial: float) -> None:
    """A decider that goes for the shape in a share `dial` of its decisions, and for neither now and then."""
    draw = np.random.default_rng(int(100 * dial))
    held = 0
    for _ in range(300):
        for_shape = draw.random(200) < dial
        neither = draw.random(200) < 0.1
        decisions = [
            (cues, 99 if none else cues.shape if shape else cues.texture)
            for cues, shape, none in zip(CUES[:200], for_shape, neither, strict=True)
        ]
        low, high = shape_bias(decisions)["interval"] or (1.0, 0.0)
        held += low <= dial <= high
    assert 0.91 <= held / 300 <= 0.985


def test_blind_to_texture() -> None:
    """Errors spread evenly: one in nine hits the texture's class."""
    draw = np.random.default_rng(3)
    num = 200_000
    label, step = draw.integers(0, 10, num), draw.integers(1, 10, num)
    wrong = (label + draw.integers(1, 10, num)) % 10
    prediction = np.where(draw.random(num) < 0.8, label, wrong)
    pairs = zip(label.tolist(), ((label + step) % 10).tolist(), prediction.tolist(), strict=True)
    found = shape_bias((Cues(shape, texture), choice) for shape, texture, choice in pairs)
    assert found["value"] == pytest.approx(blind_to_texture(0.8, 10), abs=2e-3)
    assert blind_to_texture(1.0, 10) == 1
    assert blind_to_texture(0.1, 10) == pytest.approx(0.5)  # a guess is as often the one as the other


def test_names() -> None:
    assert cue_names("shape3_texture7/000123") == ("3", "7")
    assert cue_names("airplane/airplane1-bicycle2") == ("airplane", "bicycle")
    assert cue_names("bear10-oven3.png") == ("bear", "oven")
    for name in ("shape3/000123", "shape3_unseen1/000123", "7/1234", "n01440764/ILSVRC2012_val_00000293"):
        assert cue_names(name) is None
    assert is_cue64("shape3_texture3/000001")
    assert not is_cue64("bear10-oven3.png")


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="a count is 0 or more"):
        of_counts(3, -1)
    for top1, num_classes in ((1.1, 10), (0.5, 1)):
        with pytest.raises(ValueError, match="needs a share from 0 to 1"):
            blind_to_texture(top1, num_classes)

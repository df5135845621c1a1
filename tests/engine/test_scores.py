"""Scores from logits to the ledger's sums, against numpy in double precision; shape bias from rows."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from engine.ledger import Ledger, LedgerWriter, Verdict, read_ledger
from engine.metrics.calibration import scores_of as sums_of
from engine.scores import calibrations, scores_of, shape_bias_of
from engine.verdict import SCORES, judge


def written(folder: Path, rows: list[Verdict]) -> Ledger:
    with LedgerWriter(folder, 0) as writer:
        writer.write(rows)
    return read_ledger(folder)


def test_scores_of_logits() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 4 * torch.randn(64, 7, generator=generator)
    label = torch.randint(7, (64,), generator=generator)
    found = judge(logits, label)
    exact = np.exp(logits.double().numpy())
    exact /= exact.sum(1, keepdims=True)
    own = exact[np.arange(64), label.numpy()]
    onehot = np.eye(7)[label.numpy()]
    scores = dict(zip(SCORES, found.scores.T.numpy(), strict=True))
    assert scores["confidence"] == pytest.approx(exact.max(1), abs=1e-6)
    assert scores["nll"] == pytest.approx(-np.log(own), rel=1e-5, abs=1e-6)
    assert scores["brier"] == pytest.approx(((exact - onehot) ** 2).sum(1), abs=1e-6)
    assert np.array_equal(scores["margin"], found.margin.numpy())


def test_extreme_logits() -> None:
    found = judge(
        torch.tensor([[1e4, 0.0, 0.0], [1e4, 0.0, 0.0], [math.nan, 0.0, 0.0]]), torch.tensor([0, 1, 0])
    )
    _, confidence, nll, brier = found.scores.T
    assert confidence[:2].tolist() == [1, 1]
    assert nll[:2].tolist() == [0, 1e4]
    assert brier[:2].tolist() == [0, 2]
    assert found.scores[2].isnan().all()


def test_sums_over_rows_are_sums_over_images(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    confidence = np.append(draw.uniform(0.1, 1, 298), [1.0, 14 / 15])  # both ends of the last bin
    correct, nll, brier = draw.random(300) < 0.6, draw.exponential(1, 300), draw.uniform(0, 2, 300)
    rows = [
        Verdict("e", f"{i}", "clean", i, 0, 0, bool(correct[i]), True, 1.0, None, None, None, *numbers)
        for i, numbers in enumerate(zip(confidence.tolist(), nll.tolist(), brier.tolist(), strict=True))
    ]
    unread = Verdict("e", "bad", "clean", 300, 0, -1, False, False, math.nan)
    book = written(tmp_path, [*rows, unread])
    found, wanted = book.scores("e", "clean"), sums_of(confidence, correct, nll, brier)
    assert found.num == wanted.num == 300
    assert found[1:5] == pytest.approx(wanted[1:5])
    assert [part[:2] for part in found.bins] == [part[:2] for part in wanted.bins]
    assert [part.confidence for part in found.bins] == pytest.approx([p.confidence for p in wanted.bins])
    assert calibrations(book, "e", ["clean", "pgd"]).keys() == {"clean"}


def cue_row(name: str, label: int, prediction: int, position: int) -> Verdict:
    return Verdict("e", name, "clean", position, label, prediction, label == prediction, True, 1.0)


def test_shape_bias_of_cue64(tmp_path: Path) -> None:
    decisions = [("shape3_texture7", 3, 3), ("shape3_texture7", 3, 7), ("shape7_texture3", 7, 7)]
    decisions += [("shape7_texture3", 7, 1)]
    rows = [cue_row(f"{n}/{i:06d}", label, p, i) for i, (n, label, p) in enumerate(decisions)]
    book = written(tmp_path, rows)
    assert shape_bias_of(book, "e") == scores_of(book, "e", ["clean"])["shape_bias"]
    found = shape_bias_of(book, "e")
    assert found is not None
    assert (found["shape"], found["texture"], found["other"]) == (2, 1, 1)


def test_shape_bias_of_named_cues(tmp_path: Path) -> None:
    """Class numbers come from the images of each shape; one whose texture no image's shape has is left out."""
    names = [("bear1-oven2", 2, 11), ("oven1-bear1", 11, 11), ("bear2-bear3", 2, 2), ("bear4-truck1", 2, 15)]
    rows = [cue_row(f"{n.rstrip('0123456789')}/{n}", label, p, i) for i, (n, label, p) in enumerate(names)]
    found = shape_bias_of(written(tmp_path, rows), "e")
    assert found is not None
    assert (found["shape"], found["texture"], found["other"]) == (1, 1, 0)


@pytest.mark.parametrize(
    "names",
    [["7/1234"], ["shape3/000001"], ["shape3_texture7/000001", "shape3_texture3/000002"], ["n01/ILSVRC_1"]],
)
def test_other_sets_have_none(names: list[str], tmp_path: Path) -> None:
    rows = [cue_row(name, 3, 3, i) for i, name in enumerate(names)]
    assert shape_bias_of(written(tmp_path, rows), "e") is None

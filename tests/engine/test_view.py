"""Views of logits, against loops over images and classes."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from engine.verdict import SCORES, judge
from engine.view import PLAIN, Seen, View

NUM_IMAGES, NUM_CLASSES = 60, 12
COLUMNS = ((3, 7), (0,), (), (11, 2, 5))  # of four classes of a set; one is not judged


def make_logits() -> Tensor:
    return torch.randn(NUM_IMAGES, NUM_CLASSES, generator=torch.Generator().manual_seed(0))


def labels_of(places: list[int]) -> Tensor:
    return torch.tensor([places[i % len(places)] for i in range(NUM_IMAGES)])


def seen(view: View, logits: Tensor, label: Tensor) -> Seen:
    return view.judge(logits, label, torch.arange(len(logits)), view.tables)


def test_plain_is_judge() -> None:
    logits, label = make_logits(), labels_of(list(range(NUM_CLASSES)))
    found = seen(PLAIN, logits, label)
    for one, other in zip(found.judged, judge(logits, label), strict=True):
        assert torch.equal(one, other)
    assert torch.equal(found.label, label)
    assert PLAIN.id == ""


@pytest.mark.parametrize("mean", [False, True])
def test_classes_of_several_columns_compete(mean: bool) -> None:
    logits, label = make_logits(), labels_of([0, 1, 3])
    view = View.competing(COLUMNS, mean=mean)
    found = seen(view, logits, label)
    probability = logits.softmax(dim=1)
    for i in range(NUM_IMAGES):
        scores = {
            place: float(probability[i, list(row)].mean()) if mean else float(logits[i, list(row)].max())
            for place, row in enumerate(COLUMNS)
            if row
        }
        best = max(scores, key=scores.__getitem__)
        assert int(found.judged.prediction[i]) == best, "in the numbers of the set's classes"
        assert bool(found.judged.correct[i]) == (best == int(label[i]))
        assert bool(found.judged.top5[i])
        other = max(value for place, value in scores.items() if place != int(label[i]))
        margin = (math.log if mean else float)(scores[int(label[i])]) - (math.log if mean else float)(other)
        assert float(found.judged.margin[i]) == pytest.approx(margin, abs=1e-5)
    assert 0 < int(found.judged.correct.sum()) < NUM_IMAGES
    assert view.id == ("mean3" if mean else "masked3")


def test_one_column_each_is_a_mask() -> None:
    """The 200-class rule: take the columns, nothing is renormalised, argmax."""
    logits, places = make_logits(), [1, 4, 9, 10]
    label = labels_of([0, 1, 2, 3])
    found = seen(View.competing([(place,) for place in places]), logits, label)
    assert torch.equal(found.judged.prediction, logits[:, places].argmax(dim=1))
    full = seen(View.any_of([(place,) for place in places], id="full12"), logits, label)
    assert torch.equal(full.judged.prediction, logits.argmax(dim=1))
    assert full.label.tolist() == [places[i] for i in label.tolist()]
    right = torch.tensor([places[i] for i in label.tolist()])
    for one, other in zip(full.judged, judge(logits, right), strict=True):
        assert torch.equal(one, other), "with one label each it is the usual verdict"
    assert bool((found.judged.correct | ~full.judged.correct).all()), "fewer rivals are never harder"
    assert int(found.judged.correct.sum()) > int(full.judged.correct.sum())


@pytest.mark.parametrize("by_key", [False, True])
def test_any_of_several_labels_is_right(by_key: bool) -> None:
    logits = make_logits()
    if by_key:
        rows = [tuple((i + step) % NUM_CLASSES for step in range(1 + i % 3)) for i in range(NUM_IMAGES)]
        label = labels_of([0])
    else:
        rows, label = [(3, 7), (0,), (1, 4, 6)], labels_of([0, 1, 2])
    found = seen(View.any_of(rows, id="real", by_key=by_key), logits, label)
    for i in range(NUM_IMAGES):
        right = rows[i if by_key else int(label[i])]
        order = logits[i].argsort(descending=True).tolist()
        assert bool(found.judged.correct[i]) == (order[0] in right)
        assert bool(found.judged.top5[i]) == bool(set(order[:5]) & set(right))
        own = max(float(logits[i, c]) for c in right)
        other = max(float(logits[i, c]) for c in range(NUM_CLASSES) if c not in right)
        assert float(found.judged.margin[i]) == pytest.approx(own - other, abs=1e-6)
        is_scored = not bool(found.judged.scores[i].isnan().any())
        assert is_scored == (len(right) == 1), "probabilities of several labels have no usual score"
    assert 0 < int(found.judged.correct.sum()) < NUM_IMAGES


@pytest.mark.parametrize(
    "view",
    [
        View.competing([(0,), (2,)]),
        View.competing([(0, 1), (2,)], mean=True),
        View.any_of([(0,), (2, 3)], id="x"),
    ],
)
def test_logits_that_are_no_numbers_are_wrong(view: View) -> None:
    logits = torch.zeros(3, 5)
    logits[:, 0] = 5.0
    logits[1, 4] = float("nan")  # of a class that does not compete
    logits[2, 0] = float("nan")
    found = seen(view, logits, torch.zeros(3, dtype=torch.int64))
    assert found.judged.correct.tolist() == [True, False, False]
    assert found.judged.top5.tolist() == [True, False, False]


def test_padding_has_some_verdict_and_no_error() -> None:
    label = torch.tensor([-1, 1])
    for view in (PLAIN, View.competing(COLUMNS), View.any_of([(1,), (2, 3), (4,)], id="x")):
        found = view.judge(torch.zeros(2, NUM_CLASSES), label, label, view.tables)
        assert found.judged.prediction.shape == (2,)
        assert found.judged.scores.shape == (2, len(SCORES))


def test_views_of_one_batch_agree_with_numpy_on_float64() -> None:
    """Mean probabilities of 100 columns each: no cancellation that matters."""
    logits = 20 * torch.randn(50, 300, generator=torch.Generator().manual_seed(1))
    columns = [tuple(range(start, start + 100)) for start in (0, 100, 200)]
    found = seen(View.competing(columns, mean=True), logits, torch.zeros(50, dtype=torch.int64))
    exact = np.exp(logits.double().numpy() - logits.double().numpy().max(axis=1, keepdims=True))
    means = np.stack([exact[:, row].mean(axis=1) for row in map(list, columns)], axis=1)
    assert found.judged.prediction.tolist() == means.argmax(axis=1).tolist()

"""Ledger rows of a batch: what was predicted for each image, and what an attack did to it."""

from collections.abc import Sequence

from torch import Tensor

from data.batch import Batch
from data.index import DatasetIndex
from engine.eval_fields import AttackEval, SuiteEval
from engine.ledger import Verdict
from engine.verdict import SCORES
from engine.view import of_view

CLEAN = "clean"
UNREADABLE = -1  # in place of the class that is predicted, in rows of bad images
Effort = tuple[int | None, int]


def rows_of_views(
    index: DatasetIndex,
    ids: Sequence[str],
    components: Sequence[str],
    effort: Effort,
    bad: set[int],
    batch: Batch,
    verdicts: dict[str, Tensor],
) -> list[Verdict]:
    """As `rows_of`; where `verdicts` are those of engine.view.judge_all, of each view under its id of `ids`."""
    if f"{CLEAN}/prediction" in verdicts:
        return rows_of(index, ids[0], components, effort, bad, batch, verdicts)
    rows = []
    for number, identity in enumerate(ids):
        label, seen = of_view(number, verdicts)
        seen = {f"{CLEAN}/{name}": verdict for name, verdict in seen.items()}
        rows += rows_of(index, identity, components, effort, bad, batch._replace(label=label), seen)
    return rows


def rows_of(
    index: DatasetIndex,
    identity: str,
    components: Sequence[str],
    effort: Effort,
    bad: set[int],
    batch: Batch,
    verdicts: dict[str, Tensor],
) -> list[Verdict]:
    """A row for each component of each image of the batch that is no padding.

    `verdicts`: `COMPONENT/NAME` of engine.verdict.judge's values, (N,) on the host. `bad`: positions of images that
    could not be read. An image is broken by a component that is wrong where the clean one is right.
    """
    rows = []
    step, queries = effort
    clean = verdicts[f"{CLEAN}/correct"].tolist()
    for component in components:
        names = ("prediction", "correct", "top5", "scores")
        columns = [verdicts[f"{component}/{name}"].tolist() for name in names]
        for slot, (prediction, correct, top5, scores) in enumerate(zip(*columns, strict=True)):
            if not batch.mask[slot]:
                continue
            position = int(batch.key[slot])
            if position in bad:  # the model saw a black square in its place
                prediction, correct, top5, scores = UNREADABLE, False, False, [float("nan")] * len(SCORES)
            broken = component != CLEAN and clean[slot] and not correct and position not in bad
            rows.append(
                Verdict(
                    evaluation=identity,
                    key=index.name(position),
                    component=component,
                    position=position,
                    label=int(batch.label[slot]),
                    prediction=prediction,
                    correct=bool(correct),
                    top5=bool(top5),
                    **dict(zip(SCORES, scores, strict=True)),
                    broken_by=component if broken else None,
                    step=step if broken else None,
                    queries=None if component == CLEAN else queries,
                )
            )
    return rows


def effort_of(entry: SuiteEval | AttackEval) -> Effort:
    """For an attack's rows: the step whose iterate is judged, and how many gradients were asked per image.

    No step where the strongest of several iterates or restarts is judged: which one it was is not kept.
    """
    if not isinstance(entry, AttackEval):
        return None, 0
    is_last = entry.restarts == 1 and not entry.best_iterate
    return entry.steps if is_last else None, entry.restarts * entry.steps

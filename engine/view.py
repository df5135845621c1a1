"""How logits become decisions on a set whose classes are not the model's: which columns compete, and which are right.

One forward pass may be judged in several views; each is an evaluation of its own in the ledger, under its own contract,
so that 200 competing classes and all 1000 are never taken for one number. Static shapes, no host read.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Self

import torch
from torch import Tensor

from engine.verdict import SCORES, Judged, judge

Tables = Mapping[str, Tensor]
Rule = Literal["same", "compete", "mean", "any"]


class Seen(NamedTuple):
    """Verdicts, and the labels in the numbers of their predictions."""

    label: Tensor  # int64 [N]
    judged: Judged

    def tensors(self) -> dict[str, Tensor]:
        return {"label": self.label, **self.judged._asdict()}


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """One way to judge logits [N,K]. `id` stands at the end of the contract.

    same: as they are. compete, mean: a score for each of S classes, the largest logit of its columns, or the log of
    their mean probability; labels and predictions are the set's. any: all columns, and each of a label's columns is
    right; labels are then the first of them.
    """

    id: str = ""
    rule: Rule = "same"
    by_key: bool = False  # any: columns of each image, not of each class
    tables: Tables = field(default_factory=dict)  # int64, on the host; see the constructors below

    @classmethod
    def competing(cls, columns: Sequence[Sequence[int]], *, mean: bool = False) -> Self:
        """Of columns for each of the set's classes; classes without one do not compete."""
        judged = [place for place, row in enumerate(columns) if row]
        place_of = {place: number for number, place in enumerate(judged)}
        tables = {
            "columns": _padded([columns[place] for place in judged]),
            "place": torch.tensor([place_of.get(place, -1) for place in range(len(columns))]),
            "class": torch.tensor(judged),
        }
        name = "mean" if mean else "masked"
        return cls(id=f"{name}{len(judged)}", rule="mean" if mean else "compete", tables=tables)

    @classmethod
    def any_of(cls, columns: Sequence[Sequence[int]], *, id: str, by_key: bool = False) -> Self:
        """Of the columns that are right for each class, or each image."""
        return cls(id=id, rule="any", by_key=by_key, tables={"columns": _padded(columns)})

    def judge(self, logits: Tensor, label: Tensor, key: Tensor, tables: Tables) -> Seen:
        """`tables`: the view's own, on the device. Rows of padding (label -1) hold no meaning."""
        if self.rule == "same":
            return Seen(label, judge(logits, label))
        if self.rule == "any":
            return _judge_any(logits, tables["columns"][(key if self.by_key else label).clamp(min=0)])
        scores = (
            _best(logits, tables["columns"]) if self.rule == "compete" else _mean(logits, tables["columns"])
        )
        judged = judge(scores, tables["place"][label.clamp(min=0)])
        return Seen(label, judged._replace(prediction=tables["class"][judged.prediction]))


PLAIN = View()


def judge_all(
    views: Sequence[View], logits: Tensor, label: Tensor, key: Tensor, tables: Sequence[Tables]
) -> dict[str, Tensor]:
    """`NUMBER/NAME` of every view's verdicts."""
    return {
        f"{number}/{name}": tensor
        for number, (view, own) in enumerate(zip(views, tables, strict=True))
        for name, tensor in view.judge(logits, label, key, own).tensors().items()
    }


def of_view(number: int, verdicts: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """Labels and verdicts of one view, of those of `judge_all`."""
    mine = {name.partition("/")[2]: v for name, v in verdicts.items() if name.startswith(f"{number}/")}
    return mine.pop("label"), mine


def _padded(rows: Sequence[Sequence[int]]) -> Tensor:
    """[R,M], short rows filled with -1."""
    longest = max(1, max(map(len, rows)))
    return torch.tensor([[*row, *[-1] * (longest - len(row))] for row in rows])


def _best(logits: Tensor, columns: Tensor) -> Tensor:
    """Largest logit of each class's columns: [N,K], [S,M] -> [N,S]."""
    found = logits.float()[:, columns.clamp(min=0)]
    return torch.where(columns >= 0, found, float("-inf")).amax(dim=2) + _nan_where_nan(logits)


def _mean(logits: Tensor, columns: Tensor) -> Tensor:
    """Log of the mean probability of each class's columns. Scores of one image differ by a constant from logits."""
    found = logits.float().log_softmax(dim=1)[:, columns.clamp(min=0)]
    count = (columns >= 0).sum(dim=1)
    return torch.where(columns >= 0, found, float("-inf")).logsumexp(dim=2) - count.log()


def _nan_where_nan(logits: Tensor) -> Tensor:
    """[N,1]: a nan in any column makes the image wrong, also one of a class that does not compete."""
    return torch.where(logits.isnan().any(dim=1, keepdim=True), float("nan"), 0.0)


def _judge_any(logits: Tensor, right: Tensor) -> Seen:
    """`right` int64 [N,M]: columns, filled with -1. Probabilities say nothing about several labels: margin alone."""
    logits = logits.float()
    first = right[:, 0].clamp(min=0)
    judged = judge(logits, first)
    is_number = ~logits.isnan().any(dim=1)
    columns = torch.arange(logits.shape[1], device=logits.device)
    is_right = (right[:, :, None] == columns).any(dim=1)  # [N,K]
    correct = is_right.gather(1, judged.prediction[:, None])[:, 0] & is_number
    best = logits.topk(min(5, logits.shape[1]), dim=1).indices
    top5 = (is_right.gather(1, best).any(dim=1) & is_number) | correct
    own = torch.where(is_right, logits, float("-inf")).amax(dim=1)
    other = torch.where(is_right, float("-inf"), logits).amax(dim=1)
    nothing = torch.full_like(own, float("nan"))
    several = torch.stack([own - other if name == "margin" else nothing for name in SCORES], dim=1)
    one_label = (right >= 0).sum(dim=1, keepdim=True) == 1
    return Seen(
        first, Judged(judged.prediction, correct, top5, torch.where(one_label, judged.scores, several))
    )

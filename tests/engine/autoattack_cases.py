"""What the tests of AutoAttack share: a model that counts, a version with small budgets, two processes as threads."""

import threading
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

from torch import Tensor, nn

from bits.environment import Environment, open_environment
from engine.autoattack import run_autoattack
from engine.eval_fields import AutoAttackEval
from engine.evaluate import Evaluator
from engine.ledger import Verdict, read_ledger
from engine.stop import Stopped
from robust.apgd import Apgd
from robust.fab import Fab
from robust.square import Square
from robust.versions import Part, Version

SIZE, LANES, NUM = 16, 8, 24
EPS = 20 / 255
COMPONENTS = ("clean", "apgd-ce", "apgd-t", "fab-t", "square")


def short(norm: str, num_classes: int) -> Version:
    """`standard` with budgets for a test."""
    parts = (
        Part(component=Apgd(loss="ce", iterations=4)),
        Part(component=Apgd(loss="dlr-targeted", iterations=5), targets=2),
        Part(component=Fab(iterations=3), targets=2),
        Part(component=Square(queries=30)),
    )
    return Version(id="short", parts=parts)


class NearestMean(nn.Module):
    """Logits are minus the squared distances to the mean image of each class; counts what it is asked."""

    def __init__(self, means: Tensor) -> None:
        super().__init__()
        self.means = nn.Parameter(means)
        self.num_calls = 0

    def forward(self, image: Tensor) -> Tensor:
        self.num_calls += 1
        return -(image[:, None] - self.means).square().sum(dim=(2, 3, 4)) / 10


def rows_of(evaluator: Evaluator, result: dict[str, Any]) -> dict[tuple[str, str], Verdict]:
    """By image and component; margins to five digits, for a verdict may be had in another batch."""
    rows = read_ledger(evaluator.ledger).rows(result["evaluation"])
    return {(row.key, row.component): row._replace(margin=float(f"{row.margin:.3g}")) for row in rows}


def replace_entry(entry: AutoAttackEval, **changes: Any) -> AutoAttackEval:
    return entry.model_copy(update=changes)


def num_calls(evaluator: Evaluator) -> int:
    assert isinstance(evaluator.model, NearestMean)
    return evaluator.model.num_calls


class Together:
    """An environment of two processes, each a thread here."""

    def __init__(self) -> None:
        self.wall, self.said = threading.Barrier(2, timeout=60), [0, 0]

    def env(self, rank: int) -> Environment:
        alone = open_environment("cpu")
        return SimpleNamespace(  # type: ignore[return-value]
            rank=rank,
            world_size=2,
            num_devices=1,
            feed=alone.feed,
            cut=alone.cut,
            repeated=alone.repeated,
            compiles=False,
            device=alone.device,
            parts=2,
            barrier=self.wall.wait,
            agree=lambda value: self.agree(rank, value),
        )

    def agree(self, rank: int, value: int) -> int:
        self.said[rank] = value
        self.wall.wait()
        largest = max(self.said)
        self.wall.wait()
        return largest


def in_two(evaluator: Evaluator, entry: AutoAttackEval, *stops: Callable[[], bool]) -> list[Any]:
    """What the two processes return or raise."""
    together, found = Together(), [None, None]

    def work(rank: int) -> None:
        stop = stops[rank] if stops else lambda: False
        try:
            own = replace(evaluator, env=together.env(rank), stop_asked=stop)
            found[rank] = run_autoattack(own, entry)  # type: ignore[call-overload]
        except Stopped as stopped:
            found[rank] = stopped  # type: ignore[call-overload]

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found

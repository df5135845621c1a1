"""A process that is killed loses a chunk of steps at most: what it asked the model for is not asked again."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from engine import block_attack, lane_state
from engine.autoattack import run_autoattack
from engine.eval_fields import AutoAttackEval
from engine.evaluate import Evaluator
from engine.lane_state import LaneKeeper
from engine.ledger import LedgerWriter
from robust.apgd import Apgd
from robust.stage import Answer, Device, Slot, Stage
from tests.engine.autoattack_cases import NearestMean, num_calls, replace_entry, rows_of

CHUNK = 2
LOOK = 150  # passes: more than the look at the model before its attack
LIFE = 30
# In passes: a chunk (FAB has two a step), the clean verdicts of the block, and verdicts on what the chunk has found.
MOST_LOST = 2 * CHUNK + 1 + 4


class Killed(BaseException):
    """Nothing behind it is done any more."""


class Mortal:
    """Makes model, ledger and lanes stop at the `left`-th pass of the model."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.left = -1
        for owner, name in ((NearestMean, "forward"), (LedgerWriter, "write"), (LaneKeeper, "keep")):
            monkeypatch.setattr(owner, name, self._mortal(getattr(owner, name), is_pass=name == "forward"))

    def _mortal(self, real: Any, *, is_pass: bool) -> Any:
        def call(*arguments: Any) -> Any:
            if self.left == 0:
                raise Killed
            self.left -= is_pass and self.left > 0
            return real(*arguments)

        return call


@pytest.mark.parametrize("saves", [False, True])
def test_a_kill_loses_one_chunk_at_most(
    saves: bool, evaluator: Evaluator, entry: AutoAttackEval, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = replace_entry(entry, save_images=saves)
    monkeypatch.setattr(block_attack, "CHUNK", CHUNK)
    monkeypatch.setattr(lane_state, "MOST_SHARE", 1e9)
    whole = run_autoattack(evaluator, entry)
    calls = num_calls(evaluator)
    mortal, broken = Mortal(monkeypatch), replace(evaluator, ledger=tmp_path / "broken/ledger")
    for kills in range(1000):
        mortal.left = LIFE if kills else LOOK
        try:
            result = run_autoattack(broken, entry)
            break
        except Killed:
            continue
    assert kills > 5
    assert {**result, "notes": 0} == {**whole, "notes": 0}
    assert rows_of(broken, result) == rows_of(evaluator, whole)
    assert num_calls(evaluator) - calls <= calls + kills * MOST_LOST


def test_lanes_that_are_dear_are_kept_less_often(
    evaluator: Evaluator, entry: AutoAttackEval, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[int] = []
    real = LaneKeeper.keep

    def keep(keeper: LaneKeeper, stage: Any, block: int) -> None:
        kept.append(block)
        real(keeper, stage, block)

    monkeypatch.setattr(LaneKeeper, "keep", keep)
    monkeypatch.setattr(block_attack, "CHUNK", 1)
    monkeypatch.setattr(lane_state, "MOST_SHARE", 1e-9)
    run_autoattack(evaluator, entry)
    assert len(kept) == 1, "20 times what it took has not passed yet"


def test_a_torn_file_of_lanes_is_not_used(
    evaluator: Evaluator, entry: AutoAttackEval, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A flipped byte would be another state, which breaks other images: only the checksum can tell."""
    monkeypatch.setattr(block_attack, "CHUNK", CHUNK)
    monkeypatch.setattr(lane_state, "MOST_SHARE", 1e9)
    mortal = Mortal(monkeypatch)
    mortal.left = LOOK
    with pytest.raises(Killed):
        run_autoattack(evaluator, entry)
    path = evaluator.ledger / "lanes-0.safetensors"
    data = bytearray(path.read_bytes())
    data[-4000] ^= 255
    path.write_bytes(data)
    seen: list[bool] = []
    real = LaneKeeper.restore

    def restore(keeper: LaneKeeper, *arguments: Any) -> bool:
        seen.append(real(keeper, *arguments))
        return seen[-1]

    monkeypatch.setattr(LaneKeeper, "restore", restore)
    mortal.left = -1
    result = run_autoattack(evaluator, entry)
    assert not any(seen)
    fresh = run_autoattack(replace(evaluator, ledger=tmp_path / "fresh/ledger"), entry)
    assert {**fresh, "notes": 0} == {**result, "notes": 0}


def test_what_waits_for_a_verdict_is_kept(tmp_path: Path) -> None:
    """Points that the search found and nobody has judged are as dear as lanes."""

    def stage() -> Stage:
        image = torch.rand(5, 3, 4, 4, generator=torch.Generator().manual_seed(1))
        return Stage(
            component=Apgd(loss="ce", iterations=3),
            predict=lambda x: x.flatten(1)[:, :6],
            image=image,
            label=torch.zeros(5, dtype=torch.int64),
            eps=torch.tensor(0.1),
            keys=range(5),
            seed=0,
            num_lanes=2,
            chunk=1,
            device=Device(feed=lambda tensor: tensor),
        )

    one, other = stage(), stage()
    next(one.run({0: [0], 1: [0], 2: [0]}), None)
    one.pending = [Answer(2, 0, True, 3, True), Answer(4, 0, True, 1, True)]
    one.adversarial = one.adversarial + torch.arange(6.0).view(-1, 1, 1, 1)
    keeper = LaneKeeper(folder=tmp_path, rank=0, evaluation="e")
    one.slots = [Slot(3, 0, 1), Slot(1, 0, 1)]
    keeper.keep(one, 7)
    assert keeper.restore(other, 7, done={4})
    assert other.pending == one.pending[:1]
    assert torch.equal(other.adversarial[2], one.adversarial[2])
    assert other.slots == one.slots
    assert torch.equal(other.state.lanes.clean, other.image[torch.tensor([3, 1])])
    assert not keeper.restore(stage(), 8, done=set()), "another block"

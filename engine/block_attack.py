"""AutoAttack on a block of an evaluation's images: verdicts go into the ledger as they come.

An image's random stream is a function of its name in the data set, so that a subset, another order or another process
asks the same questions.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from bits.environment import Environment
from data.batch import Batch
from data.index import DatasetIndex
from data.order import hash64
from engine.adversarial_store import AdversarialStore
from engine.lane_state import LaneKeeper
from engine.ledger import LedgerWriter, Verdict
from engine.rows import CLEAN, UNREADABLE
from engine.stop import Stopped
from robust.block import BlockAttack, Outcome
from robust.stage import Device, Stage
from robust.versions import Version

CHUNK = 10  # steps between two looks at the lanes: a host read each
Known = Mapping[str, Mapping[int, bool]]
"""component -> {position: broken}: what the ledger has."""


@dataclass(slots=True)
class Count:
    """How far this process is, for the person who watches."""

    total: int
    done: int = 0  # images that nothing more is done to
    right: int = 0  # of these

    def add(self, *, is_right: bool) -> None:
        self.done += 1
        self.right += is_right

    def __str__(self) -> str:
        share = 100 * self.right / max(1, self.done)
        bound = 100 * (self.total - self.done + self.right) / max(1, self.total)
        return f"{self.done} of {self.total} images done, {share:.2f} % of them robust; at most {bound:.2f} % of all"


class Member(NamedTuple):
    """An image of a block that can be read."""

    position: int
    name: str
    label: int


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockJob:
    """What all blocks of an evaluation share."""

    env: Environment
    model: nn.Module
    index: DatasetIndex
    version: Version
    eps: float
    seed: int
    lanes: int
    size: int  # images of a block, the last one's filled up
    identity: str
    writer: LedgerWriter
    keeper: LaneKeeper
    store: AdversarialStore | None
    count: Count
    stop_asked: Callable[[], bool]
    on_progress: Callable[[], None]

    def run(self, number: int, batch: Batch, bad: set[int], known: Known) -> None:
        """Attacks the images of block `number` that are not in `known` to their end; raises Stopped between chunks."""
        self.writer.write(self._bad_row(batch, slot) for slot in _slots(batch) if int(batch.key[slot]) in bad)
        slots = [slot for slot in _slots(batch) if int(batch.key[slot]) not in bad]
        members = [self._member(batch, slot) for slot in slots]
        if not members:
            return
        image = torch.zeros(self.size, *batch.image.shape[1:], dtype=torch.uint8)
        image[: len(slots)] = batch.image[torch.tensor(slots)]
        names = [member.name for member in members]
        if self.store is not None and not self.store.has(number, names):
            self.store.begin(number, names, (image[: len(slots)].float() / 255.0).numpy())
            known = {}  # what broke them has to be found again
        place = {member.position: row for row, member in enumerate(members)}
        rows = {
            part: {place[p]: broken for p, broken in verdicts.items() if p in place}
            for part, verdicts in known.items()
        }
        _BlockRun(job=self, number=number, members=members, known=rows).run(image)

    def attack(self, members: Sequence[Member], image: Tensor) -> BlockAttack:
        """`image` uint8 (size,3,H,W) on the host."""
        label = torch.zeros(self.size, dtype=torch.int64)
        label[: len(members)] = torch.tensor([member.label for member in members])
        whole = {"image": image, "label": label, "eps": torch.tensor(self.eps)}
        fed = self.env.feed(whole, split=False)
        return BlockAttack(
            predict=self.model,
            verdict=self.model,
            image=fed["image"].float() / 255.0,
            label=fed["label"],
            eps=fed["eps"],
            keys=[stream_key(member.name) for member in members],
            parts=self.version.parts,
            seed=self.seed,
            num_lanes=self.lanes,
            chunk=CHUNK,
            device=Device(feed=partial(_feed, self.env), cut=self.env.cut),
        )

    def _member(self, batch: Batch, slot: int) -> Member:
        position = int(batch.key[slot])
        return Member(position, self.index.name(position), int(batch.label[slot]))

    def _bad_row(self, batch: Batch, slot: int) -> Verdict:
        member = self._member(batch, slot)
        self.count.add(is_right=False)
        return Verdict(
            evaluation=self.identity,
            key=member.name,
            component=CLEAN,
            position=member.position,
            label=member.label,
            prediction=UNREADABLE,
            correct=False,
            top5=False,
            margin=float("nan"),
        )


@dataclass(slots=True, kw_only=True)
class _BlockRun:
    """One block, from its images to its rows."""

    job: BlockJob
    number: int
    members: Sequence[Member]
    known: Mapping[str, Mapping[int, bool]]  # by row
    attack: BlockAttack = field(init=False)
    pending: list[Outcome] = field(init=False, default_factory=list)

    def run(self, image: Tensor) -> None:
        self.attack = self.job.attack(self.members, image)
        self.attack.on_chunk, self.attack.on_stage = self._between, self._begin
        try:
            for outcome in self.attack.run(self.known):
                self.pending.append(outcome)
        finally:
            self._write()
        self._count_known()

    def _begin(self, stage: Stage) -> None:
        done = set(self.known.get(stage.component.name, {}))
        done |= {row for row, name in enumerate(self.attack.broken_by) if name is not None}
        self.job.keeper.restore(stage, self.number, done)

    def _between(self, stage: Stage) -> None:
        """Between two chunks: what is known by now is written, and a request to stop is heard."""
        self._write()
        if self.job.stop_asked():
            self.job.keeper.keep(stage, self.number)
            raise Stopped
        self.job.keeper.look(stage, self.number)

    def _write(self) -> None:
        """One transaction; the images first, so that no row is without its own."""
        new = [o for o in self.pending if o.row not in self.known.get(o.component, {})]
        self.pending.clear()
        if not new:
            return
        rows = [o.row for o in new if o.broken and o.component != CLEAN]
        if self.job.store is not None:
            self._store(self.job.store, rows)
        self.job.writer.write([self._row(outcome) for outcome in new])
        last = self.job.version.parts[-1].name
        for outcome in new:
            if outcome.broken or outcome.component == last:
                self.job.count.add(is_right=not outcome.broken)
        self.job.on_progress()

    def _store(self, store: AdversarialStore, rows: Sequence[int]) -> None:
        size = self.job.lanes  # one shape for any number of rows
        for start in range(0, len(rows), size):
            part = list(rows[start : start + size])
            place = torch.tensor(part + [part[-1]] * (size - len(part)))
            fed = self.job.env.feed({"rows": place}, split=False)["rows"]
            image = self.attack.adversarial.index_select(0, fed).cpu()
            store.put(self.number, part, image[: len(part)].numpy())

    def _row(self, outcome: Outcome) -> Verdict:
        member, is_clean = self.members[outcome.row], outcome.component == CLEAN
        prediction = outcome.prediction
        if is_clean:  # -1 says that an image could not be read
            prediction = int(self.attack.clean.logits[outcome.row].argmax())
        return Verdict(
            evaluation=self.job.identity,
            key=member.name,
            component=outcome.component,
            position=member.position,
            label=member.label,
            prediction=prediction,
            correct=not outcome.broken,
            top5=outcome.rank < 5,
            margin=outcome.margin,
            broken_by=outcome.component if outcome.broken and not is_clean else None,
            step=outcome.steps if outcome.broken and not is_clean else None,
            queries=None if is_clean else self._passes(outcome),
        )

    def _passes(self, outcome: Outcome) -> int:
        """Forward and backward passes that were spent on the image."""
        (component,) = (p.component for p in self.job.version.parts if p.name == outcome.component)
        steps = max(0, outcome.tries - 1) * component.steps + outcome.steps
        return round(steps * (component.passes.forward + component.passes.backward))

    def _count_known(self) -> None:
        """Images whose end the ledger had."""
        last = self.job.version.parts[-1].name
        for part, rows in self.known.items():
            for broken in rows.values():
                if broken or part == last:
                    self.job.count.add(is_right=not broken)
        self.job.on_progress()


def stream_key(name: str) -> int:
    """What stands for an image in its random streams, whatever set it is in."""
    return int(hash64("attack", name))


def _slots(batch: Batch) -> list[int]:
    return [slot for slot, is_there in enumerate(batch.mask.tolist()) if is_there]


def _feed(env: Environment, tensor: Tensor) -> Tensor:
    """Lanes are divided over the devices; so few that they cannot be are on all of them."""
    return env.feed({"lanes": tensor}, split=len(tensor) % env.num_devices == 0)["lanes"]

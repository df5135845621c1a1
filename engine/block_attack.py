"""AutoAttack on a block of an evaluation's images: verdicts go into the ledger as they come.

An image's random stream is a function of its name in the data set, so that a subset, another order or another process
asks the same questions.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from bits.environment import Environment
from data.batch import Batch
from data.index import DatasetIndex
from data.order import hash64
from engine.adversarial_store import AdversarialStore
from engine.attack_checks import Checks, look_again
from engine.attack_pace import Count
from engine.attack_pictures import AttackPictures
from engine.attack_rows import Member, bad_row, row_of
from engine.lane_state import LaneKeeper
from engine.ledger import LedgerWriter, Verdict
from engine.rows import CLEAN
from engine.stop import Stopped
from robust.block import BlockAttack, Outcome
from robust.gradient import Predict
from robust.lanes import Norm
from robust.stage import Device, Stage
from robust.versions import Version

CHUNK = 10  # steps between two looks at the lanes: a host read each
Known = Mapping[str, Mapping[int, bool]]
"""component -> {position: broken}: what the ledger has."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockJob:
    """What all blocks of an evaluation share."""

    env: Environment
    model: nn.Module
    search: Predict  # the model, or the same in low precision
    index: DatasetIndex
    version: Version
    norm: Norm
    eps: float
    seed: int
    lanes: int
    size: int  # images of a block, the last one's filled up
    identity: str
    writer: LedgerWriter
    keeper: LaneKeeper
    store: AdversarialStore | None
    checks: Checks
    pictures: AttackPictures
    count: Count
    stop_asked: Callable[[], bool]
    on_progress: Callable[[], None]

    def run(self, number: int, batch: Batch, bad: set[int], known: Known) -> None:
        """Attacks the images of block `number` that are not in `known` to their end; raises Stopped between chunks."""
        unread = [self._member(batch, slot) for slot in _slots(batch) if int(batch.key[slot]) in bad]
        self.writer.write(bad_row(self.identity, member) for member in unread)
        for _ in unread:
            self.count.add(CLEAN, is_right=False)
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
            predict=self.search,
            verdict=self.model,
            image=fed["image"].float() / 255.0,
            label=fed["label"],
            eps=fed["eps"],
            keys=[stream_key(member.name) for member in members],
            parts=self.version.parts,
            seed=self.seed,
            num_lanes=self.lanes,
            chunk=CHUNK,
            device=self.device,
        )

    @property
    def device(self) -> Device:
        env = self.env
        return Device(feed=partial(_feed, env), cut=env.cut, repeated=env.repeated, compiles=env.compiles)

    def _member(self, batch: Batch, slot: int) -> Member:
        position = int(batch.key[slot])
        return Member(position, self.index.name(position), int(batch.label[slot]))


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
        self.job.count.spend(None)
        self._count_known()

    def _begin(self, stage: Stage) -> None:
        self.job.count.spend(None)
        done = set(self.known.get(stage.component.name, {}))
        done |= {row for row, name in enumerate(self.attack.broken_by) if name is not None}
        self.job.keeper.restore(stage, self.number, done)

    def _between(self, stage: Stage) -> None:
        """Between two chunks: what is known by now is written, and a request to stop is heard."""
        self.job.count.spend(stage.component.name)
        self._write()
        if self.job.stop_asked():
            self.job.keeper.keep(stage, self.number)
            raise Stopped
        self.job.keeper.look(stage, self.number)

    def _write(self) -> None:
        """One transaction; what belongs to rows comes first, so that none is without its own."""
        new = [o for o in self.pending if o.row not in self.known.get(o.component, {})]
        self.pending.clear()
        if not new:
            return
        rows = [o.row for o in new if o.broken and o.component != CLEAN]
        if rows:
            self._look_again(rows)
        if self.job.store is not None:
            self._fetch(rows, partial(self.job.store.put, self.number))
        shown = [row for row in rows if self.members[row].position in self.job.pictures.wanted]
        self._fetch(shown, self._show)
        self.job.writer.write([self._row(outcome) for outcome in new])
        for outcome in new:
            self.job.count.add(outcome.component, is_right=not outcome.broken)
        self.job.on_progress()

    def _look_again(self, rows: Sequence[int]) -> None:
        job, attack = self.job, self.attack
        found = look_again(
            job.model,
            attack.adversarial,
            attack.image,
            attack.label,
            rows,
            [member.name for member in self.members],
            norm=job.norm,
            batch=job.lanes,
            device=job.device,
        )
        job.checks.add(found)

    def _fetch(self, rows: Sequence[int], put: Callable[[Sequence[int], NDArray[np.float32]], None]) -> None:
        """What broke `rows`, to the host."""
        size = self.job.lanes  # one shape for any number of rows
        for start in range(0, len(rows), size):
            part = list(rows[start : start + size])
            place = torch.tensor(part + [part[-1]] * (size - len(part)))
            fed = self.job.env.feed({"rows": place}, split=False)["rows"]
            image = self.attack.adversarial.index_select(0, fed).cpu()
            put(part, image[: len(part)].numpy())

    def _show(self, rows: Sequence[int], image: NDArray[np.float32]) -> None:
        for row, picture in zip(rows, image, strict=True):
            self.job.pictures.put(self.members[row].position, picture)

    def _row(self, outcome: Outcome) -> Verdict:
        return row_of(
            self.job.identity,
            self.members[outcome.row],
            outcome,
            self.job.version,
            clean_prediction=int(self.attack.clean.logits[outcome.row].argmax()),
        )

    def _count_known(self) -> None:
        """Images whose end the ledger had."""
        for part, rows in self.known.items():
            for broken in rows.values():
                self.job.count.add(part, is_right=not broken, is_known=True)
        self.job.on_progress()


def stream_key(name: str) -> int:
    """What stands for an image in its random streams, whatever set it is in."""
    return int(hash64("attack", name))


def _slots(batch: Batch) -> list[int]:
    return [slot for slot, is_there in enumerate(batch.mask.tolist()) if is_there]


def _feed(env: Environment, tensor: Tensor) -> Tensor:
    """Lanes are divided over the devices; so few that they cannot be are on all of them."""
    return env.feed({"lanes": tensor}, split=len(tensor) % env.num_devices == 0)["lanes"]

"""One component on many images: lanes are filled, stepped in chunks, read, and refilled until every image is answered.

An image is in one lane at a time and makes its tries (target classes, restarts) in order; the first that finds a point
ends them. The host decides between chunks only: one transfer in where a lane is refilled, one out.
"""

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from robust.gradient import Predict
from robust.lanes import Component, Lanes, each, pick
from robust.stream import question_seed

EMPTY = -1  # in place of an image's row


Step = Callable[[Any], Any]
"""A state of lanes to the next one."""


class Slot(NamedTuple):
    """What a lane works on; `row` EMPTY where there is nothing left."""

    row: int
    number: int  # of the try
    steps: int  # made so far


class Answer(NamedTuple):
    """A try that ended."""

    row: int
    number: int
    found: bool
    steps: int
    is_last: bool  # no further try of this image


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """How lanes reach the machine: what the attack needs of a device environment."""

    feed: Callable[[Tensor], Tensor]  # host to device, axis 0 are the lanes
    cut: Callable[[], None] = lambda: None  # ends a lazy graph
    repeated: Callable[[Step], Step] = lambda step: step  # for many calls, in which weights stay as they are
    compiles: bool = False  # each new shape costs a graph, so there is to be but one


@dataclass(slots=True, kw_only=True)
class Stage:
    """A component's work on the M images of a block; `adversarial` holds what it found, row by row."""

    component: Component
    predict: Predict
    image: Tensor  # (M,3,H,W) float in [0,1], on the device
    label: Tensor  # int64 [M]
    eps: Tensor  # 0-dim, in pixel units
    keys: Sequence[int]  # of the images: their random streams
    seed: int
    num_lanes: int
    chunk: int
    device: Device
    on_chunk: Callable[["Stage"], None] = (
        lambda stage: None
    )  # between two chunks: may keep the state, or raise
    adversarial: Tensor = field(init=False)
    slots: list[Slot] = field(init=False)
    pending: list[Answer] = field(init=False)  # claims that nobody has judged yet
    state: Any = field(init=False, default=None)
    steps_run: int = field(init=False, default=0)  # of the whole batch: what the model was asked for
    _step: Step = field(init=False)

    def __post_init__(self) -> None:
        # One row more: empty lanes write there.
        self.adversarial = torch.cat((self.image, self.image[:1]))
        self.slots = [Slot(EMPTY, 0, 0)] * self.num_lanes
        self.pending = []
        self._step = self.device.repeated(partial(self.component.step, self.predict))

    def run(self, tries: Mapping[int, Sequence[int]]) -> Iterator[Answer]:
        """Answers as they come; `tries` are the target classes of each row to be attacked, in order."""
        busy = {slot.row for slot in self.slots} | {answer.row for answer in self.pending}
        waiting = deque(row for row in tries if row not in busy)
        while True:
            self._refill(waiting, tries)
            if all(slot.row == EMPTY for slot in self.slots):
                return
            yield from self._chunk(tries)
            self.on_chunk(self)

    def _refill(self, waiting: deque[int], tries: Mapping[int, Sequence[int]]) -> None:
        fresh = [False] * self.num_lanes
        for lane, slot in enumerate(self.slots):
            if slot.row == EMPTY and waiting:
                self.slots[lane] = Slot(waiting.popleft(), 0, 0)
            fresh[lane] = self.slots[lane].row != EMPTY and self.slots[lane].steps == 0
        if not any(fresh):
            return
        state = self.component.init(self._lanes(tries))
        if self.state is None:
            # Nothing to keep yet; zeros from the host, so that the first fill is the graph of the later ones.
            fresh = [True] * self.num_lanes
            self.state = each(lambda t: self.device.feed(torch.zeros(t.shape, dtype=t.dtype)), state)
        state = pick(self._fed(fresh), state, self.state)
        is_empty = self._fed([slot.row == EMPTY for slot in self.slots])
        steps = torch.where(is_empty, torch.full_like(state.step, self.component.steps), state.step)
        self.state = state._replace(step=steps)
        self.device.cut()

    def _lanes(self, tries: Mapping[int, Sequence[int]]) -> Lanes:
        """The questions of all lanes; empty ones ask about image 0."""
        numbers = [
            (max(s.row, 0), tries[s.row][s.number], self._seed_of(s)) if s.row != EMPTY else (0, 0, 0)
            for s in self.slots
        ]
        row, target, seed = self._fed(numbers).unbind(1)
        clean = self.image.index_select(0, row)
        return Lanes(
            clean=clean,
            label=self.label.index_select(0, row),
            target=target,
            eps=self.eps.to(clean.dtype).expand(self.num_lanes),
            seed=seed,
        )

    def _seed_of(self, slot: Slot) -> int:
        return question_seed(self.seed, self.keys[slot.row], self.component.name, slot.number)

    def _fed(self, values: Sequence[Any]) -> Tensor:
        return self.device.feed(torch.tensor(values))

    def _chunk(self, tries: Mapping[int, Sequence[int]]) -> Iterator[Answer]:
        # Every lane that works makes each step, so the host knows when the next one can be done at the latest.
        left = min(self.component.steps - slot.steps for slot in self.slots if slot.row != EMPTY)
        count = max(1, min(self.chunk, left))
        for _ in range(count):
            self.state = self._step(self.state)
            self.device.cut()
        self.steps_run += count
        found, steps = torch.stack((self.state.found.to(torch.int64), self.state.step)).cpu().tolist()
        if any(found):
            self._keep_found()
        for lane, slot in enumerate(self.slots):
            if slot.row == EMPTY:
                continue
            self.slots[lane] = slot._replace(steps=steps[lane])
            if found[lane] or steps[lane] >= self.component.steps:
                is_last = bool(found[lane]) or slot.number + 1 == len(tries[slot.row])
                self.slots[lane] = Slot(EMPTY, 0, 0) if is_last else Slot(slot.row, slot.number + 1, 0)
                yield Answer(slot.row, slot.number, bool(found[lane]), steps[lane], is_last)

    def _keep_found(self) -> None:
        """Points of all lanes that found one, into their images' rows; the others into the spare row."""
        place = self._fed([slot.row if slot.row != EMPTY else len(self.keys) for slot in self.slots])
        spare = torch.full_like(place, len(self.keys))
        place = torch.where(self.state.found, place, spare)
        self.adversarial = self.adversarial.index_copy(0, place, self.state.adversarial)
        self.device.cut()

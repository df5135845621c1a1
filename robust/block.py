"""A version of AutoAttack on a block of images: component after component, each on the images that are left.

A search claims; the verdict decides. An image whose claimed point the model classifies right after all (another batch,
another precision) goes on to the next component.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from robust.gradient import Predict
from robust.stage import Device, Stage
from robust.verdicts import Verdict, judge
from robust.versions import Part

CLEAN = "clean"
Known = Mapping[str, Mapping[int, bool]]
"""component -> {row: broken} of what an interrupted run has already answered."""


class Outcome(NamedTuple):
    """What a component did to an image."""

    row: int
    component: str
    broken: bool  # by the verdict
    claimed: bool  # by the search
    tries: int  # made
    steps: int  # of the last try
    prediction: int  # on the point that was judged; on the clean image where nothing was claimed
    margin: float
    rank: int  # of the label there: 0 where it is the likeliest class


class Tried(NamedTuple):
    """An image whose tries are over."""

    row: int
    found: bool
    tries: int
    steps: int


@dataclass(slots=True, kw_only=True)
class BlockAttack:
    """`parts` on M images (M,3,H,W) of the device; after `run`, `adversarial` holds what broke each of them.

    There may be fewer keys than images: those behind them fill the block up to its shape, and nothing is done to them.
    `on_stage` is shown each stage before it begins, and may put it where an interrupted run had left it.
    """

    predict: Predict  # of the search
    verdict: Predict  # that counts
    image: Tensor
    label: Tensor
    eps: Tensor
    keys: Sequence[int]
    parts: Sequence[Part]
    seed: int
    num_lanes: int
    chunk: int
    device: Device
    on_chunk: Callable[[Stage], None] = lambda stage: None
    on_stage: Callable[[Stage], None] = lambda stage: None
    adversarial: Tensor = field(init=False)
    broken_by: list[str | None] = field(init=False)
    passes: dict[str, tuple[float, float]] = field(init=False, default_factory=dict)  # of a batch of lanes
    clean: Verdict = field(init=False)
    _labels: list[int] = field(init=False)

    def __post_init__(self) -> None:
        self.adversarial = self.image.clone()
        self.broken_by = [None] * len(self.keys)
        self._labels = self.label.tolist()

    def run(self, known: Known | None = None) -> Iterator[Outcome]:
        """Outcomes as they come: first the clean verdicts, then component by component."""
        known = known or {}
        everything = range(len(self.keys))
        self.clean = judge(
            self.verdict, self.image, self.label, everything, batch=self.num_lanes, device=self.device
        )
        for row in everything:
            wrong = bool(self.clean.wrong[row])
            self.broken_by[row] = CLEAN if wrong else None
            yield self._as_it_was(row, CLEAN, broken=wrong)
        for part in self.parts:
            done = known.get(part.name, {})
            for row, broken in done.items():
                if broken:
                    self.broken_by[row] = part.name
            left = [row for row in everything if self.broken_by[row] is None]
            yield from self._part(part, left, set(done))

    def _part(self, part: Part, left: Sequence[int], done: set[int]) -> Iterator[Outcome]:
        todo = [row for row in left if row not in done]
        if not todo:
            return
        stage = self._stage(part, _lanes_for(len(left), self.num_lanes))
        self.on_stage(stage)
        pending: list[Tried] = []
        try:
            for answer in stage.run({row: self._tries(part, row) for row in todo}):
                if not answer.is_last:
                    continue
                tried = Tried(answer.row, answer.found, answer.number + 1, answer.steps)
                if not answer.found:
                    yield self._as_it_was(answer.row, part.name, tried=tried)
                    continue
                pending.append(tried)
                if len(pending) == stage.num_lanes:
                    yield from self._judged(part, stage, pending)
                    pending = []
        except Exception:  # `on_chunk` was asked to stop: what was found by now is not lost
            yield from self._judged(part, stage, pending)
            raise
        yield from self._judged(part, stage, pending)
        forward, backward = part.component.passes
        self.passes[part.name] = (stage.steps_run * forward, stage.steps_run * backward)

    def _stage(self, part: Part, num_lanes: int) -> Stage:
        return Stage(
            component=part.component,
            predict=self.predict,
            image=self.image,
            label=self.label,
            eps=self.eps,
            keys=self.keys,
            seed=self.seed,
            num_lanes=num_lanes,
            chunk=self.chunk,
            device=self.device,
            on_chunk=self.on_chunk,
        )

    def _tries(self, part: Part, row: int) -> list[int]:
        """The classes that the tries aim at: by the float32 logits of the clean image, the likeliest first."""
        label = self._labels[row]
        if not part.targets:
            return [label] * part.restarts
        order = torch.argsort(self.clean.logits[row], descending=True, stable=True).tolist()
        return [place for place in order if place != label][: part.targets]

    def _judged(self, part: Part, stage: Stage, pending: Sequence[Tried]) -> Iterator[Outcome]:
        rows = [tried.row for tried in pending]
        verdict = judge(
            self.verdict, stage.adversarial, self.label, rows, batch=stage.num_lanes, device=self.device
        )
        wrong = verdict.wrong.tolist()
        broken_rows = [row for row, is_wrong in zip(rows, wrong, strict=True) if is_wrong]
        self._keep(broken_rows, stage)  # before anybody is told
        for row in broken_rows:
            self.broken_by[row] = part.name
        for place, tried in enumerate(pending):
            yield Outcome(
                row=tried.row,
                component=part.name,
                broken=wrong[place],
                claimed=True,
                tries=tried.tries,
                steps=tried.steps,
                prediction=int(verdict.prediction[place]),
                margin=float(verdict.margin[place]),
                rank=int(verdict.rank[place]),
            )

    def _keep(self, rows: Sequence[int], stage: Stage) -> None:
        if not rows:
            return
        mask = torch.zeros(len(self.image), dtype=torch.bool)
        mask[torch.tensor(list(rows))] = True
        on_device = self.device.feed(mask).view(-1, 1, 1, 1)
        self.adversarial = torch.where(on_device, stage.adversarial[:-1], self.adversarial)
        self.device.cut()

    def _as_it_was(
        self, row: int, component: str, *, broken: bool = False, tried: Tried | None = None
    ) -> Outcome:
        return Outcome(
            row=row,
            component=component,
            broken=broken,
            claimed=False,
            tries=0 if tried is None else tried.tries,
            steps=0 if tried is None else tried.steps,
            prediction=int(self.clean.prediction[row]),
            margin=float(self.clean.margin[row]),
            rank=int(self.clean.rank[row]),
        )


def _lanes_for(num_images: int, most: int) -> int:
    """Lanes of a stage: `most`, halved while all images fit into the half, so that few images do not drag empty lanes.

    Of the number that enters the component, so that an interrupted run goes on with the same shape.
    """
    lanes = most
    while lanes % 2 == 0 and lanes > 8 and num_images <= lanes // 2:
        lanes //= 2
    return lanes

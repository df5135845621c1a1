"""A version of AutoAttack on a block of images: component after component, each on the images that are left.

A search claims; the verdict decides. An image whose claimed point the model classifies right after all (another batch,
another precision) goes on to the next component; where the model that judges is not the one that searched, it first
searches that image itself.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from robust.gradient import Predict
from robust.stage import Answer, Device, Stage
from robust.stream import question_seed
from robust.targets import nearest_first
from robust.verdicts import Verdict, judge, lies_inside
from robust.versions import Part

CLEAN = "clean"
LEAST_LANES = 8  # of a stage: fewer save next to nothing
Known = Mapping[str, Mapping[int, bool]]
"""component -> {row: broken} of what an interrupted run has already answered."""


class Outcome(NamedTuple):
    """What a component did to an image."""

    row: int
    component: str
    broken: bool  # by the verdict
    claimed: bool  # by the search
    tries: int  # made; 0 where the component was not to look at this image
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

    predict: Predict  # of the search; may be in low precision
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
    _eps: float = field(init=False)

    def __post_init__(self) -> None:
        self._eps = float(self.eps.cpu())
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
            entering = [row for row in everything if self.broken_by[row] is None]
            done = known.get(part.name, {})
            for row, broken in done.items():
                if broken:
                    self.broken_by[row] = part.name
            yield from self._part(part, entering, set(done))

    def _part(self, part: Part, entering: Sequence[int], done: set[int]) -> Iterator[Outcome]:
        drawn = dict.fromkeys(row for row in entering if self._is_drawn(part, row))
        for row in entering:
            if row not in drawn and row not in done:
                yield self._as_it_was(row, part.name)
        todo = [row for row in drawn if row not in done]
        if not todo:
            return
        stage = self._stage(part, self._lanes_for(len(drawn)))
        self.on_stage(stage)
        try:
            for answer in stage.run(self._tries(part, todo, stage)):
                if not answer.is_last:
                    continue
                if not answer.found:
                    yield self._as_it_was(answer.row, part.name, tried=_tried(answer))
                    continue
                stage.pending.append(answer)
                if len(stage.pending) == stage.num_lanes:
                    yield from self._judged(part, stage, _claims(stage))
        except Exception:  # `on_chunk` was asked to stop: what was found by now is not lost
            yield from self._judged(part, stage, _claims(stage), searches_again=False)
            raise
        yield from self._judged(part, stage, _claims(stage))
        forward, backward = part.component.passes
        self.passes[part.name] = (stage.steps_run * forward, stage.steps_run * backward)

    def _is_drawn(self, part: Part, row: int) -> bool:
        """Whether the component looks at the image: all of it, or a share by the key's own random number."""
        draw = question_seed(self.seed, self.keys[row], "audit", 0) % (1 << 64)
        return draw < part.share * (1 << 64)

    def _lanes_for(self, num_images: int) -> int:
        """Lanes of a stage: no more than keep its images in as many rounds, so that few lanes end empty; all of them
        where another number would be one more graph. Of the number that enters the component, so that an interrupted
        run goes on with the same shape.
        """
        if self.device.compiles or self.num_lanes <= LEAST_LANES:
            return self.num_lanes
        rounds = math.ceil(num_images / self.num_lanes)
        return max(math.ceil(num_images / rounds), LEAST_LANES)

    def _stage(self, part: Part, num_lanes: int) -> Stage:
        return Stage(
            component=part.component,
            predict=self.verdict if part.is_float32 else self.predict,
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

    def _tries(self, part: Part, rows: Sequence[int], stage: Stage) -> dict[int, list[int]]:
        """The classes that the tries on each row aim at, by float32 logits and gradients at the clean image."""
        if not part.targets:
            return {row: [self._labels[row]] * part.restarts for row in rows}
        likeliest = [self._likeliest(row, max(part.targets, part.candidates)) for row in rows]
        if part.candidates:
            likeliest = nearest_first(
                self.verdict,
                self.image,
                self.label,
                likeliest,
                rows,
                norm=part.component.norm,
                batch=stage.num_lanes,
                device=self.device,
            )
        return {row: classes[: part.targets] for row, classes in zip(rows, likeliest, strict=True)}

    def _likeliest(self, row: int, num: int) -> list[int]:
        order = torch.argsort(self.clean.logits[row], descending=True, stable=True).tolist()
        return [place for place in order if place != self._labels[row]][:num]

    def _judged(
        self, part: Part, stage: Stage, pending: Sequence[Tried], *, searches_again: bool = True
    ) -> Iterator[Outcome]:
        rows = [tried.row for tried in pending]
        shape: dict[str, Any] = {"batch": stage.num_lanes, "device": self.device}
        verdict = judge(self.verdict, stage.adversarial, self.label, rows, **shape)
        norm = part.component.norm
        inside = lies_inside(stage.adversarial, self.image, rows, eps=self._eps, norm=norm, **shape)
        wrong = (verdict.wrong & inside).tolist()
        broken_rows = [row for row, is_wrong in zip(rows, wrong, strict=True) if is_wrong]
        doubtful = [] if stage.predict is self.verdict else [row for row in rows if row not in broken_rows]
        self._keep(broken_rows, stage)  # before anybody is told
        for row in broken_rows:
            self.broken_by[row] = part.name
        for place, tried in enumerate(pending):
            if tried.row in doubtful:
                continue
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
        if doubtful and searches_again:
            yield from self._searched_again(part, doubtful, stage)

    def _searched_again(self, part: Part, rows: Sequence[int], first: Stage) -> Iterator[Outcome]:
        """By the model that judges: a low-precision claim that it does not bear out would end the search too soon."""
        stage = replace(first, predict=self.verdict, on_chunk=lambda stage: None)
        ends = [answer for answer in stage.run(self._tries(part, rows, stage)) if answer.is_last]
        found = [_tried(answer) for answer in ends]
        for tried in found:
            if not tried.found:
                yield self._as_it_was(tried.row, part.name, tried=tried)
        yield from self._judged(part, stage, [tried for tried in found if tried.found])

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


def _tried(answer: Answer) -> Tried:
    return Tried(answer.row, answer.found, answer.number + 1, answer.steps)


def _claims(stage: Stage) -> list[Tried]:
    """What waits to be judged, and now no longer does."""
    found = [_tried(answer) for answer in stage.pending]
    stage.pending.clear()
    return found

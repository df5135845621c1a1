"""One side at work: the recipe's own train step on one backend, watched, an update at a time.

An exchange folder holds what the sides hand over: `common.pt` (state before the update, images of forward passes and
gradients, of the reference) and `marks-N.pt` of side N. Both are of the last update alone.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bits.environment import Environment, open_environment
from bits.meters import Meters
from bits.state import TrainState, to_cpu
from data.batch import Batch
from data.order import Cursor, hash64
from engine.build import Layout, batch_layout, build_state
from engine.folder import RunFolder
from engine.free import make_step
from engine.guard import Guard
from engine.knobs import feed_knobs
from engine.parity.images import Images, open_images
from engine.parity.mark import HINT_WEIGHT, Mark, pack, unpack
from engine.parity.side import Side
from engine.parity.stand_in import WatchedForward, WatchedObjective, watched
from engine.parity.watch import Watch
from engine.recipe import Recipe, load_recipe
from engine.start import open_start
from engine.step import TrainStep, meter_names, step_settings
from engine.teacher import build_teacher, open_teacher
from engine.timetable import Timetable

COMMON = "common.pt"


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What one side has seen in one update."""

    marks: list[Mark]
    loss: float  # mean over the update's images
    batch: dict[str, str]  # hash of each field of the batches, as they came from the loader
    attack_steps: int
    update: int  # of the run, counted from 1, whose images and numbers were used
    epoch: int
    lr: float

    def save(self, path: Path) -> None:
        facts = {name: getattr(self, name) for name in Answer.__slots__ if name != "marks"}
        torch.save({**facts, "marks": pack(self.marks)}, path)


def load_answer(path: Path) -> Answer:
    """What `Answer.save` wrote."""
    state: dict[str, Any] = torch.load(path, weights_only=True)
    return Answer(**{**state, "marks": unpack(state["marks"])})


class Session:
    """A side, number `number`, of which 0 is the reference. ValueError or OSError for what a run would refuse, too."""

    def __init__(
        self,
        side: Side,
        number: int,
        recipe: Path,
        overrides: Sequence[str],
        *,
        num_steps: int,
        exchange: Path,
    ) -> None:
        found = load_recipe(recipe, [*overrides, *side.overrides])
        self.recipe = _plain(found)
        self.side, self.number, self.num_steps, self.exchange = side, number, num_steps, exchange
        self.images: Images = open_images(self.recipe)
        own = RunFolder(Path(found.run.output or f"runs/{found.name}"))
        subject = open_teacher(self.recipe, classes=self.images.classes, folder=own)
        start = open_start(self.recipe)
        self.env: Environment = open_environment(
            side.backend,
            precision=self.recipe.run.precision,
            num_devices=side.num_devices,
            deterministic=self.recipe.run.deterministic,
        )
        self.layout: Layout = batch_layout(self.recipe.run.batch_size, self.env)
        self.state: TrainState = build_state(
            self.recipe,
            self.env,
            num_classes=len(self.images.classes),
            layout=self.layout,
            start=None if start is None else start.load_into,
        )
        self.timetable = Timetable(
            recipe=self.recipe, num_samples=self.images.num_samples, global_batch=self.layout.global_batch
        )
        teacher = None if subject is None else build_teacher(subject, self.recipe, self.env)
        settings = step_settings(self.recipe, len(self.images.classes))
        self.watch = Watch(model=self.state.model, settings=settings, tamper=side.tamper, keeps=number == 0)
        env, limit = watched(self.env, self.watch), self.recipe.run.health.max_skips
        self.meters = Meters(meter_names(settings), self.env.device)
        self.step: TrainStep = make_step(
            env=env,
            state=self.state,
            forward=WatchedForward(self.env.wrap(self.state.model), self.watch),
            settings=settings,
            meters=self.meters,
            teacher=teacher,
            guard=None if limit is None else Guard(self.state.model, limit=limit, device=self.env.device),
        )
        self.step.objective = WatchedObjective(self.step.objective, self.watch, env)
        self.watch.attach()
        self.state.model.train()
        self.env.cut()

    @property
    def facts(self) -> dict[str, Any]:
        """What the comparison says of this side."""
        return {
            "precision": self.recipe.run.precision,
            "device": str(self.env.device),
            "num_devices": self.env.num_devices,
            "images": "generated" if self.images.index is None else self.recipe.data.train,
            "why": self.images.why,
            "batch": self.layout.global_batch,
            "parameters": sum(p.numel() for p in self.state.model.parameters()),
            "modules": sum(1 for m in self.state.model.modules() if not any(m.children())),
        }

    def run(self, number: int) -> None:
        """Update `number` of the comparison, from the common state; what was seen goes to the exchange folder."""
        given = self._take_common() if self.number else {}
        state = self.state.state_dict() if not self.number else {}
        self.watch.begin(given)
        self._run(number).save(self.exchange / f"marks-{self.number}.pt")
        if not self.number:
            torch.save({"state": state, "given": to_cpu(self.watch.kept)}, self.exchange / COMMON)

    def _take_common(self) -> dict[str, Tensor]:
        """The reference's state put in; its images and gradients on the device."""
        common: dict[str, Any] = torch.load(self.exchange / COMMON, weights_only=True)
        groups = self.state.optimizer.param_groups
        # A checkpoint brings the optimizer's settings with it; here each side keeps its own.
        own = [{k: v for k, v in g.items() if k != "params" and not isinstance(v, Tensor)} for g in groups]
        try:
            self.state.load_state_dict(common["state"])
        except (RuntimeError, ValueError, KeyError):
            raise ValueError(
                "its model or optimizer is not the reference's, so they have no state in common; a side may change "
                "how the model is trained"
            ) from None
        for group, settings in zip(self.state.optimizer.param_groups, own, strict=True):
            group.update(settings)
        given: dict[str, Tensor] = {}
        for split in (True, False):  # images are divided over the devices, gradients are whole on each
            part = {name: t for name, t in common["given"].items() if name.startswith("input") == split}
            given |= self.env.feed(part, split=split) if part else {}
        self.env.cut()
        return given

    def _run(self, number: int) -> Answer:
        update, start = self._place(number)
        before = self._values()
        numbers = self.timetable.numbers(update, start.epoch)
        knobs = feed_knobs(self.env, numbers.knobs)
        digests = {name: hashlib.sha256() for name in Batch._fields}
        for cursor, batch in self.images.take(self.env, self.layout, start):
            batch = self.side.tamper.batch(batch)
            for name, tensor in batch._asdict().items():
                digests[name].update(tensor.contiguous().numpy().tobytes())
            self.env.seed(self.side.tamper.seed(self._dropout_seed(cursor)))
            self.step(Batch(**self.env.feed(batch._asdict())), knobs)
        self.state.step += 1
        self.side.tamper.updated_(self.state)
        self._mark_changes(before)
        totals = self.meters.snapshot()
        self.env.cut()
        loss = self.meters.means(to_cpu(totals))["loss"]
        self.meters.reset_()
        return Answer(
            marks=self.watch.finish(),
            loss=loss,
            batch={name: digest.hexdigest() for name, digest in digests.items()},
            attack_steps=self.watch.attack_steps,
            update=update + 1,
            epoch=start.epoch,
            lr=numbers.lr,
        )

    def _place(self, number: int) -> tuple[int, Cursor]:
        """The update of the run whose images and numbers are used: the middle of each of `num_steps` equal parts."""
        total = self.timetable.num_updates
        update = min(int((number + 0.5) * total / self.num_steps), max(total - 1, 0))
        batch = update * self.recipe.optim.accumulate
        per_epoch = self.images.num_samples // self.layout.global_batch
        return update, Cursor(batch // per_epoch, batch % per_epoch * self.layout.global_batch)

    def _dropout_seed(self, cursor: Cursor) -> int:
        """As a run's."""
        value = hash64(self.recipe.run.seed, "dropout", cursor.epoch, cursor.consumed)
        return int(value) & 0x7FFFFFFFFFFFFFFF

    @torch.no_grad()
    def _values(self) -> dict[tuple[str, str], Tensor]:
        """Copies of what a step changes, each with its kind and name."""
        model, ema = self.state.model, self.state.ema
        found = {
            ("update", name): p.detach().clone() for name, p in model.named_parameters() if p.requires_grad
        }
        for name, buffer in model.named_buffers():
            if name.rpartition(".")[2] in ("running_mean", "running_var"):
                found["statistics", name] = buffer.clone()
        if ema is not None:
            shadows = ema.module.state_dict().items()
            found |= {("average", name): t.clone() for name, t in shadows if t.is_floating_point()}
        self.env.cut()
        return found

    @torch.no_grad()
    def _mark_changes(self, before: dict[tuple[str, str], Tensor]) -> None:
        now = self._values()
        for kind in ("statistics", "update", "average"):
            for (found, name), value in now.items():
                if found == kind:
                    old = before[kind, name]
                    self.watch.mark(kind, name, value - old, beside=value)
        if not self.number:
            for (kind, name), old in before.items():
                if kind == "update":
                    self.watch.mark("hint", HINT_WEIGHT + name, old)
        self.env.cut()

    def close(self) -> None:
        self.env.close()


def _plain(recipe: Recipe) -> Recipe:
    """Without what a comparison has no use for: workers, which start anew at each step, and pictures."""
    data = recipe.data.model_copy(update={"num_workers": 0})
    run = recipe.run.model_copy(update={"preview_images": 0})
    return recipe.model_copy(update={"data": data, "run": run})

"""The train loop: batches in, updates out, a report now and then, a checkpoint that a killed run goes on from."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from bits.checkpoint import (
    keep_best,
    latest_checkpoint,
    load_checkpoint,
    prune_checkpoints,
    read_meta,
    save_checkpoint,
)
from bits.clock import Clock, Lap
from bits.environment import Environment
from bits.meters import Meters
from bits.state import TrainState, to_cpu
from data.bad import DataLimit
from data.batch import Batch
from data.index import DatasetIndex
from data.order import Cursor, hash64
from engine.bad_images import BadImages
from engine.build import Layout, build_train_loader
from engine.folder import RunFolder
from engine.knobs import Knobs, pack_knobs
from engine.log import RunLog
from engine.measure import result_name
from engine.recipe import Recipe
from engine.schedule import lr_at, warmup_at
from engine.step import METERS, TrainStep, step_settings
from engine.stop import Stopped, StopRequest, steps_until_report
from engine.tracker import WARMED_UP


@dataclass(slots=True)
class Loop:
    """One training run; `run` returns when all updates are made and raises Stopped after a stop request."""

    env: Environment
    recipe: Recipe
    state: TrainState
    index: DatasetIndex
    layout: Layout
    folder: RunFolder
    log: RunLog
    stop: StopRequest
    evaluate: Callable[[int | None], list[dict[str, Any]]]  # after how many epochs; None: at the end
    meters: Meters = field(init=False)
    bad: BadImages = field(init=False)
    _clock: Clock = field(init=False, default_factory=Clock)
    _next_report: int = field(init=False)
    _lr: float = field(init=False, default=0.0)
    _warmed_up: dict[str, float] = field(init=False, default_factory=dict)
    _preview: Tensor | None = field(init=False, default=None)
    _epoch_shown: int = field(init=False, default=-1)
    _saved_step: int = field(init=False, default=-1)

    def __post_init__(self) -> None:
        self.meters = Meters(METERS, self.env.device)
        self.bad = BadImages(self.index, max_share=self.recipe.data.max_bad)
        self.env.cut()
        # The first update is always reported: by then every graph of a report exists.
        self._next_report = self.state.step + 1

    @property
    def updates_per_epoch(self) -> float:
        """Not whole when accumulation does not divide the epoch: a group of micro-batches may span two epochs."""
        return self.index.num_samples // self.layout.global_batch / self.recipe.optim.accumulate

    @property
    def num_updates(self) -> int:
        batches = self.index.num_samples // self.layout.global_batch * self.recipe.run.epochs
        total = batches // self.recipe.optim.accumulate
        limit = self.recipe.run.max_steps
        return total if limit is None else min(total, limit)

    def run(self) -> None:
        """All updates that are left, and a checkpoint at the end."""
        if self._ends_epoch():
            # A run stopped during the evaluation of an epoch makes up for it; one that was done costs a look.
            self.measure(self._epochs_done(self.state.step))
        if self.state.step < self.num_updates:
            start = Cursor(self.state.epoch, self.state.consumed)
            loader = build_train_loader(
                self.recipe,
                self.env,
                self.index,
                layout=self.layout,
                start=start,
                on_bad=self.bad.note,
                warn=partial(self.log.warn, rank=self.env.rank),
                pin=self.env.pin,
            )
            self._train(loader)
        self.env.flush()
        self.save()

    def _train(self, loader: Iterator[tuple[Cursor, Batch]]) -> None:
        step = TrainStep(
            env=self.env,
            state=self.state,
            forward=self.env.wrap(self.state.model),
            settings=step_settings(self.recipe, len(self.index.classes)),
            meters=self.meters,
        )
        self.state.model.train()
        for cursor, batch in self._clock.timed(loader):
            self.env.seed(self._dropout_seed(cursor))
            fed = Batch(**self.env.feed(batch._asdict()))
            if step(fed, self._knobs()):
                self.state.step += 1
                self.state.epoch, self.state.consumed = cursor.epoch, cursor.consumed
                self._preview = step.preview
                self.log.reached(self.state.step, self.num_updates)
                self._after_update()
                if self.state.step >= self.num_updates:
                    return

    def _dropout_seed(self, cursor: Cursor) -> int:
        # Of the place in the data, not of the step count: micro-batches of one update need different masks.
        value = hash64(self.recipe.run.seed, "dropout", cursor.epoch, cursor.consumed)
        return int(value) & 0x7FFFFFFFFFFFFFFF

    def _knobs(self) -> Knobs:
        """This step's numbers, on the device."""
        recipe, step = self.recipe, self.state.step
        values = warmup_at(recipe.objective, self.state.epoch)
        attack = recipe.objective.attack
        self._lr = lr_at(
            recipe.optim,
            step,
            steps_per_epoch=self.updates_per_epoch,
            epochs=recipe.run.epochs,
            global_batch=self.layout.global_batch,
        )
        eps = attack.eps * values.eps_scale if attack else 0.0
        self._warmed_up = {
            name: eps if name == "eps" else getattr(values, name)
            for name in WARMED_UP
            if getattr(recipe.objective.warmup, name, None) is not None
        }
        knobs = pack_knobs(
            lr=self._lr,
            eps=eps,
            step_size=attack.step_size * values.eps_scale if attack else 0.0,
            step=step,
        )
        return Knobs(**self.env.feed(knobs._asdict(), split=False))

    def _after_update(self) -> None:
        due = self.state.step >= self._next_report or self.state.step == self.num_updates
        if due:
            self._report()
            self._report_bad()
        if self._checkpoint_due():
            self.save()
        if self._ends_epoch():
            self._evaluate_epoch()
        if due and self.env.agree(int(self.stop.asked)):
            self._save_and_wait()
            raise Stopped

    def _evaluate_epoch(self) -> None:
        try:
            self.measure(self._epochs_done(self.state.step))
        except Stopped:
            self._save_and_wait()
            raise

    def measure(self, epoch: int | None) -> list[dict[str, Any]]:
        """The evaluations due after `epoch` epochs (None: the end of the run), and the best weights kept."""
        with self._clock.paused():  # or minutes of it would pass for slow training steps
            results = self.evaluate(epoch)
        metric = self.recipe.run.best
        for result in results:
            if metric is not None and result_name(result) == metric:
                self.save()  # best.pt is a copy of this step's checkpoint
                self._keep_best(metric, result["top1"])
        return results

    def _keep_best(self, metric: str, value: float) -> None:
        if self.env.rank == 0 and keep_best(
            self.folder.checkpoints, self.state.step, metric=metric, value=value
        ):
            self.log.say(f"best {metric} so far: {100 * value:.2f} % at step {self.state.step}")

    def _save_and_wait(self) -> None:
        """Saves, and holds the other ranks until rank 0 has: launchers end a job soon after its first exit."""
        self.save()
        self.env.barrier()

    def _report(self) -> None:
        """The only place between updates where values travel to the host, and they do so later."""
        lap = self._clock.lap()
        # Ranks must agree on the next report, or one would wait for the other in `agree`.
        update_s = lap.total_per_step_s * self.recipe.optim.accumulate
        step_us = self.env.agree(int(update_s * 1e6))
        self._next_report = self.state.step + steps_until_report(step_us / 1e6, self.recipe.run.report_every)
        totals = self.env.reduce(self.meters.snapshot())
        self.meters.reset_()
        entry = self._entry(lap)
        self.env.later({"totals": totals}, lambda host: self._write(entry, host["totals"]))
        self._show()

    def _report_bad(self) -> None:
        try:
            self.bad.report(self.env, self.log, self.state.step)
        except DataLimit:
            self._save_and_wait()
            raise

    def _show(self) -> None:
        """Pictures for the trackers, behind the first report of an epoch. In an entry of their own: `later` copies
        an entry in one graph, and the totals' graph must stay the same."""
        run, epoch, step = self.recipe.run, self._epochs_done(self.state.step), self.state.step
        if self._preview is not None and (run.tensorboard or run.wandb) and epoch > self._epoch_shown:
            self._epoch_shown = epoch
            self.env.later({"preview": self._preview}, lambda host: self.log.preview(step, host["preview"]))

    def _entry(self, lap: Lap) -> dict[str, float]:
        images = lap.num_steps * self.layout.global_batch
        return {
            "step": self.state.step,
            "epoch": round(self.state.step / self.updates_per_epoch, 4),
            "lr": self._lr,
            **self._warmed_up,
            "images_per_s": round(images / lap.total_s, 2) if lap.total_s else 0.0,
            "data_s": round(lap.data_s, 4),
            "step_s": round(lap.step_s, 6),
            **self.env.counters(),
        }

    def _write(self, entry: dict[str, float], totals: Tensor) -> None:
        means = self.meters.means(totals)
        line = (
            f"step {entry['step']:>6}/{self.num_updates}  epoch {entry['epoch']:<7.2f} loss {means['loss']:.4f}  "
            f"top1 {100 * means['top1']:5.1f} %  lr {entry['lr']:.2e}  {entry['images_per_s']:.0f} images/s"
        )
        self.log.report(line, {**entry, **means})

    def _checkpoint_due(self) -> bool:
        every = self.recipe.run.checkpoint_every
        return self.state.step % every == 0 if every else self._ends_epoch()

    def _ends_epoch(self) -> bool:
        step = self.state.step
        return step > 0 and self._epochs_done(step) > self._epochs_done(step - 1)

    def _epochs_done(self, step: int) -> int:
        return int(
            step / self.updates_per_epoch + 1e-9
        )  # the sum of fractions may fall short by a rounding error

    def save(self) -> None:
        """A checkpoint of now (rank 0 writes; every rank has the same state). Flushes first, so that what the
        log says was reported is never newer than the state."""
        if self.state.step == self._saved_step:
            return
        self.env.flush()
        self.log.flush()
        if self.env.rank == 0:
            save_checkpoint(
                self.folder.checkpoints, self.state.step, self._checkpoint_state(), facts=self._facts()
            )
            prune_checkpoints(
                self.folder.checkpoints, self.recipe.run.keep_checkpoints, newest=self.state.step
            )
        self._saved_step = self.state.step

    def _checkpoint_state(self) -> dict[str, Any]:
        return {**self.state.state_dict(), "environment": to_cpu(self.env.state_dict())}

    def _facts(self) -> dict[str, Any]:
        return {
            "recipe": self.recipe.hash,
            "dataset_id": self.index.dataset_id,
            "seed": self.recipe.run.seed,
            "epoch": self.state.epoch,
            "consumed": self.state.consumed,
            "global_batch": self.layout.global_batch,
            "classes": list(self.index.classes),
        }

    def resume(self, source: Path) -> bool:
        """Loads checkpoint file `source`, or the newest usable one in folder `source`; False when it has none."""
        if source.is_file():
            checkpoint, state = read_meta(source), load_checkpoint(source)
        else:
            found = latest_checkpoint(source)
            if found is None:
                return False
            checkpoint, state, passed_over = found
            for line in passed_over:
                self.log.say(f"passed over: {line}", important=True)
        if checkpoint.facts["dataset_id"] != self.index.dataset_id:
            raise ValueError(
                f"{checkpoint.path} was trained on dataset {checkpoint.facts['dataset_id'][:12]}, data.train holds "
                f"{self.index.dataset_id[:12]}; give the same shards or another --output"
            )
        self.env.load_state_dict(state["environment"])
        self.state.load_state_dict(state)
        self.env.cut()
        self._next_report = self.state.step + 1
        # A state from another run's folder is not this folder's yet, nor is best.pt whose step was deleted since.
        own = self.folder.checkpoints / f"step-{self.state.step:08d}.pt"
        is_own = own.exists() and own.parent.samefile(checkpoint.path.parent)
        self._saved_step = self.state.step if is_own else -1
        return True

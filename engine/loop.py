"""The train loop: batches in, updates out, a report now and then, a checkpoint that a killed run goes on from."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import Tensor

from bits.environment import Environment
from bits.meters import Meters
from bits.state import TrainState
from data.bad import DataLimit
from data.batch import Batch
from data.order import Cursor, hash64
from engine.bad_images import BadImages
from engine.build import Layout
from engine.folder import RunFolder
from engine.free import make_step
from engine.health_monitor import HealthMonitor, RollBack
from engine.keeping import Keeper
from engine.knobs import Knobs, feed_knobs
from engine.loading import build_train_loader
from engine.log import RunLog
from engine.milestones import Milestones
from engine.origin import Origin
from engine.recipe import Recipe
from engine.reporter import Reporter
from engine.rollback import WayBack, reseeded
from engine.step import meter_names, step_settings
from engine.stop import Stopped, StopRequest
from engine.teacher import Teacher
from engine.timetable import Numbers, Timetable
from engine.training_set import Stream, TrainingSet


@dataclass(slots=True)
class Loop:
    """One training run; `run` returns when all updates are made and raises Stopped after a stop request."""

    env: Environment
    recipe: Recipe
    state: TrainState
    index: TrainingSet
    layout: Layout
    folder: RunFolder
    log: RunLog
    stop: StopRequest
    evaluate: Callable[[int | None], list[dict[str, Any]]]  # after how many epochs; None: at the end
    teacher: Teacher | None = None
    init: str | None = None  # sha256 of the weights that the run started from
    meters: Meters = field(init=False)
    origin: Origin = field(init=False)
    bad: BadImages | None = field(init=False)
    timetable: Timetable = field(init=False)
    health: HealthMonitor = field(init=False)
    milestones: Milestones = field(init=False)
    _reporter: Reporter = field(init=False)
    _keeper: Keeper = field(init=False)
    _way_back: WayBack = field(init=False)
    _loader: Iterator[tuple[Cursor, Batch]] | None = field(init=False, default=None)
    _numbers: Numbers | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        constants = step_settings(self.recipe, len(self.index.classes))
        self.meters = Meters(meter_names(constants), self.env.device)
        self.origin = Origin(
            recipe=self.recipe,
            index=self.index,
            layout=self.layout,
            teacher=self.teacher,
            init=self.init,
        )
        # In a stream no other image can stand in for a bad one: it ends the run.
        self.bad = None
        if not isinstance(self.index, Stream):
            self.bad = BadImages(self.index, max_share=self.recipe.data.max_bad)
        self.health = HealthMonitor(
            env=self.env,
            recipe=self.recipe,
            state=self.state,
            log=self.log,
            folder=self.folder.checkpoints,
            augment=constants.augment,
        )
        self.env.cut()
        self.timetable = Timetable(
            recipe=self.recipe, num_samples=self.index.num_samples, global_batch=self.layout.global_batch
        )
        self._reporter = Reporter(
            env=self.env,
            recipe=self.recipe,
            state=self.state,
            log=self.log,
            meters=self.meters,
            timetable=self.timetable,
            guard=self.health.guard,
        )
        self._keeper = Keeper(
            env=self.env,
            state=self.state,
            folder=self.folder,
            log=self.log,
            num_kept=self.recipe.run.keep_checkpoints,
            facts=lambda: self.origin.facts(self.state),
            health=self.health.state_dict,
        )
        self._way_back = WayBack(
            env=self.env, state=self.state, log=self.log, keeper=self._keeper, health=self.health
        )
        self.milestones = Milestones(
            recipe=self.recipe,
            state=self.state,
            timetable=self.timetable,
            keeper=self._keeper,
            health=self.health,
            reporter=self._reporter,
            origin=self.origin,
            evaluate=self.evaluate,
        )

    @property
    def num_updates(self) -> int:
        return self.timetable.num_updates

    def prepare(self) -> None:
        """Refuses what the loader of the updates that are left would; nothing starts yet. ValueError."""
        if self.state.step < self.num_updates and self._loader is None:
            self._loader = build_train_loader(
                self.recipe,
                self.env,
                self.index,
                layout=self.layout,
                start=Cursor(self.state.epoch, self.state.consumed),
                window=self.origin.window,
                on_bad=None if self.bad is None else self.bad.note,
                warn=partial(self.log.warn, rank=self.env.rank),
                pin=self.env.pin,
                say=self.log.say,
            )

    def run(self) -> None:
        """All updates that are left, and a checkpoint at the end."""
        while (cause := self._until_trouble()) is not None:
            self._roll_back(cause)
        self.save()

    def _until_trouble(self) -> RollBack | None:
        try:
            self._go_on()
        except RollBack as cause:
            return cause.with_traceback(None)  # which holds the loader and its workers
        return None

    def _go_on(self) -> None:
        self.prepare()
        if self.timetable.ends_epoch(self.state.step):
            # A run stopped during the evaluation of an epoch makes up for it; one that was done costs a look.
            self.milestones.measure(self.timetable.epochs_done(self.state.step))
        if self._loader is not None:
            loader, self._loader = self._loader, None  # with this function its workers end
            self._train(loader)
        self.env.flush()
        self.health.look()

    def _roll_back(self, cause: RollBack) -> None:
        self._way_back.take(cause)
        self.meters.reset_()
        self._reporter.begin()
        self.env.cut()

    def _train(self, loader: Iterator[tuple[Cursor, Batch]]) -> None:
        step = make_step(
            env=self.env,
            state=self.state,
            forward=self.env.wrap(self.state.model),
            settings=step_settings(self.recipe, len(self.index.classes)),
            meters=self.meters,
            teacher=self.teacher,
            guard=self.health.guard,
            warn=self._say_changed,
        )
        self.state.model.train()
        for cursor, batch in self._reporter.clock.timed(loader):
            self.env.seed(self._dropout_seed(cursor))
            batch = reseeded(batch, self.health.rollbacks)
            fed, knobs = Batch(**self.env.feed(batch._asdict())), self._knobs()
            if step(fed, knobs):
                self.state.step += 1
                self.state.epoch, self.state.consumed = cursor.epoch, cursor.consumed
                self.log.reached(self.state.step, self.num_updates)
                self._after_update(fed, knobs, step.preview)
                if self.state.step >= self.num_updates:
                    return

    def _say_changed(self, text: str) -> None:
        self.log.write("changed", step=self.state.step, text=text)
        self.log.say(text, important=True)

    def _dropout_seed(self, cursor: Cursor) -> int:
        # Of the place in the data, not of the step count: micro-batches of one update need different masks.
        again = (self.health.rollbacks,) if self.health.rollbacks else ()
        value = hash64(self.recipe.run.seed, "dropout", cursor.epoch, cursor.consumed, *again)
        return int(value) & 0x7FFFFFFFFFFFFFFF

    def _knobs(self) -> Knobs:
        """This step's numbers, on the device."""
        self._numbers = self.timetable.numbers(
            self.state.step, self.state.epoch, lr_scale=self.health.lr_scale
        )
        return feed_knobs(self.env, self._numbers.knobs)

    def _after_update(self, fed: Batch, knobs: Knobs, preview: Tensor | None) -> None:
        assert self._numbers is not None, "an update without numbers"
        is_check = self.health.examine(fed, knobs)
        due = self._reporter.is_due or is_check
        if due:
            self._reporter.report(self._numbers, preview)
        if is_check:
            self.env.flush()
            self.health.heed(self._reporter.skips)  # before the check makes a checkpoint healthy
            self.health.conclude()
        self.health.heed(self._reporter.skips)
        if due:
            self._report_bad()
        self.milestones.pass_by()
        if due and self.env.agree(int(self.stop.asked)):
            self._keeper.save_and_wait()
            raise Stopped

    def _report_bad(self) -> None:
        if self.bad is None:
            return
        try:
            self.bad.report(self.env, self.log, self.state.step)
        except DataLimit:
            self._keeper.save_and_wait()
            raise

    def save(self) -> None:
        """A checkpoint of now."""
        self._keeper.save()

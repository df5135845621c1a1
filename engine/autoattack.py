"""AutoAttack as an evaluation: blocks of images over the processes, rows in the ledger, sums over rows.

Blocks are the same whatever the number of processes, so an image meets lanes of one shape and its verdicts do not
depend on who attacks it. Processes work at their own pace and meet at the end; with `until_ci` after each round of a
block for each process, to look whether the interval is short enough.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from data.batch import Batch
from data.loader import eval_loader
from engine.adversarial_store import AdversarialStore
from engine.attack_checks import Checks
from engine.attack_notes import first_look
from engine.attack_pace import Count
from engine.attack_pictures import open_pictures
from engine.attack_result import attack_result, sample_of
from engine.attack_settings import AttackSettings, attack_settings
from engine.block_attack import BlockJob, Known
from engine.blocks import WHOLE, Keys, Part
from engine.eval_fields import AutoAttackEval
from engine.evaluate import Evaluator
from engine.lane_state import LaneKeeper
from engine.ledger import LedgerWriter, read_ledger
from engine.meeting import DONE, STOPPED, Meeting
from engine.rows import CLEAN
from engine.stop import Stopped
from robust.precision import exact_float32

SAY_EVERY_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class AutoAttackRun:
    """One evaluation by AutoAttack."""

    evaluator: Evaluator
    settings: AttackSettings

    def run(self) -> dict[str, Any]:
        """Attacks what is not in the ledger yet and returns the result as plain values; raises Stopped."""
        evaluator, env, settings = self.evaluator, self.evaluator.env, self.settings
        meeting = Meeting(env=env, folder=evaluator.ledger, name=settings.identity)
        with LedgerWriter(evaluator.ledger, env.rank) as writer:
            writer.describe(settings.identity, settings.about)
            env.barrier()  # every writer's file exists before anyone reads what is done
            known = known_verdicts(evaluator, settings.identity)
            evaluator.agree_on(settings.identity, left_of(settings.keys, known, settings.components))
            meeting.open()
            word = self._attack(writer, known, meeting)
            meeting.leave(word)
        if not meeting.wait() or word == STOPPED:
            raise Stopped
        return attack_result(evaluator, settings)

    def _attack(self, writer: LedgerWriter, known: Known, meeting: Meeting) -> str:
        """DONE, or STOPPED between two chunks."""
        evaluator = self.evaluator
        was_training = evaluator.model.training
        evaluator.model.eval()
        try:
            with exact_float32():
                if evaluator.env.rank == 0:
                    first_look(evaluator, self.settings)
                self._blocks(writer, known, meeting)
        except Stopped:
            return STOPPED
        finally:
            evaluator.model.train(was_training)
        return DONE

    def _blocks(self, writer: LedgerWriter, known: Known, meeting: Meeting) -> None:
        env, evaluator, settings = self.evaluator.env, self.evaluator, self.settings
        if (idle := env.world_size - len(settings.blocks)) > 0 and env.rank == 0 and evaluator.warn:
            evaluator.warn(
                f"{len(settings.keys)} images are {len(settings.blocks)} blocks, so {idle} of {env.world_size} "
                "processes have nothing to do; a smaller batch_size makes more blocks"
            )
        own = settings.own_blocks(env)
        count = Count(sum(len(keys) for keys in own.values()), settings.components)
        todo = {number: keys for number, keys in own.items() if self._is_open(number, keys, known, count)}
        bad: set[int] = set()
        job = self._job(writer, count, lambda: evaluator.stop_asked() or meeting.is_stopped())
        batches = self._batches(list(todo.values()), bad)
        said = Said(evaluator, count)
        begun = num_begun(
            settings.blocks, known
        )  # by an earlier run, whoever took part: to be ended in any case
        for number in settings.rounds(env):
            if number in todo:
                if job.stop_asked():
                    raise Stopped
                job.run(number, next(batches), bad, known)
                said.look(is_last=number == max(todo))
            if settings.until_ci is not None:
                num_rounds = number // env.world_size + 1
                meeting.reach(num_rounds, evaluator.stop_asked)
                # Of these rounds alone, whatever the others have done since: all processes decide alike.
                made = settings.blocks[: num_rounds * env.world_size]
                if len(made) >= begun and self._is_enough(made, settings.until_ci):
                    break
        job.keeper.clear()

    def _is_enough(self, made: list[Keys], half_width: float) -> bool:
        sample = sample_of(self.evaluator, self.settings, np.concatenate(made))
        low, high = sample.interval
        env = self.evaluator.env
        if env.rank == 0:
            self.evaluator.say(
                f"{100 * sample.right / sample.drawn:.2f} % of {sample.drawn} images drawn at random are robust; 95 % "
                f"[{100 * low:.2f}, {100 * high:.2f}] of all {sample.total}, whenever one looks"
            )
        return sample.is_enough(half_width)

    def _is_open(self, number: int, keys: Keys, known: Known, count: Count) -> bool:
        """Whether something is left to do for the block; else its images are counted."""
        store = self._store()
        if len(left_of(keys, known, self.settings.components)) or (store and not store.is_there(number)):
            return True
        for part, verdicts in known.items():
            for key in keys.tolist():
                if (broken := verdicts.get(key)) is not None:
                    count.add(part, is_right=not broken, is_known=True)
        return False

    def _job(self, writer: LedgerWriter, count: Count, stop_asked: Callable[[], bool]) -> BlockJob:
        evaluator, env, settings = self.evaluator, self.evaluator.env, self.settings
        place: dict[str, Any] = {
            "folder": evaluator.ledger,
            "evaluation": settings.identity,
            "rank": env.rank,
        }
        return BlockJob(
            env=env,
            model=evaluator.model,
            search=settings.search(evaluator.model, env),
            index=evaluator.index,
            version=settings.version,
            norm=settings.entry.norm,
            eps=settings.entry.eps,
            seed=evaluator.seed,
            lanes=settings.lanes,
            size=settings.block_size,
            identity=settings.identity,
            writer=writer,
            keeper=LaneKeeper(**place),
            store=self._store(),
            checks=Checks(**place),
            pictures=open_pictures(evaluator, settings),
            count=count,
            stop_asked=stop_asked,
            on_progress=partial(_tell, evaluator, count),
        )

    def _store(self) -> AdversarialStore | None:
        if not self.settings.entry.save_images:
            return None
        name = f"{self.settings.entry.name}-{self.settings.identity[:8]}"
        return AdversarialStore(
            folder=self.evaluator.ledger.parent / "adversarial" / name, evaluation=self.settings.identity
        )

    def _batches(self, blocks: list[Keys], bad: set[int]) -> Iterator[Batch]:
        """A batch for each block; the last one of the evaluation may have empty slots."""
        if not blocks:
            return iter(())
        evaluator = self.evaluator
        return eval_loader(
            evaluator.index,
            keys=np.concatenate(blocks),
            global_batch=self.settings.block_size,
            rank=0,
            world_size=1,
            image_size=evaluator.image_size,
            resize=evaluator.transform,
            num_workers=evaluator.num_workers,
            seed=evaluator.seed,
            on_bad=partial(evaluator.note, bad) if evaluator.bad == "wrong" else None,
            stuck_after_s=evaluator.stuck_after_s,
            warn=evaluator.warn,
        )


def run_autoattack(evaluator: Evaluator, entry: AutoAttackEval, part: Part = WHOLE) -> dict[str, Any]:
    """The result of `entry`; what the ledger has is not done again. ValueError for what cannot be attacked."""
    return AutoAttackRun(evaluator=evaluator, settings=attack_settings(evaluator, entry, part)).run()


@dataclass(slots=True)
class Said:
    """Lines for the person who watches, and for the log: not more than one in ten seconds."""

    evaluator: Evaluator
    count: Count
    _at: float = 0.0

    def look(self, *, is_last: bool) -> None:
        if not is_last and self.count.now() - self._at < SAY_EVERY_S:
            return
        self._at = self.count.now()
        self.evaluator.say(str(self.count))
        self.evaluator.record(self.count.values())


def known_verdicts(evaluator: Evaluator, identity: str) -> Known:
    """component -> {position: broken} of the rows that are there."""
    known: dict[str, dict[int, bool]] = {}
    for row in read_ledger(evaluator.ledger, identity).rows(identity):
        known.setdefault(row.component, {})[row.position] = not row.correct
    return known


def left_of(keys: Keys, known: Known, components: tuple[str, ...]) -> Keys:
    """Those of `keys` that are neither broken nor through the last component."""
    last = components[-1]
    ended = {
        key for part, verdicts in known.items() for key, broken in verdicts.items() if broken or part == last
    }
    return np.array([key for key in keys.tolist() if key not in ended], dtype=np.int64)


def num_begun(blocks: list[Keys], known: Known) -> int:
    """Blocks up to the last one that has rows."""
    seen = np.array(sorted(known.get(CLEAN, {})), dtype=np.int64)
    return max((number + 1 for number, keys in enumerate(blocks) if np.isin(keys, seen).any()), default=0)


def _tell(evaluator: Evaluator, count: Count) -> None:
    processes = evaluator.env.world_size
    evaluator.on_progress(count.done * processes, count.total * processes)

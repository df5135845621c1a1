"""AutoAttack as an evaluation: blocks of images over the processes, rows in the ledger, sums over rows.

Blocks are the same whatever the number of processes, so an image meets lanes of one shape and its verdicts do not
depend on who attacks it. Processes work at their own pace and meet at the end.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bits.environment import Environment
from data.batch import Batch
from data.loader import eval_loader
from engine.adversarial_store import AdversarialStore
from engine.attack_notes import first_look, notes_of_rows
from engine.block_attack import BlockJob, Count, Known
from engine.chosen import Chosen
from engine.eval_fields import AutoAttackEval
from engine.evaluate import Evaluator
from engine.lane_state import LaneKeeper
from engine.ledger import Ledger, LedgerWriter, read_ledger
from engine.meeting import DONE, STOPPED, Meeting
from engine.rows import CLEAN
from engine.stop import Stopped
from engine.tally import tally_in_turn
from engine.verdict import evaluation_id
from robust.precision import exact_float32
from robust.versions import Version, version_of

LANES = 64  # of a process, where an entry says nothing
KEEP_LANES_S = 60.0
_IMAGES_OF_A_LANE = 8  # in a block at most: the more, the fewer lanes stand empty at its end
_FEWEST_BLOCKS = 4  # of an evaluation, for that many processes


@dataclass(frozen=True, slots=True, kw_only=True)
class AutoAttackRun:
    """One evaluation by AutoAttack, with what follows from its entry and the model."""

    evaluator: Evaluator
    entry: AutoAttackEval
    chosen: Chosen
    version: Version
    lanes: int
    description: dict[str, Any]

    @property
    def identity(self) -> str:
        return evaluation_id(**self.description)

    @property
    def components(self) -> tuple[str, ...]:
        return (CLEAN, *(part.name for part in self.version.parts))

    def run(self) -> dict[str, Any]:
        """Attacks what is not in the ledger yet and returns the result as plain values; raises Stopped."""
        evaluator, env = self.evaluator, self.evaluator.env
        meeting = Meeting(env=env, folder=evaluator.ledger, name=self.identity)
        with LedgerWriter(evaluator.ledger, env.rank) as writer:
            about = {**self.description, "name": self.entry.name, "components": list(self.components)}
            writer.describe(self.identity, about)
            env.barrier()  # every writer's file exists before anyone reads what is done
            book = read_ledger(evaluator.ledger, self.identity)
            known = known_verdicts(book, self.identity)
            evaluator.agree_on(self.identity, _left(self.chosen.keys, known, self.components))
            meeting.open()
            word = self._attack(writer, known, meeting)
            meeting.leave(word)
        if not meeting.wait() or word == STOPPED:
            raise Stopped
        return self._result()

    def _attack(self, writer: LedgerWriter, known: Known, meeting: Meeting) -> str:
        """DONE, or STOPPED between two chunks."""
        evaluator = self.evaluator
        was_training = evaluator.model.training
        evaluator.model.eval()
        try:
            with exact_float32():
                self._look(known)
                self._blocks(writer, known, lambda: evaluator.stop_asked() or meeting.is_stopped())
        except Stopped:
            return STOPPED
        finally:
            evaluator.model.train(was_training)
        return DONE

    def _look(self, known: Known) -> None:
        if self.evaluator.env.rank == 0 and len(known.get(CLEAN, {})) < len(self.chosen.keys):
            first_look(self.evaluator, self.identity, self.chosen.keys[: self.lanes], self.lanes)

    def _blocks(self, writer: LedgerWriter, known: Known, stop_asked: Callable[[], bool]) -> None:
        env, evaluator = self.evaluator.env, self.evaluator
        blocks = blocks_of(self.chosen.keys, self.lanes)
        if env.rank == 0 and len(blocks) < env.world_size and evaluator.warn is not None:
            evaluator.warn(
                f"{len(self.chosen.keys)} images are {len(blocks)} blocks, so {env.world_size - len(blocks)} of "
                f"{env.world_size} processes have nothing to do; a smaller batch_size makes more blocks"
            )
        own = {number: keys for number, keys in enumerate(blocks) if number % env.world_size == env.rank}
        count = Count(sum(len(keys) for keys in own.values()))
        todo = {number: keys for number, keys in own.items() if self._is_open(number, keys, known, count)}
        job = self._job(writer, count, stop_asked)
        bad: set[int] = set()
        for number, batch in zip(todo, self._batches(list(todo.values()), bad), strict=True):
            if stop_asked():
                raise Stopped
            job.run(number, batch, bad, known)
            evaluator.say(str(count))
        job.keeper.clear()

    def _is_open(self, number: int, keys: NDArray[np.int64], known: Known, count: Count) -> bool:
        """Whether something is left to do for the block; else its images are counted."""
        left = _left(keys, known, self.components)
        store = self._store()
        if len(left) or (store is not None and not store.is_there(number)):
            return True
        for part, verdicts in known.items():
            for key in keys.tolist():
                if (broken := verdicts.get(key)) is not None and (broken or part == self.components[-1]):
                    count.add(is_right=not broken)
        return False

    def _job(self, writer: LedgerWriter, count: Count, stop_asked: Callable[[], bool]) -> BlockJob:
        evaluator, env = self.evaluator, self.evaluator.env
        keeper = LaneKeeper(
            folder=evaluator.ledger, rank=env.rank, evaluation=self.identity, every_s=KEEP_LANES_S
        )
        return BlockJob(
            env=env,
            model=evaluator.model,
            index=evaluator.index,
            version=self.version,
            eps=self.entry.eps,
            seed=evaluator.seed,
            lanes=self.lanes,
            size=block_size(len(self.chosen.keys), self.lanes),
            identity=self.identity,
            writer=writer,
            keeper=keeper,
            store=self._store(),
            count=count,
            stop_asked=stop_asked,
            on_progress=partial(_tell, evaluator, count),
        )

    def _store(self) -> AdversarialStore | None:
        if not self.entry.save_images:
            return None
        name = f"{self.entry.name}-{self.identity[:8]}"
        return AdversarialStore(
            folder=self.evaluator.ledger.parent / "adversarial" / name, evaluation=self.identity
        )

    def _batches(self, blocks: list[NDArray[np.int64]], bad: set[int]) -> Iterator[Batch]:
        """A batch for each block; the last one of the evaluation may have empty slots."""
        if not blocks:
            return iter(())
        evaluator = self.evaluator
        return eval_loader(
            evaluator.index,
            keys=np.concatenate(blocks),
            global_batch=block_size(len(self.chosen.keys), self.lanes),
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

    def _result(self) -> dict[str, Any]:
        evaluator = self.evaluator
        counts = tally_in_turn(
            evaluator.ledger,
            self.identity,
            self.components,
            evaluator.index,
            self.chosen.keys,
            counts_bad=evaluator.bad == "wrong",
        )
        return {
            "name": self.entry.name,
            "weights": evaluator.weights,
            "recipe": evaluator.recipe,
            "evaluation": self.identity,
            **self.description,
            "version": self.version.id,
            **counts,
            "notes": notes_of_rows(evaluator.ledger, self.identity),
        }


def run_autoattack(evaluator: Evaluator, entry: AutoAttackEval) -> dict[str, Any]:
    """The result of `entry`; what the ledger has is not done again. ValueError for what cannot be attacked."""
    num_classes = int(getattr(evaluator.model, "num_classes", len(evaluator.index.classes)))
    version = version_of(entry.version, norm=entry.norm, num_classes=num_classes)
    lanes = lanes_of(entry, evaluator.env)
    settings = {
        "attack": entry.attack,
        "norm": entry.norm,
        "eps": entry.eps,
        "version": version.id,
        "lanes": lanes,  # whose shape may turn a verdict that hangs on rounding
    }
    chosen = evaluator.chosen(entry)
    return AutoAttackRun(
        evaluator=evaluator,
        entry=entry,
        chosen=chosen,
        version=version,
        lanes=lanes,
        description=evaluator.describe(chosen, settings),
    ).run()


def lanes_of(entry: AutoAttackEval, env: Environment) -> int:
    """Lanes of a process, a multiple of its devices."""
    return -(-(entry.batch_size or LANES) // env.num_devices) * env.num_devices


def block_size(num_images: int, lanes: int) -> int:
    """Images of a block: a function of the evaluation alone, not of who is there to do it."""
    return lanes * max(1, min(_IMAGES_OF_A_LANE, num_images // (_FEWEST_BLOCKS * lanes)))


def blocks_of(keys: NDArray[np.int64], lanes: int) -> list[NDArray[np.int64]]:
    size = block_size(len(keys), lanes)
    return [keys[start : start + size] for start in range(0, len(keys), size)]


def known_verdicts(book: Ledger, identity: str) -> Known:
    """component -> {position: broken} of the rows that are there."""
    known: dict[str, dict[int, bool]] = {}
    for row in book.rows(identity):
        known.setdefault(row.component, {})[row.position] = not row.correct
    return known


def _left(keys: NDArray[np.int64], known: Known, components: tuple[str, ...]) -> NDArray[np.int64]:
    """Those of `keys` that are neither broken nor through the last component."""
    last = components[-1]
    ended = {
        key for part, verdicts in known.items() for key, broken in verdicts.items() if broken or part == last
    }
    return np.array([key for key in keys.tolist() if key not in ended], dtype=np.int64)


def _tell(evaluator: Evaluator, count: Count) -> None:
    processes = evaluator.env.world_size
    evaluator.on_progress(count.done * processes, count.total * processes)

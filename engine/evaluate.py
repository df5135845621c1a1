"""Evaluation: every image judged exactly once, one row per image and component in the ledger, sums over rows.

The prediction that counts is float32, by the model as it is, in eval mode. An interrupted evaluation goes on from
its ledger: images that have their rows are not judged again.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from bits.environment import Environment
from data.bad import BadSample
from data.batch import Batch
from data.index import DatasetIndex
from data.loader import OnBad, eval_loader
from data.pool import STUCK_AFTER_S
from data.transform import EvalTransform
from engine.agreement import is_same_data
from engine.chosen import Chosen, chosen
from engine.eval_fields import AnyEval, AttackEval, SuiteEval
from engine.eval_set import Change, EvalSet
from engine.judging import Judging, attack_settings
from engine.ledger import LedgerWriter, read_ledger
from engine.rows import CLEAN, effort_of, rows_of_views
from engine.stop import Stopped
from engine.tally import contract_id, tally
from engine.verdict import evaluation_id
from engine.view import PLAIN, View

PRECISION = "float32"


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluator:
    """What stays the same over the evaluations of one model on one dataset."""

    env: Environment
    model: nn.Module
    weights_sha256: str
    index: DatasetIndex
    transform: EvalTransform
    suite: str  # id of the evaluation set that `index` opens
    weights: str  # "raw" or "ema": which of a run's weights `model` has
    image_size: int
    batch_size: int  # global, where an entry does not say otherwise
    num_workers: int
    seed: int
    ledger: Path
    recipe: str  # hash of the recipe that trained the model
    bad: Literal["stop", "wrong"] = "stop"  # what an image that cannot be read does
    stuck_after_s: float = STUCK_AFTER_S
    warn: Callable[[str], None] | None = (
        None  # is told of replaced workers, and of bad images that count as wrong
    )
    stop_asked: Callable[[], bool] = lambda: False  # between batches; what is judged by then stays judged
    on_progress: Callable[[int, int], None] = lambda done, total: None  # images, after each batch
    say: Callable[[str], None] = lambda text: None  # lines for the person who watches
    record: Callable[[Mapping[str, Any]], None] = lambda values: None  # and for the log
    num_pictures: int = 0  # that a report shows of an attack; AutoAttack keeps them as it breaks them
    # Of an EvalSet:
    protocol: str = "default"
    views: tuple[View, ...] = (PLAIN,)
    judged: np.ndarray | None = None
    change: Change | None = None
    change_id: str = ""
    parts: tuple[EvalSet, ...] = ()  # engine.groups takes them one by one
    missing: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    overlap: Mapping[str, Sequence[str]] = field(default_factory=dict)  # of its kinds with the training

    def run(self, entry: SuiteEval | AttackEval) -> dict[str, Any]:
        """Judges what is not in the ledger yet and returns the result as plain values."""
        found, views = self.chosen(entry), self.views if isinstance(entry, SuiteEval) else (PLAIN,)
        keys = found.keys
        described = [self.describe(found, attack_settings(entry), view=view) for view in views]
        ids = [evaluation_id(**description) for description in described]
        components = (CLEAN,) if isinstance(entry, SuiteEval) else (CLEAN, entry.name)
        with LedgerWriter(self.ledger, self.env.rank) as writer:
            for identity, description in zip(ids, described, strict=True):
                writer.describe(identity, {**description, "name": entry.name, "components": list(components)})
            self.env.barrier()  # every writer's file exists before anyone reads what is done
            left = self._left(keys, ids[0], components)  # the rows of all views are of one transaction
            self.agree_on(ids[0], left)  # nobody writes before everyone has read
            bad = set[int]()  # positions
            write = partial(self._write, writer, ids, components, effort_of(entry), bad)
            try:
                self._judge(entry, left, write, bad)
            finally:
                self.env.flush()  # while the file is open, also when a bad sample ends the loop
        self.env.barrier()
        counts = [
            tally(self.ledger, identity, components, self.index, keys, counts_bad=self.bad == "wrong")
            for identity in ids
        ]
        beside = {
            view.id: {"evaluation": identity, "contract": description["contract"], **count}
            for view, identity, description, count in zip(views, ids, described, counts, strict=True)
        }
        return {
            "name": entry.name,
            "weights": self.weights,
            "recipe": self.recipe,
            "evaluation": ids[0],
            **described[0],
            **counts[0],
            **({"beside": {view.id: beside[view.id] for view in views[1:]}} if views[1:] else {}),
            **({"notes": list(self.notes)} if self.notes else {}),
        }

    def describe(
        self, selected: Chosen, attack: Mapping[str, object] | None, *, view: View = PLAIN
    ) -> dict[str, Any]:
        """The parts of the evaluation's id; `attack` are the settings of one, None for a suite."""
        return {
            "weights_sha256": self.weights_sha256,
            # The subset is part of the id: sums over the rows of one id are always over one set of images.
            "suite": f"{self.suite}{selected.subset}@{self.index.dataset_id}",
            # Where bad images count as wrong, verdicts are not those of an evaluation that would have stopped.
            "contract": contract_id(
                self.transform,
                self.image_size,
                protocol=self.protocol,
                words=(self.change_id, view.id, "badwrong" * (self.bad == "wrong")),
            ),
            "attack": attack,
            "seed": self.seed,
            "precision": PRECISION,
        }

    def chosen(self, entry: AnyEval) -> Chosen:
        """The images of `entry`: all, a fixed pseudo-random subset, or those of a list."""
        found = chosen(self.index, entry)
        if self.judged is None:
            return found
        if not len(keys := np.intersect1d(found.keys, self.judged)):
            raise ValueError(
                f"none of the {len(found.keys)} images asked for has a label in {self.suite}; name others"
            )
        return found._replace(keys=keys)

    def keys(self, entry: AnyEval) -> np.ndarray:
        """Their positions."""
        return self.chosen(entry).keys

    @property
    def judging(self) -> Judging:
        return Judging(env=self.env, model=self.model, views=self.views, change=self.change)

    def _left(self, keys: np.ndarray, identity: str, components: Sequence[str]) -> np.ndarray:
        book = read_ledger(self.ledger, identity)
        done = set(keys.tolist())
        for component in components:
            done &= set(book.done(identity, component).tolist())
        return np.array([key for key in keys.tolist() if key not in done], dtype=np.int64)

    def agree_on(self, identity: str, left: np.ndarray) -> None:
        """ValueError when ranks differ in what there is to do: they would wait for each other for ever."""
        if not is_same_data(self.env, identity.encode() + left.tobytes()):
            raise ValueError(
                f"processes found different weights or ledgers ({self.ledger} on rank {self.env.rank}); the run folder "
                "must be on a disk that all of them see"
            )

    def _loader(
        self, entry: SuiteEval | AttackEval, keys: np.ndarray, num_workers: int, on_bad: OnBad
    ) -> Iterator[Batch]:
        replicas = self.env.world_size * self.env.num_devices
        batch_size = entry.batch_size or self.batch_size
        return eval_loader(
            self.index,
            keys=keys,
            global_batch=-(-batch_size // replicas) * replicas,  # rounded up: padding slots do not count
            rank=self.env.rank,
            world_size=self.env.world_size,
            image_size=self.image_size,
            resize=self.transform,
            num_workers=num_workers,
            seed=self.seed,
            on_bad=on_bad if self.bad == "wrong" else None,
            stuck_after_s=self.stuck_after_s,
            warn=self.warn,
            pin=self.env.pin,
        )

    def note(self, bad: set[int], samples: Sequence[BadSample]) -> None:
        """Keeps the positions of bad samples, which count as wrong, and says so."""
        for sample in samples:
            bad.add(sample.position)
            if self.warn is not None:
                self.warn(f"{sample}; it counts as wrong")

    def pictures(self, entry: SuiteEval | AttackEval, keys: np.ndarray) -> dict[str, Tensor]:
        """The images of `keys` on the host, as they enter the model and as the attack leaves them: `key` int64
        [M], `image` uint8 [M,3,H,W], `attacked` float32 [M,3,H,W]; M >= len(keys), padding has key -1.

        An image's attack is the one that was judged: its random stream is a function of its key.
        """
        found: list[dict[str, Tensor]] = []
        was_training = self.model.training
        self.model.eval()
        # A handful, and a worker would start for longer. A bad image is black here, and has been named.
        for batch in self._loader(entry, keys, 0, lambda bad: None):
            fed = Batch(**self.env.feed(batch._asdict()))
            seen = {"key": fed.key, "image": self.judging.shown(fed)}
            if isinstance(entry, AttackEval):
                seen["attacked"] = self.judging.attacked(entry, fed.image.float() / 255.0, fed)
            self.env.cut()
            self.env.later({n: self.env.gather(t) for n, t in seen.items()}, found.append)
        self.env.flush()
        self.model.train(was_training)
        return {name: torch.cat([part[name] for part in found]) for name in found[0]}

    def _judge(self, entry: SuiteEval | AttackEval, keys: np.ndarray, write: Any, bad: set[int]) -> None:
        was_training = self.model.training
        self.model.eval()
        try:
            loader = self._loader(entry, keys, self.num_workers, partial(self.note, bad))
            judging = self.judging
            tables = [self.env.feed(view.tables, split=False) if view.tables else {} for view in self.views]
            watch = self.env.watch(calls=1, warn=self.warn or (lambda text: None))
            for number, batch in enumerate(loader, start=1):
                fed = Batch(**self.env.feed(batch._asdict()))
                with watch.step(fed._asdict(), at=f"batch {number} of {entry.name}"):
                    verdicts = judging.verdicts(entry, fed, tables)
                self.env.later(verdicts, partial(write, batch))
                done = number * len(batch.key) * self.env.world_size
                self.on_progress(min(done, len(keys)), len(keys))
                if self.env.agree(int(self.stop_asked())):
                    self.env.flush()
                    raise Stopped
        finally:
            self.model.train(was_training)

    def _write(
        self,
        writer: LedgerWriter,
        ids: Sequence[str],
        components: Sequence[str],
        effort: tuple[int | None, int],
        bad: set[int],
        batch: Batch,
        verdicts: dict[str, Tensor],
    ) -> None:
        """One transaction for all rows of this process's batch."""
        own = {name: self.env.own(verdict) for name, verdict in verdicts.items()}
        writer.write(rows_of_views(self.index, ids, components, effort, bad, batch, own))

"""What a run's weights come from: recipe, data and their order, teacher, start. It stands beside each checkpoint,
and a run goes on from one only where it is the same."""

from dataclasses import dataclass, field
from typing import Any

from bits.checkpoint import Checkpoint
from bits.state import TrainState
from engine.build import Layout
from engine.recipe import Recipe
from engine.teacher import Teacher, check_taught
from engine.training_set import TrainingSet, kept_window, window_of


@dataclass(slots=True, kw_only=True)
class Origin:
    """Of one run; `adopt` makes it that of a checkpoint."""

    recipe: Recipe
    index: TrainingSet
    layout: Layout
    teacher: Teacher | None
    init: str | None  # sha256 of the weights that the run started from
    window: int | None = field(init=False)  # shards shuffled together; None: a stream
    # `run.checkpoint_every` of the first start: the checkpoints that a run may go back to must not depend on a resume.
    checkpoint_every: int = field(init=False)

    def __post_init__(self) -> None:
        self.window = window_of(self.recipe.data, self.index)
        self.checkpoint_every = self.recipe.run.checkpoint_every

    @property
    def given(self) -> dict[str, str | None]:
        """Hashes of the weights from elsewhere."""
        return {"teacher": None if self.teacher is None else self.teacher.sha256, "init": self.init}

    def facts(self, state: TrainState) -> dict[str, Any]:
        """Beside a checkpoint of `state`, in JSON values."""
        return {
            "recipe": self.recipe.hash,
            "dataset_id": self.index.dataset_id,
            "seed": self.recipe.run.seed,
            "epoch": state.epoch,
            "consumed": state.consumed,
            "window": self.window,
            "checkpoint_every": self.checkpoint_every,
            "global_batch": self.layout.global_batch,
            "classes": list(self.index.classes),
            **self.given,
        }

    def adopt(self, checkpoint: Checkpoint) -> None:
        """Start and order of the run that wrote `checkpoint` go on. ValueError where data or teacher are others."""
        facts = checkpoint.facts
        if facts["dataset_id"] != self.index.dataset_id:
            raise ValueError(
                f"{checkpoint.path} was trained on dataset {facts['dataset_id'][:12]}, data.train holds "
                f"{self.index.dataset_id[:12]}; give the same shards or another --output"
            )
        if self.teacher is not None:
            check_taught(self.recipe, self.teacher, by=facts.get("teacher"), source=checkpoint.path)
        self.init = facts.get("init")
        self.checkpoint_every = facts.get("checkpoint_every", self.checkpoint_every)
        # Runs that had no windows yet shuffled everything and did not note it.
        used = facts.get("window", len(self.index.shards))
        self.window = kept_window(self.recipe.data, self.index, used=used, source=checkpoint.path)

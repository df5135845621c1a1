"""What a run will cost, counted from its recipe; engine/trial.py measures the rest. Nothing is written anywhere."""

from dataclasses import asdict, dataclass, replace
from typing import Any, Self

import torch

from engine.borrowed import Borrowed
from engine.build import check_model
from engine.eval_fields import AttackEval, AutoAttackEval, EvalEntry
from engine.passes import passes_of
from engine.recipe import Recipe
from engine.sources import Access
from engine.timetable import Timetable
from engine.training_set import TrainingSet, open_training_set
from models.catalogue import count_macs
from robust.versions import Part, version_of

FLOAT_BYTES = 4
MANY_CLASSES = 10  # from there on AutoAttack costs the same
OTHER_CHECKPOINTS = (
    1  # healthy-N or candidate-N, once step-N is pruned; and best-N, where a check may come too late
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """None where a number could not be had; `notes` say why, and what the numbers leave out."""

    parameters: int
    num_images: int | None  # of data.train
    updates: int | None
    images: int | None  # trained on, over all epochs
    forward: int  # passes for an image each time
    input_only: int
    full: int
    teacher: int  # forward passes of the teacher for an image
    eval_images: int | None  # of data.val
    eval_forwards: int | None  # of all evaluations; an input-only backward pass counts as one
    checkpoint_bytes: int
    disk_bytes: int
    backend: str | None = None
    measured_batch: int | None = None
    step_images_per_s: float | None = None  # without waiting for data
    data_images_per_s: float | None = None  # of the loader alone
    train_hours: float | None = None
    eval_hours: float | None = None
    memory_bytes: int | None = None
    memory_of: str | None = None
    teacher_cost: float | None = None  # of one of its passes, in forward passes of the model
    notes: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "notes": list(self.notes)}

    @property
    def forwards(self) -> float:
        """For an image trained on, in forward passes of the model; a full backward pass counts as two."""
        return self.forward + self.input_only + 2 * self.full + self.teacher * (self.teacher_cost or 0.0)

    def with_borrowed(self, recipe: Recipe, found: Borrowed) -> Self:
        """With what weights from elsewhere say: the cost of a teacher, and notes."""
        cost = None
        if found.teacher is not None and found.teacher_macs is not None:
            size = recipe.data.image_size
            model = check_model(recipe, num_classes=len(found.teacher.classes))
            macs = count_macs(model, (3, size, size))
            cost = found.teacher_macs / macs if macs else None
        return replace(self, teacher_cost=cost, notes=(*self.notes, *found.notes))


def count(recipe: Recipe, access: Access) -> tuple[Plan, TrainingSet | None]:
    """What needs no measuring, and the training set where it could be opened."""
    notes: list[str] = []
    index: TrainingSet | None = None
    try:
        index = open_training_set(recipe, access)
    except (ValueError, OSError) as error:
        notes.append(f"data.train cannot be opened, so epochs have no length: {' '.join(str(error).split())}")
    model = check_model(recipe, num_classes=None if index is None else len(index.classes))
    timetable = None
    if index is not None:
        timetable = Timetable(
            recipe=recipe, num_samples=index.num_samples, global_batch=recipe.run.batch_size
        )
    passes = passes_of(recipe.objective, recompute=recipe.model.recompute)
    updates = None if timetable is None else timetable.num_updates
    eval_images = _eval_images(recipe, access, notes)
    size = _checkpoint_bytes(recipe, model)
    has_best, has_checks = recipe.run.best is not None, recipe.run.health.every is not None
    kept = recipe.run.keep_checkpoints + has_best * (1 + has_checks) + OTHER_CHECKPOINTS
    if recipe.data.sizes is not None:
        notes.append(f"images count as {recipe.data.image_size} px in every epoch")
    plan = Plan(
        parameters=sum(p.numel() for p in model.parameters()),
        num_images=None if index is None else index.num_samples,
        updates=updates,
        images=None if updates is None else updates * recipe.optim.accumulate * recipe.run.batch_size,
        **passes._asdict(),
        eval_images=eval_images,
        eval_forwards=None if eval_images is None else eval_forwards(recipe, eval_images),
        checkpoint_bytes=size,
        disk_bytes=size * kept,
        notes=tuple(notes),
    )
    return plan, index


def _eval_images(recipe: Recipe, access: Access, notes: list[str]) -> int | None:
    if not recipe.evals:
        return 0
    try:
        return int(access.open(str(recipe.data.val), field="data.val").num_samples)
    except (ValueError, OSError):
        notes.append("data.val cannot be opened: evaluations are not counted")
        return None


def eval_forwards(recipe: Recipe, num_images: int) -> int:
    """Forward passes over an image of all evaluations of a run; suites count as large as data.val."""
    total = 0
    for entry in recipe.evals:
        images = min(entry.num_images or num_images, num_images)
        copies = 2 if recipe.optim.ema is not None and entry.weights == "all" else 1
        times = 1 + (recipe.run.epochs // entry.every if entry.every else 0)
        total += images * copies * times * _forwards(entry)
    return total


def _forwards(entry: EvalEntry) -> int:
    """For an image: the clean verdict, then two for each step of an attack and one for its end. AutoAttack spends so
    many on an image that stands everything; one that breaks early costs a small part."""
    if isinstance(entry, AutoAttackEval):
        parts = version_of(entry.version, norm=entry.norm, num_classes=MANY_CLASSES).parts
        return 1 + round(sum(_most_passes(part) for part in parts))
    return 1 + entry.restarts * (2 * entry.steps + 1) if isinstance(entry, AttackEval) else 1


def _most_passes(part: Part) -> float:
    passes = part.component.passes
    return max(part.targets, part.restarts) * part.component.steps * (passes.forward + passes.backward)


def _checkpoint_bytes(recipe: Recipe, model: torch.nn.Module) -> int:
    weights: int = sum(t.numel() * t.element_size() for t in model.state_dict().values())
    trained: int = sum(p.numel() for p in model.parameters() if p.requires_grad)
    slots = 2 if recipe.optim.name == "adamw" else int(recipe.optim.momentum > 0)
    return weights * (1 if recipe.optim.ema is None else 2) + FLOAT_BYTES * slots * trained

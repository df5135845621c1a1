"""Weights from elsewhere, tried on where nothing is trained: those that `model.init` and a teacher's field name.

A name such as timm:resnet50.a1_in1k is only said, for looking at it may fetch it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bits.checkpoint import list_checkpoints
from engine.build import check_model
from engine.folder import RunFolder
from engine.recipe import Recipe
from engine.sources import numbered
from engine.start import FIELD as START
from engine.start import open_start
from engine.subject import Subject
from engine.teacher import FIELD as TEACHER
from engine.teacher import open_teacher
from models.catalogue import count_macs
from models.hub import is_hub_name
from models.pixel import PixelModel
from models.registry import create_model


@dataclass(frozen=True, slots=True, kw_only=True)
class Borrowed:
    """What was found."""

    teacher: Subject | None = None
    teacher_macs: int | None = None  # of a forward pass of the teacher
    notes: tuple[str, ...] = ()


def try_on(recipe: Recipe, folder: RunFolder, *, classes: Sequence[str] | None) -> Borrowed:
    """Refuses what a run in `folder` would, by ValueError or OSError in one line. `classes`: of data.train, None where
    nobody knows."""
    if classes is None and recipe.data.num_classes is not None:
        classes = numbered(recipe.data.num_classes)
    notes = [note for note in (_start(recipe, folder, classes),) if note]
    distill = recipe.objective.distill
    if distill is None:
        return Borrowed(notes=tuple(notes))
    if is_hub_name(distill.teacher):
        notes.append(_said(TEACHER, distill.teacher))
        return Borrowed(notes=tuple(notes))
    if classes is None:
        notes.append(f"{TEACHER} was not opened: the classes of data.train are unknown")
        return Borrowed(notes=tuple(notes))
    teacher = try_teacher(recipe, folder, classes)
    return Borrowed(teacher=teacher, teacher_macs=teacher_macs(teacher), notes=tuple(notes))


def try_teacher(recipe: Recipe, folder: RunFolder, classes: Sequence[str]) -> Subject | None:
    """The teacher, which fits its own model and the classes of the training; None where the recipe names none."""
    subject = open_teacher(recipe, classes=classes, folder=folder)
    if subject is None:
        return None
    try:
        subject.load_into(_bare(subject.recipe, len(subject.classes)))
    except ValueError as error:
        raise ValueError(f"{TEACHER}: {error}") from None
    return subject


def try_start(recipe: Recipe, classes: Sequence[str] | None) -> str:
    """The weights that the run would begin with, in words; whether they fit only where `classes` are known."""
    found = open_start(recipe)
    if found is None:
        return ""
    if classes is not None:
        found.load_into(_bare(recipe, len(classes)))
    return f"{found.settings.path}, {found.sha256[:12]}"


def teacher_macs(teacher: Subject | None) -> int | None:
    """Multiply-adds of its forward pass; None where they cannot be counted."""
    if teacher is None:
        return None
    model = check_model(teacher.recipe, num_classes=len(teacher.classes))
    return count_macs(model, (3, model.image_size, model.image_size))


def _start(recipe: Recipe, folder: RunFolder, classes: Sequence[str] | None) -> str:
    """What there is to note."""
    init = recipe.model.init
    if init is None or list_checkpoints(folder.checkpoints):  # a run that goes on reads none
        return ""
    if is_hub_name(init.path):
        return _said(START, init.path)
    try_start(recipe, classes)
    if classes is None:
        return f"{START} was read; whether it fits is unknown, as are the classes of data.train"
    return ""


def _said(field: str, name: str) -> str:
    return f"{field} {name} was not looked at: it may have to be fetched"


def _bare(recipe: Recipe, num_classes: int) -> PixelModel:
    """The recipe's model on the cpu, as in a run of one process and device."""
    extra: dict[str, Any] = dict(recipe.model.args)
    return create_model(
        recipe.model.name,
        num_classes=num_classes,
        image_size=recipe.data.image_size,
        mean=recipe.model.mean,
        std=recipe.model.std,
        norm_stats=recipe.model.norm_stats,
        split_norm=recipe.model.split_norm,
        drop_path=recipe.model.drop_path,
        **extra,
    )

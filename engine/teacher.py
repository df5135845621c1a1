"""A teacher: found and checked before a run begins, then on the device, in eval mode, without gradients."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from bits.environment import Environment
from engine.build import build_model, check_model
from engine.folder import RunFolder
from engine.foreign import Stated
from engine.recipe import Recipe
from engine.sources import numbered
from engine.subject import Subject, open_subject
from engine.verdict import weights_hash
from models.deit import set_distilled_training
from models.hub import is_hub_name
from models.pixel import PixelModel

FIELD = "objective.distill.teacher"


@dataclass(frozen=True, slots=True, kw_only=True)
class Teacher:
    """Logits (N,K), float32, of images (N,3,H,W) in [0,1]; all on the device. It is no module: no optimizer,
    average, checkpoint or DDP may find its weights."""

    model: PixelModel
    in_bf16: bool
    sha256: str  # of its weights, mean and std
    about: str  # in words

    def __call__(self, image: Tensor) -> Tensor:
        with torch.no_grad():
            seen = resized(image, self.model.image_size)
            with torch.autocast(image.device.type, dtype=torch.bfloat16, enabled=self.in_bf16):
                logits: Tensor = self.model(seen)
            return logits.float()


def open_teacher(recipe: Recipe, *, classes: Sequence[str], folder: RunFolder) -> Subject | None:
    """The teacher that the recipe names, not built yet; None where it names none. `classes`: of the training;
    `folder`: of the run. ValueError or OSError in one line for one that cannot teach this run.
    """
    distill = recipe.objective.distill
    if distill is None:
        return None
    if distill.two_heads:
        set_distilled_training(check_model(recipe, num_classes=len(classes)))
    place = Path(distill.teacher)
    _check_place(distill.teacher, folder)
    stated = Stated(model=distill.teacher_model, image_size=distill.teacher_image_size)
    try:
        subject = open_subject(place, weights=distill.teacher_weights, stated=stated)
    except (ValueError, OSError) as error:
        raise ValueError(f"{FIELD}: {_in_fields(str(error))}") from None
    if problem := _class_problem(subject, classes):
        raise ValueError(
            f"{FIELD} {distill.teacher} {problem}; a teacher must have the classes of data.train"
        )
    return subject


def build_teacher(subject: Subject, recipe: Recipe, env: Environment) -> Teacher:
    """The teacher on the device. ValueError where its weights do not fit its model."""
    distill = recipe.objective.distill
    assert distill is not None, "a teacher without distillation"
    model = build_model(subject.recipe, env, num_classes=len(subject.classes), layout=None)
    try:
        notes = subject.load_into(model)
    except ValueError as error:
        raise ValueError(f"{FIELD}: {error}") from None
    model.eval().requires_grad_(False)
    env.cut()
    wanted = distill.precision or ("float32" if recipe.run.precision == "float32" else "bf16")
    sha256 = weights_hash(model.state_dict())
    loaded = "" if notes is None else f"; {notes}"
    return Teacher(
        model=model,
        in_bf16=wanted == "bf16",
        sha256=sha256,
        about=f"teacher {model.name} at {model.image_size} px in {wanted}, {sha256[:12]}{loaded}",
    )


def check_taught(recipe: Recipe, teacher: Teacher, *, by: str | None, source: Path) -> None:
    """ValueError when the run in `source` was taught by other weights, those of hash `by`."""
    distill = recipe.objective.distill
    assert distill is not None, "a teacher without distillation"
    if by != teacher.sha256:
        raise ValueError(
            f"{source} was taught by weights {str(by)[:12]}, {FIELD} {distill.teacher} holds {teacher.sha256[:12]}; "
            "give the same weights, wherever they lie now, or another --output"
        )


def resized(image: Tensor, size: int) -> Tensor:
    """Square images (N,3,H,H) at `size`, as F.interpolate(mode="bilinear", antialias=True) makes them.

    By two matrix products, because torch_xla leaves antialiased resizing to the host.
    """
    if image.shape[-1] == size:
        return image
    weight = bilinear_weights(image.shape[-1], size, device=image.device)
    with torch.autocast(image.device.type, enabled=False):
        return weight @ image.float() @ weight.T


def bilinear_weights(size_in: int, size_out: int, *, device: torch.device | None = None) -> Tensor:
    """float32 (size_out, size_in), rows of sum 1: a triangle over the pixels around each centre, widened where the
    image shrinks."""
    scale = size_in / size_out
    centre = (torch.arange(size_out, device=device, dtype=torch.float32)[:, None] + 0.5) * scale
    place = torch.arange(size_in, device=device, dtype=torch.float32)[None, :] + 0.5
    weight = (1.0 - (place - centre).abs() / max(scale, 1.0)).clamp(min=0.0)
    normed: Tensor = weight / weight.sum(dim=1, keepdim=True)
    return normed


def _check_place(teacher: str, folder: RunFolder) -> None:
    if is_hub_name(teacher):
        return
    place, own = Path(teacher).resolve(), folder.root.resolve()
    if place == own or own in place.parents:
        raise ValueError(
            f"{FIELD} {teacher} lies in this run's own folder {folder.root}; name another run, or choose another "
            "--output"
        )
    if not place.exists():
        raise ValueError(
            f"{FIELD} {teacher} does not exist; give a run folder, a weight file, or a name such as "
            "timm:resnet50.a1_in1k"
        )


def _class_problem(subject: Subject, classes: Sequence[str]) -> str:
    """What is wrong with the teacher's classes. Names are compared where both sides have some."""
    if len(subject.classes) != len(classes):
        return f"has {len(subject.classes)} classes and data.train {len(classes)}"
    nameless = numbered(len(classes))
    if nameless in (tuple(subject.classes), tuple(classes)):
        return ""
    pairs = enumerate(zip(subject.classes, classes, strict=True))
    place = next((i for i, (taught, trained) in pairs if taught != trained), None)
    if place is None:
        return ""
    return f"has class {subject.classes[place]!r} as number {place}, data.train {classes[place]!r}"


def _in_fields(line: str) -> str:
    """The line with the recipe's fields instead of the flags of `eval`."""
    fields = {
        "--model NAME": "objective.distill.teacher_model=NAME",
        "--model": "objective.distill.teacher_model",
        "--weights": "objective.distill.teacher_weights",
    }
    for flag, field in fields.items():
        line = line.replace(f"{flag} raw", f"{field}=raw").replace(flag, field)
    return line

"""Curves and pictures of a run beside log.jsonl: TensorBoard events, and Weights & Biases when it is asked for.

Fed by the run's log (rank 0 only), so that their steps are those of log.jsonl. Whatever goes wrong in them costs
the curves and not the run.
"""

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from engine.recipe import Recipe

WARMED_UP = (
    "magnitude",
    "mix_prob",
    "cutmix",
    "switch_prob",
    "eps",
    "steps",
)  # in a `train` entry where warm-ups name them
TRAIN_SCALARS = ("loss", "top1", "lr", "images_per_s", "data_s", "step_s", *WARMED_UP)
HEALTH_SCALARS = ("fgsm_top1", "pgd_top1", "gap", "zero_gradients")
FLUSH_S = 10  # how far the curves of somebody who watches lie behind
IMAGES = ("augmented", "adversarial")


class Tracker(Protocol):
    """Somewhere that draws curves."""

    name: str

    def scalars(self, step: int, values: Mapping[str, float]) -> None: ...

    def images(self, step: int, name: str, image: Tensor) -> None:
        """`image` uint8 [n,3,H,W] on the host."""

    def flush(self) -> None:
        """Everything up to here survives a kill."""

    def close(self, exit_code: int) -> None: ...


class Trackers:
    """Several trackers as one. One that fails is given up with a warning, once."""

    def __init__(
        self, trackers: Sequence[Tracker] = (), *, warn: Callable[[str], None] = lambda line: None
    ) -> None:
        self._trackers = list(trackers)
        self._warn = warn
        self._last: dict[str, int] = {}  # step of each evaluation's last value

    def entry(self, event: str, step: int, values: Mapping[str, Any]) -> None:
        """What one entry of log.jsonl says at `step`."""
        scalars = {}
        if event == "train":
            scalars = {f"train/{name}": values[name] for name in TRAIN_SCALARS if name in values}
        elif event == "eval":
            # One curve an evaluation: those during training are called NAME-epochN there. The last of these and that
            # of the end are of the same step.
            tag = "eval/" + re.sub(r"-epoch\d+", "", values["name"])
            if self._last.get(tag) != step:
                self._last[tag] = step
                scalars = {tag: values["top1"]}
        elif event == "health":
            scalars = {f"health/{name}": values[name] for name in HEALTH_SCALARS if name in values}
        if scalars:
            self._each(lambda tracker: tracker.scalars(step, scalars))

    def preview(self, step: int, preview: Tensor) -> None:
        """`preview` uint8 [1 or 2,n,3,H,W]: what went into the step, and what its attack made of it."""
        for name, image in zip(IMAGES, preview, strict=False):
            self._each(lambda tracker, n=name, i=image: tracker.images(step, n, i))  # type: ignore[misc]

    def flush(self) -> None:
        self._each(lambda tracker: tracker.flush())

    def close(self, exit_code: int) -> None:
        self._each(lambda tracker: tracker.close(exit_code))
        self._trackers.clear()

    def _each(self, call: Callable[[Tracker], None]) -> None:
        for tracker in list(self._trackers):
            try:
                call(tracker)
            except Exception as error:  # of somebody else's library, disk or network: any kind
                self._trackers.remove(tracker)
                lines = str(error).splitlines() or [type(error).__name__]
                self._warn(f"{tracker.name} is given up, the run goes on without it: {lines[0]}")


def open_trackers(recipe: Recipe, folder: Path, *, step: int, warn: Callable[[str], None]) -> Trackers:
    """Those that the recipe asks for, of a run in `folder` that starts at `step`; nothing is written yet."""
    trackers: list[Tracker] = []
    if recipe.run.tensorboard:
        trackers.append(TensorBoard(folder / "tensorboard", step=step))
    if recipe.run.wandb is not None:
        trackers.append(Wandb(recipe.run.wandb, recipe, folder))
    return Trackers(trackers, warn=warn)


class TensorBoard:
    """Event files; opened at the first value, because the import takes a good second."""

    name = "TensorBoard"

    def __init__(self, folder: Path, *, step: int) -> None:
        self._folder = folder
        self._step = step
        self._opened: Any = None

    @property
    def _writer(self) -> Any:
        if self._opened is None:
            from torch.utils.tensorboard import SummaryWriter

            # What an earlier start wrote beyond the checkpoint is made again; readers then drop the old values.
            self._opened = SummaryWriter(  # type: ignore[no-untyped-call]
                str(self._folder), purge_step=self._step + 1, flush_secs=FLUSH_S
            )
        return self._opened

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        for tag, value in values.items():
            self._writer.add_scalar(tag, value, step)

    def images(self, step: int, name: str, image: Tensor) -> None:
        self._writer.add_images(name, image, step)

    def flush(self) -> None:
        if self._opened is not None:
            self._opened.flush()

    def close(self, exit_code: int) -> None:
        if self._opened is not None:
            self._opened.close()


def import_wandb() -> Any:
    """The package; ValueError when it is not installed. A folder called wandb, which it leaves where it ran, does
    not count."""
    try:
        module = import_module("wandb")
    except ModuleNotFoundError as error:
        if error.name != "wandb":
            raise
        module = None
    if not hasattr(module, "init"):
        raise ValueError(
            "run.wandb is given but the package wandb is not installed; pip install wandb, or drop the field"
        )
    return module


class Wandb:
    """A run of project `project`; the same one again when the run folder's run goes on."""

    name = "wandb"

    def __init__(self, project: str, recipe: Recipe, folder: Path) -> None:
        self._project, self._recipe, self._folder = project, recipe, folder
        self._opened: Any = None

    @property
    def _run(self) -> Any:
        if self._opened is None:
            identity = f"{self._folder.resolve()} {self._recipe.hash}"
            self._opened = import_wandb().init(
                project=self._project,
                name=self._recipe.name,
                id=hashlib.sha256(identity.encode()).hexdigest()[:16],
                resume="allow",
                config=self._recipe.model_dump(mode="json"),
                dir=str(self._folder),
                settings={"console": "off"},  # it would take stderr apart, and log.jsonl has it all
            )
        return self._opened

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def images(self, step: int, name: str, image: Tensor) -> None:
        pictures = [import_wandb().Image(one.permute(1, 2, 0).numpy()) for one in image]
        self._run.log({name: pictures}, step=step)

    def flush(self) -> None:
        """Another process of wandb's has it already."""

    def close(self, exit_code: int) -> None:
        if self._opened is not None:
            self._opened.finish(exit_code=exit_code)

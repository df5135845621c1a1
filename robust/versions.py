"""AutoAttack's versions as data: which components run, in which order, on how many target classes.

`standard` is the published order with the published budgets (Croce and Hein 2020, arXiv:2003.01690; code of its
authors): only that, unchanged, may be called AutoAttack standard. A version that had to be changed, because a model has
too few classes, carries the change in its id.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from robust.apgd import Apgd
from robust.fab import Fab
from robust.lanes import Component
from robust.square import Square

NUM_TARGETS = 9
Norm = Literal["linf", "l2"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A component, and its tries on an image."""

    component: Component
    targets: int = 0  # a try for each of so many likeliest other classes; 0: one class is as good as another
    restarts: int = 1  # tries of an untargeted component

    @property
    def name(self) -> str:
        return self.component.name


@dataclass(frozen=True, slots=True, kw_only=True)
class Version:
    """What runs; `id` goes into every result."""

    id: str
    parts: tuple[Part, ...]


def version_of(name: str, *, norm: Norm, num_classes: int) -> Version:
    """The version called `name` for a model of `num_classes`. ValueError for an unknown name or norm."""
    if name not in VERSIONS:
        raise ValueError(f"AutoAttack has no version {name!r}; use {', '.join(VERSIONS)}")
    if norm not in ("linf", "l2"):
        raise ValueError(f"AutoAttack in norm {norm!r} is not defined here; use linf or l2")
    if num_classes < 2:
        raise ValueError(f"a model of {num_classes} class has nothing to be wrong about; it needs 2 classes")
    return VERSIONS[name](norm, num_classes)


def standard(norm: Norm, num_classes: int) -> Version:
    """APGD-CE, APGD-T, FAB-T, Square, each on what the ones before it have not broken."""
    targets = min(NUM_TARGETS, num_classes - 1)
    parts = (
        Part(component=Apgd(loss="ce", norm=norm)),
        Part(component=Apgd(loss="dlr-targeted", norm=norm), targets=targets),
        Part(component=Fab(norm=norm), targets=targets),
        Part(component=Square()),
    )
    return Version(id="standard" if targets == NUM_TARGETS else f"standard-{targets}-targets", parts=parts)


VERSIONS: Mapping[str, Callable[[Norm, int], Version]] = {"standard": standard}

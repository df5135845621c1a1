"""AutoAttack's versions as data: which components run, in which order, on how many target classes.

`standard`, `plus` and `rand` are the published orders with the published budgets (Croce and Hein 2020,
arXiv:2003.01690; code of its authors): only that, unchanged, may be called so. Where a model has too few classes the
change is in the id: with fewer than 10 there are fewer targets (`standard-4-targets`); with fewer than 4 targeted DLR,
and with fewer than 3 DLR, is not defined, and the logit margin takes its place (`standard-2-targets-margin`).

`fast` and `next` are this toolkit's own and are never called standard. `fast` searches by APGD alone, in low precision
where the caller hands it in, and has all of `standard` attack a random sample of what is left (robust/bounds.py).
`next` takes newer attacks in place of the dear ones.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from robust.apgd import Apgd
from robust.attack_losses import LEAST_CLASSES, WITHOUT_RATIO, LossName
from robust.fab import Fab
from robust.fab_untargeted import FabUntargeted
from robust.lanes import Component, Norm
from robust.square import Square
from robust.square_l2 import SquareL2

NUM_TARGETS = 9
RESTARTS = 5  # of `plus`
EOT = 20  # of `rand`
AUDITED = 1 / 16  # of the survivors of `fast`; the bound on what it missed is about 3 / (number audited)
CANDIDATES = 100  # likeliest classes among which `next` looks for the nearest
NEXT_QUERIES = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A component, and its tries on an image."""

    component: Component
    targets: int = 0  # a try for each of so many likeliest other classes; 0: one class is as good as another
    restarts: int = 1  # tries of an untargeted component
    candidates: int = (
        0  # the targets are the nearest (robust/targets.py) of so many likeliest; 0: the likeliest
    )
    share: float = 1.0  # of the images that are left, drawn at random by key
    is_float32: bool = False  # also where the version's other searches are in low precision

    @property
    def name(self) -> str:
        return self.component.name


@dataclass(frozen=True, slots=True, kw_only=True)
class Version:
    """What runs; `id` goes into every result."""

    id: str
    parts: tuple[Part, ...]
    is_low: bool = False  # searches may be in low precision; verdicts never are


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
    targets = _targets(num_classes)
    parts = (
        Part(component=Apgd(loss="ce", norm=norm)),
        Part(component=Apgd(loss=_loss("dlr-targeted", num_classes), norm=norm), targets=targets),
        Part(component=Fab(norm=norm), targets=targets),
        Part(component=_square(norm)),
    )
    return Version(id=_id("standard", parts, targets), parts=parts)


def plus(norm: Norm, num_classes: int) -> Version:
    """APGD-CE and APGD-DLR with 5 restarts, untargeted FAB with 5, Square, then APGD-T and FAB-T as in `standard`.

    The first try of FAB starts at the clean image and the other four elsewhere, so they are a component of their own.
    """
    targets = _targets(num_classes)
    parts = (
        Part(component=Apgd(loss="ce", norm=norm), restarts=RESTARTS),
        Part(component=Apgd(loss=_loss("dlr", num_classes), norm=norm), restarts=RESTARTS),
        Part(component=FabUntargeted(num_classes=num_classes, norm=norm)),
        Part(
            component=FabUntargeted(num_classes=num_classes, norm=norm, random_start=True),
            restarts=RESTARTS - 1,
        ),
        Part(component=_square(norm)),
        Part(component=Apgd(loss=_loss("dlr-targeted", num_classes), norm=norm), targets=targets),
        Part(component=Fab(norm=norm), targets=targets),
    )
    return Version(id=_id("plus", parts, targets), parts=parts)


def rand(norm: Norm, num_classes: int) -> Version:
    """APGD-CE and APGD-DLR, each gradient the mean of 20: for models whose answers are random."""
    parts = (
        Part(component=Apgd(loss="ce", norm=norm, eot=EOT)),
        Part(component=Apgd(loss=_loss("dlr", num_classes), norm=norm, eot=EOT)),
    )
    return Version(id=_id("rand", parts, NUM_TARGETS), parts=parts)


def fast(norm: Norm, num_classes: int) -> Version:
    """APGD-CE and APGD-T as in `standard`, then all of `standard`, in float32, on a sample of what is left."""
    targets, by_target = _targets(num_classes), _loss("dlr-targeted", num_classes)
    parts = (
        Part(component=Apgd(loss="ce", norm=norm)),
        Part(component=Apgd(loss=by_target, norm=norm), targets=targets),
        Part(component=Apgd(loss="ce", norm=norm, suffix="-audit"), share=AUDITED, is_float32=True),
        Part(
            component=Apgd(loss=by_target, norm=norm, suffix="-audit"),
            targets=targets,
            share=AUDITED,
            is_float32=True,
        ),
        Part(component=Fab(norm=norm), targets=targets, share=AUDITED, is_float32=True),
        Part(component=_square(norm), share=AUDITED, is_float32=True),
    )
    return Version(id=_id("fast", parts, targets), parts=parts, is_low=True)


def next_version(norm: Norm, num_classes: int) -> Version:
    """APGD with the probability margin (Xie et al. 2024, arXiv:2411.15210), APGD-T on the nearest classes and not
    the likeliest (Melamed et al. 2024, arXiv:2407.02240), and 1,000 queries of Square against masked gradients."""
    targets = _targets(num_classes)
    parts = (
        Part(component=Apgd(loss="probability-margin", norm=norm)),
        Part(
            component=Apgd(loss=_loss("dlr-targeted", num_classes), norm=norm),
            targets=targets,
            candidates=min(CANDIDATES, num_classes - 1),
        ),
        Part(component=_square(norm, queries=NEXT_QUERIES, rescale=True)),
    )
    return Version(id=_id("next", parts, targets), parts=parts)


VERSIONS: Mapping[str, Callable[[Norm, int], Version]] = {
    "standard": standard,
    "plus": plus,
    "rand": rand,
    "fast": fast,
    "next": next_version,
}


def _targets(num_classes: int) -> int:
    return min(NUM_TARGETS, num_classes - 1)


def _loss(name: LossName, num_classes: int) -> LossName:
    return name if num_classes >= LEAST_CLASSES[name] else WITHOUT_RATIO[name]


def _square(norm: Norm, **settings: Any) -> Component:
    return SquareL2(**settings) if norm == "l2" else Square(**settings)


def _id(name: str, parts: Sequence[Part], targets: int) -> str:
    """`name` where the version is the published one; else what was changed is in it."""
    changes = [] if targets == NUM_TARGETS else [f"{targets}-target{'s' * (targets > 1)}"]
    changes += ["margin"] * any("-margin" in part.name for part in parts)
    return "-".join([name, *changes])

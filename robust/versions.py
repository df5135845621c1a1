"""AutoAttack's versions as data: which components run, in which order, on how many target classes.

`standard`, `plus` and `rand` are the published orders with the published budgets (Croce and Hein 2020,
arXiv:2003.01690; code of its authors): only that, unchanged, may be called so. Where a model has too few classes the
change is in the id: with fewer than 10 there are fewer targets (`standard-4-targets`); with fewer than 4 targeted DLR,
and with fewer than 3 DLR, is not defined, and the logit margin takes its place (`standard-2-targets-margin`).

In l1 the published `standard` begins APGD in larger balls (robust/l1_runs.py), with 5 restarts and on 5 target classes,
because it is less sure to arrive there; its `plus` and `rand` do not, and are those of the other norms.

`fast` and `next` are this toolkit's own and are never called standard. `fast` searches by APGD alone, in low precision
where the caller hands it in, and has all of `standard` attack a random sample of what is left (robust/bounds.py).
`next` takes newer attacks in place of the dear ones.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from robust.apgd import Apgd
from robust.apgd_l1 import ApgdL1
from robust.attack_losses import LEAST_CLASSES, WITHOUT_RATIO, LossName
from robust.fab import Fab
from robust.fab_untargeted import FabUntargeted
from robust.lanes import Component, Norm
from robust.square import Square
from robust.square_l1 import SquareL1
from robust.square_l2 import SquareL2
from robust.threat import NORMS

NUM_TARGETS = 9
RESTARTS = 5  # of `plus`, and of APGD-CE in l1
L1_TARGETS = 5  # of APGD-T in l1
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
    if norm not in NORMS:
        raise ValueError(f"AutoAttack in norm {norm!r} is not defined here; use {', '.join(NORMS)}")
    if num_classes < 2:
        raise ValueError(f"a model of {num_classes} class has nothing to be wrong about; it needs 2 classes")
    return VERSIONS[name](norm, num_classes)


def standard(norm: Norm, num_classes: int) -> Version:
    """APGD-CE, APGD-T, FAB-T, Square, each on what the ones before it have not broken."""
    targets = _targets(num_classes)
    parts = (
        *_apgd_parts(norm, num_classes),
        Part(component=Fab(norm=norm), targets=targets),
        Part(component=square_of(norm)),
    )
    return Version(id=_id("standard", parts, targets), parts=parts)


def plus(norm: Norm, num_classes: int) -> Version:
    """APGD-CE and APGD-DLR with 5 restarts, untargeted FAB with 5, Square, then APGD-T and FAB-T as in `standard`.

    The first try of FAB starts at the clean image and the other four elsewhere, so they are a component of their own.
    """
    targets = _targets(num_classes)
    parts = (
        Part(component=_apgd(norm, loss="ce"), restarts=RESTARTS),
        Part(component=_apgd(norm, loss=_loss("dlr", num_classes)), restarts=RESTARTS),
        Part(component=FabUntargeted(num_classes=num_classes, norm=norm)),
        Part(
            component=FabUntargeted(num_classes=num_classes, norm=norm, random_start=True),
            restarts=RESTARTS - 1,
        ),
        Part(component=square_of(norm)),
        Part(component=_apgd(norm, loss=_loss("dlr-targeted", num_classes)), targets=targets),
        Part(component=Fab(norm=norm), targets=targets),
    )
    return Version(id=_id("plus", parts, targets), parts=parts)


def rand(norm: Norm, num_classes: int) -> Version:
    """APGD-CE and APGD-DLR, each gradient the mean of 20: for models whose answers are random."""
    parts = (
        Part(component=_apgd(norm, loss="ce", eot=EOT)),
        Part(component=_apgd(norm, loss=_loss("dlr", num_classes), eot=EOT)),
    )
    return Version(id=_id("rand", parts, NUM_TARGETS), parts=parts)


def fast(norm: Norm, num_classes: int) -> Version:
    """APGD-CE and APGD-T as in `standard`, then all of `standard`, in float32, on a sample of what is left."""
    targets = _targets(num_classes)
    audit = _apgd_parts(norm, num_classes, suffix="-audit")
    parts = (
        *_apgd_parts(norm, num_classes),
        *(replace(part, share=AUDITED, is_float32=True) for part in audit),
        Part(component=Fab(norm=norm), targets=targets, share=AUDITED, is_float32=True),
        Part(component=square_of(norm), share=AUDITED, is_float32=True),
    )
    return Version(id=_id("fast", parts, targets), parts=parts, is_low=True)


def next_version(norm: Norm, num_classes: int) -> Version:
    """APGD with the probability margin (Xie et al. 2024, arXiv:2411.15210), APGD-T on the nearest classes and not
    the likeliest (Melamed et al. 2024, arXiv:2407.02240), and 1,000 queries of Square against masked gradients."""
    targets = _targets(num_classes)
    first, by_target = _apgd_parts(norm, num_classes, loss="probability-margin")
    parts = (
        first,
        replace(by_target, candidates=min(CANDIDATES, num_classes - 1)),
        Part(component=square_of(norm, queries=NEXT_QUERIES, rescale=True)),
    )
    return Version(id=_id("next", parts, targets), parts=parts)


VERSIONS: Mapping[str, Callable[[Norm, int], Version]] = {
    "standard": standard,
    "plus": plus,
    "rand": rand,
    "fast": fast,
    "next": next_version,
}


def square_of(norm: Norm, **settings: Any) -> Component:
    """Square in the norm."""
    if norm == "l1":
        return SquareL1(**settings)
    return SquareL2(**settings) if norm == "l2" else Square(**settings)


def _targets(num_classes: int) -> int:
    return min(NUM_TARGETS, num_classes - 1)


def _loss(name: LossName, num_classes: int) -> LossName:
    return name if num_classes >= LEAST_CLASSES[name] else WITHOUT_RATIO[name]


def _apgd(norm: Norm, **settings: Any) -> Component:
    return ApgdL1(**settings) if norm == "l1" else Apgd(norm=norm, **settings)


def _apgd_parts(
    norm: Norm, num_classes: int, *, loss: LossName = "ce", suffix: str = ""
) -> tuple[Part, Part]:
    """APGD with `loss`, and APGD-T, as in `standard`."""
    settings: dict[str, Any] = {"suffix": suffix} | ({"large_first": True} if norm == "l1" else {})
    targets, by_target = _targets(num_classes), _loss("dlr-targeted", num_classes)
    return (
        Part(component=_apgd(norm, loss=loss, **settings), restarts=RESTARTS if norm == "l1" else 1),
        Part(
            component=_apgd(norm, loss=by_target, **settings),
            targets=min(targets, L1_TARGETS) if norm == "l1" else targets,
        ),
    )


def _id(name: str, parts: Sequence[Part], targets: int) -> str:
    """`name` where the version is the published one; else what was changed is in it."""
    changes = [] if targets == NUM_TARGETS else [f"{targets}-target{'s' * (targets > 1)}"]
    changes += ["margin"] * any("-margin" in part.name for part in parts)
    return "-".join([name, *changes])

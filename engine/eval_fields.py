"""The entries of a recipe's `evals`: a suite to judge, or an attack on the clean images."""

from collections.abc import Mapping
from importlib import import_module
from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    Discriminator,
    Field,
    PositiveInt,
    Tag,
    ValidationInfo,
)

from engine.values import PositiveRadius, Section

STANDARD = "standard"
Preset = Literal["none", "bai2021", "xu2022"]
# The code of Bai et al. 2021 starts each batch from noise or from the clean images, by a draw that says noise where a
# normal number is above 0: half of them. Here each image has a draw of its own.
PRESET_STEPS: Mapping[str, tuple[int, ...]] = {"bai2021": (5, 10, 50, 100), "xu2022": (5,)}
CLEAN_STARTS: Mapping[str, float] = {"none": 0.0, "bai2021": 0.5, "xu2022": 0.0}


def _not_both(images: str | None, info: ValidationInfo) -> str | None:
    if images is not None and info.data.get("num_images") is not None:
        raise ValueError(f"is {images!r}, but num_images is given too; a subset is one or the other")
    return images


class EvalSection(Section):
    """What every entry of `evals` has."""

    every: PositiveInt | None = None  # epochs; None: only after the last one
    weights: Literal["all", "raw", "ema"] = (
        "all"  # all: the live weights and, with optim.ema, the average too
    )
    batch_size: PositiveInt | None = None  # global; None: run.batch_size
    num_images: PositiveInt | None = None  # None: all of data.val
    images: Annotated[str | None, AfterValidator(_not_both)] = (
        None  # file with a name of an image on each line
    )


class SuiteEval(EvalSection):
    suite: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    data: str | None = (
        None  # folder or URL of shards; None: data.val for `clean`, data.suites/SUITE for the others
    )
    protocol: str = "default"  # whose transform; a file of data/protocols

    @property
    def name(self) -> str:
        """Such as a, and a-bai2021 under another protocol than default."""
        return self.suite if self.protocol == "default" else f"{self.suite}-{self.protocol}"


def _not_alike(restarts: int, info: ValidationInfo) -> int:
    if restarts > 1 and info.data.get("random_start") is False:
        raise ValueError(
            f"is {restarts}, but without a random start all restarts are alike; give 1, or start at random"
        )
    return restarts


def _as_published(preset: Preset, info: ValidationInfo) -> Preset:
    plain = {"norm": "linf", "random_start": True, "restarts": 1, "best_iterate": False}
    for name, value in plain.items() if preset != "none" else ():
        if info.data.get(name, value) != value:
            raise ValueError(
                f"is {preset!r}, whose attack has {name} {str(value).lower()}, and not {info.data[name]}"
            )
    if preset != "none" and info.data.get("steps", PRESET_STEPS[preset][0]) not in PRESET_STEPS[preset]:
        known = ", ".join(map(str, PRESET_STEPS[preset]))
        raise ValueError(f"is {preset!r}, which measures {known} steps, and not {info.data['steps']}")
    return preset


def _known_attack(attack: object) -> object:
    if attack != "pgd":  # the other one has an entry of its own
        raise ValueError(f"is {attack!r}, but must be 'pgd' or 'autoattack'")
    return attack


class AttackEval(EvalSection):
    attack: Annotated[Literal["pgd"], BeforeValidator(_known_attack)]
    norm: Literal["linf", "l2"]
    eps: PositiveRadius  # in this norm, pixel units
    step_size: PositiveRadius
    steps: PositiveInt
    random_start: bool = True
    restarts: Annotated[PositiveInt, AfterValidator(_not_alike)] = (
        1  # random starts; the strongest result counts
    )
    best_iterate: bool = False  # the strongest iterate counts, not the last
    preset: Annotated[Preset, AfterValidator(_as_published)] = "none"  # the paper whose measurement it is

    @property
    def clean_prob(self) -> float:
        """Share of the images whose attack starts at the clean image."""
        return CLEAN_STARTS[self.preset]

    @property
    def name(self) -> str:
        """Such as pgd20_linf8 (eps in 1/255), pgd20_l2_0.5, pgd20_linf0.5_r5_best, pgd5_linf4_bai2021."""
        many = f"_r{self.restarts}" if self.restarts > 1 else ""
        best = "_best" if self.best_iterate else ""
        preset = "" if self.preset == "none" else f"_{self.preset}"
        return f"{self.attack}{self.steps}_{radius_name(self.norm, self.eps)}{many}{best}{preset}"


def _known_version(version: str) -> str:
    # What there is stands with the attack, which needs torch: `list recipes` shall not wait for it.
    if version != STANDARD and version not in (known := import_module("robust.versions").VERSIONS):
        raise ValueError(
            f"is {version!r}, but AutoAttack's versions are {', '.join(known)}; name one of them"
        )
    return version


class AutoAttackEval(EvalSection):
    """Several attacks in turn, each on what the ones before it have left."""

    attack: Literal["autoattack"]
    norm: Literal["linf", "l2", "l1"]
    eps: PositiveRadius  # in this norm, pixel units
    version: Annotated[str, AfterValidator(_known_version)] = STANDARD
    until_ci: Annotated[float, Field(gt=0.0, lt=50.0)] | None = (
        None  # percentage points: images in random order until the 95 % interval is +- so many
    )
    save_images: bool = False  # what broke each image, as float32

    @property
    def name(self) -> str:
        """Such as aa_linf4 (eps in 1/255), and aa-rand_l2_0.5 of another version than standard."""
        version = "" if self.version == STANDARD else f"-{self.version}"
        until = "" if self.until_ci is None else f"_ci{self.until_ci:g}"
        return f"aa{version}_{radius_name(self.norm, self.eps)}{until}"


def radius_name(norm: str, eps: float) -> str:
    """linf8 for 8/255, l2_0.5 for 0.5: four digits."""
    return f"linf{eps * 255:.4g}" if norm == "linf" else f"{norm}_{eps:.4g}"


def _entry_kind(value: object) -> str:
    keys = value if isinstance(value, dict) else vars(value) if isinstance(value, BaseModel) else {}
    if keys.get("attack") == "autoattack":
        return "autoattack entry"
    return "attack entry" if "attack" in keys else "suite entry"


EVAL_TAGS = (
    "attack entry",
    "autoattack entry",
    "suite entry",
)  # pydantic puts them into the path of an error; recipe.py takes them out
AnyEval = SuiteEval | AttackEval | AutoAttackEval
EvalEntry = Annotated[
    Annotated[AttackEval, Tag("attack entry")]
    | Annotated[AutoAttackEval, Tag("autoattack entry")]
    | Annotated[SuiteEval, Tag("suite entry")],
    Discriminator(_entry_kind),
]

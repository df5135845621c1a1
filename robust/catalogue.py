"""The attacks there are, in words: names, parameters with defaults, sources. Imports no torch, so `list` is quick."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Parameter:
    """A field of the attack's entry in a recipe; on the command line its flag has hyphens."""

    name: str
    default: str | int | bool | None  # None where it is required; text where it follows from another field
    meaning: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AttackInfo:
    """What `list attacks` says of one."""

    name: str
    norms: tuple[str, ...]
    parameters: tuple[Parameter, ...]
    source: str


ATTACKS = (
    AttackInfo(
        name="pgd",
        norms=("linf", "l2"),
        parameters=(
            Parameter("eps", None, "radius in the norm, pixel units: 4/255 (linf), 0.5 (l2)"),
            Parameter("step_size", "eps/4", "length of a step in the norm, pixel units"),
            Parameter("steps", 20, "gradient steps of a restart"),
            Parameter(
                "random_start",
                True,
                "start at a uniform point of the ball, clipped to [0, 1]; false: clean image",
            ),
            Parameter(
                "restarts",
                1,
                "random starts; the strongest result counts: misclassified, then highest loss",
            ),
            Parameter(
                "best_iterate", False, "the strongest iterate counts, by the same order, not the last one"
            ),
            Parameter(
                "preset",
                "none",
                "as a paper measured it: bai2021 (5, 10, 50, 100 steps, half of the images from the clean one), xu2022",
            ),
        ),
        source="Madry et al. 2018, arXiv:1706.06083",
    ),
    AttackInfo(
        name="autoattack",
        norms=("linf", "l2", "l1"),
        parameters=(
            Parameter("eps", None, "radius in the norm, pixel units: 4/255 (linf), 0.5 (l2), 12 (l1)"),
            Parameter(
                "version",
                "standard",
                "what runs; standard: APGD-CE, APGD-T, FAB-T, Square with the published budgets, in turn",
            ),
            Parameter(
                "until_ci",
                "off",
                "images in random order until the 95 % interval is at most +- so many percentage points",
            ),
            Parameter("save_images", False, "keep the image that broke each one, as float32"),
        ),
        source="Croce and Hein 2020, arXiv:2003.01690",
    ),
)


def list_attacks() -> tuple[AttackInfo, ...]:
    """All attacks, in the order they should be shown."""
    return ATTACKS

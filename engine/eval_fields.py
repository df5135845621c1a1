"""The entries of a recipe's `evals`: a suite to judge, or an attack on the clean images."""

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, Discriminator, Field, PositiveInt, Tag, ValidationInfo

from engine.values import PositiveRadius, Section


class EvalSection(Section):
    """What every entry of `evals` has."""

    every: PositiveInt | None = None  # epochs; None: only after the last one
    weights: Literal["all", "raw", "ema"] = (
        "all"  # all: the live weights and, with optim.ema, the average too
    )
    batch_size: PositiveInt | None = None  # global; None: run.batch_size
    num_images: PositiveInt | None = None  # None: all of data.val


class SuiteEval(EvalSection):
    suite: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    data: str | None = (
        None  # folder or URL of shards; None: data.val for `clean`, data.suites/SUITE for the others
    )

    @property
    def name(self) -> str:
        return self.suite


def _not_alike(restarts: int, info: ValidationInfo) -> int:
    if restarts > 1 and info.data.get("random_start") is False:
        raise ValueError(
            f"is {restarts}, but without a random start all restarts are alike; give 1, or start at random"
        )
    return restarts


class AttackEval(EvalSection):
    attack: Literal["pgd"]
    norm: Literal["linf", "l2"]
    eps: PositiveRadius  # in this norm, pixel units
    step_size: PositiveRadius
    steps: PositiveInt
    random_start: bool = True
    restarts: Annotated[PositiveInt, AfterValidator(_not_alike)] = (
        1  # random starts; the strongest result counts
    )
    best_iterate: bool = False  # the strongest iterate counts, not the last

    @property
    def name(self) -> str:
        """Such as pgd20_linf8 (eps in 1/255), pgd20_l2_0.5, pgd20_linf0.5_r5_best."""
        many = f"_r{self.restarts}" if self.restarts > 1 else ""
        best = "_best" if self.best_iterate else ""
        return f"{self.attack}{self.steps}_{radius_name(self.norm, self.eps)}{many}{best}"


def radius_name(norm: str, eps: float) -> str:
    """linf8 for 8/255, l2_0.5 for 0.5: four digits."""
    return f"linf{eps * 255:.4g}" if norm == "linf" else f"{norm}_{eps:.4g}"


def _entry_kind(value: object) -> str:
    keys = value if isinstance(value, dict) else vars(value) if isinstance(value, BaseModel) else {}
    return "attack entry" if "attack" in keys else "suite entry"


EVAL_TAGS = (
    "attack entry",
    "suite entry",
)  # pydantic puts them into the path of an error; recipe.py takes them out
EvalEntry = Annotated[
    Annotated[AttackEval, Tag("attack entry")] | Annotated[SuiteEval, Tag("suite entry")],
    Discriminator(_entry_kind),
]

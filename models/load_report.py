"""What of a state dict fits a model: the report of a load, and the one line where it does not."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

COUNTER = "num_batches_tracked"  # PyTorch before 0.4.1 wrote none, and no result depends on it
SHOWN = 3  # names in a message
State = Mapping[str, Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadReport:
    """What load_weights did."""

    source: str
    layout: str  # where in the file the tensors were
    num_loaded: int  # tensors of the model that come from the file
    notes: tuple[str, ...]  # what was changed on the way, in words
    missing: tuple[str, ...]  # of the model, left at their initial values (strict: a new head only)
    unexpected: tuple[str, ...]  # of the file, not used
    mismatched: tuple[str, ...]  # of both, in different shapes; left at their initial values

    def __str__(self) -> str:
        lines = [f"{self.source}: {self.num_loaded} tensors from {self.layout}", *self.notes]
        for what, names in (
            ("left at initial values", self.missing),
            ("of the file, not used", self.unexpected),
            ("left at initial values, for their shape differs", self.mismatched),
        ):
            if names:
                lines.append(f"{len(names)} {what}: {some(names)}")
        return "; ".join(lines)


def compare(state: State, target: State, source: str, notes: Sequence[str]) -> LoadReport:
    """What of `state` fits the model's `target`, and what does not. Nothing is loaded."""
    counters = [name for name in target if name.endswith(COUNTER) and name not in state]
    notes = [*notes, *([f"{len(counters)} counters of BatchNorm start at 0"] if counters else [])]
    mismatched = [name for name in target if name in state and _differs(state[name], target[name])]
    return LoadReport(
        source=source,
        layout="state dict",
        num_loaded=sum(name in state for name in target) - len(mismatched),
        notes=tuple(notes),
        missing=tuple(name for name in target if name not in state and name not in counters),
        unexpected=tuple(name for name in state if name not in target),
        mismatched=tuple(mismatched),
    )


def _differs(given: Tensor, wanted: Tensor) -> bool:
    """Another shape, or whole numbers in place of real ones: a quantised file is no weights yet."""
    return given.shape != wanted.shape or given.is_floating_point() != wanted.is_floating_point()


def misfit(
    report: LoadReport, state: State, target: State, head: Sequence[str], *, reset_head: bool
) -> str | None:
    """What does not fit and what to do, without the source; None where all fits. `head`: names of the model's head,
    which may be missing with `reset_head`."""
    missing = [name for name in report.missing if not (reset_head and name in head)]
    if not (missing or report.unexpected or report.mismatched):
        return None
    wrong_head = [
        name for name in report.mismatched if name in head and len(state[name]) != len(target[name])
    ]
    if wrong_head and set(report.mismatched) <= set(head) and not missing and not report.unexpected:
        found, wanted = len(state[wrong_head[0]]), len(target[wrong_head[0]])
        return (
            f"has a head of {found} classes ({wrong_head[0]}) and the model one of {wanted}; build the model with "
            f"num_classes {found}, or train a new head with reset_head"
        )
    parts = [
        f"{len(names)} {what} ({some(names)})"
        for what, names in (("missing", missing), ("unexpected", report.unexpected))
        if names
    ]
    if report.mismatched:
        shapes = [f"{n} {_shape(state[n])} for {_shape(target[n])}" for n in report.mismatched]
        parts.append(f"{len(shapes)} of another shape ({some(shapes)})")
    remedy = "is it the right model name, are its settings those of the file?"
    if missing and set(missing) <= set(head) and len(parts) == 1:
        remedy = "the file has no head: train a new one with reset_head"
    fits = "nothing fits" if not report.num_loaded else f"{report.num_loaded} of {len(target)} tensors fit"
    return f"does not fit the model: {', '.join(parts)}; {fits}; {remedy}"


def _shape(tensor: Tensor) -> str:
    kind = "" if tensor.is_floating_point() else f"{tensor.dtype} ".removeprefix("torch.")
    return f"{kind}{'x'.join(map(str, tensor.shape)) or 'scalar'}"


def some(names: Sequence[str]) -> str:
    """The first few, and how many more there are."""
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")

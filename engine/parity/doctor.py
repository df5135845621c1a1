"""`doctor RECIPE --backends cpu,xla --steps N`: does the recipe train alike on these backends?"""

import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol

from engine.finding import Finding
from engine.parity.comparison import Comparison, Row, compare
from engine.parity.diagnosis import diagnose
from engine.parity.evidence import begins
from engine.parity.mark import Kind
from engine.parity.remote import Remote
from engine.parity.session import load_answer
from engine.parity.side import FLAG, Side, check_available, parse_sides
from engine.parity.tolerance import TOLERANCES
from engine.recipe import load_recipe

STEPS: Final = 3
MOST_IMAGES: Final = 32  # of a batch, unless run.batch_size is given: every activation is looked at
BATCH_FIELD: Final = "run.batch_size"
COLUMNS: Final[tuple[tuple[str, tuple[Kind, ...]], ...]] = (
    ("images", ("image", "target")),
    ("attack", ("attack start", "attack logits", "attack gradient", "attacked")),
    ("activations", ("activation",)),
    ("gradients", ("gradient",)),
    ("statistics", ("statistics",)),
    ("updates", ("update",)),
    ("average", ("average",)),
)


class Examined(Protocol):
    """A side at work: a Session here, or a Remote one."""

    @property
    def facts(self) -> dict[str, Any]: ...

    def run(self, number: int) -> None: ...

    def close(self) -> None: ...


Open = Callable[..., Examined]


@dataclass(slots=True, kw_only=True)
class Parity:
    """A comparison of `sides`, the first of which is the reference. `table` fills as findings are made."""

    recipe: Path
    overrides: Sequence[str]
    sides: Sequence[Side]
    num_steps: int = STEPS
    open_side: Open = Remote
    table: list[dict[str, Any]] = field(default_factory=list)

    def examine(self) -> Iterator[Finding]:
        """Facts, a line for each step and side, and the first divergence of each side with its likely cause.

        ValueError or OSError for what a run would refuse.
        """
        words = [*self.overrides, *self._fewer_images()]
        with tempfile.TemporaryDirectory(prefix="robust-bits-parity-") as folder:
            opened: list[Examined] = []
            try:
                for number, side in enumerate(self.sides):
                    opened.append(
                        self.open_side(
                            side, number, self.recipe, words, num_steps=self.num_steps, exchange=Path(folder)
                        )
                    )
                facts = [each.facts for each in opened]
                yield from self._describe(facts)
                yield from self._steps(opened, facts, Path(folder))
            finally:
                for each in opened:
                    each.close()

    def _fewer_images(self) -> list[str]:
        """An override that makes the batch small, where nobody asked for one. ValueError for a bad recipe."""
        recipe = load_recipe(self.recipe, self.overrides)
        if any(word.startswith((f"{BATCH_FIELD}=", "@")) for word in self.overrides):
            return []
        kind, _, size = recipe.model.norm_stats.partition(":")
        unit = math.lcm(2, int(size) if kind == "ghost" else 1) * max(side.num_devices for side in self.sides)
        fewer = unit * max(1, MOST_IMAGES // unit)
        return [f"{BATCH_FIELD}={fewer}"] if kind != "groups" and fewer < recipe.run.batch_size else []

    def _describe(self, facts: Sequence[dict[str, Any]]) -> Iterator[Finding]:
        section, reference = "sides", facts[0]
        for number, (side, known) in enumerate(zip(self.sides, facts, strict=True)):
            role = "reference" if number == 0 else "compared"
            count = "" if known["num_devices"] == 1 else f", {known['num_devices']} devices"
            yield Finding(section, role, f"{side.label}: {known['device']}{count}, {known['precision']}")
        source = reference["images"] if not reference["why"] else f"generated ({reference['why']})"
        asked = load_recipe(self.recipe, self.overrides).run.batch_size
        fewer = "" if asked == reference["batch"] else f", not {asked} ({BATCH_FIELD}=N asks for N)"
        yield Finding(section, "images", f"{source}; batches of {reference['batch']}{fewer}")
        text = f"{reference['modules']} layers, {reference['parameters']:,} parameters"
        yield Finding(section, "watched", text)
        column = int(reference["precision"] != "float32")
        shown = ("activation", "loss", "gradient", "update")
        limits = ", ".join(f"{kind} {TOLERANCES[kind][column]:g}" for kind in TOLERANCES if kind in shown)
        yield Finding(section, "tolerance", f"{reference['precision']}: {limits} (relative)")

    def _steps(self, opened: Sequence[Examined], facts: Sequence[Any], folder: Path) -> Iterator[Finding]:
        done = [False] * len(opened)  # whose first divergence was told
        for step in range(self.num_steps):
            opened[0].run(step)
            for number in range(1, len(opened)):
                opened[number].run(step)
                answers = [load_answer(folder / f"marks-{which}.pt") for which in (0, number)]
                precisions = (facts[0]["precision"], facts[number]["precision"])
                found = compare(answers[0], answers[1], precisions)
                self._note(step, number, found)
                section = f"{self.sides[0].label} against {self.sides[number].label}"
                yield _step_line(section, step, found)
                if found.first is not None and not done[number]:
                    done[number] = True
                    yield from _explain(section, step, found)

    def _note(self, step: int, number: int, found: Comparison) -> None:
        first, diagnosis = found.first, diagnose(found)
        self.table.append(
            {
                "step": step + 1,
                "update": found.answers[0].update,
                "epoch": found.answers[0].epoch,
                "lr": found.answers[0].lr,
                "reference": self.sides[0].label,
                "side": self.sides[number].label,
                "loss": [answer.loss for answer in found.answers],
                "first": None if first is None else first.as_dict(),
                "diagnosis": None if diagnosis is None else diagnosis._asdict(),
                "rows": [row.as_dict() for row in found.rows],
            }
        )


def _step_line(section: str, step: int, found: Comparison) -> Finding:
    """Of each kind the row that comes nearest to its tolerance."""
    losses = [answer.loss for answer in found.answers]
    parts = [f"update {found.answers[0].update}: loss {losses[0]:.5f} and {losses[1]:.5f}"]
    for name, kinds in COLUMNS:
        row = found.worst(*kinds)
        if row is not None:
            parts.append(f"{name} {_shown(row)}")
    return Finding(section, f"step {step + 1}", ", ".join(parts), "failed" if found.first else "ok")


def _shown(row: Row) -> str:
    if row.kind == "attacked":
        return f"{row.found.share:.1%} of pixels"
    return "equal" if row.found.length == 0 else f"{row.found.relative:.0e}"


def _explain(section: str, step: int, found: Comparison) -> Iterator[Finding]:
    first, diagnosis = found.first, diagnose(found)
    assert first is not None, "asked to explain agreement"
    assert diagnosis is not None, "asked to explain agreement"
    text, start = f"step {step + 1}, {first.place}: {first.size}", begins(found, first)
    if start is not None and start is not first:
        text += f"; layer by layer it begins at {start.place}: {start.size}"
    yield Finding(section, "first divergence", text, "failed")
    yield Finding(section, "likely cause", f"{diagnosis.cause}: {diagnosis.evidence}", "advice")
    yield Finding(section, "remedy", diagnosis.remedy, "advice")


def open_parity(recipe: Path, overrides: Sequence[str], backends: str, num_steps: int | None) -> Parity:
    """A comparison in processes of its own; `backends` as the user wrote them. ValueError for what cannot be."""
    sides = parse_sides(backends)
    check_available(sides)
    steps = STEPS if num_steps is None else num_steps
    if steps < 1:
        raise ValueError(f"--steps {steps}: compare 1 step or more")
    for side in sides:  # a mistake in one of them before any process starts
        try:
            load_recipe(recipe, [*overrides, *side.overrides])
        except ValueError as error:
            raise ValueError(f"{FLAG} {side.label}: {error}") from None
    return Parity(recipe=recipe, overrides=overrides, sides=sides, num_steps=steps)

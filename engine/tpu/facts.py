"""The compiler's answer read: does this step run on this TPU, what does it need, and where does it go."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from engine.passes import Passes
from engine.recipe import Recipe
from engine.tpu.capacity import USED, Point, batch_unit, point_of, suggest_batch
from engine.tpu.chips import Chip, find_chip
from engine.tpu.flops import StepFlops, count_flops
from engine.tpu.hlo import Collective, Counts, read_programs
from engine.tpu.roofline import Roofline, roofline

Verdict = Literal["fits", "does not fit", "does not compile"]
SUMS = ("all-reduce", "reduce-scatter")
HLO_NAMES = {"float32": "f32", "bf16": "bf16"}
RATIO_GOAL = 1.02  # flops of the compiled step over those of the model


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """Per device. None where an answer does not tell."""

    name: str  # of the recipe, as the table calls it
    topology: str
    chip: Chip
    num_devices: int
    batch: int  # images of a device
    precision: str
    verdict: Verdict
    reason: str | None  # of another verdict than "fits"
    op: str | None  # that does not compile
    memory: Point | None
    suggested_batch: int | None  # estimate
    flops: float | None  # of a step
    model_flops: int  # of a step, from the model alone
    step_flops: StepFlops  # the same by kind of pass, of an image
    bytes: float | None  # operands and results, by the compiler
    counts: Counts | None  # from the program's text
    roofline: Roofline | None  # estimate
    fallbacks: Mapping[str, int]
    donated: int
    state_tensors: int
    compile_s: float | None
    compile_cpu_s: float | None
    export_s: float | None
    host_peak_bytes: int | None
    notes: tuple[str, ...]

    @property
    def flops_ratio(self) -> float | None:
        return None if self.flops is None or not self.model_flops else self.flops / self.model_flops

    @property
    def matrix_ratio(self) -> float | None:
        """Of products and convolutions alone, padding left out in both: 1 where nothing is computed in vain."""
        inside = self.step_flops.inside * self.batch
        return None if self.counts is None or not inside else self.counts.matrix_flops / inside

    @property
    def padding(self) -> float | None:
        """Share of the memory of results that is filling of tiles."""
        counts = self.counts
        return (
            None
            if counts is None or not counts.padded_bytes
            else 1 - counts.unpadded_bytes / counts.padded_bytes
        )

    @property
    def collectives(self) -> str | None:
        """One line."""
        if self.counts is None:
            return None
        return ", ".join(_words(found) for found in self.counts.collectives) or "none"

    @property
    def gradient_dtype(self) -> str | None:
        """What most bytes of the all-reduces are; None on one device."""
        return _reduced_in(self.counts)


def read(
    answer: Mapping[str, Any],
    *,
    recipe: Recipe,
    passes: Passes,
    name: str | None = None,
    others: Sequence[Mapping[str, Any]] = (),
) -> Facts:
    """From one answer; `others` of the same step with other batches make the suggested batch a better estimate.

    ValueError for a chip that is not in the table.
    """
    chip = find_chip(answer["topology"])
    batch, is_ok = int(answer["batch_per_device"]), bool(answer["ok"])
    memory = point_of(answer)
    step_flops = count_flops(recipe, passes, num_classes=answer.get("num_classes"))
    counts, notes = _counts(answer), _notes(answer, chip, step_flops)
    notes += _reduced_otherwise(counts, recipe)
    if is_ok and counts is None:
        notes.append(
            "the program's text is not there: nothing is known of collectives, padding and HBM traffic"
        )
    verdict, reason = _verdict(answer, memory, chip)
    points = [found for one in (answer, *others) if (found := point_of(one)) is not None]
    return Facts(
        name=name or recipe.model.name,
        topology=answer["topology"],
        chip=chip,
        num_devices=int(answer["num_devices"]),
        batch=batch,
        precision=answer["precision"],
        verdict=verdict,
        reason=reason,
        op=answer.get("op"),
        memory=memory,
        suggested_batch=suggest_batch(points, chip, unit=batch_unit(recipe)) if points else None,
        flops=float(answer["flops"]) if is_ok else None,
        model_flops=step_flops.total * batch,
        step_flops=step_flops,
        bytes=float(answer["bytes"]) if is_ok else None,
        counts=counts,
        roofline=_roofline(answer, chip, counts) if is_ok else None,
        fallbacks=dict(answer.get("fallbacks") or {}),
        donated=int(answer.get("donated") or 0),
        state_tensors=int(answer.get("state_tensors") or 0),
        compile_s=answer.get("compile_s"),
        compile_cpu_s=answer.get("compile_cpu_s"),
        export_s=answer.get("export_s"),
        host_peak_bytes=answer.get("host_peak_bytes"),
        notes=tuple(notes),
    )


def _verdict(answer: Mapping[str, Any], memory: Point | None, chip: Chip) -> tuple[Verdict, str | None]:
    error = answer.get("error")
    if not answer["ok"]:
        lacks_memory = memory is not None and USED.search(error or "") is not None
        return ("does not fit" if lacks_memory else "does not compile"), error
    if memory is not None and memory.total > chip.hbm_bytes:
        return "does not fit", f"needs more than the {chip.hbm_gib:g} GiB of a device"
    return "fits", None


def _counts(answer: Mapping[str, Any]) -> Counts | None:
    """Of all programs of the step; None where a text is gone."""
    graphs = answer.get("graphs") or [{"hlo": answer.get("hlo"), "count": 1}]
    files = [(Path(graph["hlo"]), int(graph["count"])) for graph in graphs if graph.get("hlo")]
    is_whole = len(files) == len(graphs) and all(path.is_file() for path, _ in files)
    return read_programs(files) if answer["ok"] and is_whole else None


def _roofline(answer: Mapping[str, Any], chip: Chip, counts: Counts | None) -> Roofline:
    moved = (float(answer["bytes"]),) if counts is None else (float(answer["bytes"]), float(counts.hbm_bytes))
    return roofline(chip, flops=float(answer["flops"]), byte_counts=moved, precision=answer["precision"])


def _notes(answer: Mapping[str, Any], chip: Chip, flops: StepFlops) -> list[str]:
    said = chip.note(answer["topology"], int(answer["num_devices"]))
    notes = [] if said is None else [said]
    if flops.missing is not None:
        notes.append(f"the model's flops leave out {flops.missing}")
    if int(answer.get("accumulate") or 1) > 1:
        notes.append(f"a step is the last of {answer['accumulate']} micro-batches, the one with the update")
    if answer["ok"] and int(answer.get("donated") or 0) < int(answer.get("state_tensors") or 0):
        notes.append("tensors of the state that are not donated are held twice")
    return notes


def _reduced_in(counts: Counts | None) -> str | None:
    reduced = [c for c in counts.collectives if c.kind in SUMS] if counts is not None else []
    return max(reduced, key=lambda c: c.bytes).dtype if reduced else None


def _reduced_otherwise(counts: Counts | None, recipe: Recipe) -> list[str]:
    found, asked = _reduced_in(counts), recipe.run.reduce_dtype
    is_as_asked = found is None or found == HLO_NAMES[asked]
    return [] if is_as_asked else [f"run.reduce_dtype is {asked}, but most bytes are summed in {found}"]


def _words(found: Collective) -> str:
    arrays = f"{found.arrays} {found.dtype} array{'s' if found.arrays > 1 else ''}"
    return f"{found.kind} of {arrays}, {found.bytes / 1e6:,.1f} MB"

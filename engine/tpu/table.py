"""Facts of compiled steps as people read them: a block for one, a table for several, Markdown for a file.

Estimates say that they are; rows that have not been compiled say so, so that a table is valid at any time.
"""

import sys
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from engine.tpu.chips import GIB
from engine.tpu.facts import RATIO_GOAL, Facts
from engine.tpu.roofline import Roofline

HEADER = (
    "recipe",
    "topology",
    "images a device",
    "verdict",
    "HBM GiB",
    "of",
    "suggested batch*",
    "TFLOP",
    "of the model's",
    "GB moved",
    "of it HBM",
    "ms a step*",
    "compile s (CPU)",
)
FOOT = "* estimates from counts and data sheets; nothing ran on a TPU"


class Pending(NamedTuple):
    """A row that is not there."""

    name: str
    topology: str
    batch: int
    reason: str = "not done yet"


Row = Facts | Pending


def show(rows: Sequence[Row]) -> None:
    """On stdout: one as a block, several as a table; with rich on a terminal, else plain."""
    is_block = len(rows) == 1 and isinstance(rows[0], Facts)
    if not sys.stdout.isatty():
        print("\n".join(plain_block(rows[0]) if is_block and isinstance(rows[0], Facts) else markdown(rows)))
        return
    from rich.console import Console
    from rich.table import Table

    console = Console()
    if is_block and isinstance(rows[0], Facts):
        table = Table(show_header=False, title=title(rows[0]), title_justify="left")
        for name, value in lines(rows[0]):
            table.add_row(name, value)
    else:
        table = Table(*HEADER, caption=FOOT, caption_justify="left")
        for row in rows:
            table.add_row(*cells(row))
    console.print(table)


def plain_block(facts: Facts) -> list[str]:
    """One step's lines without colours or frames."""
    return [title(facts), *(f"{name:<17} {value}" for name, value in lines(facts))]


def markdown(rows: Sequence[Row]) -> list[str]:
    """Lines of a Markdown table, and what the stars mean."""
    table = [f"| {' | '.join(line)} |" for line in (HEADER, *(cells(row) for row in rows))]
    return [table[0], f"|{'---|' * len(HEADER)}", *table[1:], "", FOOT]


def title(facts: Facts) -> str:
    devices = f"{facts.num_devices} device{'s' if facts.num_devices > 1 else ''}"
    return f"{facts.name} on {facts.topology}: {devices}, {facts.batch} images each, {facts.precision}"


def cells(row: Row) -> list[str]:
    """A row of the table, in HEADER's order."""
    if isinstance(row, Pending):
        reason = " ".join(row.reason.replace("|", "/").split())
        return [row.name, row.topology, str(row.batch), reason, *["-"] * (len(HEADER) - 4)]
    op = f" ({row.op})" if row.op else ""
    return [
        row.name,
        row.topology,
        str(row.batch),
        f"{row.verdict}{op}",
        "-" if row.memory is None else f"{row.memory.total / GIB:.2f}",
        f"{row.chip.hbm_gib:g}",
        "-" if row.suggested_batch is None else str(row.suggested_batch),
        "-" if row.flops is None else f"{row.flops / 1e12:.3f}",
        "-" if row.flops_ratio is None else f"{row.flops_ratio:.3f}",
        "-" if row.bytes is None else f"{row.bytes / 1e9:.1f}",
        "-" if row.counts is None else f"{row.counts.hbm_bytes / 1e9:.1f}",
        "-" if row.roofline is None else _range(row.roofline),
        "-" if row.compile_s is None else f"{row.compile_s:.0f}{_cpu(row, ' ({:.0f})')}",
    ]


def lines(facts: Facts) -> Iterator[tuple[str, str]]:
    """Name and value of all that is known."""
    op = f"; the op: {facts.op}" if facts.op else ""
    reason = f": {facts.reason}{op}" if facts.reason else ""
    yield "verdict", ("compiles and fits" if facts.verdict == "fits" else facts.verdict) + reason
    yield from _memory(facts)
    yield from _work(facts)
    if facts.counts is not None:
        yield from _program(facts)
    yield "host fallbacks", ", ".join(f"{op} {n}" for op, n in sorted(facts.fallbacks.items())) or "none"
    if facts.state_tensors:
        yield "donated", f"{facts.donated} of {facts.state_tensors} tensors of the state"
    if facts.compile_s is not None:
        exported = "" if facts.export_s is None else f", exporting {facts.export_s:.0f} s"
        peak = (
            ""
            if facts.host_peak_bytes is None
            else f", {facts.host_peak_bytes / GIB:.1f} GiB of this machine"
        )
        yield "compiling", f"{facts.compile_s:.0f} s{_cpu(facts, ' ({:.0f} s of CPU)')}{exported}{peak}"
    for note in facts.notes:
        yield "note", note


def _memory(facts: Facts) -> Iterator[tuple[str, str]]:
    if facts.memory is not None:
        share = facts.memory.total / facts.chip.hbm_bytes
        yield "HBM", f"{facts.memory.total / GIB:.2f} of {facts.chip.hbm_gib:g} GiB a device ({share:.0%})"
    if facts.suggested_batch is not None:
        yield "suggested batch", f"{facts.suggested_batch} images a device (estimate)"


def _work(facts: Facts) -> Iterator[tuple[str, str]]:
    parts = " + ".join(
        f"{part.passes} {part.name} of {part.each.total / 1e9:.2f}" for part in facts.step_flops.components
    )
    if facts.flops is None or facts.flops_ratio is None:
        yield "flops", f"the model's own: {facts.model_flops / 1e12:.3f} TFLOP a step"
    else:
        beyond = (
            "" if facts.flops_ratio <= RATIO_GOAL else f", more than {RATIO_GOAL}: look at the products below"
        )
        yield (
            "flops",
            f"{facts.flops / 1e12:.3f} TFLOP a step, {facts.flops_ratio:.3f} of the model's own "
            f"{facts.model_flops / 1e12:.3f}{beyond}",
        )
    yield "the model's", f"{parts} GFLOP an image"
    if facts.bytes is not None:
        hbm = (
            ""
            if facts.counts is None
            else f", {facts.counts.hbm_bytes / 1e9:.1f} GB of them through HBM (estimate)"
        )
        yield "bytes", f"{facts.bytes / 1e9:.1f} GB of operands and results a step{hbm}"
    if facts.roofline is not None:
        bound = facts.roofline.bound
        yield (
            "time",
            f"{_range(facts.roofline)} ms a step, limited by {bound} (estimate: data sheets, nothing ran)",
        )


def _program(facts: Facts) -> Iterator[tuple[str, str]]:
    counts = facts.counts
    assert counts is not None, "lines of a program without its counts"
    matrix = "" if facts.matrix_ratio is None else f", {facts.matrix_ratio:.3f} of the model's"
    kinds = sorted(counts.products.items(), key=lambda kind: -kind[1])
    total = max(1, counts.matrix_flops)
    yield "products", "; ".join(f"{name} precision {n / total:.1%}" for name, n in kinds[:3]) + matrix
    yield "collectives", str(facts.collectives)
    if facts.gradient_dtype is not None:
        yield "gradients", f"reduced over devices in {facts.gradient_dtype}"
    hosts = ", ".join(f"{op} {n}" for op, n in counts.host_transfers.items())
    yield "host transfers", hosts or "none"
    named = ("fusion", "convolution", "dot", "copy", "transpose", "pad", "while")
    yield "instructions", ", ".join(f"{counts.ops[op]} {op}" for op in named if counts.ops.get(op))
    if counts.cycles:
        yield (
            "cycles",
            f"{counts.cycles / 1e6:,.1f} million by the compiler's cost model, to compare steps by (estimate)",
        )
    moved = "; ".join(f"{m.shape} {m.times} times, {m.bytes / 1e9:,.1f} GB" for m in counts.most_moved[:4])
    yield "most moved", moved
    if facts.padding is not None:
        most = "; ".join(f"{w.arrays} x {w.shape} {w.padding / 1e6:,.0f} MB" for w in counts.most_padded[:3])
        yield "padding", f"{facts.padding:.0%} of the memory of results; most: {most}"


def _range(found: Roofline) -> str:
    return f"{found.low_s * 1e3:.1f} to {found.high_s * 1e3:.1f}"


def _cpu(facts: Facts, form: str) -> str:
    return "" if facts.compile_cpu_s is None else form.format(facts.compile_cpu_s)

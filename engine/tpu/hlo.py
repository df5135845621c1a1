"""What is in a compiled step: counts from XLA's optimized text, per device.

Instructions inside loops count as often as the loop runs, where the compiler knows how often.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from engine.tpu.layout import HBM, HOST, Shape
from engine.tpu.matrix import OPCODES, product_of
from engine.tpu.program import Executed, Instruction, read_program

COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "collective-permute", "all-to-all")
_CHAIN = re.compile(r"channel_id=(\d+),.*chain_id=")
COUNTED = ("fusion", "convolution", "dot", "copy", "transpose", "pad", "while", "custom-call")
NAMES_ONLY = frozenset(
    {
        *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id"),
        *("replica-id", "add-dependency", "opt-barrier", "while", "conditional", "call"),
    }
)
JOINED = 'custom_call_target="ConcatBitcast"'  # pieces that were fetched into one buffer
HOST_OPS = frozenset({"infeed", "outfeed", "send", "recv"})
LISTED = 8  # of the most moved and of the most padded


class Collective(NamedTuple):
    """All collectives of a kind and dtype."""

    kind: str
    dtype: str
    arrays: int  # one instruction may combine many
    bytes: int  # that a device gives


class Waste(NamedTuple):
    """Arrays of one shape and layout."""

    shape: str
    arrays: int
    padding: int  # bytes, of all of them


class Moved(NamedTuple):
    """Arrays of one dtype and size, wherever they are operands or results."""

    shape: str
    times: int
    bytes: int  # in any memory, tiles not filled up
    hbm_bytes: int  # in HBM, tiles filled up


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """Of one compiled step, on one device."""

    instructions: int
    ops: Mapping[str, int]  # of COUNTED; copies, transposes and pads inside fusions are left out, being free
    collectives: tuple[Collective, ...]  # most bytes first
    host_transfers: Mapping[str, int]
    products: Mapping[str, int]  # flops of convolutions and dots by "bf16 x bf16, default"
    cycles: int  # by the compiler's own cost model, one instruction after the other; 0: it says none
    hbm_bytes: int  # operands and results in HBM, of all instructions, tiles filled up
    unpadded_bytes: int  # of arguments and results in HBM, each once
    padded_bytes: int
    most_padded: tuple[Waste, ...]
    most_moved: tuple[Moved, ...]

    @property
    def matrix_flops(self) -> int:
        return sum(self.products.values())


def read_hlo(path: Path) -> Counts:
    """Counts of a file of optimized HLO text. OSError, ValueError for one that is none."""
    return read_programs([(path, 1)])


def read_programs(files: Iterable[tuple[Path, int]]) -> Counts:
    """Counts of a step that is several programs, each with how often it runs."""
    tally = _Tally()
    for path, count in files:
        with path.open(encoding="utf-8", errors="replace") as lines:
            tally.read(lines, count)
    return tally.counts()


def count_hlo(lines: Iterable[str]) -> Counts:
    """Counts of optimized HLO text, line by line."""
    tally = _Tally()
    tally.read(lines, 1)
    return tally.counts()


class _Tally:
    """Sums while instructions go by."""

    def __init__(self) -> None:
        self.instructions = self.cycles = 0
        self.ops: Counter[str] = Counter()
        self.collectives: dict[tuple[str, str], list[int]] = {}
        self.chains: set[str] = set()  # channels of collectives that are spread over several fusions
        self.host: Counter[str] = Counter()
        self.products: Counter[str] = Counter()
        self.held: Counter[Shape] = Counter()  # arrays in HBM
        self.moved: dict[str, list[int]] = {}  # times, bytes, bytes in HBM

    def read(self, lines: Iterable[str], count: int) -> None:
        """Adds a program that a step runs `count` times."""
        for item in read_program(lines).executed():
            self._add(item._replace(times=item.times * count))

    def _add(self, item: Executed) -> None:
        op, times = item.instruction, item.times
        opcode = op.opcode.removesuffix("-start")
        self.instructions += 1
        self.cycles += 0 if item.is_fused else op.cycles * times
        if opcode in COUNTED and (not item.is_fused or opcode in OPCODES):
            self.ops[opcode] += times
        if opcode in OPCODES:
            product = product_of(op, item.scope)
            self.products[f"{product.operands}, {product.precision}"] += product.flops * times
        if opcode in COLLECTIVES:
            self._collective(opcode, item)
        self._host(item)
        if item.is_argument:
            self._hold(op.shapes)
        if not (item.is_fused or is_name(op)):
            self._memory(item)

    def _collective(self, kind: str, item: Executed) -> None:
        if (found := _CHAIN.search(item.instruction.attributes)) is not None:
            if found[1] in self.chains:
                return  # another part of one that is counted
            self.chains.add(found[1])
        for name in item.instruction.operands:
            for shape in item.scope[name].shapes:
                sums = self.collectives.setdefault((kind, shape.dtype), [0, 0])
                sums[0] += item.times
                sums[1] += item.times * shape.unpadded

    def _host(self, item: Executed) -> None:
        op = item.instruction
        if op.opcode in HOST_OPS or (op.opcode == "custom-call" and _is_host_call(op.attributes)):
            self.host[op.opcode] += item.times
        elif op.opcode in ("copy", "copy-start") and HOST in {
            shape.space for shape in sum(_values(item), ())
        }:
            self.host["copy"] += item.times

    def _memory(self, item: Executed) -> None:
        given, made = _values(item)
        for shape in (*given, *made):
            sums = self.moved.setdefault(f"{shape.dtype}[{','.join(map(str, shape.dims))}]", [0, 0, 0])
            sums[0] += item.times
            sums[1] += item.times * shape.unpadded
            sums[2] += item.times * shape.padded if shape.space == HBM else 0
        self._hold(made)

    def _hold(self, shapes: Sequence[Shape]) -> None:
        self.held.update(shape for shape in shapes if shape.space == HBM)

    def counts(self) -> Counts:
        wasted = [
            Waste(str(shape), count, count * (shape.padded - shape.unpadded))
            for shape, count in self.held.items()
        ]
        moved = [Moved(shape, *sums) for shape, sums in self.moved.items()]
        return Counts(
            instructions=self.instructions,
            ops=dict(self.ops),
            collectives=tuple(
                sorted(
                    (Collective(kind, dtype, *sums) for (kind, dtype), sums in self.collectives.items()),
                    key=lambda found: -found.bytes,
                )
            ),
            host_transfers=dict(self.host),
            products=dict(self.products),
            cycles=self.cycles,
            hbm_bytes=sum(in_hbm for _, _, in_hbm in self.moved.values()),
            unpadded_bytes=sum(shape.unpadded * count for shape, count in self.held.items()),
            padded_bytes=sum(shape.padded * count for shape, count in self.held.items()),
            most_padded=tuple(sorted(wasted, key=lambda w: -w.padding)[:LISTED]),
            most_moved=tuple(sorted(moved, key=lambda m: -m.bytes)[:LISTED]),
        )


def is_name(op: Instruction) -> bool:
    """Whether it gives a name to values that exist, or ends what a "-start" began."""
    return op.opcode in NAMES_ONLY or op.opcode.endswith("-done") or JOINED in op.attributes


def _values(item: Executed) -> tuple[tuple[Shape, ...], tuple[Shape, ...]]:
    """Operands and results. What begins a transfer repeats its operands among its results."""
    op = item.instruction
    given = tuple(shape for name in op.operands if name in item.scope for shape in item.scope[name].shapes)
    made = op.shapes
    if op.opcode == "copy-start":
        made = made[:1]  # then its source, then a flag
    elif op.opcode == "slice-start":  # what is read of the operand is what is made
        made = made[len(given) : len(given) + 1]
        given = tuple(shape._replace(space=source.space) for shape, source in zip(made, given, strict=False))
    elif op.opcode.endswith("-start") and len(made) > len(given):
        made = made[len(given) :]
    return given, made


def _is_host_call(attributes: str) -> bool:
    target = attributes.partition('custom_call_target="')[2].partition('"')[0].lower()
    return "host" in target or "callback" in target

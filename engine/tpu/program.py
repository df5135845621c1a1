"""A compiled program as XLA's optimized text tells it: computations, their instructions, how often each one runs.

Read line by line; of a line, only what the counts need is kept (the text of one train step is about 6 MB, half of
it configuration).
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from engine.tpu.layout import Shape, parse_shapes

HEAD = re.compile(r"^(?P<entry>ENTRY )?%?(?P<name>[\w.\-]+) \(.*\{$")
LINE = re.compile(r"^\s+(?:ROOT )?%?(?P<name>[\w.\-]+) = (?P<rest>.*)$")
CALLED = re.compile(
    r"(?P<how>calls|to_apply|body|condition|true_computation|false_computation)=%?(?P<name>[\w.\-]+)"
)
BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
OPERAND = re.compile(r"%([\w.\-]+)")
TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
NO_CYCLES = 2**63 - 1  # what the compiler writes where its model gives up
CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
OP_NAME = re.compile(r'op_name="([^"]*)"')
KEPT = 900  # characters of attributes: behind them stands the back end's configuration


class Instruction(NamedTuple):
    """One line."""

    name: str
    opcode: str
    shape: str  # as written; `shapes` reads it
    operands: tuple[str, ...]
    attributes: str
    calls: tuple[tuple[str, str], ...]  # (how, computation)
    trips: int  # of a while loop, where the compiler knows it; else 1
    cycles: int  # by the compiler's own cost model; 0 where it says none

    @property
    def shapes(self) -> tuple[Shape, ...]:
        return parse_shapes(self.shape)

    @property
    def op_name(self) -> str:
        """What it was in the source program; empty where the compiler made it."""
        found = OP_NAME.search(self.attributes)
        return found[1] if found else ""


Computation = dict[str, Instruction]


class Executed(NamedTuple):
    """An instruction, how often a step runs it, and whether it is part of a fusion (whose inner values live in
    registers, not in memory)."""

    instruction: Instruction
    times: int
    is_fused: bool
    is_argument: bool  # of the program
    scope: Computation  # to look up its operands


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """Computations by name; `entry` is where a step begins."""

    computations: dict[str, Computation]
    entry: str

    def executed(self) -> Iterator[Executed]:
        """Every instruction that a step runs. Bodies of reductions and comparisons are left out."""
        waiting = [(self.entry, 1, False)]
        while waiting:
            name, times, is_fused = waiting.pop()
            scope = self.computations.get(name, {})
            for instruction in scope.values():
                is_argument = name == self.entry and instruction.opcode == "parameter"
                yield Executed(instruction, times, is_fused, is_argument, scope)
                waiting += [
                    (called, times * instruction.trips, is_fused or how == "fused")
                    for how, called in _followed(instruction)
                ]


def _followed(instruction: Instruction) -> Iterator[tuple[str, str]]:
    for how, called in instruction.calls:
        if how == "calls":
            yield ("fused" if instruction.opcode == "fusion" else "run"), called
        elif how != "to_apply" or instruction.opcode == "call":
            yield "run", called


def read_program(lines: Iterable[str]) -> Program:
    """From optimized HLO text. ValueError for text without an entry computation."""
    computations: dict[str, Computation] = {}
    current: Computation | None = None
    entry = ""
    for line in lines:
        if current is None:
            if head := HEAD.match(line):
                current = computations.setdefault(head["name"], {})
                entry = head["name"] if head["entry"] else entry
        elif line.startswith("}"):
            current = None
        elif found := LINE.match(line):
            instruction = _instruction(found["name"], found["rest"])
            current[instruction.name] = instruction
    if not entry:
        raise ValueError("this is no optimized HLO text: no ENTRY computation in it")
    return Program(computations=computations, entry=entry)


def _instruction(name: str, rest: str) -> Instruction:
    end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.index(" ")
    shape, rest = rest[:end], rest[end:].lstrip()
    opcode, _, _ = rest.partition("(")
    close = _closing(rest, len(opcode))
    operands, attributes = rest[len(opcode) + 1 : close], rest[close + 1 :]
    trips = TRIPS.search(attributes) if opcode == "while" else None
    cycles = CYCLES.search(attributes)
    calls = [(found["how"], found["name"]) for found in CALLED.finditer(attributes)]
    if branches := BRANCHES.search(attributes):
        calls += [("branch", branch.strip().lstrip("%")) for branch in branches[1].split(",")]
    return Instruction(
        name=name,
        opcode=opcode,
        shape=shape,
        operands=() if opcode in ("constant", "parameter") else tuple(OPERAND.findall(operands)),
        attributes=attributes[:KEPT],
        calls=tuple(calls),
        trips=int(trips[1]) if trips else 1,
        cycles=int(cycles[1]) % NO_CYCLES if cycles else 0,
    )


def _closing(text: str, start: int) -> int:
    """Where the bracket that opens at `start` closes."""
    depth = 0
    for place in range(start, len(text)):
        if text[place] == "(":
            depth += 1
        elif text[place] == ")":
            depth -= 1
            if depth == 0:
                return place
    raise ValueError(f"an HLO line ends within brackets: {text[:80]!r}")

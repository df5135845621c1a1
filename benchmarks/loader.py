"""Images per CPU-second of our loader and of timm's create_loader (ImageFolder, Pillow) on the same JPEGs.

    python benchmarks/loader.py [--rounds 4] [--images 2000] [--arms plain,eval] [--workers 1,2]

The JPEGs are made first (see loader_images.py). Each arm is a process of its own that lives through all rounds; in a
round the arms of a group take turns, in another order each time, and an arm reads whole epochs to uint8 batches. CPU
time is user and system time of its whole process tree. What comes before, imports and a first batch, is reported apart.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Final, NamedTuple

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.loader_images import make_tree
from benchmarks.loader_report import device_cost_ms, measure_stages, write_report
from data.native import SWITCH
from data.shards import make

WORKER: Final = ROOT / "benchmarks/loader_arms.py"
TIMM: Final = "timm"
EXTENSION, PYPI = "C extension", "PyPI parts"
_EPOCHS: Final = {
    TIMM: 1,
    EXTENSION: 3,
    PYPI: 3,
}  # of a round: each takes about as long, workers start in 2 % of it
# Group -> (timm's arm, ours). The arms of a group take turns.
GROUPS: Final = {
    "plain": ("plain", ("plain", "plain scaled")),
    "deit": ("deit", ("deit host", "deit device")),
    "deit 3 repeats": ("deit 3 repeats", ("deit 3 repeats",)),
    "eval bicubic": ("eval bicubic", ("eval bicubic",)),
    "eval bilinear": ("eval bilinear", ("eval bilinear",)),
    "transfer": ("transfer", ("transfer",)),
}


class Name(NamedTuple):
    """Of an arm: what it does, and with which parts."""

    arm: str
    parts: str  # TIMM, EXTENSION or PYPI


@dataclass
class Arm:
    """A process of loader_arms.py."""

    name: Name
    folder: Path
    start_s: float = 0.0  # imports, and a first batch
    rows: list[dict[str, Any]] = field(default_factory=list)

    def __enter__(self) -> "Arm":
        side = "timm" if self.name.parts == TIMM else "ours"
        command = [sys.executable, str(WORKER), side, self.name.arm, str(self.folder)]
        switch = {SWITCH: "0"} if self.name.parts == PYPI else {}
        begin = time.perf_counter()
        self._errors = self.folder / f"{'-'.join(self.name)}.err"
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors.open("w"),
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"} | switch,
        )
        self._line()
        self._ask("1 1 1")
        self.start_s = time.perf_counter() - begin
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None, "opened with a pipe"
        self._process.stdin.close()
        if kind is not None:
            self._process.kill()
        self._process.wait()

    def run(self, round_: int, num_workers: int) -> None:
        epochs = _EPOCHS[self.name.parts]
        self.rows.append({"round": round_, "workers": num_workers, **self._ask(f"{num_workers} {epochs}")})

    def _ask(self, words: str) -> dict[str, float]:
        assert self._process.stdin is not None, "opened with a pipe"
        print(words, file=self._process.stdin, flush=True)
        answer: dict[str, float] = json.loads(self._line())
        return answer

    def _line(self) -> str:
        assert self._process.stdout is not None, "opened with a pipe"
        line = self._process.stdout.readline()
        if not line:
            sys.exit(f"{self.name} ended early:\n{self._errors.read_text()}")
        return line


def main() -> None:
    arguments = parse()
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        mean_kb = make_tree(folder / "tree" / "train", num_images=arguments.images)
        make(folder / "tree", folder / "shards", split="train")
        stages, device_ms = measure_stages(folder), device_cost_ms()
        arms = [
            arm
            for group in GROUPS
            if any(word in group for word in arguments.arms)
            for arm in run_group(group, folder, rounds=arguments.rounds, workers=arguments.workers)
        ]
        facts = {
            "rounds": arguments.rounds,
            "images": arguments.images,
            "mean_kb": mean_kb,
            "epochs": _EPOCHS,
            "total_s": time.perf_counter() - begin,
        }
        table = {(arm.name.arm, arm.name.parts): (arm.start_s, arm.rows) for arm in arms}
        print(write_report(table, stages, device_ms=device_ms, groups=GROUPS, facts=facts, dry=arguments.dry))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    words = lambda text: text.split(",")  # noqa: E731
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--arms", type=words, default=[""], help=f"words of {', '.join(GROUPS)}")
    parser.add_argument("--workers", type=lambda text: [int(w) for w in text.split(",")], default=[1, 2])
    parser.add_argument("--dry", action="store_true", help="print the results, but write none")
    return parser.parse_args()


def run_group(group: str, folder: Path, *, rounds: int, workers: Sequence[int]) -> list[Arm]:
    timm_arm, our_arms = GROUPS[group]
    names = [Name(timm_arm, TIMM)]
    names += [Name(arm, parts) for arm in our_arms for parts in (EXTENSION, PYPI) if has_parts(arm, parts)]
    with ExitStack() as stack:
        arms = [stack.enter_context(Arm(name, folder)) for name in names]
        for round_ in range(rounds):
            for num_workers in workers:
                for place in range(len(arms)):
                    arms[(place + round_) % len(arms)].run(round_, num_workers)
            print(f"{group}, round {round_ + 1} of {rounds}: {_line(arms)}", file=sys.stderr, flush=True)
    return arms


def has_parts(arm: str, parts: str) -> bool:
    """Collation has none; scaled decoding is shown beside the full one for the extension alone."""
    return parts == EXTENSION or arm not in ("transfer", "plain scaled")


def _line(arms: Sequence[Arm]) -> str:
    per_s = [(arm, statistics.fmean(row["images"] / row["cpu_s"] for row in arm.rows)) for arm in arms]
    return ", ".join(f"{arm.name.arm} ({arm.name.parts}) {value:.0f}/CPU-s" for arm, value in per_s)


if __name__ == "__main__":
    main()

"""The command line: verbs and their flags. Verbs are imported when they are called."""

import argparse
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

from engine.failure import EXIT_DONE, guarded

LAUNCHER_FLAGS = {
    "launch_gpu.py": {
        "--cpu": "stay off the GPU",
        "--num-processes": "how many processes to start (default 1)",
    },
    "launch_xla.py": {"--num-devices": "XLA devices to use (default 1)"},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """What the launcher knows: which backend, how many processes or devices were asked for."""

    backend: Literal["cpu", "cuda", "auto", "xla"]
    world_size: int | None = 1  # None: whatever an outside launcher started
    num_devices: int = 1


Verb = Callable[[argparse.Namespace, Launch], dict[str, Any]]


class _Parser(argparse.ArgumentParser):
    """One line instead of a usage dump; the help is one flag away."""

    def error(self, message: str) -> Any:
        raise ValueError(f"{message}; see `{self.prog} -h`")


def make_parser(program: str) -> argparse.ArgumentParser:
    """All verbs and flags. Kept cheap: `--help` must not import torch."""
    flags = LAUNCHER_FLAGS.get(program, {})
    parser = _Parser(
        prog=program,
        usage=f"{' '.join([program, *map(_optional, flags)])} VERB ...   (VERB -h explains a verb)",
        description="Train and measure robust image classifiers.",
        epilog="before VERB:\n" + "\n".join(f"  {flag:<18}{text}" for flag, text in flags.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    verbs = parser.add_subparsers(
        dest="verb", required=True, metavar="VERB", parser_class=_Parser, prog=program
    )
    _add_train(verbs)
    _add_eval(verbs)
    _add_attack(verbs)
    _add_shards(verbs)
    return parser


def _optional(flag: str) -> str:
    return f"[{flag}]" if flag == "--cpu" else f"[{flag} N]"


def _verb(verbs: Any, name: str, help_text: str, example: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = verbs.add_parser(
        name,
        help=help_text,
        description=help_text,
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the result there for machines")
    return parser


def _add_train(verbs: Any) -> None:
    example = "python launch_gpu.py --cpu train recipes/quickstart/cnn_adv.yaml optim.lr=1e-3 --output runs/a"
    parser = _verb(verbs, "train", "train the model of a recipe, then run its evaluations", example)
    parser.add_argument("recipe", type=Path, help="recipe file (YAML)")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="recipe fields to change")
    parser.add_argument("--output", type=Path, help="run folder (default: run.output, else runs/NAME)")
    parser.add_argument(
        "--resume", default="auto", help="auto (default), never, or a checkpoint or run folder"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="check, print the resolved recipe and its hash, stop"
    )


def _add_eval(verbs: Any) -> None:
    example = "python launch_gpu.py --cpu eval runs/a --suite clean --data shards/val"
    parser = _verb(verbs, "eval", "judge every image of a suite, one ledger row each", example)
    parser.add_argument("run", type=Path, help="run folder, or a checkpoint in one")
    parser.add_argument("--suite", default="clean", help="suites, comma-separated: clean")
    _add_measuring(parser)


def _add_attack(verbs: Any) -> None:
    example = "python launch_gpu.py --cpu attack runs/a --attack pgd --eps 4/255 --step-size 1/255 --steps 20"
    parser = _verb(verbs, "attack", "attack every image and count what stays right", example)
    parser.add_argument("run", type=Path, help="run folder, or a checkpoint in one")
    parser.add_argument("--attack", default="pgd", help="pgd")
    parser.add_argument("--norm", default="linf", help="linf")
    parser.add_argument("--eps", required=True, help="radius in pixel units, e.g. 4/255")
    parser.add_argument("--step-size", help="pixel units (default: eps/4)")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--no-random-start", action="store_true", help="start from the clean image")
    parser.add_argument("--num-images", type=int, help="a fixed subset, the same for every model")
    _add_measuring(parser)


def _add_measuring(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", type=Path, help="folder of shards (default: data.val of the run's recipe)")
    parser.add_argument("--batch-size", type=int, help="global (default: run.batch_size)")
    parser.add_argument("--output", type=Path, help="where ledger and results go (default: the run folder)")


def _add_shards(verbs: Any) -> None:
    example = "python launch_gpu.py shards make ~/imagenet/val shards/val"
    parser = _verb(verbs, "shards", "make, index, verify or describe shards", example)
    parser.add_argument("action", choices=["make", "index", "verify", "info", "digits"])
    parser.add_argument("paths", nargs="+", type=Path, metavar="PATH", help="SRC DST for make; DST otherwise")
    parser.add_argument("--split", help="make: take SRC/SPLIT and name the dataset's split")
    parser.add_argument("--samples-per-shard", type=int, default=2000)
    parser.add_argument("--size", type=int, default=32, help="digits: side in pixels")
    parser.add_argument("--seed", type=int, default=0, help="make: seed of the global shuffle")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="verify: sizes and sha256 only, no decoding")


MODULES = {
    "train": "engine.verb_train",
    "eval": "engine.verb_measure",
    "attack": "engine.verb_measure",
    "shards": "engine.verb_shards",
}


def main(argv: Sequence[str], launch: Launch, *, program: str) -> int:
    """Runs one verb and gives its exit code; a user's mistake becomes one line on stderr and exit code 2."""
    return guarded(lambda: _run(argv, launch, program))


def _run(argv: Sequence[str], launch: Launch, program: str) -> int:
    arguments = parse(argv, program)
    verb: Verb = import_module(MODULES[arguments.verb]).run
    result = verb(arguments, launch)
    if arguments.json is not None and os.environ.get("RANK", "0") == "0":
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")
    return int(result.get("exit_code", EXIT_DONE))


def validate(argv: Sequence[str], program: str) -> str:
    """Refuses what can be seen to be wrong without data or devices: arguments, and the recipe of `train`.

    Returns the verb.
    """
    arguments = parse(argv, program)
    if arguments.verb == "train":
        import_module("engine.recipe").load_recipe(arguments.recipe, arguments.overrides)
    return str(arguments.verb)


def parse(argv: Sequence[str], program: str) -> argparse.Namespace:
    """The arguments; `key=value` words may stand anywhere behind `train`, between flags too."""
    _refuse_misplaced(argv, program)
    parser = make_parser(program)
    arguments, extra = parser.parse_known_args(list(argv))
    words = [word for word in extra if "=" in word and not word.startswith("-")]
    if arguments.verb == "train":
        arguments.overrides += words
        extra = [word for word in extra if word not in words]
    if extra:
        raise ValueError(f"unrecognized arguments: {' '.join(extra)}; see `{program} {arguments.verb} -h`")
    if arguments.json is not None:
        _check_json(arguments.json)
    return arguments


def _refuse_misplaced(argv: Sequence[str], program: str) -> None:
    """A launcher's flag behind the verb, or given to the other launcher."""
    for word in argv:
        flag = word.partition("=")[0]
        for owner, flags in LAUNCHER_FLAGS.items():
            if flag in flags and owner == program:
                raise ValueError(
                    f"{flag} stands before the verb: `{program} {_optional(flag)[1:-1]} {argv[0]} ...`"
                )
            if flag in flags:
                raise ValueError(f"{flag} is a flag of {owner}; drop it, or start {owner}")


def _check_json(path: Path) -> None:
    # Before the work: hours later would be too late to learn that its result cannot be written.
    place = path if path.exists() else path.parent
    if path.is_dir() or not path.parent.is_dir():
        raise ValueError(
            f"--json {path}: not a file in an existing folder; make the folder, or give another path"
        )
    if not os.access(place, os.W_OK):
        raise ValueError(f"--json {path}: not writable; give another path")

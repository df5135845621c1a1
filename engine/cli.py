"""The command line: checks the words, runs a verb, writes its result. Verbs are imported when they are called."""

import argparse
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

from engine.attack_flags import ACTIONS
from engine.failure import EXIT_DONE, guarded
from engine.flags import LAUNCHER_FLAGS, make_parser, optional, recipe_words


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """What the launcher knows: which backend, how many processes or devices were asked for."""

    backend: Literal["cpu", "cuda", "auto", "xla", "tpu"]
    world_size: int | None = 1  # None: whatever an outside launcher started
    num_devices: int = 1


Verb = Callable[[argparse.Namespace, Launch], dict[str, Any]]


MODULES = {
    "train": "engine.verb_train",
    "eval": "engine.verb_measure",
    "attack": "engine.verb_measure",
    "attack merge": "engine.verb_merge",
    "attack verify": "engine.verb_verify",
    "shards": "engine.verb_shards",
    "weights": "engine.verb_weights",
    "report": "engine.verb_report",
    "list": "engine.verb_list",
    "doctor": "engine.verb_doctor",
    "tpu-check": "engine.verb_tpu_check",
}
# These look at files or at this machine: one process, whatever the launcher was asked for.
ALONE = ("attack merge", "attack verify", "shards", "weights", "report", "list", "doctor", "tpu-check")


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
        import_module("engine.recipe").load_recipe(arguments.recipe, recipe_words(arguments))
    return str(arguments.verb)


def parse(argv: Sequence[str], program: str) -> argparse.Namespace:
    """The arguments; `key=value` and `@NAME` may stand anywhere behind `train` or `doctor`, between flags too."""
    argv = _joined(argv)
    _refuse_misplaced(argv, program)
    parser = make_parser(program)
    arguments, extra = parser.parse_known_args(list(argv))
    words = [word for word in extra if word.startswith("@") or ("=" in word and not word.startswith("-"))]
    if hasattr(arguments, "overrides"):
        arguments.overrides += words
        extra = [word for word in extra if word not in words]
    if arguments.verb in ("eval", "attack"):  # a second path is no word of a recipe
        extra += [word for word in arguments.overrides if "=" not in word]
    if getattr(arguments, "pattern", "") is None and len(extra) == 1 and not extra[0].startswith("-"):
        arguments.pattern = extra.pop()  # of `list`, behind a flag, where argparse does not look for it
    if extra:
        raise ValueError(f"unrecognized arguments: {' '.join(extra)}; see `{program} {arguments.verb} -h`")
    if arguments.json is not None:
        _check_json(arguments.json)
    return arguments


def _joined(argv: Sequence[str]) -> list[str]:
    """With `attack merge` and `attack verify` as verbs of their own; a run of that name is ./merge."""
    if len(argv) > 1 and argv[0] == "attack" and argv[1] in ACTIONS:
        return [f"attack {argv[1]}", *argv[2:]]
    return list(argv)


def _refuse_misplaced(argv: Sequence[str], program: str) -> None:
    """A launcher's flag behind the verb, or given to the other launcher."""
    for word in argv:
        flag = word.partition("=")[0]
        for owner, flags in LAUNCHER_FLAGS.items():
            if flag in flags and owner == program:
                raise ValueError(
                    f"{flag} stands before the verb: `{program} {optional(flag)[1:-1]} {argv[0]} ...`"
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

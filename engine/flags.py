"""The command line's words: every verb with its flags and an example. Cheap: `--help` must not import torch."""

import argparse
import json
from pathlib import Path
from typing import Any

from engine.attack_flags import add_attack_flags, add_merge_flags, add_verify_flags
from engine.measuring_flags import add_measuring, add_quiet, add_remote, add_subject, add_weights_choice
from engine.shards_flags import add_shards_flags
from engine.tpu.flags import add_tpu_check_flags

LAUNCHER_FLAGS = {
    "launch_gpu.py": {
        "--cpu": "stay off the GPU",
        "--num-processes": "how many processes to start (default 1)",
    },
    "launch_xla.py": {
        "--num-devices": "XLA devices of this host (default 1)",
        "--num-hosts": "hosts of a TPU pod, each starts this (default 1)",
        "--compile-cache": "folder that keeps compiled graphs for later runs (TPU)",
    },
}


class _Parser(argparse.ArgumentParser):
    """One line instead of a usage dump; the help is one flag away."""

    def error(self, message: str) -> Any:
        raise ValueError(f"{message}; see `{self.prog} -h`")


CHANGES = "recipe fields to change; @NAME: a list of them from variants.yaml beside the recipe"


class _Help(argparse.RawDescriptionHelpFormatter):
    """One line for each verb: argparse forgets that verbs are indented, and breaks the line of the longest one."""

    def start_section(self, heading: str | None) -> None:
        super().start_section(heading)
        self._action_max_length = 17


def make_parser(program: str) -> argparse.ArgumentParser:
    """All verbs and flags. Kept cheap: `--help` must not import torch."""
    flags = LAUNCHER_FLAGS.get(program, {})
    parser = _Parser(
        prog=program,
        usage=f"{' '.join([program, *map(optional, flags)])} VERB ...   (VERB -h explains a verb)",
        description="Train and measure robust image classifiers.",
        epilog="before VERB:\n" + "\n".join(f"  {flag:<18}{text}" for flag, text in flags.items()),
        formatter_class=_Help,
        allow_abbrev=False,
    )
    verbs = parser.add_subparsers(
        dest="verb", required=True, metavar="VERB", parser_class=_Parser, prog=program
    )
    _add_train(verbs)
    _add_eval(verbs)
    _add_attack(verbs)
    _add_shards(verbs)
    _add_weights(verbs)
    _add_report(verbs)
    _add_list(verbs)
    _add_doctor(verbs)
    _add_tpu_check(verbs)
    return parser


def recipe_words(arguments: argparse.Namespace) -> list[str]:
    """The overrides of `train`, with the flags that stand for a recipe field."""
    words = list(arguments.overrides)
    if arguments.no_index:
        words.append("data.indexed=false")
    if arguments.cache is not None:
        words.append(f"data.cache={json.dumps(arguments.cache)}")
    return words


def optional(flag: str) -> str:
    value = {"--cpu": "", "--compile-cache": " DIR"}.get(flag, " N")
    return f"[{flag}{value}]"


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
    parser.add_argument("overrides", nargs="*", metavar="key=value", help=CHANGES)
    parser.add_argument("--output", type=Path, help="run folder (default: run.output, else runs/NAME)")
    parser.add_argument(
        "--resume", default="auto", help="auto (default), never, or a checkpoint or run folder"
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="check, print the resolved recipe, its hash and what the run would cost, measured in about 20 s; stop",
    )
    parser.add_argument("--no-measure", action="store_true", help="with --dry-run: what can be counted alone")
    parser.add_argument(
        "--no-index",
        action="store_true",
        help="data.train names tars without an index, to be read in order (sets data.indexed=false)",
    )
    add_remote(parser)
    add_quiet(parser)


def _add_eval(verbs: Any) -> None:
    example = "python launch_gpu.py --cpu eval runs/a --suite clean --data shards/val"
    parser = _verb(verbs, "eval", "judge every image of a suite, one ledger row each", example)
    add_subject(parser)
    parser.add_argument(
        "--suite", default="clean", help="suites, comma-separated, or all (see `list suites`; default: clean)"
    )
    parser.add_argument(
        "--protocol",
        default="default",
        metavar="ID",
        help="whose transform: default, bai2021, wang2023 or xu2022",
    )
    add_measuring(parser)


def _add_attack(verbs: Any) -> None:
    example = "python launch_gpu.py --cpu attack runs/a --attack pgd --eps 2/255,4/255,8/255 --steps 20 --restarts 3"
    add_attack_flags(_verb(verbs, "attack", "attack every image and count what stays right", example))
    example = "python launch_gpu.py attack merge runs/part1 runs/part2 --output runs/whole"
    add_merge_flags(
        _verb(verbs, "attack merge", "join the parts of one evaluation from several machines", example)
    )
    example = "python launch_gpu.py --cpu attack verify runs/a"
    add_verify_flags(_verb(verbs, "attack verify", "judge stored adversarial images once more", example))


def _add_shards(verbs: Any) -> None:
    example = "python launch_gpu.py shards make ~/imagenet/val shards/val"
    parser = _verb(verbs, "shards", "make, index, verify, describe or stylize shards", example)
    add_shards_flags(parser)


def _add_weights(verbs: Any) -> None:
    example = "python launch_gpu.py weights export runs/a a.safetensors --weights ema"
    parser = _verb(
        verbs, "weights", "describe a weight file, convert one, or export a run's weights", example
    )
    parser.add_argument("action", choices=["info", "convert", "export"])
    parser.add_argument(
        "paths",
        nargs="+",
        type=Path,
        metavar="PATH",
        help="info: FILE; convert: SRC DST.safetensors; export: RUN DST.safetensors",
    )
    add_weights_choice(parser)
    parser.add_argument(
        "--model", metavar="NAME", help="convert: the model, noted in DST when the file fits it"
    )
    parser.add_argument(
        "--trust-pickle",
        action="store_true",
        help="convert: let SRC run whatever it holds, with your rights; only for files whose maker you trust",
    )
    parser.add_argument(
        "--force", action="store_true", help="convert, export: replace DST and the card beside it"
    )


def _add_report(verbs: Any) -> None:
    example = "python launch_gpu.py report runs/a runs/b --output compare.html"
    parser = _verb(verbs, "report", "one page with tables, curves and pictures of one or more runs", example)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run folders, in the order shown")
    parser.add_argument(
        "--output",
        type=Path,
        help="the page; its tables are written beside it as .md and .csv "
        "(default: RUN/report.html of one run, report.html of several)",
    )


def _add_list(verbs: Any) -> None:
    example = "python launch_gpu.py list models 'deit*'"
    parser = _verb(verbs, "list", "models, recipes, suites or attacks, with parameters and sources", example)
    parser.add_argument("what", choices=["models", "recipes", "suites", "attacks"])
    parser.add_argument("pattern", nargs="?", help="shell pattern of names (recipes: or paths), e.g. 'deit*'")
    parser.add_argument(
        "--published", action="store_true", help="models: papers' weight files and their numbers"
    )
    parser.add_argument("--data", type=Path, help="suites: say which of them are in this folder")


def _add_doctor(verbs: Any) -> None:
    example = "python launch_gpu.py doctor recipes/quickstart/cnn_adv.yaml"
    parser = _verb(verbs, "doctor", "what is installed, what would be used and why, and a self-test", example)
    parser.add_argument("recipe", nargs="?", type=Path, help="also check that this recipe could run here")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help=CHANGES)
    parser.add_argument("--no-self-test", action="store_true", help="facts only")
    parser.add_argument(
        "--backends",
        metavar="REFERENCE,OTHER[,...]",
        help="instead: train RECIPE a few steps on each of cpu, cuda, xla and compare them layer by layer; xla:4 has "
        "four devices, and a side may change a field: cpu,cpu:run.precision=bf16",
    )
    parser.add_argument(
        "--steps", type=int, metavar="N", help="with --backends: how many updates (default 3)"
    )


def _add_tpu_check(verbs: Any) -> None:
    example = "python launch_xla.py tpu-check recipes/bai2021/deit_small.yaml --topology v5e:2x4"
    parser = _verb(verbs, "tpu-check", "compile the train step for a TPU, without a TPU", example)
    add_tpu_check_flags(parser, CHANGES)

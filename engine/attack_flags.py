"""The flags of `attack`, and of `attack merge` and `attack verify`, which go on from what it has left."""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engine.measuring_flags import add_measuring, add_quiet, add_remote, add_subject, add_weights_choice

ACTIONS = ("merge", "verify")  # words behind `attack` in place of a model


def add_attack_flags(parser: argparse.ArgumentParser) -> None:
    add_subject(parser)
    parser.add_argument("--attack", default="pgd", help="pgd (default) or autoattack (see `list attacks`)")
    parser.add_argument("--norm", default="linf", help="linf (default) or l2; autoattack: l1 too")
    parser.add_argument(
        "--eps",
        help="radius in pixel units and the norm, e.g. 4/255; several, comma-separated, give a result each; "
        "l2:0.5 among them has a norm of its own",
    )
    parser.add_argument(
        "--preset",
        metavar="NAME",
        help="pgd: as a paper measured it, bai2021 or xu2022; eps 4/255 unless given",
    )
    parser.add_argument("--step-size", help="pgd: pixel units, for every radius (default: a quarter of each)")
    parser.add_argument("--steps", type=int, help="pgd: gradient steps of a restart (default: 20)")
    parser.add_argument("--no-random-start", action="store_true", help="pgd: start from the clean image")
    parser.add_argument(
        "--restarts", type=int, help="pgd: random starts; the strongest result counts (default: 1)"
    )
    parser.add_argument(
        "--best-iterate", action="store_true", help="pgd: the strongest iterate counts, not the last one"
    )
    parser.add_argument("--version", metavar="NAME", help="autoattack: what runs (default: standard)")
    parser.add_argument(
        "--until-ci",
        type=float,
        metavar="POINTS",
        help="autoattack: images in random order, until the 95 %% interval is at most +- so many percentage points",
    )
    parser.add_argument(
        "--part",
        metavar="K/N",
        help="autoattack: only the K-th of N parts of the images, for `attack merge` to join",
    )
    parser.add_argument(
        "--save-images",
        action="store_true",
        help="autoattack: keep the image that broke each one, as float32",
    )
    add_measuring(parser)


def add_merge_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "parts", nargs="+", type=Path, metavar="DIR", help="folders that `attack` has written (--output)"
    )
    parser.add_argument("--output", type=Path, required=True, help="where the joined ledger and results go")


def add_verify_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "folder", type=Path, metavar="RUN|DIR", help="folder in which `attack ... --save-images` kept images"
    )
    parser.add_argument(
        "--run",
        metavar="RUN_OR_WEIGHTS",
        help="the model, where it does not lie any more where the attack found it",
    )
    add_weights_choice(parser)
    parser.add_argument("--data", metavar="ROOT", help="the shards, where they lie elsewhere than then")
    add_remote(parser)
    parser.add_argument(
        "--batch-size", type=int, metavar="N", help="images at once (default: as in the attack)"
    )
    add_quiet(parser)


def attack_words_of(attack: Mapping[str, Any]) -> argparse.Namespace:
    """The words that ask for an AutoAttack with these settings, of whatever model."""
    parser = argparse.ArgumentParser()
    add_attack_flags(parser)
    words = ["", "--attack", "autoattack", "--norm", str(attack["norm"]), "--eps", repr(attack["eps"])]
    return argparse.Namespace(**vars(parser.parse_args(words)), verb="attack")

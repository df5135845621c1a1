"""What `eval` and `attack` are told: which model, on which images, and where the results go."""

import argparse
from pathlib import Path


def add_subject(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "run",
        type=Path,
        metavar="RUN_OR_WEIGHTS",
        help="run folder, a checkpoint in one, an exported .safetensors file; with --model any weights; or "
        "timm:NAME, hf-hub:ORG/NAME, which are fetched",
    )
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="key=value",
        help="of weights from elsewhere: what the model sees, such as data.crop_pct=0.9 or model.mean=[0.5,0.5,0.5]",
    )
    parser.add_argument(
        "--model", metavar="NAME", help="of weights from elsewhere: their model (`list models`)"
    )
    parser.add_argument(
        "--image-size", type=int, metavar="PX", help="with --model (default: the model's own)"
    )
    parser.add_argument(
        "--num-classes", type=int, metavar="K", help="with --model (default: the file's head)"
    )


def add_measuring(parser: argparse.ArgumentParser) -> None:
    add_weights_choice(parser)
    parser.add_argument(
        "--data",
        metavar="ROOT",
        help="folder or URL of shards, or of one folder of shards per suite (default: data.val and data.suites of "
        "the run)",
    )
    add_remote(parser)
    parser.add_argument("--num-images", type=int, help="a fixed subset, the same for every model")
    parser.add_argument(
        "--images", metavar="FILE", help="those whose names stand in FILE, one on each line, instead"
    )
    parser.add_argument(
        "--batch-size",
        type=int,
        help="global (default: run.batch_size); autoattack: lanes of each process (default: 64)",
    )
    parser.add_argument(
        "--bad-images",
        choices=["stop", "wrong"],
        help="stop at one, or count it as wrong (default: data.eval_bad)",
    )
    parser.add_argument("--output", type=Path, help="where ledger and results go (default: the run folder)")
    add_quiet(parser)


def add_weights_choice(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--weights", choices=["raw", "ema"], default="raw", help="of a run with optim.ema")


def add_remote(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--cache", metavar="DIR", help="where shards behind URLs are kept (default: data.cache of the recipe)"
    )
    parser.add_argument(
        "--allow-pipes", action="store_true", help="places of the form pipe:COMMAND may run their command"
    )


def add_quiet(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--quiet", action="store_true", help="no progress: results and warnings only")

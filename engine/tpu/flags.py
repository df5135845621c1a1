"""The words of `tpu-check`. Cheap: `--help` must not import torch."""

import argparse
from pathlib import Path


def add_tpu_check_flags(parser: argparse.ArgumentParser, changes: str) -> None:
    """`changes` explains key=value."""
    parser.add_argument(
        "recipe", nargs="?", type=Path, help="recipe file (YAML); with --all a folder (default: recipes)"
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help=changes)
    parser.add_argument(
        "--topology",
        default="v5e:2x4",
        metavar="CHIP:SHAPE[,...]",
        help="v3, v4, v5e, v5p or v6e and their grid (default: v5e:2x4)",
    )
    parser.add_argument("--batch-per-device", type=int, default=64, metavar="N", help="images (default: 64)")
    parser.add_argument(
        "--all", action="store_true", help="every recipe, a row at a time; goes on where it was stopped"
    )
    parser.add_argument(
        "--timeout",
        type=float,
        default=3600.0,
        metavar="S",
        help="seconds for one compilation (default: 3600)",
    )
    parser.add_argument(
        "--output", type=Path, metavar="DIR", help="for answers and table (--all: runs/tpu-check)"
    )

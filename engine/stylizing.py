"""`shards stylize`: which style the flags ask for, and where it is computed."""

import argparse
from pathlib import Path

import torch

from data.stylize import Style, Textures, find_paintings, stylize
from data.watch import Watch
from engine.cli import Launch

PAPER_SIZE = 224  # of Stylized-ImageNet


def write_stylized(
    arguments: argparse.Namespace, launch: Launch, src: Path, dst: Path, *, watch: Watch
) -> None:
    """Shards `src` to shards `dst`. A network runs on the GPU where there is one, else in `--workers` processes."""
    size, device = arguments.size, "cpu"
    if arguments.textures is not None:
        style: Style = _textures(arguments)
    elif arguments.paintings is None or arguments.weights is None:
        raise ValueError(
            "shards stylize needs --paintings DIR and --weights DIR (Stylized-ImageNet's construction), "
            "or --textures N (generated textures, without weights)"
        )
    else:
        device = "cuda" if launch.backend in ("auto", "cuda") and torch.cuda.is_available() else "cpu"
        style = find_paintings(arguments.paintings, arguments.weights, seed=arguments.seed, device=device)
        size = PAPER_SIZE if size is None else size
    workers = arguments.workers or 0
    if device != "cpu" and workers:
        raise ValueError(f"--workers {workers}: one process feeds the GPU; drop it, or start with --cpu")
    stylize(src, dst, style, size=size, num_workers=workers, watch=watch)


def _textures(arguments: argparse.Namespace) -> Textures:
    if arguments.paintings is not None or arguments.weights is not None:
        raise ValueError("--textures needs no --paintings and no --weights; drop one or the others")
    if arguments.textures < 1:
        raise ValueError(f"--textures {arguments.textures} must be at least 1")
    return Textures(number=arguments.textures, seed=arguments.seed)

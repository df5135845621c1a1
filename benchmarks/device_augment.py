"""What RandAugment costs for an image: by Pillow in the loader, and batched as the train step does it.

    python benchmarks/device_augment.py [--backend cpu|cuda|xla] [--image-size 224] [--batch-size 32]

CPU-milliseconds of the process (wall-milliseconds on cuda, which works by itself) for DeiT's string, the best of
several rounds that take turns. "draws" is what the loader still does when the device augments.
"""

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from bits.environment import open_environment
from data.augment import device_augment
from data.batch import NUM_DRAWS
from data.op_draws import draw_ops
from data.order import hash64, sample_seed, uniform
from data.transform import AugmentSettings, build_randaug, choose_ops, seeded_random
from robust.noise import noise

DEIT = "rand-m9-mstd0.5-inc1"
ROUNDS = 5


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--backend", default="cpu", choices=("cpu", "cuda", "xla"))
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--batch-size", type=int, default=32)
    arguments = parser.parse_args()
    size, batch = arguments.image_size, arguments.batch_size
    torch.set_num_threads(1)
    settings = AugmentSettings(randaug=DEIT, randaug_on="device")
    seeds = sample_seed(np.arange(batch), seed=0, epoch=0)
    pixels = make_pictures(batch, size)
    arms: dict[str, Callable[[], object]] = {
        "Pillow": lambda: with_pillow(pixels, settings, seeds),
        "draws": lambda: draw_ops(seeds, settings, image_size=size),
        arguments.backend: on_device(arguments.backend, settings, pixels, seeds),
    }
    clock = time.perf_counter if arguments.backend == "cuda" else time.process_time
    best = dict.fromkeys(arms, float("inf"))
    for _ in range(ROUNDS + 1):  # the first one compiles, and later ones beat it
        for name, run in arms.items():
            start = clock()
            run()
            best[name] = min(best[name], (clock() - start) / batch)
    for name, seconds in best.items():
        print(f"{name:8} {1e3 * seconds:8.3f} ms an image of {size} px, batch {batch}")


def make_pictures(batch: int, size: int) -> Tensor:
    """uint8 (N,3,H,W) with large shapes and fine noise."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(batch, 3, 7, 7, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size=(size, size), mode="bicubic")
    grain = torch.rand(batch, 3, size, size, generator=generator) * 0.1
    return ((smooth + grain).clamp(0, 1) * 255).to(torch.uint8)


def with_pillow(pixels: Tensor, settings: AugmentSettings, seeds: np.ndarray) -> None:
    policy = build_randaug(settings)
    for image, seed in zip(pixels, seeds, strict=True):
        picture = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
        with seeded_random(int(hash64(int(seed), "randaug"))):
            for op in choose_ops(policy, uniform(hash64(int(seed), "ops", np.arange(2)))):
                picture = op(picture)


def on_device(
    backend: str, settings: AugmentSettings, pixels: Tensor, seeds: np.ndarray
) -> Callable[[], None]:
    """One batch from uint8 to float32, waited for."""
    env = open_environment(backend)
    augment = device_augment(settings, erase_after_mix=False, mean=(0.5,) * 3, std=(0.5,) * 3, noise=noise)
    columns = np.zeros((len(seeds), NUM_DRAWS), np.float32)
    draw = np.concatenate([columns, draw_ops(seeds, settings, image_size=pixels.shape[2])], axis=1)
    tensors = {"image": pixels, "draw": torch.from_numpy(draw), "seed": torch.from_numpy(seeds)}
    fed = env.feed(tensors)

    def run() -> None:
        augment.before_mix(fed["image"], fed["draw"], fed["seed"]).sum().item()

    return run


if __name__ == "__main__":
    main()

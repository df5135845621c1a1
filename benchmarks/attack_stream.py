"""Memory of AutoAttack on many images: 50,000 that no memory holds as floats, block by block.

    OMP_NUM_THREADS=1 python benchmarks/attack_stream.py [--num-images 50000] [--image-size 112]

The model is tiny and the budgets are cut, so that the run takes minutes; blocks, lanes and what is kept of an image
are those of a real run. Images are made when their block comes, out of a seed.
"""

import argparse
import resource
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from torch import Tensor, nn

from benchmarks.record import markdown_table, write_result
from robust.apgd import Apgd
from robust.block import BlockAttack
from robust.fab import Fab
from robust.square import Square
from robust.stage import Device
from robust.versions import Part

GOAL_GB: Final = 4.0
NUM_CLASSES: Final = 10
EPS: Final = 4.0 / 255.0
PARTS: Final = (
    Part(component=Apgd(loss="ce", iterations=2)),
    Part(component=Apgd(loss="dlr-targeted", iterations=2), targets=2),
    Part(component=Fab(iterations=1), targets=1),
    Part(component=Square(queries=2)),
)


class Tiny(nn.Module):
    """One convolution of patches and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 16, stride=16)
        self.head = nn.Linear(8, NUM_CLASSES)

    def forward(self, image: Tensor) -> Tensor:
        logits: Tensor = self.head(self.patches(image).relu().mean(dim=(2, 3)))
        return logits


def blocks(num_images: int, size: int, block: int) -> Iterator[tuple[range, Tensor]]:
    """Keys, and the images (M,3,H,W) as a decoder gives them: 8 bits."""
    for start in range(0, num_images, block):
        keys = range(start, min(start + block, num_images))
        generator = torch.Generator().manual_seed(start)
        coarse = torch.randint(0, 256, (len(keys), 3, size // 8, size // 8), generator=generator)
        yield keys, coarse.to(torch.uint8).repeat_interleave(8, dim=2).repeat_interleave(8, dim=3)


def resident_gb() -> float:
    """Of this process, now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e9


def peak_gb() -> float:
    """Of this process, since it began."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def attack(model: nn.Module, keys: range, image: Tensor, *, lanes: int) -> list[str | None]:
    """What broke each image of a block."""
    floats = image.float() / 255.0
    with torch.no_grad():
        label = torch.cat([model(part).argmax(dim=1) for part in floats.split(lanes)])
    block = BlockAttack(
        predict=model,
        verdict=model,
        image=floats,
        label=label,
        eps=torch.tensor(EPS),
        keys=keys,
        parts=PARTS,
        seed=0,
        num_lanes=lanes,
        chunk=10,
        device=Device(feed=lambda tensor: tensor),
    )
    seen = Counter((outcome.component, outcome.row) for outcome in block.run())
    assert max(seen.values()) == 1, "an image was answered twice"
    assert all(("clean", row) in seen for row in range(len(keys))), "an image was not answered"
    return block.broken_by


def stream(num_images: int, *, size: int, block: int, lanes: int) -> dict[str, Any]:
    torch.manual_seed(0)
    model = Tiny().eval().requires_grad_(False)
    broken: Counter[str] = Counter()
    before, began, shown = resident_gb(), time.process_time(), time.monotonic()
    after_block: list[float] = []
    for keys, image in blocks(num_images, size, block):
        broken.update(name or "robust" for name in attack(model, keys, image, lanes=lanes))
        after_block.append(resident_gb())
        if time.monotonic() - shown > 20:
            shown = time.monotonic()
            print(f"{keys.stop} of {num_images}, {after_block[-1]:.2f} GB", flush=True)
    tenth = max(len(after_block) // 10, 1)
    return {
        "num_images": sum(broken.values()),
        "image_size": size,
        "block": block,
        "lanes": lanes,
        "as_floats_gb": num_images * 3 * size * size * 4 / 1e9,
        "broken_by": dict(broken),
        "before_gb": before,
        "after_first_tenth_gb": max(after_block[:tenth]),
        "after_last_tenth_gb": max(after_block[-tenth:]),
        "peak_gb": peak_gb(),
        "cpu_s": time.process_time() - began,
    }


def report(found: dict[str, Any]) -> list[str]:
    """Lines of the Markdown result."""
    memory = [
        (name.replace("_gb", "").replace("_", " "), f"{value:.2f}")
        for name, value in found.items()
        if name.endswith("_gb") and name != "as_floats_gb"
    ]
    verdict = "met" if found["peak_gb"] < GOAL_GB else "MISSED"
    return [
        f"{found['num_images']} images of {found['image_size']} px ({found['as_floats_gb']:.1f} GB as floats) in "
        f"blocks of {found['block']} through {found['lanes']} lanes; {found['cpu_s']:.0f} CPU-s.",
        f"Peak {found['peak_gb']:.2f} GB, goal {GOAL_GB:g} GB: {verdict}.",
        "",
        *markdown_table(["resident memory", "GB"], memory),
        "",
        *markdown_table(["broken by", "images"], sorted(found["broken_by"].items())),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--num-images", type=int, default=50_000)
    parser.add_argument("--image-size", type=int, default=112, help="a multiple of 16")
    parser.add_argument("--block", type=int, default=512)
    parser.add_argument("--lanes", type=int, default=64)
    arguments = parser.parse_args()
    found = stream(
        arguments.num_images, size=arguments.image_size, block=arguments.block, lanes=arguments.lanes
    )
    title = "Memory of AutoAttack on many images"
    print(write_result("attack-stream", title=title, text=report(found), data=found).read_text())
    return 0 if found["peak_gb"] < GOAL_GB and found["num_images"] == arguments.num_images else 1


if __name__ == "__main__":
    sys.exit(main())

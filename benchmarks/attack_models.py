"""The models that attacks are compared on: a BatchNorm CNN and a small ViT on digits, clean and robust.

    OMP_NUM_THREADS=1 python benchmarks/attack_models.py

Trains what is not in the folder yet, with the toolkit's own models and PGD-1; 797 scans to train on, 1,000 to attack.
"""

import argparse
import math
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

from models.registry import create_model
from robust.noise import noise
from robust.pgd import PGD

FOLDER: Final = Path("runs/attack_models")
NUM_TRAIN: Final = 797
BATCH: Final = 64
LR: Final = {"cnn": 3e-3, "vit": 1e-3}
KINDS: Final[dict[str, dict[str, Any]]] = {
    "cnn": {"name": "small_cnn", "width": 8},
    "vit": {"name": "small_vit", "embed_dim": 48, "depth": 2},
}


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A model to be trained; `train_eps` 0 trains on clean images. `eps` is the radius that it is attacked with."""

    kind: str
    train_eps: float
    eps: float
    seed: int
    size: int = 32  # pixels a side
    epochs: int = 40

    @property
    def name(self) -> str:
        size = "" if self.size == 32 else self.size
        return f"{self.kind}{size}-{'robust' if self.train_eps else 'clean'}-{self.seed}"


# Radii, on clean and on robust models, at which some images are broken and some are left. At 16 px a pass costs a
# fourth: for what takes hours at 32.
RADII: Final = {32: (2 / 255, 16 / 255), 16: (6 / 255, 24 / 255)}
MODELS: Final = tuple(
    Entry(kind=kind, train_eps=train_eps, eps=eps, seed=seed, size=size)
    for size, radii in RADII.items()
    for seed in (0, 1)
    for kind in KINDS
    for train_eps, eps in zip((0.0, 16 / 255), radii, strict=True)
)


def digits(size: int) -> tuple[Tensor, Tensor]:
    """The scans, 8 bits: (1797,3,size,size) in [0,1] and int64 [1797], in a fixed mixed order."""
    data = load_digits()
    small = torch.tensor(data.images, dtype=torch.float32)[:, None] / 16.0
    large = F.interpolate(small, size=(size, size), mode="bicubic", align_corners=False).clamp(0.0, 1.0)
    order = torch.randperm(len(large), generator=torch.Generator().manual_seed(0))
    image = ((large * 255.0).round() / 255.0).expand(-1, 3, -1, -1)
    return image[order].contiguous(), torch.tensor(data.target, dtype=torch.int64)[order]


def held_out(num: int, size: int = 32) -> tuple[Tensor, Tensor]:
    """`num` scans that no model was trained on, at most 1,000."""
    image, label = digits(size)
    return image[NUM_TRAIN : NUM_TRAIN + num], label[NUM_TRAIN : NUM_TRAIN + num]


def model_of(entry: Entry, folder: Path = FOLDER) -> nn.Module:
    """The trained model, from the folder where it is there; in eval mode, weights frozen."""
    path = folder / f"{entry.name}-{entry.epochs}epochs.pt"
    torch.manual_seed(entry.seed)
    settings = dict(KINDS[entry.kind])
    if entry.kind == "vit":
        settings["patch_size"] = entry.size // 4
    model = create_model(
        settings.pop("name"),
        num_classes=10,
        image_size=entry.size,
        mean=(0.5, 0.5, 0.5),
        std=(0.25, 0.25, 0.25),
        **settings,
    )
    if path.exists():
        model.load_state_dict(torch.load(path, weights_only=True))
    else:
        train(model, entry)
        folder.mkdir(parents=True, exist_ok=True)
        torch.save(model.state_dict(), path)
    return model.eval().requires_grad_(False)


def train(model: nn.Module, entry: Entry) -> None:
    """AdamW, a warm-up and a cosine; PGD-1's radius grows over the first half."""
    image, label = (part[:NUM_TRAIN] for part in digits(entry.size))
    per_epoch = math.ceil(NUM_TRAIN / BATCH)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR[entry.kind], weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, LR[entry.kind], total_steps=entry.epochs * per_epoch, pct_start=0.15
    )
    for epoch in range(entry.epochs):
        eps = entry.train_eps * min(1.0, 2.0 * (epoch + 1) / entry.epochs)
        for number, rows in enumerate(torch.randperm(NUM_TRAIN).split(BATCH)):
            batch = image[rows]
            if eps:
                seed = (epoch * per_epoch + number) * NUM_TRAIN + rows
                batch = attacked(model, batch, label[rows], eps=eps, seed=seed)
            model.train()
            optimizer.zero_grad()
            F.cross_entropy(model(batch), label[rows]).backward()
            optimizer.step()
            schedule.step()


def attacked(model: nn.Module, image: Tensor, label: Tensor, *, eps: float, seed: Tensor) -> Tensor:
    """PGD-1 in eval mode, from a random point of the ball."""
    attack = PGD(steps=1, step_size=1.25 * eps, noise=noise)
    return attack(model.eval(), image, label, eps=torch.tensor(eps), seed=seed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--folder", type=Path, default=FOLDER)
    folder = parser.parse_args().folder
    for entry in MODELS:
        image, label = held_out(1000, entry.size)
        began = time.process_time()
        model = model_of(entry, folder)
        attack = PGD(steps=10, step_size=entry.eps / 4, noise=noise)
        worst = attack(model, image, label, eps=torch.tensor(entry.eps), seed=torch.arange(len(label)))
        with torch.no_grad():
            clean, robust = ((model(x).argmax(dim=1) == label).double().mean() for x in (image, worst))
        print(
            f"{entry.name}: clean {100 * clean:.1f} %, PGD-10 at {255 * entry.eps:g}/255 {100 * robust:.1f} %, "
            f"{time.process_time() - began:.0f} CPU-s",
            flush=True,
        )


if __name__ == "__main__":
    main()

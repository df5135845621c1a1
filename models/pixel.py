"""The pixel contract of a model: images in [0, 1] go in, logits come out, mean and std are its own.

Attack radii live in pixel space, so the normalisation has to be inside the model: "eps 4/255" then means the
same for every model, whatever it was trained with.
"""

from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor, nn


class PixelModel(nn.Module):
    """`backbone((image - mean) / std)`; mean and std (3 numbers each, pixel units) travel with the
    weights.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        backbone: nn.Module,
        mean: Sequence[float],
        std: Sequence[float],
        *,
        num_classes: int,
        image_size: int,
        name: str,
    ) -> None:
        super().__init__()
        if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
            raise ValueError(f"mean {list(mean)} and std {list(std)} must hold 3 numbers each, std above 0")
        self.backbone = backbone
        self.num_classes = num_classes
        self.image_size = image_size
        self.name = name
        # Where not empty, train() puts these modules alone into train mode (models/head.py).
        self.trained_parts: tuple[nn.Module, ...] = ()
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(1, 3, 1, 1))

    def train(self, mode: bool = True) -> Self:
        """As nn.Module.train, but a frozen part stays in eval mode."""
        super().train(mode and not self.trained_parts)
        self.training = mode
        for part in self.trained_parts:
            part.train(mode)
        return self

    def forward(self, image: Tensor) -> Tensor:
        """image (N,3,H,W) float in [0, 1] -> logits (N, num_classes)."""
        logits: Tensor = self.backbone((image - self.mean) / self.std)
        return logits

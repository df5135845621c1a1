"""A network trained on scans of digits for a few seconds, and digits that it has not seen."""

import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn


def digits() -> tuple[Tensor, Tensor]:
    data = load_digits()
    image = torch.tensor(data.images, dtype=torch.float32)[:, None].expand(-1, 3, -1, -1) / 16
    return image.contiguous(), torch.tensor(data.target, dtype=torch.int64)


@pytest.fixture(scope="session")
def trained() -> nn.Module:
    """A BatchNorm CNN trained on real digits for a few seconds; in eval mode."""
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()),
        *(nn.Conv2d(16, 32, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(32 * 16, 10)),
    )
    image, label = digits()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(4):
        for rows in torch.randperm(1400).split(100):
            optimizer.zero_grad()
            F.cross_entropy(model(image[rows]), label[rows]).backward()
            optimizer.step()
    return model.eval()


@pytest.fixture(scope="session")
def held_out() -> tuple[Tensor, Tensor]:
    image, label = digits()
    return image[1400:1600], label[1400:1600]

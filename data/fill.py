"""Small constants on a device, made there: a tensor of Python numbers would be a copy that the host waits for."""

from collections.abc import Sequence

import torch
from torch import Tensor


def filled(values: Sequence[float], *, device: torch.device, dtype: torch.dtype) -> Tensor:
    """The numbers as a tensor [len(values)]; each is a fill, so nothing travels."""
    return torch.stack([torch.full((), value, dtype=dtype, device=device) for value in values])

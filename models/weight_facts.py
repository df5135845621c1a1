"""Numbers about a weight file: tensors, parameters, types, values that are not finite, checksum."""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

STATISTICS = re.compile(r"(^|\.)(running_mean|running_var|num_batches_tracked)$")
PIXEL_BUFFERS = ("mean", "std")  # of models.pixel.PixelModel


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """Numbers about a state dict."""

    num_tensors: int
    num_parameters: int  # floating-point values without BatchNorm's statistics and PixelModel's mean and std
    num_values: int
    dtypes: Mapping[str, int]  # "float32": tensors of it
    first: tuple[str, ...]
    last: tuple[str, ...]
    num_nonfinite: int  # values that are nan or infinite


def describe_state(state: Mapping[str, Tensor], *, shown: int = 3) -> Facts:
    """Counts over a state dict; `shown` names from its start and its end. Reads every value once."""
    names = list(state)
    dtypes: dict[str, int] = {}
    for tensor in state.values():
        name = str(tensor.dtype).removeprefix("torch.")
        dtypes[name] = dtypes.get(name, 0) + 1
    trained = [t.numel() for name, t in state.items() if t.is_floating_point() and not _is_statistic(name)]
    return Facts(
        num_tensors=len(names),
        num_parameters=sum(trained),
        num_values=sum(tensor.numel() for tensor in state.values()),
        dtypes=dtypes,
        first=tuple(names[:shown]),
        last=tuple(names[max(shown, len(names) - shown) :]),
        num_nonfinite=sum(count_nonfinite(tensor) for tensor in state.values()),
    )


def _is_statistic(name: str) -> bool:
    return name in PIXEL_BUFFERS or STATISTICS.search(name) is not None


def count_nonfinite(tensor: Tensor) -> int:
    """Values that are nan or infinite."""
    if not (tensor.is_floating_point() or tensor.is_complex()):
        return 0
    # 8-bit floats know no isfinite.
    wide = tensor.float() if tensor.is_floating_point() and tensor.element_size() == 1 else tensor
    return int((~torch.isfinite(wide)).sum())


def file_sha256(path: Path) -> str:
    """Of the file's bytes, 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

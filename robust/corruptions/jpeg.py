"""jpeg_compression: real JPEG where the images are on the host and Pillow is there, else a tensor model of it."""

import io
from importlib.util import find_spec

import numpy as np
import torch
from torch import Tensor

from robust.corruptions import tables
from robust.corruptions.jpeg_tensor import compressed

# N images; levels (N,3,H,W) hold whole numbers 0..255 as float32.


def jpeg_compression(levels: Tensor, seed: Tensor, severity: int) -> Tensor:
    """Compressed and read again; `codec` says by what."""
    quality = tables.JPEG_COMPRESSION[severity - 1]
    if _has_codec(levels.device):
        return torch.stack([_through_pillow(image, quality) for image in levels])
    return compressed(levels, quality)


def codec(device: torch.device | str) -> str:
    """What makes JPEG there, in words, for a result's notes."""
    if not _has_codec(torch.device(device)):
        return "tensor model of JPEG (4:2:0)"
    from PIL import __version__, features

    library = "libjpeg_turbo" if features.check("libjpeg_turbo") else "jpg"
    return f"JPEG by Pillow {__version__} ({library} {features.version(library)})"


def _has_codec(device: torch.device) -> bool:
    return device.type == "cpu" and find_spec("PIL") is not None


def _through_pillow(levels: Tensor, quality: int) -> Tensor:
    """(3,H,W) -> (3,H,W), on the host."""
    from PIL import Image

    file = io.BytesIO()
    picture = levels.to(torch.uint8).permute(1, 2, 0).contiguous().numpy()
    Image.fromarray(picture).save(file, "JPEG", quality=quality)
    with Image.open(file) as image:
        return torch.from_numpy(np.array(image)).permute(2, 0, 1).to(torch.float32)

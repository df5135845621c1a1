"""Encoded bytes to an RGB picture: the one place where image formats are known.

The format is sniffed from the bytes, never taken from a file name (ImageNet has a PNG named .JPEG), and
Pillow may open nothing else. EXIF orientation is ignored, as timm, torchvision and the published numbers do.
"""

import io
import warnings
from typing import Final, NamedTuple

from PIL import Image

MAX_PIXELS: Final = (
    64_000_000  # from the header, before anything is decoded: a decompression bomb costs nothing
)
_MAGIC: Final = ((b"\xff\xd8\xff", "JPEG"), (b"\x89PNG\r\n\x1a\n", "PNG"), (b"GIF8", "GIF"), (b"BM", "BMP"))
_ORIENTATION_TAG: Final = 0x0112


class Header(NamedTuple):
    """What an image says about itself before its pixels are decoded."""

    format: str
    width: int
    height: int
    is_gray: bool
    is_cmyk: bool
    is_rotated: bool  # EXIF asks for another orientation
    is_progressive: bool


def decode(content: bytes) -> Image.Image:
    """Bytes to a PIL image of mode RGB (first frame). ValueError with the reason where that is impossible."""
    return _open(content)[1]


def inspect(content: bytes) -> Header:
    """Decode the image to the end, to be sure that it can be, and say what its header holds."""
    opened, _ = _open(content)
    return Header(
        format=str(opened.format),
        width=opened.width,
        height=opened.height,
        is_gray=opened.mode in ("1", "L", "LA", "I;16", "I"),
        is_cmyk=opened.mode == "CMYK",
        is_rotated=opened.getexif().get(_ORIENTATION_TAG, 1) != 1,
        is_progressive=bool(opened.info.get("progressive")),
    )


def sniff(content: bytes) -> str:
    """Pillow's name of the format, or '' for bytes that are no image we read."""
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        return "WEBP"
    return next((name for magic, name in _MAGIC if content.startswith(magic)), "")


def _open(content: bytes) -> tuple[Image.Image, Image.Image]:
    """(the opened image, its RGB form)"""
    kind = sniff(content)
    if not kind:
        raise ValueError(
            f"the {len(content)} bytes starting {content[:8]!r} are not a JPEG, PNG, WebP, GIF or BMP image"
        )
    with warnings.catch_warnings():
        # Pillow warns of large pictures (our own limit follows) and of odd palettes (converted as timm does).
        warnings.simplefilter("ignore")
        try:
            opened = Image.open(io.BytesIO(content), formats=(kind,))
            if opened.width * opened.height > MAX_PIXELS:
                raise ValueError(f"{opened.width}x{opened.height} pixels, the limit is {MAX_PIXELS}")
            return opened, opened.convert("RGB")
        except Exception as error:  # on damaged bytes Pillow's decoders raise whatever they stumble over
            raise ValueError(f"the {kind} image cannot be decoded ({error})") from None

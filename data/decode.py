"""Encoded bytes to pixels: the one place where image formats are known.

The format is sniffed from the bytes, never taken from a file name (ImageNet has a PNG named .JPEG), and
Pillow may open nothing else. YCbCr and gray JPEGs, nearly all images, go to libjpeg-turbo directly: a part of them
to the C module where it is built, else all of it to simplejpeg. Their pixels are Pillow's to the bit. Whatever
those refuse or warn of, and every other image, goes to Pillow: what it takes is taken, with its words refused.
EXIF orientation is ignored, as timm, torchvision and the published numbers do, unless asked for.
"""

import io
import warnings
from typing import Final, Literal, NamedTuple

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from data.crop import Box
from data.native import region_decoder

MAX_PIXELS: Final = (
    64_000_000  # from the header, before anything is decoded: a decompression bomb costs nothing
)
Denominator = Literal[1, 2, 4, 8]
_MAGIC: Final = ((b"\xff\xd8\xff", "JPEG"), (b"\x89PNG\r\n\x1a\n", "PNG"), (b"GIF8", "GIF"), (b"BM", "BMP"))
_END_OF_JPEG: Final = b"\xff\xd9"
_ORIENTATION_TAG: Final = 0x0112
_TURNS: Final = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class Header(NamedTuple):
    """What an image says about itself before its pixels are decoded."""

    format: str
    width: int
    height: int
    is_gray: bool
    is_cmyk: bool
    is_rotated: bool  # EXIF asks for another orientation
    is_progressive: bool


class Picture:
    """An encoded image: its size is known, its pixels (first frame, RGB) are decoded when and where asked for.

    ValueError with the reason, here or when pixels are asked for, where the image cannot be decoded. Damage below
    the rows that are asked for may stay unseen: `shards` decodes all of an image, and the index knows its crc32.
    """

    def __init__(self, content: bytes, *, apply_exif: bool = False) -> None:
        self._content = content
        self._pixels: NDArray[np.uint8] | None = None
        size = None if apply_exif and b"Exif" in content else _plain_jpeg_size(content)
        self._is_plain_jpeg = size is not None
        if size is None:
            self._pixels = _pillow_pixels(content, apply_exif=apply_exif)
            size = self._pixels.shape[1], self._pixels.shape[0]
        self.width, self.height = size

    def pixels(self) -> NDArray[np.uint8]:
        """All of them, uint8 [height,width,3]. They are kept, and later regions are cut from them."""
        if self._pixels is None:
            self._pixels = _jpeg_pixels(self._content)
        return self._pixels

    def region(self, box: Box) -> NDArray[np.uint8]:
        """uint8 [box.height,box.width,3], equal to that part of `pixels()`."""
        if self._pixels is None:
            found = self._decode_region(box, 1)
            if found is not None:
                return found
        return _cut(self.pixels(), box)

    def reduced_region(self, box: Box, denominator: Denominator) -> NDArray[np.uint8]:
        """About `region(box)` with 1/denominator of its width and height: a plain JPEG's blocks come smaller out of
        their transform, and the box is rounded to their pixels. Other images are returned at full size.
        """
        if denominator == 1 or not self._is_plain_jpeg:
            return self.region(box)
        box = _reduced(box, denominator)
        found = self._decode_region(box, denominator)
        return found if found is not None else _cut(_reduced_pixels(self._content, denominator), box)

    def _decode_region(self, box: Box, denominator: Denominator) -> NDArray[np.uint8] | None:
        decode = region_decoder()
        if decode is None or not self._content.endswith(_END_OF_JPEG):
            return None
        found = np.empty((box.height, box.width, 3), np.uint8)
        try:
            decode(self._content, box, denominator, found)
        except ValueError:
            return None
        return found


def native_available() -> bool:
    """Whether JPEG regions are decoded by the C module. Saves time; changes no pixel."""
    return region_decoder() is not None


def inspect(content: bytes, *, decode: bool = True) -> Header:
    """Say what the header holds and, with `decode`, read the image to the end, to be sure that it can be decoded."""
    opened = _open_header(content)
    if decode:
        _read_through(content, opened)
    return Header(
        format=str(opened.format),
        width=opened.width,
        height=opened.height,
        is_gray=opened.mode in ("1", "L", "LA", "I;16", "I"),
        is_cmyk=opened.mode == "CMYK",
        is_rotated=_orientation(opened) != 1,
        is_progressive=bool(opened.info.get("progressive")),
    )


def sniff(content: bytes) -> str:
    """Pillow's name of the format, or '' for bytes that are no image we read."""
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        return "WEBP"
    return next((name for magic, name in _MAGIC if content.startswith(magic)), "")


# ---- JPEG without Pillow


def _plain_jpeg_size(content: bytes) -> tuple[int, int] | None:
    """(width, height) of a YCbCr or gray JPEG within the limit, else None; 4 microseconds."""
    if not content.startswith(b"\xff\xd8\xff"):
        return None
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(content)
    except ValueError:
        return None
    is_plain = colours in ("YCbCr", "Gray") and width * height <= MAX_PIXELS
    return (width, height) if is_plain else None


def _jpeg_pixels(content: bytes) -> NDArray[np.uint8]:
    try:
        pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(content)
    except ValueError:  # of anything that libjpeg warns of
        return _pillow_pixels(content, apply_exif=False)
    return pixels


def _reduced_pixels(content: bytes, denominator: Denominator) -> NDArray[np.uint8]:
    """The whole image at 1/denominator of its size; sides are rounded up."""
    height, width, _, _ = simplejpeg.decode_jpeg_header(content)
    options = {
        "min_factor": denominator,
        "min_width": -(-width // denominator),
        "min_height": -(-height // denominator),
    }
    try:
        pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(content, **options)
    except ValueError:
        _pillow_pixels(content, apply_exif=False)  # whose verdict counts
        pixels = simplejpeg.decode_jpeg(content, strict=False, **options)
    return pixels


def _reduced(box: Box, denominator: Denominator) -> Box:
    """Each edge to the nearest pixel of the reduced image, which holds it: sides there are rounded up."""
    half = denominator // 2
    left, top = (box.left + half) // denominator, (box.top + half) // denominator
    right = (box.left + box.width + half) // denominator
    bottom = (box.top + box.height + half) // denominator
    return Box(left, top, right - left, bottom - top)


def _cut(pixels: NDArray[np.uint8], box: Box) -> NDArray[np.uint8]:
    return pixels[box.top : box.top + box.height, box.left : box.left + box.width]


# ---- everything else


def _pillow_pixels(content: bytes, *, apply_exif: bool) -> NDArray[np.uint8]:
    opened, image = _open(content)
    turn = _TURNS.get(_orientation(opened)) if apply_exif else None
    return np.array(image if turn is None else image.transpose(turn))  # a copy: torch wants it writable


def _orientation(opened: Image.Image) -> int:
    """EXIF's number for how the picture must be turned; 1, as it is, where there is no EXIF or it is broken."""
    try:
        return int(opened.getexif().get(_ORIENTATION_TAG, 1))
    except Exception:  # Pillow's reader of TIFF tags raises whatever it stumbles over
        return 1


def _open(content: bytes) -> tuple[Image.Image, Image.Image]:
    """(the opened image, its RGB form)"""
    opened = _open_header(content)
    return opened, _to_rgb(opened)


def _open_header(content: bytes) -> Image.Image:
    """The opened image; no pixel is decoded."""
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
        except UnidentifiedImageError:  # its own message names an object in memory
            raise ValueError(f"the {kind} image cannot be decoded (its header is damaged)") from None
        except Exception as error:  # on damaged bytes Pillow's decoders raise whatever they stumble over
            raise ValueError(f"the {kind} image cannot be decoded ({error})") from None
    if opened.width * opened.height > MAX_PIXELS:
        raise ValueError(
            f"the {kind} image cannot be decoded "
            f"({opened.width}x{opened.height} pixels, the limit is {MAX_PIXELS})"
        )
    return opened


def _to_rgb(opened: Image.Image) -> Image.Image:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return opened.convert("RGB")
        except Exception as error:
            raise ValueError(f"the {opened.format} image cannot be decoded ({error})") from None


def _read_through(content: bytes, opened: Image.Image) -> None:
    """ValueError where the pixels cannot be decoded. A plain JPEG's are decoded at an eighth of its size, which reads
    all bytes at half the cost; what libjpeg complains of then, Pillow decides.
    """
    size = _plain_jpeg_size(content)
    if size is not None:
        width, height = -(-size[0] // 8), -(-size[1] // 8)
        try:
            simplejpeg.decode_jpeg(content, min_factor=8, min_width=width, min_height=height)
            return
        except ValueError:
            pass
    _to_rgb(opened)

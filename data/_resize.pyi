import numpy as np
from numpy.typing import NDArray

def span(old_size: int, new_size: int, first: int, count: int, support: int, /) -> tuple[int, int]:
    """[start, stop) of the `old_size` pixels along one axis that outputs first .. first + count - 1 of `new_size` are
    made of. `support`: 1 bilinear, 2 bicubic.
    """

def resize(
    source: NDArray[np.uint8],
    source_box: tuple[int, int, int, int],
    old_size: tuple[int, int],
    new_size: tuple[int, int],
    window: tuple[int, int, int, int],
    support: int,
    out: NDArray[np.uint8],
    is_torch: bool = ...,
    is_mirrored: bool = ...,
    is_plain: bool = ...,
    /,
) -> None:
    """The `window` (left, top, width, height) of a picture of `old_size` (width, height) resized to `new_size`, into
    `out` (3 x height x width bytes). `source` is RGB and holds only the picture's part `source_box`; ValueError
    where the window needs more. `is_torch` takes torch's arithmetic for Pillow's (right for whole windows: its weights
    depend on all of an axis); `is_mirrored` exchanges left and right of the result; `is_plain` leaves AVX2 aside, for
    tests.
    """

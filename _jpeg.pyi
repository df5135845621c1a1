import numpy as np
from numpy.typing import NDArray

def decode(data: bytes, box: tuple[int, int, int, int], denominator: int, out: NDArray[np.uint8], /) -> None:
    """Pixels of a YCbCr or gray JPEG inside `box` (left, top, width, height), RGB, into `out` (height x width x 3
    bytes). `denominator` 2, 4 or 8: of the image reduced by that factor, where the box is counted too. ValueError
    with libjpeg's words for anything it errs at or warns of above and inside the box.
    """

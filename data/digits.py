"""Real data without a download: the handwritten digits that ship inside scikit-learn, as ImageFolder trees.

1797 scans of 8x8 grey levels, written by 43 people (Alpaydin and Kaynak, UCI "Optical Recognition of
Handwritten Digits", 1998). Small enough to train on a laptop in a minute, real enough for robustness to mean
something.
"""

import shutil
import tempfile
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from data.order import hash64
from data.shifts import SHIFTS

_TRAIN_SHARE: Final = 0.8
_WHITE: Final = 16.0  # grey levels run from 0 to 16


def write_digits(dst: str | Path, *, size: int = 32) -> None:
    """Write `dst/{train,val}/{0..9}/NNNN.png`, size x size RGB; the same split for everyone, 80/20 in each class;
    and val once more under every shift, under the same names: `dst/digits-{noise,blur,...}/{0..9}/NNNN.png`.

    Equal sizes give equal pixels. `dst` appears when all is written.
    """
    dst = Path(dst)
    if size < 8:
        raise ValueError(f"size {size} is below the scans' own 8 pixels; use 8 or more")
    if dst.exists() and (not dst.is_dir() or any(dst.iterdir())):
        raise ValueError(f"{dst} already exists and is not an empty folder; choose another one")
    images, labels = _load()
    dst.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{dst.name}.partial-", dir=dst.parent))
    try:
        folder.chmod(0o755)
        for label in range(10):
            _write_class(folder, images, np.flatnonzero(labels == label), label=label, size=size)
        folder.rename(dst)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _load() -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise ValueError(
            "the digits come from scikit-learn, which is missing: pip install -e '.[demo]'"
        ) from None
    found = load_digits()
    return found.images, found.target


def _write_class(
    folder: Path, images: NDArray[np.float64], members: NDArray[np.int64], *, label: int, size: int
) -> None:
    shuffled = members[np.argsort(hash64("digits split", members), kind="stable")]
    num_train = round(_TRAIN_SHARE * len(members))
    for split, chosen in (("train", shuffled[:num_train]), ("val", shuffled[num_train:])):
        pictures = {f"{number:04d}": _enlarge(images[number], size) for number in chosen.tolist()}
        _save(folder / split / str(label), pictures)
        if split == "val":
            for name in SHIFTS:
                _save(folder / f"digits-{name}" / str(label), _shifted(pictures, name, label))


def _shifted(pictures: dict[str, Image.Image], name: str, label: int) -> dict[str, Image.Image]:
    """The seed is made of the shift and the sample's key: neither order nor number of pictures matters."""
    shift = SHIFTS[name]
    seeds = {stem: int(hash64("digits shift", name, f"{label}/{stem}")) for stem in pictures}
    return {stem: Image.fromarray(shift(np.asarray(pictures[stem]), seeds[stem])) for stem in pictures}


def _save(folder: Path, pictures: dict[str, Image.Image]) -> None:
    folder.mkdir(parents=True)
    for stem, picture in pictures.items():
        picture.save(folder / f"{stem}.png")


def _enlarge(image: NDArray[np.float64], size: int) -> Image.Image:
    """Bicubic in floating point, so the 17 grey levels become smooth edges before they are rounded to 8
    bits.
    """
    scaled = Image.fromarray((image * (255 / _WHITE)).astype(np.float32))
    enlarged = np.asarray(scaled.resize((size, size), Image.Resampling.BICUBIC))
    return Image.fromarray(np.clip(np.rint(enlarged), 0, 255).astype(np.uint8)).convert("RGB")

"""`shards stylize`: shards to shards of the same pictures in another style, under the same keys and labels.

With paintings and weights this is Stylized-ImageNet's construction (Geirhos et al. 2019, arXiv:1811.12231): shorter
side 256 and centre 224, each picture in the style of one painting of the same size (its largest centre square), AdaIN
with alpha 1, PNG. There the painting is drawn from a generator that runs through the files; here from a hash of the
picture's key, so that no order matters. Generated textures need neither and are matched without a network, see
data/band_match.py.
"""

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Final, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from data.adain import MULTIPLE, check_weights, load_style_transfer
from data.band_match import match_bands, texture
from data.decode import Picture
from data.description import Shard
from data.index import DatasetIndex, load_index
from data.journal import Planned, digest_of, resumable_folder
from data.order import hash64, text_to_int
from data.read import ShardReader
from data.records import save_dataset
from data.shards import Sample, check_place, write_shard
from data.source import is_ignored, natural_key
from data.watch import Nobody, Watch

Pixels = NDArray[np.uint8]  # [H,W,3]
_BATCH: Final = 8
_RESIZE: Final = 256 / 224  # shorter side before the crop, of the crop
_TRIES: Final = 20  # paintings looked at for one that can be read and is large enough
_VERSION: Final = 1  # of the pictures: whoever changes them counts it up


class Style(Protocol):
    """How pictures change. Travels to helper processes."""

    @property
    def words(self) -> str:
        """For the data set's name: what was done, honestly."""

    def apply(self, pictures: Sequence[Pixels], keys: Sequence[str]) -> list[Pixels]:
        """The pictures in the styles that their keys choose."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Paintings:
    """AdaIN; `files`: paintings in an order of their own, below `folder`. Pictures must be of one size."""

    folder: Path
    files: tuple[str, ...]
    weights: Path
    seed: int = 0
    device: str = "cpu"

    @property
    def words(self) -> str:
        return f"AdaIN in the styles of {len(self.files)} paintings, seed {self.seed}"

    def apply(self, pictures: Sequence[Pixels], keys: Sequence[str]) -> list[Pixels]:
        network = load_style_transfer(self.weights, self.device)
        content = np.stack(pictures)
        style = np.stack([self.painting(key, content.shape[1]) for key in keys])
        with torch.no_grad():
            mixed = network(_to_tensor(content, self.device), _to_tensor(style, self.device))
            # torchvision's save_image, which wrote Stylized-ImageNet, rounds so.
            found = mixed.mul(255).add(0.5).clamp(0, 255).to("cpu", torch.uint8)
        return list(found.permute(0, 2, 3, 1).numpy())

    def painting(self, key: str, size: int) -> Pixels:
        """The painting of a key, size x size. One that is damaged or smaller is passed over, the same for everyone."""
        for attempt in range(_TRIES):
            number = hash64(self.seed, "painting", text_to_int(key.encode()), attempt)
            pixels = _read_painting(self.folder / self.files[int(number) % len(self.files)])
            if pixels is not None and min(pixels.shape[:2]) >= size:
                return _square(pixels, size)
        raise ValueError(
            f"{self.folder}: {_TRIES} paintings in a row are no images of at least {size}x{size}; use others"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Textures:
    """Bands matched to `number` generated textures."""

    number: int
    seed: int = 0

    @property
    def words(self) -> str:
        return f"bands matched to {self.number} generated textures (no AdaIN), seed {self.seed}"

    def apply(self, pictures: Sequence[Pixels], keys: Sequence[str]) -> list[Pixels]:
        return [self._match(picture, key) for picture, key in zip(pictures, keys, strict=True)]

    def _match(self, picture: Pixels, key: str) -> Pixels:
        hashed = hash64(self.seed, "texture", text_to_int(key.encode()))
        height, width = picture.shape[:2]
        return match_bands(picture, texture(int(hashed) % self.number, (height, width), int(hashed)))


class Part(NamedTuple):
    """A shard to write: `number` of the source."""

    number: int


def find_paintings(folder: Path, weights: Path, *, seed: int, device: str) -> Paintings:
    """Every file below `folder` but hidden and system files. FileNotFoundError where there is none, or no weights."""
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {folder}; give a folder of paintings")
    check_weights(weights)
    paths = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    files = sorted((str(path) for path in paths if not any(map(is_ignored, path.parts))), key=natural_key)
    if not files:
        raise FileNotFoundError(f"no files in {folder}; give a folder of paintings")
    return Paintings(folder=folder, files=tuple(files), weights=weights, seed=seed, device=device)


def stylize(
    src: str | Path,
    dst: str | Path,
    style: Style,
    *,
    size: int | None,
    num_workers: int = 0,
    watch: Watch | None = None,
) -> DatasetIndex:
    """Write the shards of `src`, styled, to `dst`: pictures of size x size (None: of their own size), lossless.

    Equal settings give equal bytes on one kind of machine. `dst` appears when all is done; an interrupted call leaves
    its whole shards, and the same call goes on with them. ValueError for a `dst` with content.
    """
    src, dst = Path(src), Path(dst)
    if isinstance(style, Paintings) and (size is None or size < 2 * MULTIPLE or size % MULTIPLE):
        raise ValueError(
            f"size {size} must be a multiple of {MULTIPLE} from {2 * MULTIPLE}; the paper's is 224"
        )
    if size is not None and size < 1:
        raise ValueError(f"size {size} must be at least 1")
    check_place(dst)
    index = load_index(src)
    planned = [
        Planned(shard.name, digest_of(_VERSION, style, size, shard.sha256), shard.num_samples, Part(number))
        for number, shard in enumerate(index.shards)
    ]
    with resumable_folder(dst) as journal:
        shards = journal.write(
            planned,
            partial(_write_part, root=src, style=style, size=size),
            num_workers=num_workers,
            watch=watch or Nobody(),
        )
        about = index.description
        save_dataset(
            journal.folder,
            shards,
            classes=about.classes,
            split=about.split,
            dataset=f"{about.dataset}, {style.words}",
        )
    return load_index(dst)


def _write_part(path: Path, part: Part, *, root: Path, style: Style, size: int | None) -> Shard:
    index = load_index(root)
    reader = ShardReader(index)
    try:
        return write_shard(path, _samples(index, reader, part.number, style, size))
    finally:
        reader.close()


def _samples(
    index: DatasetIndex, reader: ShardReader, number: int, style: Style, size: int | None
) -> Iterator[Sample]:
    start = sum(shard.num_samples for shard in index.shards[:number])
    keys = range(start, start + index.shards[number].num_samples)
    for first in range(0, len(keys), _BATCH):
        chunk = keys[first : first + _BATCH]
        names = [index.name(key) for key in chunk]
        pictures = [read_picture(reader, key, size) for key in chunk]
        for key, name, pixels in zip(chunk, names, style.apply(pictures, names), strict=True):
            yield Sample(name, index.label(key), _encode(pixels), source=name)


def read_picture(reader: ShardReader, key: int, size: int | None) -> Pixels:
    """The picture of a key: with `size` its centre, the shorter side scaled to 256/224 of it; else as it is."""
    try:
        pixels = Picture(reader.read(key)).pixels()
    except ValueError as error:
        raise ValueError(f"{reader.index.root}: {error}") from None
    if size is None or pixels.shape[:2] == (size, size):
        return pixels
    height, width = pixels.shape[:2]
    shorter = max(size, round(size * _RESIZE))
    scale = shorter / min(height, width)
    image = Image.fromarray(pixels).resize(
        (max(shorter, int(width * scale)), max(shorter, int(height * scale))), Image.Resampling.BILINEAR
    )
    left, top = round((image.width - size) / 2), round((image.height - size) / 2)
    return np.asarray(image.crop((left, top, left + size, top + size)))


@lru_cache(maxsize=64)
def _read_painting(path: Path) -> Pixels | None:
    try:
        return Picture(path.read_bytes()).pixels()
    except ValueError:
        return None


def _square(pixels: Pixels, size: int) -> Pixels:
    """The largest centre square, made smaller."""
    height, width = pixels.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    image = Image.fromarray(pixels[top : top + side, left : left + side])
    return np.asarray(image.resize((size, size), Image.Resampling.LANCZOS))


def _to_tensor(pixels: Pixels, device: str) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(pixels)).to(device).permute(0, 3, 1, 2).float() / 255


def _encode(pixels: Pixels) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", compress_level=4)
    return file.getvalue()

"""Images corrupted on their way to the model: `--suite c-on-the-fly`, and what `shards corrupt` writes.

The random numbers of an image follow from its key alone (and the seed of the whole set, 0 unless said otherwise). So
both ways, every device, machine, batch size and order make the same pixels.
"""

from collections.abc import Callable

from torch import Tensor

from data.batch import Batch
from robust.corruptions.apply import corrupt
from robust.corruptions.jpeg import codec
from robust.stream import question_seed

_ODD = 0x9E3779B97F4A7C15 - (
    1 << 64
)  # of splitmix64; keys are small numbers, and streams of neighbours must differ


def corrupted(image_f32: Tensor, key_seed: Tensor, kind: str, severity: int) -> Tensor:
    """image (N,3,H,W) in [0, 1] and `key_seeds` int64 [N], on one device -> the images, corrupted, in whole 255ths.

    One graph per kind, severity and shape; nothing is read back. `kind` is of robust.list_corruptions(), severity 1
    to 5, else ValueError. Padding slots (key -1) get some corruption, too.
    """
    return corrupt(image_f32, kind, severity, seed=key_seed)


def key_seeds(key: Tensor, *, seed: int = 0) -> Tensor:
    """int64 [N] of keys int64 [N], wherever they are."""
    return key * _ODD + question_seed(seed, 0, "corrupted", 0)


def change_of(kind: str, severity: int, *, seed: int = 0) -> Callable[[Tensor, Batch], Tensor]:
    """A `change` of the evaluator for one part of ImageNet-C or ImageNet-C-bar."""

    def change(image: Tensor, batch: Batch) -> Tensor:
        return corrupted(image, key_seeds(batch.key.to(image.device), seed=seed), kind, severity)

    return change


def notes_of(kind: str, device: str) -> tuple[str, ...]:
    """What a result must say of how its images were made."""
    notes = ["made on the fly: not JPEG-compressed, unlike the published files"]
    if kind == "frost":
        notes.append("frost is generated, not the original's photographs")
    if kind == "jpeg_compression":
        notes.append(f"compressed by {codec(device)}")
    return tuple(notes)

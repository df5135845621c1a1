"""`shards corrupt`: shards to shards of the same pictures corrupted, a folder OUT/KIND/SEVERITY each, as the suites
`c`, `c-extra` and `c-bar` want them.

The pictures are ImageNet-C's: shorter side 256, centre 224 (or --size), corrupted, JPEG of quality 85. What is whole is
kept, so the same command goes on after an interruption.
"""

import argparse
import io
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from data.description import INDEX_FILE, Shard
from data.index import DatasetIndex, load_index
from data.info import info
from data.journal import Planned, digest_of, resumable_folder
from data.read import ShardReader
from data.records import save_dataset
from data.shards import Sample, check_place, write_shard
from data.stylize import read_picture
from data.watch import Watch
from engine.cli import Launch
from engine.corrupted import corrupted, key_seeds
from robust.corruptions.jpeg import codec
from robust.corruptions.names import GROUPS, SEVERITIES, check_kind, check_severity

PAPER_SIZE: Final = 224
_QUALITY: Final = 85  # of the published files
_BATCH: Final = 32
_VERSION: Final = 1  # of the pictures: whoever changes them counts it up


class Part(NamedTuple):
    """What a helper process needs for a shard: `number` of the source."""

    number: int
    kind: str
    severity: int
    size: int
    seed: int
    device: str


def write_corrupted(
    arguments: argparse.Namespace, launch: Launch, src: Path, dst: Path, *, watch: Watch
) -> dict[str, Any]:
    """Facts by folder. ValueErrors name the flag."""
    size = PAPER_SIZE if arguments.size is None else arguments.size
    if size < 32:
        raise ValueError(f"--size {size}: corruptions need images of at least 32 px")
    kinds, severities = kinds_of(arguments.kinds), severities_of(arguments.severities)
    device = "cuda" if launch.backend in ("auto", "cuda") and torch.cuda.is_available() else "cpu"
    workers = arguments.workers or 0
    if device != "cpu" and workers:
        raise ValueError(f"--workers {workers}: one process feeds the GPU; drop it, or start with --cpu")
    index, facts, reused = load_index(src), {}, []
    for kind in kinds:
        for severity in severities:
            name = f"{kind}/{severity}"
            part = Part(0, kind, severity, size, arguments.seed, device)
            if _is_there(index, dst / name, part):
                reused.append(name)
            else:
                _write(index, dst / name, part, num_workers=workers, watch=watch)
            facts[name] = dict(info(dst / name))
            state = "reusing" if name in reused else "made   "
            print(f"{state} {dst / name}: {facts[name]['num_samples']} images", flush=True)
    return {"folders": facts, "reused": reused}


def kinds_of(text: str | None) -> tuple[str, ...]:
    """`--kinds`: names of kinds and groups, comma-separated; ImageNet-C's 15 unless said otherwise."""
    kinds: dict[str, None] = {}
    for word in (text or "common").split(","):
        if word in GROUPS:
            kinds.update(dict.fromkeys(GROUPS[word]))
        else:
            check_kind(word)
            kinds[word] = None
    return tuple(kinds)


def severities_of(text: str | None) -> tuple[int, ...]:
    """`--severities`: comma-separated; all five unless said otherwise."""
    if text is None:
        return SEVERITIES
    words = [word.strip() for word in text.split(",")]
    for word in words:
        check_severity(int(word) if word.isdecimal() else word)  # type: ignore[arg-type]
    return tuple(sorted({int(word) for word in words}))


def _words(index: DatasetIndex, part: Part) -> str:
    """The data set's name: what was done, honestly."""
    made = (
        f"{index.description.dataset}, {part.kind} severity {part.severity}, {part.size} px, seed {part.seed}"
    )
    return f"{made}, generated frost" if part.kind == "frost" else made


def _is_there(index: DatasetIndex, dst: Path, part: Part) -> bool:
    """Whether an earlier call has written it. ValueError where something else is."""
    if not (dst / INDEX_FILE).exists():
        check_place(dst)
        return False
    there, source = load_index(dst).description, index.description
    if (there.dataset, there.key_hash, there.classes) == (
        _words(index, part),
        source.key_hash,
        source.classes,
    ):
        return True
    raise ValueError(
        f"{dst} holds other images ({there.dataset}) than this command makes ({_words(index, part)}); remove it, or "
        "choose another OUT"
    )


def _write(index: DatasetIndex, dst: Path, part: Part, *, num_workers: int, watch: Watch) -> None:
    maker = codec(part.device) if part.kind == "jpeg_compression" else part.device
    planned = [
        Planned(
            shard.name,
            digest_of(_VERSION, part[1:5], maker, shard.sha256),
            shard.num_samples,
            part._replace(number=number),
        )
        for number, shard in enumerate(index.shards)
    ]
    with resumable_folder(dst) as journal:
        shards = journal.write(
            planned, partial(_write_part, root=index.root), num_workers=num_workers, watch=watch
        )
        about = index.description
        save_dataset(
            journal.folder, shards, classes=about.classes, split=about.split, dataset=_words(index, part)
        )


def _write_part(path: Path, part: Part, *, root: str | Path) -> Shard:
    index = load_index(root)
    reader = ShardReader(index)
    try:
        return write_shard(path, _samples(index, reader, part), decode=False)
    finally:
        reader.close()


def _samples(index: DatasetIndex, reader: ShardReader, part: Part) -> Iterator[Sample]:
    start = sum(shard.num_samples for shard in index.shards[: part.number])
    keys = range(start, start + index.shards[part.number].num_samples)
    for first in range(0, len(keys), _BATCH):
        chunk = keys[first : first + _BATCH]
        pictures = np.stack([read_picture(reader, key, part.size) for key in chunk])
        image = torch.from_numpy(pictures).to(part.device).permute(0, 3, 1, 2).to(torch.float32) / 255
        seeds = key_seeds(torch.tensor(list(chunk), device=part.device), seed=part.seed)
        changed = corrupted(image, seeds, part.kind, part.severity)
        for key, picture in zip(chunk, _to_pictures(changed), strict=True):
            yield Sample(index.name(key), index.label(key), _encode(picture), source=index.name(key))


def _to_pictures(image: Tensor) -> np.ndarray[Any, np.dtype[np.uint8]]:
    levels = (image * 255).round().to(torch.uint8)
    return levels.permute(0, 2, 3, 1).contiguous().cpu().numpy()


def _encode(pixels: np.ndarray[Any, np.dtype[np.uint8]]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=_QUALITY, optimize=True)
    return file.getvalue()

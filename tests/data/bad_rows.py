"""What the tests of bad inputs share: good shards, ways to damage them, and readers of all kinds."""

import json
import os
import zlib
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import torch

from data.bad import BadSample
from data.batch import Batch
from data.draws import MixSettings
from data.index import DatasetIndex, load_index
from data.loader import OnBad, eval_loader, train_loader
from data.order import Cursor, permutation
from data.shards import index_existing
from data.transform import AugmentSettings, EvalTransform
from tests.data.trees import content, encode, write_tar

SIZE, BATCH = 16, 4
READERS = [("train", 0), ("train", 2), ("eval", 0), ("eval", 2)]  # (loader, workers)
every_reader = pytest.mark.parametrize(("kind", "num_workers"), READERS)


def good(count: int, *, start: int = 0) -> dict[str, bytes]:
    """Members of `count` images of 16x16 with labels 0, 1, 0, ..."""
    members: dict[str, bytes] = {}
    for number in range(start, start + count):
        members[f"{number:03d}.jpg"] = encode(number, size=(SIZE, SIZE))
        members[f"{number:03d}.cls"] = str(number % 2).encode()
    return members


def shards(folder: Path, *, count: int = 12, per_shard: int = 4) -> DatasetIndex:
    """Tars of good images and their index."""
    for number in range(count // per_shard):
        write_tar(folder / f"t-{number}.tar", good(per_shard, start=number * per_shard))
    return index_existing(folder)


def read(
    index: DatasetIndex,
    kind: str,
    num_workers: int,
    on_bad: OnBad | None = None,
    resize: EvalTransform | None = None,
) -> list[Batch]:
    """All batches of an epoch, or of an evaluation."""
    if kind == "eval":
        return list(
            eval_loader(
                index, keys=None, global_batch=BATCH, rank=0, world_size=1, image_size=SIZE,
                resize=resize or EvalTransform(mode="none"), num_workers=num_workers, seed=0, on_bad=on_bad,
            )
        )  # fmt: skip
    batches = train_loader(
        index, seed=0, global_batch=BATCH, rank=0, world_size=1, start=Cursor(0, 0), num_epochs=1, image_size=SIZE,
        transform_of_epoch=[AugmentSettings()], mix_of_epoch=[MixSettings()], num_workers=num_workers, on_bad=on_bad,
    )  # fmt: skip
    return [batch for _, batch in batches]


def column(batches: Sequence[Batch], name: str) -> torch.Tensor:
    """A field of all batches without padding."""
    mask = torch.cat([batch.mask for batch in batches])
    return torch.cat([getattr(batch, name) for batch in batches])[mask]


def is_whole(index: DatasetIndex, batches: Sequence[Batch]) -> bool:
    """Each sample once, with its label."""
    keys = column(batches, "key").tolist()
    labels = column(batches, "label").tolist()
    return sorted(keys) == list(range(index.num_samples)) and labels == [index.label(key) for key in keys]


def refuse_build(folder: Path, reason: str) -> None:
    before = content(folder)
    with pytest.raises(ValueError, match=reason) as caught:
        index_existing(folder)
    assert "\n" not in str(caught.value)
    assert content(folder) == before, "nothing is left of an index that was not made"


def overwrite(index: DatasetIndex, key: int, content: bytes) -> DatasetIndex:
    """Put other bytes in the place of an image that has at least as many, and let the index agree with them."""
    shard, row = index.locate(key)
    path = index.root / index.shards[shard].name
    records = np.load(f"{path}.idx.npy")
    assert len(content) <= records["size"][row]
    with path.open("r+b") as file:
        os.pwrite(file.fileno(), content, int(records["offset"][row]))
    records["size"][row], records["crc32"][row] = len(content), zlib.crc32(content)
    np.save(f"{path}.idx.npy", records)
    return agree(index.root, shard)


def agree(root: Path, shard: int) -> DatasetIndex:
    """Let index.json agree with a shard and its records, as the index of a careless program would."""
    description = json.loads((root / "index.json").read_text())
    entry = description["shards"][shard]
    path = root / entry["name"]
    entry["sha256"] = sha256(path.read_bytes()).hexdigest()
    for kind, name in (("idx", "index_sha256"), ("keys", "keys_sha256")):
        entry[name] = sha256(Path(f"{path}.{kind}.npy").read_bytes()).hexdigest()
    (root / "index.json").write_text(json.dumps(description))
    return load_index(root)


def assert_policy(index: DatasetIndex, bad: int, reason: str) -> None:
    """A single bad sample: it ends the reading with its name, or it is replaced (training) or kept as a black image
    (evaluation), and is told of. No batch is ever shorter.
    """
    name = index.name(bad)
    order = permutation(index.num_samples, seed=0, epoch=0).tolist()
    place = order.index(bad)
    replaced = list(order)
    replaced[place] = order[place + 1] if place + 1 < len(order) else order[place - 1]
    for kind, num_workers in READERS:
        with pytest.raises(
            BadSample, match=rf"^bad sample '{name}' in shard t-\d\.tar: .*{reason}"
        ) as caught:
            read(index, kind, num_workers)
        assert "\n" not in str(caught.value)
        said: list[BadSample] = []
        batches = read(index, kind, num_workers, said.extend)
        assert [sample.key for sample in said] == [name]
        assert {len(batch.key) for batch in batches} == {BATCH}
        keys = column(batches, "key").tolist()
        if kind == "train":
            assert keys == replaced
        else:
            assert is_whole(index, batches)
            black = [int(image.max()) == 0 for image in column(batches, "image")]
            assert black == [key == bad for key in keys]

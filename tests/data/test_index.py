"""An index that does not fit its shards is refused with the shard, the value and the remedy."""

import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.index import RECORD, DatasetIndex, load_index
from data.shards import make


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for label in ("cat", "dog"):
        (tmp_path / "tree" / label).mkdir(parents=True)
        for number in range(4):
            Image.new("RGB", (8, 8), (number, 0, 0)).save(tmp_path / "tree" / label / f"{number}.png")
    make(tmp_path / "tree", tmp_path / "root", split="train", samples_per_shard=3)
    return tmp_path / "root"


def edit(root: Path, **changes: object) -> None:
    path = root / "index.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def rewrite_records(root: Path, **changes: int) -> None:
    path = root / "train-000001.tar.idx.npy"
    records = np.load(path)
    for field, value in changes.items():
        records[field][1] = value
    np.save(path, records)


def test_positions_run_over_all_shards(root: Path) -> None:
    index = load_index(root)
    assert [index.locate(key) for key in range(8)] == [
        (0, 0),
        (0, 1),
        (0, 2),
        (1, 0),
        (1, 1),
        (1, 2),
        (2, 0),
        (2, 1),
    ]
    assert len({index.name(key) for key in range(8)}) == 8
    for key in (-1, 8):
        with pytest.raises(IndexError, match=r"outside 0..7"):
            index.locate(key)


def test_the_record_layout_is_fixed() -> None:
    """Arrays on disk have this layout; a change needs a new schema version."""
    assert RECORD.descr == [
        ("offset", "<u8"),
        ("size", "<u4"),
        ("label", "<i4"),
        ("width", "<u2"),
        ("height", "<u2"),
        ("flags", "|u1"),
        ("crc32", "<u4"),
    ]
    assert RECORD.itemsize == 25


def test_dataset_id_depends_on_content_and_not_on_the_program(root: Path) -> None:
    before = load_index(root).dataset_id
    edit(root, created_by="somebody else")
    assert load_index(root).dataset_id == before
    edit(root, classes=["cat", "cow"])
    assert load_index(root).dataset_id != before


def test_index_travels_as_a_path(root: Path) -> None:
    index = load_index(root)
    packed = pickle.dumps(index)
    assert len(packed) < 500
    copy = pickle.loads(packed)
    assert isinstance(copy, DatasetIndex)
    assert copy.name(5) == index.name(5)
    edit(root, dataset="changed")
    with pytest.raises(ValueError, match="changed while it was in use"):
        pickle.loads(packed)


def test_missing_index_names_the_command(root: Path) -> None:
    (root / "index.json").unlink()
    with pytest.raises(FileNotFoundError, match="shards index"):
        load_index(root)


def test_missing_shard(root: Path) -> None:
    (root / "train-000001.tar").unlink()
    with pytest.raises(FileNotFoundError, match=r"shard train-000001.tar is missing"):
        load_index(root)


def test_shard_of_another_size(root: Path) -> None:
    os.truncate(root / "train-000001.tar", 1024)
    with pytest.raises(ValueError, match=r"shard train-000001.tar has 1024 bytes but the index says 10240"):
        load_index(root)


def test_array_of_another_shard(root: Path) -> None:
    (root / "train-000002.tar.idx.npy").replace(root / "train-000001.tar.idx.npy")
    with pytest.raises(ValueError, match=r"train-000001.tar.idx.npy holds \(2,\) .* has 3 samples"):
        load_index(root)


def test_array_of_another_kind(root: Path) -> None:
    np.save(root / "train-000001.tar.idx.npy", np.arange(3))
    with pytest.raises(ValueError, match="records of int64"):
        load_index(root)


def test_pickled_array_is_not_opened(root: Path) -> None:
    np.save(root / "train-000001.tar.idx.npy", np.array([{}, {}, {}], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="cannot be read"):
        load_index(root)


@pytest.mark.parametrize("suffix", ["idx", "keys"])
def test_missing_array(root: Path, suffix: str) -> None:
    (root / f"train-000001.tar.{suffix}.npy").unlink()
    with pytest.raises(FileNotFoundError, match=rf"train-000001.tar.{suffix}.npy is missing"):
        load_index(root).name(4)


@pytest.mark.parametrize("label", [-1, 2, 1000000])
def test_label_out_of_range(root: Path, label: int) -> None:
    rewrite_records(root, label=label)
    with pytest.raises(ValueError, match=rf"shard train-000001.tar holds label {label}, outside 0..1"):
        load_index(root)


@pytest.mark.parametrize("offset", [10240, 2**63, 2**64 - 1])
def test_offset_past_the_end(root: Path, offset: int) -> None:
    rewrite_records(root, offset=offset)
    with pytest.raises(ValueError, match="points past the shard's 10240 bytes"):
        load_index(root)


def test_other_schema_version(root: Path) -> None:
    edit(root, version=2)
    with pytest.raises(ValueError, match="schema version 2, this program reads version 1"):
        load_index(root)


@pytest.mark.parametrize(
    "changes", [{"num_samples": 9}, {"surprise": 1}, {"shards": [{"name": "x"}]}, {"shards": 3}]
)
def test_inconsistent_description(root: Path, changes: dict[str, object]) -> None:
    edit(root, **changes)
    with pytest.raises(ValueError, match=r"index.json: .*; write it again"):
        load_index(root)


def test_broken_json(root: Path) -> None:
    (root / "index.json").write_text('{"version":1,')
    with pytest.raises(ValueError, match=r"index.json: .*; write it again"):
        load_index(root)


def test_shard_names_cannot_leave_the_folder(root: Path) -> None:
    shards = json.loads((root / "index.json").read_text())["shards"]
    shards[0]["name"] = "../train-000000.tar"
    edit(root, shards=shards)
    with pytest.raises(ValueError, match="is not a plain file name"):
        load_index(root)


def test_a_shard_named_twice(root: Path) -> None:
    shards = json.loads((root / "index.json").read_text())["shards"]
    edit(root, shards=[*shards, shards[0]], num_samples=11)
    with pytest.raises(ValueError, match="it names a shard twice"):
        load_index(root)


def test_records_that_changed(root: Path) -> None:
    """Whatever is in them, and still in range."""
    rewrite_records(root, label=1 - int(load_index(root).label(4)))
    with pytest.raises(ValueError, match=r"train-000001.tar.idx.npy differs from what index.json says of it"):
        load_index(root)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts descriptors in /proc")
def test_more_shards_than_a_process_may_have_files_open(root: Path) -> None:
    """ImageNet has 1281 of 2 arrays each; usual limit: 1024."""
    before = len(list(Path("/proc/self/fd").iterdir()))
    index = load_index(root)
    assert [index.name(key) for key in range(8)]
    assert index.labels().sum() == 4
    assert len(list(Path("/proc/self/fd").iterdir())) == before

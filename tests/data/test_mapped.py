"""Mapped arrays are those that numpy loads, without its descriptors."""

import gc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from data.index import RECORD
from data.mapped import map_array


@pytest.mark.parametrize(
    "array",
    [
        np.arange(1000),
        np.array([b"a/b", b"long/" * 50]),
        np.zeros(7, RECORD),
        np.zeros(0, RECORD),
        np.zeros(0, "S1"),
    ],
    ids=["int64", "names", "records", "no records", "no names"],
)
def test_equal_to_load(tmp_path: Path, array: NDArray[Any]) -> None:
    np.save(tmp_path / "a.npy", array)
    found = map_array(tmp_path / "a.npy")
    assert found.dtype == array.dtype
    assert np.array_equal(found, array)
    with pytest.raises(ValueError, match="read-only"):
        found[:1] = found[:1]
    with pytest.raises(ValueError, match="cannot set WRITEABLE"):
        found.flags.writeable = True


def test_a_part_keeps_the_whole(tmp_path: Path) -> None:
    """And nothing else does."""

    def is_mapped() -> bool:
        return str(tmp_path / "a.npy") in Path("/proc/self/maps").read_text()

    np.save(tmp_path / "a.npy", np.arange(100_000))
    part = map_array(tmp_path / "a.npy")[5::7]
    (tmp_path / "a.npy").replace(tmp_path / "b.npy")
    (tmp_path / "b.npy").replace(tmp_path / "a.npy")
    gc.collect()
    assert part.sum() == np.arange(100_000)[5::7].sum()
    if not Path("/proc/self/maps").exists():
        return
    assert is_mapped()
    del part
    gc.collect()
    assert not is_mapped()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda raw: raw[:-1], "bytes for 10 entries of 8"),
        (lambda raw: raw + b"0", "bytes for 10 entries of 8"),
        (lambda raw: b"PK" + raw[2:], "magic string"),
        (lambda raw: raw[:30], "EOF"),
        (lambda raw: b"", "EOF"),
        (lambda raw: raw[:6] + b"\x09\x00" + raw[8:], r"version \(9, 0\)"),
    ],
)
def test_what_is_no_array(tmp_path: Path, change: Any, reason: str) -> None:
    np.save(tmp_path / "a.npy", np.arange(10))
    (tmp_path / "a.npy").write_bytes(change((tmp_path / "a.npy").read_bytes()))
    with pytest.raises(ValueError, match=reason):
        map_array(tmp_path / "a.npy")


def test_what_is_no_list_of_plain_values(tmp_path: Path) -> None:
    np.save(tmp_path / "objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    np.save(tmp_path / "table.npy", np.zeros((2, 2)))
    for name, reason in (("objects", "Python objects"), ("table", "is no list")):
        with pytest.raises(ValueError, match=reason):
            map_array(tmp_path / f"{name}.npy")
    with pytest.raises(FileNotFoundError):
        map_array(tmp_path / "none.npy")

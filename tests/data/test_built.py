"""An index where there was none, and how little it takes to open one."""

import subprocess
import sys
from pathlib import Path

import pytest

from data.cache import Cache
from data.index import DatasetIndex, load_index
from data.shards import make
from tests.data.remote_cache import contents


def test_opening_an_index_is_light(noise: DatasetIndex) -> None:
    """`list` opens indexes and must answer at once."""
    program = f"import sys; sys.path.insert(0, {str(Path(__file__).parents[2])!r})\n"
    program += f"from data.index import load_index; load_index({str(noise.root)!r})\n"
    program += "print({'torch', 'fsspec', 'timm'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert done.stdout == "set()\n"


def test_an_index_is_built_only_when_asked(
    noise: DatasetIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "bare"
    folder.mkdir()
    for shard in noise.shards:
        (folder / shard.name).write_bytes((noise.root / shard.name).read_bytes())
    cache = Cache.default(tmp_path / "cache")
    with pytest.raises(FileNotFoundError, match="shards index"):
        load_index(folder, cache=cache)
    monkeypatch.setattr("data.built.os.access", lambda path, mode: False)  # root may write anywhere
    before = set(folder.iterdir())
    index = load_index(folder, cache=cache, build=True)
    assert contents(index) == contents(noise)
    assert set(folder.iterdir()) == before, "a folder that is read-only stays as it is"
    built = (index.root / "index.json").stat().st_mtime_ns
    assert (load_index(folder, cache=cache, build=True).root / "index.json").stat().st_mtime_ns == built
    monkeypatch.undo()
    assert load_index(folder, cache=cache, build=True).root == folder
    assert load_index(folder).dataset_id == index.dataset_id
    make_again = make(noise.root.parent / "tree", tmp_path / "again", split="train", samples_per_shard=10)
    assert load_index(make_again.root, cache=cache, build=True).dataset_id == noise.dataset_id

"""Interrupted packing: whole shards stay, the same call goes on, and the result is that of one call."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from data.index import load_index
from data.journal import partial_folder
from data.records import shard_workers
from data.shards import make, write_shard
from tests.data.trees import content, encode, write_images

ROOT = Path(__file__).parents[2]


class Witness:
    """A watch that remembers, and may stop the work behind some images."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.stop_at, self.said, self.steps = stop_at, list[str](), list[tuple[int, int]]()

    def say(self, text: str) -> None:
        self.said.append(text)

    def advance(self, done: int, total: int, unit: str = "images") -> None:
        self.steps.append((done, total))
        if self.stop_at is not None and done >= self.stop_at:
            raise KeyboardInterrupt


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return write_images(tmp_path / "tree", {f"c{label}": 8 for label in range(5)})


@pytest.fixture
def packed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the shards that were written."""
    names: list[str] = []

    def spy(path: Path, *args: object, **named: object) -> object:
        names.append(path.name)
        return write_shard(path, *args, **named)  # type: ignore[arg-type]

    monkeypatch.setattr("data.shards.write_shard", spy)
    return names


def names_of(*numbers: int) -> list[str]:
    return [f"train-{number:06d}.tar" for number in numbers]


def pack(tree: Path, dst: Path, **named: object) -> None:
    make(tree, dst, split="train", samples_per_shard=8, **named)  # type: ignore[arg-type]


def interrupt(tree: Path, dst: Path) -> str:
    """Ctrl-C behind the second of five shards; what it says."""
    with pytest.raises(KeyboardInterrupt) as caught:
        pack(tree, dst, watch=Witness(stop_at=16))
    return str(caught.value)


def test_ctrl_c_keeps_whole_shards_and_says_how_to_go_on(
    tree: Path, tmp_path: Path, packed: list[str]
) -> None:
    pack(tree, tmp_path / "whole")
    packed.clear()
    said = interrupt(tree, tmp_path / "s")
    assert said == "2 of 5 shards are whole and stay in .s.partial; the same command goes on from there"
    assert not (tmp_path / "s").exists()
    watch = Witness()
    packed.clear()
    pack(tree, tmp_path / "s", watch=watch)
    assert packed == names_of(2, 3, 4)
    assert watch.said == ["going on: 2 of 5 shards are there already"]
    assert watch.steps == [(8, 40), (16, 40), (24, 40), (32, 40), (40, 40)]
    assert content(tmp_path / "s") == content(tmp_path / "whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["s", "tree", "whole"]


def test_before_the_first_shard_nothing_stays(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*args: object, **named: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("data.shards.to_row", stop)
    with pytest.raises(KeyboardInterrupt) as caught:
        pack(tree, tmp_path / "s")
    assert str(caught.value) == "no shard was whole yet, nothing stays"
    assert [path.name for path in tmp_path.iterdir()] == ["tree"]


@pytest.mark.parametrize("damage", ["tar", "tar cut", "idx", "keys gone"])
def test_a_kept_shard_is_checked(tree: Path, tmp_path: Path, packed: list[str], damage: str) -> None:
    interrupt(tree, tmp_path / "s")
    path = partial_folder(tmp_path / "s") / "train-000001.tar"
    if damage == "tar cut":
        os.truncate(path, 1024)
    elif damage == "keys gone":
        Path(f"{path}.keys.npy").unlink()
    else:
        path = path if damage == "tar" else Path(f"{path}.idx.npy")
        whole = bytearray(path.read_bytes())
        whole[700 if damage == "tar" else 130] ^= 1
        path.write_bytes(whole)
    packed.clear()
    pack(tree, tmp_path / "s")
    assert packed == names_of(1, 2, 3, 4)
    pack(tree, tmp_path / "whole")
    assert content(tmp_path / "s") == content(tmp_path / "whole")


def test_only_shards_of_changed_images_are_made_again(tree: Path, tmp_path: Path, packed: list[str]) -> None:
    interrupt(tree, tmp_path / "s")
    journal = (partial_folder(tmp_path / "s") / "journal.jsonl").read_text().splitlines()
    assert [json.loads(line)["shard"]["name"] for line in journal] == names_of(0, 1)
    inside = load_names(partial_folder(tmp_path / "s") / "train-000000.tar.keys.npy")
    path = tree / f"{inside[0]}.jpg"
    path.write_bytes(encode(77))
    packed.clear()
    pack(tree, tmp_path / "s")
    assert packed == names_of(0, 2, 3, 4)
    pack(tree, tmp_path / "whole")
    assert content(tmp_path / "s") == content(tmp_path / "whole")


def load_names(path: Path) -> list[str]:
    return [bytes(name).decode() for name in np.load(path)]


def test_other_settings_reuse_nothing(tree: Path, tmp_path: Path, packed: list[str]) -> None:
    interrupt(tree, tmp_path / "s")
    packed.clear()
    pack(tree, tmp_path / "s", seed=1)
    assert packed == names_of(0, 1, 2, 3, 4)
    interrupt(tree, tmp_path / "t")
    packed.clear()
    pack(tree, tmp_path / "t", decode=False)
    assert packed == names_of(0, 1, 2, 3, 4), "what was decoded once is not what was not"


def test_a_journal_that_was_cut_counts_up_to_the_cut(tree: Path, tmp_path: Path, packed: list[str]) -> None:
    interrupt(tree, tmp_path / "s")
    path = partial_folder(tmp_path / "s") / "journal.jsonl"
    os.truncate(path, path.stat().st_size - 20)
    packed.clear()
    with pytest.raises(KeyboardInterrupt):
        pack(tree, tmp_path / "s", watch=Witness(stop_at=24))
    assert packed == names_of(1, 2)
    packed.clear()
    pack(tree, tmp_path / "s")
    assert packed == names_of(3, 4), "lines behind the cut one are read"


def test_a_bad_image_costs_its_shard_alone(tree: Path, tmp_path: Path, packed: list[str]) -> None:
    pack(tree, tmp_path / "whole")
    last = load_index(tmp_path / "whole").name(39)
    path = tree / f"{last}.jpg"
    good, facts = path.read_bytes(), path.stat()
    path.write_bytes(good[:-300])
    says = rf"{last}.jpg: .*cannot be decoded.*\(4 of 5 shards are whole and stay in .s.partial; the same"
    with pytest.raises(ValueError, match=says):
        pack(tree, tmp_path / "s")
    path.write_bytes(good)
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    packed.clear()
    pack(tree, tmp_path / "s")
    assert packed == names_of(4)
    assert content(tmp_path / "s") == content(tmp_path / "whole")


def test_two_calls_at_once(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refused: list[str] = []

    class Rival(Witness):
        def advance(self, done: int, total: int, unit: str = "images") -> None:
            with pytest.raises(ValueError, match="is being written by another process") as caught:
                pack(tree, tmp_path / "s")
            refused.append(str(caught.value))

    pack(tree, tmp_path / "s", watch=Rival())
    assert len(refused) == 5
    assert load_index(tmp_path / "s").num_samples == 40


PROGRAM = """
import os, signal, sys
from data import shards
num_images, num_workers, count = int(sys.argv[3]), int(sys.argv[4]), 0
real = shards.to_row
def fatal(*args, **named):
    global count
    count += 1
    if count == num_images:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*args, **named)
class Watch:
    def say(self, text): pass
    def advance(self, done, total, unit="images"):
        if num_workers and done >= num_images:
            os.kill(os.getpid(), signal.SIGKILL)
shards.to_row = fatal
shards.make(sys.argv[1], sys.argv[2], split="train", samples_per_shard=8, num_workers=num_workers, watch=Watch())
"""


@pytest.mark.parametrize(("num_workers", "kills", "left"), [(0, (12, 12, 3), (3,)), (2, (16,), (0, 1, 2, 3))])
def test_kill_9_anywhere(
    tree: Path,
    tmp_path: Path,
    num_workers: int,
    kills: tuple[int, ...],
    left: tuple[int, ...],
    packed: list[str],
) -> None:
    """Killed again and again, in the middle of a shard, a call ends with the bytes of one that nothing disturbed."""
    pack(tree, tmp_path / "whole")
    for num_images in kills:
        words = [
            sys.executable,
            "-c",
            PROGRAM,
            str(tree),
            str(tmp_path / "s"),
            str(num_images),
            str(num_workers),
        ]
        done = subprocess.run(words, cwd=ROOT, check=False, capture_output=True)
        assert done.returncode == -signal.SIGKILL, done.stderr
        assert not (tmp_path / "s").exists()
    packed.clear()
    pack(tree, tmp_path / "s")
    assert len(packed) in left
    assert content(tmp_path / "s") == content(tmp_path / "whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["s", "tree", "whole"]


def test_a_worker_that_was_killed_is_one_line() -> None:
    says = r"a helper process ended early, .*; use fewer --workers"
    with pytest.raises(ChildProcessError, match=says), shard_workers(1) as run:
        list(run(signal.raise_signal, [signal.SIGKILL]))


def test_a_full_disk(tree: Path, tmp_path: Path) -> None:
    """A real one: it holds two of five shards."""
    disk = tmp_path / "disk"
    disk.mkdir()
    size = 3 * 1024  # kB: the tree is written twice as large as a shard
    images = write_images(tmp_path / "large", {f"c{label}": 8 for label in range(5)}, size=(400, 400))
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}k", "tmpfs", str(disk)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("may not mount a tmpfs")
    try:
        with pytest.raises(OSError, match="No space left on device") as caught:
            pack(images, disk / "s")
        assert caught.value.filename is not None
        assert "shards are whole and stay in .s.partial; the same command goes on from there" in str(
            caught.value
        )
        assert not list(partial_folder(disk / "s").glob("*.partial-*")), "room is given back"
        subprocess.run(["mount", "-o", "remount,size=20m", str(disk)], check=True)
        watch = Witness()
        pack(images, disk / "s", watch=watch)
        assert watch.said[0].startswith("going on: ")
        pack(images, tmp_path / "whole")
        assert content(disk / "s") == content(tmp_path / "whole")
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)

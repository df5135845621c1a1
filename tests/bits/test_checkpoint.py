"""Checkpoints: all or nothing, and whatever is torn, altered or foreign is noticed before it is used."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from bits.checkpoint import (
    CheckpointError,
    latest_checkpoint,
    list_checkpoints,
    load_checkpoint,
    prune_checkpoints,
    read_meta,
    save_checkpoint,
    write_atomic,
)


def state_of(step: int) -> dict[str, Any]:
    weights = {"weight": torch.full((3, 4), float(step)), "half": torch.ones(5, dtype=torch.bfloat16)}
    return {"model": weights, "step": step, "groups": [{"lr": torch.tensor(0.5), "betas": (0.9, 0.999)}]}


def save(folder: Path, *steps: int) -> list[Path]:
    return [save_checkpoint(folder, step, state_of(step), facts={"epoch": step}).path for step in steps]


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


def assert_passed_over(folder: Path, reason: str) -> None:
    """The newest of steps 3 and 6 is named with its reason, and step 3 is used."""
    found = latest_checkpoint(folder)
    assert found is not None
    checkpoint, state, passed_over = found
    assert checkpoint.step == state["step"] == 3
    assert len(passed_over) == 1
    assert "step-00000006" in passed_over[0]
    assert reason in passed_over[0]
    assert "\n" not in passed_over[0]


def test_comes_back_as_it_was(tmp_path: Path) -> None:
    (path,) = save(tmp_path / "new" / "folder", 12)
    assert names(path.parent) == ["step-00000012.json", "step-00000012.pt"]
    loaded, wanted = load_checkpoint(path), state_of(12)
    assert torch.equal(loaded["model"]["weight"], wanted["model"]["weight"])
    assert loaded["model"]["half"].dtype == torch.bfloat16
    assert loaded["groups"] == wanted["groups"]
    meta = read_meta(path)
    assert (meta.step, meta.size, dict(meta.facts)) == (12, path.stat().st_size, {"epoch": 12})
    found = latest_checkpoint(path.parent)
    assert found is not None
    assert found[2] == []


@pytest.mark.parametrize("size", [0, 1, 100, -1])
def test_torn_file(size: int, tmp_path: Path) -> None:
    _, newest = save(tmp_path, 3, 6)
    os.truncate(newest, size if size >= 0 else newest.stat().st_size - 1)
    with pytest.raises(CheckpointError, match="torn or altered"):
        load_checkpoint(newest)
    assert_passed_over(tmp_path, "torn or altered")


@pytest.mark.parametrize("place", [0.0, 0.3, 0.6, 0.999])
def test_altered_byte(place: float, tmp_path: Path) -> None:
    _, newest = save(tmp_path, 3, 6)
    data = bytearray(newest.read_bytes())
    data[int(place * len(data))] ^= 1
    newest.write_bytes(data)
    assert_passed_over(tmp_path, "torn or altered")


def test_missing_json(tmp_path: Path) -> None:
    _, newest = save(tmp_path, 3, 6)
    newest.with_suffix(".json").unlink()
    assert_passed_over(tmp_path, "step-00000006.json is missing")


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"3", b'{"schema": 1}', b"\xff\xfe", b"\x00" * 200])
def test_json_garbage(text: bytes, tmp_path: Path) -> None:
    _, newest = save(tmp_path, 3, 6)
    newest.with_suffix(".json").write_bytes(text)
    assert_passed_over(tmp_path, "not the JSON of a checkpoint")


def test_schema_of_another_version(tmp_path: Path) -> None:
    _, newest = save(tmp_path, 3, 6)
    meta = newest.with_suffix(".json")
    meta.write_text(json.dumps(json.loads(meta.read_text()) | {"schema": 99}))
    assert_passed_over(tmp_path, "schema 99, this version reads 1")


def test_without_a_usable_one_nothing_is_made_up(tmp_path: Path) -> None:
    assert latest_checkpoint(tmp_path / "nowhere") is None
    (tmp_path / "empty").mkdir()
    assert latest_checkpoint(tmp_path / "empty") is None
    (only,) = save(tmp_path / "torn", 3)
    os.truncate(only, 10)
    with pytest.raises(CheckpointError, match="no usable checkpoint") as error:
        latest_checkpoint(tmp_path / "torn")
    assert "\n" not in str(error.value)


class Killed(BaseException):
    """What a kill looks like from inside: nothing after it runs."""


def kill_at(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The `number`th rename from now never happens, nor what would clean up behind it."""
    rename, unlink, calls = os.replace, Path.unlink, [0]

    def replace(source: Any, target: Any) -> None:
        calls[0] += 1
        if calls[0] == number:
            monkeypatch.setattr(Path, "unlink", lambda *_, **__: None)
            raise Killed
        rename(source, target)

    monkeypatch.setattr(os, "replace", replace)
    monkeypatch.setattr(Path, "unlink", unlink)


@pytest.mark.parametrize("rename", [1, 2])
@pytest.mark.parametrize("before", [(), (3,)], ids=["first", "second"])
def test_killed_at_a_rename(
    rename: int, before: tuple[int, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kill before either rename is as if the checkpoint had never been begun, the very first one too."""
    save(tmp_path, *before)
    with monkeypatch.context() as patch:
        kill_at(rename, patch)
        with pytest.raises(Killed):
            save(tmp_path, 6)
    assert any(name.endswith(".part") for name in names(tmp_path)), "the kill left its temporary file"
    found = latest_checkpoint(tmp_path)
    if not before:
        assert found is None
    else:
        assert found is not None
        assert (found[0].step, found[2]) == (3, [])
    save(tmp_path, 6)  # the run that goes on comes by the same step
    found = latest_checkpoint(tmp_path)
    assert found is not None
    assert (found[0].step, found[1]["step"], found[2]) == (6, 6, [])


def test_killed_while_a_step_is_saved_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, 3, 6)
    with monkeypatch.context() as patch:
        kill_at(2, patch)
        with pytest.raises(Killed):
            save_checkpoint(tmp_path, 6, state_of(7), facts={})
    assert_passed_over(tmp_path, "torn or altered")


def test_write_that_fails_leaves_the_old_file_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    write_atomic(path, b"old")

    def full(number: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            write_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["file"]


def test_bytes_are_on_disk_before_they_have_their_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    sync, rename = os.fsync, os.replace

    def fsync(number: int) -> None:
        link = Path(os.readlink(f"/proc/self/fd/{number}"))
        events.append("sync folder" if link.is_dir() else f"sync {os.fstat(number).st_size}")
        sync(number)

    def replace(source: Any, target: Any) -> None:
        events.append("rename")
        rename(source, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)
    write_atomic(tmp_path / "file", b"12345")
    assert events == ["sync 5", "rename", "sync folder"]


def test_prune_keeps_the_newest(tmp_path: Path) -> None:
    paths = save(tmp_path, 3, 6, 9, 12, 15)
    prune_checkpoints(tmp_path, 2, newest=15)
    assert [read_meta(path).step for path in list_checkpoints(tmp_path)] == [12, 15]
    assert len(names(tmp_path)) == 4, "JSON files go with their checkpoints"
    prune_checkpoints(tmp_path, 5, newest=15)
    assert len(list_checkpoints(tmp_path)) == 2
    assert paths[-1].exists()


def test_prune_never_deletes_what_was_just_written(tmp_path: Path) -> None:
    """Step 12 is torn, so the run went on from 9 and saved 11: with keep 1 it is 11 that must stay."""
    *_, torn = save(tmp_path, 9, 11, 12)
    os.truncate(torn, 10)
    prune_checkpoints(tmp_path, 1, newest=11)
    found = latest_checkpoint(tmp_path)
    assert found is not None
    assert found[0].step == 11
    assert not (tmp_path / "step-00000009.pt").exists()


def test_prune_removes_what_a_killed_write_left(tmp_path: Path) -> None:
    save(tmp_path, 3)
    (tmp_path / ".step-00000006.pt.4711.part").write_bytes(b"half")
    (tmp_path / ".best.pt.4711.part").write_bytes(b"half")
    (tmp_path / "mine.part").write_bytes(b"not ours")
    prune_checkpoints(tmp_path, 2, newest=3)
    assert names(tmp_path) == ["mine.part", "step-00000003.json", "step-00000003.pt"]


class Touch:
    """Runs code when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def test_python_objects_are_refused_in_one_line(tmp_path: Path) -> None:
    save(tmp_path, 3)
    saved = save_checkpoint(tmp_path, 6, {"model": Touch(tmp_path / "owned")}, facts={})
    with pytest.raises(CheckpointError, match="holds Python objects") as error:
        load_checkpoint(saved.path)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "owned").exists()
    assert_passed_over(tmp_path, "holds Python objects")

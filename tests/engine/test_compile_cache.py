"""`--compile-cache`: what the runtime is told, and what the user is told where it cannot work."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from engine.compile_cache import VARIABLES, use_compile_cache
from engine.launch import launcher_flags

Launch = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.setenv(name, "")  # so that what a test sets is taken back


def test_a_tpu_gets_a_folder_of_its_versions(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PJRT_DEVICE", "TPU")
    assert use_compile_cache(str(tmp_path / "cache")) == ""
    (folder,) = (tmp_path / "cache").iterdir()
    assert folder.name.startswith("torch_xla")
    assert "libtpu" in folder.name
    assert [os.environ[name] for name in VARIABLES] == [str(folder), "0"]
    use_compile_cache(str(tmp_path / "cache"))
    assert len(list((tmp_path / "cache").iterdir())) == 1
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        use_compile_cache(str(tmp_path / "file"))


def test_the_flag_takes_a_path() -> None:
    known = {"--num-devices": 1, "--compile-cache": ""}
    assert launcher_flags(["train"], known) == ({"--num-devices": 1, "--compile-cache": ""}, ["train"])
    for words in (["--compile-cache", "a b"], ["--compile-cache=a b"]):
        flags, rest = launcher_flags([*words, "--num-devices", "2", "list"], known)
        assert (flags, rest) == ({"--num-devices": 2, "--compile-cache": "a b"}, ["list"])
    for words in (["--compile-cache"], ["--compile-cache="]):
        with pytest.raises(ValueError, match="--compile-cache without a value"):
            launcher_flags(words, known)


def test_on_the_cpu_one_line_says_that_it_is_left_out(launch: Launch, tmp_path: Path) -> None:
    done = launch("xla", "--compile-cache", tmp_path / "cache", "list", "attacks")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("note: --compile-cache")
    assert "left out" in done.stderr
    assert not (tmp_path / "cache").exists()

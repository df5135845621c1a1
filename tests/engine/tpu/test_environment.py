"""The compiler's environment: made once and whole, or not at all. With a Python that only pretends."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from engine.tpu import environment

# As `python -m venv DIR`, `DIR/bin/python -m pip install`, and an import. Says in $FAKE_LOG what it was asked.
FAKE = """#!/bin/sh
echo "$@" >> "$FAKE_LOG"
case "$*" in
  "-m venv "*) mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
  *" install "*) sleep ${FAKE_SLEEP:-0}; [ -z "$FAKE_PIP" ] || { echo "$FAKE_PIP" >&2; exit 1; } ;;
  "-c import"*) [ -z "$FAKE_IMPORT" ] || { echo "$FAKE_IMPORT" >&2; exit 1; } ;;
esac
"""


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    fake = tmp_path / "fake-python"
    fake.write_text(FAKE)
    fake.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(fake))
    monkeypatch.setenv("ROBUST_BITS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("FAKE_LOG", str(tmp_path / "log"))
    return tmp_path / "log"


def silent(text: str) -> None: ...


def test_it_is_made_once(log: Path) -> None:
    said: list[str] = []
    python = environment.open_environment(said.append)
    assert python.exists()
    assert python == environment.place_of_environment() / "bin" / "python"
    assert len(said) == 1
    assert "once" in said[0]
    asked = log.read_text()
    assert all(f"{name}=={version}" in asked for name, version in environment.PINS.items())
    assert environment.open_environment(said.append) == python
    assert len(said) == 1
    assert log.read_text() == asked


@pytest.mark.parametrize(
    ("output", "remedy"),
    [
        ("ERROR: No matching distribution found for libtpu==0.0.51", "no wheels"),
        (
            "WARNING: Retrying: NewConnectionError(...)\nERROR: No matching distribution found for jax",
            "network",
        ),
        ("ERROR: Could not install packages: [Errno 28] No space left on device", "ROBUST_BITS_CACHE"),
        ("boom", "that command"),
    ],
)
def test_a_failing_pip_is_one_line_and_leaves_nothing(
    log: Path, monkeypatch: pytest.MonkeyPatch, output: str, remedy: str
) -> None:
    monkeypatch.setenv("FAKE_PIP", output)
    with pytest.raises(ValueError, match="cannot be made") as refused:
        environment.open_environment(silent)
    assert remedy in str(refused.value)
    assert "\n" not in str(refused.value)
    assert list(environment.cache_root().glob("tpu-check-*")) == []
    monkeypatch.delenv("FAKE_PIP")
    assert environment.open_environment(silent).exists()


def test_packages_that_do_not_load_are_not_taken(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_IMPORT", "ImportError: libtpu.so: wrong ELF class")
    with pytest.raises(ValueError, match="wrong ELF class"):
        environment.open_environment(silent)
    assert not environment.place_of_environment().exists()


def test_what_a_killed_build_left_is_no_environment_and_goes(log: Path) -> None:
    folder = environment.place_of_environment()
    left = folder.with_name(f"{folder.name}.making.1")
    (left / "bin").mkdir(parents=True)
    (left / "bin" / "python").write_text("half")
    assert environment.open_environment(silent).read_text() == FAKE
    assert not left.exists()


def test_a_build_that_hangs_is_ended(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_SLEEP", "30")
    monkeypatch.setattr(environment, "BUILD_LIMIT_S", 0.5)
    with pytest.raises(ValueError, match="not done after"):
        environment.open_environment(silent)
    assert not environment.place_of_environment().exists()


def test_two_at_once_make_one(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_SLEEP", "0.3")
    found: list[Path] = []
    threads = [
        threading.Thread(target=lambda: found.append(environment.open_environment(silent))) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == 1
    assert found[0].exists()
    assert log.read_text().count("-m venv") == 1


def test_the_real_venv_may_move(tmp_path: Path) -> None:
    """Made under one name and used under another, as the build does."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "a")], check=True)
    (tmp_path / "a").rename(tmp_path / "b")
    told = [str(tmp_path / "b" / "bin" / "python"), "-c", "import sys; print(sys.prefix)"]
    environment_ = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    found = subprocess.run(told, capture_output=True, text=True, check=True, env=environment_)
    assert found.stdout.strip() == str(tmp_path / "b")

"""The verb, called as the command line calls it, and the builder of run folders."""

import io
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest

from engine.cli import Launch, parse
from engine.verb_report import run
from tests.engine.report.made_runs import MakeRun

Report = Callable[..., dict[str, Any]]


@pytest.fixture(scope="session")
def make_run() -> MakeRun:
    return MakeRun()


@pytest.fixture(scope="session")
def report() -> Report:
    """report(RUN..., output=PATH) -> the verb's result; what it printed is in ["printed"]."""

    def call(*runs: Path, output: Path | None = None) -> dict[str, Any]:
        words = ["report", *map(str, runs), *(["--output", str(output)] if output else [])]
        with redirect_stdout(io.StringIO()) as printed:
            result = run(parse(words, "launch_gpu.py"), Launch(backend="cpu"))
        return {**result, "printed": printed.getvalue()}

    return call

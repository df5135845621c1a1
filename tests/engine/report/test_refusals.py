"""What cannot become a page: one line that names it, and nothing is written or replaced."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engine.report.gather import short_names
from tests.engine.report.made_runs import MakeRun

Report = Callable[..., dict[str, Any]]


def refused(call: Callable[[], object], words: str) -> None:
    with pytest.raises((ValueError, OSError), match=words) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_what_is_no_run(tmp_path: Path, make_run: MakeRun, report: Report) -> None:
    run = make_run(tmp_path / "a")
    (tmp_path / "empty").mkdir()
    for path, words in (
        (tmp_path / "nowhere", "nowhere does not exist"),
        (tmp_path / "empty", "empty is no run folder"),
        (run / "recipe.yaml", "recipe.yaml is a file"),
        (run / "checkpoints", "checkpoints is no run folder"),
    ):
        refused(lambda path=path: report(path), words)
        refused(lambda path=path: report(run, path, output=tmp_path / "page.html"), words)
    assert not list(tmp_path.rglob("*.html"))


def test_a_run_given_twice(tmp_path: Path, make_run: MakeRun, report: Report) -> None:
    run = make_run(tmp_path / "a")
    refused(lambda: report(run, run), "a is given twice; give each run once")
    (tmp_path / "link").symlink_to(run)
    refused(lambda: report(run, tmp_path / "link"), r"link is given twice \(as .*/a too\)")
    refused(lambda: report(run, tmp_path / "b" / ".." / "a"), "given twice|does not exist")


def test_where_a_page_cannot_be_written(tmp_path: Path, make_run: MakeRun, report: Report) -> None:
    run = make_run(tmp_path / "a")
    refused(lambda: report(run, output=tmp_path / "none/page.html"), "none is no folder; make it")
    refused(lambda: report(run, output=tmp_path / "page.pdf"), "must end in .html")
    (tmp_path / "dir.html").mkdir()
    refused(lambda: report(run, output=tmp_path / "dir.html"), "dir.html is there and no file")
    (tmp_path / "README.md").write_text("# mine\n")
    refused(
        lambda: report(run, output=tmp_path / "README.html"),
        "README.md is there and was not written by report",
    )
    assert (tmp_path / "README.md").read_text() == "# mine\n"
    assert not (tmp_path / "README.html").exists()
    assert not (tmp_path / "README.csv").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_run_folder_that_is_read_only(tmp_path: Path, make_run: MakeRun, report: Report) -> None:
    run = make_run(tmp_path / "a")
    run.chmod(0o555)
    refused(lambda: report(run), "a is not writable; give another path with --output")
    run.chmod(0o755)


def test_a_report_is_replaced_by_a_newer_one(tmp_path: Path, make_run: MakeRun, report: Report) -> None:
    run = make_run(tmp_path / "a")
    for _ in range(2):
        report(run)
    assert sorted(path.name for path in run.glob("report.*")) == ["report.csv", "report.html", "report.md"]


def test_names_are_as_short_as_they_can_be() -> None:
    paths = [Path("/x/one/seed0"), Path("/x/two/seed0"), Path("/y/two/seed0"), Path("/x/other")]
    assert short_names(paths) == ["one/seed0", "x/two/seed0", "y/two/seed0", "other"]
    assert short_names([Path("/a/b"), Path("/c/d")]) == ["b", "d"]


def test_equal_folder_names_are_told_apart_in_the_page(
    tmp_path: Path, make_run: MakeRun, report: Report
) -> None:
    runs = [make_run(tmp_path / name / "run") for name in ("one", "two")]
    result = report(*runs, output=tmp_path / "page.html")
    assert [e["run"] for e in result["evaluations"]] == ["one/run", "two/run"]


def test_the_command_line(tmp_path: Path, make_run: MakeRun, launch: Callable[..., Any]) -> None:
    run = make_run(tmp_path / "a")
    done = launch("gpu", "report", run, "--json", tmp_path / "result.json")
    assert done.returncode == 0, done.stderr
    assert "95.0 % [86.3, 98.3]" in done.stdout
    assert (tmp_path / "result.json").is_file()
    failed = launch("gpu", "report", tmp_path / "nowhere")
    assert failed.returncode == 2
    assert failed.stderr.count("\n") == 1
    assert failed.stderr.startswith("error: ")

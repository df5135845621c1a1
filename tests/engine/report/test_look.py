"""The page in a real browser: a phone and a desktop, light and dark, nothing wider than the window, no complaint."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.look import WIDTHS_PX, find_browser, look
from tests.engine.report.made_runs import CLEAN, MakeRun, Spec, pgd

BROWSER = find_browser()
Report = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory, make_run: MakeRun, report: Report) -> Path:
    """Two runs with long names, many columns, long class names, warnings, pictures."""
    folder = tmp_path_factory.mktemp("look")
    specs = [
        replace(CLEAN, gallery=8),
        *(Spec(name=f"set-{i}", suite=f"a_rather_long_set_of_images_{i}") for i in range(6)),
    ]
    specs += [Spec(name=f"pgd20_linf{e}", attack=pgd(e / 255), broken=2 * e, gallery=8) for e in (4, 8, 16)]
    classes = [f"longclassnamewithoutanybreak{i}" for i in range(10)]
    names = ("run_with_a_name_that_has_no_end_" + "and_goes_on_" * 8, "b")
    runs = [make_run(folder / name, specs, classes=classes, end=None) for name in names]
    report(*runs, output=folder / "page.html")
    return folder / "page.html"


@pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed")
@pytest.mark.parametrize("width", WIDTHS_PX)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_overflows_and_nothing_complains(page: Path, width: int, scheme: str) -> None:
    assert BROWSER is not None
    seen = look(page, width=width, scheme=scheme, browser=BROWSER)
    assert (seen.width, seen.scheme) == (width, scheme)
    assert seen.content <= width
    assert seen.console == ()
    assert seen.smallest >= 11

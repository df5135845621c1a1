"""Calibration, shape bias and effective robustness in the report: page, Markdown and CSV say what the rows say."""

import csv
import hashlib
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from engine.ledger import LedgerWriter, Verdict
from engine.metrics.effective import effective_robustness
from engine.metrics.mce import CORRUPTIONS, corruption_result
from engine.report.beyond import lines_of_suites
from tests.engine.report.made_runs import CLEAN, MakeRun, Spec
from tests.engine.report.test_page import Page

Report = Callable[..., dict[str, Any]]
SCORED = (
    Spec(name="clean", num=60, wrong=6, confidence=0.95),
    Spec(name="cue64-conflict", suite="cue64-conflict", num=60, wrong=20, cues=True, confidence=0.8),
)
IMAGENET = (
    Spec(name="imagenet", suite="imagenet", num=100, wrong=24),
    Spec(name="sketch", suite="sketch", num=100, wrong=70),
    Spec(name="digits-noise", suite="digits-noise", num=100, wrong=70),
)


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory, make_run: MakeRun, report: Report) -> dict[str, Any]:
    return report(make_run(tmp_path_factory.mktemp("scored") / "a", SCORED))


def table(page: Page, first: str) -> list[list[str]]:
    """The table whose head has a cell that begins so."""
    return next(rows for _, rows in page.tables if rows and any(cell.startswith(first) for cell in rows[0]))


def test_the_page_shows_calibration_and_shape_bias(scored: dict[str, Any]) -> None:
    page = Page(Path(scored["output"]["html"]))
    _, clean, conflict = table(page, "ECE")
    # Every image at 0.95, 54 of 60 right: one bin, a gap of 0.05.
    assert clean[:3] == ["a", "Clean images", "5.00"]
    assert clean[5].startswith("0.650 [")
    assert clean[6] == "0.100 [0.100, 0.100]"
    assert conflict[2] == "13.33"
    _, bias = table(page, "shape bias")
    assert bias[0] == "a"
    assert bias[3:] == ["40", "16", "4"]
    assert bias[2].startswith("71.4 [")
    assert not any("effective" in cell for _, rows in page.tables for cell in rows[0])


def test_markdown_and_csv_say_the_same(scored: dict[str, Any]) -> None:
    markdown = Path(scored["output"]["md"]).read_text()
    assert "**Calibration**" in markdown
    assert "**Shape bias**" in markdown
    with Path(scored["output"]["csv"]).open() as file:
        clean, conflict = csv.DictReader(file)
    assert float(clean["ece"]) == pytest.approx(0.05)
    assert float(clean["nll"]) == pytest.approx((54 * 0.5 + 6 * 2) / 60)
    assert clean["shape_bias"] == ""
    assert float(conflict["shape_bias"]) == pytest.approx(40 / 56)
    assert float(conflict["shape_bias_low"]) < 40 / 56 < float(conflict["shape_bias_high"])


def test_runs_without_scores_have_no_such_part(tmp_path: Path, make_run: MakeRun, report: Report) -> None:
    found = report(make_run(tmp_path / "a", [CLEAN]))
    page = Page(Path(found["output"]["html"]))
    assert "Calibration" not in page.text.split("How each number")[0]
    with Path(found["output"]["csv"]).open() as file:
        assert next(csv.DictReader(file))["nll"] == ""


def test_effective_robustness_is_of_sets_with_a_line(
    tmp_path: Path, make_run: MakeRun, report: Report
) -> None:
    found = report(make_run(tmp_path / "a", IMAGENET))
    _, row = table(Page(Path(found["output"]["html"])), "effective")
    wanted = effective_robustness(lines_of_suites()["sketch"], 0.76, 0.3, (0.2, 0.4))
    assert wanted is not None
    assert row[2] == f"{100 * wanted['expected']:.1f}"
    assert row[3].startswith(f"{100 * wanted['value']:+.1f} [")
    assert row[4] == "27 public models"


def parted(
    folder: Path, kinds: Sequence[str], severities: int, *, suite: str = "c", mce: float | None = None
) -> None:
    """Results of a suite with parts beside a run's others, as engine.groups leaves them: of 20 images the first
    `place + severity` are wrong."""
    parts: dict[str, dict[str, Any]] = {}
    with LedgerWriter(folder / "ledger", 0) as writer:
        for place, kind in enumerate(kinds):
            for severity in range(1, severities + 1):
                part = f"{kind}/{severity}"
                identity = hashlib.sha256(part.encode()).hexdigest()[:32]
                writer.describe(identity, {"suite": f"{suite}/{part}@{'d' * 64}"})
                wrong = place + severity
                writer.write(
                    Verdict(identity, f"k{i:02d}", "clean", i, 0, int(i < wrong), i >= wrong, True, 1.0)
                    for i in range(20)
                )
                counts = {"num_images": 20, "num_correct": 20 - wrong, "num_top5": 20}
                parts[part] = {"evaluation": identity, **counts, "top1": 1 - wrong / 20, "top5": 1.0}
    sums = {
        name: sum(part[name] for part in parts.values()) for name in ("num_images", "num_correct", "num_top5")
    }
    ids = "\n".join(part["evaluation"] for part in parts.values())
    clean = json.loads((folder / "results/clean.json").read_text())
    shares = {"top1": sums["num_correct"] / sums["num_images"], "top5": 1.0}
    result = {
        **{
            name: clean[name]
            for name in ("weights", "recipe", "weights_sha256", "attack", "seed", "precision")
        },
        **{"name": suite, "evaluation": hashlib.sha256(ids.encode()).hexdigest()[:32]},
        **{
            "suite": f"{suite}@{'c' * 64}",
            "contract": "default/none-bicubic-224px",
            "num_rows": sums["num_images"],
        },
        **{**sums, **shares, "components": {"clean": {**sums, **shares}}, "parts": parts, "mce": mce},
    }
    (folder / f"results/{suite}.json").write_text(json.dumps(result))


def test_imagenet_c_prints_its_numbers_together(tmp_path: Path, make_run: MakeRun, report: Report) -> None:
    run = make_run(tmp_path / "a", [CLEAN])
    errors = {kind: [(place + s) / 20 for s in range(1, 6)] for place, kind in enumerate(CORRUPTIONS)}
    wanted = corruption_result(errors)
    parted(run, CORRUPTIONS, 5, mce=wanted["mce"])
    found = report(run)
    page = Page(Path(found["output"]["html"]))
    _, row = table(page, "mean error")
    assert row[2] == f"{wanted['mean_error']:.2f}"
    assert row[3] == f"{wanted['mce']:.2f}"
    assert row[4] == ", ".join(f"{group} {value:.1f}" for group, value in wanted["groups"].items())
    assert row[5].split() == [f"{value:.1f}" for value in wanted["severities"]]
    kinds = table(page, "kind")
    assert len(kinds) == 16
    assert kinds[1][2:] == ["gaussian_noise", "5.0 10.0 15.0 20.0 25.0", "15.0"]
    severity = table(page, "severity")
    assert [line[1] for line in severity[1:]] == row[5].split()
    # One photograph under 75 corruptions is one photograph: the interval is wider than that of 1500 images.
    summary = next(rows for attributes, rows in page.tables if attributes.get("class") == "summary")
    cell = next(cell for line in summary for cell in line if "750/1,500" in cell)
    low, high = map(float, re.findall(r"\[([\d.]+), ([\d.]+)\]", cell)[0])
    assert high - low > 20
    assert found["warnings"] == []


def test_no_mean_of_a_part_of_imagenet_c(tmp_path: Path, make_run: MakeRun, report: Report) -> None:
    run = make_run(tmp_path / "a", [CLEAN])
    parted(run, CORRUPTIONS[:3], 5)
    _, row = table(Page(Path(report(run)["output"]["html"])), "mean error")
    assert row[2:] == ["\u2013"] * 4

"""The page against the ledger's rows, read with means of its own: an HTML parser and SQL."""

import csv
import json
import re
import sqlite3
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from engine.ledger import wilson_interval
from tests.engine.report.made_runs import CLEAN, MakeRun, Spec, pgd

Report = Callable[..., dict[str, Any]]
SPECS = (
    Spec(name="clean", num=60, wrong=3, gallery=4),
    Spec(name="digits-noise", suite="digits-noise", num=60, wrong=21, dataset="e" * 64, gallery=4),
    *(
        Spec(name=f"pgd20_linf{e}", num=60, wrong=3, attack=pgd(e / 255), broken=2 * e, gallery=4)
        for e in (4, 8, 16)
    ),
    *(
        Spec(name=f"pgd20_l2_{e}", num=60, attack=pgd(e, norm="l2"), broken=int(9 * e), gallery=4)
        for e in (0.5, 1.0)
    ),
    Spec(name="pgd5_linf8", attack=pgd(8 / 255, step_size=2 / 255, steps=5), broken=5),
    Spec(name="clean", file="clean-epoch1", wrong=30, weights_sha256="1" * 64),
    Spec(name="clean", file="clean-epoch2", wrong=20, weights_sha256="2" * 64),
)


@pytest.fixture(scope="module")
def standard(tmp_path_factory: pytest.TempPathFactory, make_run: MakeRun, report: Report) -> dict[str, Any]:
    """The report of one run with everything in it; its folder is in ["run"]."""
    run = make_run(tmp_path_factory.mktemp("standard") / "a", SPECS)
    return {**report(run), "run": run}


class Page(HTMLParser):
    """Tables as lists of rows of cell texts, and every tag with its attributes."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.tables: list[tuple[dict[str, str | None], list[list[str]]]] = []
        self.text = ""
        self._open: list[str] = []
        self._cell: list[str] | None = None
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        assert not self._open, f"never closed: {self._open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self._open.append(tag)
        if tag == "table":
            self.tables.append((dict(attrs), []))
        if tag == "tr":
            self.tables[-1][1].append([])
        if tag in ("td", "th"):
            self._cell = []

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag, f"</{tag}> closes something else"
        if tag in ("td", "th") and self._cell is not None:
            self.tables[-1][1][-1].append(" ".join(" ".join(self._cell).split()))
            self._cell = None

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] != "style":
            self.text += data
        if self._cell is not None:
            self._cell.append(data)

    def table(self, class_: str) -> list[list[str]]:
        (found,) = [rows for attributes, rows in self.tables if attributes.get("class") == class_]
        return found

    def attributes(self, name: str) -> list[str]:
        return [str(value) for _, attributes in self.tags for key, value in attributes.items() if key == name]


def from_rows(run: Path, name: str) -> tuple[int, int, int]:
    """Images, right in all rows, and right before any attack: of the evaluation that results/`name`.json names."""
    identity = json.loads((run / "results" / f"{name}.json").read_text())["evaluation"]
    db = sqlite3.connect(run / "ledger/rank-0.sqlite")
    worst = "SELECT MIN(correct) AS ok FROM verdict WHERE evaluation = ? GROUP BY key"
    num, correct = db.execute(f"SELECT COUNT(*), SUM(ok) FROM ({worst})", (identity,)).fetchone()
    query = "SELECT SUM(correct) FROM verdict WHERE evaluation = ? AND component = 'clean'"
    (before,) = db.execute(query, (identity,)).fetchone()
    db.close()
    return num, correct, before


def expected_cell(run: Path, name: str) -> str:
    """As the table writes it: accuracy, interval, counts, drop."""
    num, correct, before = from_rows(run, name)
    low, high = wilson_interval(correct, num)
    text = f"{100 * correct / num:.1f} [{100 * low:.1f}, {100 * high:.1f}] {correct}/{num}"
    if name == "clean":
        return text
    reference = before if name.startswith("pgd") else from_rows(run, "clean")[1]
    return f"{text} {100 * (correct / num) / (reference / num) - 100:+.1f} %".replace(" -", " \u2212")


COLUMNS = ["clean", "digits-noise", "pgd5_linf8", *(f"pgd20_linf{e}" for e in (4, 8, 16))]
COLUMNS += [f"pgd20_l2_{e}" for e in (0.5, 1.0)]


def test_every_number_is_the_ledgers(tmp_path: Path, make_run: MakeRun, report: Report) -> None:
    runs = [
        make_run(tmp_path / "a", SPECS),
        make_run(tmp_path / "b", [*SPECS[1:], Spec(name="clean", wrong=0)]),
    ]
    result = report(*runs, output=tmp_path / "page.html")
    page = Page(tmp_path / "page.html")
    head, *lines = page.table("summary")  # many evaluations of two runs: a line each
    assert [cell.startswith(name) for cell, name in zip(head, ["evaluation", "a", "b"], strict=True)]
    assert [line[1:] for line in lines] == [[expected_cell(run, name) for run in runs] for name in COLUMNS]
    assert result["exit_code"] == 0
    assert result["warnings"] == []
    assert {(e["run"], e["evaluation"]) for e in result["evaluations"]} == {
        (r.name, c) for r in runs for c in COLUMNS
    }


def test_markdown_csv_json_and_terminal_agree(standard: dict[str, Any]) -> None:
    result, run = standard, standard["run"]
    paths = {kind: Path(path) for kind, path in result["output"].items()}
    assert paths == {kind: run / f"report.{kind}" for kind in ("html", "md", "csv")}
    with paths["csv"].open(newline="") as file:
        records = {record["evaluation"]: record for record in csv.DictReader(file)}
    lines = [line for line in paths["md"].read_text().splitlines() if line.startswith("| ")]
    cells = dict(zip(COLUMNS, [line.strip("| ").split(" | ")[1] for line in lines[2:]], strict=True))
    for entry in result["evaluations"]:
        name = entry["evaluation"]
        num, correct, _ = from_rows(run, name)
        low, high = wilson_interval(correct, num)
        assert (entry["n"], entry["correct"], entry["accuracy"]) == (num, correct, correct / num)
        assert (entry["low"], entry["high"]) == (low, high)
        record = records[name]
        assert {key: str("" if value is None else value) for key, value in entry.items()} == record
        number = f"{100 * correct / num:.1f} % [{100 * low:.1f}, {100 * high:.1f}]"
        assert cells[name].startswith(f"{number} ({correct}/{num})".replace("[", "\\[").replace("]", "\\]"))
        assert number in result["printed"]
    assert not any("epoch" in name for name in records), (
        "evaluations during training are no rows of the table"
    )


def test_the_document_is_whole_and_self_contained(standard: dict[str, Any]) -> None:
    page = Page(standard["run"] / "report.html")
    ids = page.attributes("id")
    assert len(ids) == len(set(ids))
    assert "http" not in page.source
    assert not [name for name, _ in page.tags if name in ("script", "link", "iframe", "object")]
    for value in page.attributes("src"):
        assert value.startswith("data:image/png;base64,")
    targets = [v[1:] for v in page.attributes("href")] + re.findall(r"url\(#([^)]*)\)", page.source)
    assert targets
    assert set(targets) <= set(ids), "a figure refers to what is not there"
    assert "url(" not in re.sub(r"url\(#", "", page.source)
    assert dict(page.tags)["html"]["lang"] == "en"
    assert any(a.get("name") == "viewport" for _, a in page.tags)
    assert all(attributes.get("alt") for name, attributes in page.tags if name == "img")


LABELS = {
    "bars0": ["accuracy (% of images)"],
    "bars1": ["accuracy (% of images)"],
    "radius0": ["radius eps (L2, pixel units)", "robust accuracy (%)"],
    "radius1": ["radius eps (1/255)", "robust accuracy (%)"],
    "train-loss": ["epochs", "loss (nats)"],
    "train-top1": ["epochs", "top-1 (% of images)"],
    "train-lr": ["epochs", "learning rate"],
    "train-speed": ["epochs", "images/s"],
    "epochs0": ["epochs", "accuracy (%)"],
}


def test_every_figure_has_axes_with_units_and_words(standard: dict[str, Any]) -> None:
    page = Page(standard["run"] / "report.html")
    figures = dict(re.findall(r'<figure id="([^"]+)">(.*?)</figure>', page.source, flags=re.DOTALL))
    assert figures.keys() == LABELS.keys()
    for name, figure in figures.items():
        for label in LABELS[name]:
            assert f">{label}</text>" in figure, (name, label)
        assert re.search(r"<figcaption>[^<]{10,}</figcaption>", figure)
        (words,) = re.findall(r'<svg role="img" aria-label="([^"]*)"', figure)
        assert re.search(r"\d", words), f"{name} says no number: {words}"
        assert "<table" in figure or name.startswith("bars")
        assert not re.search(r"#01[0-9a-f]{4}|font-family", figure), "colour and font are the page's"


def test_equal_inputs_give_equal_bytes(tmp_path: Path, make_run: MakeRun, report: Report) -> None:
    run = make_run(tmp_path / "a", SPECS)
    report(run, output=tmp_path / "one.html")
    report(run, output=tmp_path / "two.html")
    for suffix in (".html", ".md", ".csv"):
        assert (tmp_path / f"one{suffix}").read_bytes() == (tmp_path / f"two{suffix}").read_bytes()


def test_what_users_name_is_escaped(tmp_path: Path, make_run: MakeRun, report: Report) -> None:
    nasty = "<b>&\"'|`"
    classes = [f"{nasty}{i}" for i in range(10)]
    overrides = [f"description='{'<script>alert(1)</script>'}'"]
    run = make_run(tmp_path / nasty, SPECS[:3], classes=classes, overrides=overrides)
    report(run, output=tmp_path / "page.html")
    page = Page(tmp_path / "page.html")
    assert not [name for name, _ in page.tags if name in ("b", "script")] or all(
        attributes == {} for name, attributes in page.tags if name == "b"
    )
    assert "<b>&" not in page.source.replace("<b>9", "")
    assert "<script" not in page.source
    assert "<script>alert(1)</script>" in page.text, "the recipe is shown as it is"
    assert f"{nasty}3" in page.text
    assert page.table("summary")[1][0].startswith(nasty)
    assert "<b>" not in (tmp_path / "page.md").read_text()
    with (tmp_path / "page.csv").open(newline="") as file:
        assert {record["run"] for record in csv.DictReader(file)} == {nasty}


def test_gallery_shows_pictures_labels_and_what_is_wrong(standard: dict[str, Any]) -> None:
    page = Page(standard["run"] / "report.html")
    head, *strips = page.table("gallery")
    assert head == ["label", *(f"{i} {i}/{i:04d}" for i in range(4))]
    found = {strip[0]: strip[1:] for strip in strips}
    assert found["Clean images"] == ["\u2717 1", "\u2717 2", "\u2717 3", "\u2713 3"]
    # The attack mends image 0, breaks image 3.
    assert found["PGD-20, L\u221e\u00a016/255 attacked".replace("\u00a0", " ")] == [
        "\u2713 0",
        "\u2717 2",
        "\u2717 3",
        "\u2717 4",
    ]
    assert "perturbation x 7.97, range \u00b116/255" in found
    assert sum(name == "img" for name, _ in page.tags) == 4 * 6


def test_one_run_without_anything(tmp_path: Path, make_run: MakeRun, report: Report) -> None:
    result = report(make_run(tmp_path / "bare", ()))
    page = Page(tmp_path / "bare/report.html")
    assert "No evaluation" in page.text
    assert "no evaluation can be shown" in result["printed"]
    assert result["evaluations"] == []
    assert "No pictures were kept" in page.text
    report(make_run(tmp_path / "clean_only", (CLEAN,)))
    assert "under attack" not in Page(tmp_path / "clean_only/report.html").text


@pytest.mark.parametrize("kind", ["raw", "ema"])
def test_averaged_weights_are_a_row_of_their_own(
    tmp_path: Path, make_run: MakeRun, report: Report, kind: str
) -> None:
    specs = (
        CLEAN,
        Spec(name="clean", weights="ema", wrong=1),
        Spec(name="clean", weights="ema", weights_sha256="9" * 64, file="clean-ema-epoch1"),
    )
    result = report(make_run(tmp_path / "a", specs if kind == "ema" else specs[:1]))
    rows = Page(tmp_path / "a/report.html").table("summary")[1:]
    names = [row[0].partition(" small")[0] for row in rows]
    assert names == (["a", "a (EMA)"] if kind == "ema" else ["a"])
    assert result["warnings"] == []


def test_published_numbers_stand_beside_the_runs(tmp_path: Path, make_run: MakeRun, report: Report) -> None:
    words = "published={clean: 96.5, pgd5_linf8: 80, stylized: 12.98, pgd: {5: 1}, by: A}"
    run = make_run(tmp_path / "a", SPECS, overrides=[words])
    report(run, output=tmp_path / "a.html")
    wanted = [
        ["a", "clean", "96.5", "95.0 % [86.3, 98.3]", "\u22121.50 points"],  # 57 of 60
        ["a", "pgd5_linf8", "80", "86.7 % [75.8, 93.1]", "+6.70 points"],  # 52 of 60
        ["a", "stylized", "12.98", "\u2013", "\u2013"],
        ["a", "pgd.5", "1", "\u2013", "\u2013"],
        ["a", "by", "A", "\u2013", "\u2013"],
    ]
    tables = [rows for _, rows in Page(tmp_path / "a.html").tables if rows[0][1:2] == ["measure"]]
    assert tables == [[["run", "measure", "published/%", "here", "difference"], *wanted]]
    assert (
        "| a | clean | 96.5 | 95.0 % \\[86.3, 98.3\\] | \u22121.50 points |"
        in (tmp_path / "a.md").read_text()
    )


def test_no_published_numbers_no_section(standard: dict[str, Any]) -> None:
    assert "Published numbers" not in (standard["run"] / "report.html").read_text()


RECEIPT = {
    "planned": {
        "updates": 88,
        "images": 5632,
        "passes_per_image": {"forward": 2, "input_only": 1, "full": 1, "teacher": 1},
        "train_hours": 0.5,
    },
    "used": {
        **{"updates": 100, "images": 6400, "images_per_s": 812.345, "images_per_s_at_first": 1000.0},
        **{"train_hours": 0.75, "eval_hours": 0.01, "starts": 2, "rollbacks": 1, "alarms": 1},
        **{"updates_left_out": 3, "memory_bytes": 3 << 29, "memory_of": "host memory"},
    },
}


def test_cost_planned_and_used(tmp_path: Path, make_run: MakeRun, report: Report) -> None:
    runs = [make_run(tmp_path / name) for name in "ab"]
    (runs[0] / "receipt.json").write_text(json.dumps(RECEIPT))
    (runs[1] / "receipt.json").write_text("{}")
    result = report(*runs, output=tmp_path / "page.html")
    assert [w for w in result["warnings"] if "receipt.json is no receipt" in w] == [
        "b: receipt.json is no receipt: it has no objects `planned` and `used`"
    ]
    page = Page(Path(result["output"]["html"]))
    (table,) = [rows for _, rows in page.tables if rows[0][1:] == ["a: planned", "a: used"]]
    lines = {name: (planned, used) for name, planned, used in table[1:]}
    assert lines["updates"] == ("88", "100")
    assert lines["passes per image"][0] == (
        "2 forward, 1 backward to the image, 1 full backward, 1 of the teacher"
    )
    assert lines["images/s"] == ("1,000.0", "812.3")
    assert lines["time in training"] == ("30.0 min", "45.0 min")
    assert lines["peak memory"][1] == "1.50 GiB (host memory)"
    assert (lines["starts"][1], lines["updates left out"][1]) == ("2", "3")
    assert "| updates | 88 | 100 |" in Path(result["output"]["md"]).read_text()


def test_no_receipt_no_cost(standard: dict[str, Any]) -> None:
    assert "planned and used" not in (standard["run"] / "report.html").read_text()

"""Beyond accuracy: tables of calibration, shape bias and effective robustness, where there is something to show."""

from collections.abc import Iterator, Sequence
from functools import cache

from engine.metrics.effective import Effective, Line, effective_robustness, fit_line, load_baselines
from engine.report import corruptions
from engine.report.facts import Evaluation
from engine.report.layout import details, scroll, section, table
from engine.report.markup import Markup, tag
from engine.report.summary import CLEAN, Row, Summary
from engine.report.words import MINUS, NOTHING, suite_title

Lines = list[tuple[str, ...]]
MOST_LINES = 16  # of a table that is open when the page is
KINDS_HEAD = ("run", "images", "kind", "error at severity 1, 2, ... /%", "mean")
CALIBRATION_HEAD = ("run", "images", "ECE/%", "debiased/%", "RMS debiased/%", "NLL", "Brier")
CALIBRATION_NOTE = (
    "Confidence is the probability of the predicted class. ECE: how far confidence lies from accuracy, in 15 bins of "
    "equal width; few images make it too large. Debiased: less an estimate of that. RMS: the same as a root of mean "
    "squares, without that bias. NLL: minus the log of the label's probability. Brier: squared distance of the "
    "probabilities to the label. Lower is better; NLL and Brier with 95 % intervals."
)
SHAPE_HEAD = ("run", "images", "shape bias/%", "for the shape", "for the texture", "for a third class")
SHAPE_NOTE = (
    "On images whose shape and texture are of two classes: of the decisions for either, the share that is for the "
    "shape, with its 95 % Wilson interval."
)
EFFECTIVE_HEAD = ("run", "images", "expected/%", "effective/points", "line")
EFFECTIVE_NOTE = (
    "Expected: the accuracy that public models of the same clean accuracy have on the set, by a straight line on logit "
    "axes. Effective robustness: the points by which the run lies above it; the interval is that of the run's own "
    "accuracy."
)


class Part:
    """A table of the report, with its heading and what it means."""

    def __init__(self, heading: str, head: tuple[str, ...], lines: Lines, note: str) -> None:
        self.heading, self.head, self.lines, self.note = heading, head, lines, note


def parts(summary: Summary) -> list[Part]:
    """Those that have a line."""
    found = [
        Part("Corruptions", corruptions.HEAD, list(corruptions.lines(summary)), corruptions.NOTE),
        Part(
            "Corruptions, kind by kind",
            KINDS_HEAD,
            list(corruptions.kind_lines(summary)),
            corruptions.KINDS_NOTE,
        ),
        Part("Calibration", CALIBRATION_HEAD, list(_calibration(summary)), CALIBRATION_NOTE),
        Part("Shape bias", SHAPE_HEAD, list(_shape_bias(summary)), SHAPE_NOTE),
        Part("Effective robustness", EFFECTIVE_HEAD, list(_effective(summary)), EFFECTIVE_NOTE),
    ]
    return [part for part in found if part.lines]


def beyond_sections(summary: Summary) -> Markup:
    """Nothing, where the results say nothing of the kind."""
    return Markup("".join(_section(part) for part in parts(summary)))


def _section(part: Part) -> Markup:
    note = tag("p", part.note, class_="note")
    body = scroll(table(part.head, part.lines), part.heading)
    long = len(part.lines) > MOST_LINES
    return section(part.heading, details(f"{len(part.lines)} lines", body) if long else body, note)


def _suites(summary: Summary) -> Iterator[tuple[Row, Evaluation]]:
    for column in summary.columns:
        for row, cell in zip(summary.rows, column.cells, strict=True):
            if cell is not None and not cell.evaluation.attack:
                yield row, cell.evaluation


def _calibration(summary: Summary) -> Iterator[tuple[str, ...]]:
    for row, evaluation in _suites(summary):
        if (found := evaluation.calibration) is not None:
            part = (
                "" if found["num_scored"] == evaluation.share.num else f" ({found['num_scored']:,} of them)"
            )
            yield (
                row.label,
                suite_title(evaluation.suite) + part,
                f"{100 * found['ece']:.2f}",
                f"{100 * found['ece_debiased']:.2f}".replace("-", MINUS),
                f"{100 * found['rms_debiased']:.2f}",
                _number(found["nll"], found["nll_interval"]),
                _number(found["brier"], found["brier_interval"]),
            )


def _number(value: float, interval: Sequence[float]) -> str:
    return f"{value:.3f} [{interval[0]:.3f}, {interval[1]:.3f}]"


def _shape_bias(summary: Summary) -> Iterator[tuple[str, ...]]:
    for row, evaluation in _suites(summary):
        if (found := evaluation.shape_bias) is not None:
            counts = (f"{found['shape']:,}", f"{found['texture']:,}", f"{found['other']:,}")
            text = NOTHING
            if found["value"] is not None and found["interval"] is not None:
                low, high = found["interval"]
                text = f"{100 * found['value']:.1f} [{100 * low:.1f}, {100 * high:.1f}]"
            yield row.label, suite_title(evaluation.suite), text, *counts


def _effective(summary: Summary) -> Iterator[tuple[str, ...]]:
    for row, evaluation in _suites(summary):
        clean = _clean_of(summary, row, evaluation)
        line = lines_of_suites().get(evaluation.suite)
        if clean is None or line is None:
            continue
        share = evaluation.share
        found = effective_robustness(line, clean.share.value, share.value, share.interval)
        if found is not None:
            where = "" if found["is_inside"] else ", outside their clean accuracies"
            models = f"{found['num_models']} public models{where}"
            yield (
                row.label,
                suite_title(evaluation.suite),
                f"{100 * found['expected']:.1f}",
                _points(found),
                models,
            )


def _points(found: Effective) -> str:
    low, high = found["interval"]
    return f"{100 * found['value']:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]".replace("-", MINUS)


def _clean_of(summary: Summary, row: Row, evaluation: Evaluation) -> Evaluation | None:
    """The run's own accuracy on ImageNet's validation images, whole: lines are of these alone."""
    place = summary.rows.index(row)
    cells = [column.cells[place] for column in summary.columns]
    found = [cell.evaluation for cell in cells if cell is not None and not cell.evaluation.attack]
    same = [e for e in found if e.subset is None and e.weights_sha256 == evaluation.weights_sha256]
    return next((e for e in same if e.suite == "imagenet"), None) if evaluation.suite != CLEAN else None


@cache
def lines_of_suites() -> dict[str, Line]:
    """Of the stored public results."""
    return {suite: fit_line(list(found.points.values())) for suite, found in load_baselines().items()}

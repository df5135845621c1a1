"""The summary table's content: a row for each run (and its averaged weights), a column for each evaluation."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from engine.metrics.relative import relative_drop as share_drop
from engine.report.facts import EMA, Evaluation, Plain, RunFacts, Share
from engine.report.words import attack_title, number_text, settings_text, suite_title

CLEAN = "clean"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One set of weights of one run; `style` numbers its colour and marker."""

    label: str
    run: RunFacts
    weights: str
    style: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    evaluation: Evaluation
    drop: (
        float | None
    )  # (x - clean) / clean; None for clean itself and where there is nothing to relate it to

    @property
    def share(self) -> Share:
        return self.evaluation.share


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    name: str
    title: str
    detail: str
    cells: tuple[Cell | None, ...]  # one for each row
    problem: str  # why its cells must not be compared; empty where they may

    @property
    def is_attack(self) -> bool:
        return any(cell and cell.evaluation.attack for cell in self.cells)


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    rows: tuple[Row, ...]
    columns: tuple[Column, ...]

    @property
    def is_tall(self) -> bool:
        """Whether tables show evaluations as lines and runs as columns, so that many of a few runs fit a page."""
        return len(self.columns) > max(5, len(self.rows))


def summarize(runs: Sequence[RunFacts]) -> Summary:
    """Rows in the order of the runs; clean first, then suites, then attacks from weak to strong."""
    rows = _rows(runs)
    groups: dict[str, list[list[Evaluation]]] = {}
    for place, row in enumerate(rows):
        for evaluation in _evaluations(row):
            groups.setdefault(evaluation.name, [[] for _ in rows])[place].append(evaluation)
    columns = [column for name in groups for column in _columns(name, groups[name], rows)]
    return Summary(rows=rows, columns=tuple(sorted(columns, key=_order)))


def _rows(runs: Sequence[RunFacts]) -> tuple[Row, ...]:
    rows: list[Row] = []
    for run in runs:
        kinds = sorted({e.weights for e in run.evaluations} - {EMA}) or ["raw"]
        for kind in [*kinds, *([EMA] if any(e.weights == EMA for e in run.evaluations) else [])]:
            label = f"{run.name} (EMA)" if kind == EMA else run.name
            rows.append(Row(label=label, run=run, weights=kind, style=len(rows)))
    return tuple(rows)


def _evaluations(row: Row) -> list[Evaluation]:
    return [e for e in row.run.final if e.weights == row.weights]


def _order(column: Column) -> tuple[bool, bool, bool, str, str, float, float, str]:
    first = next(cell.evaluation for cell in column.cells if cell)
    steps = first.setting("steps")
    strength = (float(steps) if isinstance(steps, int | float) else 0.0, first.eps)
    is_other_norm = first.norm not in ("", "linf")  # the usual threat first
    return (
        bool(first.attack),
        column.name != CLEAN,
        is_other_norm,
        first.suite,
        first.norm,
        *strength,
        column.detail,
    )


def _columns(name: str, found: Sequence[Sequence[Evaluation]], rows: Sequence[Row]) -> list[Column]:
    """One column of that name, or one for each setting where a run has several results of that name."""
    if all(len(own) <= 1 for own in found):
        picked = [own[0] if own else None for own in found]
        return [_column(name, picked, rows, detail=_common_detail([e for e in picked if e]))]
    settings = dict.fromkeys(_settings(e) for own in found for e in own)
    picks = [[next((e for e in own if _settings(e) == wanted), None) for own in found] for wanted in settings]
    firsts = [next(e for e in picked if e) for picked in picks]
    is_full = len({settings_text(e) for e in firsts}) < len(firsts)
    return [
        _column(name, picked, rows, detail=settings_text(first, is_full=is_full))
        for picked, first in zip(picks, firsts, strict=True)
    ]


def _common_detail(evaluations: Sequence[Evaluation]) -> str:
    texts = {settings_text(e) for e in evaluations}
    return texts.pop() if len(texts) == 1 else "settings differ"


def _column(name: str, picked: Sequence[Evaluation | None], rows: Sequence[Row], *, detail: str) -> Column:
    there = [e for e in picked if e]
    first = there[0]
    cells = tuple(
        None if e is None else Cell(evaluation=e, drop=relative_drop(e, _evaluations(row)))
        for e, row in zip(picked, rows, strict=True)
    )
    title = attack_title(first) if first.attack else suite_title(first.suite)
    return Column(name=name, title=title, detail=detail, cells=cells, problem=differences(there))


def relative_drop(evaluation: Evaluation, others: Iterable[Evaluation]) -> float | None:
    """(x - clean) / clean. Clean is, for an attack, the same images before it; for a suite, the clean evaluation of the
    same weights. None without one."""
    if evaluation.attack:
        clean: Share | None = evaluation.before
    elif evaluation.suite == CLEAN:
        return None
    else:
        clean = next((e.share for e in others if _is_clean_of(evaluation, e)), None)
    return None if clean is None else share_drop(clean.value, evaluation.share.value)


def _is_clean_of(evaluation: Evaluation, other: Evaluation) -> bool:
    is_clean = other.suite == CLEAN and not other.attack
    return (
        is_clean and other.weights_sha256 == evaluation.weights_sha256 and other.subset == evaluation.subset
    )


def _settings(e: Evaluation) -> tuple[Plain, ...]:
    attack = tuple(value for pair in e.attack for value in pair)
    return (e.suite, e.subset, e.dataset, e.contract, e.precision, e.seed if e.is_random else None, *attack)


def differences(evaluations: Sequence[Evaluation]) -> str:
    """What keeps evaluations of one name from being compared, with the values; empty where nothing does."""
    found = {
        "evaluation set": {f"{e.suite} {e.dataset[:8]}" for e in evaluations},
        "images": {"all" if e.subset is None else str(e.subset) for e in evaluations},
        "contract": {e.contract for e in evaluations},
        "precision": {e.precision for e in evaluations},
        "seed of the random starts": {str(e.seed) for e in evaluations if e.is_random},
    }
    names = sorted({name for e in evaluations for name, _ in e.attack})
    for name in names:
        found[f"attack's {name}"] = {number_text(e.setting(name), name, e.norm) for e in evaluations}
    return "; ".join(
        f"{name} {' / '.join(sorted(values))}" for name, values in found.items() if len(values) > 1
    )

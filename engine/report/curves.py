"""Curves: robust accuracy against the radius, and what the training's log and its evaluations say over epochs."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from engine.report.facts import Share, TrainPoint
from engine.report.figures import Figure, epoch_axis, line_canvas, percent_axis, run_line, share_line
from engine.report.radius import Curve
from engine.report.summary import Row, Summary
from engine.report.svg import themed, to_svg
from engine.report.words import NORMS, attack_name, share_text

MOST_TICKS = 8
MOST_POINTS = 300  # of a curve; more would only make the page larger


def radius_figure(curve: Curve, place: int) -> Figure:
    """Robust accuracy against eps with the interval as a band."""
    example, norm = curve.example, curve.example.norm
    scale, unit = (255.0, "1/255") if norm == "linf" else (1.0, f"{NORMS.get(norm, norm)}, pixel units")
    name = f"radius{place}"
    radii = sorted({eps for line in curve.lines for eps, _ in line.points})
    with themed():
        canvas, axes = line_canvas()
        for line in curve.lines:
            points = [(eps * scale, share) for eps, share in line.points]
            share_line(axes, line.row, points, is_band=True)
        axes.set_xlim(left=0)
        if len(radii) <= MOST_TICKS:
            axes.set_xticks([eps * scale for eps in radii])
            axes.xaxis.set_major_formatter("{x:.4g}")
        axes.set_xlabel(f"radius eps ({unit})")
        percent_axis(axes, "y", "robust accuracy (%)")
    body = tuple(
        (
            f"{eps * scale:.4g}",
            *(next((share_text(s) for e, s in line.points if e == eps), "-") for line in curve.lines),
        )
        for eps in radii
    )
    step = f", step {curve.step_text}" if example.step_size else ""
    attack = f"{attack_name(example)} ({NORMS.get(norm, norm)}{step})"
    title = f"Robust accuracy against the radius of {attack}"
    note = "Eps 0 is the accuracy before the attack. Bands are 95 % Wilson intervals; lines guide the eye."
    if curve.left_out:
        note += f" Left out, for they differ in more than the radius: {', '.join(curve.left_out)}."
    return Figure(
        name=name,
        title=title,
        svg=to_svg(canvas, name=name, label=f"{title}. {_curve_label(curve, scale)}"),
        rows=tuple(line.row for line in curve.lines),
        note=note,
        head=(f"eps ({unit})", *(line.row.label for line in curve.lines)),
        body=body,
    )


def _curve_label(curve: Curve, scale: float) -> str:
    texts = [
        f"{line.row.label}: "
        + ", ".join(f"{100 * share.value:.1f} % at {eps * scale:.4g}" for eps, share in line.points)
        for line in curve.lines
    ]
    return "; ".join(texts) + "."


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantity:
    """One number of the training log: how it is called and drawn."""

    name: str
    title: str
    axis: str
    read: Callable[[TrainPoint], float | None]
    form: str


QUANTITIES = (
    Quantity(
        name="loss",
        title="Training loss, mean since the last report",
        axis="loss (nats)",
        read=lambda p: p.loss,
        form=".4f",
    ),
    Quantity(
        name="top1",
        title="Top-1 of the training batches, as augmented, mixed and attacked",
        axis="top-1 (% of images)",
        read=lambda p: None if p.top1 is None else 100 * p.top1,
        form=".1f",
    ),
    Quantity(name="lr", title="Learning rate", axis="learning rate", read=lambda p: p.lr, form=".3g"),
    Quantity(
        name="speed",
        title="Training speed, waiting and compiling included",
        axis="images/s",
        read=lambda p: p.images_per_s,
        form=".0f",
    ),
)


def training_figures(rows: Sequence[Row]) -> list[Figure]:
    """Loss, top-1, learning rate and speed over epochs: one line for each run that has a log."""
    firsts = {row.run.name: row for row in reversed(rows)}
    trained = [row for row in rows if firsts[row.run.name] is row and row.run.progress.points]
    return [_training_figure(quantity, trained) for quantity in QUANTITIES] if trained else []


def _training_figure(quantity: Quantity, rows: Sequence[Row]) -> Figure:
    curves = {row.label: _points(row, quantity) for row in rows}
    with themed():
        canvas, axes = line_canvas()
        for row in rows:
            x, y = [at for at, _ in curves[row.label]], [value for _, value in curves[row.label]]
            run_line(axes, row, x, y, is_marked=len(x) <= 40)
        epoch_axis(axes)
        if quantity.name == "top1":
            percent_axis(axes, "y", quantity.axis)
        else:
            axes.set_ylim(bottom=0)
            axes.set_ylabel(quantity.axis)
    last = [f"{label} ends at {values[-1][1]:{quantity.form}}" for label, values in curves.items() if values]
    label = f"{quantity.title} ({quantity.axis}) over epochs. {'; '.join(last)}."
    return Figure(
        name=f"train-{quantity.name}",
        title=quantity.title,
        svg=to_svg(canvas, name=f"train-{quantity.name}", label=label),
        rows=tuple(rows),
        note="",
        head=("", f"first ({quantity.axis})", "least", "greatest", "last", "reports"),
        body=tuple((label, *_numbers(values, quantity.form)) for label, values in curves.items()),
    )


def _points(row: Row, quantity: Quantity) -> list[tuple[float, float]]:
    found = [(p.epoch, value) for p in row.run.progress.points if (value := quantity.read(p)) is not None]
    stride = -(-len(found) // MOST_POINTS) or 1
    return [point for i, point in enumerate(found) if i % stride == 0 or i == len(found) - 1]


def _numbers(values: Sequence[tuple[float, float]], form: str) -> tuple[str, ...]:
    y = [value for _, value in values]
    return (
        (*(f"{number:{form}}" for number in (y[0], min(y), max(y), y[-1])), str(len(y))) if y else ("-",) * 5
    )


def epoch_figures(summary: Summary) -> list[Figure]:
    """Evaluations made during the training, as points with their intervals."""
    names = dict.fromkeys(e.name for row in summary.rows for e in row.run.evaluations if e.epoch is not None)
    titles = {column.name: column.title for column in summary.columns}
    return [
        _epoch_figure(name, titles.get(name, name), summary.rows, i) for i, name in enumerate(sorted(names))
    ]


def _epoch_figure(name: str, title: str, rows: Sequence[Row], place: int) -> Figure:
    curves = {row.label: (row, _epochs(row, name)) for row in rows}
    drawn = {label: (row, points) for label, (row, points) in curves.items() if points}
    with themed():
        canvas, axes = line_canvas()
        for row, points in drawn.values():
            share_line(axes, row, points, is_band=False)
        epoch_axis(axes)
        percent_axis(axes, "y", "accuracy (%)")
    heading = f"{title}: accuracy during training"
    ends = "; ".join(
        f"{label} {share_text(points[-1][1])} after epoch {points[-1][0]:g}"
        for label, (_, points) in drawn.items()
    )
    epochs = sorted({at for _, points in drawn.values() for at, _ in points})
    body = tuple(
        (
            f"{at:g}",
            *(next((share_text(s) for e, s in points if e == at), "-") for _, points in drawn.values()),
        )
        for at in epochs
    )
    return Figure(
        name=f"epochs{place}",
        title=heading,
        svg=to_svg(canvas, name=f"epochs{place}", label=f"{heading}. {ends}."),
        rows=tuple(row for row, _ in drawn.values()),
        note="Whiskers are 95 % Wilson intervals.",
        head=("epoch", *drawn),
        body=body,
    )


def _epochs(row: Row, name: str) -> list[tuple[float, Share]]:
    found = [
        e for e in row.run.evaluations if e.name == name and e.weights == row.weights and e.epoch is not None
    ]
    return sorted((float(e.epoch or 0), e.share) for e in found)

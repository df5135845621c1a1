"""A matplotlib figure as inline SVG that follows the page's theme and shares its document with other figures.

Colours are sentinels that become CSS variables; text stays text, in the page's font; ids get a prefix.
"""

import io
import re
from contextlib import AbstractContextManager
from html import escape
from typing import Any

from matplotlib import rc_context
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from engine.report.markup import Markup

# Drawn with these, shown with the variable. Numbers that no colour map would give.
INK, FAINT, PAPER = "#010203", "#010305", "#010307"
_VARIABLES = {INK: "var(--ink)", FAINT: "var(--rule)", PAPER: "var(--paper)"}
NUM_COLOURS = 6
FONT_PX = 11.5  # in units of the view box, of which a phone shows at least as many as pixels
_RC: dict[str, str | float | bool] = {
    "svg.fonttype": "none",
    "font.size": FONT_PX,
    "axes.titlesize": FONT_PX,
    "axes.labelsize": FONT_PX,
    "xtick.labelsize": FONT_PX,
    "ytick.labelsize": FONT_PX,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": FAINT,
    "axes.linewidth": 0.8,
    "grid.linewidth": 0.7,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
}


def themed(**more: str) -> AbstractContextManager[None]:
    """Around everything that draws: matplotlib's settings are global, and the caller's stay as they were."""
    settings: Any = {**_RC, **more}  # matplotlib types the keys one by one
    return rc_context(settings)


def run_colour(style: int) -> str:
    """The sentinel of a run's colour."""
    return f"#0102{16 + style % NUM_COLOURS:02x}"


def to_svg(figure: Figure, *, name: str, label: str) -> Markup:
    """<svg role="img"> with `label` as its text alternative. Equal figures of equal `name` give equal text."""
    text = io.StringIO()
    with themed(**{"svg.hashsalt": name}):
        FigureCanvasSVG(figure)  # becomes the figure's canvas
        figure.savefig(text, format="svg", metadata={"Date": None})
    return Markup(_opened(_themed(_body(text.getvalue(), name)), figure, label))


def _body(svg: str, name: str) -> str:
    """What is between <svg> and </svg>, with ids of this figure's own and without what would act on the page."""
    body = svg[svg.index(">", svg.index("<svg")) + 1 : svg.rindex("</svg>")]
    body = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", body, flags=re.DOTALL)
    used = set(re.findall(r'(?:url\(#|xlink:href="#)([^)"]+)', body))
    body = re.sub(r' id="([^"]+)"', lambda m: f' id="{name}-{m[1]}"' if m[1] in used else "", body)
    body = body.replace("url(#", f"url(#{name}-").replace('xlink:href="#', f'href="#{name}-')
    return re.sub(r"\s*\n\s*", " ", body)


def _themed(body: str) -> str:
    variables = _VARIABLES | {run_colour(i): f"var(--run-{i})" for i in range(NUM_COLOURS)}
    for sentinel, variable in variables.items():
        body = body.replace(sentinel, variable)
    body = re.sub(r"font-size: [\d.]+px; font-family: [^;\"]+;? ?", "", body)
    body = re.sub(r"font: [\d.]+px [^;\"]+;? ?", "", body)
    return re.sub(r' transform="rotate\(-0 [^"]*\)"| style=""', "", body)


def _opened(body: str, figure: Figure, label: str) -> str:
    width, height = (round(72 * side, 2) for side in figure.get_size_inches())
    return f'<svg role="img" aria-label="{escape(label)}" viewBox="0 0 {width:g} {height:g}">{body}</svg>'

"""How numbers and settings read: the same words in HTML, Markdown and figures."""

from collections.abc import Sequence
from datetime import UTC, datetime

from data.suite import load_suite
from engine.report.facts import Evaluation, Plain, Share

NORMS = {"linf": "L\u221e", "l2": "L2"}
MINUS, NOTHING = "\u2212", "\u2013"  # a minus sign; a dash where there is no value
_TITLED = ("attack", "norm", "eps", "step_size", "steps", "random_start", "version")


def percent(share: float, num: int) -> str:
    """A share in percent: 2 decimals where a single image of `num` shows in the second."""
    return f"{100 * share:.{decimals(num)}f}"


def decimals(num: int) -> int:
    return 1 if num <= 1000 else 2


def interval_text(share: Share) -> str:
    low, high = (percent(end, share.num) for end in share.interval)
    return f"[{low}, {high}]"


def counts_text(share: Share) -> str:
    return f"{share.correct:,}/{share.num:,}"


def share_text(share: Share) -> str:
    """91.1 % [87.7, 93.6]."""
    return f"{percent(share.value, share.num)} % {interval_text(share)}"


def drop_text(drop: float | None) -> str:
    """With a true minus sign; empty where there is none."""
    return "" if drop is None else f"{100 * drop:+.1f} %".replace("-", MINUS)


def suite_title(suite: str) -> str:
    """The manifest's title; the id of a set that has none, such as somebody's own images."""
    try:
        return load_suite(suite).title
    except ValueError:
        return suite


def eps_text(value: float, norm: str) -> str:
    """16/255 for linf, where papers count so; pixel units for the others."""
    return f"{value * 255:.4g}/255" if norm == "linf" else f"{value:.4g}"


def attack_title(evaluation: Evaluation) -> str:
    """PGD-20, ℓ∞ 16/255."""
    norm, eps = evaluation.norm, eps_text(evaluation.eps, evaluation.norm)
    return (
        f"{attack_name(evaluation)}, {NORMS.get(norm, norm)}\u00a0{eps}"  # norm and radius stay on one line
    )


def attack_name(evaluation: Evaluation) -> str:
    if evaluation.setting("attack") == "autoattack":
        return f"AutoAttack {evaluation.setting('version')}"
    steps = evaluation.setting("steps")
    return f"{str(evaluation.setting('attack')).upper()}{'' if steps is None else f'-{steps}'}"


def settings_text(evaluation: Evaluation, *, is_full: bool = False) -> str:
    """What the title leaves out."""
    parts = []
    if evaluation.step_size:
        parts.append(f"step {eps_text(evaluation.step_size, evaluation.norm)}")
    if evaluation.setting("random_start") is not None:
        parts.append("random start" if evaluation.is_random else "clean start")
    for name, value in evaluation.attack:
        if name not in _TITLED and value not in (None, False) and (name, value) != ("restarts", 1):
            parts.append(name.replace("_", " ") if value is True else f"{name.replace('_', ' ')} {value}")
    if evaluation.attack and evaluation.suite != "clean":
        parts.append(f"on {evaluation.suite}")
    if evaluation.subset is not None:
        parts.append(f"{evaluation.subset} images")
    if is_full:
        parts += [f"data {evaluation.dataset[:8]}", evaluation.contract]
    return ", ".join(parts)


def number_text(value: Plain, name: str, norm: str) -> str:
    if name in ("eps", "step_size") and isinstance(value, float):
        return eps_text(value, norm)
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def duration_text(seconds: float | None) -> str:
    if seconds is None:
        return ""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def time_text(seconds: float | None) -> str:
    return "" if seconds is None else datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")


def listed(words: Sequence[str]) -> str:
    """a, b and c."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"

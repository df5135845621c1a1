"""The entries of `evals` that the words of `attack` stand for: one a radius, and for each number of steps of a preset.

Nothing is checked here that a recipe's entries check: what is no setting of an attack is refused with them.
"""

import argparse
from collections.abc import Iterator
from itertools import product
from typing import Any, NamedTuple

from engine.eval_fields import PRESET_STEPS, radius_name
from engine.override import from_yaml

PGD_STEPS = 20
PRESET_EPS, PRESET_STEP = "4/255", 1 / 255
NORMS = ("linf", "l2", "l1")


class Radius(NamedTuple):
    """As it was written."""

    norm: str
    eps: str


def attack_entries(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Without what all entries of a command share. ValueError for radii that cannot be told apart, or none."""
    if arguments.preset is not None:
        return list(_of_preset(arguments))
    if arguments.eps is None:
        raise ValueError(
            "the following arguments are required: --eps; give a radius such as 4/255, or --preset NAME"
        )
    return [_entry(arguments, radius) | _settings(arguments, radius.eps) for radius in _radii(arguments)]


def _entry(arguments: argparse.Namespace, radius: Radius) -> dict[str, Any]:
    return {"attack": arguments.attack, "norm": radius.norm, "eps": from_yaml(radius.eps, "--eps")}


def _of_preset(arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The step is the published one, and at least as long as it takes to cross the ball's radius."""
    if arguments.attack != "pgd":
        raise ValueError(f"--preset is {arguments.preset!r}, but belongs to --attack pgd alone; drop it")
    steps = (
        PRESET_STEPS.get(arguments.preset, (PGD_STEPS,)) if arguments.steps is None else (arguments.steps,)
    )
    arguments.eps = arguments.eps or PRESET_EPS
    for radius, count in product(_radii(arguments), steps):
        eps = _number(radius.eps)
        told = {
            name: value for name, value in _settings(arguments, radius.eps).items() if name != "step_size"
        }
        step = PRESET_STEP if isinstance(eps, str) or count < 1 else max(PRESET_STEP, eps / count)
        if arguments.step_size is not None:
            step = from_yaml(arguments.step_size, "--step-size")
        yield (
            _entry(arguments, radius)
            | told
            | {
                "preset": arguments.preset,
                "steps": count,
                "step_size": step,
            }
        )


def _settings(arguments: argparse.Namespace, eps: str) -> dict[str, Any]:
    """What the command line says of the attack; None where it says nothing."""
    step = arguments.step_size
    told = {
        "step_size": None if step is None else from_yaml(step, "--step-size"),
        "steps": arguments.steps,
        "random_start": False if arguments.no_random_start else None,
        "restarts": arguments.restarts,
        "best_iterate": arguments.best_iterate or None,
        "version": arguments.version,
        "until_ci": arguments.until_ci,
        "save_images": arguments.save_images or None,
    }
    if arguments.attack == "autoattack":
        return told
    number = _number(eps)
    usual = {"step_size": eps if isinstance(number, str) else number / 4, "steps": PGD_STEPS}
    return told | {name: value for name, value in usual.items() if told[name] is None}


def _radii(arguments: argparse.Namespace) -> list[Radius]:
    """The radii of --eps; each is to have a result of its own, so none comes twice."""
    text = arguments.eps
    parts = [part.strip() for part in text.split(",")]
    if "" in parts:
        raise ValueError(
            f"--eps is {text!r}, where item {parts.index('') + 1} is empty; write radii with one comma between, "
            "such as 4/255,8/255"
        )
    seen: dict[str, str] = {}
    radii = []
    for part in parts:
        radius = _radius(part, arguments.norm)
        number = _number(radius.eps)
        name = part if isinstance(number, str) else radius_name(radius.norm, number)
        if name in seen:
            raise ValueError(
                f"--eps is {text!r}, where {seen[name]} and {part} are one radius, {name}; drop one of them"
            )
        seen[name] = part
        radii.append(radius)
    return radii


def _radius(text: str, norm: str) -> Radius:
    """l2:0.5, or 0.5 in the norm of all."""
    own, colon, eps = text.partition(":")
    if colon and own not in NORMS:
        raise ValueError(f"--eps has {text!r}, whose norm must be linf, l2 or l1, such as l2:0.5")
    return Radius(own, eps) if colon else Radius(norm, text)


def _number(eps: str) -> str | float:
    """What is no number goes on as it is, to be refused with its name."""
    numerator, _, denominator = eps.partition("/")
    try:
        return float(numerator) / float(denominator or 1)
    except (ValueError, ZeroDivisionError):
        return eps

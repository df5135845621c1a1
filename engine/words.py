"""Settings in the words people use: radii in 1/255, attacks and objectives in one phrase."""

from collections.abc import Mapping

from engine.fields import ObjectiveSection


def radius(eps: float, norm: str = "linf") -> str:
    """A linf radius as a fraction of 255 where that is a short number ("4/255"); else, and for l2, the number."""
    scaled = eps * 255
    is_short = norm == "linf" and abs(scaled - round(scaled, 2)) < 1e-6
    return f"{round(scaled, 2):g}/255" if is_short else f"{eps:g}"


def attack_words(attack: Mapping[str, object]) -> str:
    """The `attack` of a result or of a recipe's section, such as "PGD-20, linf, eps 4/255, step 1/255"."""
    norm = str(attack["norm"])
    if attack.get("attack") == "autoattack":
        return f"AutoAttack {attack['version']}, {norm}, eps {radius(float(str(attack['eps'])), norm)}"
    eps, step_size = (radius(float(str(attack[name])), norm) for name in ("eps", "step_size"))
    words = [
        f"{str(attack.get('attack', 'pgd')).upper()}-{attack['steps']}",
        norm,
        f"eps {eps}",
        f"step {step_size}",
    ]
    words.append("random start" if attack.get("random_start", True) else "no random start")
    if int(str(attack.get("restarts", 1))) > 1:
        words.append(f"{attack['restarts']} restarts")
    if attack.get("best_iterate"):
        words.append("best iterate")
    if attack.get("targeted"):
        words.append("targeted")
    return ", ".join(words)


def objective_words(objective: ObjectiveSection) -> str:
    """ "clean", or another kind with its number and its attack: "trades, beta 6: PGD-10, linf, ..."."""
    kind: str = objective.kind
    if kind in ("trades", "mart"):
        kind += f", beta {objective.beta:g}"
    if kind == "free":
        kind += f", {objective.replays} replays"
    if objective.clean_weight > 0:
        kind += f", clean weight {objective.clean_weight:g}"
    if (distill := objective.distill) is not None:
        kind += (
            f", {distill.kind} distillation of {distill.alpha:g} from {distill.teacher.rpartition('/')[2]}"
        )
    return kind if objective.attack is None else f"{kind}: {attack_words(objective.attack.model_dump())}"


def short_list(names: list[str], shown: int = 12) -> str:
    """The names, the middle of a long list left out."""
    if len(names) <= shown:
        return ", ".join(names)
    return f"{', '.join(names[: shown // 2])}, ... {', '.join(names[-2:])}"


def amount(value: float, unit: str) -> str:
    """Three digits with a decimal prefix: 5.21 MMACs, 1.5 GB."""
    for factor, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= factor:
            return f"{value / factor:.3g} {prefix}{unit}"
    return f"{value:.3g} {unit}"

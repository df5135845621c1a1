"""What an objective costs: forward and backward passes over an image for each time it is trained on."""

from typing import NamedTuple

from engine.fields import ObjectiveSection


class Passes(NamedTuple):
    """Passes of one image through the model, in one batch."""

    forward: int
    input_only: int  # backward passes that reach the image and no weight
    full: int  # backward passes with weight gradients
    teacher: int = 0  # forward passes of the teacher, another model

    @property
    def as_forwards(self) -> int:
        """In forward passes of the model: an input-only backward counts as one, a full one as two, and the teacher's
        passes not at all, for what they cost is another number."""
        return self.forward + self.input_only + 2 * self.full


def passes_of(objective: ObjectiveSection, *, recompute: bool = False) -> Passes:
    """As tests/engine/test_objectives.py counts them. With `recompute` every backward pass, an attack's too, repeats a
    forward pass; of the blocks, so what lies around them is counted once too often."""
    steps = 0 if objective.attack is None else objective.attack.steps
    if objective.kind == "free":
        found = Passes(objective.replays, 0, objective.replays)
    else:
        teacher = int(objective.distill is not None)  # it sees the image before the attack, once
        trained = 2 if objective.kind in ("trades", "mart", "advprop") or objective.clean_weight > 0 else 1
        prediction = 1 if objective.kind == "trades" else 0
        found = Passes(trained + steps + prediction, steps, trained, teacher)
    again = found.input_only + found.full if recompute else 0
    return found._replace(forward=found.forward + again)

"""The result of an AutoAttack evaluation, from its rows; with `until_ci` also whether they are enough."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from engine.attack_notes import facts_of, remarks
from engine.attack_settings import AttackSettings
from engine.attack_tally import Images, tally_in_turn
from engine.blocks import Keys
from engine.evaluate import Evaluator
from engine.ledger import read_ledger
from engine.sampling import CONFIDENCE, sequential_interval

SEQUENCE = (
    "confidence sequence for a sample without replacement, valid at any stopping time (arXiv:2006.04347)"
)


class Sample(NamedTuple):
    """What was seen of a population in random order."""

    right: int
    drawn: int
    total: int

    @property
    def interval(self) -> tuple[float, float]:
        found = sequential_interval(self.right, self.drawn, self.total)
        return found.low, found.high

    def is_enough(self, half_width: float) -> bool:
        low, high = self.interval
        return (high - low) / 2.0 <= half_width


def sample_of(evaluator: Evaluator, settings: AttackSettings, keys: Keys) -> Sample:
    """Of `keys`, which are all done."""
    robust = read_ledger(evaluator.ledger, settings.identity).right(
        settings.identity, settings.components[-1]
    )
    return Sample(int(np.isin(robust, keys).sum()), len(keys), len(settings.keys))


def attack_result(evaluator: Evaluator, settings: AttackSettings) -> dict[str, Any]:
    """Plain values; ValueError where rows are missing. Of a part what there is to say before it is joined."""
    head = {
        "name": settings.entry.name,
        "weights": evaluator.weights,
        "recipe": evaluator.recipe,
        "evaluation": settings.identity,
        **settings.description,
    }
    if settings.part.total > 1:
        own = [settings.part.has(number, 0, 1) for number in range(len(settings.blocks))]
        num = sum(len(keys) for keys, is_own in zip(settings.blocks, own, strict=True) if is_own)
        return {**head, "part": str(settings.part), "num_images": num}
    keys = settings.keys
    if settings.until_ci is not None:
        keys = _begun(evaluator, settings)
    images = Images.of(evaluator.index, keys)
    return counted(evaluator, settings, head, images)


def counted(
    evaluator: Evaluator, settings: AttackSettings, head: Mapping[str, Any], images: Images
) -> dict[str, Any]:
    """`head` with what the rows of `images` say."""
    ledger, identity = evaluator.ledger, settings.identity
    counts = tally_in_turn(ledger, identity, settings.components, images, counts_bad=evaluator.bad == "wrong")
    result = {**head, "version": settings.version.id, **counts}
    if settings.until_ci is not None:
        sample = Sample(counts["num_correct"], counts["num_images"], len(settings.keys))
        result |= {
            "interval": list(sample.interval),
            "interval_kind": SEQUENCE,
            "confidence": CONFIDENCE,
            "num_total": sample.total,
        }
    entry, facts = settings.entry, facts_of(ledger, identity)
    return result | remarks(ledger, identity, settings.version, facts, eps=entry.eps, norm=entry.norm)


def _begun(evaluator: Evaluator, settings: AttackSettings) -> Keys:
    """The images of the blocks that were begun: a beginning of the random order."""
    seen = read_ledger(evaluator.ledger, settings.identity).done(settings.identity, settings.components[0])
    blocks = [keys for keys in settings.blocks if np.isin(keys, seen).any()]
    return np.sort(np.concatenate(blocks))

"""What makes a robust accuracy less than it seems: a look at the model before the attack, and at the rows behind it.

The look is kept beside the ledger as facts-ID.json, with what a result says beside its rows, so that the parts of an
evaluation can be joined where neither model nor shards are.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bits.checkpoint import write_atomic
from data.loader import eval_loader
from data.order import hash64
from engine.attack_checks import Check, read_checks
from engine.attack_settings import AttackSettings
from engine.attack_tally import Images
from engine.blocks import Keys
from engine.eval_fields import AttackEval
from engine.evaluate import Evaluator
from engine.ledger import Verdict, read_ledger
from engine.rows import CLEAN
from robust.bounds import Row, audit_of
from robust.diagnosis import SQUARE_GAIN, SURE, Diagnosis, diagnose
from robust.precision import exact_float32
from robust.probe import MORE_STEPS, SEEDS, STEPS, Probe, probe
from robust.threat import slack
from robust.versions import Version, version_of

MOST_LOOKED_AT = 64  # images
WORTH_A_PROBE = (
    10 * MOST_LOOKED_AT * (SEEDS * STEPS + MORE_STEPS)
)  # gradients of a PGD evaluation: a tenth at most


def first_look(evaluator: Evaluator, settings: AttackSettings) -> None:
    """Symptoms of the model on the first images, and facts for the result; nothing where they are there."""
    path = _path(evaluator.ledger, settings.identity)
    if path.exists():
        return
    images = Images.of(evaluator.index, settings.keys)
    entry = settings.entry
    # No PGD in l1.
    found, tried = look(evaluator, settings.keys, entry.eps, entry.norm, probes=entry.norm != "l1")
    facts = {
        "weights": evaluator.weights,
        "recipe": evaluator.recipe,
        "version": entry.version,
        "num_classes": int(getattr(evaluator.model, "num_classes", len(evaluator.index.classes))),
        "num_images": images.num,
        "key_hash": images.key_hash,
        "counts_bad": evaluator.bad == "wrong",
        **_kept(evaluator, found, tried),
    }
    write_atomic(path, json.dumps(facts).encode())


def pgd_remarks(evaluator: Evaluator, entry: AttackEval, identity: str) -> dict[str, Any]:
    """`notes` and `flags` for the result of a PGD evaluation; all ranks take part."""
    env, path = evaluator.env, _path(evaluator.ledger, identity)
    if env.parts != env.world_size:
        return {}  # one program of many hosts, of which none looks alone
    if env.rank == 0 and not path.exists():
        keys = evaluator.keys(entry)
        passes = len(keys) * entry.steps * entry.restarts
        found, tried = look(evaluator, keys, entry.eps, entry.norm, probes=passes >= WORTH_A_PROBE)
        write_atomic(path, json.dumps(_kept(evaluator, found, tried)).encode())
    env.barrier()
    facts = facts_of(evaluator.ledger, identity)
    flags, notes = of_rows(list(read_ledger(evaluator.ledger, identity).rows(identity)))
    return {"notes": [*facts["notes"], *notes], "flags": {**facts["flags"], **flags}}


def look(
    evaluator: Evaluator, keys: Keys, eps: float, norm: Any, *, probes: bool = True
) -> tuple[Diagnosis, Probe | None]:
    """At the first of the images of `keys`; with a probe about 90 forward and backward passes of one batch."""
    env, keys = evaluator.env, keys[:MOST_LOOKED_AT]
    num = -(-len(keys) // env.num_devices) * env.num_devices
    (batch,) = eval_loader(
        evaluator.index,
        keys=keys,
        global_batch=num,
        rank=0,
        world_size=1,
        image_size=evaluator.image_size,
        resize=evaluator.transform,
        num_workers=0,
        seed=evaluator.seed,
        on_bad=(lambda bad: None) if evaluator.bad == "wrong" else None,
    )
    rows = torch.arange(num) % len(keys)  # what fills the batch up is another look at an image
    streams = np.array([hash64("probe", int(key)) for key in batch.key.tolist()], dtype=np.uint64)
    keyed = torch.from_numpy(streams.view(np.int64))
    fed = env.feed({"image": batch.image[rows], "label": batch.label[rows], "keys": keyed[rows]})
    radius = env.feed({"eps": torch.tensor(eps)}, split=False)["eps"]
    image, model = fed["image"].float() / 255.0, evaluator.model
    was_training = model.training
    model.eval()
    try:
        with exact_float32():
            found = diagnose(model, image, fed["label"])
            env.cut()
            if not probes:
                return found, None
            return found, probe(
                model, image, fed["label"], eps=radius, norm=norm, keys=fed["keys"], cut=env.cut
            )
    finally:
        model.train(was_training)


def _kept(evaluator: Evaluator, found: Diagnosis, tried: Probe | None) -> dict[str, Any]:
    """The first look in words and numbers."""
    flags: dict[str, Any] = {
        "is_random": found.is_random,
        "is_batch_dependent": found.is_batch_dependent,
        "is_probability": found.is_probability,
        "zero_gradient": dict(found.zero_share),
        "resolution": [3, evaluator.image_size, evaluator.image_size],
    }
    if tried is None:
        return {"notes": list(found.notes), "flags": flags}
    flags |= {
        "probe_images": tried.num_images,
        "seed_spread": tried.seed_spread,
        "seed_undecided": tried.undecided,
        f"right_after_{STEPS}_steps": tried.right[0],
        f"right_after_{MORE_STEPS}_steps": tried.right_after_more,
    }
    return {"notes": [*found.notes, *tried.notes], "flags": flags}


def facts_of(ledger: Path, identity: str) -> dict[str, Any]:
    """What the first look has kept; empty where there was none."""
    path = _path(ledger, identity)
    return json.loads(path.read_bytes()) if path.exists() else {}


def remarks(
    ledger: Path, identity: str, version: Version, facts: Mapping[str, Any], *, eps: float, norm: str
) -> dict[str, Any]:
    """`notes` and `flags` of a result: the first look's, and what the verdicts themselves say against the number."""
    rows = list(read_ledger(ledger, identity).rows(identity))
    flags, notes = of_rows(rows)
    checked, said = _of_checks(list(read_checks(ledger, identity).values()), facts, eps=eps, norm=norm)
    audited = _audit(rows, version)
    return {
        "notes": [*facts.get("notes", []), *notes, *said, *audited],
        "flags": {**facts.get("flags", {}), **flags, **checked},
    }


def of_rows(rows: list[Verdict]) -> tuple[dict[str, Any], list[str]]:
    """Flags and notes of verdicts alone, of any attack."""
    broken = [row for row in rows if row.broken_by is not None]
    num_images = sum(row.component == CLEAN for row in rows)
    by_queries, notes = sum(row.broken_by == "square" for row in broken), []
    if by_queries > SQUARE_GAIN * num_images:
        notes.append(
            f"square, which sees no gradient, broke {by_queries} of {num_images} images that the attacks by gradients "
            "had left: gradients are masked, and the true robust accuracy is lower"
        )
    margins = torch.tensor([row.margin for row in broken])
    if nan := int(margins.isnan().sum()):
        notes.append(f"{nan} images end in logits that are NaN; they count as wrong")
    if close := int((margins.abs() < SURE).sum()):
        notes.append(
            f"{close} verdicts hang on a margin below {SURE:g}: another machine may see them otherwise"
        )
    return {"square_gain": by_queries / max(1, num_images), "nan": nan, "close": close}, notes


def _of_checks(
    checks: list[Check], facts: Mapping[str, Any], *, eps: float, norm: str
) -> tuple[dict[str, Any], list[str]]:
    if not checks:
        return {"checked": 0}, []
    limit = eps + slack(norm, eps, facts.get("flags", {}).get("resolution", [3, 1, 1]))
    worst = max(check.distance for check in checks)
    flips, kept = sum(check.flips for check in checks), sum(check.wrong_as_uint8 for check in checks)
    outside = sum(check.low < 0.0 or check.high > 1.0 or check.distance > limit for check in checks)
    notes = []
    if flips:
        notes.append(f"{flips} of {len(checks)} breaks are undone by another batch size")
    if outside:
        notes.append(f"{outside} images lie beyond eps or [0, 1], the farthest by {worst - eps:g}: a bug")
    flags = {
        "checked": len(checks),  # broken images
        "flips": flips,
        "wrong_as_uint8": kept,
        "largest_distance": worst,
        "ball_violation": max(0.0, worst - eps),
        "outside": outside,
    }
    return flags, notes


def _audit(rows: list[Verdict], version: Version) -> list[str]:
    """Of a version that looks at a sample of its survivors only."""
    seen = [Row(row.key, row.component, bool(row.queries), not row.correct) for row in rows]
    found = audit_of(version, seen, num_images=sum(row.component == CLEAN for row in rows))
    return [] if found is None else [str(found)]


def stored_version(facts: Mapping[str, Any], norm: Any) -> Version:
    """The version that the facts are about."""
    return version_of(facts["version"], norm=norm, num_classes=facts["num_classes"])


def _path(ledger: Path, identity: str) -> Path:
    return ledger / f"facts-{identity}.json"

"""Run folders as the toolkit's own writers leave them, without a training."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import torch
from safetensors.numpy import save_file

from bits.checkpoint import save_checkpoint
from bits.environment import Environment
from engine.folder import RunFolder
from engine.ledger import LedgerWriter, Verdict, read_ledger, wilson_interval
from engine.log import RunLog
from engine.recipe import load_recipe
from engine.verdict import evaluation_id, weights_hash

ROOT = Path(__file__).parents[3]
RECIPE = ROOT / "recipes/quickstart/cnn_adv.yaml"


def pgd(
    eps: float, *, step_size: float | None = None, steps: int = 20, norm: str = "linf", **more: object
) -> dict[str, Any]:
    step_size = eps / 4 if step_size is None else step_size
    return {
        "attack": "pgd",
        "norm": norm,
        "eps": eps,
        "step_size": step_size,
        "steps": steps,
        "random_start": True,
        **more,
    }


@dataclass(frozen=True, kw_only=True)
class Spec:
    """One evaluation: of `num` images the first `wrong` are wrong as they are, the next `broken` after the attack."""

    name: str
    suite: str = "clean"
    num: int = 60
    wrong: int = 3
    attack: Mapping[str, Any] | None = None
    broken: int = 0
    file: str | None = None
    weights: str = "raw"
    weights_sha256: str | None = None  # None: of the run's checkpoint
    dataset: str = "d" * 64
    contract: str = "default/squash-bicubic-32px"
    seed: int = 0
    gallery: int = 0  # pictures
    confidence: float | None = None  # of every image, right or wrong
    cues: bool = (
        False  # names are those of cue conflicts; wrong ones go to the texture, every fifth to a third class
    )


CLEAN = Spec(name="clean")


@dataclass(frozen=True, kw_only=True)
class MakeRun:
    """make_run(folder, specs...) -> the folder."""

    classes: Sequence[str] = field(default=tuple(str(i) for i in range(10)))

    def __call__(
        self,
        root: Path,
        specs: Sequence[Spec] = (CLEAN,),
        *,
        end: str | None = "end",
        overrides: Sequence[str] = (),
        classes: Sequence[str] | None = None,
        recipe: bool = True,
    ) -> Path:
        folder = RunFolder(root)
        folder.create()
        resolved = load_recipe(RECIPE, list(overrides))
        if recipe:
            env = SimpleNamespace(
                backend="cpu", device=torch.device("cpu"), world_size=1, num_devices=1, precision="float32"
            )
            folder.write_start(resolved, cast(Environment, env))
        log = RunLog(folder.log)
        log.write("start", resumed=False, step=0, recipe=resolved.hash, backend="cpu")
        states = {kind: {"w": torch.full((3,), float(i))} for i, kind in enumerate(("raw", "ema"))}
        for step in (1, 22, 44, 88):
            point = {
                "epoch": step / 22,
                "lr": 0.01 / step,
                "images_per_s": 100.0,
                "loss": 2.0 / step,
                "top1": step / 100,
            }
            log.write("train", step=step, **point)
        facts = {"recipe": resolved.hash, "classes": list(classes or self.classes)}
        save_checkpoint(folder.checkpoints, 88, {"model": states["raw"], "ema": states["ema"]}, facts=facts)
        for spec in specs:
            write_result(
                folder, spec, resolved.hash, {kind: weights_hash(state) for kind, state in states.items()}
            )
        if end is not None:
            log.write(end, step=88, **({"error": "the disk is full"} if end == "error" else {}))
            folder.write_exit({"end": 0, "stop": 75, "error": 2}[end])
        return root


def write_result(folder: RunFolder, spec: Spec, recipe: str, hashes: Mapping[str, str]) -> None:
    """As engine.evaluate and engine.measure do."""
    description = {
        "weights_sha256": spec.weights_sha256 or hashes[spec.weights],
        "suite": f"{spec.suite}@{spec.dataset}",
        "contract": spec.contract,
        "attack": None if spec.attack is None else dict(spec.attack),
        "seed": spec.seed,
        "precision": "float32",
    }
    identity = evaluation_id(**description)  # type: ignore[arg-type]
    components = ["clean"] if spec.attack is None else ["clean", spec.name]
    with LedgerWriter(folder.ledger, 0) as writer:
        writer.describe(identity, {**description, "name": spec.name, "components": components})
        writer.write(verdict for name in components for verdict in _verdicts(spec, identity, name))
    summary = read_ledger(folder.ledger, identity).summary(identity)
    interval = list(wilson_interval(summary["num_correct"], summary["num_images"]))
    facts = {"name": spec.name, "weights": spec.weights, "recipe": recipe, "evaluation": identity}
    stem = spec.file or (spec.name if spec.weights == "raw" else f"{spec.name}-{spec.weights}")
    folder.results.mkdir(exist_ok=True)
    result = {**facts, **description, **summary, "interval": interval}
    (folder.results / f"{stem}.json").write_text(json.dumps(result, indent=1) + "\n")
    if spec.gallery:
        _write_gallery(folder, spec, identity, stem)


def _verdicts(spec: Spec, identity: str, component: str) -> list[Verdict]:
    wrong = spec.wrong if component == "clean" else spec.wrong + spec.broken
    rows = []
    for i in range(spec.num):
        label = i % 10
        prediction = label if i >= wrong else (label + 1) % 10
        # An attack may also mend: image 0 is wrong before it and right after it, and must not count.
        prediction = label if component != "clean" and i == 0 else prediction
        is_right = prediction == label
        key = f"{label}/{i:04d}"
        if spec.cues:
            key = f"shape{label}_texture{(label + 1) % 10}/{i:06d}"
            prediction = (label + 2) % 10 if not is_right and i % 5 == 0 else prediction
        row = Verdict(
            identity, key, component, i, label, prediction, is_right, True, 1.0 if is_right else -1.0
        )
        if spec.confidence is not None:
            row = row._replace(confidence=spec.confidence, nll=0.5 if is_right else 2.0, brier=0.1)
        rows.append(row)
    return rows


def _write_gallery(folder: RunFolder, spec: Spec, identity: str, stem: str) -> None:
    generator = np.random.default_rng(7)
    image = generator.integers(0, 256, (spec.gallery, 3, 8, 8)).astype(np.uint8)
    tensors: dict[str, Any] = {"image": image}
    if spec.attack is not None:
        shift = generator.uniform(-1, 1, image.shape).astype(np.float32) * spec.attack["eps"]
        tensors["attacked"] = np.clip(image.astype(np.float32) / 255 + shift, 0, 1).astype(np.float32)
    names = json.dumps([f"{i % 10}/{i:04d}" for i in range(spec.gallery)])
    path = folder.root / "gallery" / f"{stem}.safetensors"
    path.parent.mkdir(exist_ok=True)
    save_file(tensors, path, {"evaluation": identity, "names": names})

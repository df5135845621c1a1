"""An AutoAttack evaluation on XLA:CPU: prints a line of JSON with what torch_xla counted, by block and inside steps.

Run by test_autoattack_xla.py: python autoattack_xla_worker.py SHARDS FOLDER
"""

import json
import sys
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import torch

from bits.environment import open_environment
from data.index import load_index
from data.loader import eval_loader
from data.transform import EvalTransform
from engine.autoattack import run_autoattack
from engine.block_attack import BlockJob
from engine.eval_fields import AutoAttackEval
from engine.evaluate import Evaluator
from engine.verdict import weights_hash
from robust import versions
from robust.apgd import Apgd
from robust.fab import Fab
from robust.square import Square
from tests.engine.autoattack_cases import SIZE, NearestMean, short

LANES, NUM, EPS = 16, 64, 32 / 255


def main(shards: Path, folder: Path) -> None:
    env = open_environment("xla")
    counts: dict[str, Counter[str]] = {}
    versions.VERSIONS["short"] = short  # type: ignore[index]

    def watch(owner: type, name: str, label: Any) -> None:
        real = getattr(owner, name)

        def call(*arguments: Any, **words: Any) -> Any:
            before = env.counters()
            made = real(*arguments, **words)
            found = {key: value - before[key] for key, value in env.counters().items()}
            counts.setdefault(label(*arguments), Counter()).update(found)
            return made

        setattr(owner, name, call)

    for component in (Apgd, Fab, Square):
        watch(component, "step", lambda *arguments: "steps")
    watch(BlockJob, "run", lambda job, number, *rest: f"block {number}")
    index, transform = load_index(shards), EvalTransform(mode="squash")
    load = partial(
        eval_loader, index, rank=0, world_size=1, image_size=SIZE, resize=transform, num_workers=0, seed=0
    )
    (batch,) = load(keys=None, global_batch=index.num_samples)
    image, label = batch.image.float() / 255.0, batch.label
    model = NearestMean(torch.stack([image[label == c].mean(0) for c in range(10)]))
    hashed = weights_hash(model.state_dict())
    evaluator = Evaluator(
        env=env,
        model=env.place(model),
        weights_sha256=hashed,
        index=index,
        transform=transform,
        suite="clean",
        weights="raw",
        image_size=SIZE,
        batch_size=50,
        num_workers=0,
        seed=7,
        ledger=folder / "ledger",
        recipe="0" * 16,
    )
    entry = AutoAttackEval(
        attack="autoattack", norm="linf", eps=EPS, version="short", num_images=NUM, batch_size=LANES
    )
    result = run_autoattack(evaluator, entry)
    broken = {name: part["num_broken"] for name, part in result["components"].items()}
    left = {name: part["num_images"] for name, part in result["components"].items()}
    print(
        json.dumps({"counts": counts, "broken": broken, "left": left, "flags": result["flags"]}), flush=True
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))

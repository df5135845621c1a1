"""The program of a real third update and the exported one, as counts of their operations. Prints JSON.

step_worker.py RECIPE [key=value ...]
"""

import json
import os
import re
import sys
from collections import Counter
from pathlib import Path

os.environ |= {"PJRT_DEVICE": "CPU", "CPU_NUM_DEVICES": "1"}
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")
sys.path.insert(0, str(Path(__file__).parents[3]))

from torch import Tensor
from torch_xla import _XLAC

from bits import xla_export
from bits.environment import open_environment
from bits.xla_export import open_export
from engine.recipe import Recipe, load_recipe
from engine.tpu.traced import Traced, build_step, feed


def operations(text: str) -> dict[str, int]:
    return dict(Counter(re.findall(r"stablehlo\.(\w+)", text)))


def of_a_run(recipe: Recipe) -> dict[str, int]:
    """Two updates run; the third one's program is taken where it would run."""
    env = open_environment("xla", precision=recipe.run.precision)
    step, _ = build_step(env, recipe)
    for _ in range(2):
        step(*feed(env, recipe, recipe.run.batch_size))
    env.barrier()
    batch, knobs = feed(env, recipe, recipe.run.batch_size)
    texts: list[bytes] = []
    env.cut = lambda: texts.append(_XLAC._get_stablehlo(pending(), str(env.device), [], False))  # type: ignore[method-assign]
    step(batch, knobs)
    (text,) = texts
    return operations(text.decode())


def pending() -> list[Tensor]:
    """What the cut would compute. Not "all that is alive", which torch_xla gives for an empty list: to it belongs the
    first version of each tensor that deepcopy has made (the average's), which shared a buffer with the model, is kept
    by torch behind the tensor of now, and of which a run asks nothing. That buffer was donated in the first update.
    """
    found = [each for each in xla_export.living() if xla_export._is_pending(each)]
    return list({xla_export._number(each): each for each in found}.values())


class Readable:
    """torch_xla's bindings, which give text in the place of a portable artifact."""

    def __getattr__(self, name: str) -> object:
        return getattr(_XLAC, name)

    def _get_stablehlo(self, results: list[object], device: str, devices: list[str], _: bool) -> bytes:
        text: bytes = _XLAC._get_stablehlo(results, device, devices, False)
        return text


def exported(recipe: Recipe) -> dict[str, int]:
    env = open_export(precision=recipe.run.precision, num_devices=1)
    xla_export._XLAC = Readable()
    (graph,) = Traced(env, recipe).record()
    return operations(graph.stablehlo.decode())


recipe = load_recipe(sys.argv[1], sys.argv[2:])
# First, because a recorded step sees every tensor of the process.
found = {"exported": exported(recipe)}
found["run"] = of_a_run(recipe)
print(json.dumps(found))

"""What follows from an AutoAttack entry, the model and the images: components, lanes, blocks, the evaluation's id."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from bits.environment import Environment
from engine.blocks import WHOLE, Keys, Part, block_size, blocks_of, in_random_order
from engine.eval_fields import AutoAttackEval
from engine.evaluate import Evaluator
from engine.rows import CLEAN
from engine.verdict import evaluation_id
from robust.gradient import Predict
from robust.low_precision import low_precision
from robust.versions import Version, version_of

LANES = 64  # of a process, where an entry says nothing
SEARCH_TYPES: Mapping[str, torch.dtype] = {"cuda": torch.float16, "xla": torch.bfloat16}
"""Of a version that may search in low precision, by the device; elsewhere it would be slower."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AttackSettings:
    """Of one evaluation; the same on every process but for `part`."""

    entry: AutoAttackEval
    keys: Keys  # of all images, in the order they are attacked in
    version: Version
    lanes: int
    block_size: int
    description: Mapping[str, Any]  # the parts of the id
    part: Part = WHOLE

    @property
    def identity(self) -> str:
        return evaluation_id(**self.description)

    @property
    def components(self) -> tuple[str, ...]:
        return (CLEAN, *(part.name for part in self.version.parts))

    @property
    def about(self) -> dict[str, Any]:
        """What the ledger says of the id."""
        return {**self.description, "name": self.entry.name, "components": list(self.components)}

    @property
    def until_ci(self) -> float | None:
        """Half the width of the interval that ends it, as a share."""
        return None if self.entry.until_ci is None else self.entry.until_ci / 100.0

    @property
    def blocks(self) -> list[Keys]:
        return blocks_of(self.keys, self.block_size)

    def own_blocks(self, env: Environment) -> dict[int, Keys]:
        """The blocks of this process, by number."""
        numbered = enumerate(self.blocks)
        return {number: keys for number, keys in numbered if self.part.has(number, env.rank, env.world_size)}

    def rounds(self, env: Environment) -> Sequence[int]:
        """Numbers of this process's blocks in turn; with `until_ci` one for each round, also where there is none."""
        if self.until_ci is None:
            return list(self.own_blocks(env))
        num_rounds = -(-len(self.blocks) // env.world_size)
        return [number * env.world_size + env.rank for number in range(num_rounds)]

    def search(self, model: nn.Module, env: Environment) -> Predict:
        """The model as the searches see it."""
        dtype = search_type(self.version, env)
        if dtype is None:
            return model
        return low_precision(model, partial(torch.autocast, env.device.type, dtype=dtype))


def attack_settings(evaluator: Evaluator, entry: AutoAttackEval, part: Part = WHOLE) -> AttackSettings:
    """ValueError for what cannot be attacked."""
    num_classes = int(getattr(evaluator.model, "num_classes", len(evaluator.index.classes)))
    version = version_of(entry.version, norm=entry.norm, num_classes=num_classes)
    lanes = lanes_of(entry, evaluator.env)
    settings: dict[str, Any] = {
        "attack": entry.attack,
        "norm": entry.norm,
        "eps": entry.eps,
        "version": version.id,
        "lanes": lanes,  # whose shape may turn a verdict that hangs on rounding
    }
    if (dtype := search_type(version, evaluator.env)) is not None:
        settings["search"] = str(dtype).removeprefix("torch.")
    chosen = evaluator.chosen(entry)
    keys, size = chosen.keys, block_size(len(chosen.keys), lanes)
    if entry.until_ci is not None:
        settings["until_ci"] = entry.until_ci
        keys, size = in_random_order(evaluator.index, keys), lanes
    return AttackSettings(
        entry=entry,
        keys=keys,
        version=version,
        lanes=lanes,
        block_size=size,
        description=evaluator.describe(chosen, settings),
        part=part,
    )


def search_type(version: Version, env: Environment) -> torch.dtype | None:
    """The low precision of the searches; None where they are float32."""
    return SEARCH_TYPES.get(env.device.type) if version.is_low else None


def lanes_of(entry: AutoAttackEval, env: Environment) -> int:
    """Lanes of a process, a multiple of its devices."""
    return -(-(entry.batch_size or LANES) // env.num_devices) * env.num_devices

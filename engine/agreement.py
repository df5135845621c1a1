"""Whether all processes have the same in hand: asked where they would otherwise wait for each other, or diverge."""

import hashlib
from collections.abc import Mapping

from bits.environment import Environment


def is_same(env: Environment, value: int) -> bool:
    """Whether `value` is equal on all processes. Two host reads."""
    return env.agree(value) == -env.agree(-value)


def is_same_data(env: Environment, data: bytes) -> bool:
    """The same of bytes, by 56 bits of their sha256."""
    return is_same(env, int.from_bytes(hashlib.sha256(data).digest()[:7], "big"))


def is_same_hash(env: Environment, digest: str) -> bool:
    """The same of a sha256 in hexadecimal digits."""
    return is_same(env, int(digest[:14], 16))


def check_same_start(env: Environment, *, step: int, dataset_id: str) -> None:
    """ValueError where processes would go on from other checkpoints, or on other shards."""
    if not is_same(env, step):
        raise ValueError(
            f"processes found different checkpoints (rank {env.rank}: step {step}); the run folder must be on a disk "
            "that all of them see"
        )
    if not is_same_data(env, dataset_id.encode()):
        raise ValueError(
            f"processes found different shards in data.train (rank {env.rank}: {dataset_id[:12]}); were they "
            "changed just now? start again"
        )


def check_same_weights(env: Environment, hashes: Mapping[str, str | None]) -> None:
    """`hashes` by field of the recipe, None where it names no weights: DDP sends none, so others would never meet."""
    for field, digest in hashes.items():
        if digest is not None and not is_same_hash(env, digest):
            raise ValueError(
                f"processes found different weights at {field} (rank {env.rank}: {digest[:12]}); give a file that "
                "all of them see"
            )

"""Patterns of a reaction and two diffusions: the Gray-Scott model (Gray and Scott 1984; parameters after Pearson 1993).

Only sums and products of float32 in a fixed order, so every machine computes the same pattern.
"""

from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

_DIFFUSION: Final = (
    np.float32(0.08),
    np.float32(0.04),
)  # of the food and of what eats it; stripes about 8 px apart
_STEPS: Final = 3000
_SEEDED: Final = 0.02  # share of the points where the reaction starts


class Reaction(NamedTuple):
    """How fast food comes in, and how fast what eats it dies."""

    feed: float
    kill: float


SPOTS: Final = Reaction(0.030, 0.0620)
LABYRINTH: Final = Reaction(0.037, 0.0600)


def turing_field(reaction: Reaction, *, side: int, seed: NDArray[np.float64]) -> NDArray[np.float64]:
    """The pattern after 3,000 steps on a torus, [side,side]; about a second. `seed`: uniform numbers [side,side]
    that say where it starts.
    """
    assert seed.shape == (side, side)
    food, eater = (np.zeros((side + 2, side + 2), np.float32) for _ in range(2))  # a rim holds the other side
    start = seed < _SEEDED
    food[1:-1, 1:-1] = np.where(start, 0.5, 1.0)
    eater[1:-1, 1:-1] = np.where(start, 0.5, 0.0)
    for _ in range(_STEPS):
        _react_(food, eater, reaction)
    return eater[1:-1, 1:-1].astype(np.float64)


def _react_(food: NDArray[np.float32], eater: NDArray[np.float32], reaction: Reaction) -> None:
    spread = [rate * _laplacian(field) for rate, field in zip(_DIFFUSION, (food, eater), strict=True)]
    f, e = food[1:-1, 1:-1], eater[1:-1, 1:-1]
    eaten = f * e * e
    f += spread[0] - eaten + np.float32(reaction.feed) * (np.float32(1) - f)
    e += spread[1] + eaten - np.float32(reaction.feed + reaction.kill) * e


def _laplacian(field: NDArray[np.float32]) -> NDArray[np.float32]:
    """Five points on a torus; fills the rim first."""
    field[0], field[-1] = field[-2], field[1]
    field[:, 0], field[:, -1] = field[:, -2], field[:, 1]
    around: NDArray[np.float32] = field[:-2, 1:-1] + field[2:, 1:-1] + field[1:-1, :-2] + field[1:-1, 2:]
    return around - np.float32(4) * field[1:-1, 1:-1]

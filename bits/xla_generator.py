"""Where XLA's random numbers stand: of a replay nothing is left, also behind the end of a graph.

torch_xla 2.9 keeps two states: each draw moves the one that the next draw takes, each end of a graph moves the one
that its graph began with, and goes on from there. `set_rng_state` overwrites both: the first can be put back at once,
the second cannot be asked for, so it is kept here, and put back before the graph ends.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch_xla
import torch_xla.core.xla_model as xla_model

# The state that this graph began with: None before the first seed or end of a graph.
_began: int | None = None
_is_replayed = False  # since then


def seed(value: int) -> None:
    torch_xla.manual_seed(value)
    _begin()


def end_graph(*, wait: bool = False) -> None:
    """torch_xla.sync."""
    if _is_replayed and _began is not None:
        xla_model.set_rng_state(_began)
    torch_xla.sync(wait=wait)
    _begin()


def standing() -> int:
    """What the next draw takes."""
    found: int = xla_model.get_rng_state()
    return found


@contextmanager
def replayed(state: int) -> Iterator[None]:
    """Draws inside begin at `state`; those behind it go on as if there had been none."""
    global _is_replayed
    now = standing()
    xla_model.set_rng_state(state)
    try:
        yield
    finally:
        xla_model.set_rng_state(now)
        _is_replayed = True


def _begin() -> None:
    global _began, _is_replayed
    _began, _is_replayed = standing(), False

"""Lanes: the fixed batch in which an attack works on many questions at once, each at its own step.

A question is an image, its label, the class to reach and a random stream. A lane holds one; when it is answered the
lane is refilled, so the batch stays full and no shape ever changes. A row of a state depends on its own question alone:
the same bits come out in whatever order lanes are filled, and whoever their neighbours are.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

from robust.gradient import Predict

Norm = Literal["linf", "l2", "l1"]
Tree = TypeVar("Tree", bound=tuple[Any, ...])


class Lanes(NamedTuple):
    """The questions of B lanes."""

    clean: Tensor  # (B,3,H,W) float in [0,1]: the centre of the ball
    label: Tensor  # int64 [B]
    target: Tensor  # int64 [B]: the class to reach; the label where any other class will do
    eps: Tensor  # [B], in pixel units of the norm, of clean's dtype
    seed: Tensor  # int64 [B]: the question's random stream


class Passes(NamedTuple):
    """What a step asks of the model, in passes over its batch."""

    forward: float
    backward: float  # with respect to the image alone


class LaneState(Protocol):
    """What every state has; a NamedTuple of tensors, each with the lanes as its first axis."""

    @property
    def lanes(self) -> Lanes: ...
    @property
    def step(self) -> Tensor: ...  # int64 [B]: steps made
    @property
    def found(
        self,
    ) -> Tensor: ...  # bool [B]: `adversarial` is misclassified (as the target, where there is one)
    @property
    def adversarial(self) -> Tensor: ...  # (B,3,H,W) inside ball and box; what was found, where something was


class Component(Protocol):
    """An attack in lanes. A lane that found something, or made all its steps, keeps `step`, `found`, `adversarial`."""

    @property
    def name(self) -> str: ...
    @property
    def norm(self) -> Norm: ...  # of the ball
    @property
    def steps(self) -> int: ...
    @property
    def passes(self) -> Passes: ...

    def init(self, lanes: Lanes) -> Any:
        """A state at step 0. No pass of the model, so that a refill costs none."""
        ...

    def step(self, predict: Predict, state: Any) -> Any:
        """One step of every lane that is alive; masks, no host read, no shape that depends on values."""
        ...


def misclassified(logits: Tensor, label: Tensor) -> Tensor:
    """bool [B] of logits (B,K): argmax is not the label, or a logit is NaN, on which nothing can be built."""
    return (logits.argmax(dim=1) != label) | logits.isnan().any(dim=1)


def alive(state: LaneState, steps: int) -> Tensor:
    """bool [B]: the lanes that still work."""
    return ~state.found & (state.step < steps)


def each(function: Callable[..., Tensor], *trees: Tree) -> Tree:
    """`function` of the tensors that stand at the same place of the (nested) NamedTuples."""
    first = trees[0]
    made = (
        function(*parts) if isinstance(parts[0], Tensor) else each(function, *parts)
        for parts in zip(*trees, strict=True)
    )
    return type(first)(*made)


def pick(condition: Tensor, new: Tree, old: Tree) -> Tree:
    """Row by row `new` where `condition` (bool [B]) holds, else `old`."""
    return each(lambda a, b: choose(condition, a, b), new, old)


def choose(condition: Tensor, new: Tensor, old: Tensor) -> Tensor:
    """Row by row `new` (B,...) where `condition` (bool [B]) holds, else `old`."""
    if old.device.type != "cpu":
        return torch.where(rows(condition, old), new, old)
    # `where` over an image costs four times a copy of it on the cpu, where a look at the rows is free.
    picked = condition.nonzero()[:, 0]
    if len(picked) in (0, len(old)):
        return new if len(picked) else old
    return old.index_copy(0, picked, new.index_select(0, picked))


def overlay(weight: Tensor, new: Tensor, old: Tensor) -> Tensor:
    """`new` (B,3,H,W) where `weight` (0 or 1, of a shape that broadcasts) is 1, else `old`; both finite."""
    if old.device.type != "cpu":
        return torch.where(weight > 0.0, new, old)
    # A fourth of the time of `where`; at weights 0 and 1 lerp gives back its ends to the bit (not so on XLA).
    return torch.lerp(old, new, weight)


def rows(value: Tensor, like: Tensor) -> Tensor:
    """`value` [B] ready to broadcast over `like` (B,...)."""
    return value.view([-1] + [1] * (like.dim() - 1))

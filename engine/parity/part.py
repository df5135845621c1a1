"""A module of a watched model: what it is called, and what is known of it before it runs."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from engine.parity.mark import Tag

MATMUL = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.MultiheadAttention, nn.Bilinear)


@dataclass(frozen=True, slots=True)
class Part:
    """What is known of a module before it runs."""

    where: str
    module: nn.Module
    parent: nn.Module | None

    @property
    def maker(self) -> str:
        settings = self.module.extra_repr()
        return (
            f"{type(self.module).__name__}({settings})" if len(settings) < 100 else type(self.module).__name__
        )

    @property
    def tags(self) -> tuple[Tag, ...]:
        tags: list[Tag] = []
        if isinstance(self.module, _BatchNorm):
            tags.append("norm")
        if drops(self.module):
            tags.append("drop")
        if isinstance(self.module, MATMUL):
            tags.append("matmul")
        return tuple(tags)

    @property
    def tags_between(self) -> tuple[Tag, ...]:
        """Of operations in the parent's own forward, between its modules."""
        tags: list[Tag] = ["between"]
        if isinstance(self.parent, _BatchNorm):
            tags.append("norm")
        if self.parent is not None and any(drops(child) for child in self.parent.children()):
            tags.append("drop")
        return tuple(tags)


def drops(module: nn.Module) -> bool:
    """Whether it is dropout of some kind, at work."""
    rates = [getattr(module, name, 0.0) for name in ("p", "drop_prob", "prob")]
    is_on = any(isinstance(rate, float) and rate > 0.0 for rate in rates)
    return (
        is_on and module.training and any(w in type(module).__name__.lower() for w in ("drop", "stochastic"))
    )


def tensors_in(value: object) -> Iterator[Tensor]:
    """The tensors in what a module takes or gives, in order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for entry in value.values():
            yield from tensors_in(entry)
    elif isinstance(value, list | tuple):
        for entry in value:
            yield from tensors_in(entry)

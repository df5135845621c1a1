"""Split norm: one BatchNorm for clean images and one for adversarial images (AdvProp, Xie et al. 2020,
arXiv:1911.09665), because the two have different statistics.

Which one runs is a public switch on the model, set where the training step knows it:

    with branch(model, "adversarial"):
        adversarial = attack(model, image)     # AdvProp attacks through the auxiliary norm
        loss = loss + criterion(model(adversarial), label)

The switch is host state, set at the same places in every step, so graphs stay the same from step to step. It holds
in train and eval mode; outside such a block it is "clean", hence evaluation goes through the main norm.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, get_args

import torch
from torch import Tensor, nn

Branch = Literal["clean", "adversarial", "halves"]


class SplitNorm2d(nn.Module):
    """`main` for clean and `auxiliary` for adversarial images, (N,C,H,W) -> (N,C,H,W).

    The branch "halves" takes a batch [clean; adversarial] in one forward: its first half through main, its second
    through auxiliary. An `auxiliary` without affine of its own (affine=False) takes main's weight, bias, dropout and
    activation. State dict: `main.*`, `auxiliary.*`; models.ghost_weights.plain_batchnorm_state keeps main.
    """

    def __init__(self, main: nn.BatchNorm2d, auxiliary: nn.BatchNorm2d) -> None:
        super().__init__()
        self.main = main
        self.auxiliary = auxiliary
        self.branch: Branch = "clean"

    def forward(self, x: Tensor) -> Tensor:
        if self.branch == "halves":
            if x.shape[0] % 2:
                raise ValueError(
                    f"split norm in halves cannot split {x.shape[0]} images; give as many clean as adversarial"
                )
            clean, adversarial = x.chunk(2)
            return torch.cat((self._clean(clean), self._adversarial(adversarial)))
        return self._clean(x) if self.branch == "clean" else self._adversarial(x)

    def _clean(self, x: Tensor) -> Tensor:
        out: Tensor = self.main(x)
        return out

    def _adversarial(self, x: Tensor) -> Tensor:
        out: Tensor = self.auxiliary(x)
        if self.auxiliary.affine or not self.main.affine:
            return out
        with torch.autocast(x.device.type, enabled=False):
            weight, bias = (t.view(1, -1, 1, 1) for t in (self.main.weight, self.main.bias))
            out = torch.addcmul(bias, out.to(weight.dtype), weight).to(x.dtype)
        drop, act = (getattr(self.main, name, None) for name in ("drop", "act"))
        out = out if drop is None else drop(out)
        return out if act is None else act(out)


def set_branch(model: nn.Module, branch: Branch) -> None:
    """Send what follows through this branch of every split norm; ValueError for a model without one."""
    if branch not in get_args(Branch):
        raise ValueError(f"unknown branch {branch!r}; use {', '.join(get_args(Branch))}")
    for norm in _split_norms(model):
        norm.branch = branch


@contextmanager
def branch(model: nn.Module, branch: Branch) -> Iterator[None]:
    """`set_branch` for the duration of a block; afterwards every norm is as it was."""
    before = [(norm, norm.branch) for norm in _split_norms(model)]
    set_branch(model, branch)
    try:
        yield
    finally:
        for norm, old in before:
            norm.branch = old


def _split_norms(model: nn.Module) -> list[SplitNorm2d]:
    found = [module for module in model.modules() if isinstance(module, SplitNorm2d)]
    if not found:
        raise ValueError(
            f"{type(model).__name__} has no split norm; convert it first: set_norm(model, 'split')"
        )
    return found

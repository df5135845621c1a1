"""Ghost BatchNorm with running statistics of its own for every group, and in F copies that take turns.

As in Bai et al. 2021 (arXiv:2111.05464); the statistics of a group are Hoffer et al.'s (arXiv:1705.08741).
GroupBatchNorm2d (models/batchnorm.py) is the plainer relative: one running statistic, averaged over the groups.

**Which copy.** Micro-batch i uses copy i mod F, and i is the norm's own `num_batches_tracked`: the number of
train-mode forwards so far. It is a tensor on the device, chosen from by `where`, so the graph is the same for every
copy; it travels with the state dict, so a resumed run goes on with the right copy; forwards in eval mode do not
advance it. With F equal to the micro-batches of an update (`optim.accumulate`), every update goes through all copies
once. Forwards in train mode that are no micro-batch (an attack in train mode) belong inside `attacking`; those that
gradient checkpointing repeats in its backward are recognised and do not count.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.batchnorm import PrimitiveBatchNorm2d, check_count

Grouping = Literal["contiguous", "modulo"]
Evaluation = Literal["first", "average"]


class GhostBatchNorm2d(PrimitiveBatchNorm2d):
    """Statistics over `groups` (r) groups of the batch, kept per group; one affine for all.

    `grouping` contiguous: group g is the g-th r-th of the batch; modulo: image i is in group i mod r, as in the
    published models. With `num_devices` both apply within each device's contiguous slice, so no statistic crosses
    devices; equal groups of different devices share a running statistic by their mean, as DDP's processes do.
    Evaluation uses the running statistics of group 0 (`first`) or their `average`, and takes any batch; of
    copies, those of copy 0.

    State dict: BatchNorm2d's names, with running_mean and running_var (r*C), group after group, or (F, r*C) with
    `copies`; models/ghost_weights.py maps it to plain BatchNorm, to the published names and back. A batch that
    does not split in training, or inside `attacking`, is a ValueError.
    """

    def __init__(
        self,
        num_features: int,
        *,
        groups: int,
        copies: int | None = None,
        grouping: Grouping = "contiguous",
        evaluation: Evaluation = "first",
        num_devices: int = 1,
        **settings: Any,
    ) -> None:
        super().__init__(num_features, **settings)
        if groups < 1 or (copies is not None and copies < 1):
            raise ValueError(
                f"ghost norm of {groups} groups and {copies} copies: both must be 1 or more, copies None for none"
            )
        for name, value, known in (("grouping", grouping, Grouping), ("evaluation", evaluation, Evaluation)):
            if value not in get_args(known):
                raise ValueError(f"ghost norm has {name} {value!r}; use {' or '.join(get_args(known))}")
        self.groups = groups
        self.copies = copies
        self.grouping = grouping
        self.evaluation = evaluation
        self.num_devices = num_devices
        self.under_attack: Literal["no", "by group", "as evaluated"] = "no"  # set by `attacking`
        if self.track_running_stats:
            shape = (groups * num_features,) if copies is None else (copies, groups * num_features)
            self.running_mean = torch.zeros(shape)
            self.running_var = torch.ones(shape)

    def extra_repr(self) -> str:
        mine = f"groups={self.groups}, copies={self.copies}, {self.grouping}, evaluation by {self.evaluation}"
        return f"{super().extra_repr()}, {mine}"  # type: ignore[no-untyped-call]

    def _split(self, x: Tensor) -> tuple[Tensor, tuple[int, ...]]:
        """x (N,C,H,W) -> (devices, r, n, C, H, W) or, modulo, (devices, n, r, C, H, W); axes to reduce."""
        batch, unit = x.shape[0], self.num_devices * self.groups
        if batch % unit or batch == 0:
            lower = batch // unit * unit
            near = f"{lower} or {lower + unit}" if lower else f"{unit}"
            raise ValueError(
                f"ghost norm of {unit} groups cannot split {batch} images; try a batch of {near}"
            )
        if self.grouping == "contiguous":
            return x.reshape(self.num_devices, self.groups, batch // unit, *x.shape[1:]), (2, 4, 5)
        return x.reshape(self.num_devices, batch // unit, self.groups, *x.shape[1:]), (1, 4, 5)

    def _normalise(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        split, axes = self._split(x)
        count = x[:, 0].numel() // (self.num_devices * self.groups)
        check_count(count)
        mean = split.mean(axes, keepdim=True)
        centred = split - mean
        var = (centred * centred).mean(axes, keepdim=True)
        normed = (centred * torch.rsqrt(var + self.eps)).reshape(x.shape)
        return normed, mean.mean(0).reshape(-1), var.mean(0).reshape(-1) * (count / (count - 1))

    @torch.no_grad()
    def _update_running(self, mean: Tensor, unbiased_var: Tensor) -> None:
        if self.under_attack != "no" or _in_backward():
            return
        assert self.num_batches_tracked is not None, "tracked without a counter"
        if self.copies is None:
            super()._update_running(mean, unbiased_var)
            return
        rate: Tensor | float | None = self.momentum
        if rate is None:  # the average over the updates of this copy
            rate = 1.0 / (
                torch.div(self.num_batches_tracked, self.copies, rounding_mode="floor").float() + 1.0
            )
        chosen = self._chosen()
        for running, new in ((self.running_mean, mean), (self.running_var, unbiased_var)):
            assert running is not None, "tracked without statistics"
            running.copy_(torch.where(chosen, running * (1 - rate) + new * rate, running))
        self.num_batches_tracked.add_(1)

    def _chosen(self) -> Tensor:
        """bool (F, 1): True at the copy of the next micro-batch."""
        assert self.copies is not None
        assert self.num_batches_tracked is not None
        turn = torch.arange(self.copies, device=self.num_batches_tracked.device)
        return (turn == self.num_batches_tracked % self.copies).view(-1, 1)

    def _eval_forward(self, input: Tensor) -> Tensor:
        if self.running_mean is None or self.running_var is None:
            return nn.BatchNorm2d.forward(self, input)  # what it does without statistics
        if self.under_attack == "by group":
            return self._by_group(input, self.running_mean, self.running_var)
        first = self.running_mean.view(-1, self.groups, self.num_features)[0]
        first_var = self.running_var.view(-1, self.groups, self.num_features)[0]
        average = self.evaluation == "average"
        mean, var = (first.mean(0), first_var.mean(0)) if average else (first[0], first_var[0])
        return F.batch_norm(input, mean, var, self.weight, self.bias, False, 0.0, self.eps)

    def _by_group(self, input: Tensor, mean: Tensor, var: Tensor) -> Tensor:
        """Every image by the running statistics of its group in the coming copy."""
        if self.copies is not None:
            mean, var = (torch.where(self._chosen(), t, torch.zeros_like(t)).sum(0) for t in (mean, var))
        scale = torch.rsqrt(var + self.eps).view(self.groups, -1)
        if (
            self.affine
        ):  # detached: an attack differentiates the image only, so autograd need not keep the input
            scale = scale * self.weight.detach()
        offset = -mean.view(self.groups, -1) * scale
        if self.affine:
            offset = offset + self.bias.detach()
        place = (self.groups, 1) if self.grouping == "contiguous" else (1, self.groups)
        size = (1, *place, self.num_features, 1, 1)
        with torch.autocast(input.device.type, enabled=False):
            split, _ = self._split(input.to(scale.dtype))
            out = torch.addcmul(offset.view(size), split, scale.view(size))
        return out.reshape(input.shape).to(input.dtype)


@contextmanager
def attacking(model: nn.Module, *, by_group: bool = True) -> Iterator[None]:
    """Around an attack during training: ghost norms under `model` neither advance nor update their statistics.

    In eval mode they then use, for every image, the running statistics of its group in the copy of the coming
    micro-batch, as in the published recipes (`eval_use_different_stats`); `by_group` False leaves eval mode as
    it is. The batch must be the training batch (it has to split), and parameters of the norms get no gradient.
    Other norms are not touched.
    """
    norms = [module for module in model.modules() if isinstance(module, GhostBatchNorm2d)]
    before = [norm.under_attack for norm in norms]
    try:
        for norm in norms:
            norm.under_attack = "by group" if by_group else "as evaluated"
        yield
    finally:
        for norm, old in zip(norms, before, strict=True):
            norm.under_attack = old


def _in_backward() -> bool:
    """Whether this forward is the one that gradient checkpointing repeats inside a backward pass."""
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1

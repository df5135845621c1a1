"""BatchNorm with its training statistics in primitive ops: over groups of images, or over several processes.

Drop-in for nn.BatchNorm2d: same state dict, same eval mode. models/norm.py decides which one a model gets.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

Reduce = Callable[[Tensor], Tensor]
"""Differentiable SUM over processes; its backward is the sum of the gradients over processes."""


class PrimitiveBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm2d with training statistics in primitive ops; subclasses say which images share them.

    Drop-in for nn.BatchNorm2d (same state dict) and, with `drop` and `act`, for timm's BatchNormAct2d.
    Statistics are float32 whatever autocast says, and the output has the input's dtype. Eval mode is the
    native op.
    """

    def __init__(
        self,
        num_features: int,
        *,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        drop: nn.Module | None = None,
        act: nn.Module | None = None,
    ) -> None:
        super().__init__(num_features, eps, momentum, affine, track_running_stats)
        self.has_act = act is not None  # it stands for a BatchNormAct2d
        self.drop = drop if drop is not None else nn.Identity()
        self.act = act if act is not None else nn.Identity()

    def forward(self, input: Tensor) -> Tensor:
        """(N,C,H,W) -> (N,C,H,W)."""
        normed = self._train_forward(input) if self.training else self._eval_forward(input)
        out: Tensor = self.act(self.drop(normed))
        return out

    def _eval_forward(self, input: Tensor) -> Tensor:
        return super().forward(input)

    def _normalise(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x (N,C,H,W) -> normalised x; mean [C] and unbiased variance [C] for the running statistics."""
        raise AssertionError("a subclass says which images share their statistics")

    def _train_forward(self, input: Tensor) -> Tensor:
        self._check_input_dim(input)
        # autocast would take the means in bf16 (it does on XLA)
        with torch.autocast(input.device.type, enabled=False):
            x = input.to(torch.promote_types(input.dtype, torch.float32))
            normed, mean, unbiased_var = self._normalise(x)
            if self.affine:
                normed = torch.addcmul(self.bias.view(1, -1, 1, 1), normed, self.weight.view(1, -1, 1, 1))
        if self.track_running_stats:
            self._update_running(mean.detach(), unbiased_var.detach())
        return normed.to(input.dtype)

    @torch.no_grad()
    def _update_running(self, mean: Tensor, unbiased_var: Tensor) -> None:
        assert self.running_mean is not None, "tracked without a mean"
        assert self.running_var is not None, "tracked without a variance"
        assert self.num_batches_tracked is not None, "tracked without a counter"
        self.num_batches_tracked.add_(1)
        # momentum None is the cumulative average; a tensor, so that no host read is needed
        rate = 1.0 / self.num_batches_tracked.float() if self.momentum is None else self.momentum
        self.running_mean.mul_(1 - rate).add_(mean * rate)
        self.running_var.mul_(1 - rate).add_(unbiased_var * rate)


class GroupBatchNorm2d(PrimitiveBatchNorm2d):
    """Statistics over groups of contiguous images: `group_size` images each, or `num_groups` groups.

    Ghost batch normalisation (Hoffer et al. 2017, arXiv:1705.08741), with the running statistics updated once
    per step by the average over the groups. A group is a reshape of the batch, so a batch that is sharded by
    contiguous slices stays sharded.
    """

    def __init__(
        self, num_features: int, *, group_size: int = 0, num_groups: int = 0, **settings: Any
    ) -> None:
        super().__init__(num_features, **settings)
        assert (group_size > 0) != (num_groups > 0), "give either group_size or num_groups"
        self.group_size = group_size
        self.num_groups = num_groups

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, group_size={self.group_size}, num_groups={self.num_groups}"  # type: ignore[no-untyped-call]

    def _normalise(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        batch, channels, height, width = x.shape
        size = self.group_size or batch // self.num_groups
        if size == 0 or batch % size or (self.num_groups and size * self.num_groups != batch):
            wanted = f"groups of {self.group_size}" if self.group_size else f"{self.num_groups} groups"
            raise ValueError(f"BatchNorm of {wanted} cannot split {batch} images; change batch or norm_stats")
        count = size * height * width
        check_count(count)
        groups = x.reshape(batch // size, size, channels, height, width)
        mean = groups.mean((1, 3, 4), keepdim=True)
        centred = groups - mean
        var = (centred * centred).mean((1, 3, 4), keepdim=True)
        normed = (centred * torch.rsqrt(var + self.eps)).reshape(x.shape)
        return normed, mean.mean(0).view(-1), var.mean(0).view(-1) * (count / (count - 1))


class GlobalBatchNorm2d(PrimitiveBatchNorm2d):
    """Statistics over the batches of all processes, by two sums of C numbers each: mean first, then variance.

    Two passes on purpose: E[x^2] - E[x]^2 loses the variance to cancellation when the mean is large. Every
    process must hold the same number of images. `reduce` should be a plain function (deepcopy follows bound
    methods).
    """

    def __init__(self, num_features: int, *, reduce: Reduce, world_size: int, **settings: Any) -> None:
        super().__init__(num_features, **settings)
        self.reduce = reduce
        self.world_size = world_size

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, world_size={self.world_size}"  # type: ignore[no-untyped-call]

    def _normalise(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        count = x.shape[0] * x.shape[2] * x.shape[3] * self.world_size
        check_count(count)
        mean = self.reduce(x.sum((0, 2, 3))) / count
        centred = x - mean.view(1, -1, 1, 1)
        var = self.reduce((centred * centred).sum((0, 2, 3))) / count
        normed = centred * torch.rsqrt(var + self.eps).view(1, -1, 1, 1)
        return normed, mean, var * (count / (count - 1))


def check_count(count: int) -> None:
    if count < 2:
        raise ValueError("BatchNorm trains on more than 1 value per channel and group; use a larger group")

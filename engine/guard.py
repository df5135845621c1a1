"""Updates whose gradient is not finite are left out: decided on the device, in the graph of every other update.

Weights, optimizer, average and running statistics are then those before the step, bit for bit. After `limit` of
them in a row nothing moves any more: the run has to go back (engine/rollback.py), and its state does not depend on
when the host comes to know that.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

_STREAK, _FIRST, _SKIPPED = range(3)
EXTRA_FP16 = 16  # a loss scale of 65536 is halved by so many updates until it is 1


class Skips(NamedTuple):
    """What a guard has counted."""

    streak: int  # updates left out in a row, up to the limit
    first: int  # the step, counted from 0, where the last streak began
    skipped: int  # updates left out since the last report


class Guard:
    """One for a model; `before` a step's first forward pass, `judge` behind its last backward pass."""

    def __init__(self, model: nn.Module, *, limit: int, device: torch.device) -> None:
        self.limit = limit
        self.counts = torch.zeros(3, dtype=torch.int64, device=device)
        self._kept = torch.tensor([1, 1, 0], device=device)
        self._model = model
        # A forward pass moves them, and NaN there would stay.
        self._buffers = [b for b in model.buffers() if b.is_floating_point()]
        self._before: Tensor | None = None

    @torch.no_grad()
    def before(self) -> None:
        """Remembers the running statistics."""
        self._before = self._statistics()

    @torch.no_grad()
    def judge(self, step: Tensor) -> Tensor:
        """0-dim bool: whether update `step` (0-dim int64) is to be made; where not, statistics go back.

        Of gradients alone: they are reduced over processes, so all of them decide alike.
        """
        gradients = [p.grad for p in self._model.parameters() if p.grad is not None]
        is_bad = ~torch.isfinite(torch.nn.utils.get_total_norm(gradients))
        streak, first, skipped = self.counts.unbind()
        is_stuck = streak >= self.limit
        ok = ~(is_bad | is_stuck)
        grown = torch.where(is_bad, streak + 1, torch.zeros_like(streak))
        self.counts.copy_(
            torch.stack(
                [
                    torch.where(is_stuck, streak, grown),
                    torch.where(is_bad & (streak == 0), step, first),
                    skipped + (~ok).to(torch.int64),
                ]
            )
        )
        self._restore(ok)
        return ok

    def _statistics(self) -> Tensor | None:
        # One tensor: networks with BatchNorm hold a hundred small ones.
        return torch.cat([b.detach().reshape(-1) for b in self._buffers]) if self._buffers else None

    def _restore(self, ok: Tensor) -> None:
        now, before = self._statistics(), self._before
        if now is None or before is None:
            return
        kept = torch.split(torch.where(ok, now, before), [b.numel() for b in self._buffers])
        for buffer, value in zip(self._buffers, kept, strict=True):
            buffer.copy_(value.view_as(buffer))
        self._before = None

    def columns(self) -> Tensor:
        """float32 (2,2), to travel beside the sums of a report."""
        return torch.cat((self.counts, self.counts.new_zeros(1))).to(torch.float32).reshape(2, 2)

    def reset_skipped_(self) -> None:
        """Behind a report."""
        self.counts.mul_(self._kept)

    def load_(self, counts: Tensor) -> None:
        """Those of a checkpoint."""
        self.counts.copy_(counts)

    def read(self) -> Skips:
        """On the host; a host read, for where a state is saved anyway."""
        return Skips(*self.counts.tolist())


def skips_of(columns: Tensor, *, parts: int) -> Skips:
    """What `columns` said, from their sum over the environment's `parts`, on the host."""
    streak, first, skipped, _ = (columns.reshape(-1) / parts).tolist()
    return Skips(round(streak), round(first), round(skipped))

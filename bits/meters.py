"""Masked sums kept on the device; they cross to the host only when a report asks for them."""

from collections.abc import Sequence

import torch
from torch import Tensor


class Meters:
    """Named weighted sums in one float32 tensor (2, M): row 0 sums, row 1 weights.

    One tensor means one reduction and one transfer a report, whatever the number of meters. Updated in place
    outside autocast, so a bf16 step never accumulates in bf16.
    """

    def __init__(self, names: Sequence[str], device: torch.device) -> None:
        if len(set(names)) != len(names):
            raise ValueError(f"meter names {list(names)} repeat; every meter needs a name of its own")
        self.names = tuple(names)
        self.totals = torch.zeros(2, len(self.names), dtype=torch.float32, device=device)

    @torch.no_grad()
    def add_(self, values: dict[str, Tensor], mask: Tensor) -> None:
        """Adds `values` (each (N,)) where `mask` (N,) bool is True. Every meter must be given."""
        assert set(values) == set(self.names), f"meters {sorted(self.names)}, values {sorted(values)}"
        weight = mask.to(torch.float32)
        # where, not a product: a NaN in a padding slot must not reach the sum.
        sums = torch.stack([torch.where(mask, values[n].float(), 0.0).sum() for n in self.names])
        self.totals += torch.stack([sums, weight.sum().expand_as(sums)])

    def snapshot(self) -> Tensor:
        """A copy of the totals (2, M) that the next step cannot change."""
        return self.totals.detach().clone()

    def reset_(self) -> None:
        self.totals.zero_()

    def means(self, totals: Tensor) -> dict[str, float]:
        """Host values from reduced `totals` (2, M) on the cpu; NaN where nothing was counted."""
        sums, weights = totals.tolist()
        return {n: s / w if w else float("nan") for n, s, w in zip(self.names, sums, weights, strict=True)}

"""RandAugment (Cubuk et al. 2020, 1909.13719) of a whole batch on the device, operation by operation as Pillow does it.

Every layer computes each family once, for all samples: a warp, a table of levels, a blend. Where a sample's
operation is of another family, its matrix, table or factor is the one that changes nothing. So shapes and
graph never follow the choices, and a sample's result depends on its own draws alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from data import enhance, lut
from data.op_draws import AMOUNT, MATRIX, NUM_OP_DRAWS, OP, Op
from data.warp import Filter, warp

_TABLE_OPS: Final = frozenset({Op.AUTOCONTRAST, Op.EQUALIZE, Op.SOLARIZE, Op.SOLARIZE_ADD, Op.POSTERIZE})
_BLEND_OPS: Final = frozenset({Op.BRIGHTNESS, Op.CONTRAST, Op.COLOUR, Op.SHARPNESS})


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceRandAugment:
    """What is constant over a run: which operations may come, how many layers, fill colour and filter."""

    ops: frozenset[Op]
    num_layers: int
    fill: Sequence[int]
    interpolation: Filter

    @property
    def num_draws(self) -> int:
        return self.num_layers * NUM_OP_DRAWS

    def __call__(self, levels: Tensor, draw: Tensor) -> Tensor:
        """levels float32 (N,3,H,W) with whole numbers 0..255, draw (N, num_draws) of `data.op_draws` -> levels."""
        for row in torch.split(draw, NUM_OP_DRAWS, dim=1):
            levels = self._layer(levels, row)
        return levels

    def _layer(self, levels: Tensor, row: Tensor) -> Tensor:
        op, amount = row[:, OP, None, None], row[:, AMOUNT, None, None]
        if Op.WARP in self.ops:
            levels = warp(levels, row[:, MATRIX:], fill=self.fill, interpolation=self.interpolation)
        if self.ops & _TABLE_OPS:
            levels = lut.apply_table(levels, self._table(levels, op, amount))
        if self.ops & _BLEND_OPS:
            levels = self._blend(levels, op[..., None], amount[..., None])
        if Op.BLUR in self.ops:
            radius = torch.where(op == Op.BLUR, amount, 1.0)[..., None]
            levels = torch.where((op == Op.BLUR)[..., None], enhance.gaussian_blur(levels, radius), levels)
        return levels

    def _table(self, levels: Tensor, op: Tensor, amount: Tensor) -> Tensor:
        """(N,3,256); op and amount (N,1,1)."""
        level = lut.identity_table(levels)
        table = level.expand(*levels.shape[:2], 256)
        if Op.SOLARIZE in self.ops:
            table = torch.where(op == Op.SOLARIZE, lut.solarize_table(level, amount), table)
        if Op.SOLARIZE_ADD in self.ops:
            table = torch.where(op == Op.SOLARIZE_ADD, lut.solarize_add_table(level, amount), table)
        if Op.POSTERIZE in self.ops:
            step = torch.where(op == Op.POSTERIZE, amount, 1.0)
            table = torch.where(op == Op.POSTERIZE, lut.posterize_table(level, step), table)
        if Op.AUTOCONTRAST in self.ops:
            table = torch.where(op == Op.AUTOCONTRAST, lut.autocontrast_table(levels), table)
        if Op.EQUALIZE in self.ops:
            table = torch.where(op == Op.EQUALIZE, lut.equalize_table(levels), table)
        return table

    def _blend(self, levels: Tensor, op: Tensor, factor: Tensor) -> Tensor:
        """op and factor (N,1,1,1)."""
        plain = torch.zeros_like(levels)
        if Op.CONTRAST in self.ops:
            plain = torch.where(op == Op.CONTRAST, enhance.mean_grey(levels), plain)
        if Op.COLOUR in self.ops:
            plain = torch.where(op == Op.COLOUR, enhance.grey(levels), plain)
        if Op.SHARPNESS in self.ops:
            plain = torch.where(op == Op.SHARPNESS, enhance.smooth(levels), plain)
        is_blend = (op >= Op.BRIGHTNESS) & (op <= Op.SHARPNESS)
        return enhance.blend(plain, levels, torch.where(is_blend, factor, 1.0))

"""spatter: drops of water with dark rims, or mud, where blurred noise passes a threshold.

Of water the original makes a relief with OpenCV: Canny's edges, the distance to them, its histogram equalised, an
emboss filter. Here every step has a fixed shape: edges follow weak pixels for four steps instead of to their end, and
distances are exact instead of OpenCV's 5x5 approximation.
"""

import torch
from torch import Tensor

from robust.corruptions import tables
from robust.corruptions.draws import normal
from robust.corruptions.separable import gaussian, pad

# N images; levels (N,3,H,W) are 0..255 in float32; layers are (N,H,W).
_WATER = (175, 238, 238)
_MUD = (63, 42, 20)
_FAR = 20  # distances are cut off there
_LOW, _HIGH = 50, 150  # Canny's thresholds
_TRACED = 4


def spatter(levels: Tensor, seed: Tensor, severity: int) -> Tensor:
    """Water up to severity 3, mud above."""
    mean, deviation, sigma, threshold, strength, is_mud = tables.SPATTER[severity - 1]
    num, _, height, width = levels.shape
    liquid = mean + deviation * normal(seed, height * width).reshape(num, height, width)
    liquid = gaussian(liquid, sigma)
    if is_mud:
        cover = gaussian((liquid > threshold).to(torch.float32), strength)
        cover = torch.where(cover < 0.8, 0.0, cover)[:, None]
        return levels * (1 - cover) + cover * _colour(_MUD, levels)
    liquid = torch.where(liquid < threshold, 0.0, (liquid * 255).floor())
    drops = liquid * _relief(liquid)
    strongest = drops.amax(dim=(1, 2), keepdim=True).clamp(min=1.0)
    return levels + (drops / strongest)[:, None] * strength * _colour(_WATER, levels)


def _colour(colour: tuple[int, ...], levels: Tensor) -> Tensor:
    return torch.tensor(colour, device=levels.device, dtype=levels.dtype)[:, None, None]


def _relief(liquid: Tensor) -> Tensor:
    distance = _distance(_edges(liquid)).clamp(max=float(_FAR))
    equal = _equalised(_box(distance).floor())
    wide = _padded(equal)
    height, width = liquid.shape[-2:]
    kernel = ((-2, -1, 0), (-1, 1, 1), (0, 1, 2))
    embossed = torch.zeros_like(liquid)
    for y, row in enumerate(kernel):
        for x, weight in enumerate(row):
            embossed = embossed + wide[:, y : y + height, x : x + width] * weight
    return (_box(embossed.clamp(0.0, 255.0)) + 0.5).floor()


def _padded(layer: Tensor) -> Tensor:
    return pad(pad(layer, 1, axis=-1, border="mirror"), 1, axis=-2, border="mirror")


def _box(layer: Tensor) -> Tensor:
    """Mean of 3x3."""
    wide = _padded(layer)
    tall = wide[:, :-2] + wide[:, 1:-1] + wide[:, 2:]
    return (tall[..., :-2] + tall[..., 1:-1] + tall[..., 2:]) / 9


def _edges(layer: Tensor) -> Tensor:
    """bool (N,H,W): Canny's edges, by OpenCV's steps (Sobel 3x3, L1 norm)."""
    height, width = layer.shape[-2:]
    wide = pad(pad(layer, 1, axis=-1, border="nearest"), 1, axis=-2, border="nearest")
    smooth_down = wide[:, :-2] + 2 * wide[:, 1:-1] + wide[:, 2:]
    across = smooth_down[..., 2:] - smooth_down[..., :-2]
    smooth_across = wide[..., :-2] + 2 * wide[..., 1:-1] + wide[..., 2:]
    down = smooth_across[:, 2:] - smooth_across[:, :-2]
    size = across.abs() + down.abs()
    around = torch.nn.functional.pad(size, (1, 1, 1, 1))

    def beside(dy: int, dx: int) -> Tensor:
        return around[:, 1 + dy : 1 + dy + height, 1 + dx : 1 + dx + width]

    steep, flat = down.abs() > 2.41421356 * across.abs(), down.abs() < 0.41421356 * across.abs()
    rising = (across * down) < 0
    before = torch.where(rising, beside(-1, 1), beside(-1, -1))
    behind = torch.where(rising, beside(1, -1), beside(1, 1))
    before = torch.where(flat, beside(0, -1), torch.where(steep, beside(-1, 0), before))
    behind = torch.where(flat, beside(0, 1), torch.where(steep, beside(1, 0), behind))
    is_axis = flat | steep
    is_peak = (size > before) & torch.where(is_axis, size >= behind, size > behind) & (size > _LOW)
    edge = is_peak & (size > _HIGH)
    for _ in range(_TRACED):
        wide = torch.nn.functional.pad(edge, (1, 1, 1, 1))
        tall = wide[:, :-2] | wide[:, 1:-1] | wide[:, 2:]
        edge = is_peak & (tall[..., :-2] | tall[..., 1:-1] | tall[..., 2:])
    return edge


def _distance(edge: Tensor) -> Tensor:
    """float32 (N,H,W) to the nearest edge pixel, right up to the cut-off."""
    squared = (1 - edge.to(torch.float32)) * (2.0 * _FAR * _FAR)
    for axis in (1, 2):
        sides = [_FAR if side == axis else 0 for side in (2, 2, 1, 1)]
        wide = torch.nn.functional.pad(squared, sides, value=2.0 * _FAR * _FAR)
        for step in range(1, _FAR + 1):
            before, after = (wide.narrow(axis, _FAR + s, edge.shape[axis]) for s in (-step, step))
            squared = torch.minimum(squared, torch.minimum(before, after) + step * step)
    return squared.sqrt()


def _equalised(layer: Tensor) -> Tensor:
    """Whole numbers from 0 to 20 -> 0..255 by their ranks, as OpenCV's equalizeHist."""
    total = layer[0].numel()
    level = layer.flatten(1).to(torch.int64)
    counts = torch.zeros(layer.shape[0], _FAR + 1, device=layer.device)
    ranks = counts.scatter_add(1, level, torch.ones_like(layer).flatten(1)).cumsum(
        1
    )  # whole, and exact in float32
    lowest = torch.where(ranks > 0, ranks, total + 1).amin(dim=1, keepdim=True)  # of the first level there is
    scale = 255.0 / (total - lowest).clamp(min=1)
    table = ((ranks - lowest).clamp(min=0) * scale + 0.5).floor()
    return torch.gather(table, 1, level).reshape(layer.shape)

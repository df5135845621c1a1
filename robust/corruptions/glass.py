"""glass_blur: pixels take the place of neighbours between two Gaussian blurs.

The original walks from the last pixel to the first and exchanges each with a drawn neighbour. Its code exchanges views
of one array, so what happens is a copy: the neighbour's value overwrites the pixel's, and a neighbour that the walk has
passed hands on what it took itself. That chain is followed here by doubling pointers (which has a fixed shape) instead
of walking: the same draws give the same pixels as the walk.
"""

import torch
from torch import Tensor

from robust.corruptions import tables
from robust.corruptions.draws import stream
from robust.corruptions.pixels import fetch, pack, unpack
from robust.corruptions.separable import gaussian
from robust.noise import logical_shift, random_bits

# N images, P = H * W pixels in reading order; levels (N,3,H,W) are 0..255 in float32.
# Doublings for chains of 16 or 32 links. A link leads on with a probability below 0.43: of 10**8 pixels one has 22.
_DOUBLINGS = {1: 0, 2: 4, 3: 5, 4: 5}


def glass_blur(levels: Tensor, seed: Tensor, severity: int) -> Tensor:
    """Blur, exchange within the reach as often as the table says, blur."""
    sigma, reach, passes = tables.GLASS_BLUR[severity - 1]
    height, width = levels.shape[-2:]
    packed = pack((gaussian(levels, sigma) + 2**-8).floor())  # as uint8, on the way
    for number in range(passes):
        drawn = neighbours(stream(seed, "glass_blur", severity, number), reach, height=height, width=width)
        packed = fetch(packed, sources(drawn, doublings=_DOUBLINGS[reach]))
    return gaussian(unpack(packed).reshape(levels.shape), sigma)


def neighbours(seed: Tensor, reach: int, *, height: int, width: int) -> Tensor:
    """int32 (N,P): which pixel each looks at. Both steps from -reach to reach - 1; pixels at the edges stay."""
    bits = random_bits(seed, height * width)
    right = torch.bitwise_right_shift((bits & 0xFFFF) * (2 * reach), 16) - reach
    down = torch.bitwise_right_shift(logical_shift(bits, 16) * (2 * reach), 16) - reach
    y = torch.arange(height, dtype=torch.int32, device=seed.device)[:, None]
    x = torch.arange(width, dtype=torch.int32, device=seed.device)[None, :]
    walks_y, walks_x = (y > reach) & (y <= height - reach), (x > reach) & (x <= width - reach)
    walks = (walks_y.to(torch.int32) * walks_x.to(torch.int32)).flatten()
    own = torch.arange(height * width, dtype=torch.int32, device=seed.device)
    return own + (down * width + right) * walks


def sources(drawn: Tensor, *, doublings: int) -> Tensor:
    """int32 (N,P): from where in the image before the pass each pixel's value comes."""
    own = torch.arange(drawn.shape[1], dtype=torch.int32, device=drawn.device)
    # The walk has passed the pixels behind. One that it never visits looks at itself, which ends a chain.
    last = torch.maximum(drawn, own)
    for _ in range(doublings):
        last = fetch(last, last)
    return fetch(drawn, last)

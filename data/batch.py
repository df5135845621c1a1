"""The fixed-shape unit that leaves `data/`: one process's contiguous slice of a global batch, on the host.

`draw` carries the small random numbers of the step, one row per sample, so that the device program never
draws them itself and stays the same graph whatever they are. The constants below name its columns.
"""

from typing import Final, NamedTuple

from torch import Tensor

LAM: Final = 0  # weight of sample i itself; 1 - lam is its partner's weight; 1 when nothing is mixed
MIX_ON: Final = 1  # 1 when the sample is mixed at all
CUTMIX: Final = 2  # 1 when a box is pasted, 0 when pixels are blended
BOX_Y0: Final = 3  # box rows [y0, y1) and columns [x0, x1) in pixels, already clipped to the image
BOX_Y1: Final = 4
BOX_X0: Final = 5
BOX_X1: Final = 6
START: Final = 7  # uniform in [0, 1), for the rule that decides where an attack starts
NUM_DRAWS: Final = 8  # further columns are of augmentation on the device, see data/augment.py


class Batch(NamedTuple):
    """Host tensors with a common leading axis N, this process's share of the global batch."""

    image: Tensor  # uint8 [N,3,H,W]
    label: Tensor  # int64 [N], -1 in padding slots
    mask: Tensor  # bool [N], False in padding slots
    key: Tensor  # int64 [N], position in the dataset, -1 in padding slots
    seed: Tensor  # int64 [N], seed of the sample's own random stream, 0 in padding slots
    draw: Tensor  # float32 [N,NUM_DRAWS+K], columns named above and K of device augmentation, constant over a run

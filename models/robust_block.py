"""The four blocks of Robust-ResNet (Wang et al. 2023, arXiv:2206.03452): one depth-wise and two 1x1 convolutions.

    dw                 1x1 narrow, depth-wise, 1x1 wide      ResNet's bottleneck; the block's output is wide
    inverted_dw        1x1 wide, depth-wise, 1x1 narrow      depth-wise on the wide tensor
    up_inverted_dw     depth-wise, 1x1 wide, 1x1 narrow      depth-wise first, as in ConvNeXt
    down_inverted_dw   1x1 wide, 1x1 narrow, depth-wise      depth-wise last

Parameter names are those of the published weight files. Their norm and act carry the number of the convolution
that they follow: in the first two blocks 1, 2, 3 in the order above, in the last two conv_dw has 1, pwconv1 has 2
and pwconv2 has 3. The published blocks keep one norm and one act; `norms` and `acts` choose any others. The act of a
block's last convolution comes after the addition, as in ResNet.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

from timm.layers import DropPath, create_act_layer, get_act_layer
from torch import Tensor, nn, ones

PaddingMode = Literal["zeros", "replicate"]  # torch's others fail where the padding is larger than the map


class Conv(NamedTuple):
    """One of a block's three convolutions."""

    name: str
    number: int  # norm{number} and act{number} follow it
    is_wide: bool  # it puts out mlp_ratio times the stage's width


@dataclass(frozen=True, kw_only=True, slots=True)
class Kind:
    """A kind of block: its convolutions in order, and what the published form keeps."""

    convs: tuple[Conv, Conv, Conv]
    norms: tuple[str, ...]
    acts: tuple[str, ...]
    strides_at_end: bool = False  # a stage is halved in its last block instead of its first


KINDS = {
    "dw": Kind(
        convs=(Conv("pwconv1", 1, False), Conv("conv_dw", 2, False), Conv("pwconv2", 3, True)),
        norms=("norm1",),
        acts=("act3",),
    ),
    "inverted_dw": Kind(
        convs=(Conv("pwconv1", 1, True), Conv("conv_dw", 2, True), Conv("pwconv2", 3, False)),
        norms=("norm1",),
        acts=("act1",),
    ),
    "up_inverted_dw": Kind(
        convs=(Conv("conv_dw", 1, False), Conv("pwconv1", 2, True), Conv("pwconv2", 3, False)),
        norms=("norm1",),
        acts=("act2",),
    ),
    "down_inverted_dw": Kind(
        convs=(Conv("pwconv1", 2, True), Conv("pwconv2", 3, False), Conv("conv_dw", 1, False)),
        norms=("norm2",),
        acts=("act2",),
        strides_at_end=True,
    ),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class BlockOptions:
    """What all blocks of a model share. ValueError for what no block can have."""

    kind: str
    kernel_size: int
    padding_mode: PaddingMode
    norms: tuple[str, ...]
    acts: tuple[str, ...]
    act_layer: str  # timm's name
    mlp_ratio: float
    layer_scale_init_value: float  # 0: no layer scale

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"unknown block {self.kind!r}; use one of {', '.join(KINDS)}")
        kernel = self.kernel_size
        if not isinstance(kernel, int) or kernel not in range(3, 32, 2):
            raise ValueError(f"kernel_size {kernel!r} must be an odd number from 3 to 31; try 7 or 11")
        if self.padding_mode not in get_args(PaddingMode):
            raise ValueError(
                f"unknown padding_mode {self.padding_mode!r}; use {' or '.join(get_args(PaddingMode))}"
            )
        _check_positions(self.kind, "norm", self.norms)
        _check_positions(self.kind, "act", self.acts)
        _check_act(self.act_layer)
        if self.mlp_ratio <= 0:
            raise ValueError(f"mlp_ratio {self.mlp_ratio} must be above 0; the published models have 4")
        if self.layer_scale_init_value < 0:
            raise ValueError(
                f"layer_scale_init_value {self.layer_scale_init_value} must not be below 0; 0 means no layer scale"
            )

    def width(self, dim: int, *, is_wide: bool) -> int:
        """Channels of a convolution in a stage of width `dim`."""
        return int(self.mlp_ratio * dim) if is_wide else dim

    def width_out(self, dim: int) -> int:
        """Channels that a block puts out."""
        return self.width(dim, is_wide=KINDS[self.kind].convs[-1].is_wide)


class RobustBlock(nn.Module):
    """x (N,`width_in`,H,W) -> (N,options.width_out(dim),H/stride,W/stride), rounded up."""

    def __init__(
        self, width_in: int, dim: int, options: BlockOptions, *, stride: int = 1, drop_path: float = 0.0
    ) -> None:
        super().__init__()
        convs = KINDS[options.kind].convs
        self.branch: list[str] = []  # the layers before the addition, in order
        self.act_after: str = ""  # the one after it, if there is one
        width = width_in
        for conv in convs:
            width_out = options.width(dim, is_wide=conv.is_wide)
            if conv.name == "conv_dw":
                layer = _depth_wise(width, width_out, options, stride=stride)
            else:
                layer = nn.Conv2d(width, width_out, 1)
            self._append(conv.name, layer)
            width = width_out
            if f"norm{conv.number}" in options.norms:
                self._append(f"norm{conv.number}", nn.BatchNorm2d(width))
            if f"act{conv.number}" not in options.acts:
                continue
            # in place: saves a tensor, and what comes before (convolution, norm, sum) does not need its output
            self._append(f"act{conv.number}", create_act_layer(options.act_layer, inplace=True))
            if conv is convs[-1]:
                self.act_after = self.branch.pop()
        scale = options.layer_scale_init_value
        self.gamma = nn.Parameter(scale * ones(width)) if scale > 0 else None
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()
        is_same = width == width_in and stride == 1
        self.downsample = nn.Identity() if is_same else _shortcut(width_in, width, stride=stride)

    def _append(self, name: str, layer: nn.Module) -> None:
        self.add_module(name, layer)
        self.branch.append(name)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x
        for name in self.branch:
            out = getattr(self, name)(out)
        if self.gamma is not None:
            out = out * self.gamma.view(1, -1, 1, 1)
        out = self.drop_path(out) + self.downsample(x)
        if self.act_after:
            out = getattr(self, self.act_after)(out)
        return out


def _depth_wise(width: int, width_out: int, options: BlockOptions, *, stride: int) -> nn.Conv2d:
    if width_out % width:
        raise ValueError(
            f"a depth-wise convolution cannot make {width_out} channels of {width}; dims of {options.kind} "
            "must be multiples of the stage's before"
        )
    return nn.Conv2d(
        width,
        width_out,
        options.kernel_size,
        stride=stride,
        padding=options.kernel_size // 2,
        groups=width,
        padding_mode=options.padding_mode,
    )


def _shortcut(width_in: int, width: int, *, stride: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(width_in, width, 1, stride=stride), nn.BatchNorm2d(width))


def _check_positions(kind: str, layer: str, names: Sequence[str]) -> None:
    known = [f"{layer}{conv.number}" for conv in KINDS[kind].convs]
    for name in names:
        if name not in known:
            raise ValueError(
                f"unknown position {name!r} in {layer}s; in {kind} blocks there are, in order, {', '.join(known)}"
            )
    if len(set(names)) != len(names):
        raise ValueError(f"{layer}s {list(names)} names a position twice; name each once")


def _check_act(name: str) -> None:
    try:
        act = get_act_layer(name)
    except KeyError:
        act = None
    if act is None:
        raise ValueError(f"unknown act_layer {name!r}; use timm's names, such as relu, gelu or silu")

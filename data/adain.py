"""AdaIN style transfer (Huang and Belongie 2017, arXiv:1703.06868) with weights that the user brings.

The layers stand as in naoto0804/pytorch-AdaIN, so its files `vgg_normalised.pth` and `decoder.pth` fit: VGG-19 with
reflection padding up to relu4_1, and its mirror image. Stylized-ImageNet (Geirhos et al. 2019, arXiv:1811.12231) was
made with them, alpha 1.
"""

import pickle
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Final

import torch
from torch import Tensor, nn

ENCODER_FILE, DECODER_FILE = "vgg_normalised.pth", "decoder.pth"
MULTIPLE: Final = 8  # of the sides: three poolings, three enlargements
_EPS: Final = 1e-5


class StyleTransfer(nn.Module):
    """float32 [N,3,H,W] in [0,1], content and style, to content in that style, unclipped."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(*_encoder_layers())
        self.decoder = nn.Sequential(*_decoder_layers())

    def forward(self, content: Tensor, style: Tensor) -> Tensor:
        mixed: Tensor = self.decoder(adaptive_instance_norm(self.encoder(content), self.encoder(style)))
        return mixed


def adaptive_instance_norm(content: Tensor, style: Tensor) -> Tensor:
    """`content` [N,C,H,W] with every channel's mean and standard deviation over space those of `style` [N,C,h,w]."""
    mean, std = _moments(content)
    style_mean, style_std = _moments(style)
    return (content - mean) / std * style_std + style_mean


@lru_cache(maxsize=1)
def load_style_transfer(folder: Path, device: str) -> StyleTransfer:
    """The network with the weights in `folder`. ValueError or FileNotFoundError naming the file that does not fit."""
    network = StyleTransfer()
    for part, name in ((network.encoder, ENCODER_FILE), (network.decoder, DECODER_FILE)):
        wanted = part.state_dict()
        found = _read(folder / name)
        # vgg_normalised.pth goes on to relu5_4.
        part.load_state_dict({key: _checked(found, key, wanted[key], folder / name) for key in wanted})
    return network.eval().requires_grad_(False).to(device)


def check_weights(folder: Path) -> None:
    """FileNotFoundError where a file is missing."""
    for name in (ENCODER_FILE, DECODER_FILE):
        if not (folder / name).is_file():
            raise FileNotFoundError(
                f"no {name} in {folder}; give the folder of {ENCODER_FILE} and {DECODER_FILE} of pytorch-AdaIN"
            )


def _moments(features: Tensor) -> tuple[Tensor, Tensor]:
    variance, mean = torch.var_mean(features, dim=(2, 3), keepdim=True)
    return mean, (variance + _EPS).sqrt()


def _convolution(inputs: int, outputs: int) -> Iterator[nn.Module]:
    yield nn.ReflectionPad2d(1)
    yield nn.Conv2d(inputs, outputs, 3)


def _block(widths: Sequence[int]) -> Iterator[nn.Module]:
    for inputs, outputs in pairwise(widths):
        yield from _convolution(inputs, outputs)
        yield nn.ReLU()


def _encoder_layers() -> Iterator[nn.Module]:
    yield nn.Conv2d(3, 3, 1)
    for widths in ((3, 64, 64), (64, 128, 128), (128, 256, 256, 256, 256)):
        yield from _block(widths)
        yield nn.MaxPool2d(2, ceil_mode=True)
    yield from _block((256, 512))


def _decoder_layers() -> Iterator[nn.Module]:
    for widths in ((512, 256), (256, 256, 256, 256, 128), (128, 128, 64)):
        yield from _block(widths)
        yield nn.Upsample(scale_factor=2)
    yield from _block((64, 64))
    yield from _convolution(64, 3)


def _read(path: Path) -> dict[str, Tensor]:
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise
    except (RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{path} is no file of weights ({reason}); fetch it again") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds {type(found).__name__}, not a state dict; fetch it again")
    return found


def _checked(found: dict[str, Tensor], key: str, wanted: Tensor, path: Path) -> Tensor:
    weights = found.get(key)
    if not isinstance(weights, Tensor) or weights.shape != wanted.shape:
        shape = "nothing" if not isinstance(weights, Tensor) else f"shape {list(weights.shape)}"
        raise ValueError(
            f"{path} has {shape} under {key!r}, not shape {list(wanted.shape)}; give pytorch-AdaIN's file"
        )
    return weights

"""Weights by a name of timm's: "timm:resnet50.a1_in1k" or "hf-hub:ORG/NAME", fetched by timm when a user names them.

timm reads safetensors, or pickles with `weights_only=True`, and keeps what it fetched; a name that it has needs no
network.
"""

import contextlib
import logging
import socket
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple
from urllib.parse import urlsplit
from urllib.request import getproxies

import timm
from huggingface_hub import constants
from timm.models import load_model_config_from_hf
from torch import Tensor

from models.defaults import Defaults, describe_config
from models.registry import check_name
from models.weight_container import WeightFileError

OWN = "timm:"
HUB = ("hf-hub:", "hf_hub:")


class Fetched(NamedTuple):
    """A model of timm's with weights."""

    model: str  # the name that builds it without weights
    args: Mapping[str, Any]  # of its constructor
    num_classes: int
    state: dict[str, Tensor]
    defaults: Defaults


def is_hub_name(text: str) -> bool:
    """Whether `text` is a name to fetch and no path."""
    return text.startswith((OWN, *HUB))


def fetch(name: str) -> Fetched:
    """Weights, and what the model was trained for. ValueError in one line for an unknown name or without network."""
    own = name.removeprefix(OWN)
    args: Mapping[str, Any] = {}
    if name.startswith(OWN):
        check_name(own)
    try:
        with _quick_without_network():
            model = timm.create_model(own, pretrained=True)
            if name.startswith(HUB):
                _, _, args = load_model_config_from_hf(own.partition(":")[2])
    except (KeyboardInterrupt, MemoryError):
        raise
    except Exception as error:  # each transport has errors of its own
        reason = " ".join(str(error).split()).partition(". ")[0][:160]
        if isinstance(error, RuntimeError) and "retrained" in reason:  # timm: no such tag, no weights
            raise WeightFileError(f"{name}: {reason}") from None
        raise WeightFileError(
            f"{name} cannot be fetched ({type(error).__name__}: {reason}); is it spelled as its publisher does, and is "
            "there a network? else fetch its file elsewhere and give the file"
        ) from None
    config = model.pretrained_cfg
    return Fetched(
        model=str(config["architecture"]),
        args=dict(args or {}),
        num_classes=int(model.num_classes),
        state=model.state_dict(),
        defaults=describe_config(config),
    )


@contextlib.contextmanager
def _quick_without_network() -> Iterator[None]:
    """Where the hub's name has no address, only what was fetched before is looked for: the hub's client would try
    again and again for a minute."""
    host = urlsplit(constants.ENDPOINT).hostname
    before, logger = constants.HF_HUB_OFFLINE, logging.getLogger("huggingface_hub")
    level = logger.level
    try:
        if not getproxies():
            socket.getaddrinfo(host, 443)
    except OSError:
        constants.HF_HUB_OFFLINE = True
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before
        logger.setLevel(level)

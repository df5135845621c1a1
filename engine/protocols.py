"""Protocols: how each set's images reach a model, as a paper's own scripts have it, `data/protocols/ID.yaml`.

A number stands under the protocol that made it: bilinear for bicubic, or a second resize of files that have the
model's size, are worth some tenths of a point, so a contract begins with the protocol's id. `default` is the manifest's
own transform, and the recipe's or the model's where the manifest prescribes none. Imports nothing heavy.
"""

from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Final

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from data.suite import Interpolation, NotForThis, Resize, Suite

DEFAULT: Final = "default"
_FOLDER: Final = Path(__file__).parents[1] / "data" / "protocols"


class Way(BaseModel):
    """From a file to the model's size; None: the recipe's."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    resize: Resize | None = None
    crop_pct: float | None = None
    interpolation: Interpolation | None = None


class Protocol(BaseModel):
    """One paper's."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    id: str
    title: str
    source: str
    image_size: int
    suites: Mapping[str, Way]


def list_protocols() -> tuple[str, ...]:
    """Ids, `default` first."""
    return (DEFAULT, *sorted(path.stem for path in _FOLDER.glob("*.yaml")))


def load_protocol(id: str) -> Protocol:
    """ValueError that names the nearest where there is no such file, or one that is wrong."""
    if id not in (known := list_protocols()[1:]):
        near = get_close_matches(id, known, n=1)
        remedy = f"did you mean {near[0]}?" if near else f"known are {', '.join((DEFAULT, *known))}"
        raise ValueError(f"protocol {id!r} is unknown; {remedy}")
    path = _FOLDER / f"{id}.yaml"
    content: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
    try:
        return Protocol.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ValueError(f"{path}: {where}: {first['msg']}; restore it") from None


def way_of(protocol: str, suite: Suite, *, image_size: int) -> Way:
    """How the images of `suite` reach a model of `image_size` px. ValueError where the protocol does not say it, or is
    for another size, or where files that must stay as they are have another."""
    if protocol == DEFAULT:
        way = Way(resize=suite.resize, crop_pct=suite.crop_pct, interpolation=suite.interpolation)
    else:
        found = load_protocol(protocol)
        if suite.id not in found.suites:
            raise NotForThis(
                f"protocol {protocol} has no {suite.id}; it has {', '.join(found.suites)}; drop --protocol, or choose "
                "among these"
            )
        if image_size != found.image_size:
            raise NotForThis(
                f"protocol {protocol} is for {found.image_size} px, and the model sees {image_size} px; give "
                f"--image-size {found.image_size}, or drop --protocol"
            )
        way = found.suites[suite.id]
    if way.resize == "none" and suite.image_size not in (None, image_size):
        raise NotForThis(
            f"suite {suite.id} has files of {suite.image_size} px that are never resized, and the model sees "
            f"{image_size} px; give --image-size {suite.image_size}, or choose other suites"
        )
    return way

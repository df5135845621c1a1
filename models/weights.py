"""Weight files: what is inside one, and where its state dict is.

Everything is loaded with `weights_only=True` or by safetensors. What cannot be read that way, is cut off, or is no
weight file at all (a login page saved as .pth, a Git LFS pointer) is a WeightFileError in one line.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from models.weight_container import FORMAT_KEY, WeightFileError, read_tensors, recognise, unpickle

# Keys under which files keep the state dict, and an average of it; the first one counts.
NESTED = ("state_dict", "model", "model_state_dict")
AVERAGED = ("state_dict_ema", "model_ema", "ema")


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightFile:
    """A file that was read."""

    path: Path
    container: str  # "safetensors", "torch zip" or "torch legacy"
    layout: str  # where the state dict was: "state dict", "checkpoint of this toolkit", "{'model': ...}", ...
    state: Mapping[str, Tensor]  # the state dict
    contents: Mapping[str, int]  # tensors under each key of the outermost mapping, the state dict's own too
    content: Mapping[str, Any]  # the outermost mapping as it was
    metadata: Mapping[str, str]  # of safetensors, else empty


def read_weights(path: Path, *, use_ema: bool = False, harmless: bool = False) -> WeightFile:
    """The file at `path`, on the cpu; `use_ema` takes the average of the weights that it keeps beside them.

    `harmless` lets in a few classes that only hold values (models.weight_container). WeightFileError for what is no
    weight file or has no average, OSError for what cannot be opened.
    """
    if path.is_dir():
        raise WeightFileError(f"{path} is a folder; give a weight file, e.g. a checkpoint in a run folder")
    if not path.exists():
        raise WeightFileError(f"{path} does not exist; check the path")
    with path.open("rb") as file:
        head = file.read(512)
    container = recognise(path, head)
    if container == "safetensors":
        return _of_safetensors(path, use_ema=use_ema)
    content = unpickle(path, harmless=harmless)
    if not isinstance(content, Mapping):
        raise WeightFileError(
            f"{path} holds {_noun(content)}, not a mapping of names to tensors; save a state dict"
        )
    layout, state = _find_average(path, content) if use_ema else _find_state(path, content)
    return WeightFile(
        path=path,
        container=container,
        layout=layout,
        state=state,
        contents={} if state is content else _count_tensors(content),
        content=content,
        metadata={},
    )


def _of_safetensors(path: Path, *, use_ema: bool) -> WeightFile:
    state, metadata = read_tensors(path)
    if use_ema and metadata.get("weights") != "ema":
        raise WeightFileError(f"{path} does not say that it holds averaged weights; use --weights raw")
    return WeightFile(
        path=path,
        container="safetensors",
        layout="export of this toolkit" if FORMAT_KEY in metadata else "state dict",
        state=state,
        contents={},
        content=state,
        metadata=metadata,
    )


def _find_state(path: Path, content: Mapping[Any, Any]) -> tuple[str, Mapping[str, Tensor]]:
    if _is_state(content):
        return "state dict", content
    if {"model", "optimizer", "step", "consumed"} <= content.keys() and _is_state(content["model"]):
        return "checkpoint of this toolkit", content["model"]
    for key in NESTED:
        if _is_state(content.get(key)):
            return f"{{'{key}': ...}}", content[key]
    # some files keep a few plain numbers between the tensors
    tensors = {str(key): value for key, value in content.items() if isinstance(value, Tensor)}
    if tensors:
        return "state dict with other values", tensors
    keys = ", ".join(repr(key) for key in list(content)[:5]) or "nothing"
    raise WeightFileError(
        f"{path} holds no state dict (found: {keys}); known are {', '.join(NESTED)} or names of tensors"
    )


def _find_average(path: Path, content: Mapping[Any, Any]) -> tuple[str, Mapping[str, Tensor]]:
    for key in AVERAGED:
        if _is_state(content.get(key)):
            return f"{{'{key}': ...}}", content[key]
    raise WeightFileError(
        f"{path} keeps no average of its weights ({', '.join(AVERAGED)}); use --weights raw"
    )


def _is_state(value: object) -> bool:
    return (
        isinstance(value, Mapping)
        and bool(value)
        and all(isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in value.items())
    )


def _count_tensors(content: Mapping[Any, Any]) -> dict[str, int]:
    counts = {str(key): sum(1 for _ in _tensors(value)) for key, value in content.items()}
    return {key: count for key, count in counts.items() if count}


def _tensors(value: object) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for entry in value.values():
            yield from _tensors(entry)
    elif isinstance(value, list | tuple):
        for entry in value:
            yield from _tensors(entry)


def _noun(value: object) -> str:
    return "one tensor" if isinstance(value, Tensor) else f"a {type(value).__name__}"

"""ImageNet's class names, in the order of everybody's labels: the sorted WordNet ids of ILSVRC 2012.

The lists, and ReaL's labels, lie in timm's package and are read from its files: importing timm takes a second.
"""

import json
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Final

NUM_CLASSES: Final = 1000
NUM_VALIDATION: Final = 50_000
# Name of a list -> timm's file. The sums of the labels are those of the published evaluation scripts.
_FILES: Final = {
    "imagenet": "imagenet_synsets.txt",
    "a": "imagenet_a_synsets.txt",
    "r": "imagenet_r_synsets.txt",
}
INDEX_SUMS: Final = {"imagenet": 499_500, "a": 102_178, "r": 86_135}
_REAL: Final = "imagenet_real_labels.json"
LISTS: Final = tuple(_FILES)


@cache
def wnids(name: str = "imagenet") -> tuple[str, ...]:
    """The sorted wnids of the list `name`: imagenet (1000), a or r (200 of them). ValueError where timm's copy is not
    the one that is known."""
    if name not in _FILES:
        raise ValueError(f"class list {name!r} is unknown; known are {', '.join(LISTS)}")
    path = _info() / _FILES[name]
    found = tuple(path.read_text(encoding="utf-8").split())
    places = {wnid: label for label, wnid in enumerate(found if name == "imagenet" else wnids())}
    labels = [places.get(wnid, -1) for wnid in found]
    if list(found) != sorted(set(found)) or -1 in labels or sum(labels) != INDEX_SUMS[name]:
        raise ValueError(f"{path} is not the list of {name}'s classes; install timm again")
    return found


@cache
def real_labels() -> tuple[tuple[int, ...], ...]:
    """ReaL's labels of ILSVRC2012_val_00000001 to 00050000 (Beyer et al. 2020, arXiv:2006.07159), any number."""
    path = _info() / _REAL
    found = tuple(tuple(labels) for labels in json.loads(path.read_text(encoding="utf-8")))
    if len(found) != NUM_VALIDATION or any(not 0 <= label < NUM_CLASSES for row in found for label in row):
        raise ValueError(f"{path} does not hold ReaL's {NUM_VALIDATION} label lists; install timm again")
    return found


def _info() -> Path:
    """timm's folder of lists, without importing timm."""
    spec = find_spec("timm")
    if spec is None or not spec.submodule_search_locations:
        raise ValueError("timm, which has ImageNet's class lists, is not installed; run `pip install timm`")
    return Path(spec.submodule_search_locations[0]) / "data" / "_info"

"""Accuracy of the quickstart's two clean models on digits that the toolkit and imagecorruptions have corrupted.

Part of benchmarks/corruptions.py; needs runs/quickstart (`launch_gpu.py quickstart`).
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

import robust
from data.decode import Picture
from data.index import load_index
from data.read import ShardReader
from engine.build import check_model
from engine.subject import open_subject
from robust.corruptions.names import COMMON, EXTRA, SEVERITIES

if TYPE_CHECKING:
    from benchmarks.corruptions import Peer

RUNS: Final = Path(__file__).parents[1] / "runs/quickstart"
MODELS: Final = ("cnn_clean", "vit_clean")


def some_digits(num: int) -> tuple[np.ndarray[Any, np.dtype[np.uint8]], torch.Tensor]:
    """The first `num` test digits, uint8 (N,32,32,3), and labels."""
    index = load_index(RUNS / "shards/val")
    reader = ShardReader(index)
    keys = range(min(num, index.num_samples))
    pictures = np.stack([Picture(reader.read(key)).pixels() for key in keys])
    reader.close()
    return pictures, torch.tensor([index.label(key) for key in keys])


def accuracies(
    peer: "Peer", pictures: np.ndarray[Any, np.dtype[np.uint8]], labels: torch.Tensor
) -> list[dict[str, Any]]:
    """For each kind, mean over severities: {"kind", model: [ours, theirs]}."""
    models = {name: _model(name) for name in MODELS}
    image = torch.from_numpy(pictures.transpose(0, 3, 1, 2).copy()).float() / 255
    rows: list[dict[str, Any]] = [
        {"kind": "none"} | {name: [_share(model, image, labels)] * 2 for name, model in models.items()}
    ]
    keys = torch.arange(len(image))
    for kind in (*COMMON, *EXTRA):
        asked = f"{kind}@original" if kind == "elastic_transform" else kind
        asked = f"{kind}@compiled" if kind == "glass_blur" else asked
        found: dict[str, list[list[float]]] = {name: [] for name in MODELS}
        for severity in SEVERITIES:
            own = robust.corrupt(image, kind, severity, seed=keys)
            _, other = peer.corrupt(asked, severity, seed=severity, images=len(image))
            theirs = torch.from_numpy(other.transpose(0, 3, 1, 2).copy()).float() / 255
            for name, model in models.items():
                found[name].append([_share(model, part, labels) for part in (own, theirs)])
        means = {name: np.mean(values, axis=0).round(4).tolist() for name, values in found.items()}
        rows.append({"kind": kind} | means)
        print(kind, means, flush=True)
    return rows


@torch.no_grad()
def _share(model: torch.nn.Module, image: torch.Tensor, labels: torch.Tensor) -> float:
    return float((model(image).argmax(dim=1) == labels).double().mean())


def _model(name: str) -> torch.nn.Module:
    subject = open_subject(RUNS / name, weights="raw")
    model = check_model(subject.recipe, num_classes=len(subject.classes)).to_empty(device="cpu")
    subject.load_into(model)  # every value
    return model.eval()

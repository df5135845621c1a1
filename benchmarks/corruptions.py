"""Corruptions beside imagecorruptions 1.1.2: CPU time of one core, statistics of the pixels, and a model's accuracy.

    OMP_NUM_THREADS=1 python benchmarks/corruptions.py --peer /path/to/python [--rounds 4] [--digits 120]

PEER is the Python of an environment with `imagecorruptions==1.1.2 "setuptools<81" numba` (see corruption_peer.py, which
runs there). Kind by kind and severity by severity the two take turns, A B then B A, on eight crops of 224 px of
scikit-learn's two photographs; time is CPU time of the process. Digits: the models of runs/quickstart on digits that
both have corrupted.
"""

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import torch

import robust
from benchmarks.corruption_report import report
from benchmarks.record import write_result
from robust.corruptions.jpeg import codec
from robust.corruptions.jpeg_tensor import compressed
from robust.corruptions.names import C_BAR, COMMON, EXTRA, SEVERITIES
from robust.corruptions.tables import JPEG_COMPRESSION

NAME: Final = "corruptions"
FIXED: Final = frozenset(
    (
        "defocus_blur",
        "zoom_blur",
        "brightness",
        "contrast",
        "pixelate",
        "jpeg_compression",
        "gaussian_blur",
        "saturate",
    )
)
PEER_KINDS: Final = (*COMMON, *EXTRA, "glass_blur@compiled", "elastic_transform@original")
SLOW_IMAGES: Final = 2  # of the kind that takes the peer half a second


class Peer:
    """The child process, started once."""

    def __init__(self, python: str, photos: np.ndarray[Any, np.dtype[np.uint8]], folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        np.save(folder / "photos.npy", photos)
        script = Path(__file__).with_name("corruption_peer.py")
        self._out = folder / "out.npy"
        self._child = subprocess.Popen(
            [python, str(script), str(folder / "photos.npy")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self.versions: dict[str, str] = self._answer()["versions"]

    def corrupt(
        self, kind: str, severity: int, *, seed: int, images: int
    ) -> tuple[float, np.ndarray[Any, Any]]:
        """CPU seconds, and uint8 (N,H,W,3)."""
        ask = {"kind": kind, "severity": severity, "seed": seed, "images": images, "out": str(self._out)}
        assert self._child.stdin is not None
        self._child.stdin.write(json.dumps(ask) + "\n")
        self._child.stdin.flush()
        return float(self._answer()["cpu_s"]), np.load(self._out)

    def close(self) -> None:
        assert self._child.stdin is not None
        self._child.stdin.close()
        self._child.wait()

    def _answer(self) -> dict[str, Any]:
        assert self._child.stdout is not None
        while True:  # the package prints now and then
            line = self._child.stdout.readline()
            if not line:
                raise ValueError(
                    "the peer's process ended; has its Python imagecorruptions 1.1.2 and setuptools < 81?"
                )
            if line.startswith("{"):
                found: dict[str, Any] = json.loads(line)
                return found


def photos() -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Eight crops, uint8 (8,224,224,3)."""
    from sklearn.datasets import load_sample_images

    places = ((0, 0), (100, 200), (200, 400), (203, 100))
    crops = [picture[y : y + 224, x : x + 224] for picture in load_sample_images().images for y, x in places]
    return np.stack(crops)


def ours(image: torch.Tensor, kind: str, severity: int, seed: int) -> tuple[float, np.ndarray[Any, Any]]:
    """CPU seconds, and uint8 (N,H,W,3)."""
    keys = torch.arange(len(image)) + 1000 * (seed + 1)
    start = time.process_time()
    found = robust.corrupt(image, kind, severity, seed=keys)
    spent = time.process_time() - start
    return spent, as_pixels(found * 255)


def as_pixels(levels: torch.Tensor) -> np.ndarray[Any, Any]:
    pixels: np.ndarray[Any, Any] = levels.round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()
    return pixels


def as_images(pixels: np.ndarray[Any, Any]) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))).to(torch.float32) / 255


def compare(peer: Peer, clean: np.ndarray[Any, Any], kind: str, severity: int, rounds: int) -> dict[str, Any]:
    """Times and statistics of one kind at one severity; `kind` as the peer calls it."""
    own, image = kind.split("@")[0], as_images(clean)
    num = SLOW_IMAGES if kind == "glass_blur" else len(clean)
    ours(image[:1], own, severity, 0)  # tables are made
    times: dict[str, list[float]] = {"ours": [], "peer": []}
    pixels: dict[str, list[np.ndarray[Any, Any]]] = {"ours": [], "peer": []}
    for turn in range(rounds):
        for name in ("ours", "peer") if turn % 2 == 0 else ("peer", "ours"):
            if name == "ours":
                spent, found = ours(image, own, severity, turn)
                times[name].append(1e3 * spent / len(clean))
            else:
                spent, found = peer.corrupt(kind, severity, seed=10 * turn + severity, images=num)
                times[name].append(1e3 * spent / num)
            pixels[name].append(found)
    row: dict[str, Any] = {"kind": kind, "severity": severity}
    row["ms"] = {name: [round(value, 3) for value in values] for name, values in times.items()}
    return row | statistics(clean, pixels["ours"], pixels["peer"], is_fixed=own in FIXED)


def statistics(
    clean: np.ndarray[Any, Any],
    ours: Sequence[np.ndarray[Any, Any]],
    theirs: Sequence[np.ndarray[Any, Any]],
    *,
    is_fixed: bool,
) -> dict[str, Any]:
    """What of the two sets of pixels can be compared; `z`: difference of the PSNRs in standard errors."""
    row: dict[str, Any] = {}
    values = {}
    for name, found in (("ours", ours), ("peer", theirs)):
        every = np.stack(found).astype(np.float64)
        values[name] = [psnr(part, clean[: len(part)]) for part in found]
        row[name] = {
            "mean": round(float(every.mean()), 2),
            "channels": [round(float(value), 1) for value in every.mean(axis=(0, 1, 2, 3))],
            "std": round(float(every.std(axis=(2, 3, 4)).mean()), 2),
            "psnr": round(float(np.mean(values[name])), 3),
        }
    row["spectrum"] = round(float(np.abs(spectrum(ours) - spectrum(theirs)).mean()), 3)
    if is_fixed:
        difference = np.abs(ours[0].astype(int) - theirs[0])
        row["levels"] = {"max": int(difference.max()), "share": round(float((difference > 0).mean()), 5)}
    elif len(ours) > 1 and len(ours[0]) == len(theirs[0]):
        spread = [np.var(np.stack(values[name]), axis=0, ddof=1) / len(ours) for name in ("ours", "peer")]
        error = math.sqrt(float(np.sum(spread))) / len(clean)
        row["z"] = round((row["ours"]["psnr"] - row["peer"]["psnr"]) / max(error, 1e-9), 2)
    return row


def psnr(found: np.ndarray[Any, Any], clean: np.ndarray[Any, Any]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Decibels to the photographs, of each image."""
    error = ((found.astype(np.float64) - clean) ** 2).mean(axis=(1, 2, 3))
    return np.asarray(10 * np.log10(255**2 / np.maximum(error, 1e-9)))


def spectrum(found: Sequence[np.ndarray[Any, Any]]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """log10 of the mean power by frequency (rings), of grey windows."""
    grey = np.concatenate([part.mean(axis=-1) for part in found])
    height, width = grey.shape[1:]
    window = np.outer(np.hanning(height), np.hanning(width))
    grey = (grey - grey.mean(axis=(1, 2), keepdims=True)) * window
    power = (np.abs(np.fft.fft2(grey)) ** 2).mean(axis=0)
    y, x = np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None, :]
    ring = (np.hypot(y, x) * min(height, width)).astype(int).ravel()
    rings = np.bincount(ring, power.ravel()) / np.maximum(np.bincount(ring), 1)
    return np.asarray(np.log10(rings[1 : min(height, width) // 2] + 1e-9))


def bar_times(image: torch.Tensor, rounds: int) -> dict[str, float]:
    """Milliseconds an image of the kinds of ImageNet-C-bar, which the peer has not."""
    found = {}
    for kind in C_BAR:
        spent = [ours(image, kind, severity, turn)[0] for turn in range(rounds) for severity in SEVERITIES]
        found[kind] = round(1e3 * float(np.mean(spent)) / len(image), 2)
    return found


def jpeg_model(image: torch.Tensor) -> list[dict[str, Any]]:
    """The tensor model of JPEG beside Pillow's, for each severity."""
    rows = []
    for severity, quality in enumerate(JPEG_COMPRESSION, start=1):
        real = robust.corrupt(
            image, "jpeg_compression", severity, seed=torch.zeros(len(image), dtype=torch.int64)
        )
        start = time.process_time()
        model = compressed((image * 255).round(), quality)
        spent = 1e3 * (time.process_time() - start) / len(image)
        error = (model - (real * 255).round()).abs()
        rows.append(
            {
                "quality": quality,
                "ms": round(spent, 2),
                "mean_levels": round(float(error.mean()), 3),
                "within_1": round(float((error <= 1).double().mean()), 4),
                "psnr_between": round(10 * math.log10(255**2 / float(error.square().mean())), 2),
                "psnr_of_jpeg": round(-10 * math.log10(float((real - image).square().mean())), 2),
            }
        )
    return rows


def main() -> None:
    """Measures, and writes the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peer", required=True, metavar="PYTHON")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--digits", type=int, default=120, help="images per kind and severity; 0: no models")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    clean = photos()
    with tempfile.TemporaryDirectory() as folder:
        peer = Peer(arguments.peer, clean, Path(folder) / "photos")
        rows = []
        for kind in PEER_KINDS:
            for severity in SEVERITIES:
                rows.append(compare(peer, clean, kind, severity, arguments.rounds))
            print(kind, [row["ms"] for row in rows[-5:]][2], flush=True)
        peer.close()
        versions = peer.versions
        digits: list[dict[str, Any]] = []
        if arguments.digits:
            from benchmarks.corruption_accuracy import accuracies, some_digits

            pictures, labels = some_digits(arguments.digits)
            peer = Peer(arguments.peer, pictures, Path(folder) / "digits")
            digits = accuracies(peer, pictures, labels)
            peer.close()
    image = as_images(clean)
    data = {
        "versions": versions,
        "rounds": arguments.rounds,
        "codec": codec("cpu"),
        "rows": rows,
        "c_bar_ms": bar_times(image, 2),
        "jpeg_model": jpeg_model(image),
        "digits": digits,
    }
    sys.argv[sys.argv.index(arguments.peer)] = "PEER"  # where it lies is of no interest
    path = write_result(NAME, title="Corruptions beside imagecorruptions", text=report(data), data=data)
    print(path)


if __name__ == "__main__":
    main()

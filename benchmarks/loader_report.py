"""What benchmarks/loader.py found, as tables with the goals beside the figures."""

import io
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import PIL
import timm
import torch
from PIL import Image

from benchmarks.device_augment import make_pictures, on_device
from benchmarks.loader_arms import BATCH, ON_DEVICE, SIZE, Copies, mend_posterize
from benchmarks.record import markdown_table, write_result
from data.crop import Box
from data.decode import Picture
from data.index import load_index
from data.native import native_parts
from data.order import sample_seed
from data.read import ShardReader
from data.slots import new_arrays
from data.transform import AugmentSettings, train_transform

Row = dict[str, Any]
Measured = Mapping[tuple[str, str], tuple[float, Sequence[Row]]]  # (arm, parts) -> seconds to start, rounds
GOALS: Final = {  # (arm, parts) -> at least so many times timm's images per CPU-second
    ("plain", "C extension"): 2.5,
    ("plain", "PyPI parts"): 2.0,
    ("deit device", "C extension"): 3.0,
    ("deit 3 repeats", "C extension"): 4.5,
    ("eval bicubic", "C extension"): 2.5,
    ("eval bilinear", "C extension"): 2.5,
}
TRANSFER_GOAL_US: Final = 15.0
_HEADER: Final = ("arm", "with", "workers", "ours", "timm", "ratio", "goal", "reached", "ratio by wall")


def write_report(
    measured: Measured,
    stages: Mapping[str, float],
    *,
    device_ms: float,
    groups: Mapping[str, tuple[str, Sequence[str]]],
    facts: Mapping[str, Any],
    dry: bool,
) -> str:
    """The Markdown text; both files are written unless `dry`. `stages` and `device_ms` as measured below."""
    rows = [row for group in groups.values() for row in compare(measured, *group)]
    text = _text(rows, stages, device_ms, measured, facts)
    if dry:
        return "\n".join(text)
    data = {
        **facts,
        "comparisons": rows,
        "stages_us": dict(stages),
        "device_augment_ms": device_ms,
        "start_s": {" / ".join(name): start for name, (start, _) in measured.items()},
        "rounds_of": {" / ".join(name): runs for name, (_, runs) in measured.items()},
    }
    is_whole = all((arm, "timm") in measured for arm, _ in groups.values())
    name = (
        "loader" if is_whole else "loader-part"
    )  # or a look at one arm would replace all the others' figures
    return write_result(name, title="Loader against timm's", text=text, data=data).read_text()


def compare(measured: Measured, timm_arm: str, our_arms: Sequence[str]) -> list[Row]:
    """A row for each of our arms, its parts and number of workers: figures are medians over the rounds."""
    rows = []
    for (arm, parts), (_, runs) in measured.items():
        if arm not in our_arms or parts == "timm":
            continue
        for workers in sorted({run["workers"] for run in runs}):
            ours = [run for run in runs if run["workers"] == workers]
            theirs = [run for run in measured[timm_arm, "timm"][1] if run["workers"] == workers]
            cpu = [_ratio(a, b, "cpu_s") for a, b in zip(ours, theirs, strict=True)]
            wall = [_ratio(a, b, "wall_s") for a, b in zip(ours, theirs, strict=True)]
            rows.append(
                {
                    "arm": arm,
                    "parts": parts,
                    "workers": workers,
                    "ours": statistics.median(run["images"] / run["cpu_s"] for run in ours),
                    "timm": statistics.median(run["images"] / run["cpu_s"] for run in theirs),
                    "ratio": statistics.median(cpu),
                    "range": [min(cpu), max(cpu)],
                    "wall_ratio": statistics.median(wall),
                    "goal": GOALS.get((arm, parts)),
                }
            )
    return rows


def _ratio(ours: Row, theirs: Row, clock: str) -> float:
    return float((ours["images"] / ours[clock]) / (theirs["images"] / theirs[clock]))


# ---- figures beside the comparison


def measure_stages(folder: Path, rounds: int = 3) -> dict[str, float]:
    """CPU-microseconds an image of one thread, the best of some rounds."""
    index = load_index(folder / "shards")
    reader = ShardReader(index)
    keys = range(0, index.num_samples, max(1, index.num_samples // 400))
    contents = [reader.read(key) for key in keys]
    seeds = sample_seed(np.arange(len(contents)), seed=0, epoch=0).tolist()
    corners = [Box(0, Picture(content).height - 1, 1, 1) for content in contents]
    settings = AugmentSettings()
    stages: dict[str, Callable[[], object]] = {
        "read and crc32": lambda: [reader.read(key) for key in keys],
        "Huffman decoding of all of it": lambda: [
            Picture(content).region(corner) for content, corner in zip(contents, corners, strict=True)
        ],
        "crop, decoded and resized": lambda: [
            train_transform(Picture(content), settings, sample_seed=seed, image_size=SIZE)
            for content, seed in zip(contents, seeds, strict=True)
        ],
        "Pillow: all of it decoded": lambda: [
            Image.open(io.BytesIO(content)).convert("RGB") for content in contents
        ],
    }
    return {name: 1e6 * _best_cpu_s(run, rounds) / len(contents) for name, run in stages.items()}


def copy_us() -> float:
    """CPU-microseconds to write an image into a batch that this process has, over slots as the pool's."""
    job = Copies()
    batches = [new_arrays(job.shape) for _ in range(5)]
    run = lambda: [job.fill(0, batch, lambda key: None) for batch in batches]  # noqa: E731
    run()
    return 1e6 * _best_cpu_s(run, 20) / (len(batches) * BATCH)


def device_cost_ms() -> float:
    """CPU-milliseconds of RandAugment for an image where the device is this processor."""
    torch.set_num_threads(1)
    seeds = sample_seed(np.arange(32), seed=0, epoch=0)
    run = on_device("cpu", ON_DEVICE, make_pictures(32, SIZE), seeds)
    return 1e3 * _best_cpu_s(run, 3) / 32


def _best_cpu_s(run: Callable[[], object], rounds: int) -> float:
    best = float("inf")
    for _ in range(rounds):
        begin = time.process_time()
        run()
        best = min(best, time.process_time() - begin)
    return best


# ---- words


def _text(
    rows: Sequence[Row],
    stages: Mapping[str, float],
    device_ms: float,
    measured: Measured,
    facts: Mapping[str, Any],
) -> list[str]:
    shown = [row for row in rows if row["arm"] != "transfer"]
    starts = {side: [start for (_, parts), (start, _) in measured.items() if (parts == "timm") == is_timm]
              for side, is_timm in (("ours", False), ("timm", True))}  # fmt: skip
    crash = " (its RandAugment crashes with this Pillow; mended in its arm alone)" if mend_posterize() else ""
    return [
        f"{facts['images']} JPEGs of {facts['mean_kb']:.0f} kB, mostly 500x375, generated; batches of {BATCH} "
        f"uint8 images of {SIZE} px; timm {timm.__version__} with Pillow {PIL.__version__}{crash};",
        f"{facts['rounds']} rounds in turn, {facts['total_s']:.0f} s in all. Images per CPU-second of the process",
        "tree (user and system), medians over the rounds; ratios of each round as median [least..greatest].",
        "Both sides stop at uint8 batches: erasing, mixing and normalisation are the device's, and so is RandAugment",
        f"in `deit device` and `deit 3 repeats` (on this processor it would cost {device_ms:.1f} CPU-ms an image);",
        "timm does its own on the host in every arm. Not counted: imports and the first batch, in seconds",
        *(f"{side} {min(found):.1f} to {max(found):.1f} s;" for side, found in starts.items() if found),
        f"C modules here: {', '.join(name for name, is_there in native_parts().items() if is_there) or 'none'}.",
        "",
        *markdown_table(_HEADER, [_cells(row) for row in shown]),
        "",
        *_transfer(rows),
        "Where the time of a plain image goes, CPU-us of one thread: "
        + ", ".join(f"{name} {value:.0f}" for name, value in stages.items())
        + ".",
        *_missed(shown, stages),
    ]


def _cells(row: Row) -> list[str]:
    low, high = row["range"]
    reached = "" if row["goal"] is None else "yes" if row["ratio"] >= row["goal"] else "NO"
    return [
        row["arm"],
        row["parts"],
        str(row["workers"]),
        f"{row['ours']:.0f}",
        f"{row['timm']:.0f}",
        f"{row['ratio']:.2f} [{low:.2f}..{high:.2f}]",
        "" if row["goal"] is None else f"{row['goal']}",
        reached,
        f"{row['wall_ratio']:.2f}",
    ]


def _transfer(rows: Sequence[Row]) -> list[str]:
    found = [row for row in rows if row["arm"] == "transfer"]
    if not found:
        return []
    words = [
        f"{1e6 / row['ours']:.1f} CPU-us an image with {row['workers']} worker(s) (timm's DataLoader and "
        f"fast_collate: {1e6 / row['timm']:.0f}), goal {TRANSFER_GOAL_US:.0f}: "
        f"{'reached' if 1e6 / row['ours'] <= TRANSFER_GOAL_US else 'MISSED'}"
        for row in found
    ]
    own = (
        f"Writing the image where it belongs, which a decoder does anyway, is {copy_us():.1f} of it: the same copies "
        "in one process."
    )
    return ["Collation and transfer, of images that are there already: " + "; ".join(words) + ".", own, ""]


def _missed(rows: Sequence[Row], stages: Mapping[str, float]) -> list[str]:
    missed = [row for row in rows if row["goal"] is not None and row["ratio"] < row["goal"]]
    if not missed:
        return ["", "All of these ratios reach their goals."] if rows else []
    floor = stages["Huffman decoding of all of it"]
    lines = ["", "Goals that are missed:", ""]
    for row in missed:
        if row["parts"] == "PyPI parts":
            reason = "the whole image is decoded, and the crop cut from it"
        else:
            reason = (
                f"Huffman decoding takes up to {floor:.0f} us of an image and no decoder of these bytes can leave out "
                "what stands before the crop"
            )
        name = f"{row['arm']}, {row['parts']}, {row['workers']} worker(s)"
        lines.append(f"- {name}: {row['ratio']:.2f} of {row['goal']}; {reason}.")
    return lines

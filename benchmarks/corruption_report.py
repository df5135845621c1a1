"""The Markdown of benchmarks/corruptions.py, which runs it."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from benchmarks.record import markdown_table
from robust.corruptions.names import COMMON

REASONS = {
    "jpeg_compression": "the same codec, plus the way between tensors and Pillow",
    "pixelate": "Pillow's resize is compiled and works on bytes",
    "spatter": "OpenCV's edges, distances and histogram are compiled and work on bytes",
    "fog": "many small steps of the fractal, each with a call's overhead",
}


def report(data: Mapping[str, Any]) -> list[str]:
    """Lines below the command and the machine."""
    versions = ", ".join(f"{name} {version}" for name, version in data["versions"].items())
    text = [f"Peer's environment: {versions}. Ours: {data['codec']}.", ""]
    text += _speed(data)
    text += _fidelity(data)
    text += _jpeg(data["jpeg_model"])
    if data["digits"]:
        text += _digits(data["digits"])
    return text


def _ms(data: Mapping[str, Any], kind: str, arm: str) -> float:
    rows = [row for row in data["rows"] if row["kind"] == kind]
    return float(np.mean([np.median(row["ms"][arm]) for row in rows]))


def _speed(data: Mapping[str, Any]) -> list[str]:
    kinds = dict.fromkeys(row["kind"] for row in data["rows"])
    table = []
    for kind in kinds:
        own, peer = _ms(data, kind, "ours"), _ms(data, kind, "peer")
        reason = REASONS.get(kind, "") if peer < own else ""
        table.append((kind, f"{own:.2f}", f"{peer:.2f}", f"{peer / own:.1f}", reason))
    own = sum(_ms(data, kind, "ours") for kind in COMMON)
    released = sum(_ms(data, kind, "peer") for kind in COMMON)
    compiled = released - _ms(data, "glass_blur", "peer") + _ms(data, "glass_blur@compiled", "peer")
    bar = ", ".join(f"{kind} {value:.1f}" for kind, value in data["c_bar_ms"].items())
    return [
        "## Speed",
        "",
        "CPU milliseconds for one 224 px image on one core: median of the rounds, mean over the severities.",
        f"All 15 kinds once: {own:.1f} ms here, {released:.0f} ms there as released "
        f"({released / own:.1f} times as long), {compiled:.0f} ms there with its glass_blur compiled "
        f"({compiled / own:.1f} times).",
        "",
        *markdown_table(("kind", "ours", "peer", "peer / ours", "why slower"), table),
        "",
        f"Kinds of ImageNet-C-bar, which the peer has not, ms: {bar}.",
        "",
    ]


def _fidelity(data: Mapping[str, Any]) -> list[str]:
    table = []
    for row in data["rows"]:
        if "levels" in row:
            last = f"max {row['levels']['max']}, {100 * row['levels']['share']:.2f} % differ"
        else:
            last = f"z {row['z']:+.1f}" if "z" in row else "few images"
        cells = [row["kind"], row["severity"]]
        cells += [f"{row['ours'][name]:.1f} / {row['peer'][name]:.1f}" for name in ("mean", "std")]
        channels = max(
            abs(a - b) for a, b in zip(row["ours"]["channels"], row["peer"]["channels"], strict=True)
        )
        cells += [
            f"{channels:.1f}",
            f"{row['ours']['psnr']:.2f} / {row['peer']['psnr']:.2f}",
            row["spectrum"],
            last,
        ]
        table.append(tuple(cells))
    header = ("kind", "severity", "mean", "std", "channels", "PSNR", "spectrum", "pixels")
    return [
        "## Fidelity",
        "",
        "Ours / peer on the same eight photographs, levels of 255: mean, standard deviation within an image, greatest "
        "difference of a channel's mean, PSNR to the photograph in dB, mean difference of the radial power spectra in "
        "log10 units; then for kinds without chance the difference pixel by pixel, for the others that of the PSNRs in "
        "standard errors over seeds. Known differences: the peer's elastic_transform is another algorithm "
        "(`@original` is ImageNet-C's); its frost uses photographs, ours are generated; its glass_blur was timed on "
        "two of the photographs (`@compiled`: all).",
        "",
        *markdown_table(header, table),
        "",
    ]


def _jpeg(rows: list[dict[str, Any]]) -> list[str]:
    table = [
        (
            row["quality"],
            row["mean_levels"],
            f"{100 * row['within_1']:.1f} %",
            row["psnr_between"],
            row["psnr_of_jpeg"],
            row["ms"],
        )
        for row in rows
    ]
    header = (
        "quality",
        "mean difference",
        "within one level",
        "PSNR between",
        "PSNR of JPEG",
        "ms on a core",
    )
    return [
        "## The tensor model of JPEG, for devices, beside Pillow's JPEG",
        "",
        *markdown_table(header, table),
        "",
    ]


def _digits(rows: list[dict[str, Any]]) -> list[str]:
    models = [name for name in rows[0] if name != "kind"]
    table = [
        (
            row["kind"],
            *(f"{100 * row[name][0]:.1f} / {100 * row[name][1]:.1f}" for name in models),
        )
        for row in rows
    ]
    worst = max(abs(row[name][0] - row[name][1]) for row in rows for name in models if row["kind"] != "frost")
    mean = float(np.mean([abs(row[name][0] - row[name][1]) for row in rows[1:] for name in models]))
    return [
        "## Accuracy of two small models",
        "",
        "Top-1 in % on corrupted test digits of 32 px, ours / peer, mean over the severities (elastic_transform and "
        "glass_blur as `@original` and `@compiled`). Mean absolute difference "
        f"{100 * mean:.2f} points, greatest but for frost {100 * worst:.2f}.",
        "",
        *markdown_table(("kind", *models), table),
        "",
    ]

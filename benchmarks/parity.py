"""How far a training step on one backend is from the same step on another, and how free runs drift apart.

    OMP_NUM_THREADS=1 python benchmarks/parity.py [MODEL ...]

Needs the shards that `make quickstart` makes. The program is the one of tests/engine/test_parity.py; here more models
and layouts are shown, also a model that does not stay within the bounds of the test, and what bf16 changes. Results
are written after every row, and those of other models that were made today stay.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import torch

from benchmarks.record import markdown_table, rows_of_today, write_result
from bits.processes import free_port

WORKER = ROOT / "tests/engine/parity_worker.py"
SHARDS = ROOT / "runs/quickstart/shards/train"
RECIPE = ROOT / "tests/engine/parity.yaml.format"
NUM_STEPS = 50
GHOST = "model.norm_stats=ghost:4"  # eight devices have four images each
Layout = tuple[str, int, int]  # backend, processes, devices of each
LAYOUTS: tuple[Layout, ...] = (("cpu", 2, 1), ("xla", 1, 1), ("xla", 1, 4), ("xla", 1, 8))
MODELS = {
    "cnn": ("CNN, GELU, AdamW", "small_cnn", "{act_layer: gelu, width: 16}", "adamw", 2e-3),
    "vit": ("ViT, SGD", "small_vit", "{patch_size: 8}", "sgd", 0.05),
    "relu": ("CNN, ReLU, AdamW", "small_cnn", "{width: 16}", "adamw", 2e-3),
}
FEW = {"relu": LAYOUTS[:2]}  # what it shows is seen on any two
BF16 = ("cnn", "vit")


def work(
    folder: Path, modes: str, layout: Layout, *, out: str, precision: str = "float32"
) -> dict[str, list[dict[str, Any]]]:
    """Runs the worker's processes on `layout` and gives what rank 0 wrote to folder/OUT.json."""
    _, world, devices = layout
    words = [modes, *layout, folder / "recipe.yaml", folder / "trace", folder / f"{out}.json", GHOST]
    words.append(f"run.precision={precision}")
    shared = os.environ | {"PJRT_DEVICE": "CPU", "CPU_NUM_DEVICES": str(devices), "TF_CPP_MIN_LOG_LEVEL": "2"}
    shared |= {"OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    children = [
        subprocess.Popen(
            [sys.executable, str(WORKER), *map(str, words)],
            env=shared
            | ({"RANK": str(r), "LOCAL_RANK": str(r), "WORLD_SIZE": str(world)} if world > 1 else {}),
            stderr=subprocess.DEVNULL,
        )
        for r in range(world)
    ]
    if any(child.wait() for child in children):
        sys.exit(f"{name_of(layout)} failed; run {WORKER} by hand to see why")
    results: dict[str, list[dict[str, Any]]] = json.loads((folder / f"{out}.json").read_text())
    return results


def name_of(layout: Layout) -> str:
    backend, world, devices = layout
    return f"{backend} x{world * devices}"


def prepare(folder: Path, model: str) -> list[dict[str, Any]]:
    """Writes the recipe and the trace of cpu x1; its entries."""
    (folder / "trace").mkdir()
    _, name, args, optimizer, lr = MODELS[model]
    settings = {"train": SHARDS, "model": name, "args": args, "optimizer": optimizer, "lr": lr}
    (folder / "recipe.yaml").write_text(RECIPE.read_text().format(**settings))
    return work(folder, "record", ("cpu", 1, 1), out="record")["record"]


def row_of(folder: Path, model: str, layout: Layout, reference: list[dict[str, Any]]) -> dict[str, Any]:
    """Largest loss and update differences over the steps, and the drifts at the end."""
    found = work(folder, "follow,free,permute", layout, out="layout")
    pairs = list(zip(reference, found["follow"], strict=True))
    errors = [b["update_error"] for _, b in pairs]
    return {
        "recipe": MODELS[model][0],
        "layout": name_of(layout),
        "same_keys_and_draws": all(a["keys"] == b["keys"] for a, b in pairs),
        "loss": max(abs(a["loss"] - b["loss"]) for a, b in pairs),
        "update_median": statistics.median(errors),
        "update_max": max(errors),
        "free_drift": found["free"][-1]["distance"],
        "permuted_drift": found["permute"][-1]["distance"],
    }


def rows_of_bf16(folder: Path, model: str, reference: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each backend in bf16 against itself in float32, and the two against each other, from the same states."""
    cpu, xla = ("cpu", 1, 1), ("xla", 1, 1)
    arms = {
        "cpu bf16": work(folder, "keep", cpu, out="cpu bf16", precision="bf16")["keep"],
        "xla float32": work(folder, "keep", xla, out="xla float32")["keep"],
        "xla bf16": work(folder, "keep", xla, out="xla bf16", precision="bf16")["keep"],
        "cpu float32": reference,
    }
    lengths = [entry["update"] for entry in arms["cpu bf16"]]
    rows = []
    for first, second in (
        ("cpu bf16", "cpu float32"),
        ("xla bf16", "xla float32"),
        ("cpu bf16", "xla bf16"),
        ("cpu float32", "xla float32"),
    ):
        losses = [abs(a["loss"] - b["loss"]) for a, b in zip(arms[first], arms[second], strict=True)]
        errors = [
            float((weights(folder, first, n) - weights(folder, second, n)).norm()) / lengths[n]
            for n in range(NUM_STEPS)
        ]
        rows.append(
            {
                **{"recipe": MODELS[model][0], "pair": f"{first}, {second}"},
                **{"loss_median": statistics.median(losses), "loss_max": max(losses)},
                **{"update_median": statistics.median(errors), "update_max": max(errors)},
            }
        )
    return rows


def weights(folder: Path, arm: str, number: int) -> torch.Tensor:
    """After step `number`, flat, float64."""
    place = folder / ("trace" if arm == "cpu float32" else arm) / f"after-{number}.pt"
    tensor: torch.Tensor = torch.load(place, weights_only=True)
    return tensor


def write(rows: list[dict[str, Any]], bf16: list[dict[str, Any]]) -> str:
    """The result's text."""
    figures = ("loss", "update_median", "update_max", "free_drift", "permuted_drift")
    cells = [
        [row["recipe"], row["layout"], "yes" if row["same_keys_and_draws"] else "NO"]
        + [f"{row[name]:.1e}" for name in figures]
        for row in rows
    ]
    header = ["recipe", "layout", "same keys, draws", "loss, max", "update, median", "update, max"]
    bf16_figures = ("loss_median", "loss_max", "update_median", "update_max")
    text = [
        "50 float32 steps of PGD-1 training with ghost norm, mixup, cutmix, RandAugment and warm-up, batch 32, ghost:4",
        "(four images a device on eight). `loss` and `update`: each step starts from the state of cpu x1; absolute",
        "difference of the loss, relative L2 difference of the update. `free`: distance of the weights after 50 free",
        "steps to those of cpu x1, relative. `permuted`: the same backend against itself with each batch in another",
        "order. Bounds in the tests: loss 1e-5, update 1e-3, free below 5 times permuted (the larger of this layout's",
        "and cpu x1's).",
        "",
        *markdown_table([*header, "free", "permuted"], cells),
    ]
    if any("ReLU" in row["recipe"] for row in rows):
        text += [
            "",
            "The ReLU network breaks the bound at single steps: where a pre-activation lies within rounding of zero",
            "its gradient is there on one backend and not on the other. It is the function that jumps, on any backend:",
            "its drift under a permuted batch is as large. The medians show that all other steps agree.",
        ]
    if bf16:
        text += [
            "",
            "The same steps in bf16 (autocast; weights, optimizer and losses stay float32), one process and one",
            "device, every step from the state of cpu x1 in float32: differences of the loss, and of the update in",
            "shares of the float32 update's length.",
            "",
            *markdown_table(
                ["recipe", "pair", "loss, median", "loss, max", "update, median", "update, max"],
                [
                    [row["recipe"], row["pair"]] + [f"{row[name]:.1e}" for name in bf16_figures]
                    for row in bf16
                ],
            ),
        ]
    data = {"rows": rows, "bf16": bf16}
    return write_result("parity", title="Steps and drift across backends", text=text, data=data).read_text()


def main() -> None:
    models = sys.argv[1:] or list(MODELS)
    others = [title for model, (title, *_) in MODELS.items() if model not in models]
    rows = [row for row in rows_of_today("parity") if row["recipe"] in others]
    bf16 = [row for row in rows_of_today("parity", "bf16") if row["recipe"] in others]
    for model in models:
        with tempfile.TemporaryDirectory() as temporary:
            reference = prepare(Path(temporary), model)
            for layout in FEW.get(model, LAYOUTS):
                rows.append(row_of(Path(temporary), model, layout, reference))
                write(rows, bf16)
            if model in BF16:
                bf16 += rows_of_bf16(Path(temporary), model, reference)
                write(rows, bf16)
    print(write(rows, bf16))


if __name__ == "__main__":
    main()

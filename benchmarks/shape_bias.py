"""Shape bias against a dialled truth, and how often 95 % intervals hold what they promise; on cue64, one core.

    OMP_NUM_THREADS=1 python benchmarks/shape_bias.py [--output runs/shape_bias] [--num-fresh 100000]

A CNN and a ViT are trained where texture tells nothing of the label (correlation 0), and where it nearly always
tells it (0.95), and judged on the same cue conflicts by `eval`. Then one CNN judges fresh images that no other use
has, and small samples of these show how often their intervals hold the value on all of them. What is complete is
read, what was interrupted goes on.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.record import write_result
from benchmarks.shape_bias_report import report
from bits.processor import has_bf16
from data.cue64 import Cue64, paint, part_of, texture_of
from data.cue_scene import Painter, make_canvas
from engine.subject import open_subject
from models.registry import create_model

NUM_CLASSES: Final = 4  # learned in a fifth of the time that ten take
NUM_TRAIN: Final = 6_000
NUM_VAL: Final = 1_000
BATCH: Final = 200
FRESH: Final = {"val": 1.0, "cue64-conflict": 0.3}  # folder -> share of --num-fresh


@dataclass(frozen=True, kw_only=True)
class Arm:
    """A model, how long it learns, and how far texture tells it the answer."""

    model: str
    epochs: int
    correlation: float
    after: str = ""  # arm that it goes on from, the learning rate raised once more

    @property
    def name(self) -> str:
        return f"{self.model}{'_longer' if self.after else ''}_rho{self.correlation:g}"


ARMS: Final = (
    Arm(model="cnn", epochs=3, correlation=0.0),
    Arm(model="cnn", epochs=3, correlation=0.95),
    Arm(model="vit", epochs=4, correlation=0.0),
    Arm(model="vit", epochs=4, correlation=0.95),
    Arm(model="vit", epochs=8, correlation=0.95, after="vit_rho0.95"),
    Arm(model="vit", epochs=8, correlation=0.0, after="vit_rho0"),
)
COVERED: Final = ARMS[1]  # whose intervals are tried: neither always right nor always for the shape


def launch(*words: object) -> float:
    """The toolkit's command line; CPU-seconds of the process and of all that it waited for. CalledProcessError."""
    command = [sys.executable, str(ROOT / "launch_gpu.py"), "--cpu", *map(str, words)]
    print("$", *command[1:], flush=True)
    process = subprocess.Popen(command, cwd=ROOT, env={"OMP_NUM_THREADS": "1"} | os.environ)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return used.ru_utime + used.ru_stime


def shards_of(arm: Arm, output: Path) -> Path:
    return output / f"shards_rho{arm.correlation:g}"


def run_arm(arm: Arm, output: Path) -> dict[str, Any]:
    """Trains and judges what is not yet done; its results, and CPU-seconds."""
    run, shards = output / arm.name, shards_of(arm, output)
    file = output / f"{arm.name}-costs.json"
    costs: dict[str, float] = json.loads(file.read_text()) if file.exists() else {}
    size = ["--num-train", NUM_TRAIN, "--num-val", NUM_VAL, "--num-classes", NUM_CLASSES]
    words = [f"data.train={shards / 'train'}", f"data.val={shards / 'val'}", f"data.suites={shards}"]
    words += ["data.num_workers=0", "run.tensorboard=false", "evals=[]", f"run.epochs={arm.epochs}"]
    words += ["run.precision=bf16"] if has_bf16() else []
    words += [f"model.init={{path: {output / arm.after}}}"] if arm.after else []
    commands: dict[str, list[object]] = {
        "shards make cue64": [shards, *size, "--correlation", arm.correlation],
        "train": [f"recipes/cue64/{arm.model}_clean.yaml", *words, "--output", run],
        "eval": [run, "--suite", "clean,cue64-conflict", "--data", shards, "--quiet"],
    }
    for verb, rest in commands.items():
        if verb not in costs:
            costs[verb] = round(launch(*verb.split(), *rest), 1)
            file.write_text(json.dumps(costs))
    results = {path.stem: json.loads(path.read_text()) for path in sorted((run / "results").glob("*.json"))}
    return {"model": arm.name.rpartition("_")[0], "correlation": arm.correlation, "epochs": arm.epochs} | {
        "costs": costs,
        "clean": _kept(results["clean"]),
        "conflict": _kept(results["cue64-conflict"]),
    }


def _kept(result: dict[str, Any]) -> dict[str, Any]:
    names = ("num_images", "num_correct", "top1", "interval", "shape_bias", "calibration", "evaluation")
    return {name: result[name] for name in names if name in result}


# ---- fresh images


def judge_fresh(arm: Arm, folder: str, output: Path, number: int) -> dict[str, Any]:
    """Rows of (label, class of the texture, prediction) on `number` images that come behind those of the folder."""
    file = output / f"{arm.name}-{folder}-{number}.npz"
    if not file.exists():
        began = time.process_time()
        rows = np.concatenate(list(_judged(arm, folder, output, number)))
        np.savez(file, rows=rows, cpu_s=time.process_time() - began)
    with np.load(file) as found:
        return {"rows": found["rows"], "cpu_s": float(found["cpu_s"])}


def _judged(arm: Arm, folder: str, output: Path, number: int) -> Iterator[NDArray[np.int64]]:
    subject = open_subject(output / arm.name, weights="raw")
    recipe = subject.recipe
    model = create_model(
        recipe.model.name,
        num_classes=len(subject.classes),
        image_size=recipe.data.image_size,
        mean=recipe.model.mean,
        std=recipe.model.std,
        norm_stats=recipe.model.norm_stats,
        **dict(recipe.model.args),
    )
    subject.load_into(model)
    model.eval()
    settings = Cue64(
        correlation=arm.correlation, num_train=NUM_TRAIN, num_val=NUM_VAL, num_classes=NUM_CLASSES
    )
    painter = Painter(make_canvas(part_of(folder), num_classes=settings.num_classes))
    for start in range(NUM_VAL, NUM_VAL + number, BATCH):
        images = np.arange(start, min(start + BATCH, NUM_VAL + number))
        keys, labels, pictures = zip(*paint(folder, images, settings, painter), strict=True)
        pixels = torch.from_numpy(np.stack([np.asarray(picture) for picture in pictures]))
        with torch.inference_mode():
            found = model(pixels.permute(0, 3, 1, 2).float() / 255.0).argmax(dim=1)
        yield np.array([labels, [texture_of(key) for key in keys], found.tolist()], dtype=np.int64).T


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/shape_bias"))
    parser.add_argument("--num-fresh", type=int, default=100_000)
    names = ",".join(arm.name for arm in ARMS)
    parser.add_argument("--arms", default=names, help="default: %(default)s")
    parser.add_argument("--no-report", action="store_true", help="train and judge; write no result")
    arguments = parser.parse_args()
    output = arguments.output.absolute()
    output.mkdir(parents=True, exist_ok=True)
    arms = {arm.name: run_arm(arm, output) for arm in ARMS if arm.name in arguments.arms.split(",")}
    fresh = {
        folder: judge_fresh(COVERED, folder, output, int(share * arguments.num_fresh))
        for folder, share in FRESH.items()
    }
    if arguments.no_report:
        return
    text, data = report(arms, fresh, covered=COVERED.name, num_classes=NUM_CLASSES)
    print(write_result("shape-bias", title="Shape bias on cue64", text=text, data=data).read_text())


if __name__ == "__main__":
    try:
        main()
    except subprocess.CalledProcessError as error:
        sys.exit(f"{' '.join(error.cmd[1:4])} ended with code {error.returncode}")

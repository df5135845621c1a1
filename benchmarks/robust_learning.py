"""What cue64's recipes learn on one core: adversarial training with and without warm-up, distillation, a ViT.

    OMP_NUM_THREADS=1 python benchmarks/robust_learning.py [--shards DIR] [--output DIR] [--arms NAME,...]

Each arm is trained and judged by the command line: `train`, `eval` of all suites, `attack` with PGD-20. Arms run one
after the other; one that is complete is read, one that was interrupted goes on. Shards that are absent are made.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.record import write_result
from benchmarks.robust_learning_report import PGD, agreement, compare, read_run, report
from bits.processor import has_bf16
from data.cue64 import SHIFTED

NUM_FEW: Final = 1000  # images that the students see, the first ones of the teachers' 20,000
ATTACK: Final = "--attack pgd --norm linf --eps 8/255 --step-size 2/255 --steps 20"


@dataclass(frozen=True, kw_only=True)
class Arm:
    """A recipe, its changed fields, the arm that teaches it, the images that PGD attacks."""

    name: str
    recipe: str
    words: tuple[str, ...] = ()
    teacher: str | None = None
    is_student: bool = False
    num_attacked: int = 1000

    def changes(self, shards: Path, output: Path) -> list[str]:
        """Every word behind the recipe."""
        train = shards / ("few" if self.is_student else "") / "train"
        words = [f"data.train={train}", f"data.val={shards / 'val'}", f"data.suites={shards}"]
        words += ["data.num_workers=0", "run.tensorboard=false", "evals=[]", *self.words]
        words += ["run.precision=bf16"] if has_bf16() else []
        if self.teacher:
            soft = f"{{teacher: {output / self.teacher}, kind: soft, alpha: 0.9, temperature: 2.0}}"
            words.append(f"objective.distill={soft}")
        return words


def student(name: str, *, teacher: str | None = None) -> Arm:
    """Half as wide as its teachers, and two thirds of their updates on a twentieth of their images."""
    words = ("run.epochs=40", "optim.warmup_epochs=4", "run.checkpoint_every=300", "model.args={width: 12}")
    return Arm(name=name, recipe="cnn_clean", words=words, teacher=teacher, is_student=True, num_attacked=200)


ARMS: Final = (
    Arm(name="cnn_clean", recipe="cnn_clean"),
    Arm(name="cnn_adv_warm", recipe="cnn_adv"),
    Arm(name="cnn_adv_cold", recipe="cnn_adv", words=("objective.warmup=null",)),
    student("student_alone"),
    student("student_taught", teacher="cnn_clean"),
    student("student_of_robust", teacher="cnn_adv_warm"),
    Arm(name="vit_clean", recipe="vit_clean"),
)
PAIRS: Final = (
    ("cnn_adv_warm", "cnn_clean"),
    ("cnn_adv_warm", "cnn_adv_cold"),
    ("student_taught", "student_alone"),
    ("student_of_robust", "student_alone"),
    ("vit_clean", "cnn_clean"),
)
TEACHERS: Final = ("cnn_clean", "cnn_adv_warm")


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


def make_shards(shards: Path) -> None:
    """cue64 as it is, and a small training set of the same pictures for the students."""
    if not (shards / "train" / "index.json").exists():
        launch("shards", "make", "cue64", shards)
    if not (shards / "few" / "train" / "index.json").exists():
        launch("shards", "make", "cue64", shards / "few", "--num-train", NUM_FEW, "--num-val", 10)


def run_arm(arm: Arm, shards: Path, output: Path) -> None:
    """Trains and judges what is not yet done; costs.json in its run folder keeps what each verb cost."""
    run = output / arm.name
    file = run / "costs.json"
    costs: dict[str, dict[str, float]] = json.loads(file.read_text()) if file.exists() else {}
    suites = ",".join(["clean", *(f"cue64-{name}" for name in SHIFTED)])
    recipe = f"recipes/cue64/{arm.recipe}.yaml"
    attack = [*ATTACK.split(), "--num-images", arm.num_attacked]
    commands: dict[str, list[object]] = {
        "train": [recipe, *arm.changes(shards, output), "--output", run],
        "eval": [run, "--suite", suites, "--data", shards, "--quiet"],
        "attack": [run, *attack, "--data", shards / "val", "--quiet"],
    }
    for verb, words in commands.items():
        if verb not in costs:
            began = time.monotonic()
            cpu_s = launch(verb, *words)
            costs[verb] = {"cpu_s": round(cpu_s, 1), "wall_s": round(time.monotonic() - began, 1)}
            file.write_text(json.dumps(costs))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--shards", type=Path, default=Path("runs/cue64/shards"))
    parser.add_argument("--output", type=Path, default=Path("runs/robust_learning"))
    names = ",".join(arm.name for arm in ARMS)
    parser.add_argument("--arms", default=names, help="default: %(default)s; a teacher before its students")
    parser.add_argument("--no-report", action="store_true", help="train and judge; write no result")
    arguments = parser.parse_args()
    shards, output = arguments.shards.absolute(), arguments.output.absolute()
    chosen = [arm for arm in ARMS if arm.name in arguments.arms.split(",")]
    make_shards(shards)
    for arm in chosen:
        run_arm(arm, shards, output)
    if arguments.no_report:
        return
    found = {arm.name: read_run(output / arm.name, words=arm.words) for arm in chosen}
    pairs = [pair for pair in PAIRS if found.keys() >= set(pair)]
    gaps = [compare(found, pair, what) for pair in pairs for what in ("clean", "cue64-conflict", PGD)]
    taught = [(arm.name, name) for arm in chosen if arm.is_student for name in TEACHERS if name in found]
    same = [agreement(found, student=student, teacher=teacher) for student, teacher in taught]
    missing = [arm.name for arm in ARMS if arm.name not in found]
    text = report(found, gaps, same, missing=missing)
    data = {
        "arms": {name: run.summary() for name, run in found.items()},
        "comparisons": [gap.summary() for gap in gaps],
        "agreement": [one.summary() for one in same],
        "not_run": missing,
    }
    title = "Robust learning on cue64"
    print(write_result("robust-learning", title=title, text=text, data=data).read_text())


if __name__ == "__main__":
    try:
        main()
    except subprocess.CalledProcessError as error:
        sys.exit(f"{' '.join(error.cmd[1:4])} ended with code {error.returncode}")

"""kill -9 twenty times while AutoAttack runs: the ledger must be that of a run that nothing interrupted.

    OMP_NUM_THREADS=1 python benchmarks/attack_kills.py [--kills 20] [--num-images 200] [--words "--norm l2"]

Trains the quickstart's robust CNN for two epochs, attacks it by the command line once in peace, then once more with
SIGKILL at random moments, the same command each time. Rows are compared one by one, and so are the results.
"""

import argparse
import json
import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.record import markdown_table, write_result
from data.digits import write_digits
from data.shards import make
from engine.ledger import Verdict, read_ledger

RECIPE: Final = "recipes/quickstart/cnn_adv.yaml"
LOOK_EVERY_S: Final = 0.02
START_LIMIT_S: Final = 300.0
SPREAD: Final = 0.7  # of the run in peace: the kills are to come before its end
RESULT_FIELDS: Final = ("top1", "top5", "num_images", "num_correct", "components", "clean", "version")


def command(*words: object) -> list[str]:
    return [sys.executable, str(ROOT / "launch_gpu.py"), "--cpu", *map(str, words)]


def launch(*words: object) -> "subprocess.Popen[bytes]":
    """In a process group of its own, so that workers die with it."""
    log = subprocess.DEVNULL
    environment = {"OMP_NUM_THREADS": "1"} | os.environ
    return subprocess.Popen(command(*words), cwd=ROOT, env=environment, stdout=log, start_new_session=True)


def prepare(folder: Path) -> Path:
    """Shards of digits, and a run; both are kept for the next time."""
    shards, run = folder / "shards", folder / "run"
    if not (shards / "val" / "index.json").exists():
        shutil.rmtree(folder, ignore_errors=True)
        write_digits(folder / "images", size=32)
        for split in ("train", "val"):
            make(folder / "images" / split, shards / split, split=split, samples_per_shard=500)
    if not (run / "checkpoints").exists():
        words = [f"data.train={shards / 'train'}", f"data.val={shards / 'val'}", "evals=[]"]
        words += ["run.epochs=2", "optim.warmup_epochs=0", "objective.warmup=null", "run.tensorboard=false"]
        subprocess.run(command("train", RECIPE, *words, "--output", run), cwd=ROOT, check=True)
    return run


def written_at(output: Path) -> int:
    """When anything in the ledger's folder was last written, in ns; 0 before there is anything."""
    times = [0]
    for path in output.glob("ledger/*"):
        with suppress(OSError):  # it has just been replaced
            times.append(path.stat().st_mtime_ns)
    return max(times)


def until_it_writes(process: "subprocess.Popen[bytes]", output: Path) -> bool:
    """Whether the run wrote into its ledger before it ended; waits for that."""
    before, began = written_at(output), time.monotonic()
    while process.poll() is None:
        if written_at(output) > before:
            return True
        if time.monotonic() - began > START_LIMIT_S:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            raise RuntimeError(f"nothing was written in {START_LIMIT_S:.0f} s; is --num-images too large?")
        time.sleep(LOOK_EVERY_S)
    return False


def finish(process: "subprocess.Popen[bytes]") -> None:
    if code := process.wait():
        raise RuntimeError(f"the attack ended with code {code}; run it by hand to see why")


def in_peace(words: list[object], output: Path) -> float:
    """Seconds from the first write to the end."""
    process = launch(*words, "--output", output)
    until_it_writes(process, output)
    began = time.monotonic()
    finish(process)
    return time.monotonic() - began


def with_kills(words: list[object], output: Path, *, num_kills: int, seconds: float) -> list[int]:
    """Rows in the ledger at each kill. Kills come anywhere in a chunk, a verdict or a write, spread over most of the
    `seconds` that the run took in peace."""
    rng, kills = random.Random(0), list[int]()
    while len(kills) < num_kills:
        process = launch(*words, "--output", output)
        until_it_writes(process, output)
        time.sleep(rng.uniform(0.0, 2.0 * SPREAD * seconds / num_kills))
        if process.poll() is not None:
            finish(process)
            return kills  # over before the last kills
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        kills.append(len(rows(output)))
        print(f"killed {len(kills)} times, {kills[-1]} rows", flush=True)
    finish(launch(*words, "--output", output))
    return kills


def rows(output: Path) -> dict[tuple[str, str, str], Verdict]:
    """Every verdict by evaluation, image and component."""
    ledger = read_ledger(output / "ledger")
    found = {}
    for evaluation in ledger.evaluations():
        for row in ledger.rows(evaluation):
            found[(evaluation, row.key, row.component)] = row
    return found


def results(output: Path) -> dict[str, Any]:
    """What results/*.json say, without times and places."""
    found = {path.name: json.loads(path.read_text()) for path in sorted((output / "results").glob("*.json"))}
    return {
        name: {key: value for key, value in result.items() if key in RESULT_FIELDS}
        for name, result in found.items()
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs/attack_kills"))
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--num-images", type=int, default=200)
    parser.add_argument("--eps", default="8/255")
    parser.add_argument("--words", default="", help="more words of the attack, quoted as in a shell")
    arguments = parser.parse_args()
    folder = arguments.folder.absolute()
    run = prepare(folder)
    words: list[object] = ["attack", run, "--attack", "autoattack", "--eps", arguments.eps, "--quiet"]
    words += ["--num-images", arguments.num_images, *shlex.split(arguments.words)]
    peace, killed = folder / "peace", folder / "killed"
    for output in (peace, killed):
        shutil.rmtree(output, ignore_errors=True)
    seconds = in_peace(words, peace)
    wanted = rows(peace)
    kills = with_kills(words, killed, num_kills=arguments.kills, seconds=seconds)
    found = rows(killed)
    differing = [key for key in wanted.keys() | found.keys() if wanted.get(key) != found.get(key)]
    same_results = results(peace) == results(killed) and bool(results(peace))
    is_same = not differing and same_results and bool(wanted)
    cells = [
        ["kills", f"{len(kills)} of {arguments.kills}"],
        ["rows of the run in peace", len(wanted)],
        ["rows of the killed run", len(found)],
        ["rows that differ or are missing", len(differing)],
        ["results equal", "yes" if same_results else "NO"],
    ]
    text = [
        f"{arguments.num_images} digits, eps {arguments.eps}, {seconds:.0f} s in peace from first write to end.",
        "Rows in the ledger at each kill: " + ", ".join(map(str, kills)) + ".",
        "",
        *markdown_table(["", ""], cells),
        "",
        "The same." if is_same else f"NOT THE SAME: {differing[:3]}",
    ]
    data = {
        "kills": kills,
        "num_rows": len(wanted),
        "differing": len(differing),
        "same_results": same_results,
    }
    print(write_result("attack-kills", title="kill -9 during AutoAttack", text=text, data=data).read_text())
    return 0 if is_same and len(kills) == arguments.kills else 1


if __name__ == "__main__":
    sys.exit(main())

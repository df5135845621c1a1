"""The doctor's self-test: the real pieces of a run on generated digits, on the backend a run would use.

Small on purpose: 8 images a device, 16 pixels, a narrow small_cnn. It stops when its time is over; whatever it
writes lies in a folder that is removed.
"""

import math
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw

from bits.checkpoint import load_checkpoint, save_checkpoint
from bits.environment import Environment, Precision, open_environment
from bits.meters import Meters
from bits.state import TrainState, to_cpu
from data.batch import Batch
from data.index import DatasetIndex
from data.order import Cursor
from data.shards import make
from engine.build import Layout, batch_layout, build_state
from engine.cli import Launch
from engine.finding import Finding, failed
from engine.knobs import Knobs, feed_knobs, pack_knobs
from engine.ledger import read_ledger
from engine.loading import build_train_loader
from engine.measure import evaluators, judged
from engine.recipe import Recipe, parse_recipe
from engine.sources import Access
from engine.step import TrainStep, meter_names, step_settings
from engine.verdict import weights_hash
from robust.noise import noise

SECTION = "self-test"
LIMIT_S = 10.0
STEPS, PER_DEVICE, SIZE = 3, 8, 16
GOLDEN = {0: [9308334, 10115480, 11099584], 2**62 - 1: [1235391, 9990031, 3792771]}  # of noise, in 2**-24


def self_test(launch: Launch, *, precision: Precision = "float32", limit_s: float) -> Iterator[Finding]:
    """One finding per check, as they are made; after a failure, or past the limit, the rest is not tried."""
    deadline = time.perf_counter() + limit_s
    with tempfile.TemporaryDirectory(prefix="robust-bits-doctor-") as folder:
        try:
            env = open_environment(
                launch.backend,
                precision=precision,
                world_size=launch.world_size,
                num_devices=launch.num_devices,
            )
        except Exception as error:  # whatever stops a run here is what the doctor is asked for
            yield failed(SECTION, "device", error)
            return
        yield Finding(SECTION, "device", f"{env.backend}, {env.device}, {precision}", "ok")
        try:
            for name, check in Patient(env, Path(folder), precision, deadline).checks():
                if time.perf_counter() > deadline:
                    yield Finding(SECTION, name, f"not tried: {limit_s:g} s were over", "advice")
                    continue
                finding = _try(name, check)
                yield finding
                if finding.state == "failed":
                    return
        finally:
            env.close()


def _try(name: str, check: Callable[[], str]) -> Finding:
    start = time.perf_counter()
    try:
        text = check()
    except Exception as error:  # as above
        return failed(SECTION, name, error)
    return Finding(SECTION, name, f"{text} ({time.perf_counter() - start:.1f} s)", "ok")


class Patient:
    """What the checks hand on: shards, then a trained state."""

    def __init__(self, env: Environment, folder: Path, precision: Precision, deadline: float) -> None:
        self.env = env
        self.folder = folder
        self.deadline = deadline  # a compilation cannot be interrupted, but steps can end early
        self.batch = PER_DEVICE * env.num_devices
        self.recipe = _recipe(folder, self.batch, precision)
        self.index: DatasetIndex
        self.layout: Layout
        self.state: TrainState

    def checks(self) -> list[tuple[str, Callable[[], str]]]:
        return [
            ("noise", self.noise),
            ("data", self.data),
            ("training", self.training),
            ("checkpoint", self.checkpoint),
            ("evaluation", self.evaluation),
        ]

    def noise(self) -> str:
        """The counter hash must give the same numbers everywhere, or attacks differ by backend."""
        seed = self.env.feed({"seed": torch.tensor(list(GOLDEN))}, split=False)["seed"]
        found = (noise(seed, (3,)).cpu() * 2**24).long().tolist()
        if found != list(GOLDEN.values()):
            raise ValueError(f"noise gave {found}, not {list(GOLDEN.values())}: attacks here would differ")
        return "the same numbers as everywhere"

    def data(self) -> str:
        num_images = _write_digits(self.folder / "images", at_least=(STEPS + 1) * self.batch)
        self.index = make(self.folder / "images", self.folder / "shards", split="train")
        return f"{num_images} generated digits to shards and back"

    def training(self) -> str:
        self.layout = batch_layout(self.batch, self.env)
        self.state = self._fresh_state()
        before = self._trained()
        settings = step_settings(self.recipe, len(self.index.classes))
        meters = Meters(meter_names(settings), self.env.device)
        step = TrainStep(
            env=self.env,
            state=self.state,
            forward=self.env.wrap(self.state.model),
            settings=settings,
            meters=meters,
        )
        self.state.model.train()
        loader = build_train_loader(self.recipe, self.env, self.index, layout=self.layout, start=Cursor(0, 0))
        for (_, batch), number in zip(loader, range(STEPS), strict=False):
            self.env.seed(number)
            step(Batch(**self.env.feed(batch._asdict())), self._knobs(number))
            self.state.step += 1
            if time.perf_counter() > self.deadline:
                break
        loss = meters.means(meters.snapshot().cpu())["loss"]
        if not math.isfinite(loss):
            raise ValueError(f"the loss after {self.state.step} steps is {loss}")
        if self._trained() == before:
            raise ValueError(f"{self.state.step} updates changed no weight")
        return f"{self.state.step} of {STEPS} adversarial steps (PGD-1) of small_cnn, loss {loss:.2f}"

    def evaluation(self) -> str:
        found = evaluators(
            self.env,
            self.recipe,
            self.folder / "ledger",
            {"raw": self.state.model},
            self.recipe.evals,
            Access(),
            recipe_hash=self.recipe.hash,
        )
        ((evaluator, entry),) = found
        result = judged(evaluator, entry)
        rows = list(read_ledger(self.folder / "ledger").rows(result["evaluation"]))
        correct = {name: sum(r.correct for r in rows if r.component == name) for name in result["components"]}
        counted = {name: part["num_correct"] for name, part in result["components"].items()}
        if len(rows) != 2 * self.batch or correct != counted:
            raise ValueError(f"{len(rows)} rows of {2 * self.batch}, sums {correct} against {counted}")
        return f"{self.batch} images clean and attacked, {len(rows)} ledger rows, sums agree"

    def checkpoint(self) -> str:
        state = {**self.state.state_dict(), "environment": to_cpu(self.env.state_dict())}
        saved = save_checkpoint(self.folder / "checkpoints", self.state.step, state, facts={})
        fresh = self._fresh_state()
        fresh.load_state_dict(load_checkpoint(saved.path))
        if weights_hash(fresh.model.state_dict()) != weights_hash(self.state.model.state_dict()):
            raise ValueError("the weights that came back from a checkpoint are other ones")
        return f"{saved.size / 1e6:.1f} MB written, read back, equal"

    def _trained(self) -> str:
        """Hash of the parameters alone: BatchNorm's statistics change without an update."""
        return weights_hash(dict(self.state.model.named_parameters()))

    def _fresh_state(self) -> TrainState:
        return build_state(self.recipe, self.env, num_classes=len(self.index.classes), layout=self.layout)

    def _knobs(self, step: int) -> Knobs:
        knobs = pack_knobs(lr=1e-3, eps=8 / 255, step_size=8 / 255, step=step)
        return feed_knobs(self.env, knobs)


def _recipe(folder: Path, batch_size: int, precision: Precision) -> Recipe:
    attack = {"norm": "linf", "eps": "8/255", "step_size": "8/255", "steps": 1}
    shards = str(folder / "shards")
    tree = {
        "data": {"train": shards, "val": shards, "image_size": SIZE, "num_workers": 0, "eval_resize": "none"},
        "model": {"name": "small_cnn", "args": {"width": 8}},
        "optim": {"lr": 1e-3},
        "objective": {"kind": "adversarial", "attack": attack},
        "evals": [{"attack": "pgd", **attack, "num_images": batch_size}],
        "run": {"epochs": 1, "batch_size": batch_size, "precision": precision, "preview_images": 0},
    }
    return parse_recipe(tree, "self-test")


def _write_digits(folder: Path, *, at_least: int) -> int:
    """White figures 0 to 9 on dark noise, a PNG each, in class folders; the number written."""
    each = -(-at_least // 10)
    random = np.random.default_rng(0)
    for label in range(10):
        (folder / str(label)).mkdir(parents=True)
        for number in range(each):
            image = Image.fromarray(random.integers(0, 60, (SIZE, SIZE, 3), dtype=np.uint8))
            place = (int(random.integers(2, 8)), int(random.integers(0, 4)))
            ImageDraw.Draw(image).text(place, str(label), fill=(255, 255, 255))
            image.save(folder / str(label) / f"{number}.png")
    return 10 * each

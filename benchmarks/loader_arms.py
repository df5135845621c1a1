"""One arm of benchmarks/loader.py: a process that reads JPEGs to uint8 batches whenever it is told to.

    python benchmarks/loader_arms.py timm|ours ARM FOLDER

Reads lines "WORKERS EPOCHS [BATCHES]", makes so many epochs (or the first batches of them), and answers each line with
one of JSON: images, and wall and CPU seconds (user and system) of this process and all that it starts.
"""

import json
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Final

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from data.bad import BadSample
from data.batch import NUM_DRAWS
from data.draws import MixSettings
from data.erase import Erase
from data.index import DatasetIndex, load_index
from data.loader import eval_loader, train_loader
from data.order import Cursor
from data.pool import Pool
from data.slots import Arrays, BatchShape
from data.transform import AugmentSettings, EvalTransform

BATCH: Final = 128
SIZE: Final = 224
DEIT: Final = "rand-m9-mstd0.5-inc1"
COPIES: Final = 200  # batches of an epoch of the arm "transfer"
WARM_UP: Final = 20  # of them are not counted
Epochs = Callable[[int, int], Iterator[int]]  # (workers, epochs) -> images of each batch
_ERASE: Final = Erase(prob=0.25, mode="pixel")
ON_DEVICE: Final = AugmentSettings(randaug=DEIT, randaug_on="device", erase=_ERASE)
_MIX: Final = MixSettings(mixup_alpha=0.8, cutmix_alpha=1.0)


@dataclass(frozen=True, slots=True)
class Training:
    """How we make an arm's batches."""

    augment: AugmentSettings
    mix: MixSettings
    repeats: int = 1


TRAININGS: Final = {
    "plain": Training(AugmentSettings(), MixSettings()),
    "plain scaled": Training(AugmentSettings(decode="scaled"), MixSettings()),
    "deit host": Training(AugmentSettings(randaug=DEIT, erase=_ERASE), _MIX),
    "deit device": Training(ON_DEVICE, _MIX),
    "deit 3 repeats": Training(ON_DEVICE, _MIX, repeats=3),
}
EVALUATIONS: Final = {
    "eval bicubic": EvalTransform(interpolation="bicubic"),
    "eval bilinear": EvalTransform(interpolation="bilinear"),
}


def main() -> None:
    side, arm, folder = sys.argv[1], sys.argv[2], Path(sys.argv[3])
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # gloo greets on stdout
    epochs = {"timm": timm_epochs, "ours": our_epochs}[side](arm, folder)
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        num_workers, num_epochs, *limit = map(int, line.split())
        skip = WARM_UP if arm == "transfer" and not limit else 0
        print(json.dumps(measure(epochs, num_workers, num_epochs, skip, *limit)), file=answers, flush=True)


def measure(
    epochs: Epochs, num_workers: int, num_epochs: int, skip: int, limit: int | None = None
) -> dict[str, float]:
    """Without a limit all epochs are read to their end: no worker is stopped in work that is not counted.

    The first `skip` batches are not counted: a worker's imports would be half the cost of copies.
    """
    batches = epochs(num_workers, num_epochs) if skip == 0 else skipped(epochs(num_workers, num_epochs), skip)
    cpu, begin = tree_cpu_s(os.getpid()), time.perf_counter()
    num_images = sum(islice(batches, limit))
    wall = time.perf_counter() - begin
    time.sleep(0.1)  # until ended workers are reaped, and so counted with their parent
    return {"images": num_images, "wall_s": wall, "cpu_s": tree_cpu_s(os.getpid()) - cpu}


def skipped(batches: Iterator[int], number: int) -> Iterator[int]:
    for _ in range(number):
        next(batches)
    return batches


def tree_cpu_s(root: int) -> float:
    """User and system seconds of a process, its living descendants and those that have ended, by /proc."""
    children: dict[int, list[int]] = {}
    ticks: dict[int, int] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:  # it has just ended
            continue
        process = int(path.parent.name)
        children.setdefault(int(fields[1]), []).append(process)
        ticks[process] = sum(map(int, fields[11:15]))
    total, left = 0, [root]
    while left:
        process = left.pop()
        total += ticks.get(process, 0)
        left += children.get(process, [])
    return total / os.sysconf("SC_CLK_TCK")


# ---- ours


def our_epochs(arm: str, folder: Path) -> Epochs:
    index = load_index(folder / "shards")
    if arm in TRAININGS:
        return partial(_train, index, TRAININGS[arm])
    if arm in EVALUATIONS:
        return partial(_evaluate, index, EVALUATIONS[arm])
    return _copies


def _train(index: DatasetIndex, training: Training, num_workers: int, num_epochs: int) -> Iterator[int]:
    batches = train_loader(
        index,
        seed=0,
        global_batch=BATCH,
        rank=0,
        world_size=1,
        start=Cursor(0, 0),
        num_epochs=num_epochs,
        image_size=SIZE,
        transform_of_epoch=[training.augment] * num_epochs,
        mix_of_epoch=[training.mix] * num_epochs,
        num_workers=num_workers,
        repeats=training.repeats,
    )
    for _, batch in batches:
        yield len(batch.image)


def _evaluate(index: DatasetIndex, resize: EvalTransform, num_workers: int, num_epochs: int) -> Iterator[int]:
    for _ in range(num_epochs):
        batches = eval_loader(
            index,
            keys=None,
            global_batch=BATCH,
            rank=0,
            world_size=1,
            image_size=SIZE,
            resize=resize,
            num_workers=num_workers,
            seed=0,
        )
        for batch in batches:
            yield int(batch.mask.sum())


class Copies:
    """A job whose images are there already: what is left is collation and transfer."""

    def __init__(self) -> None:
        self.shape = BatchShape(BATCH, SIZE, NUM_DRAWS)
        self._images = _prepared()

    def fill(self, task: int, into: Arrays, at: Callable[[int], None]) -> list[BadSample]:
        for slot in range(BATCH):
            at(slot)
            into.image[slot] = self._images[slot % len(self._images)]
        into.label[:] = task
        return []


def _copies(num_workers: int, num_epochs: int) -> Iterator[int]:
    pool = Pool(Copies(), num_workers=num_workers, name_of=str)
    for batch, _ in pool.run(iter(range(num_epochs * COPIES))):
        yield len(batch.image)


def _prepared() -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (64, 3, SIZE, SIZE), dtype=np.uint8)


# ---- timm


class _PreparedData(Dataset[tuple[Any, int]]):
    def __init__(self) -> None:
        self.images = _prepared()

    def __len__(self) -> int:
        return BATCH * COPIES

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self.images[index % len(self.images)], 0


def timm_epochs(arm: str, folder: Path) -> Epochs:
    """timm's own loader up to its uint8 batches: what its prefetcher does on the device is left out, here as there."""
    from timm.data import create_dataset, create_loader
    from timm.data.loader import fast_collate

    def copies(num_workers: int, num_epochs: int) -> Iterator[int]:
        data = _PreparedData()
        return _read(DataLoader(data, BATCH, num_workers=num_workers, collate_fn=fast_collate), num_epochs)

    def images(num_workers: int, num_epochs: int) -> Iterator[int]:
        loader = create_loader(
            create_dataset("", root=str(folder / "tree" / "train")),
            input_size=(3, SIZE, SIZE),
            batch_size=BATCH,
            num_workers=num_workers,
            device=torch.device("cpu"),
            **options,
        )
        return _read(loader.loader, num_epochs)  # the DataLoader inside the prefetcher

    if arm == "transfer":
        return copies
    mend_posterize()
    options = timm_options(arm)
    if options.get("distributed"):  # its sampler of repeats asks for it
        place = f"file://{folder}/group-{os.getpid()}"
        torch.distributed.init_process_group("gloo", init_method=place, rank=0, world_size=1)
    return images


def timm_options(arm: str) -> dict[str, Any]:
    """create_loader's arguments."""
    if arm in EVALUATIONS:
        return {"is_training": False, "interpolation": EVALUATIONS[arm].interpolation, "crop_pct": 0.875}
    options: dict[str, Any] = {"is_training": True, "interpolation": "bicubic", "color_jitter": None}
    if arm.startswith("deit"):
        options |= {"auto_augment": DEIT, "re_prob": 0.25, "re_mode": "pixel"}
    if "repeats" in arm:
        options |= {"num_aug_repeats": 3, "distributed": True}
    return options


def _read(loader: Iterable[tuple[Tensor, Tensor]], num_epochs: int) -> Iterator[int]:
    for _ in range(num_epochs):
        for image, _target in loader:
            assert image.dtype == torch.uint8, "compared up to uint8 batches"
            yield len(image)


def mend_posterize() -> bool:
    """Pillow 13 refuses the zero bits that timm's RandAugment asks for; without this its arm would crash."""
    from PIL import Image, ImageOps

    try:
        ImageOps.posterize(Image.new("RGB", (1, 1)), 0)
    except ValueError:
        posterize = ImageOps.posterize
        ImageOps.posterize = lambda image, bits: posterize(image, max(1, bits))
        return True
    return False


if __name__ == "__main__":
    main()

"""AutoAttack against the truth, on models whose robust images are known exactly.

    OMP_NUM_THREADS=1 python benchmarks/attack_truth.py [--num-images 300] [--seeds 2]

Linear models by closed form (linf and l2, with the box), networks of one hidden layer by mixed-integer programming,
a 1-Lipschitz network by its certificate. No attack may break a robust image; all of them together are to leave at most
0.5 points more than the truth. Each component also runs alone, on all images.
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

from benchmarks.attack_arm import ours
from benchmarks.attack_exact import SURE, LipschitzNet, ReluNet, Worst, fit, linear_worst, relu_worst
from benchmarks.record import markdown_table, write_result
from robust.versions import Part, version_of

SIDE = 4
NUM_INPUTS = 3 * SIDE * SIDE
NUM_TRAIN = 1000
WITHIN = 0.005  # of the truth
LANES = 128  # a tiny model is quicker with many


@dataclass(frozen=True, kw_only=True)
class Case:
    """A trained model and what is known of it: `is_robust` bool [N], and `is_sure`, where rounding decides nothing."""

    name: str
    model: nn.Module
    norm: str
    eps: float
    is_robust: Tensor
    is_sure: Tensor
    is_exact: bool = True  # else robust images may be more than those


def small_digits() -> tuple[Tensor, Tensor]:
    """Scans of 4x4 pixels, grey in three channels: (1797,3,4,4) and int64 [1797]."""
    data = load_digits()
    image = F.avg_pool2d(torch.tensor(data.images, dtype=torch.float32)[:, None] / 16.0, 2)
    return image.expand(-1, 3, -1, -1).contiguous(), torch.tensor(data.target, dtype=torch.int64)


class Linear(nn.Module):
    """Logits W x + b of images."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(NUM_INPUTS, 10)

    def forward(self, image: Tensor) -> Tensor:
        logits: Tensor = self.layer(image.flatten(1))
        return logits


def cases(image: Tensor, label: Tensor, *, seed: int, num_images: int) -> Iterator[Case]:
    """`num_images` held-out scans under every model of that seed."""
    train = image[:NUM_TRAIN], label[:NUM_TRAIN]
    rows = slice(NUM_TRAIN, NUM_TRAIN + num_images)
    held, answer = image[rows], label[rows]
    torch.manual_seed(seed)
    linear = Linear()
    fit(linear, *train, epochs=100)
    for norm, eps in (("linf", 0.03), ("l2", 0.3)):
        yield _case("linear", linear, norm, eps, linear_worst(linear.layer, held, answer, eps=eps, norm=norm))
    for units in (8, 16):
        net = ReluNet(num_inputs=NUM_INPUTS, num_hidden=units)
        fit(net, *train, epochs=200)
        yield _case(f"relu {units}", net, "linf", 0.03, relu_worst(net, held, answer, eps=0.03))
    tight = LipschitzNet(num_inputs=NUM_INPUTS)
    fit(tight, *train, epochs=100, scale=10.0)
    certified = tight.frozen().radius(held, answer) > 0.2
    sure = torch.ones_like(certified)
    yield Case(
        name="1-Lipschitz",
        model=tight,
        norm="l2",
        eps=0.2,
        is_robust=certified,
        is_sure=sure,
        is_exact=False,
    )


def _case(name: str, model: nn.Module, norm: str, eps: float, worst: Worst) -> Case:
    sure = worst.margin.abs() > SURE
    return Case(name=name, model=model, norm=norm, eps=eps, is_robust=worst.is_robust, is_sure=sure)


def measure(
    case: Case,
    image: Tensor,
    label: Tensor,
    *,
    seed: int,
    shortened: Callable[[Part], Part] = lambda part: part,
) -> dict[str, Any]:
    """Shares of the images that are left, and how many robust ones anything broke."""
    parts = [shortened(p) for p in version_of("standard", norm=case.norm, num_classes=10).parts]  # type: ignore[arg-type]
    settings: dict[str, Any] = {"eps": case.eps, "norm": case.norm, "seed": seed, "lanes": LANES}
    began = time.process_time()
    whole = ours(case.model, image, label, parts=parts, **settings)
    alone = {part.name: ours(case.model, image, label, parts=[part], **settings).robust for part in parts}
    must_stay = case.is_robust & case.is_sure
    missed = whole.robust & ~case.is_robust & case.is_sure
    return {
        "model": case.name,
        "seed": seed,
        "norm": case.norm,
        "eps": case.eps,
        "num_images": len(image),
        "unsure": int((~case.is_sure).sum()),
        "truth": _share(case.is_robust),
        "is_exact": case.is_exact,
        "left": {name: _share(robust) for name, robust in whole.left.items()},
        "alone": {name: _share(robust) for name, robust in alone.items()},
        "standard": _share(whole.robust),
        "missed": int(missed.sum()),
        "wrongly_broken": sum(int((must_stay & ~robust).sum()) for robust in (whole.robust, *alone.values())),
        "cpu_s": round(time.process_time() - began, 1),
    }


def _share(robust: Tensor) -> float:
    return float(robust.double().mean())


def is_good(row: dict[str, Any]) -> bool:
    """Nothing robust was broken, and where the truth is known, almost all that can be broken was."""
    return row["wrongly_broken"] == 0 and (not row["is_exact"] or row["missed"] <= WITHIN * row["num_images"])


def report(rows: list[dict[str, Any]]) -> list[str]:
    """Lines of the Markdown result."""
    components = list(rows[0]["alone"])
    header = ["model", "seed", "norm", "eps", "truth", "clean", *components, "missed", "wrongly broken", ""]
    cells = [
        [
            row["model"],
            row["seed"],
            row["norm"],
            f"{row['eps']:g}",
            ("" if row["is_exact"] else ">= ") + _percent(row["truth"]),
            _percent(row["left"]["clean"]),
            *(f"{_percent(row['left'][name])} ({_percent(row['alone'][name])})" for name in components),
            row["missed"] if row["is_exact"] else "",
            row["wrongly_broken"],
            "ok" if is_good(row) else "MISSED",
        ]
        for row in rows
    ]
    return [
        f"Robust accuracy in percent on {rows[0]['num_images']} held-out digits of {SIDE} px: the truth, and what is "
        "left after each component of `standard`",
        "(in brackets: by that component alone). `missed` images could be broken and were not; goal: at most "
        f"{100 * WITHIN:g} % of the images. `wrongly broken` must be 0.",
        "",
        *markdown_table(header, cells),
        "",
        f"{sum(row['unsure'] for row in rows)} images have a least margin below {SURE:g} and count in neither column.",
    ]


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--num-images", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=2)
    arguments = parser.parse_args()
    image, label = small_digits()
    num = min(arguments.num_images, len(image) - NUM_TRAIN)
    held = image[NUM_TRAIN : NUM_TRAIN + num], label[NUM_TRAIN : NUM_TRAIN + num]
    rows = []
    for seed in range(arguments.seeds):
        for case in cases(image, label, seed=seed, num_images=num):
            rows.append(measure(case, *held, seed=seed))
            print(rows[-1], flush=True)
    title = "AutoAttack against the truth"
    print(write_result("attack-truth", title=title, text=report(rows), data={"rows": rows}).read_text())
    return 0 if all(map(is_good, rows)) else 1


if __name__ == "__main__":
    sys.exit(main())

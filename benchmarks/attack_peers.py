"""AutoAttack beside torchattacks' components, and PGD beside foolbox's, on the same models and images.

    OMP_NUM_THREADS=1 python benchmarks/attack_peers.py [--num-images 1000] [--seeds 3] [--models NAME,...]

Both run the published budgets, model by model and seed by seed in turn (A B, then B A, ...), so that they see the same
machine. Whatever is done today is kept: the same command goes on. torchattacks is not installed with the toolkit.
"""

import argparse
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, cast

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from torch import Tensor, nn

from benchmarks.attack_arm import MISSING, Arm, analytic, has_torchattacks, ours, theirs, useful
from benchmarks.attack_models import MODELS, RADII, Entry, held_out, model_of
from benchmarks.attack_peers_report import Row, report
from benchmarks.record import rows_of_today, write_result
from robust.lanes import Norm
from robust.noise import noise
from robust.pgd import PGD
from robust.threat import THREATS
from robust.versions import version_of

STEPS: Final = 20  # of PGD
NAME: Final = "attack-peers"


def compare(
    entry: Entry, model: nn.Module, image: Tensor, label: Tensor, *, seed: int, norm: str, lanes: int
) -> dict[str, Any]:
    """Both arms, who is first alternates; a row with every image's verdict, so that rows can be pooled."""
    eps = entry.eps if norm == "linf" else 16.0 * entry.eps
    parts = version_of("standard", norm=cast(Norm, norm), num_classes=10).parts
    arms: dict[str, Arm] = {}
    for name in ("ours", "theirs") if (seed + entry.seed) % 2 == 0 else ("theirs", "ours"):
        shared: dict[str, Any] = {"eps": eps, "norm": norm, "seed": seed}
        if name == "ours":
            arms[name] = ours(model, image, label, parts=parts, lanes=lanes, **shared)
        else:
            arms[name] = theirs(model, image, label, batch=lanes, **shared)
    spent, survivors = useful(arms["ours"].outcomes, parts)
    broken = spent.keys() - survivors
    return {
        "model": entry.name,
        "seed": seed,
        "norm": norm,
        "size": image.shape[-1],
        "eps": eps,
        "num_images": len(image),
        "lanes": lanes,
        **{name: summary(arm) for name, arm in arms.items()},
        "survivors": len(survivors),
        "broken": len(broken),
        "units_per_survivor": _mean([spent[row].units for row in survivors]),
        "units_per_broken": _mean([spent[row].units for row in broken]),
        "analytic_units": analytic(parts).units,
        "useful_units": sum(passes.units for passes in spent.values()),
    }


def summary(arm: Arm) -> dict[str, Any]:
    """What is kept of an arm."""
    return {
        "robust": "".join("1" if is_robust else "0" for is_robust in arm.robust.tolist()),
        "left": {name: float(left.double().mean()) for name, left in arm.left.items()},
        "cpu_s": round(arm.cpu_s, 2),
        "forward": arm.passes.forward,
        "backward": arm.passes.backward,
        "units": arm.passes.units,
    }


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def compare_pgd(entry: Entry, model: nn.Module, image: Tensor, label: Tensor) -> dict[str, Any]:
    """Images on which PGD's verdict is not the peers', from the clean image and from the same random start."""
    row: dict[str, Any] = {"model": entry.name, "num_images": len(image)}
    seed = torch.arange(len(image))
    for norm, eps in (("linf", entry.eps), ("l2", 16.0 * entry.eps)):
        threat, radius = THREATS[norm], torch.tensor(eps)
        shared: dict[str, Any] = {"steps": STEPS, "step_size": eps / 4, "threat": threat, "noise": noise}
        for name in ("foolbox, clean", "foolbox, given", "torchattacks, clean"):
            is_clean = name.endswith("clean")
            start = None if is_clean else threat.random_start(image, radius, noise, seed)
            attack = PGD(start="clean" if is_clean else "uniform", **shared)
            mine = attack(model, image, label, eps=radius, seed=seed)
            peer = foolbox_pgd if name.startswith("foolbox") else torchattacks_pgd
            other = peer(model, image, label, norm=norm, eps=eps, start=start)
            with torch.no_grad():
                right = [model(x).argmax(dim=1) == label for x in (mine, other)]
            row[f"{norm}, {name}"] = {
                "robust": float(right[0].double().mean()),
                "differ": int((right[0] != right[1]).sum()),
                "pixels_differ": float(((mine - other).abs() > 1e-5).double().mean()),
            }
    return row


def foolbox_pgd(
    model: nn.Module, image: Tensor, label: Tensor, *, norm: str, eps: float, start: Tensor | None
) -> Tensor:
    """foolbox's last iterate, from `start` or from the clean image."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import foolbox

        kind: Any = {"linf": foolbox.attacks.LinfPGD, "l2": foolbox.attacks.L2PGD}[norm]

        class GivenStart(kind):  # type: ignore[misc]
            def get_random_start(self, x0: Any, epsilon: float) -> Any:
                return x0 + (start - x0.raw)

        attack = GivenStart(abs_stepsize=eps / 4, steps=STEPS, random_start=start is not None)
        wrapped = foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu")
        _, clipped, _ = attack(wrapped, image, label, epsilons=eps)
    return cast(Tensor, clipped.detach())


def torchattacks_pgd(
    model: nn.Module, image: Tensor, label: Tensor, *, norm: str, eps: float, start: Tensor | None
) -> Tensor:
    """torchattacks' last iterate, from the clean image: it takes no other start but its own."""
    import torchattacks

    assert start is None, "torchattacks draws its starts itself"
    kind = {"linf": torchattacks.PGD, "l2": torchattacks.PGDL2}[norm]
    attack = kind(model, eps=eps, alpha=eps / 4, steps=STEPS, random_start=False)
    return cast(Tensor, attack(image, label).detach())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--num-images", type=int, default=1000, help="at most 1,000")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--norm", choices=["linf", "l2"], default="linf")
    parser.add_argument("--lanes", type=int, default=64, help="of both: torchattacks' batch")
    parser.add_argument("--size", type=int, choices=sorted(RADII), default=16, help="of the images, pixels")
    parser.add_argument("--models", help="default: all of that size")
    arguments = parser.parse_args()
    if not has_torchattacks():
        sys.exit(f"error: {MISSING}")
    image, label = held_out(arguments.num_images, arguments.size)
    known = {entry.name: entry for entry in MODELS if entry.size == arguments.size}
    wanted = list(known) if arguments.models is None else arguments.models.split(",")
    if unknown := set(wanted) - known.keys():
        sys.exit(
            f"error: no model of {arguments.size} px is called {', '.join(unknown)}; there are {', '.join(known)}"
        )
    chosen = [known[name] for name in wanted]
    name = f"{NAME}-{arguments.norm}-{arguments.size}px"
    pgd = [compare_pgd(entry, model_of(entry), image, label) for entry in chosen]
    size = {
        "norm": arguments.norm,
        "num_images": len(image),
        "lanes": arguments.lanes,
        "size": arguments.size,
    }
    rows = [row for row in rows_of_today(name) if size.items() <= row.items()]
    done = {(row["model"], row["seed"]) for row in rows}
    todo = [
        (seed, entry) for seed in range(arguments.seeds) for entry in chosen if (entry.name, seed) not in done
    ]
    path = keep(name, rows, pgd) if rows else None
    for seed, entry in todo:
        model = model_of(entry)
        rows.append(
            compare(entry, model, image, label, seed=seed, norm=arguments.norm, lanes=arguments.lanes)
        )
        path = keep(name, rows, pgd)  # after every row, for the whole takes hours
        print(f"{entry.name} seed {seed} done", flush=True)
    if path is not None:
        print(path.read_text())


def keep(name: str, rows: Sequence[Row], pgd: Sequence[Row]) -> Path:
    """Writes what there is by now."""
    return write_result(
        name,
        title="AutoAttack and PGD beside torchattacks and foolbox",
        text=report(rows, pgd),
        data={"rows": rows, "pgd": pgd},
    )


if __name__ == "__main__":
    main()

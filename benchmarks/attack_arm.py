"""One side of a comparison of attacks: this toolkit's components or torchattacks', on the same model and images.

Passes are counted where they happen, in the model; times are CPU-seconds of the process.
"""

import importlib.util
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from robust.block import CLEAN, BlockAttack, Outcome
from robust.gradient import Predict
from robust.stage import Device
from robust.threat import distance, slack
from robust.versions import Part

MISSING = (
    "torchattacks is missing: pip install --no-deps torchattacks==3.5.1 (it pins requests to an old version; nothing "
    "else here needs it)"
)
PEERS = ("APGD", "APGDT", "FAB", "Square")


class Passes(NamedTuple):
    """Images through the model."""

    forward: float
    backward: float  # with respect to the image alone

    @property
    def units(self) -> float:
        """In forward passes; going back to the image costs about two of them."""
        return self.forward + 2.0 * self.backward


class Counted(nn.Module):
    """A model that counts the images that go through it, and back."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.forwards = self.backwards = 0

    def forward(self, image: Tensor) -> Tensor:
        logits: Tensor = self.model(image)
        self.forwards += len(image)
        if logits.requires_grad:
            logits.register_hook(self._count)
        return logits

    def _count(self, gradient: Tensor) -> None:
        self.backwards += len(gradient)

    @property
    def passes(self) -> Passes:
        return Passes(self.forwards, self.backwards)


@dataclass(frozen=True, kw_only=True)
class Arm:
    """What one side found; `left` after each component, bool [N] each."""

    robust: Tensor  # bool [N], by the model itself on the stored images
    left: Mapping[str, Tensor]
    cpu_s: float
    passes: Passes
    outcomes: tuple[Outcome, ...] = ()  # ours alone


def ours(
    model: nn.Module,
    image: Tensor,
    label: Tensor,
    *,
    eps: float,
    norm: str,
    parts: Sequence[Part],
    seed: int = 0,
    lanes: int = 64,
    block: int = 1024,
    search: Callable[[Predict], Predict] | None = None,
) -> Arm:
    """`parts` one after the other, each on what is left; `search` makes of the model the one that searches."""
    counted, began = Counted(model).eval(), time.process_time()
    outcomes: list[Outcome] = []
    broken_by: list[str | None] = []
    robust = torch.ones(len(image), dtype=torch.bool)
    for start in range(0, len(image), block):
        rows = slice(start, start + block)
        attack = BlockAttack(
            predict=counted if search is None else search(counted),
            verdict=counted,
            image=image[rows],
            label=label[rows],
            eps=torch.tensor(eps),
            keys=range(start, min(start + block, len(image))),
            parts=parts,
            seed=seed,
            num_lanes=lanes,
            chunk=10,
            device=Device(feed=lambda tensor: tensor),
        )
        outcomes += [outcome._replace(row=outcome.row + start) for outcome in attack.run()]
        broken_by += attack.broken_by
        robust[rows] = verified(model, image[rows], label[rows], attack.adversarial, eps=eps, norm=norm)
    cpu_s = time.process_time() - began
    found = torch.tensor([name is None for name in broken_by])
    # Only rounding in another batch may set verdicts apart.
    assert int((found != robust).sum()) <= max(1, len(image) // 500), "verdicts differ from the stored images"
    return Arm(
        robust=robust,
        left=_left(broken_by, [part.name for part in parts]),
        cpu_s=cpu_s,
        passes=counted.passes,
        outcomes=tuple(outcomes),
    )


def _left(broken_by: Sequence[str | None], names: Sequence[str]) -> dict[str, Tensor]:
    gone: set[str | None] = set()
    left = {}
    for name in (CLEAN, *names):
        gone.add(name)
        left[name] = torch.tensor([by not in gone for by in broken_by])
    return left


def verified(
    model: nn.Module, image: Tensor, label: Tensor, adversarial: Tensor, *, eps: float, norm: str
) -> Tensor:
    """bool [N]: right on the stored image. RuntimeError for one outside ball or box: it would prove nothing."""
    worst = float(distance(adversarial, image, norm).max())
    if worst > eps + slack(norm, eps, image.shape[1:]) or not 0.0 <= float(adversarial.min()) <= 1.0:
        raise RuntimeError(
            f"an attacked image lies {worst} from its original, or outside the box; eps is {eps}"
        )
    with torch.no_grad():
        right = torch.cat([model(part) for part in adversarial.split(256)]).argmax(dim=1) == label
    return right


def useful(outcomes: Sequence[Outcome], parts: Sequence[Part]) -> tuple[dict[int, Passes], set[int]]:
    """Passes that each attacked image made use of, and the rows that survived: idle lanes are not counted."""
    known = {part.name: part.component for part in parts}
    spent: dict[int, Passes] = {}
    broken = {outcome.row for outcome in outcomes if outcome.broken}
    for outcome in outcomes:
        if outcome.component == CLEAN:
            continue
        component = known[outcome.component]
        steps = max(outcome.tries - 1, 0) * component.steps + outcome.steps
        before = spent.get(outcome.row, Passes(0.0, 0.0))
        each = component.passes
        spent[outcome.row] = Passes(
            before.forward + steps * each.forward, before.backward + steps * each.backward
        )
    return spent, spent.keys() - broken


def analytic(parts: Sequence[Part]) -> Passes:
    """What a survivor costs by the definition of the version."""
    made = [
        (max(part.targets, part.restarts) * part.component.steps, part.component.passes) for part in parts
    ]
    return Passes(sum(n * p.forward for n, p in made), sum(n * p.backward for n, p in made))


def has_torchattacks() -> bool:
    return importlib.util.find_spec("torchattacks") is not None


def theirs(
    model: nn.Module, image: Tensor, label: Tensor, *, eps: float, norm: str, seed: int = 0, batch: int = 64
) -> Arm:
    """torchattacks' components at the published budgets, each on what is left, in batches; ValueError if missing."""
    if not has_torchattacks():
        raise ValueError(MISSING)
    counted, began = Counted(model).eval(), time.process_time()
    adversarial = image.clone()
    left = {CLEAN: verified(counted, image, label, image, eps=eps, norm=norm)}
    robust = left[CLEAN].clone()
    for name in PEERS:
        for rows in torch.nonzero(robust)[:, 0].split(batch):
            found = peer(name, counted, eps=eps, norm=norm, seed=seed)(image[rows], label[rows]).detach()
            adversarial[rows] = found
            robust[rows] = verified(counted, image[rows], label[rows], found, eps=eps, norm=norm)
        left[name] = robust.clone()
    cpu_s = time.process_time() - began
    return Arm(robust=robust, left=left, cpu_s=cpu_s, passes=counted.passes)


def peer(name: str, model: nn.Module, *, eps: float, norm: str, seed: int) -> Any:
    """A component of torchattacks as the published code runs it; its own defaults are weaker."""
    import torchattacks

    budget: Mapping[str, dict[str, Any]] = {
        "APGD": {"steps": 100, "loss": "ce"},
        "APGDT": {"steps": 100},
        "FAB": {"steps": 100, "multi_targeted": True},
        "Square": {"n_queries": 5000, "resc_schedule": False},
    }
    norms = {"linf": "Linf", "l2": "L2"}
    return getattr(torchattacks, name)(model, norm=norms[norm], eps=eps, seed=seed, **budget[name])

"""A version on a block of images: what counts as a break, who searches, who is audited, what is not a number."""

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robust import versions
from robust.apgd import Apgd
from robust.autoattack import autoattack
from robust.block import BlockAttack, Outcome
from robust.fab import State
from robust.lanes import Lanes, Norm, Passes
from robust.square import Square
from robust.square_l2 import SquareL2
from robust.stage import Device
from robust.stream import question_seed
from robust.versions import Part, version_of

NUM, EPS = 16, 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Liar:
    """Claims a point at once: the clean image moved by `move`, whatever it is worth."""

    move: float
    norm: Norm = "linf"
    name: str = "liar"
    steps: int = 1
    passes: Passes = field(default=Passes(0, 0))

    def init(self, lanes: Lanes) -> State:
        none = torch.zeros_like(lanes.seed)
        return State(lanes, none, none != 0, lanes.clean.clone(), lanes.clean.clone())

    def step(self, predict: Any, state: State) -> State:
        moved = state.lanes.clean + self.move
        return state._replace(step=state.step + 1, found=state.found | True, adversarial=moved)


def bright(image: Tensor) -> Tensor:
    """Class 1 where the mean is above 1/2: any change of the mean decides."""
    mean = image.mean(dim=(1, 2, 3))
    return torch.stack((0.5 - mean, mean - 0.5), dim=1)


def images(level: float) -> tuple[Tensor, Tensor]:
    image = torch.full((NUM, 3, 4, 4), level)
    return image, bright(image).argmax(dim=1)


def block(image: Tensor, label: Tensor, parts: list[Part], **changes: Any) -> BlockAttack:
    settings: dict[str, Any] = {
        "predict": bright,
        "verdict": bright,
        "image": image,
        "label": label,
        "eps": torch.tensor(EPS),
        "keys": range(len(image)),
        "parts": parts,
        "seed": 0,
        "num_lanes": 8,
        "chunk": 5,
        "device": Device(feed=lambda tensor: tensor),
    }
    return BlockAttack(**(settings | changes))


@pytest.mark.parametrize(
    ("level", "move", "breaks"),
    [
        (0.48, 0.04, True),
        (0.48, 0.06, False),
        (0.48, 0.0500005, True),
        (0.98, -0.6, False),
        (0.48, float("nan"), False),
    ],
)
def test_a_break_is_an_image_inside_ball_and_box(level: float, move: float, breaks: bool) -> None:
    attack = block(*images(level), [Part(component=Liar(move=move))])
    outcomes = [o for o in attack.run() if o.component == "liar"]
    assert [o.claimed for o in outcomes] == [True] * NUM
    assert [o.broken for o in outcomes] == [breaks] * NUM
    assert [name is not None for name in attack.broken_by] == [breaks] * NUM
    assert torch.isfinite(attack.adversarial).all()


def test_outside_the_box_is_no_image() -> None:
    """Moved beyond 1, inside the ball: class 1 turns to 0 for a model that wraps."""

    def wraps(image: Tensor) -> Tensor:
        return bright(image % 1.0)

    image, _ = images(0.98)
    attack = block(
        image, torch.ones(NUM, dtype=torch.int64), [Part(component=Liar(move=0.04))], verdict=wraps
    )
    assert not any(o.broken for o in attack.run())
    assert bool((wraps(image + 0.04).argmax(1) == 0).all())


def test_a_longer_l2_move_is_none() -> None:
    for length, breaks in ((0.049, True), (0.051, False)):
        move = length / 48**0.5
        attack = block(*images(0.4999), [Part(component=Liar(move=move, norm="l2"))])
        assert {o.broken for o in attack.run() if o.component == "liar"} == {breaks}


def test_a_claim_that_the_judge_does_not_bear_out_is_searched_again_by_the_judge() -> None:
    asked = []

    def coarse(image: Tensor) -> Tensor:
        """Wrong about everything: whatever it sees first is a claim."""
        asked.append("coarse")
        return bright(image).flip(1)

    def exact(image: Tensor) -> Tensor:
        asked.append("exact")
        return bright(image)

    image, label = images(0.47)
    part = Part(component=Apgd(iterations=5))
    attack = block(image, label, [part], predict=coarse, verdict=exact)
    outcomes: list[Outcome] = list(attack.run())
    assert attack.broken_by == ["apgd-ce"] * NUM
    assert len(outcomes) == 2 * NUM, "an outcome for each image and component, no more"
    assert "coarse" in asked
    alone = block(image, label, [part])
    list(alone.run())
    assert torch.equal(alone.adversarial, attack.adversarial), "the search of the judge, bit for bit"


def test_a_float32_part_searches_with_the_judge() -> None:
    def coarse(image: Tensor) -> Tensor:
        raise AssertionError("asked")

    part = Part(component=Apgd(iterations=5), is_float32=True)
    attack = block(*images(0.47), [part], predict=coarse)
    list(attack.run())
    assert all(attack.broken_by)


def test_an_audit_looks_at_a_share_of_the_survivors_by_key() -> None:
    parts = [Part(component=Apgd(loss=loss, iterations=1), share=0.25) for loss in ("ce", "margin")]  # type: ignore[arg-type]
    image = torch.full((400, 3, 4, 4), 0.1)
    found = [
        {
            (o.component, key[o.row])
            for o in block(image, bright(image).argmax(1), parts, keys=key).run()
            if o.tries
        }
        for key in (range(400), range(399, -1, -1))
    ]
    assert found[0] == found[1], "by key, not by place"
    ce, margin = ({key for name, key in found[0] if name == wanted} for wanted in ("apgd-ce", "apgd-margin"))
    assert ce == margin, "the same images for all parts of an audit"
    assert 60 < len(ce) < 140
    assert ce == {key for key in range(400) if question_seed(0, key, "audit", 0) % 2**64 < 2**62}


class Masked(nn.Module):
    """Logits of `bright` with gradients, or logits, that are NaN where `hurt` says so."""

    def __init__(self, *, logits: bool) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, image: Tensor) -> Tensor:
        out = bright(image)
        if self.logits:
            is_off = (image.mean(dim=(1, 2, 3)) > 0.43)[:, None]
            return torch.where(is_off, torch.nan, out)
        return out + 0.0 * (image - image.detach()).abs().sqrt().sum(dim=(1, 2, 3))[:, None]


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("version", ["standard", "next", "fast"])
def test_gradients_that_are_not_numbers_make_no_images_that_are_none(
    version: str, norm: Norm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(versions, "SquareL2", lambda **_: SquareL2(queries=20))
    monkeypatch.setattr(versions, "Square", lambda **_: Square(queries=20))
    image, label = images(0.3)
    result = autoattack(
        Masked(logits=False).eval(), image[:4], label[:4], eps=EPS, norm=norm, version=version, chunk=500
    )
    assert torch.isfinite(result.adversarial).all()
    assert result.robust.all(), "nothing in the ball is wrong"


def test_logits_that_are_not_numbers_count_as_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions, "Square", lambda: Square(queries=60))
    image, label = images(0.4)
    image = image + 0.02 * torch.rand(image.shape, generator=torch.Generator().manual_seed(0))
    for part in version_of("standard", norm="linf", num_classes=10).parts:
        if part.name != "apgd-t":
            attack = block(image, label, [part], predict=Masked(logits=True), verdict=Masked(logits=True))
            list(attack.run())
            assert attack.broken_by == [part.name] * NUM
    result = autoattack(Masked(logits=True).eval(), image, label, eps=EPS, lanes=8)
    assert not result.robust.any()
    assert torch.isfinite(result.adversarial).all()
    assert any("logits that are NaN" in note for note in result.notes)


def test_images_that_are_all_wrong_already_are_not_attacked() -> None:
    image, label = images(0.3)
    result = autoattack(nn.Sequential(Masked(logits=False)).eval(), image, 1 - label, eps=EPS)
    assert result.broken_by == ("clean",) * NUM
    assert torch.equal(result.adversarial, image)
    assert result.robust_accuracy == 0.0


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("shape", [(3, 4, 9), (3, 9, 4)])
def test_images_need_not_be_square(norm: Norm, shape: tuple[int, ...]) -> None:
    image = torch.rand(4, *shape, generator=torch.Generator().manual_seed(1))
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(108, 10)).eval().requires_grad_(False)
    label = model(image).argmax(1)
    eps = torch.tensor({"linf": 0.3, "l2": 2.5}[norm])
    for part in version_of("standard", norm=norm, num_classes=10).parts:  # each from the start
        attack = block(image, label, [part], predict=model, verdict=model, eps=eps, chunk=50)
        list(attack.run())
        assert attack.broken_by == [part.name] * 4


def test_a_stage_has_as_many_lanes_as_its_rounds_need() -> None:
    def lanes_of(num: int, lanes: int, *, compiles: bool = False) -> int:
        seen: list[int] = []
        image = torch.full((num, 3, 2, 2), 0.1)
        device = Device(feed=lambda tensor: tensor, compiles=compiles)
        attack = block(
            image, bright(image).argmax(1), [Part(component=Liar(move=0.0))], device=device, num_lanes=lanes
        )
        attack.on_stage = lambda stage: seen.append(stage.num_lanes)
        assert sum(o.component == "liar" for o in attack.run()) == num
        return seen[0]

    assert [lanes_of(num, 64) for num in (1, 9, 51, 64, 65, 100, 1000)] == [8, 9, 51, 64, 33, 50, 63]
    assert lanes_of(3, 4) == 4, "not more than were asked for"
    assert lanes_of(51, 64, compiles=True) == 64, "one graph"


def test_an_interrupted_part_goes_on_with_as_many_lanes() -> None:
    image = torch.full((40, 3, 2, 2), 0.1)
    seen: list[int] = []
    for known in ({}, {"liar": {row: row % 2 == 0 for row in range(20)}}):
        attack = block(image, bright(image).argmax(1), [Part(component=Liar(move=0.0))], num_lanes=64)
        attack.on_stage = lambda stage: seen.append(stage.num_lanes)
        answered = [o.row for o in attack.run(known) if o.component == "liar"]
        assert answered == list(range(20 if known else 0, 40))
    assert seen == [40, 40]

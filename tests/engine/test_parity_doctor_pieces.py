"""The parity doctor's parts: marks tell distances, sides are read as written, each cause has a rule and a line."""

import math
import re
from typing import get_args

import pytest
import torch
from torch import Tensor

import engine.parity.diagnosis as diagnosis
import engine.parity.tolerance as tolerance
from engine.parity.comparison import PLACES, compare
from engine.parity.diagnosis import CAUSES, RULES, diagnose
from engine.parity.mark import (
    KINDS,
    WHOLE,
    Kind,
    Mark,
    distance,
    is_rounded_to_bf16,
    measure,
    pack,
    read,
    unpack,
)
from engine.parity.session import Answer
from engine.parity.side import Side, parse_sides
from engine.parity.tolerance import TOLERANCES, Tolerance


def mark(tensor: Tensor, kind: Kind = "activation", where: str = "layer", **facts: object) -> Mark:
    dtype = str(tensor.dtype).removeprefix("torch.")
    return read(measure(tensor), kind=kind, where=where, dtype=dtype, count=tensor.numel(), **facts)


def answer(*marks: Mark, **facts: object) -> Answer:
    known = {"loss": 1.0, "batch": {"image": "0"}, "attack_steps": 1, "update": 1, "epoch": 0, "lr": 0.1}
    return Answer(marks=list(marks), **{**known, **facts})  # type: ignore[arg-type]


def cause(reference: list[Mark], other: list[Mark]) -> str:
    found = diagnose(compare(answer(*reference), answer(*other), ("float32", "float32")))
    assert found is not None
    return found.cause


# ---- marks


@pytest.mark.parametrize("shape", [(7,), (4, 3, 32, 32), (64, 24, 32, 32), (300_001,)])
@pytest.mark.parametrize("kind", ["noise", "shift", "one value", "one channel"])
def test_marks_tell_how_far_apart_tensors_are(shape: tuple[int, ...], kind: str) -> None:
    generator = torch.Generator().manual_seed(1)
    a = torch.randn(shape, generator=generator)
    change = torch.zeros(shape)
    if kind == "noise":
        change = 1e-3 * torch.randn(shape, generator=generator)
    elif kind == "shift":
        change += 1e-2
    elif kind == "one value":
        change.view(-1)[a.numel() // 2] = 3.0
    else:
        change[:1] = 0.1
    wanted = float(change.norm() / a.norm())
    found = distance(mark(a), mark(a + change))
    assert found.relative == pytest.approx(wanted, rel=0.02 if a.numel() <= WHOLE else 0.7)
    assert distance(mark(a), mark(a.clone())).length == 0.0


def test_what_is_kept_of_a_large_tensor_is_small() -> None:
    kept = mark(torch.randn(3_000_000))
    assert len(kept.values) + len(kept.sketch) == 8192
    assert (unpack(pack([kept]))[0].values == kept.values).all()


def test_values_that_are_not_finite_are_infinitely_far() -> None:
    a = torch.ones(8)
    assert distance(mark(a), mark(a * math.inf)).relative == math.inf
    assert distance(mark(a), mark(torch.ones(9))).relative == math.inf


def test_float32_that_is_bf16_inside_is_recognised() -> None:
    a = torch.randn(1000)
    assert is_rounded_to_bf16(mark(a.bfloat16().float()))
    assert not is_rounded_to_bf16(mark(a))
    assert not is_rounded_to_bf16(mark(a.bfloat16())), "nothing is hidden there"
    assert not is_rounded_to_bf16(mark(torch.zeros(1000)))


# ---- sides


def test_sides_are_read_as_written() -> None:
    text = "cpu, xla:4,cpu:model.norm_stats=ghost:8:optim.betas=[0.9,0.95],cuda:run.precision=bf16"
    found = parse_sides(text)
    assert found == (
        Side(backend="cpu", tamper=found[0].tamper),
        Side(backend="xla", num_devices=4, tamper=found[1].tamper),
        Side(
            backend="cpu",
            overrides=("model.norm_stats=ghost:8", "optim.betas=[0.9,0.95]"),
            tamper=found[2].tamper,
        ),
        Side(backend="cuda", overrides=("run.precision=bf16",), tamper=found[3].tamper),
    )
    assert ",".join(side.label for side in found) == text.replace(" ", "")


# ---- tables


def test_every_cause_has_a_rule_and_a_line() -> None:
    assert tuple(rule.cause for rule in RULES) == CAUSES
    table = re.findall(r"^    (\w.+?)  +\S", diagnosis.__doc__ or "", flags=re.MULTILINE)
    assert tuple(table[1:]) == CAUSES


def test_every_kind_has_a_place_a_tolerance_and_a_line() -> None:
    kinds = [kind for kind in KINDS if kind != "hint"]
    assert sorted(kind for kinds in PLACES for kind in kinds) == sorted(kinds) == sorted(TOLERANCES)
    for kind in kinds[1:]:
        low, high = (f"{value:g}" for value in TOLERANCES[kind])
        row = re.search(rf"^    .*\b{kind}\b.*?  (\S+) +(\S+)  ", tolerance.__doc__ or "", flags=re.MULTILINE)
        assert row, kind
        assert [float(value) for value in row.groups()] == [float(low), float(high)], kind


def test_a_change_is_known_no_better_than_what_it_changes() -> None:
    tiny, weight = torch.full((100,), 1e-6), torch.ones(100)
    packed = read(measure(tiny, weight), kind="update", where="w", dtype="float32", count=100)
    other = mark(tiny + 1e-7, "update", "w")
    assert Tolerance("float32", [packed]).holds(packed, other, distance(packed, other))
    assert not Tolerance("float32", []).holds(other, packed, distance(mark(tiny, "update"), mark(2 * tiny)))


def test_a_gradient_that_is_rounding_alone_is_no_divergence() -> None:
    weight, bias = mark(torch.randn(100), "gradient", "w"), mark(1e-9 * torch.randn(100), "gradient", "b")
    other = mark(1e-9 * torch.randn(100), "gradient", "b")
    assert Tolerance("float32", [weight, bias]).holds(bias, other, distance(bias, other))
    assert not Tolerance("float32", [bias]).holds(bias, other, distance(bias, other))


# ---- rules that no small run shows at will


def test_sign_flips_are_told_from_other_steps() -> None:
    gradient = torch.randn(4000)
    gradient[:200] *= 1e-6
    clean, step = torch.rand(4000), 0.03 * gradient.sign()
    flipped = step.clone()
    flipped[:200] *= -1
    before = [mark(gradient, "attack gradient", "image")]
    here, there = (mark(clean + s, "attacked", "image") for s in (step, flipped))
    assert cause([*before, here], [*before, there]) == "sign flips"
    assert cause([*before, here], [*before, mark(clean + step / 2, "attacked", "image")]) == "attack steps"


def test_a_kink_is_told_from_an_error_of_the_backward_pass() -> None:
    value = torch.randn(1000)
    moved = value + 0.05 * torch.randn(1000)
    gradient, other = mark(value, "gradient", "w"), mark(moved, "gradient", "w")
    relu, gelu = (mark(value, maker=name) for name in ("ReLU(inplace)", "GELU"))
    assert cause([relu, gradient], [relu, other]) == "kink"
    assert cause([gelu, gradient], [gelu, other]) == "backward pass"


def test_other_places() -> None:
    value = torch.randn(1000)
    far = value + 1.0
    assert cause([mark(value, "image")], [mark(far, "image")]) == "device augmentation"
    assert cause([mark(value, "loss")], [mark(far, "loss")]) == "loss"
    assert cause([mark(value, maker="Softmax")], [mark(far, maker="Softmax")]) == "layer"
    assert cause([mark(value, "attack logits")], [mark(far, "attack logits")]) == "attack mode"


def test_every_kind_is_a_word_of_the_protocol() -> None:
    assert get_args(Kind) == KINDS

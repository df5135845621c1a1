"""What is looked at again of each broken image, and what a result makes of it: numbers by hand."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from engine.attack_checks import Check, Checks, look_again, read_checks
from engine.attack_pace import Count
from engine.autoattack import run_autoattack
from engine.blocks import Part as Share
from engine.blocks import parse_part
from engine.eval_fields import AutoAttackEval
from engine.evaluate import Evaluator
from robust import versions
from robust.apgd import Apgd
from robust.stage import Device
from robust.versions import Part, Version
from tests.engine.autoattack_cases import replace_entry

HERE = Device(feed=lambda tensor: tensor)


def by_first_pixel(image: Tensor) -> Tensor:
    """Class 1 where it is above 1/2."""
    value = image[:, 0, 0, 0] - 0.5
    return torch.stack((-value, value), dim=1)


def test_an_image_that_8_bits_undo() -> None:
    """0.5009 is class 1, and so is its nearest level, 128/255 = 0.50196."""
    clean = torch.full((3, 3, 1, 1), 0.4)
    attacked = clean.clone()
    attacked[0, 0, 0, 0], attacked[1, 0, 0, 0], attacked[2, 0, 0, 0] = 0.5009, 0.50001, 1.5
    found = look_again(
        by_first_pixel,
        attacked,
        clean,
        torch.zeros(3, dtype=torch.int64),
        [0, 2],
        ["a", "b", "c"],
        norm="linf",
        batch=2,
        device=HERE,
    )
    one, far = found
    assert (one.key, far.key) == ("a", "c")
    assert one.distance == pytest.approx(0.1009, abs=1e-6)
    assert far.distance == pytest.approx(1.1, abs=1e-6)
    assert far.high == 1.5
    assert one.wrong_as_uint8
    assert not one.flips
    assert one.margin_again == pytest.approx(-0.0018, abs=1e-6)
    attacked[0, 0, 0, 0] = (
        0.499  # the nearest level is 127/255 = 0.49804, on the other side of a border at 0.4988
    )
    (hair,) = look_again(
        lambda image: by_first_pixel(image + 0.0012),
        attacked,
        clean,
        torch.zeros(3, dtype=torch.int64),
        [0],
        ["a", "b", "c"],
        norm="linf",
        batch=2,
        device=HERE,
    )
    assert not hair.wrong_as_uint8


def test_lines_are_read_together_and_torn_ones_left_out(tmp_path: Path) -> None:
    check = Check(key="a", distance=0.1, low=0.0, high=1.0, margin_again=float("nan"), wrong_as_uint8=True)
    for rank, key in ((0, "a"), (0, "b"), (1, "a")):
        Checks(folder=tmp_path, evaluation="e", rank=rank).add([replace(check, key=key, low=float(rank))])
    with (tmp_path / "checks-e-1.jsonl").open("a") as file:
        file.write('{"key": "c", "dist')
    found = read_checks(tmp_path, "e")
    assert set(found) == {"a", "b"}
    assert found["a"].low == 1.0
    assert found["a"].margin_again != found["a"].margin_again
    assert read_checks(tmp_path, "f") == {}


def test_every_broken_image_is_checked(evaluator: Evaluator, entry: AutoAttackEval) -> None:
    result = run_autoattack(evaluator, entry)
    flags = result["flags"]
    broken = sum(part["num_broken"] for part in result["components"].values())
    assert flags["checked"] == broken > 0
    assert 0 < flags["largest_distance"] <= entry.eps + 1e-6
    assert flags["ball_violation"] <= 1e-6
    assert flags["outside"] == 0
    assert flags["wrong_as_uint8"] <= broken
    assert not any("bug" in note for note in result["notes"])


def test_a_violation_and_a_flip_are_noted(evaluator: Evaluator, entry: AutoAttackEval) -> None:
    result = run_autoattack(evaluator, entry)
    path = next(evaluator.ledger.glob("checks-*.jsonl"))
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines[0] |= {"distance": entry.eps + 0.01, "margin_again": 0.2}
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    again = run_autoattack(evaluator, entry)
    assert (again["flags"]["flips"], again["flags"]["outside"]) == (result["flags"]["flips"] + 1, 1)
    assert any("undone by another batch size" in note for note in again["notes"])
    assert any("beyond eps" in note for note in again["notes"])


def test_a_version_with_an_audit_says_its_bound(
    evaluator: Evaluator, entry: AutoAttackEval, monkeypatch: pytest.MonkeyPatch
) -> None:
    def audited(norm: str, num_classes: int) -> Version:
        parts = (
            Part(component=Apgd(loss="ce", iterations=2)),
            Part(component=Apgd(loss="ce", iterations=4, suffix="-audit"), share=0.5, is_float32=True),
        )
        return Version(id="audited", parts=parts, is_low=True)

    monkeypatch.setitem(versions.VERSIONS, "audited", audited)  # type: ignore[arg-type]
    result = run_autoattack(evaluator, replace_entry(entry, version="audited"))
    (note,) = (note for note in result["notes"] if "drawn at random" in note)
    survivors = result["components"]["apgd-ce"]["num_correct"]
    assert f"of the {survivors} survivors" in note
    assert "search" not in result["attack"], "on the cpu searches stay float32"


# ---- pace and parts


def test_the_pace_by_hand() -> None:
    now = [0.0]
    count = Count(4, ("clean", "apgd-ce", "square"), now=lambda: now[0])
    count.add("clean", is_right=False)
    for component, is_right in (("apgd-ce", False), ("apgd-ce", True), ("square", True)):
        now[0] += 2.0
        count.spend(component)
        count.add(component, is_right=is_right)
    assert (count.done, count.right, count.at_most) == (3, 1, 0.5)
    assert count.left_s == 2.0
    values = count.values()
    assert values["components"]["apgd-ce"] == {
        "images": 2,
        "broken": 1,
        "seconds": 4.0,
        "broken_per_s": 0.25,
    }
    assert str(count) == (
        "3 of 4 images done; robust accuracy at most 50.00 %; apgd-ce broke 1 of 2 (0.25/s), square broke 0 of 1 "
        "(0/s); ETA 0:02"
    )


def test_parts_have_every_block_once() -> None:
    for total, world in ((1, 1), (3, 1), (2, 2), (4, 3)):
        owners = [
            [
                (k, rank)
                for k in range(1, total + 1)
                for rank in range(world)
                if Share(k, total).has(n, rank, world)
            ]
            for n in range(50)
        ]
        assert all(len(found) == 1 for found in owners)
        assert len({found[0] for found in owners}) == total * world
    assert str(parse_part("2/3")) == "2/3"

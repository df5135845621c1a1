"""Attack entries of a recipe and the verb `attack`: norms, radii, restarts, the best iterate, names and ids."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from bits.environment import open_environment
from engine.cli import Launch, main
from engine.eval_fields import AttackEval
from engine.ledger import Verdict, read_ledger
from engine.recipe import Recipe, parse_recipe, resume_diff
from engine.training_attack import build_pgd
from robust.pgd import no_cut
from robust.threat import L2, Linf

CPU = Launch(backend="cpu")
TREE: dict[str, Any] = {
    "data": {"train": "t", "val": "v", "image_size": 32, "num_workers": 0, "flip": 0.0, "scale": [0.8, 1.0]},
    "model": {"name": "small_cnn", "norm_stats": "ghost:14", "mean": [0.5] * 3, "std": [0.5] * 3},
    "optim": {"lr": 3e-3},
    "objective": {
        "kind": "adversarial",
        "attack": {"norm": "l2", "eps": 0.5, "step_size": "128/255", "steps": 1},
    },
    "run": {"epochs": 6, "batch_size": 14, "gallery_images": 2},
}
PGD20: dict[str, Any] = {"attack": "pgd", "norm": "linf", "eps": "4/255", "step_size": "1/255", "steps": 20}


def recipe_with(*entries: dict[str, Any], **attack: Any) -> Recipe:
    tree = json.loads(json.dumps(TREE))
    tree["objective"]["attack"] |= attack
    return parse_recipe({**tree, "evals": list(entries)})


def entry_of(**changes: Any) -> AttackEval:
    (entry,) = recipe_with({**PGD20, **changes}).evals
    assert isinstance(entry, AttackEval)
    return entry


# ---- recipes


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"eps": "16/255"}, "pgd20_linf16"),
        ({"eps": "0.5/255"}, "pgd20_linf0.5"),
        ({"eps": "1/510"}, "pgd20_linf0.5"),
        ({"eps": "0.25/255"}, "pgd20_linf0.25"),
        ({"eps": 1e-6}, "pgd20_linf0.000255"),
        ({"eps": "255/255", "steps": 5}, "pgd5_linf255"),
        ({"norm": "l2", "eps": 0.5}, "pgd20_l2_0.5"),
        ({"norm": "l2", "eps": 3}, "pgd20_l2_3"),
        ({"norm": "l2", "eps": "128/255"}, "pgd20_l2_0.502"),
        ({"restarts": 5}, "pgd20_linf4_r5"),
        ({"best_iterate": True}, "pgd20_linf4_best"),
        ({"norm": "l2", "eps": 2.25, "restarts": 3, "best_iterate": True}, "pgd20_l2_2.25_r3_best"),
        ({"restarts": 1, "best_iterate": False}, "pgd20_linf4"),
    ],
)
def test_names(changes: dict[str, Any], name: str) -> None:
    assert entry_of(**changes).name == name


def test_radii_of_half_a_level_do_not_collide() -> None:
    """Rounded to whole levels, 4 and 4.4 of 255 would be one name and their results one file."""
    entries = [{**PGD20, "eps": f"{eps}/255"} for eps in (0.25, 0.5, 1, 4, 4.4)]
    assert len({entry.name for entry in recipe_with(*entries).evals}) == 5
    with pytest.raises(ValueError, match=r"two entries named pgd20_linf0\.5"):
        recipe_with({**PGD20, "eps": "0.5/255"}, {**PGD20, "eps": 0.5 / 255})


def test_l2_radii_are_lengths() -> None:
    entry = entry_of(norm="l2", eps=3.0, step_size=2)
    assert (entry.eps, entry.step_size) == (3.0, 2.0)
    training = recipe_with(norm="l2", eps="510/255", step_size=1.5).objective.attack
    assert training is not None
    assert (training.eps, training.step_size) == (2.0, 1.5)
    tree = json.loads(json.dumps(TREE))
    tree["objective"]["warmup"] = {"eps": [[0, 0], [2, 2.5]]}
    tree["objective"]["attack"]["eps"] = 2.5
    assert parse_recipe(tree).objective.warmup is not None


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"eps": 4}, "evals[0].eps is 4, but images and radii live in [0, 1]; likely meant: 4/255"),
        ({"eps": 1.5}, "evals[0].eps is 1.5, but images"),
        ({"eps": "300/255"}, "evals[0].eps is '300/255', but must be less than or equal to 1"),
        ({"step_size": 2}, "evals[0].step_size is 2, but images"),
        ({"eps": True}, "evals[0].eps is True, but must be a number"),
        ({"eps": "-4/255"}, "evals[0].eps is '-4/255', but must be greater than 0"),
        ({"eps": -0.1}, "evals[0].eps is -0.1, but must be greater than 0"),
        ({"eps": float("nan")}, "evals[0].eps is nan"),
        ({"norm": "l2", "eps": float("inf")}, "evals[0].eps is inf"),
        ({"norm": "l2", "eps": 0}, "evals[0].eps is 0, but must be greater than 0"),
        ({"norm": "l2", "eps": -1.0}, "evals[0].eps is -1.0, but must be greater than 0"),
        (
            {"norm": "l2", "eps": 128},
            "evals[0].eps is 128, but images of 32 px are at most 55.43 apart in l2; likely meant: 128/255",
        ),
        ({"norm": "l2", "step_size": 64}, "evals[0].step_size is 64, but images of 32 px"),
        ({"norm": "l1"}, "evals[0].norm is 'l1', but must be 'linf' or 'l2'"),
        ({"norm": "l3", "eps": 3.0}, "evals[0].norm is 'l3', but must be 'linf' or 'l2'"),
        ({"restarts": 0}, "evals[0].restarts is 0, but must be greater than 0; the default is 1"),
        ({"restarts": 2.0}, "evals[0].restarts is 2.0, but must be a"),
        (
            {"restarts": 3, "random_start": False},
            "evals[0].restarts is 3, but without a random start all restarts are alike; give 1, or start at random",
        ),
        ({"best_iterate": 1}, "evals[0].best_iterate is 1, but must be true or false"),
    ],
)
def test_mistakes_in_a_recipe(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=re.escape(says)) as caught:
        entry_of(**changes)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"norm": "linf", "eps": 0.5, "step_size": 3.0}, "objective.attack.step_size is 3.0, but images and"),
        ({"eps": 100.0}, "objective.attack.eps is 100, but images of 32 px are at most 55.43 apart"),
        ({"restarts": 2}, "objective.attack.restarts is not a field"),
    ],
)
def test_mistakes_in_training(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=re.escape(says)):
        recipe_with(**changes)


def test_a_warmup_in_255ths_is_told_so() -> None:
    tree = json.loads(json.dumps(TREE))
    tree["objective"] |= {
        "attack": {"norm": "linf", "eps": "4/255", "step_size": "4/255", "steps": 1},
        "warmup": {"eps": [[0, 0], [2, 4]]},
    }
    with pytest.raises(ValueError, match=r"goes up to 4, but .*\(likely meant: 4/255\)"):
        parse_recipe(tree)


def test_the_norm_of_training_is_part_of_the_recipes_identity() -> None:
    linf = recipe_with(norm="linf")
    assert "objective.attack.norm" in resume_diff(recipe_with(), linf)
    assert linf.hash != recipe_with().hash
    assert recipe_with({**PGD20, "restarts": 2}).hash == recipe_with().hash


def test_build_pgd() -> None:
    env = open_environment("cpu")
    plain = build_pgd(env, norm="linf", steps=1, step_size=0.1, random_start=True)
    assert isinstance(plain.threat, Linf)
    assert plain.cut is no_cut  # one step of training stays in one graph with the update
    assert (plain.restarts, plain.best_iterate) == (1, False)
    full = build_pgd(env, norm="l2", steps=1, step_size=0.1, random_start=True, restarts=3, best_iterate=True)
    assert isinstance(full.threat, L2)
    assert full.cut == env.cut
    assert (full.restarts, full.best_iterate) == (3, True)


# ---- the verb


@pytest.fixture(scope="module")
def made(few_digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 30 updates of l2 training on 70 digits, which are also what it is judged on."""
    root = tmp_path_factory.mktemp("entries")
    tree = {**TREE, "data": {**TREE["data"], "train": str(few_digits), "val": str(few_digits)}}
    (root / "recipe.yaml").write_text(yaml.safe_dump(tree))
    assert main(["train", str(root / "recipe.yaml"), "--output", str(root / "run")], CPU, program="p") == 0
    return root / "run"


@pytest.fixture
def attack(
    made: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> Callable[..., tuple[list[dict[str, Any]], str]]:
    """attack("--eps 4/255 ...", ledger folder name): the results, and what was printed."""

    def run(words: str, folder: str = "out") -> tuple[list[dict[str, Any]], str]:
        capfd.readouterr()
        output = ["--output", str(tmp_path / folder), "--json", str(tmp_path / "result.json")]
        code = main(["attack", str(made), *words.split(), *output], CPU, program="p")
        printed = capfd.readouterr()
        assert code == 0, printed.err
        return json.loads((tmp_path / "result.json").read_text())["results"], printed.out

    return run


def rows(root: Path, result: dict[str, Any]) -> list[Verdict]:
    return list(read_ledger(root / "ledger").rows(result["evaluation"], result["name"]))


def test_a_result_per_radius(attack: Callable[..., tuple[list[dict[str, Any]], str]], tmp_path: Path) -> None:
    results, printed = attack("--eps 1/255,8/255,32/255 --steps 3")
    names = ["pgd3_linf1", "pgd3_linf8", "pgd3_linf32"]
    assert [result["name"] for result in results] == names
    assert len({result["evaluation"] for result in results}) == 3
    for name, eps, result in zip(names, (1, 8, 32), results, strict=True):
        stored = json.loads((tmp_path / "out/results" / f"{name}.json").read_text())
        assert stored["evaluation"] == result["evaluation"]
        assert stored["attack"] == {
            "attack": "pgd",
            "norm": "linf",
            "eps": pytest.approx(eps / 255),
            "step_size": pytest.approx(eps / 255 / 4),
            "steps": 3,
            "random_start": True,
            "restarts": 1,
            "best_iterate": False,
        }
        found = rows(tmp_path / "out", result)
        assert len(found) == result["num_images"] == 70
        assert {row.queries for row in found} == {3}
        assert {row.step for row in found} <= {None, 3}
        assert len([line for line in printed.splitlines() if re.search(rf"\b{name}\b", line)]) == 1
    shares = [result["num_correct"] for result in results]
    assert shares[0] > shares[1] > shares[2]
    again, _ = attack("--eps 8/255 --steps 3")
    assert again[0]["evaluation"] == results[1]["evaluation"], "a list changes nothing about its parts"


def test_a_given_step_is_for_every_radius(attack: Callable[..., tuple[list[dict[str, Any]], str]]) -> None:
    results, _ = attack("--eps 0.5,2 --norm l2 --step-size 0.25 --steps 1 --num-images 5")
    assert [result["attack"]["step_size"] for result in results] == [0.25, 0.25]
    assert [result["name"] for result in results] == ["pgd1_l2_0.5", "pgd1_l2_2"]


def test_restarts_and_best_iterate_are_never_weaker(
    attack: Callable[..., tuple[list[dict[str, Any]], str]], tmp_path: Path
) -> None:
    base = "--norm l2 --eps 1.5 --steps 2"
    ((plain,), _), ((best,), _) = attack(base), attack(f"{base} --best-iterate")
    ((often,), _) = attack(f"{base} --restarts 3")
    ((both,), printed) = attack(f"{base} --restarts 3 --best-iterate")
    results = [plain, best, often, both]
    assert [r["name"].removeprefix("pgd2_l2_1.5") for r in results] == ["", "_best", "_r3", "_r3_best"]
    assert len({r["evaluation"] for r in results}) == 4
    assert "pgd2_l2_1.5_r3_best" in printed
    right = [{row.key for row in rows(tmp_path / "out", r) if row.correct} for r in results]
    assert right[3] <= right[2] <= right[0]
    assert right[3] <= right[1] <= right[0]
    assert 0 < len(right[0]) < 70
    for result, queries in zip(results, (2, 2, 6, 6), strict=True):
        found = rows(tmp_path / "out", result)
        assert {row.queries for row in found} == {queries}
        broken = [row for row in found if row.broken_by]
        assert broken
        assert {row.step for row in broken} == {2 if result is plain else None}


def test_the_run_was_trained_in_l2(made: Path) -> None:
    (epochs,) = {yaml.safe_load((made / "recipe.yaml").read_text())["objective"]["attack"]["norm"]}
    assert epochs == "l2"
    events = [json.loads(line) for line in (made / "log.jsonl").read_text().splitlines()]
    losses = [event["loss"] for event in events if event["event"] == "train"]
    assert losses
    assert torch.isfinite(torch.tensor(losses)).all()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("--eps 4/255,,8/255", "--eps is '4/255,,8/255', where item 2 is empty; write radii with one comma"),
        ("--eps 4/255,", "--eps is '4/255,', where item 2 is empty"),
        ("--eps=", "--eps is '', where item 1 is empty"),
        ("--eps 4/255,8/255,4/255", "where 4/255 and 4/255 are one radius, linf4; drop one of them"),
        ("--eps 0.5/255,1/510", "where 0.5/255 and 1/510 are one radius, linf0.5"),
        ("--norm l2 --eps 0.5,0.50", "where 0.5 and 0.50 are one radius, l2_0.5"),
        ("--eps 4/255,-8/255", "--eps is '-8/255', but must be greater than 0"),
        ("--eps=-0.1", "--eps is -0.1, but must be greater than 0"),
        ("--eps 4/255,0", "--eps is 0, but must be greater than 0"),
        ("--eps 4/255,8", "--eps is 8, but images and radii live in [0, 1]; likely meant: 8/255"),
        ("--eps 4/255,eight", "--eps is 'eight', but must be a number"),
        ("--eps nan", "--eps is 'nan', but must be a number"),
        ("--eps 4/255;8/255", "--eps is '4/255;8/255', but must be a number"),
        ("--norm l2 --eps 128", "--eps is 128, but images of 32 px are at most 55.43 apart in l2; likely"),
        ("--norm l2 --eps 1 --step-size 0", "--step-size is 0, but must be greater than 0"),
        ("--norm l7 --eps 4/255", "--norm is 'l7', but must be 'linf' or 'l2'"),
        (
            "--eps 4/255 --restarts 3 --no-random-start",
            "--restarts is 3, but without a random start all restarts are alike; give 1, or start at random",
        ),
        ("--eps 4/255 --restarts 0", "--restarts is 0, but must be greater than 0"),
        ("--eps 4/255 --restarts many", "--restarts: invalid int value: 'many'"),
    ],
)
def test_bad_input_is_one_line_in_the_users_words(
    words: str, says: str, made: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    capfd.readouterr()
    code = main(["attack", str(made), *words.split(), "--output", str(tmp_path / "out")], CPU, program="p")
    err = capfd.readouterr().err
    assert code == 2
    assert says in err
    assert len(err.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()

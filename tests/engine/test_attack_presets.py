"""Presets, radii with a norm of their own, and what an attack's result says of itself."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.attack_entries import attack_entries
from engine.attack_notes import look
from engine.cli import Launch, main, parse
from engine.eval_fields import AttackEval
from engine.evaluate import Evaluator
from engine.measure import describe, with_drop
from engine.training_attack import ATTACK_STREAM, START_STREAM
from robust.noise import noise
from robust.pgd import PGD
from tests.engine.autoattack_cases import NearestMean

CPU = Launch(backend="cpu")


def entries(words: str) -> list[dict[str, Any]]:
    found = attack_entries(parse(["attack", "run", *words.split()], "p"))
    return [{name: value for name, value in entry.items() if value is not None} for entry in found]


def test_bai2021_is_four_numbers_of_steps() -> None:
    found = [AttackEval(**entry) for entry in entries("--preset bai2021")]
    assert [entry.steps for entry in found] == [5, 10, 50, 100]
    assert {(entry.eps, entry.step_size) for entry in found} == {(4 / 255, 1 / 255)}
    assert [entry.name for entry in found][:2] == ["pgd5_linf4_bai2021", "pgd10_linf4_bai2021"]
    assert {entry.clean_prob for entry in found} == {0.5}
    (one,) = entries("--preset bai2021 --steps 50")
    assert one["steps"] == 50
    (far,) = entries("--preset bai2021 --steps 5 --eps 8/255")
    assert far["step_size"] == pytest.approx(8 / 255 / 5), "eps/k where that is longer"
    (xu,) = (AttackEval(**entry) for entry in entries("--preset xu2022"))
    assert (xu.steps, xu.clean_prob, xu.random_start, xu.name) == (5, 0.0, True, "pgd5_linf4_xu2022")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("--preset bai2022", "--preset is 'bai2022', but must be 'none', 'bai2021' or 'xu2022'"),
        (
            "--preset bai2021 --steps 7",
            "--preset is 'bai2021', which measures 5, 10, 50, 100 steps, and not 7",
        ),
        ("--preset xu2022 --restarts 2", "--preset is 'xu2022', whose attack has restarts 1, and not 2"),
        ("--preset xu2022 --no-random-start", "whose attack has random_start true, and not False"),
        ("--preset xu2022 --eps l2:0.5", "whose attack has norm linf, and not l2"),
        (
            "--preset xu2022 --attack autoattack",
            "--preset is 'xu2022', but belongs to --attack pgd alone; drop it",
        ),
        ("--eps l3:0.5", "--eps has 'l3:0.5', whose norm must be linf, l2 or l1, such as l2:0.5"),
        ("--eps l1:12", "--norm is 'l1', but must be 'linf' or 'l2'"),
        ("--eps 4/255,linf:4/255", "where 4/255 and linf:4/255 are one radius"),
        ("", "the following arguments are required: --eps; give a radius such as 4/255, or --preset NAME"),
        ("--eps 4/255 --part 1/2", "--part is '1/2', but belongs to --attack autoattack alone; drop it"),
        ("--eps 4/255 --until-ci 1", "--until-ci does not belong to this attack; drop it"),
        ("--attack autoattack --eps 4/255 --until-ci 0", "--until-ci is 0.0, but must be greater than 0"),
        ("--attack autoattack --eps 4/255 --until-ci 50", "--until-ci is 50.0, but must be less than 50"),
        (
            "--attack autoattack --eps 4/255 --until-ci 1 --part 1/2",
            "--part and --until-ci do not go together",
        ),
        ("--attack autoattack --eps 0", "--eps is 0, but must be"),
        ("--attack autoattack --eps nan", "--eps is"),
        ("--attack autoattack --eps 4/255 --num-images 0", "--num-images is 0, but must be greater than 0"),
    ],
)
def test_mistakes_are_one_line(
    words: str, says: str, made: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    capfd.readouterr()
    assert main(["attack", str(made), *words.split(), "--output", str(tmp_path / "o")], CPU, program="p") == 2
    err = capfd.readouterr().err.strip()
    assert says in err
    assert len(err.splitlines()) == 1


def test_half_of_the_images_start_at_the_clean_one(
    evaluator: Evaluator, images: tuple[torch.Tensor, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With no step at all the attacked image is the start; which ones are clean is a function of the image."""
    starts: dict[int, bool] = {}
    real = PGD.__call__

    def call(pgd: PGD, predict: Any, image: torch.Tensor, target: Any, **words: Any) -> torch.Tensor:
        state = pgd.init(image, target, eps=words["eps"], seed=words["seed"], start_u=words["start_u"])
        for row, seed in enumerate(words["seed"].tolist()):
            starts[seed] = torch.equal(state.image[row], image[row])
        return real(pgd, predict, image, target, **words)

    monkeypatch.setattr(PGD, "__call__", call)
    (entry,) = entries("--preset bai2021 --steps 5")
    result = evaluator.run(AttackEval(**entry, batch_size=90))
    assert (result["attack"]["preset"], result["attack"]["clean_prob"]) == ("bai2021", 0.5)
    seeds = torch.tensor(list(starts))
    wanted = noise(seeds ^ START_STREAM, (1,))[:, 0] < 0.5
    assert torch.equal(torch.tensor(list(starts.values())), wanted)
    assert 0.4 < float(wanted.double().mean()) < 0.6
    assert ATTACK_STREAM != START_STREAM


def test_several_norms_in_one_command(made: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    words = ["attack", str(made), "--eps", "20/255,l2:1.5", "--steps", "3", "--output", str(out), "--quiet"]
    assert main(words, CPU, program="p") == 0
    table = capfd.readouterr().out
    linf, l2 = (
        json.loads((out / f"results/{name}.json").read_text()) for name in ("pgd3_linf20", "pgd3_l2_1.5")
    )
    clean = linf["components"]["clean"]["top1"]
    assert linf["relative_drop"] == (linf["top1"] - clean) / clean
    assert f"drop {100 * linf['relative_drop']:.1f} %" in table
    assert (linf["trained_on"], linf["is_unseen_threat"]) == (None, False)
    for result in (linf, l2):
        flags = result["flags"]
        assert flags["resolution"] == [3, 16, 16]
        assert not flags["is_random"]
        assert set(flags["zero_gradient"]) == {"ce", "dlr"}
        assert "seed_spread" not in flags, "of so few gradients a probe would be the most"


def test_a_threat_that_the_model_has_not_seen_is_named() -> None:
    result = {
        "name": "pgd5_l2_0.5",
        "attack": {"norm": "l2"},
        "top1": 0.5,
        "interval": [0.4, 0.6],
        "num_images": 10,
        "components": {"clean": {"top1": 0.8}},
        "is_unseen_threat": True,
    }
    assert "drop -37.5 %  unseen threat" in describe("pgd5_l2_0.5", with_drop(result))


class Random(NearestMean):
    """Answers anew each time."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        logits = super().forward(image)
        return logits + torch.rand_like(logits)


class Probability(NearestMean):
    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return torch.softmax(super().forward(image), dim=1)


@pytest.mark.parametrize(("kind", "flag"), [(Random, "is_random"), (Probability, "is_probability")])
def test_the_look_at_the_model_tells(
    kind: type[NearestMean], flag: str, evaluator: Evaluator, entry: Any
) -> None:
    found, tried = look(evaluator, evaluator.keys(entry), 8 / 255, "linf")
    assert not found.notes
    assert tried is not None
    assert tried.num_images == 24
    assert tried.right_after_more <= tried.right[0] + 1
    evaluator.model.__class__ = kind
    found, _ = look(evaluator, evaluator.keys(entry), 8 / 255, "linf")
    assert getattr(found, flag)
    assert found.notes

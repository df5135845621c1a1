"""Which attacks make a curve over the radius, the sentences at the top, and the training curve over resumptions."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from engine.folder import RunFolder
from engine.report.findings import findings
from engine.report.gather import gather
from engine.report.progress import read_progress
from engine.report.radius import curves
from engine.report.summary import summarize
from tests.engine.report.made_runs import CLEAN, MakeRun, Spec, pgd

Report = Callable[..., dict[str, Any]]


def attack(eps: int, *, broken: int | None = None, **more: Any) -> Spec:
    values = {
        "name": f"pgd20_linf{eps}",
        "attack": pgd(eps / 255),
        "broken": 3 * eps if broken is None else broken,
    }
    return Spec(**{**values, **more})


def test_curve_takes_what_differs_in_the_radius_only(tmp_path: Path, make_run: MakeRun) -> None:
    specs = [
        CLEAN,
        *(attack(eps) for eps in (2, 4, 8)),
        attack(12, attack=pgd(12 / 255, steps=5), name="pgd5_linf12"),
        attack(6, attack=pgd(6 / 255, step_size=1 / 255)),
        attack(16, dataset="e" * 64),
        attack(10, weights_sha256="4" * 64),
        attack(14, attack=pgd(14 / 255, restarts=3)),
    ]
    (curve,) = curves(summarize(gather([make_run(tmp_path / "a", specs)])))
    (line,) = curve.lines
    assert [round(eps * 255, 6) for eps, _ in line.points] == [0, 2, 4, 8]
    assert [share.correct for _, share in line.points] == [57, 51, 45, 33]
    assert curve.step_text == "0.25 eps"
    names = ("pgd5_linf12", "pgd20_linf6", "pgd20_linf16", "pgd20_linf10", "pgd20_linf14")
    assert sorted(curve.left_out) == sorted(f"{name} (a)" for name in names)


def test_curve_with_a_fixed_step(tmp_path: Path, make_run: MakeRun) -> None:
    specs = [attack(eps, attack=pgd(eps / 255, step_size=1 / 255)) for eps in (4, 8, 16)]
    runs = [make_run(tmp_path / "a", specs), make_run(tmp_path / "b", specs[:2])]
    (curve,) = curves(summarize(gather(runs)))
    assert curve.step_text == "1/255"
    assert [len(line.points) for line in curve.lines] == [4, 3]
    assert curve.left_out == ()


def test_one_radius_is_no_curve_and_norms_do_not_mix(tmp_path: Path, make_run: MakeRun) -> None:
    l2 = [Spec(name=f"pgd20_l2_{eps}", attack=pgd(eps, norm="l2"), broken=4) for eps in (0.25, 0.5)]
    assert curves(summarize(gather([make_run(tmp_path / "a", (attack(4), l2[0]))]))) == []
    (curve,) = curves(summarize(gather([make_run(tmp_path / "b", (attack(4), *l2))])))
    assert curve.example.norm == "l2"
    assert curve.left_out == ()


def test_findings_say_what_the_intervals_bear_out(tmp_path: Path, make_run: MakeRun) -> None:
    runs = [
        make_run(tmp_path / "a", (CLEAN, attack(8, broken=5))),
        make_run(tmp_path / "b", (replace(CLEAN, wrong=5), attack(8, broken=30))),
    ]
    clean, robust = findings(summarize(gather(runs)))
    assert "intervals overlap, so this does not tell the runs apart" in clean
    assert "higher" not in clean
    assert "a's accuracy is higher than b's: 86.7 % [75.8, 93.1] against 45.0 % [33.1, 57.5]" in robust
    (alone, _) = findings(summarize(gather(runs[:1])))
    assert "a is right on 95.0 % [86.3, 98.3] of 60 images" in alone
    third = make_run(tmp_path / "c", (CLEAN, attack(8, broken=7)))
    _, robust = findings(summarize(gather([*runs, third])))
    assert "highest a 86.7 % [75.8, 93.1], whose interval overlaps with c's; lowest b" in robust
    assert robust.endswith("whose interval overlaps with no other.")


def test_several_results_of_one_name_are_columns_of_their_own(
    tmp_path: Path, make_run: MakeRun, report: Report
) -> None:
    second = attack(8, attack=pgd(8 / 255, step_size=1 / 255), file="pgd20_linf8-xxxxxxxx")
    run = make_run(tmp_path / "a", (CLEAN, attack(8)))
    make_run(tmp_path / "b", (second,))
    for part in ("results", "ledger"):
        for path in (tmp_path / "b" / part).glob("*.*"):
            path.rename(run / part / path.name.replace("rank-0", "rank-1"))
    stored = run / "results/pgd20_linf8-xxxxxxxx.json"
    stored.rename(stored.with_name(f"pgd20_linf8-{json.loads(stored.read_text())['evaluation'][:8]}.json"))
    result = report(run)
    assert [e["evaluation"] for e in result["evaluations"]] == ["clean", "pgd20_linf8", "pgd20_linf8"]
    assert len({e["step_size"] for e in result["evaluations"][1:]}) == 2
    assert result["warnings"] == []


def test_what_was_logged_twice_counts_once(tmp_path: Path) -> None:
    lines = [
        {"event": "start", "step": 0, "time": 100.0},
        *(
            {"event": "train", "step": s, "epoch": s / 10, "loss": 1.0, "time": 100.0 + s}
            for s in (10, 20, 30)
        ),
        {"event": "start", "step": 20, "time": 1000.0},
        *({"event": "train", "step": s, "epoch": s / 10, "loss": 2.0, "time": 980.0 + s} for s in (30, 40)),
    ]
    text = "\n".join(json.dumps(line) for line in lines)
    (tmp_path / "log.jsonl").write_text(f'{text}\n{{"event": "train", "step": 50, "lo\n3\n')
    progress, warnings = read_progress(RunFolder(tmp_path), {"run.epochs": 5, "optim.accumulate": 1})
    assert [(p.step, p.loss) for p in progress.points] == [(10, 1.0), (20, 1.0), (30, 2.0), (40, 2.0)]
    assert progress.detail.startswith("step 40 of 50; ")
    assert progress.busy_s == 30 + 20
    assert warnings == []

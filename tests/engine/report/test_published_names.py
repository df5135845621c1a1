"""Published numbers find the run's own under the names of papers."""

from types import SimpleNamespace
from typing import Any

from engine.report.facts import Share
from engine.report.published import comparisons
from engine.report.words import NOTHING


def line(measure: str, evaluation: str, share: Share) -> tuple[str, ...]:
    run = SimpleNamespace(recipe={f"published.{measure}": 57.9})
    summary: Any = SimpleNamespace(
        rows=[SimpleNamespace(run=run, label="r")],
        columns=[SimpleNamespace(name=evaluation, cells=[SimpleNamespace(share=share)])],
    )
    (found,) = comparisons(summary)
    return found


def test_a_suite_is_found_by_its_other_name_and_under_a_protocol() -> None:
    share = Share(579, 1000)
    for measure, evaluation in (
        ("imagenet-a", "a"),
        ("imagenet-a", "a-bai2021"),
        ("sketch", "sketch"),
        ("a", "a"),
    ):
        found = line(measure, evaluation, share)
        assert found[3].startswith("57.9 %"), (measure, evaluation)
        assert found[4] == "+0.00 points"
    assert line("imagenet-a", "r", share)[4] == NOTHING
    assert line("imagenet-a", "a-ema", share)[4] == NOTHING


def test_an_error_is_what_is_wrong() -> None:
    found = line("imagenet-c-error", "c", Share(400, 1000, (0.3, 0.5)))
    assert found[3].startswith("60.0 % [50.0, 70.0]")
    assert found[4] == "+2.10 points"

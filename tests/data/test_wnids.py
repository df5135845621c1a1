"""ImageNet's class lists: the sums and sizes that the published evaluation scripts have."""

import subprocess
import sys
from pathlib import Path

import pytest

import data.wnids
from data.wnids import INDEX_SUMS, real_labels, wnids


def test_the_lists_are_those_of_the_papers_scripts() -> None:
    whole = wnids()
    assert (len(whole), whole[0], whole[-1]) == (1000, "n01440764", "n15075141")
    places = {name: [whole.index(wnid) for wnid in wnids(name)] for name in ("a", "r")}
    assert {name: len(found) for name, found in places.items()} == {"a": 200, "r": 200}
    assert (places["a"][:5], places["a"][-5:]) == ([6, 11, 13, 15, 17], [981, 984, 986, 987, 988])
    assert (places["r"][:5], places["r"][-5:]) == ([1, 2, 4, 6, 8], [967, 980, 981, 983, 988])
    assert {name: sum(found) for name, found in places.items()} == {"a": 102_178, "r": 86_135}
    both, either = set(places["a"]) & set(places["r"]), set(places["a"]) | set(places["r"])
    assert (len(both), len(either)) == (86, 314)


def test_real_has_a_label_for_46837_images() -> None:
    lists = real_labels()
    assert (len(lists), sum(map(bool, lists))) == (50_000, 46_837)


def test_reading_them_does_not_import_timm() -> None:
    program = (
        "import sys, data.wnids as w; w.wnids('r'); print([n for n in ('timm', 'torch') if n in sys.modules])"
    )
    root = Path(data.wnids.__file__).parents[1]
    found = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=root, check=True
    )
    assert found.stdout.strip() == "[]"


@pytest.mark.parametrize(
    "change", [lambda names: names[:-1], lambda names: names[::-1], lambda names: ["n00000000", *names[1:]]]
)
def test_a_changed_list_is_refused(change, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    for name in ("imagenet", "a"):
        found = list(wnids(name))
        (tmp_path / f"imagenet{'' if name == 'imagenet' else '_a'}_synsets.txt").write_text(
            "\n".join(change(found) if name == "a" else found)
        )
    monkeypatch.setattr(data.wnids, "_info", lambda: tmp_path)
    wnids.cache_clear()
    try:
        with pytest.raises(ValueError, match="is not the list of a's classes; install timm again"):
            wnids("a")
    finally:
        wnids.cache_clear()


def test_an_unknown_list_is_one_line() -> None:
    with pytest.raises(ValueError, match="class list 'b' is unknown; known are imagenet, a, r"):
        wnids("b")
    assert set(INDEX_SUMS) == {"imagenet", "a", "r"}

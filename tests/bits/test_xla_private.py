"""Every private name of torch_xla that the code uses is asked for before a run, with a clear message."""

import importlib.util
import re
from pathlib import Path
from types import SimpleNamespace

import pytest

BITS = Path(__file__).parents[2] / "bits"
pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("torch_xla") is None, reason="torch_xla is not installed"
)


def test_the_list_is_that_of_the_code() -> None:
    from bits.xla_private import NAMES, REPEAT_NAMES

    sources = [path.read_text() for path in BITS.glob("xla*.py")]
    used = {name for source in sources for name in re.findall(r"_XLAC\.(_\w+)", source)}
    assert used == {*NAMES, *REPEAT_NAMES}


def test_a_torch_xla_without_one_is_refused() -> None:
    from bits.xla_private import NAMES, check_private

    check_private()
    with pytest.raises(ValueError, match=f"has no {NAMES[2]}, which a run needs") as caught:
        check_private(SimpleNamespace(**dict.fromkeys(NAMES[:2] + NAMES[3:])))
    assert "\n" not in str(caught.value)


def test_without_a_cached_graph_steps_are_traced_each_time() -> None:
    from bits.xla_private import REPEAT_NAMES, can_repeat

    assert can_repeat()
    for name in REPEAT_NAMES:
        assert not can_repeat(SimpleNamespace(**dict.fromkeys(set(REPEAT_NAMES) - {name})))

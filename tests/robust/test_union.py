"""The union of attacks: a break is a break whoever found it."""

import pytest

from robust.union import best_known


def test_an_image_is_robust_if_no_attack_broke_it() -> None:
    found = best_known(
        {
            "standard": {"a": True, "b": False, "c": True, "d": False},
            "next": {"a": True, "b": True, "c": False, "d": False},
        }
    )
    assert (found.num_images, found.num_robust, found.left_out) == (4, 1, 0)
    assert found.alone == {"standard": 1, "next": 1}
    assert found.accuracy == 0.25


def test_only_images_that_all_have_judged_count() -> None:
    found = best_known({"weak": {"a": True, "b": True, "c": True}, "strong": {"a": False}})
    assert (found.num_images, found.num_robust, found.left_out) == (1, 0, 2)


def test_one_attack_is_its_own_union() -> None:
    assert best_known({"pgd": {"a": True, "b": False}}).accuracy == 0.5


def test_nothing_in_common_is_one_line() -> None:
    with pytest.raises(ValueError, match="no image in common"):
        best_known({"one": {"a": True}, "other": {"b": True}})
    with pytest.raises(ValueError, match="at least one"):
        best_known({})

"""Protocols: what each paper's scripts do to each set, and what they refuse."""

import pytest

from data.suite import NotForThis, Suite, load_suite, own_suite
from data.transform import EvalTransform
from engine.protocols import DEFAULT, Way, list_protocols, load_protocol, way_of
from engine.tally import contract_id

BILINEAR = Way(resize="crop", crop_pct=0.875, interpolation="bilinear")
BICUBIC = Way(resize="crop", crop_pct=0.875, interpolation="bicubic")
AS_IT_IS = Way(resize="none")


def way(protocol: str, suite: str, size: int = 224) -> Way:
    return way_of(protocol, load_suite(suite), image_size=size)


@pytest.mark.parametrize(
    ("protocol", "suite", "expected"),
    [
        *[("bai2021", suite, BILINEAR) for suite in ("clean", "imagenet", "a", "stylized")],
        *[
            ("wang2023", suite, BICUBIC)
            for suite in ("clean", "imagenet", "real", "v2-top-images", "a", "r", "sketch")
        ],
        *[("wang2023", suite, AS_IT_IS) for suite in ("stylized", "c", "c-extra")],
        *[("bai2021", suite, AS_IT_IS) for suite in ("c", "c-extra")],
        ("xu2022", "clean", BICUBIC),
        *[(DEFAULT, suite, AS_IT_IS) for suite in ("c", "c-bar", "3dcc", "stylized")],
        *[(DEFAULT, suite, Way()) for suite in ("clean", "imagenet", "a", "c-on-the-fly")],
        (DEFAULT, "laion-c", Way(resize="squash", interpolation="bilinear")),
    ],
)
def test_images_reach_the_model_as_the_paper_has_it(protocol: str, suite: str, expected: Way) -> None:
    assert way(protocol, suite) == expected


@pytest.mark.parametrize("protocol", list_protocols()[1:])
def test_every_protocol_names_known_suites(protocol: str) -> None:
    found = load_protocol(protocol)
    assert found.id == protocol
    assert {load_suite(name).id for name in found.suites} == set(found.suites)
    assert "clean" in found.suites


def test_what_a_protocol_does_not_say_is_refused() -> None:
    with pytest.raises(NotForThis, match="protocol bai2021 has no r; it has clean, imagenet, a, stylized, c"):
        way("bai2021", "r")
    with pytest.raises(NotForThis, match="protocol xu2022 has no mine"):
        way_of("xu2022", own_suite("mine"), image_size=224)
    with pytest.raises(
        NotForThis, match="protocol wang2023 is for 224 px, and the model sees 256 px; give --image-size"
    ):
        way("wang2023", "clean", 256)
    with pytest.raises(ValueError, match=r"protocol 'bai21' is unknown; did you mean bai2021\?"):
        way("bai21", "clean")


@pytest.mark.parametrize("suite", ["c", "c-extra", "c-bar", "3dcc", "stylized"])
def test_files_that_are_never_resized_refuse_another_size(suite: str) -> None:
    with pytest.raises(NotForThis, match="files of 224 px that are never resized, and the model sees 256 px"):
        way(DEFAULT, suite, 256)
    assert way(DEFAULT, suite).resize == "none"


def test_contracts_tell_protocols_and_class_rules_apart() -> None:
    transform = EvalTransform(mode="center", interpolation="bilinear")
    ids = [
        contract_id(transform, 224),
        contract_id(transform, 224, protocol="bai2021"),
        contract_id(transform, 224, words=("masked200", "")),
        contract_id(transform, 224, words=("full1000",)),
        contract_id(EvalTransform(mode="none"), 224),
    ]
    assert ids == [
        "default/center0.875-bilinear-224px",
        "bai2021/center0.875-bilinear-224px",
        "default/center0.875-bilinear-224px-masked200",
        "default/center0.875-bilinear-224px-full1000",
        "default/none-224px",
    ]


def test_an_own_suite_follows_the_recipe() -> None:
    suite: Suite = own_suite("mine")
    assert way_of(DEFAULT, suite, image_size=32) == Way()

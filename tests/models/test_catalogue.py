"""The table of models against models that are really built."""

import csv
import importlib.metadata
import logging
import sys
import warnings
from functools import cache
from pathlib import Path

import pytest
import timm
import torch
from torch import nn

from models import catalogue
from models.catalogue import PATH, Row, count_macs, describe, make_table
from models.registry import list_models


@cache
def rows() -> dict[str, dict[str, str]]:
    _, *lines = PATH.read_text(encoding="utf-8").splitlines()
    return {row["name"]: row for row in csv.DictReader(lines)}


def as_text(row: Row) -> dict[str, str]:
    return {name: "" if value is None else str(value) for name, value in row._asdict().items()}


@pytest.mark.parametrize(
    "name",
    [
        "small_cnn",
        "small_vit",
        "resnet18",
        "poolformer_s12",
        "vit_base_patch16_siglip_224",
        "robust_resnet_dw_small",
        "robust_resnet_down_inverted_dw_base",
    ],
)
def test_a_row_is_what_the_model_is(name: str) -> None:
    assert rows()[name] == as_text(describe(name))


@pytest.mark.parametrize("name", ["small_cnn", "deit_tiny_patch16_224", "mobilenetv3_small_050"])
def test_parameters_are_those_of_a_model_with_memory(name: str) -> None:
    model = timm.create_model(name)
    assert int(rows()[name]["parameters"]) == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("name", "macs"),
    # 12 blocks of 12 n d^2 + 2 n^2 d with n = 197 tokens of width d = 384, patches, and the head.
    [("deit_small_patch16_224", 12 * (12 * 197 * 384**2 + 2 * 197**2 * 384) + 196 * 768 * 384 + 384_000)],
)
def test_macs_by_hand(name: str, macs: int) -> None:
    assert int(rows()[name]["macs"]) == macs


def test_small_models_cost_what_their_file_says() -> None:
    """5.5 and 22 MMACs at 32 px; with 1,000 classes in place of 10 they have 990 (width + 1) more parameters."""
    cnn, vit = rows()["small_cnn"], rows()["small_vit"]
    assert (cnn["source"], cnn["input_size"], vit["source"], vit["input_size"]) == (
        "toolkit",
        "32",
        "toolkit",
        "32",
    )
    assert 5.5e6 <= int(cnn["macs"]) < 5.6e6
    assert 22e6 <= int(vit["macs"]) < 22.5e6
    assert round((int(cnn["parameters"]) - 990 * 97) / 1e6, 2) == 0.16
    assert round((int(vit["parameters"]) - 990 * 97) / 1e6, 2) == 0.31


def test_every_registered_model_is_in_the_table() -> None:
    version = importlib.metadata.version("timm")
    head = PATH.read_text(encoding="utf-8").splitlines()[0]
    if head != f"# timm {version}; written by `python -m models.catalogue`":
        pytest.skip(f"the table is of another timm: {head}")
    missing = set(list_models()) - set(rows())
    assert not missing, f"run `python -m models.catalogue`: {sorted(missing)[:5]}"


def test_the_table_as_it_is_written() -> None:
    head, columns, line = make_table(["small_cnn"]).splitlines()
    assert head.startswith("# timm 1.")
    assert columns == ",".join(Row._fields)
    assert line == ",".join(rows()["small_cnn"].values())


def test_own_models_can_be_written_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    head, columns, *lines = PATH.read_text(encoding="utf-8").splitlines()
    others = [line for line in lines if line.startswith("resnet18,")]
    table = tmp_path / "catalogue.csv"
    kept = others[0].replace(
        "resnet18,resnet,timm,11689512", "resnet18,resnet,timm,7"
    )  # would be counted anew
    table.write_text(
        "\n".join([head, columns, kept, "small_cnn,small,toolkit,7,7,7,7,,", ""]), encoding="utf-8"
    )
    monkeypatch.setattr(catalogue, "PATH", table)
    monkeypatch.setattr(catalogue, "list_models", lambda: ["resnet18", "small_cnn", "small_vit"])
    monkeypatch.setattr(sys, "argv", ["catalogue", "--own"])
    level = logging.root.manager.disable
    with warnings.catch_warnings():
        catalogue.main()
    logging.disable(level)
    own = [",".join(rows()[name].values()) for name in ("small_cnn", "small_vit")]
    assert table.read_text(encoding="utf-8").splitlines() == [head, columns, kept, *own]
    table.write_text(f"# timm 0.1\n{columns}\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"begins with '# timm 0.1'.*without --own"):
        catalogue.main()


def test_robust_resnets_name_their_paper() -> None:
    found = [row for name, row in rows().items() if name.startswith("robust_resnet_")]
    assert len(found) == 8
    assert {(row["source"], row["input_size"], row["paper"]) for row in found} == {
        ("toolkit", "224", "arXiv:2206.03452")
    }


def test_most_models_are_counted() -> None:
    found = rows().values()
    assert sum(not row["parameters"] for row in found) == 0
    assert sum(not row["macs"] for row in found) < 0.05 * len(found)
    assert all(row["paper"] == "" or row["paper"].startswith("arXiv:") for row in found)


def test_macs_of_known_layers() -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16, 5))
    assert count_macs(model, (3, 4, 4)) == 16 * 3 * 9 * 8 + 128 * 5


def test_a_model_that_reads_values_is_not_counted() -> None:
    class Reads(nn.Module):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return image * float(image.sum())

    assert count_macs(Reads(), (3, 4, 4)) is None

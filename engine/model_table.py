"""Reads models/catalogue.csv, the facts about every model, without importing models, torch or timm (seconds)."""

import csv
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

PATH = Path(__file__).parents[1] / "models" / "catalogue.csv"
# What is shown without a pattern, beside the toolkit's own: models that papers on robustness compare.
CURATED = (
    *("resnet18", "resnet34", "resnet50", "resnet101", "wide_resnet50_2", "resnext50_32x4d"),
    *("deit_tiny_patch16_224", "deit_small_patch16_224", "deit_base_patch16_224"),
    *("deit_small_distilled_patch16_224", "deit3_small_patch16_224"),
    *("vit_tiny_patch16_224", "vit_small_patch16_224", "vit_base_patch16_224", "vit_large_patch16_224"),
    *("convnext_tiny", "convnext_small", "convnext_base", "convnextv2_tiny"),
    *("swin_tiny_patch4_window7_224", "swin_small_patch4_window7_224", "swin_base_patch4_window7_224"),
    *("poolformer_s12", "poolformer_s36"),
    *("densenet121", "efficientnet_b0", "mobilenetv3_large_100", "vgg16"),
)


class ModelFacts(NamedTuple):
    """A row of the table; None where the model could not be counted. See models/catalogue.py for how it counts."""

    name: str
    family: str
    source: str
    parameters: int | None
    macs: int | None
    input_size: int
    num_classes: int
    paper: str
    license: str

    @property
    def is_curated(self) -> bool:
        return self.source == "toolkit" or self.name in CURATED


class ModelTable(NamedTuple):
    """All rows by name, and the version of timm they describe."""

    timm: str
    rows: tuple[ModelFacts, ...]


def read_table(path: Path = PATH) -> ModelTable:
    """The table beside the code. ValueError in one line when it is missing or not ours."""
    remedy = "restore it from the repository, or write it with `python -m models.catalogue`"
    try:
        comment, *lines = path.read_text(encoding="utf-8").splitlines()
        rows = tuple(_parse(row) for row in csv.DictReader(lines))
        return ModelTable(timm=comment.split()[2].rstrip(";"), rows=rows)
    except FileNotFoundError:
        raise ValueError(f"{path} is missing; {remedy}") from None
    except (ValueError, KeyError, IndexError, TypeError):
        raise ValueError(f"{path} is not the table of models; {remedy}") from None


def _parse(row: dict[str, str]) -> ModelFacts:
    return ModelFacts(
        name=row["name"],
        family=row["family"],
        source=row["source"],
        parameters=int(row["parameters"]) if row["parameters"] else None,
        macs=int(row["macs"]) if row["macs"] else None,
        input_size=int(row["input_size"]),
        num_classes=int(row["num_classes"]),
        paper=row["paper"],
        license=row["license"],
    )


def other_timm(table: ModelTable) -> str | None:
    """One line when the installed timm is not the one that the table describes."""
    try:
        installed = metadata.version("timm")
    except metadata.PackageNotFoundError:
        return f"timm is not installed; the table describes timm {table.timm}"
    if installed == table.timm:
        return None
    return f"the table describes timm {table.timm}, installed is {installed}: some models may be missing or differ"

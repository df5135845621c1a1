"""Writes models/catalogue.csv, the table behind `list models`: `python -m models.catalogue` (about seven minutes).

With `--own` the lines of timm's models stay as they are and only the others are written anew (seconds).

Every model of the toolkit and of the installed timm is built once on the meta device, where tensors have shapes
and no memory. The table exists because importing torch and timm takes longer than a list may take.

Parameters are counted with 1,000 classes, or with as many as the model's published default has. MACs are those of
one forward pass of one image of the default size: multiply-adds of convolutions and matrix products, attention's
too, as torch's FlopCounterMode counts them, halved; empty where a model does not run on meta tensors. The paper is
the architecture's: named below for the families that robustness papers use, else by the model's default
configuration, else the first one in the documentation of timm's family.
"""

import argparse
import csv
import importlib.metadata
import inspect
import io
import logging
import re
import sys
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import timm
import torch
from timm.layers import set_fused_attn
from timm.models import get_pretrained_cfg, list_models, model_entrypoint
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import models as models  # registers the toolkit's own

PATH = Path(__file__).with_name("catalogue.csv")
HEAD = f"# timm {importlib.metadata.version('timm')}; written by `python -m models.catalogue`"
PAPERS = (  # the first fitting prefix counts; the architecture's own paper, not that of its weights
    ("robust_resnet", "2206.03452"),
    ("wide_resnet", "1605.07146"),
    ("resnext", "1611.05431"),
    ("resnet", "1512.03385"),
    ("convnextv2", "2301.00808"),
    ("convnext", "2201.03545"),
    ("deit3", "2204.07118"),
    ("deit", "2012.12877"),
    ("vit_", "2010.11929"),
    ("swinv2", "2111.09883"),
    ("swin_", "2103.14030"),
    ("poolformer", "2111.11418"),
    ("efficientnet_b", "1905.11946"),
    ("densenet", "1608.06993"),
    ("vgg", "1409.1556"),
)


class Row(NamedTuple):
    """One model; the fields are the columns of the table."""

    name: str
    family: str  # the module it comes from
    source: str  # "toolkit" or "timm"
    parameters: int | None
    macs: int | None
    input_size: int  # pixels, the side of a square
    num_classes: int
    paper: str  # "arXiv:NNNN.NNNNN" or empty
    license: str  # of the default weights, or empty where there are none


def describe(name: str) -> Row:
    """Facts about one registered model; counts are None where it cannot be built or run on the meta device."""
    entry = model_entrypoint(name)
    config = get_pretrained_cfg(name, allow_unregistered=True)
    own = entry.__module__.startswith("models.")
    size = config.input_size if config is not None else (3, 224, 224)
    model = _on_meta(name)
    return Row(
        name=name,
        family=entry.__module__.rpartition(".")[2],
        source="toolkit" if own else "timm",
        parameters=None if model is None else sum(p.numel() for p in model.parameters()),
        macs=None if model is None else count_macs(model, size),
        input_size=size[-1],
        num_classes=getattr(model, "num_classes", 1000),
        paper=_paper(name, config.paper_ids if config is not None else None, entry.__module__),
        license="" if own or config is None else config.license or "",
    )


def count_macs(model: nn.Module, size: tuple[int, ...]) -> int | None:
    """Multiply-adds of `model` (on the meta device) for one image (C,H,W); None where meta tensors do not do."""
    try:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model.eval()(torch.empty(1, *size, device="meta"))
    except Exception:  # whatever a model of 1,300 does with a tensor that holds no numbers
        return None
    return int(counter.get_total_flops()) // 2


def make_table(names: Iterable[str], known: Mapping[str, list[str]] | None = None) -> str:
    """The CSV text; its first line, a comment, says which timm it describes. Rows in `known` are taken over."""
    set_fused_attn(False)  # fused attention has no meta kernel that is counted on every version
    file = io.StringIO()
    file.write(f"{HEAD}\n")
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(Row._fields)
    for name in names:
        row = known.get(name) if known else None
        writer.writerow(row or ["" if value is None else value for value in describe(name)])
    return file.getvalue()


def read_rows(source: str) -> dict[str, list[str]]:
    """The present table's rows whose source is "timm" or "toolkit". ValueError if it is of another timm."""
    head, _, *lines = PATH.read_text(encoding="utf-8").splitlines()
    if head != HEAD:
        raise ValueError(f"{PATH} begins with {head!r}, not {HEAD!r}; write all of it, without --own")
    column = Row._fields.index("source")
    return {row[0]: row for row in csv.reader(lines) if row[column] == source}


def _on_meta(name: str) -> nn.Module | None:
    try:
        with torch.device("meta"):
            model: nn.Module = timm.create_model(name, pretrained=False)
            return model
    except Exception:  # as in count_macs
        return None


def _paper(name: str, paper_ids: object, module: str) -> str:
    for prefix, number in PAPERS:
        if name.removeprefix("tf_").startswith(prefix):
            return f"arXiv:{number}"
    if isinstance(paper_ids, str) and paper_ids:
        return paper_ids
    if isinstance(paper_ids, list | tuple) and paper_ids:
        return str(paper_ids[0])
    found = re.search(r"arxiv\.org/\w+/(\d+\.\d+)", inspect.getdoc(sys.modules[module]) or "")
    return f"arXiv:{found[1]}" if found else ""


def main() -> None:
    """Writes the table; a line to stderr every hundred models, because it takes minutes."""
    parser = argparse.ArgumentParser(description="Write models/catalogue.csv, the facts about every model.")
    parser.add_argument("--own", action="store_true", help="write only the toolkit's own models anew")
    known = read_rows("timm") if parser.parse_args().own else {}
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    names = list_models()

    def told() -> Iterable[str]:
        for number, name in enumerate(names):
            if number % 100 == 0:
                print(f"{number} of {len(names)} models", file=sys.stderr, flush=True)
            yield name

    PATH.write_text(make_table(told(), known), encoding="utf-8")


if __name__ == "__main__":
    main()

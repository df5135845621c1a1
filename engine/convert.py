"""`weights convert SRC DST.safetensors`: the weights in any file as safetensors, which holds tensors and no code."""

import argparse
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from bits.checkpoint import write_atomic
from engine.exported import toolkit_version
from engine.foreign import NAME, Stated, as_foreign, build_foreign
from engine.verdict import weights_hash
from engine.words import short_list
from models.load import place_weights
from models.trusted import rewrite_trusted
from models.weight_container import FORMAT_KEY, HeldObjectsError
from models.weight_export import safe_bytes
from models.weight_facts import describe_state, file_sha256
from models.weights import WeightFile, read_weights

NO_LICENSE = "unknown"


def convert(source: Path, target: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Writes `target` and says what was kept and dropped; `arguments` has weights, model and trust_pickle."""
    found = _read(source, use_ema=arguments.weights == "ema", trust=arguments.trust_pickle)
    if FORMAT_KEY in found.metadata:
        raise ValueError(f"{source} is an export of this toolkit, and safetensors; use it as it is")
    fit = None if arguments.model is None else _check_model(found.state, arguments.model, source)
    metadata = _describe(source, found, weights=arguments.weights, model=arguments.model)
    write_atomic(target, safe_bytes(found.state, metadata))
    facts = describe_state(found.state)
    print(f"{target}: kept {facts.num_tensors} tensors, {facts.num_parameters:,} parameters ({found.layout})")
    dropped = _dropped(found)
    if dropped:
        print(f"dropped: {short_list(dropped)}")
    if fit is not None:
        print(fit)
    if facts.num_nonfinite:
        print(f"note: {facts.num_nonfinite} values are not finite; no model takes these weights")
    return {"output": str(target), "kept": facts.num_tensors, "dropped": dropped, "fit": fit, **metadata}


def _read(source: Path, *, use_ema: bool, trust: bool) -> WeightFile:
    """By torch's restricted reader wherever it suffices; only what holds other objects may run, and with `trust`."""
    try:
        return read_weights(source, use_ema=use_ema, harmless=True)
    except HeldObjectsError:
        if not trust:
            raise
    with tempfile.TemporaryDirectory() as folder:
        rewritten = Path(folder) / "plain.pt"
        rewrite_trusted(source, rewritten)
        found = read_weights(rewritten, use_ema=use_ema)
    return replace(found, path=source, container=f"{found.container}, unpickled on trust")


def _describe(source: Path, found: WeightFile, *, weights: str, model: str | None) -> dict[str, str]:
    """The metadata of the new file. Where the weights come from decides their licence, and no file says it."""
    return {
        **({} if model is None else {NAME: model}),
        "source": source.name,
        "source_sha256": file_sha256(source),
        "source_layout": f"{found.container}, {found.layout}",
        "weights": weights,
        "weights_sha256": weights_hash(found.state),
        "license": found.metadata.get("license", NO_LICENSE),
        "toolkit_version": toolkit_version(),
    }


def _check_model(state: Mapping[str, Tensor], model: str, source: Path) -> str:
    """What was done to load `state` into its model. ValueError where it does not fit."""
    found = as_foreign(state, model, Stated(), source=str(source))
    report = place_weights(build_foreign(found), state, source=str(source))
    return f"fits {model} with {found.num_classes} classes" + "".join(f"; {note}" for note in report.notes)


def _dropped(found: WeightFile) -> list[str]:
    """What of the file is not in the state dict: names, with the number of tensors in them."""
    if found.state is found.content:
        return []
    counts = found.contents
    keys = [
        key for key, value in found.content.items() if value is not found.state and key not in found.state
    ]
    return [f"{key} ({counts[str(key)]} tensors)" if counts.get(str(key)) else str(key) for key in keys]

"""`weights convert`: what it keeps and drops, and that nothing in a file runs before the user says so."""

import argparse
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import torch
from torch import Tensor, nn

from engine.cli import Launch, main
from models.load import load_weights
from models.registry import create_model
from models.weight_facts import file_sha256
from models.weights import read_weights

CPU = Launch(backend="cpu")


def weights(seed: int = 0, *, num_classes: int = 5) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    half = (0.5, 0.5, 0.5)
    model = create_model("small_cnn", num_classes=num_classes, image_size=32, mean=half, std=half)
    return dict(model.backbone.state_dict())


@pytest.fixture
def convert(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> Callable[..., tuple[str, dict[str, Any]]]:
    """convert(*words) to success: stdout, and what --json wrote."""

    def call(*words: str | Path) -> tuple[str, dict[str, Any]]:
        result = tmp_path / "result.json"
        capfd.readouterr()
        code = main(["weights", "convert", *map(str, words), "--json", str(result)], CPU, program="p")
        out, err = capfd.readouterr()
        assert (code, err) == (0, "")
        return out, json.loads(result.read_text())

    return call


@pytest.fixture
def refused(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> Callable[..., None]:
    """One line, exit code 2, nothing written."""

    def call(*words: str | Path, says: str) -> None:
        before = sorted(tmp_path.rglob("*"))
        capfd.readouterr()
        assert main(["weights", *map(str, words)], CPU, program="launch_gpu.py") == 2
        out, err = capfd.readouterr()
        assert (out, len(err.splitlines())) == ("", 1), err
        assert re.search(says, err), err
        assert sorted(tmp_path.rglob("*")) == before

    return call


def published(state: dict[str, Tensor]) -> dict[str, Any]:
    """As Bai et al.'s training writes it."""
    settings = argparse.Namespace(
        lr=0.1, out=Path("x"), best=np.float64(1.5), inner=argparse.Namespace(a=[1])
    )
    return {"model": state, "optimizer": {"state": {0: torch.ones(3)}}, "epoch": 99, "args": settings}


def test_a_published_file_needs_no_trust(
    convert: Callable[..., tuple[str, dict[str, Any]]], tmp_path: Path
) -> None:
    source, target, state = tmp_path / "res18_align.pth", tmp_path / "a.safetensors", weights()
    torch.save(published(state), source)
    out, result = convert(source, target, "--model", "small_cnn")
    assert f"{target}: kept {len(state)} tensors, " in out
    assert "dropped: optimizer (1 tensors), epoch, args" in out
    assert "fits small_cnn with 5 classes" in out
    found = read_weights(target)
    assert all(torch.equal(found.state[name], state[name]) for name in state)
    with safetensors.safe_open(target, framework="pt") as file:
        metadata = file.metadata()
    said = {name: metadata[name] for name in ("model", "source", "source_sha256", "license", "weights")}
    assert said == {
        "model": "small_cnn",
        "source": "res18_align.pth",
        "source_sha256": file_sha256(source),
        "license": "unknown",
        "weights": "raw",
    }
    assert result["source_layout"] == "torch zip, {'model': ...}"
    assert str(tmp_path) not in json.dumps(metadata), "no path of this machine"
    before = target.read_bytes()
    convert(source, target, "--model", "small_cnn", "--force")
    assert target.read_bytes() == before, "equal input gives equal bytes"


def test_the_average_and_the_old_container(
    convert: Callable[..., tuple[str, dict[str, Any]]], tmp_path: Path
) -> None:
    raw, averaged = weights(0), weights(1)
    content = {"state_dict": raw, "state_dict_ema": averaged, "args": argparse.Namespace()}
    torch.save(content, tmp_path / "w.pth", _use_new_zipfile_serialization=False)
    out, result = convert(tmp_path / "w.pth", tmp_path / "a.safetensors", "--weights", "ema")
    assert result["weights"] == "ema"
    assert "dropped: state_dict (38 tensors), args" in out
    assert torch.equal(read_weights(tmp_path / "a.safetensors").state["head.weight"], averaged["head.weight"])


class Bomb:
    """Makes a folder when it is unpickled without restriction."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_code_runs_with_trust_only(
    convert: Callable[..., tuple[str, dict[str, Any]]],
    refused: Callable[..., None],
    tmp_path: Path,
    zipped: bool,
) -> None:
    source, target, trace = tmp_path / "w.pth", tmp_path / "a.safetensors", tmp_path / "it ran"
    content = {"model": weights(), "extra": Bomb(trace), "args": argparse.Namespace()}
    torch.save(content, source, _use_new_zipfile_serialization=zipped)
    refused(
        "convert", source, target, says=r"objects \(posix\.mkdir\).*--trust-pickle`, if you trust who made it"
    )
    refused("convert", source, target, "--model", "small_cnn", says="nothing was loaded")
    assert not trace.exists()
    out, result = convert(source, target, "--trust-pickle")
    assert trace.exists(), "the bomb works, so the test means something"
    assert "dropped: extra, args" in out
    assert "unpickled on trust" in result["source_layout"]


def test_a_whole_module_on_trust(
    convert: Callable[..., tuple[str, dict[str, Any]]], refused: Callable[..., None], tmp_path: Path
) -> None:
    source, target, layer = tmp_path / "w.pth", tmp_path / "a.safetensors", nn.Linear(2, 3)
    torch.save(layer, source)
    refused("convert", source, target, says=r"\(.*torch\.nn\.modules\.linear\.Linear.*\).*--trust-pickle")
    convert(source, target, "--trust-pickle")
    assert torch.equal(read_weights(target).state["weight"], layer.weight)


def test_trust_does_not_help_a_broken_file(refused: Callable[..., None], tmp_path: Path) -> None:
    """Only what is refused for its objects is unpickled."""
    page, target = tmp_path / "page.pth", tmp_path / "a.safetensors"
    page.write_text("<html>quota exceeded</html>")
    refused("convert", page, target, "--trust-pickle", says="is an HTML page, not weights")
    torch.save(published(weights()), tmp_path / "cut.pth")
    data = (tmp_path / "cut.pth").read_bytes()
    (tmp_path / "cut.pth").write_bytes(data[: len(data) // 2])
    refused("convert", tmp_path / "cut.pth", target, "--trust-pickle", says="is truncated or damaged")
    torch.save({"a": GoneClass()}, tmp_path / "gone.pth")
    refused(
        "convert",
        tmp_path / "gone.pth",
        target,
        "--trust-pickle",
        says="cannot be unpickled here .*No module named",
    )


class GoneClass:
    """Pickled under a module that the converting process does not have."""


GoneClass.__module__ = "tests_of_robust_bits_gone"


@pytest.fixture(autouse=True)
def _module_of_gone_class(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys
    import types

    module = types.ModuleType(GoneClass.__module__)
    module.GoneClass = GoneClass  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, GoneClass.__module__, module)


def test_refused(refused: Callable[..., None], tmp_path: Path) -> None:
    source, target = tmp_path / "w.pth", tmp_path / "a.safetensors"
    torch.save(weights(), source)
    refused("convert", source, says=r"convert takes SRC DST\.safetensors; 1 paths were given")
    refused(
        "convert",
        source,
        tmp_path / "a.pth",
        says=r"what is written is a \.safetensors file; name it a\.safet",
    )
    refused("convert", tmp_path / "no.pth", target, says="does not exist; check the path")
    refused("convert", source, target, "--model", "resnet18", says="is it the right --model")
    refused(
        "convert",
        source,
        target,
        "--model",
        "small_cnnn",
        says="unknown model 'small_cnnn'.*nearest: small_cnn",
    )
    refused("convert", source, target, "--weights", "ema", says="keeps no average of its weights")
    refused("info", source, "--trust-pickle", says="weights info does not use --trust-pickle")
    refused("export", source, target, "--model", "small_cnn", says="weights export does not use --model")
    target.touch()
    refused("convert", source, target, says="exists already; give another path, or --force")


def test_values_that_are_not_finite_are_named(
    convert: Callable[..., tuple[str, dict[str, Any]]], refused: Callable[..., None], tmp_path: Path
) -> None:
    state = weights()
    state["head.bias"][1] = float("inf")
    torch.save(state, tmp_path / "w.pth")
    out, _ = convert(tmp_path / "w.pth", tmp_path / "a.safetensors")
    assert "note: 1 values are not finite" in out
    refused(
        "convert", tmp_path / "w.pth", tmp_path / "b.safetensors", "--model", "small_cnn", says="not finite"
    )


def test_a_converted_file_loads(convert: Callable[..., tuple[str, dict[str, Any]]], tmp_path: Path) -> None:
    torch.save({"model": {f"module.{name}": t for name, t in weights().items()}}, tmp_path / "w.pth")
    convert(tmp_path / "w.pth", tmp_path / "a.safetensors")
    half = (0.5, 0.5, 0.5)
    model = create_model("small_cnn", num_classes=5, image_size=32, mean=half, std=half)
    report = load_weights(model, tmp_path / "a.safetensors")
    assert "prefix module. removed" in str(report)
    assert torch.equal(model.backbone.head.weight, weights()["head.weight"])

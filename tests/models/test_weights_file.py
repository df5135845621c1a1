"""Weight files of every kind: what is read, what is refused in one line, and that nothing in a file ever runs."""

import argparse
import collections
import contextlib
import gzip
import io
import os
import pickle
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from models.weight_container import FORMAT_KEY, WeightFileError
from models.weight_export import json_value, read_exported, to_safetensors
from models.weight_facts import describe_state, file_sha256
from models.weights import read_weights

STATE = {
    "conv.weight": torch.arange(12.0).reshape(3, 4),
    "norm.running_mean": torch.zeros(3),
    "norm.num_batches_tracked": torch.tensor(7),
    "head.weight": torch.ones(2, 3, dtype=torch.bfloat16),
}


def assert_same(found: Mapping[str, Tensor]) -> None:
    assert found.keys() == STATE.keys()
    assert all(torch.equal(found[name], STATE[name]) for name in STATE)


# ---- what is read


@pytest.mark.parametrize(
    ("content", "layout", "contents"),
    [
        (STATE, "state dict", {}),
        (collections.OrderedDict(STATE), "state dict", {}),
        ({"model": STATE, "epoch": 3}, "{'model': ...}", {"model": 4}),
        ({"state_dict": STATE, "arch": "resnet50"}, "{'state_dict': ...}", {"state_dict": 4}),
        (
            {"model": STATE, "optimizer": {"state": {0: STATE}}, "step": 9},
            "{'model': ...}",
            {"model": 4, "optimizer": 4},
        ),
        (
            {"model": STATE, "optimizer": {}, "step": 9, "epoch": 0, "consumed": 0, "ema": STATE},
            "checkpoint of this toolkit",
            {"model": 4, "ema": 4},
        ),
        ({**STATE, "arch": "resnet50"}, "state dict with other values", {**dict.fromkeys(STATE, 1)}),
    ],
)
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_torch_containers(
    tmp_path: Path, content: object, layout: str, contents: dict[str, int], zipped: bool
) -> None:
    path = tmp_path / "w.bin"  # by its bytes, whatever its name
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    found = read_weights(path)
    assert found.container == ("torch zip" if zipped else "torch legacy")
    assert (found.layout, dict(found.contents)) == (layout, contents)
    assert_same(found.state)


def test_safetensors(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    safetensors.torch.save_file(STATE, path, {"epoch": "3"})
    found = read_weights(path)
    assert (found.container, found.layout, dict(found.metadata)) == (
        "safetensors",
        "state dict",
        {"epoch": "3"},
    )
    assert_same(found.state)


def test_facts_of_a_state() -> None:
    state = STATE | {
        "mean": torch.zeros(1, 3, 1, 1),
        "bad": torch.tensor([1.0, float("nan"), float("inf"), 2.0]),
    }
    facts = describe_state(state)
    assert facts.num_tensors == 6
    assert facts.num_parameters == 12 + 6 + 4  # neither statistics nor the pixel model's mean
    assert facts.num_values == 12 + 3 + 1 + 6 + 3 + 4
    assert facts.dtypes == {"float32": 4, "int64": 1, "bfloat16": 1}
    assert facts.num_nonfinite == 2
    assert facts.first == ("conv.weight", "norm.running_mean", "norm.num_batches_tracked")
    assert facts.last == ("head.weight", "mean", "bad")
    assert describe_state({"a": torch.zeros(1)}).last == ()


def test_eight_bit_floats_are_counted() -> None:
    wide = torch.tensor([1.0, float("nan")])
    assert describe_state({"a": wide.to(torch.float8_e4m3fn)}).num_nonfinite == 1


# ---- what is refused


class Bomb:
    """Makes a file when it is unpickled the unrestricted way."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_code_in_a_pickle_does_not_run(tmp_path: Path, zipped: bool) -> None:
    path, trace = tmp_path / "w.pth", tmp_path / "it ran"
    torch.save({"model": STATE, "extra": Bomb(trace)}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(
        WeightFileError, match=r"holds Python objects \(\w+\.mkdir\).*; nothing was loaded; keep its"
    ):
        read_weights(path)
    assert not trace.exists()
    torch.load(path, weights_only=False)
    assert trace.exists(), "the bomb works, so the test means something"


def test_a_plain_pickle_does_not_run(tmp_path: Path) -> None:
    path, trace = tmp_path / "w.pkl", tmp_path / "it ran"
    path.write_bytes(pickle.dumps(Bomb(trace)))
    with pytest.raises(WeightFileError, match="is a plain pickle, which can run code when loaded"):
        read_weights(path)
    assert not trace.exists()


def script() -> bytes:
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated, its files are not gone
        torch.jit.save(torch.jit.script(nn.Linear(2, 2)), file)
    return file.getvalue()


def saved(content: object) -> bytes:
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


def npz() -> bytes:
    file = io.BytesIO()
    np.savez(file, a=np.zeros(3))
    return file.getvalue()


SAFE = safetensors.torch.save(STATE)
REFUSED = {
    "empty": (b"", r"is empty \(0 bytes\); fetch it again"),
    "html": (
        b"\n <!DOCTYPE html><html>Sign in</html>",
        "is an HTML page, not weights: a login or error page",
    ),
    "html without doctype": (b"<html><head>404</head>" * 50, "is an HTML page"),
    "lfs": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0",
        "is a Git LFS pointer.*git lfs pull",
    ),
    "gzip": (gzip.compress(SAFE), "is gzip-compressed; unpack it first"),
    "text": (b"hello, no weights in here at all", r"is not a weight file \(torch or safetensors\)"),
    "json": (b'{"message": "rate limit exceeded"}', "is not a weight file"),
    "short": (b"\x80", "is not a weight file"),
    "script": (script(), "is a TorchScript program, which holds code; save its state dict"),
    "npz": (npz(), "is a zip file that torch did not write"),
    "cut zip": (saved(STATE)[:-100], r"is truncated or damaged \(no whole zip file\); fetch it again"),
    "cut safetensors": (SAFE[:-5], r"is truncated or damaged \(.*\); fetch it again"),
    "cut header": (SAFE[:60], r"is truncated or damaged \(.*\); fetch it again"),
    "namespace": (saved({"args": argparse.Namespace(lr=1)}), r"holds Python objects \(argparse\.Namespace\)"),
    "whole module": (saved(nn.Linear(2, 2)), r"holds Python objects \(torch\.nn\.modules\.linear\.Linear\)"),
    "one tensor": (saved(torch.zeros(3)), "holds one tensor, not a mapping of names to tensors"),
    "a list": (saved([torch.zeros(3)]), "holds a list, not a mapping"),
    "nothing": (saved({}), r"holds no state dict \(found: nothing\)"),
    "numbers": (
        saved({"lr": 0.1, "epoch": 3}),
        r"holds no state dict \(found: 'lr', 'epoch'\); known are state_dict",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_refused_in_one_line(tmp_path: Path, kind: str) -> None:
    content, says = REFUSED[kind]
    path = tmp_path / "w.pth"
    path.write_bytes(content)
    with pytest.raises(WeightFileError, match=says) as caught:
        read_weights(path)
    assert str(caught.value).startswith(f"{path} ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_any_cut_and_any_altered_byte_ends_in_one_line_or_loads(tmp_path: Path, kind: str) -> None:
    whole, path = tmp_path / "whole.pth", tmp_path / "w.pth"
    torch.save(STATE, whole, _use_new_zipfile_serialization=kind == "zip")
    data = SAFE if kind == "safetensors" else whole.read_bytes()
    random = np.random.default_rng(0)
    for _ in range(40):
        spoilt = bytearray(data[: random.integers(1, len(data))] if random.random() < 0.5 else data)
        spoilt[random.integers(len(spoilt))] ^= 1 << random.integers(8)
        path.write_bytes(spoilt)
        with contextlib.suppress(WeightFileError):  # anything else fails the test
            read_weights(path)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(WeightFileError, match="is a folder; give a weight file"):
        read_weights(tmp_path)
    with pytest.raises(WeightFileError, match=r"nothing\.pth does not exist; check the path"):
        read_weights(tmp_path / "nothing.pth")


# ---- the toolkit's export


def test_export_and_back(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    path.write_bytes(to_safetensors(STATE, {"model": "small_cnn", "note": "größer"}))
    state, metadata = read_exported(path)
    assert_same(state)
    assert metadata == {"format": "pt", FORMAT_KEY: "1", "model": "small_cnn", "note": "größer"}
    with safetensors.safe_open(path, framework="pt") as file:  # the library reads it as its own
        assert set(file.keys()) == set(STATE)
    assert len(file_sha256(path)) == 64


def test_equal_exports_are_equal_bytes() -> None:
    metadata = {f"key{number}": str(number) for number in range(20)}
    backwards = dict(reversed(metadata.items()))
    assert len({to_safetensors(STATE, m) for m in [metadata, backwards] * 4}) == 1


def test_shared_memory_is_written_twice(tmp_path: Path) -> None:
    """Tied weights, and views into a larger tensor."""
    base = torch.arange(6.0)
    path = tmp_path / "w.safetensors"
    path.write_bytes(to_safetensors({"a": base, "b": base, "c": base.reshape(2, 3).T}, {}))
    state, _ = read_exported(path)
    assert torch.equal(state["a"], state["b"])
    assert torch.equal(state["c"], base.reshape(2, 3).T)


def test_only_exports_are_exports(tmp_path: Path) -> None:
    path = tmp_path / "w"
    torch.save(STATE, path)
    with pytest.raises(
        WeightFileError, match=r"was not written by `weights export` \(torch zip, state dict\)"
    ):
        read_exported(path)
    safetensors.torch.save_file(STATE, path)
    with pytest.raises(WeightFileError, match="does not say which model it belongs to"):
        read_exported(path)
    safetensors.torch.save_file(STATE, path, {FORMAT_KEY: "2"})
    with pytest.raises(
        WeightFileError, match="an export of format 2, this version reads 1; use a newer toolkit"
    ):
        read_exported(path)


def test_json_in_metadata() -> None:
    assert json_value({"a": "[1]"}, "a", Path("x")) == [1]
    for text in ("", "[1", "[" * 100_000):
        with pytest.raises(WeightFileError, match="x: its metadata has no usable 'a'; export it again"):
            json_value({"a": text}, "a", Path("x"))
    with pytest.raises(WeightFileError, match="no usable 'b'"):
        json_value({}, "b", Path("x"))

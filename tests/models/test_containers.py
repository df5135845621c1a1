"""A file in each form that weights are published in loads, and gives the logits of the model it was made of."""

import argparse
import copy
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

from models.ghost_weights import ghost_state, published_state
from models.load import load_weights
from models.pixel import PixelModel
from models.registry import create_model
from models.weight_container import HeldObjectsError
from models.weight_export import to_safetensors
from models.weights import read_weights

State = dict[str, Tensor]
MODELS = {"small_cnn": {"width": 8}, "resnet18": {}}


def build(name: str, *, seed: int) -> PixelModel:
    """With statistics that are not BatchNorm's initial ones."""
    torch.manual_seed(seed)
    model = create_model(
        name, num_classes=5, image_size=32, mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3), **MODELS[name]
    )
    for key, tensor in model.state_dict().items():
        if "running" in key or "norm" in key or "bn" in key:
            tensor.copy_(torch.rand(tensor.shape) * 0.5 + 0.5)
    return model.eval()


@pytest.fixture(scope="module", params=MODELS)
def trained(request: pytest.FixtureRequest) -> PixelModel:
    return build(request.param, seed=1)


def assert_alike(model: PixelModel, expected: PixelModel) -> None:
    image = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(model(image), expected(image))


def other(state: Mapping[str, Tensor]) -> State:
    """Weights of the same shapes that are not to be loaded."""
    return {name: torch.zeros_like(tensor) for name, tensor in state.items()}


def bai(state: State) -> dict[str, Any]:
    """As Bai et al.'s training writes it, without the args that only `weights convert` reads."""
    return {
        "model": state,
        "optimizer": {"state": {0: {"momentum_buffer": torch.ones(3)}}, "param_groups": [{"lr": 0.1}]},
        "lr_scheduler": {"warmup_t": 5},
        "epoch": 99,
        "model_ema": other(state),
        "scaler": {"scale": 65536.0},
    }


def timm_bits(state: State) -> dict[str, Any]:
    """As timm bits' train state, version 3."""
    return {
        "epoch": 299,
        "step_count": 1250,
        "step_count_global": 375000,
        "model": state,
        "model_ema": None,
        "train_cfg": {"num_epochs": 300, "log_interval": 50},
        "optimizer": {"state": {}, "param_groups": []},
        "version": 3,
        "arch": "robust_resnet_dw_small",
        "hparams": {"lr": 1e-3, "data_dir": "imagenet"},
        "metrics": {"top1": 79.4},
        "metric_name": "top1",
        "metric_decreasing": False,
    }


def toolkit(state: State, *, average: bool) -> dict[str, Any]:
    kept = {"model": other(state), "ema": state} if average else {"model": state, "ema": other(state)}
    return {**kept, "optimizer": {}, "step": 352, "epoch": 8, "consumed": 0, "environment": {}}


def prefixed(prefix: str) -> Callable[[State], State]:
    return lambda state: {f"{prefix}{name}": tensor for name, tensor in state.items()}


# what a file holds, of the state dict of timm's model
RAW: dict[str, Callable[[State], object]] = {
    "state dict": lambda state: state,
    "model": lambda state: {"model": state},
    "state_dict": lambda state: {"state_dict": state, "epoch": 3},
    "both, state_dict counts": lambda state: {"model": other(state), "state_dict": state},
    "bai": bai,
    "timm bits": timm_bits,
    "timm": lambda state: {"state_dict": state, "state_dict_ema": other(state), "arch": "x", "version": 2},
    "module.": prefixed("module."),
    "_orig_mod.": prefixed("_orig_mod."),
    "module._orig_mod.": prefixed("module._orig_mod."),
    "_orig_mod.module.": lambda state: {"model": prefixed("_orig_mod.module.")(state)},
    "compiled inside": lambda state: {name.replace(".", "._orig_mod.", 1): t for name, t in state.items()},
    "no counters": lambda state: {name: t for name, t in state.items() if "num_batches" not in name},
}
GHOSTS = {"r=2": (2, None), "r=4": (4, None), "FourBN, r=4": (4, 4), "EightBN, r=2": (2, 8)}


@pytest.mark.parametrize("form", RAW)
def test_containers_and_prefixes(tmp_path: Path, trained: PixelModel, form: str) -> None:
    path, model = tmp_path / "w.pth", build(trained.name, seed=2)
    torch.save(RAW[form](trained.backbone.state_dict()), path)
    report = load_weights(model, path)
    assert_alike(model, trained)
    counters = sum("num_batches" in name for name in trained.backbone.state_dict()) * (form == "no counters")
    assert report.num_loaded == len(trained.backbone.state_dict()) - counters
    assert (report.missing, report.unexpected, report.mismatched) == ((), (), ())
    assert "the file has no mean and std; the model's stay: (0.4, 0.5, 0.6)" in str(report)


@pytest.mark.parametrize("form", GHOSTS)
@pytest.mark.parametrize("container", [bai, prefixed("module.")], ids=["bai", "module."])
def test_published_ghost_norms_become_plain(
    tmp_path: Path, trained: PixelModel, form: str, container: Callable[[State], object]
) -> None:
    groups, copies = GHOSTS[form]
    state = published_state(ghost_state(trained.backbone.state_dict(), groups=groups, copies=copies))
    assert any("proxy_bn" in name for name in state)
    spoil_other_groups(state, trained.backbone.state_dict())
    path, model = tmp_path / "w.pth", build(trained.name, seed=2)
    torch.save(container(state), path)
    report = load_weights(model, path)
    assert_alike(model, trained)
    words = f"ghost norm of {groups} groups{f' in {copies} copies' if copies else ''} made plain BatchNorm (group 0"
    assert any(note.startswith(words) for note in report.notes), report


def spoil_other_groups(state: State, plain: Mapping[str, Tensor]) -> None:
    """So that only group 0 of copy 0 can give the right logits."""
    for name, tensor in state.items():
        if name.endswith(("proxy_bn.running_mean", "proxy_bn.running_var")):
            leaf = name.rpartition(".")[2]
            slot = name.partition(".proxy_bn")[0]
            channels = plain[f"{slot}.{leaf}"].numel() if f"{slot}.{leaf}" in plain else 0
            if channels:
                tensor[channels:] = 77.0
            elif not slot.endswith("bn0"):
                tensor.fill_(77.0)
            else:
                tensor[plain[f"{slot.rpartition('.')[0]}.{leaf}"].numel() :] = 77.0


def test_average_of_the_groups(tmp_path: Path) -> None:
    trained, model = build("small_cnn", seed=1), build("small_cnn", seed=2)
    state = published_state(ghost_state(trained.backbone.state_dict(), groups=2))
    mean = state["stem.norm.proxy_bn.running_mean"]
    mean[: mean.numel() // 2] += 2.0
    torch.save(state, tmp_path / "w.pth")
    report = load_weights(model, tmp_path / "w.pth", average_groups=True)
    expected = trained.backbone.stem.norm.running_mean + 1.0
    assert torch.allclose(model.backbone.stem.norm.running_mean, expected)
    assert "(average of the groups)" in str(report)


def test_plain_into_a_model_with_ghost_norms(tmp_path: Path) -> None:
    from models.convert import set_norm

    trained = build("small_cnn", seed=1)
    torch.save(trained.state_dict(), tmp_path / "w.pth")
    for settings in ({"groups": 2}, {"groups": 4, "copies": 4}):
        model = build("small_cnn", seed=2)
        set_norm(model.backbone, "ghost", **settings)
        report = load_weights(model, tmp_path / "w.pth")
        assert_alike(model.eval(), trained)
        assert "plain BatchNorm made ghost norm of" in str(report)
        torch.save(model.state_dict(), tmp_path / "ghost.pth")
        back = build("small_cnn", seed=3)
        load_weights(back, tmp_path / "ghost.pth")
        assert_alike(back, trained)


@pytest.mark.parametrize("key", ["state_dict_ema", "model_ema", "ema"])
def test_averages(tmp_path: Path, key: str) -> None:
    trained, model = build("small_cnn", seed=1), build("small_cnn", seed=2)
    state = trained.backbone.state_dict()
    torch.save({"state_dict": other(state), key: state}, tmp_path / "w.pth")
    report = load_weights(model, tmp_path / "w.pth", use_ema=True)
    assert_alike(model, trained)
    assert report.layout == f"{{'{key}': ...}}"


def test_state_dict_ema_comes_before_model_ema(tmp_path: Path) -> None:
    trained, model = build("small_cnn", seed=1), build("small_cnn", seed=2)
    state = trained.backbone.state_dict()
    torch.save(
        {"model": other(state), "model_ema": other(state), "state_dict_ema": state}, tmp_path / "w.pth"
    )
    load_weights(model, tmp_path / "w.pth", use_ema=True)
    assert_alike(model, trained)


@pytest.mark.parametrize("average", [False, True], ids=["raw", "ema"])
def test_checkpoints_of_the_toolkit_and_their_mean(tmp_path: Path, average: bool) -> None:
    trained, model = build("small_cnn", seed=1), build("small_cnn", seed=2)
    trained = copy.deepcopy(trained)
    trained.mean += 0.05
    torch.save(toolkit(trained.state_dict(), average=average), tmp_path / "step-00000352.pt")
    report = load_weights(model, tmp_path / "step-00000352.pt", use_ema=average)
    assert_alike(model, trained)
    assert report.notes == ()


@pytest.mark.parametrize("own", [True, False], ids=["export", "plain safetensors"])
def test_safetensors(tmp_path: Path, own: bool) -> None:
    trained, model = build("small_cnn", seed=1), build("small_cnn", seed=2)
    path = tmp_path / "w.safetensors"
    if own:
        path.write_bytes(to_safetensors(trained.state_dict(), {"model": "small_cnn"}))
    else:
        safetensors.torch.save_file(trained.backbone.state_dict(), path)
    load_weights(model, path)
    assert_alike(model, trained)


def test_a_bare_model_takes_a_toolkit_file(tmp_path: Path) -> None:
    trained, model = build("small_cnn", seed=1), build("small_cnn", seed=2)
    torch.save(trained.state_dict(), tmp_path / "w.pth")
    report = load_weights(model.backbone, tmp_path / "w.pth")
    assert_alike(model, trained)
    assert report.notes == ("mean and std of the file not used, the model has none",)


def test_settings_in_a_namespace_are_read_by_convert_alone(tmp_path: Path) -> None:
    """Bai et al.'s files have their command line inside."""
    trained = build("small_cnn", seed=1)
    settings = argparse.Namespace(
        lr=0.1, output_dir=Path("out"), betas=[0.9, 0.999], nested=argparse.Namespace(a=1)
    )
    path = tmp_path / "w.pth"
    torch.save({**bai(trained.backbone.state_dict()), "args": settings}, path)
    with pytest.raises(
        HeldObjectsError, match=r"keep its tensors with `weights convert w\.pth DST\.safetensors`$"
    ):
        load_weights(build("small_cnn", seed=2), path)
    found = read_weights(path, harmless=True)
    assert found.content["args"].lr == 0.1
    assert found.state.keys() == trained.backbone.state_dict().keys()

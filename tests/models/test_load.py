"""load_weights refuses what does not fit in one line, changes nothing then, and reports what it changed else."""

import os
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import timm
import torch
from torch import Tensor, nn

from models import hub
from models.load import count_classes, load_weights, place_weights
from models.pixel import PixelModel
from models.registry import create_model
from models.weight_container import WeightFileError

State = dict[str, Tensor]


def build(name: str = "small_cnn", *, num_classes: int = 5, seed: int = 0, **settings: object) -> PixelModel:
    torch.manual_seed(seed)
    half = (0.5, 0.5, 0.5)
    args = {"width": 8, **settings} if name == "small_cnn" else settings
    return create_model(name, num_classes=num_classes, image_size=32, mean=half, std=half, **args)


def bare(model: PixelModel) -> State:
    return dict(model.backbone.state_dict())


def unchanged(model: nn.Module, before: Mapping[str, Tensor]) -> bool:
    return all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def with_nan(state: State) -> State:
    weight = state["stages.0.conv.conv.weight"].clone()
    weight[0, 0] = float("nan")
    return {**state, "stages.0.conv.conv.weight": weight}


MISFITS: dict[str, tuple[Callable[[], State], str]] = {
    "classes": (
        lambda: bare(build(num_classes=7)),
        r"has a head of 7 classes \(head\.weight\) and the model one of 5; build the model with num_classes 7, or",
    ),
    "another model": (
        lambda: bare(build("small_vit")),
        r"does not fit the model: \d+ missing \(stem\.conv\.weight, .* and \d+ more\), \d+ unexpected \(pos_embed",
    ),
    "another width": (
        lambda: bare(build(width=12)),
        r"of another shape \(stem\.conv\.weight 12x3x3x3 for 8x3x3x3, .* and \d+ more\); 3 of|of another shape",
    ),
    "missing": (
        lambda: {name: t for name, t in bare(build()).items() if name != "stem.norm.running_var"},
        r"1 missing \(stem\.norm\.running_var\); \d+ of \d+ tensors fit; is it the right model name",
    ),
    "unexpected": (
        lambda: {**bare(build()), "aux.weight": torch.ones(2)},
        r"1 unexpected \(aux\.weight\)",
    ),
    "no head": (
        lambda: {name: t for name, t in bare(build()).items() if "head" not in name},
        r"2 missing \(head\.weight, head\.bias\).*the file has no head: train a new one with reset_head",
    ),
    "not finite": (
        lambda: with_nan(bare(build())),
        r"holds 9 values that are not finite \(stages\.0\.conv\.conv\.weight\)",
    ),
    "quantised": (
        lambda: {name: t.to(torch.int8) if name == "head.weight" else t for name, t in bare(build()).items()},
        r"1 of another shape \(head\.weight int8 5x32 for 5x32\)",
    ),
    "twice": (
        lambda: {**bare(build()), "module.head.bias": torch.ones(5)},
        r"holds two tensors for head\.bias behind its prefixes",
    ),
    "half of a pixel model": (
        lambda: {"backbone.head.bias": torch.ones(5), "head.bias": torch.ones(5)},
        r"holds names with and without backbone\.",
    ),
    "no deviation": (
        lambda: {**build().state_dict(), "std": torch.zeros(1, 3, 1, 1)},
        "holds a mean and std that are not 3 numbers each, std above 0",
    ),
}


@pytest.mark.parametrize("case", MISFITS)
def test_refused_in_one_line_and_nothing_changed(tmp_path: Path, case: str) -> None:
    make, says = MISFITS[case]
    path, model = tmp_path / "w.pth", build(seed=1)
    torch.save(make(), path)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(WeightFileError, match=says) as caught:
        load_weights(model, path)
    assert str(caught.value).startswith(f"{path} ")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 450
    assert unchanged(model, before)


class Bomb:
    """Makes a folder when it is unpickled without restriction."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.path),)


def test_files_that_are_no_weights(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    path.write_text("<!DOCTYPE html><html>Google Drive: quota exceeded</html>")
    with pytest.raises(WeightFileError, match="is an HTML page, not weights"):
        load_weights(build(), path)
    torch.save(bare(build()), path)
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(WeightFileError, match="is truncated or damaged"):
        load_weights(build(), path)
    torch.save({"model": bare(build()), "args": Bomb(tmp_path / "it ran")}, path)
    with pytest.raises(WeightFileError, match=r"\(\w+\.mkdir\).*--trust-pickle`, if you trust who made it"):
        load_weights(build(), path)
    assert not (tmp_path / "it ran").exists()
    torch.save(bare(build()), path)
    with pytest.raises(WeightFileError, match="keeps no average of its weights"):
        load_weights(build(), path, use_ema=True)


def test_a_new_head(tmp_path: Path) -> None:
    trained, model = build(num_classes=7, seed=1), build(seed=2)
    head = model.backbone.head.weight.clone()
    torch.save(trained.state_dict(), tmp_path / "w.pth")
    report = load_weights(model, tmp_path / "w.pth", reset_head=True)
    assert torch.equal(model.backbone.head.weight, head)
    assert torch.equal(model.backbone.stem.conv.weight, trained.backbone.stem.conv.weight)
    assert report.missing == ("head.weight", "head.bias")
    assert "the head (head.weight, head.bias) keeps its initial values" in str(report)


def test_not_strict_loads_what_fits_and_names_the_rest() -> None:
    model, before = build(seed=1), build(seed=1)
    state = bare(build(num_classes=7, seed=2)) | {"aux": torch.ones(1)}
    del state["stem.norm.bias"]
    report = place_weights(model, state, source="w", strict=False)
    assert report.missing == ("stem.norm.bias",)
    assert report.unexpected == ("aux",)
    assert report.mismatched == ("head.weight", "head.bias")
    assert torch.equal(model.backbone.head.weight, before.backbone.head.weight)
    assert torch.equal(model.backbone.stem.conv.weight, state["stem.conv.weight"])
    assert "1 left at initial values: stem.norm.bias" in str(report)


def test_half_precision_becomes_float32() -> None:
    model, state = build(seed=1), bare(build(seed=2))
    place_weights(
        model, {name: t.half() if t.is_floating_point() else t for name, t in state.items()}, source="w"
    )
    assert model.backbone.stem.conv.weight.dtype == torch.float32
    assert torch.allclose(model.backbone.stem.conv.weight, state["stem.conv.weight"], atol=1e-3)


def test_missing_counters_start_at_zero() -> None:
    model = build(seed=1)
    model.backbone.stem.norm.num_batches_tracked += 9
    state = {name: t for name, t in bare(build()).items() if "num_batches" not in name}
    report = place_weights(model, state, source="w")
    assert int(model.backbone.stem.norm.num_batches_tracked) == 0
    assert "counters of BatchNorm start at 0" in str(report)


@pytest.mark.filterwarnings(
    "ignore:torch.searchsorted", "ignore:Using a non-tuple sequence"
)  # timm and scipy
def test_positions_are_resampled() -> None:
    settings = {"depth": 1, "embed_dim": 24, "num_heads": 3}
    large = timm.create_model("deit_tiny_patch16_224", img_size=64, **settings)
    small = timm.create_model("deit_tiny_patch16_224", img_size=32, **settings)
    report = place_weights(small, large.state_dict(), source="w")
    assert report.notes == ("pos_embed resampled from 4x4 to 2x2 patches",)
    assert small.pos_embed.shape == (1, 5, 24)
    assert torch.equal(small.pos_embed[:, :1], large.pos_embed[:, :1])
    back = place_weights(large, large.state_dict(), source="w")
    assert back.notes == ()
    deep = timm.create_model(
        "swin_tiny_patch4_window7_224", img_size=64, depths=(1,), num_heads=(3,), embed_dim=24
    )
    official = dict(deep.state_dict()) | {
        "layers.0.blocks.0.attn.relative_position_index": torch.zeros(49, 49)
    }
    report = place_weights(deep, official, source="w")
    assert report.notes == ("names and tables through timm's filter for this architecture",)


def test_another_patch_size_is_no_resampling() -> None:
    """timm's filter would resample the filters too, without a word."""
    settings = {"depth": 1, "embed_dim": 24, "num_heads": 3, "img_size": 32}
    coarse = timm.create_model("deit_tiny_patch16_224", patch_size=16, **settings)
    fine = timm.create_model("deit_tiny_patch16_224", patch_size=8, **settings)
    with pytest.raises(
        WeightFileError, match=r"1 of another shape \(patch_embed\.proj\.weight 24x3x16x16 for"
    ):
        place_weights(fine, coarse.state_dict(), source="w")


def test_two_heads() -> None:
    model = timm.create_model("deit_tiny_distilled_patch16_224", img_size=32, depth=1, num_classes=5)
    other = timm.create_model("deit_tiny_distilled_patch16_224", img_size=32, depth=1, num_classes=7)
    with pytest.raises(WeightFileError, match="has a head of 7 classes"):
        place_weights(model, other.state_dict(), source="w")
    report = place_weights(model, other.state_dict(), source="w", reset_head=True)
    assert set(report.missing) == {"head.weight", "head.bias", "head_dist.weight", "head_dist.bias"}


def test_classes_of_a_file() -> None:
    state = {f"module.{name}": t for name, t in bare(build(num_classes=7)).items()}
    assert count_classes(build(), state) == 7
    assert count_classes(build("small_vit"), {"a": torch.ones(1)}) is None


# ---- timm's names


def test_a_name_of_timms(monkeypatch: pytest.MonkeyPatch) -> None:
    """timm's own loader, with a state dict in place of the network."""
    trained = timm.create_model("resnet18", num_classes=5)
    make = timm.create_model

    def create(name: str, pretrained: bool = False, **settings: object) -> nn.Module:
        assert name == "resnet18.a1_in1k"
        assert pretrained
        made = make(name, num_classes=5)
        made.load_state_dict(trained.state_dict())
        return made

    monkeypatch.setattr(hub.timm, "create_model", create)
    found = hub.fetch("timm:resnet18.a1_in1k")
    assert (found.model, found.num_classes, found.defaults.image_size) == ("resnet18", 5, 224)
    monkeypatch.undo()
    model = build("resnet18")
    monkeypatch.setattr(hub.timm, "create_model", create)
    load_weights(model, "timm:resnet18.a1_in1k")
    assert torch.equal(model.backbone.fc.weight, trained.fc.weight)


def test_no_network_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def create(name: str, **settings: object) -> nn.Module:
        raise ConnectionError("Failed to resolve host\nMax retries")

    monkeypatch.setattr(hub.timm, "create_model", create)
    for name in ("timm:resnet18", "hf-hub:somebody/model"):
        with pytest.raises(
            WeightFileError, match=rf"{name} cannot be fetched \(ConnectionError: .*is there a network"
        ):
            load_weights(nn.Linear(1, 1), name)
    with pytest.raises(ValueError, match="unknown model 'resnet1800'"):
        hub.fetch("timm:resnet1800")


def test_unknown_tags_need_no_network() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(WeightFileError, match=r"timm:resnet18\.nonsense: Invalid pretrained tag"):
            hub.fetch("timm:resnet18.nonsense")
        with pytest.raises(ValueError, match="small_cnn"):
            hub.fetch("timm:small_cnn")

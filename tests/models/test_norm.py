"""norm_stats: its grammar, which modules it converts, and what the conversion keeps."""

import pytest
import timm
import torch
from timm.layers import BatchNormAct2d
from torch import Tensor, nn

from models.batchnorm import GlobalBatchNorm2d, GroupBatchNorm2d
from models.norm import NormStats, check_ghost, parse_norm_stats, set_norm_stats


def identity(x: Tensor) -> Tensor:
    return x


def test_grammar() -> None:
    assert parse_norm_stats("local") == NormStats(kind="local")
    assert parse_norm_stats("global") == NormStats(kind="global")
    assert parse_norm_stats("ghost:64") == NormStats(kind="ghost", group_size=64)


@pytest.mark.parametrize(
    "text", ["", "ghost", "ghost:", "ghost:0", "ghost:-4", "ghost:4.5", "ghots:4", "Local", "ghost:²"]
)
def test_bad_norm_stats(text: str) -> None:
    with pytest.raises(ValueError, match=r"unknown norm_stats .* use 'local', 'global' or 'ghost:K'"):
        parse_norm_stats(text)


@pytest.mark.parametrize(
    ("norm_stats", "batch", "num_devices"),
    [
        ("ghost:8", 32, 1),
        ("ghost:8", 8, 4),
        ("local", 7, 1),
        ("global", 7, 4),
        ("local", 8, 4),
        ("ghost:1", 3, 1),
    ],
)
def test_check_ghost_accepts(norm_stats: str, batch: int, num_devices: int) -> None:
    check_ghost(norm_stats, batch, num_devices=num_devices)


@pytest.mark.parametrize(
    ("norm_stats", "batch", "num_devices", "message"),
    [
        ("ghost:8", 30, 1, "30 images per process do not split into groups of 8; try a batch of 24 or 32"),
        ("ghost:64", 32, 1, "try a batch of 64"),
        ("local", 6, 4, "do not split into 4 devices; try a batch of 4 or 8"),
    ],
)
def test_check_ghost_refuses(norm_stats: str, batch: int, num_devices: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_ghost(norm_stats, batch, num_devices=num_devices)


def norm_types(module: nn.Module) -> set[type]:
    return {type(child) for child in module.modules() if isinstance(child, nn.BatchNorm2d)}


@pytest.mark.parametrize("norm_stats", ["local", "global"])
def test_plain_batchnorm_stays_where_it_is_right(norm_stats: str) -> None:
    model = timm.create_model("test_resnet")
    before = norm_types(model)
    assert set_norm_stats(model, norm_stats) is model
    assert norm_types(model) == before


def test_each_setting_gives_its_module() -> None:
    def converted(norm_stats: str, **settings: object) -> nn.Module:
        return set_norm_stats(nn.Sequential(nn.BatchNorm2d(4)), norm_stats, **settings)[0]  # type: ignore[arg-type]

    ghost = converted("ghost:4", num_devices=2)
    assert isinstance(ghost, GroupBatchNorm2d)
    assert ghost.group_size == 4
    local = converted("local", num_devices=2)
    assert isinstance(local, GroupBatchNorm2d)
    assert local.num_groups == 2
    assert type(converted("global", num_devices=2)) is nn.BatchNorm2d
    everywhere = converted("global", reduce=identity, world_size=3)
    assert isinstance(everywhere, GlobalBatchNorm2d)
    assert everywhere.world_size == 3
    assert type(converted("global", reduce=identity, world_size=1)) is nn.BatchNorm2d
    assert type(converted("local", reduce=identity, world_size=3)) is nn.BatchNorm2d


@pytest.mark.parametrize(
    "name", ["resnet18", "mobilenetv3_small_050"]
)  # BatchNorm2d, and timm's BatchNormAct2d
def test_conversion_is_a_drop_in(name: str) -> None:
    torch.manual_seed(0)
    plain, model = (timm.create_model(name, num_classes=4) for _ in range(2))
    parameters = [id(parameter) for parameter in model.parameters()]
    set_norm_stats(model, "ghost:2")
    assert norm_types(model) == {GroupBatchNorm2d}
    assert [
        id(parameter) for parameter in model.parameters()
    ] == parameters  # an optimizer built before still works
    assert list(model.state_dict()) == list(plain.state_dict())
    model.load_state_dict(plain.state_dict())
    image = torch.rand(4, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(model.eval()(image), plain.eval()(image))
    model.train()(image).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    plain.load_state_dict(model.state_dict())


def test_a_group_of_the_whole_batch_is_plain_batchnorm_through_a_network() -> None:
    torch.manual_seed(0)
    plain, model = (
        timm.create_model("mobilenetv3_small_050", num_classes=4, drop_rate=0.0) for _ in range(2)
    )
    model.load_state_dict(plain.state_dict())
    set_norm_stats(model, "ghost:8")
    image = torch.rand(8, 3, 64, 64)
    torch.testing.assert_close(model.train()(image), plain.train()(image), rtol=1e-3, atol=1e-4)
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], value, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("norm_stats", ["local", "global"])
def test_a_backend_without_torchs_batchnorm_gets_one_group(norm_stats: str) -> None:
    plain = nn.BatchNorm2d(4)
    model = set_norm_stats(nn.BatchNorm2d(4), norm_stats, native=False)
    assert isinstance(model, GroupBatchNorm2d)
    assert model.num_groups == 1
    image = torch.rand(3, 4, 2, 2)
    torch.testing.assert_close(model(image), plain(image))
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], value)


def test_mode_root_module_and_shared_modules() -> None:
    assert not set_norm_stats(nn.BatchNorm2d(3).eval(), "ghost:2").training
    norm = nn.BatchNorm2d(3)
    shared = set_norm_stats(nn.Sequential(norm, nn.Sequential(norm)), "ghost:2")
    assert shared[0] is shared[1][0]  # type: ignore[index]


def test_no_affine_and_no_running_statistics() -> None:
    bare = set_norm_stats(nn.BatchNorm2d(3, affine=False, track_running_stats=False), "ghost:2")
    assert not bare.state_dict()
    assert bare.train()(torch.rand(4, 3, 2, 2)).shape == (4, 3, 2, 2)


def test_models_without_batchnorm_are_untouched() -> None:
    model = timm.create_model("test_vit")
    modules = [id(module) for module in model.modules()]
    set_norm_stats(model, "ghost:64")
    assert [id(module) for module in model.modules()] == modules


class OddNorm(nn.BatchNorm2d):
    """Somebody's own subclass, whose forward we do not know."""


@pytest.mark.parametrize(
    ("norm", "name"),
    [(nn.BatchNorm1d(4), "BatchNorm1d"), (OddNorm(4), "OddNorm"), (nn.SyncBatchNorm(4), "SyncBatchNorm")],
)
def test_what_cannot_be_grouped_is_refused(norm: nn.Module, name: str) -> None:
    model = nn.Sequential(nn.Identity(), nn.Sequential(norm))
    with pytest.raises(ValueError, match=f"cannot convert {name} at 1.0"):
        set_norm_stats(model, "ghost:2")
    assert set_norm_stats(model, "local") is model


def test_second_conversion_is_refused() -> None:
    model = set_norm_stats(nn.Sequential(BatchNormAct2d(4)), "ghost:2")
    with pytest.raises(ValueError, match="not converted before"):
        set_norm_stats(model, "ghost:4")

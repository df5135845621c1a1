"""set_norm: to every kind of BatchNorm and back, in place, with the logits kept."""

import copy
from typing import Any

import pytest
import timm
import torch
from timm.layers import BatchNormAct2d
from torch import nn

from models.batchnorm import PrimitiveBatchNorm2d
from models.convert import set_norm
from models.norm import set_norm_stats
from models.split import SplitNorm2d

KINDS: list[dict[str, Any]] = [
    {"kind": "ghost", "groups": 4},
    {"kind": "ghost", "groups": 2, "copies": 4, "grouping": "modulo", "evaluation": "average"},
    {"kind": "split"},
    {"kind": "split", "shared_affine": True},
]


def network(name: str) -> nn.Module:
    torch.manual_seed(0)
    model: nn.Module = timm.create_model(name, num_classes=4)
    with torch.no_grad():
        for _ in range(3):
            model.train()(torch.rand(8, 3, 64, 64))
    return model.eval()


@pytest.mark.parametrize("settings", KINDS)
@pytest.mark.parametrize("name", ["resnet18", "mobilenetv3_small_050"])  # BatchNorm2d, and BatchNormAct2d
@torch.no_grad()
def test_there_and_back_keeps_logits_parameters_and_modules(settings: dict[str, Any], name: str) -> None:
    model = network(name)
    kinds = [type(module) for module in model.modules()]
    state = copy.deepcopy(model.state_dict())
    parameters = {id(parameter) for parameter in model.parameters()}
    image = torch.rand(3, 3, 64, 64)  # splits into no groups
    wanted = model(image)
    assert set_norm(model, **settings) is model
    assert not model.training
    torch.testing.assert_close(model(image), wanted)
    assert parameters <= {id(parameter) for parameter in model.parameters()}
    # after training, the plain model evaluates as the converted one did
    model.train()(torch.rand(8, 3, 64, 64))
    trained = model.eval()(image)
    assert not torch.allclose(trained, wanted)
    set_norm(model, "plain")
    assert [type(module) for module in model.modules()] == kinds
    torch.testing.assert_close(model(image), trained, rtol=1e-4, atol=1e-5)
    assert list(model.state_dict()) == list(state)
    assert parameters == {id(parameter) for parameter in model.parameters()}


@pytest.mark.parametrize("norm_stats", ["ghost:4", "groups:2x4", "local"])
def test_what_a_recipe_converted_comes_back_too(norm_stats: str) -> None:
    model = network("test_resnet")
    kinds, image = [type(module) for module in model.modules()], torch.rand(2, 3, 64, 64)
    wanted = model(image)
    set_norm_stats(model, norm_stats, native=False)
    assert any(isinstance(module, PrimitiveBatchNorm2d) for module in model.modules())
    torch.testing.assert_close(model(image), wanted)
    set_norm(model, "plain")
    assert [type(module) for module in model.modules()] == kinds
    torch.testing.assert_close(model(image), wanted)


def test_a_norm_itself_and_one_that_occurs_twice() -> None:
    assert isinstance(set_norm(nn.BatchNorm2d(4), "split"), SplitNorm2d)
    norm = nn.BatchNorm2d(4)
    model = set_norm(nn.Sequential(norm, nn.Sequential(norm)), "split")
    assert model[0] is model[1][0]  # type: ignore[index]
    bare = set_norm(nn.BatchNorm2d(4, affine=False), "ghost", groups=2)
    back = set_norm(bare, "plain")
    assert back.running_mean.shape == (4,)  # type: ignore[union-attr]
    act = set_norm(set_norm(BatchNormAct2d(4), "ghost", groups=2), "plain")
    assert isinstance(act.act, nn.ReLU)
    assert (
        not set_norm(set_norm(nn.BatchNorm2d(4, track_running_stats=False), "ghost", groups=2), "plain")
        .eval()
        .training
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "ghots"}, "unknown norm 'ghots'; use 'plain', 'ghost' or 'split'"),
        ({"kind": "ghost"}, "'ghost' needs groups"),
        ({"kind": "ghost", "groups": 2, "colour": 1}, "'ghost' has no setting 'colour'"),
        ({"kind": "plain", "groups": 2}, "'plain' has no setting 'groups'; it takes none"),
        ({"kind": "ghost", "groups": 0}, "1 or more"),
        ({"kind": "ghost", "groups": 2, "grouping": "random"}, "grouping 'random'"),
        ({"kind": "ghost", "groups": 2, "evaluation": "last"}, "evaluation 'last'"),
    ],
)
def test_mistakes_are_one_line(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        set_norm(nn.Sequential(nn.BatchNorm2d(4)), **arguments)
    assert "\n" not in str(caught.value)


def test_other_norms_are_refused_by_name_and_place() -> None:
    with pytest.raises(ValueError, match="cannot convert BatchNorm1d at 0"):
        set_norm(nn.Sequential(nn.BatchNorm1d(4)), "ghost", groups=2)
    with pytest.raises(ValueError, match="not converted before"):
        set_norm(set_norm(nn.Sequential(nn.BatchNorm2d(4)), "ghost", groups=2), "ghost", groups=4)

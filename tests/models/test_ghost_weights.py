"""State dicts of every form in which files hold ghost statistics: to plain BatchNorm, to our form, and back."""

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save
from torch import Tensor, nn

from models.convert import replace_norms, set_norm
from models.ghost import GhostBatchNorm2d
from models.ghost_weights import ghost_state, plain_batchnorm_state, published_state

SIZE = 64
NORM = {"weight", "bias", "running_mean", "running_var", "num_batches_tracked"}


class Proxy(nn.Module):
    """The published statistics, written out from what reads them: r*C of them in an inner BatchNorm2d."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.proxy_bn = nn.BatchNorm2d(groups * channels, affine=False)
        self.groups = groups

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        if self.training:  # image i is in group i mod r
            out: Tensor = self.proxy_bn(x.reshape(n // self.groups, self.groups * c, h, w))
            return out.reshape(n, c, h, w)
        mean, var = self.proxy_bn.running_mean, self.proxy_bn.running_var
        assert mean is not None
        assert var is not None
        return nn.functional.batch_norm(x, mean[:c], var[:c])


class PublishedGhost(Proxy):
    """X.weight, X.bias, X.proxy_bn.*"""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__(channels, groups)
        self.weight = nn.Parameter(torch.rand(channels) + 0.5)
        self.bias = nn.Parameter(torch.randn(channels))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.weight.view(1, -1, 1, 1) + self.bias.view(1, -1, 1, 1)


class PublishedCopies(nn.Module):
    """X.bn{i}.proxy_bn.*, X.aff.bnconv.*; copies in turn, evaluation by bn0."""

    def __init__(self, channels: int, groups: int, copies: int) -> None:
        super().__init__()
        for i in range(copies):
            self.add_module(f"bn{i}", Proxy(channels, groups))
        self.aff = nn.Module()
        self.aff.bnconv = nn.Conv2d(channels, channels, 1, groups=channels)
        self.copies = copies
        self.turn = 0

    def forward(self, x: Tensor) -> Tensor:
        proxy = getattr(self, f"bn{self.turn % self.copies if self.training else 0}")
        self.turn += self.training
        out: Tensor = self.aff.bnconv(proxy(x))  # type: ignore[operator]
        return out


Convert = Callable[[nn.Module], nn.Module]


def published_ghost(model: nn.Module) -> nn.Module:
    return replace_norms(model, (nn.BatchNorm2d,), lambda norm, _: PublishedGhost(norm.num_features, 2))  # type: ignore[arg-type]


def published_copies(model: nn.Module) -> nn.Module:
    return replace_norms(
        model,
        (nn.BatchNorm2d,),
        lambda norm, _: PublishedCopies(norm.num_features, 2, 4),  # type: ignore[arg-type]
    )


FORMS: dict[str, Convert] = {
    "plain": lambda model: model,
    "published ghost": published_ghost,
    "published copies": published_copies,
    "own ghost": lambda model: set_norm(model, "ghost", groups=2),
    "own copies": lambda model: set_norm(model, "ghost", groups=2, copies=4),
    "split": lambda model: set_norm(model, "split"),
    "split, shared": lambda model: set_norm(model, "split", shared_affine=True),
    "split of copies": lambda model: set_norm(set_norm(model, "split"), "ghost", groups=2, copies=4),
}


def resnet() -> nn.Module:
    model: nn.Module = timm.create_model(
        "resnet18", layers=(1, 1, 1, 1), channels=(8, 16, 16, 32), num_classes=4, zero_init_last=False
    )
    return model


def images(step: int) -> Tensor:
    return torch.rand(8, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(step))


def trained(convert: Convert, *, forwards: int = 5) -> nn.Module:
    """A network whose groups and copies have statistics of their own."""
    torch.manual_seed(0)
    model = convert(resnet()).train()
    with torch.no_grad():
        for step in range(forwards):
            model(images(step))
    return model.eval()


def assert_same(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    assert set(found) == set(wanted)
    for key, value in wanted.items():
        assert found[key].shape == value.shape, key
        torch.testing.assert_close(found[key], value, rtol=0, atol=0, msg=key)


@torch.no_grad()
def assert_equal_logits(model: nn.Module, other: nn.Module) -> None:
    torch.testing.assert_close(model.eval()(images(9)), other.eval()(images(9)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("prefix", ["", "module.backbone."])
def test_every_form_loads_into_plain_batchnorm_with_equal_logits(form: str, prefix: str) -> None:
    model = trained(FORMS[form])
    state = {prefix + key: value for key, value in model.state_dict().items()}
    before = {key: value.clone() for key, value in state.items()}
    found = plain_batchnorm_state(state)
    plain = resnet()
    plain.load_state_dict({key.removeprefix(prefix): value for key, value in found.items()}, strict=True)
    assert_equal_logits(plain, model)
    assert_same(state, before)
    save(found)  # views of one storage would be refused


def test_a_state_without_ghost_keys_is_left_as_it_is() -> None:
    state = timm.create_model("test_vit").state_dict() | resnet().state_dict()
    found = plain_batchnorm_state(state)
    assert list(found) == list(state)
    assert all(found[key] is state[key] for key in state)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("copies", [None, 4])
def test_every_form_loads_into_a_ghost_model_with_equal_logits(form: str, copies: int | None) -> None:
    model = trained(FORMS[form])
    ghost = set_norm(resnet(), "ghost", groups=2, copies=copies)
    ghost.load_state_dict(ghost_state(model.state_dict(), groups=2, copies=copies), strict=True)
    assert_equal_logits(ghost, model)


@pytest.mark.parametrize(("form", "copies"), [("published ghost", None), ("published copies", 4)])
def test_published_files_go_on_training_where_they_stopped(form: str, copies: int | None) -> None:
    """5 forwards are in the middle of an update of four: the next copy is number 1."""
    model = trained(FORMS[form])
    ghost = set_norm(resnet(), "ghost", groups=2, copies=copies, grouping="modulo")
    ghost.load_state_dict(ghost_state(model.state_dict(), groups=2, copies=copies))
    with torch.no_grad():
        for step in range(5, 8):
            torch.testing.assert_close(
                ghost.train()(images(step)), model.train()(images(step)), rtol=1e-4, atol=1e-4
            )
    found, wanted = published_state(ghost.state_dict()), model.state_dict()
    assert set(found) == set(wanted)
    for key in wanted:
        torch.testing.assert_close(found[key], wanted[key], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("own", "published", "copies"),
    [("own ghost", "published ghost", None), ("own copies", "published copies", 4)],
)
def test_to_the_published_names_and_back(own: str, published: str, copies: int | None) -> None:
    model, reader = trained(FORMS[own]), FORMS[published](resnet())
    state = published_state(model.state_dict())
    reader.load_state_dict(state, strict=True)
    assert_equal_logits(reader, model)
    assert_same(ghost_state(state, groups=2, copies=copies), model.state_dict())
    save(state)


def test_plain_to_ghost_and_back_is_the_identity() -> None:
    state = trained(FORMS["plain"]).state_dict()
    for copies in (None, 1, 3):
        ghost = ghost_state(state, groups=4, copies=copies)
        assert_same(plain_batchnorm_state(ghost), state)
        assert_same(plain_batchnorm_state(ghost, average=True), state)
        assert_same(plain_batchnorm_state(published_state(ghost)), state)
    assert ghost["bn1.num_batches_tracked"] % 3 == 0  # training begins with copy 0


def test_average_is_what_the_norm_evaluates_with() -> None:
    model = trained(lambda m: set_norm(m, "ghost", groups=2, copies=2, evaluation="average"))
    plain = resnet()
    plain.load_state_dict(plain_batchnorm_state(model.state_dict(), average=True))
    assert_equal_logits(plain, model)
    plain.load_state_dict(plain_batchnorm_state(model.state_dict()))
    with pytest.raises(AssertionError):  # the groups do differ
        assert_equal_logits(plain, model)


def test_another_number_of_groups_goes_through_plain() -> None:
    model = trained(FORMS["own copies"])
    state = ghost_state(model.state_dict(), groups=3)
    assert_same(plain_batchnorm_state(state), plain_batchnorm_state(model.state_dict()))


def test_a_lone_norm() -> None:
    for copies in (None, 2):
        norm = GhostBatchNorm2d(4, groups=3, copies=copies)
        norm.train()(torch.rand(6, 4, 2, 2))
        assert set(plain_batchnorm_state(norm.state_dict())) == NORM
        state = published_state(norm.state_dict())
        assert any(key.startswith(("proxy_bn", "bn0.proxy_bn")) for key in state)
        assert_same(ghost_state(state, groups=3, copies=copies), norm.state_dict())


def test_files_without_the_counter() -> None:
    state = trained(FORMS["published copies"]).state_dict()
    old = {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}
    assert set(plain_batchnorm_state(old)) == {
        key for key in plain_batchnorm_state(state) if not key.endswith("num_batches_tracked")
    }


def damaged(form: str, **changes: Any) -> dict[str, Tensor]:
    state = dict(trained(FORMS[form], forwards=1).state_dict())
    for key, value in changes.items():
        name = key.replace("__", ".")
        if value is None:
            del state[name]
        else:
            state[name] = value
    return state


@pytest.mark.parametrize(
    ("form", "changes", "message"),
    [
        ("published ghost", {"bn1__weight": None}, "ghost norm at bn1 lacks bn1.weight"),
        ("published copies", {"bn1__aff__bnconv__bias": None}, "lacks bn1.aff.bnconv.bias"),
        ("published copies", {"bn1__bn2__proxy_bn__running_var": None}, "lacks bn1.bn2.proxy_bn.running_var"),
        (
            "published copies",
            {"bn1__bn2__proxy_bn__running_mean": None},
            "lacks bn1.bn2.proxy_bn.running_mean",
        ),
        (
            "published ghost",
            {"bn1__proxy_bn__running_var": torch.zeros(5)},
            r"at bn1 has statistics of \[5, 128\] values for 64 channels",
        ),
        (
            "published copies",
            {"bn1__bn2__proxy_bn__running_mean": torch.zeros(5)},
            r"at bn1 has statistics of \[5, 128\] values",
        ),
    ],
)
def test_incomplete_and_misshapen_files(form: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        plain_batchnorm_state(damaged(form, **changes))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("groups", "copies"), [(0, None), (2, 0)])
def test_impossible_numbers(groups: int, copies: int | None) -> None:
    with pytest.raises(ValueError, match="must be 1 or more"):
        ghost_state({}, groups=groups, copies=copies)

"""Attacks on networks whose robust images a mixed-integer program knows: none is broken, all others are."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from benchmarks.attack_arm import ours
from benchmarks.attack_exact import SURE, LipschitzNet, ReluNet, Worst, fit, linear_worst, relu_worst
from robust.versions import Part, version_of

NUM_TRAIN, NUM = 600, 16
EPS = {"linf": 0.04, "l2": 0.3}
Digits = tuple[Tensor, Tensor]


@pytest.fixture(scope="module")
def scans() -> Digits:
    """Digits of 4x4 pixels in three channels."""
    data = load_digits()
    small = torch.tensor(data.images, dtype=torch.float32).view(-1, 1, 4, 2, 4, 2).mean(dim=(3, 5)) / 16.0
    return small.expand(-1, 3, -1, -1).contiguous(), torch.tensor(data.target, dtype=torch.int64)


@pytest.fixture(scope="module")
def held(scans: Digits) -> Digits:
    return scans[0][NUM_TRAIN : NUM_TRAIN + NUM], scans[1][NUM_TRAIN : NUM_TRAIN + NUM]


@pytest.fixture(scope="module")
def relu_net(scans: Digits) -> ReluNet:
    torch.manual_seed(0)
    net = ReluNet(num_inputs=48, num_hidden=10)
    fit(net, scans[0][:NUM_TRAIN], scans[1][:NUM_TRAIN], epochs=100)
    return net


@pytest.fixture(scope="module")
def relu_truth(relu_net: ReluNet, held: Digits) -> Worst:
    return relu_worst(relu_net, *held, eps=EPS["linf"])


def shortened(part: Part) -> Part:
    """Few steps, and the three likeliest classes."""
    component: Any = part.component
    fewer = {"queries": 60} if part.name == "square" else {"iterations": 20}
    return replace(part, component=replace(component, **fewer), targets=min(part.targets, 3))


def parts(norm: str) -> list[Part]:
    return [shortened(part) for part in version_of("standard", norm=norm, num_classes=10).parts]  # type: ignore[arg-type]


def test_the_network_sees_the_worst_image_as_the_program_says(
    relu_net: ReluNet, relu_truth: Worst, held: Digits
) -> None:
    (image, label), worst = held, relu_truth
    assert float((worst.image - image).abs().max()) <= EPS["linf"] + 1e-7
    logits = relu_net.double()(worst.image)
    relu_net.float()
    own = logits.gather(1, label[:, None])[:, 0]
    rival = logits.scatter(1, label[:, None], -torch.inf).amax(dim=1)
    torch.testing.assert_close(own - rival, worst.margin, rtol=0, atol=SURE)


def test_attacks_reach_the_truth_of_a_relu_network_and_never_pass_it(
    relu_net: ReluNet, relu_truth: Worst, held: Digits
) -> None:
    (image, label), worst = held, relu_truth
    sure = worst.margin.abs() > SURE
    assert 0.2 < worst.is_robust.double().mean() < 0.8, "both kinds of images"
    for part in parts("linf"):
        alone = ours(relu_net, image, label, eps=EPS["linf"], norm="linf", parts=[part], lanes=NUM)
        assert not (worst.is_robust & sure & ~alone.robust).any(), part.name
    found = ours(relu_net, image, label, eps=EPS["linf"], norm="linf", parts=parts("linf"), lanes=NUM)
    assert torch.equal(found.robust[sure], worst.is_robust[sure])


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_attacks_reach_the_truth_of_a_linear_model(scans: Digits, held: Digits, norm: str) -> None:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 10))
    fit(model, scans[0][:NUM_TRAIN], scans[1][:NUM_TRAIN], epochs=60)
    layer = model[1]
    assert isinstance(layer, nn.Linear)
    image, label = held
    worst = linear_worst(layer, image, label, eps=EPS[norm], norm=norm)
    assert worst.image.min() >= 0.0
    assert worst.image.max() <= 1.0
    sure = worst.margin.abs() > 1e-3 * EPS[norm]  # what 20 iterations of l2 may leave
    assert 0.1 < worst.is_robust.double().mean() < 0.9, "both kinds of images"
    found = ours(model, image, label, eps=EPS[norm], norm=norm, parts=parts(norm), lanes=NUM)
    assert torch.equal(found.robust[sure], worst.is_robust[sure])


def test_no_attack_breaks_what_a_lipschitz_constant_certifies(scans: Digits, held: Digits) -> None:
    torch.manual_seed(2)
    net = LipschitzNet(num_inputs=48)
    fit(net, scans[0][:NUM_TRAIN], scans[1][:NUM_TRAIN], epochs=60, scale=10.0)
    certified = net.frozen().radius(*held) > 0.2
    assert certified.any()
    found = ours(net, *held, eps=0.2, norm="l2", parts=parts("l2"), lanes=NUM)
    assert not (certified & ~found.robust).any()
    assert not found.robust.all(), "the attack does something"

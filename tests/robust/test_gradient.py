"""input_gradient: the image's gradient and nothing else, in any mode, eval BatchNorm as an affine map."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from timm.layers import BatchNormAct2d
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from robust.gradient import input_gradient


def conv_net() -> nn.Sequential:
    """Plain BatchNorm2d, timm's subclass and BatchNorm1d, all with statistics far from 0 and 1."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.SiLU(),
        nn.Conv2d(8, 6, 3, stride=2, bias=False),
        BatchNormAct2d(6, act_layer=nn.SiLU),
        nn.BatchNorm2d(6, affine=False),
        nn.Flatten(),
        nn.Linear(6 * 3 * 3, 5),
        nn.BatchNorm1d(5),
    )
    for module in net.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean.normal_(2.0, 1.0)
            module.running_var.uniform_(0.3, 3.0)
            if module.affine:
                nn.init.normal_(module.weight)
                nn.init.normal_(module.bias)
    return net


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(4, 3, 8, 8, generator=generator), torch.tensor([0, 1, 2, 4])


def loss_of(label: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda logits: F.cross_entropy(logits.float(), label, reduction="sum")


def native_gradient(net: nn.Module, image: Tensor, loss: Callable[[Tensor], Tensor]) -> Tensor:
    leaf = image.clone().requires_grad_(True)
    return torch.autograd.grad(loss(net(leaf)), leaf)[0]


class OpLog(TorchDispatchMode):
    """Counts what reaches the backend and keeps each convolution_backward's output mask."""

    def __init__(self) -> None:
        super().__init__()
        self.count: Counter[str] = Counter()
        self.masks: list[list[bool]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        self.count[name] += 1
        if name == "convolution_backward":
            self.masks.append(list(args[10]))
        return func(*args, **(kwargs or {}))


def test_eval_mode_gradient_equals_the_native_one() -> None:
    net, (image, label) = conv_net().eval(), batch()
    expected = native_gradient(net, image, loss_of(label))
    gradient = input_gradient(net, image, loss_of(label))
    assert gradient.shape == image.shape
    assert gradient.dtype == image.dtype
    torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=1e-5)
    assert expected.abs().max() > 1e-3


def test_train_mode_batchnorm_is_left_alone() -> None:
    image, label = batch()
    twins = conv_net().train(), conv_net().train()
    expected = native_gradient(twins[0], image, loss_of(label))
    assert torch.equal(input_gradient(twins[1], image, loss_of(label)), expected)
    for name, buffer in twins[1].named_buffers():  # running statistics moved, as train mode says, and alike
        assert torch.equal(buffer, dict(twins[0].named_buffers())[name])


def test_eval_mode_runs_no_batch_norm_op_and_changes_no_module() -> None:
    net, (image, label) = conv_net().eval(), batch()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    classes = [type(module) for module in net.modules()]
    with OpLog() as log:
        input_gradient(net, image, loss_of(label))
    assert not [name for name in log.count if "batch_norm" in name]
    assert classes == [type(module) for module in net.modules()]
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    with OpLog() as after:
        net(image)
    assert after.count["native_batch_norm"] + after.count["cudnn_batch_norm"] >= 1


@pytest.mark.parametrize("training", [False, True])
def test_one_forward_one_input_only_backward(training: bool) -> None:
    net, (image, label) = conv_net().train(training), batch()
    for parameter in net.parameters():
        parameter.grad = torch.full_like(parameter, 7.0)
    with OpLog() as log:
        input_gradient(net, image, loss_of(label))
    assert log.count["convolution"] == 2
    assert log.masks == [[True, False, False]] * 2
    assert log.count["mm"] == 1  # the linear layer's input gradient; its weight gradient would be a second
    assert all(torch.equal(parameter.grad, torch.full_like(parameter, 7.0)) for parameter in net.parameters())
    assert all(module.training is training for module in net.modules())


def test_result_has_no_graph_and_works_inside_no_grad() -> None:
    net, (image, label) = conv_net().eval(), batch()
    with torch.no_grad():
        gradient = input_gradient(net, image, loss_of(label))
        assert not torch.is_grad_enabled()
    assert not gradient.requires_grad
    assert not image.requires_grad


def test_bfloat16_autocast() -> None:
    net, (image, label) = conv_net().eval(), batch()
    seen: list[torch.dtype] = []
    net[1].register_forward_hook(lambda module, args, output: seen.append(output.dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        gradient = input_gradient(net, image, loss_of(label))
        expected = native_gradient(net, image, loss_of(label))
    assert seen == [torch.bfloat16, torch.bfloat16]  # ours and the native one: same dtype contract
    assert gradient.dtype == torch.float32
    similarity = F.cosine_similarity(gradient.flatten(), expected.flatten(), dim=0)
    assert similarity > 0.99


def test_direct_torch_batch_norm_is_covered() -> None:
    net, (image, label) = conv_net().eval(), batch()
    norm = net[1]

    def predict(x: Tensor) -> Tensor:
        x = net[0](x)
        x = torch.batch_norm(
            x, norm.weight, norm.bias, norm.running_mean, norm.running_var, False, 0.1, norm.eps, False
        )
        return net[2:](x)

    with OpLog() as log:
        gradient = input_gradient(predict, image, loss_of(label))
    assert not [name for name in log.count if "batch_norm" in name]
    torch.testing.assert_close(gradient, input_gradient(net, image, loss_of(label)), rtol=1e-6, atol=1e-6)


def test_a_weight_made_from_the_image_keeps_its_gradient() -> None:
    image, label = batch()

    def predict(x: Tensor) -> Tensor:
        weight = 1.0 + x.mean((0, 2, 3))
        normed = F.batch_norm(x, torch.full((3,), 0.4), torch.full((3,), 2.0), weight, weight, False)
        return normed.flatten(1)[:, :5]

    expected = native_gradient(predict, image, loss_of(label))  # type: ignore[arg-type]
    torch.testing.assert_close(input_gradient(predict, image, loss_of(label)), expected)


@pytest.mark.parametrize(
    "predict",
    [lambda x: x.detach().flatten(1)[:, :5], lambda x: torch.ones(4, 5, requires_grad=True)],
)
def test_no_differentiable_path_is_one_clear_line(predict: Callable[[Tensor], Tensor]) -> None:
    image, label = batch()
    with pytest.raises(ValueError, match="no gradient with respect to the image"):
        input_gradient(predict, image, loss_of(label))

"""Lean attention against timm's own: outputs and gradients, float32 and bf16; names of parameters; what is left."""

import copy
from collections.abc import Callable

import pytest
import timm
import torch
from torch import Tensor, nn

from models.attention import LeanAttention, attend, set_lean_attention

NAME = "vit_tiny_patch16_224"


def small(**changes: object) -> nn.Module:
    torch.manual_seed(0)
    model: nn.Module = timm.create_model(NAME, img_size=32, depth=2, num_classes=10, **changes)
    return model.eval()


def lean(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return attend(q * 0.25, k, v)


def exact(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """In float64, by the definition."""
    q, k, v = (t.double() for t in (q, k, v))
    return torch.softmax(q @ k.transpose(-1, -2) * 0.25, dim=-1) @ v


def usual(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """What autocast makes of torch's own: scores and shares in bf16, the softmax in float32."""
    return torch.softmax((0.25 * q @ k.transpose(-1, -2)).float(), dim=-1).to(v.dtype) @ v


def error(function: Callable[[Tensor, Tensor, Tensor], Tensor], dtype: torch.dtype) -> list[float]:
    """Relative errors of the result and of the gradients of q, k and v."""
    generator = torch.Generator().manual_seed(3)
    inputs = [torch.randn(3, 2, 17, 8, generator=generator).to(torch.bfloat16) for _ in range(4)]

    def run(f: Callable[[Tensor, Tensor, Tensor], Tensor], dtype: torch.dtype) -> list[Tensor]:
        *leaves, grad = (t.to(dtype).detach() for t in inputs)
        leaves = [leaf.clone().requires_grad_() for leaf in leaves]
        out = f(*leaves)
        out.backward(grad.to(out.dtype))
        return [out.detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None)]

    pairs = zip(run(function, dtype), run(exact, torch.float64), strict=True)
    return [float((one.double() - two).norm() / two.norm()) for one, two in pairs]


def test_it_is_attention() -> None:
    assert max(error(lean, torch.float32)) < 1e-6
    assert torch.autograd.gradcheck(
        attend,
        [torch.randn(1, 4, 2, 3, dtype=torch.float64, requires_grad=True) for _ in range(3)],
        atol=1e-4,
    )


def test_in_bf16_it_is_as_near_as_the_usual_way() -> None:
    for own, plain in zip(error(lean, torch.bfloat16), error(usual, torch.bfloat16), strict=True):
        assert own < 1.5 * plain + 1e-3


@pytest.mark.parametrize("changes", [{}, {"qk_norm": True}])
def test_a_model_computes_the_same(changes: dict[str, object]) -> None:
    plain = small(**changes)
    lean = copy.deepcopy(plain)
    assert set_lean_attention(lean) == 2
    assert list(lean.state_dict()) == list(plain.state_dict())
    image = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    found = []
    for model in (plain, lean):
        leaf = image.clone().requires_grad_()
        out = model(leaf)
        out.logsumexp(dim=1).sum().backward()
        assert leaf.grad is not None
        found.append([out.detach(), leaf.grad, *(p.grad for p in model.parameters() if p.grad is not None)])
    assert len(found[0]) == len(found[1])
    for one, two in zip(*found, strict=True):
        torch.testing.assert_close(two, one, rtol=1e-4, atol=1e-5)


def test_it_survives_a_copy_and_keeps_the_mode() -> None:
    model = small()
    model.train()
    set_lean_attention(model)
    again = copy.deepcopy(model)
    lean = [m for m in again.modules() if isinstance(m, LeanAttention)]
    assert len(lean) == 2
    assert all(module.training for module in lean)
    assert again.eval()(torch.rand(1, 3, 32, 32)).shape == (1, 10)


def test_what_it_cannot_do_stays() -> None:
    assert set_lean_attention(small(attn_drop_rate=0.1)) == 0
    assert set_lean_attention(timm.create_model("resnet18")) == 0
    model = small()
    set_lean_attention(model)
    with pytest.raises(AssertionError, match="no mask"):
        model.blocks[0].attn(torch.rand(1, 5, 192), attn_mask=torch.zeros(5, 5))  # type: ignore[union-attr,index]

"""Attention that keeps and moves less where no fused kernel is at hand: for XLA.

There torch's attention is two matrix products with a softmax between them, and in bf16 the softmax is kept twice for
the backward pass: in float32 for its own gradient, in bf16 for the product's. Here it is kept once, in the dtype of the
values, and the sum in its gradient comes from the result (delta = sum of gradient times output, as in FlashAttention,
Dao et al. 2022, arXiv:2205.14135, Algorithm 4) instead of another pass over the T x T matrix. In float32 nothing but
rounding differs. Matrix products and no einsum, because torch_xla gives einsum no precision.
"""

from collections.abc import Callable
from typing import Any

import torch
from timm.layers.attention import Attention
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

# N images, H heads, T tokens, D width of a head


class _Attend(torch.autograd.Function):
    """softmax(q k^T) v, all (N,H,T,D)."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        # Nothing between product and softmax: a factor there makes XLA keep float32 scores.
        share = torch.softmax(_wide(q @ k.transpose(-2, -1)), dim=-1).to(v.dtype)
        out = share @ v
        ctx.save_for_backward(q, k, v, share, out)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v, share, out = ctx.saved_tensors
        grad = grad.to(v.dtype)
        delta = (_wide(grad) * _wide(out)).sum(dim=-1, keepdim=True)
        grad_share = grad @ v.transpose(-2, -1)
        grad_scores = (_wide(share) * (_wide(grad_share) - delta)).to(v.dtype)
        grad_k = grad_scores.transpose(-2, -1) @ q
        return grad_scores @ k, grad_k, share.transpose(-2, -1) @ grad


def _wide(tensor: Tensor) -> Tensor:
    """In float32 at least."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T) v of q (scaled already), k, v (N,H,T,D), the softmax in float32 at least. No second derivative."""
    apply: Callable[..., Tensor] = _Attend.apply
    return apply(q, k, v)


class LeanAttention(nn.Module):
    """Takes the place of a timm Attention: its parameters under the same names."""

    def __init__(self, other: Attention) -> None:
        super().__init__()
        self.num_heads, self.head_dim, self.scale = other.num_heads, other.head_dim, other.scale
        self.qkv, self.q_norm, self.k_norm = other.qkv, other.q_norm, other.k_norm
        self.norm, self.proj, self.proj_drop = other.norm, other.proj, other.proj_drop

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """(N,T,C) to the same; it knows no mask."""
        assert attn_mask is None, "lean attention knows no mask"
        assert not is_causal, "lean attention knows no causal mask"
        shape = (*x.shape[:2], 3, self.num_heads, self.head_dim)
        q, k, v = self.qkv(x).reshape(shape).permute(2, 0, 3, 1, 4).unbind(0)
        q, k = self.q_norm(q).to(v.dtype), self.k_norm(k).to(v.dtype)
        out = attend(q * self.scale, k, v).transpose(1, 2).flatten(2)
        projected: Tensor = self.proj_drop(self.proj(self.norm(out)))
        return projected


def set_lean_attention(model: nn.Module) -> int:
    """Replaces timm's plain Attention under `model`, in place, parameters shared; how many there were.

    One with dropout of its shares or a gate stays, and so does every other kind (windows, relative positions).
    """
    found = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if type(child) is Attention and child.gate is None and child.attn_drop.p == 0.0
    ]
    for parent, name, child in found:
        lean = LeanAttention(child)
        lean.train(child.training)
        setattr(parent, name, lean)
    return len(found)

"""Attention that keeps and moves less where no fused kernel is at hand: for XLA.

There torch's attention is two matrix products with a softmax between them. In bf16 its backward pass keeps the softmax
twice (float32 for itself, bf16 for the product) and copies q, k and v into another order of axes. Here the softmax is
kept once, in the dtype of the values; the sum in its gradient comes from the result (delta = sum of gradient times
output, as in FlashAttention, Dao et al. 2022, arXiv:2205.14135, Algorithm 4) instead of another pass over the T x T
matrix; and the products take q, k and v as the linear layer leaves them. In float32 nothing but rounding differs.
"""

from collections.abc import Callable
from typing import Any

import torch
from timm.layers.attention import Attention
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

# N images, T tokens (S where keys are meant), H heads, D width of a head


class _Attend(torch.autograd.Function):
    """softmax(q k^T) v; `q` is scaled already. All (N,T,H,D)."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        scores = torch.einsum("nthd,nshd->nhts", q, k)
        share = torch.softmax(_wide(scores), dim=-1).to(v.dtype)
        out = torch.einsum("nhts,nshd->nthd", share, v)
        ctx.save_for_backward(q, k, v, share, out)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v, share, out = ctx.saved_tensors
        grad = grad.to(v.dtype)
        delta = (_wide(grad) * _wide(out)).sum(dim=-1).transpose(1, 2)[..., None]  # (N,H,T,1)
        grad_share = torch.einsum("nthd,nshd->nhts", grad, v)
        grad_scores = (_wide(share) * (_wide(grad_share) - delta)).to(v.dtype)
        return (
            torch.einsum("nhts,nshd->nthd", grad_scores, k),
            torch.einsum("nhts,nthd->nshd", grad_scores, q),
            torch.einsum("nhts,nthd->nshd", share, grad),
        )


def _wide(tensor: Tensor) -> Tensor:
    """In float32 at least."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T) v of q, k, v (N,T,H,D), `q` scaled; the softmax in float32. No second derivative."""
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
        q, k, v = self.qkv(x).reshape(shape).unbind(2)
        q, k = self.q_norm(q), self.k_norm(k)
        out = self.norm(attend(q * self.scale, k.to(v.dtype), v).flatten(2))
        projected: Tensor = self.proj_drop(self.proj(out))
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

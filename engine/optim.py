"""Optimizers whose learning rate is a device tensor: AdamW and SGD without host reads or recompiles.

torch's own, given a tensor lr, read the host six times a step on XLA (SGD, AdamW), or need `capturable=True`,
which the cpu refuses and which turns a zero gradient at lr 0 into NaN (torch_xla 2.9). These two follow torch's
arithmetic (tests compare them step by step) and take the lr from the step's knob vector.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

ParamGroups = Iterable[Tensor] | Iterable[dict[str, Any]]


class TensorLrOptimizer(torch.optim.Optimizer):
    """Base: a 0-dim `lr` tensor per group, set each step by `set_lr`; one update over lists of tensors."""

    ok: Tensor | None = (
        None  # 0-dim bool: False leaves weights and state as they are, bit for bit; None: always
    )

    def set_lr(self, lr: Tensor) -> None:
        """`lr`: 0-dim float32 tensor on the parameters' device; a group multiplies it by its `lr_scale`."""
        for group in self.param_groups:
            scale = group["lr_scale"]
            group["lr"] = lr if scale == 1.0 else lr * scale

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        assert closure is None, "closures would need a host read"
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if params:
                self._update(group, params, [p.grad for p in params])

    @torch.no_grad()
    def prime(self) -> None:
        """Makes the state now, as the first update would: or that update is another graph than the second, and both
        are compiled. A checkpoint that is loaded replaces it."""
        for group in self.param_groups:
            for name in self._names(group):
                self._slots([p for p in group["params"] if p.requires_grad], name)

    def _names(self, group: dict[str, Any]) -> tuple[str, ...]:
        raise AssertionError("a subclass names its state tensors")

    def _update(self, group: dict[str, Any], params: list[Tensor], grads: list[Tensor]) -> None:
        raise AssertionError("a subclass defines the update")

    def _slots(self, params: list[Tensor], name: str) -> list[Tensor]:
        """The state tensors `name` of `params`, made on first use."""
        for p in params:
            if name not in self.state[p]:
                self.state[p][name] = torch.zeros_like(p, memory_format=torch.preserve_format)
        return [self.state[p][name] for p in params]


class AdamW(TensorLrOptimizer):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019, arXiv 1711.05101, Algorithm 2).

    The decay is multiplied by the current lr, as in torch. At lr 0 nothing moves, also where a gradient is zero.
    """

    def __init__(
        self, params: ParamGroups, *, betas: tuple[float, float], eps: float, weight_decay: float
    ) -> None:
        defaults = {"lr": 0.0, "lr_scale": 1.0, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, defaults)
        for group in self.param_groups:
            group["step"] = torch.zeros((), device=group["params"][0].device)

    def _names(self, group: dict[str, Any]) -> tuple[str, ...]:
        return ("exp_avg", "exp_avg_sq")

    def _update(self, group: dict[str, Any], params: list[Tensor], grads: list[Tensor]) -> None:
        beta1, beta2 = group["betas"]
        lr, step, ok = group["lr"], group["step"], self.ok
        mean, square = self._slots(params, "exp_avg"), self._slots(params, "exp_avg_sq")
        step += 1.0 if ok is None else ok.to(step.dtype)
        forget: float | Tensor = beta2
        if ok is None:
            torch._foreach_lerp_(mean, grads, 1.0 - beta1)
        else:
            # Steps of length zero and a sum of nothing: no copy of the state is needed.
            lr, forget = torch.where(ok, lr, 0.0), torch.where(ok, beta2, 1.0)
            _clear(grads, ~ok)
            torch._foreach_lerp_(mean, grads, [torch.where(ok, 1.0 - beta1, 0.0)] * len(mean))
        torch._foreach_mul_(square, forget)
        torch._foreach_addcmul_(square, grads, grads, 1.0 - beta2)
        if group["weight_decay"]:
            torch._foreach_mul_(params, 1.0 - lr * group["weight_decay"])
        # 1 - beta ** step with the step as a tensor: a Python exponent would recompile every step on XLA. expm1,
        # because 1 - 0.999 in float32 is off by 1e-5.
        step = step if ok is None else step.clamp(min=1.0)  # the first update of all may be left out
        correction1 = -torch.expm1(step * math.log(beta1)) if beta1 else torch.ones_like(step)
        correction2 = -torch.expm1(step * math.log(beta2)) if beta2 else torch.ones_like(step)
        scale = torch._foreach_sqrt(square)
        torch._foreach_div_(scale, correction2.sqrt())
        torch._foreach_add_(scale, group["eps"])
        change = torch._foreach_div(mean, scale)
        torch._foreach_mul_(change, lr / correction1)
        torch._foreach_sub_(params, change)


class SGD(TensorLrOptimizer):
    """SGD with momentum, Nesterov or heavy-ball, weight decay added to the gradient (as torch.optim.SGD).

    The buffer starts at zero, which equals torch's start with the first gradient when dampening is 0.
    """

    def __init__(self, params: ParamGroups, *, momentum: float, nesterov: bool, weight_decay: float) -> None:
        if nesterov and momentum == 0.0:
            raise ValueError("optim.nesterov needs optim.momentum > 0; set optim.nesterov=false")
        defaults = {
            "lr": 0.0,
            "lr_scale": 1.0,
            "momentum": momentum,
            "nesterov": nesterov,
            "weight_decay": weight_decay,
        }
        super().__init__(params, defaults)

    def _names(self, group: dict[str, Any]) -> tuple[str, ...]:
        return ("momentum_buffer",) if group["momentum"] else ()

    def _update(self, group: dict[str, Any], params: list[Tensor], grads: list[Tensor]) -> None:
        if group["weight_decay"]:
            grads = list(torch._foreach_add(grads, params, alpha=group["weight_decay"]))
        keep: float | Tensor = group["momentum"]
        if (ok := self.ok) is not None:
            _clear(grads, ~ok)
            keep = torch.where(ok, keep, 1.0)
        if group["momentum"]:
            buffers = self._slots(params, "momentum_buffer")
            torch._foreach_mul_(buffers, keep)
            torch._foreach_add_(buffers, grads)
            grads = (
                list(torch._foreach_add(grads, buffers, alpha=group["momentum"]))
                if group["nesterov"]
                else buffers
            )
        lr = group["lr"] if ok is None else torch.where(ok, group["lr"], 0.0)
        change = torch._foreach_mul(grads, lr)
        torch._foreach_sub_(params, change)


def _clear(grads: list[Tensor], when: Tensor) -> None:
    """Zeros where 0-dim `when` is True. In place, for memory of its own would cost more than the update."""
    for grad in grads:
        grad.masked_fill_(when, 0.0)

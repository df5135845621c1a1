"""The gradient of a loss with respect to the image: the one door between attacks and autograd.

Two things are surprising here. Only the image is differentiated, so no weight gradient is computed and no
`.grad` field is touched. And BatchNorm in eval mode is replaced, for the duration of the call, by the affine
map that it is: torch_xla 2.9 raises on the gradient through `batch_norm(training=False)` (pytorch/xla issue
3361), so without this no white-box attack on a BatchNorm network runs on XLA. The replacement sits on the
function, not on the model: nothing that the user owns is modified, and every module that calls `F.batch_norm`
(timm's included) is covered.
"""

from collections.abc import Callable, Iterable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

Predict = Callable[[Tensor], Tensor]
"""image (N,3,H,W) float in [0,1] -> logits (N,K); called in the train or eval mode that it arrives in."""

NO_GRADIENT = (
    "the loss has no gradient with respect to the image; a white-box attack needs a differentiable predict (look for "
    "no_grad, detach, argmax or numpy inside it)"
)


def input_gradient(predict: Predict, image: Tensor, loss: Callable[[Tensor], Tensor]) -> Tensor:
    """d loss(predict(image)) / d image, of the image's shape and dtype.

    `loss` maps logits (N,K) to a scalar; let it sum over the samples, so that one image's gradient does not
    depend on how many others are in the batch. Parameters, their `.grad` and train/eval mode stay as they
    are; there is no second derivative. Give it the unwrapped module: DDP's hooks have no business in an
    attack.

    Raises ValueError when no differentiable path leads from the image to the loss.
    """
    return gradient_and_logits(predict, image, loss)[0]


def gradient_and_logits(
    predict: Predict, image: Tensor, loss: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """`input_gradient`, and the logits (N,K) of its forward pass, which cost nothing more; without a graph."""
    with torch.set_grad_enabled(True), AffineEvalBatchNorm():
        leaf = image.detach().requires_grad_(True)
        logits = predict(leaf)
        value = loss(logits)
        if value.requires_grad:
            # Not autograd.grad: its result stays captured in autograd's worker thread for a moment longer, and on
            # XLA a graph cut in that moment finds one more live tensor, makes it an output and compiles again.
            # Accumulated into our own leaf, nobody else holds it; `inputs` keeps all other leaves out. BatchNorm is
            # still replaced, for models that run parts of their forward again in here (gradient checkpointing).
            torch.autograd.backward(value, inputs=[leaf])
    if leaf.grad is None:
        raise ValueError(NO_GRADIENT)
    return leaf.grad, logits.detach()


def logits_and_gradients(
    predict: Predict, image: Tensor
) -> tuple[Tensor, Callable[[Callable[[Tensor], Tensor]], Tensor]]:
    """Logits (N,K) of one forward pass, without a graph, and a function that gives for each scalar `loss(logits)` its
    gradient with respect to the image: a backward pass a call. What the forward pass keeps for them lives as long as
    that function."""
    with torch.set_grad_enabled(True), AffineEvalBatchNorm():
        leaf = image.detach().requires_grad_(True)
        logits = predict(leaf)

    def gradient_of(loss: Callable[[Tensor], Tensor]) -> Tensor:
        with torch.set_grad_enabled(True), AffineEvalBatchNorm():
            value = loss(logits)
            if value.requires_grad:
                torch.autograd.backward(value, inputs=[leaf], retain_graph=True)
        found, leaf.grad = leaf.grad, None
        if found is None:
            raise ValueError(NO_GRADIENT)
        return found

    return logits.detach(), gradient_of


class AffineEvalBatchNorm(TorchFunctionMode):
    """While active, `batch_norm(training=False)` is y = x*a + b, a = weight/sqrt(var+eps), b = bias - mean*a.

    Equal to the native op within rounding; train-mode BatchNorm goes to the native op untouched. Computed in
    float32 at least and returned in the input's dtype, as the native op does on cpu and cuda (also under
    autocast).
    """

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: Iterable[type],
        args: tuple[object, ...] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        kwargs = kwargs or {}
        replacement = _REPLACEMENTS.get(func)
        if replacement is not None:
            result = replacement(*args, **kwargs)
            if result is not None:
                return result
        return func(*args, **kwargs)


def _functional_batch_norm(  # the signature of torch.nn.functional.batch_norm
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor | None:
    if training or running_mean is None or running_var is None:
        return None
    # 1,C,1,1 for images, 1,C,1 for tokens: channels are axis 1, everything else broadcasts
    shape = [1, -1] + [1] * (input.dim() - 2)
    dtype = torch.promote_types(running_var.dtype, torch.float32)
    scale = torch.rsqrt(running_var.to(dtype) + eps)
    if weight is not None:
        scale = scale * _without_gradient(weight)
    offset = -running_mean * scale
    if bias is not None:
        offset = offset + _without_gradient(bias)
    return torch.addcmul(offset.view(shape), input.to(dtype), scale.view(shape)).to(input.dtype)


def _torch_batch_norm(  # the signature of torch.batch_norm
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
    cudnn_enabled: bool,
) -> Tensor | None:
    return _functional_batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)


def _without_gradient(parameter: Tensor) -> Tensor:
    # A leaf cannot depend on the image; detached, autograd need not keep the activation for the weight's
    # gradient. A weight computed by the model may depend on the image, so that one stays in the graph.
    return parameter.detach() if parameter.is_leaf else parameter


_REPLACEMENTS: dict[object, Callable[..., Tensor | None]] = {
    F.batch_norm: _functional_batch_norm,
    torch.batch_norm: _torch_batch_norm,
}

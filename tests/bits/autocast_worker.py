"""Which operations autocast runs in which dtype. Run as a program:

    python autocast_worker.py BACKEND

One JSON object: `bf16` or `float32` whatever comes in, or `as given`.
"""

import json
import sys
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

Op = Callable[[Tensor], Tensor]


def operations(device: str) -> dict[str, Op]:
    """By the names of TRAIN.md's table; each takes (4,8,8,8)."""
    weight, square = torch.rand(8, 8, 3, 3, device=device), torch.rand(8, 8, device=device)
    ones, target = torch.ones(8, device=device), torch.rand(32, 64, device=device)
    label = torch.zeros(32, dtype=torch.int64, device=device)

    def rows(x: Tensor) -> Tensor:
        return x.reshape(32, 64)

    return {
        "linear": lambda x: F.linear(x, square),
        "matmul": lambda x: x @ square,
        "convolution": lambda x: F.conv2d(x, weight),
        "scaled dot product attention": lambda x: F.scaled_dot_product_attention(x, x, x),
        "layer_norm": lambda x: F.layer_norm(x, (8,), ones, ones),
        "group_norm": lambda x: F.group_norm(x, 2, ones, ones),
        "batch_norm": lambda x: F.batch_norm(x, None, None, ones, ones, True),
        "relu": F.relu,
        "gelu": F.gelu,
        "silu": F.silu,
        "sigmoid": torch.sigmoid,
        "softmax": lambda x: torch.softmax(x, -1),
        "log_softmax": lambda x: F.log_softmax(x, -1),
        "cross_entropy": lambda x: F.cross_entropy(rows(x), label),
        "binary_cross_entropy_with_logits": lambda x: F.binary_cross_entropy_with_logits(
            rows(x), target.to(x.dtype)
        ),
        "kl_div": lambda x: F.kl_div(rows(x), target.to(x.dtype)),
        "mse_loss": lambda x: F.mse_loss(rows(x), target.to(x.dtype)),
        "mean": lambda x: x.mean(),
        "sum": lambda x: x.sum(),
        "exp": torch.exp,
        "pow": lambda x: x**2.5,
        "avg_pool2d": lambda x: F.avg_pool2d(x, 2),
        "max_pool2d": lambda x: F.max_pool2d(x, 2),
    }


def rule(operation: Op, image: Tensor) -> str:
    """What `operation` returns for float32 and for bf16."""
    with torch.autocast(image.device.type, dtype=torch.bfloat16):
        found = tuple(operation(image.to(dtype)).dtype for dtype in (torch.float32, torch.bfloat16))
    if found == (torch.float32, torch.bfloat16):
        return "as given"
    return (
        {torch.float32: "float32", torch.bfloat16: "bf16"}[found[0]] if found[0] == found[1] else str(found)
    )


def main() -> None:
    device = sys.argv[1]
    if device == "xla":
        import torch_xla  # noqa: F401 - makes the device
    image = torch.rand(4, 8, 8, 8, device=device)
    print(json.dumps({name: rule(op, image) for name, op in operations(device).items()}))


if __name__ == "__main__":
    main()

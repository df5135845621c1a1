"""What travels between two devices in a convolution of four groups. Run as a program:

    XLA_FLAGS="--xla_dump_to=DUMPS ..." CPU_NUM_DEVICES=2 python xla_grouped_worker.py DUMPS OUT

OUT gets one JSON object: for each case the collectives of the divided program, and how far the gradients are from the
cpu's, relative to the largest.
"""

import json
import re
import sys
from pathlib import Path
from unittest import mock

sys.path.insert(0, str(Path(__file__).parents[2]))

import torch
from torch import Tensor, nn

from bits.environment import Precision, open_environment

COLLECTIVE = re.compile(r"= \w+\[([\d,]*)\]\S* (all-gather|all-to-all|collective-permute|all-reduce)\(")


def network() -> nn.Sequential:
    """Groups behind a layer, so that the gradient of their input is asked for as well."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 1), nn.Conv2d(16, 24, (3, 2), stride=2, padding=1, dilation=(2, 1), groups=4)
    )


def gradients(model: nn.Module, out: Tensor) -> list[Tensor]:
    weights = torch.linspace(-1.0, 1.0, out[0].numel()).reshape(out[0].shape).to(out.device)
    (out.float() * weights).sum().backward()
    return [p.grad for p in model.parameters() if p.grad is not None]


def run(precision: Precision, dumps: Path) -> tuple[list[tuple[str, str]], float]:
    # First: torch counts the devices at its first backward pass.
    env = open_environment("xla", precision=precision, num_devices=2)
    image = torch.rand(8, 3, 13, 12, generator=torch.Generator().manual_seed(1))
    model = network()
    wanted = gradients(model, model(image))
    placed, fed = env.place(network()), env.feed({"x": image})["x"]
    before = set(dumps.glob("*"))
    with env.autocast():
        out = placed(fed)
    found = gradients(placed, out)
    env.cut()
    env.barrier()
    pattern = "*.after_spmd-partitioning.before_pipeline-end.txt"
    collectives = [
        m for path in set(dumps.glob(pattern)) - before for m in COLLECTIVE.findall(path.read_text())
    ]
    errors = [(a.cpu() - b).abs().max() / b.abs().max() for a, b in zip(found, wanted, strict=True)]
    return collectives, float(torch.stack(errors).max())


def main() -> None:
    dumps, results = Path(sys.argv[1]), {}
    with mock.patch("bits.xla_gradients.is_gathered", return_value=False):
        results["as one convolution"] = run("float32", dumps)
    results["float32"], results["bf16"] = run("float32", dumps), run("bf16", dumps)
    Path(sys.argv[2]).write_text(json.dumps(results))


if __name__ == "__main__":
    main()

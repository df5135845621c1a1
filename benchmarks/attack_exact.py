"""Models small enough that the worst image of the ball is known: linear, one hidden layer of ReLU, 1-Lipschitz.

A margin is the label's logit minus a rival's; an image is robust exactly if its least margin over ball, box [0, 1] and
rivals is positive. All in float64, one image at a time where a solver is needed.
"""

from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.optimize import Bounds, LinearConstraint, milp
from torch import Tensor, nn
from torch.nn.utils.parametrizations import orthogonal
from torch.nn.utils.parametrize import remove_parametrizations

Array = NDArray[np.float64]
HALVINGS = 200
SURE = 1e-5  # of a least margin: far above the solver's tolerance


class Worst(NamedTuple):
    """The least margin [N], and an image (N,3,H,W) that has it (float64)."""

    margin: Tensor
    image: Tensor

    @property
    def is_robust(self) -> Tensor:
        """bool [N]."""
        return self.margin > 0.0


def linear_worst(model: nn.Linear, image: Tensor, label: Tensor, *, eps: float, norm: str) -> Worst:
    """The closed form: the worst image for a rival moves against the difference w of two rows of weights.

    linf: every pixel to its end. l2: clip(x - t w) with the one t whose length is eps (the condition of Karush, Kuhn
    and Tucker for ball and box together), or the corner of the box where even that is nearer.
    """
    assert model.bias is not None
    weight, bias = model.weight.detach().double(), model.bias.detach().double()
    flat = image.double().flatten(1)
    margin = torch.full((len(flat),), torch.inf, dtype=torch.float64)
    worst = flat.clone()
    for rival in range(len(weight)):
        w = weight[label] - weight[rival]
        point = _linf_end(flat, w, eps) if norm == "linf" else _l2_end(flat, w, eps)
        least = (w * point).sum(dim=1) + bias[label] - bias[rival]
        better = (least < margin) & (label != rival)
        margin = torch.where(better, least, margin)
        worst = torch.where(better[:, None], point, worst)
    return Worst(margin, worst.view_as(image))


def _linf_end(flat: Tensor, w: Tensor, eps: float) -> Tensor:
    return (flat - eps * w.sign()).clamp(0.0, 1.0)


def _l2_end(flat: Tensor, w: Tensor, eps: float) -> Tensor:
    near = torch.zeros(len(flat), 1, dtype=torch.float64)
    far = 1.0 / w.abs().where(w != 0, torch.inf).amin(dim=1, keepdim=True)  # there every pixel is at its end
    for _ in range(HALVINGS):
        middle = (near + far) / 2.0
        inside = ((flat - middle * w).clamp(0.0, 1.0) - flat).norm(dim=1, keepdim=True) <= eps
        near, far = torch.where(inside, middle, near), torch.where(inside, far, middle)
    return (flat - near * w).clamp(0.0, 1.0)


class ReluNet(nn.Module):
    """One hidden layer: V relu(W x + b) + c, for images (N,3,H,W)."""

    def __init__(self, *, num_inputs: int, num_hidden: int, num_classes: int = 10) -> None:
        super().__init__()
        self.hidden = nn.Linear(num_inputs, num_hidden)
        self.head = nn.Linear(num_hidden, num_classes)

    def forward(self, image: Tensor) -> Tensor:
        logits: Tensor = self.head(self.hidden(image.flatten(1)).relu())
        return logits


def relu_worst(model: ReluNet, image: Tensor, label: Tensor, *, eps: float) -> Worst:
    """linf, by a mixed-integer program for each image and rival: which side of zero each hidden unit is on."""
    found = [_relu_one(model, x, int(y), eps) for x, y in zip(image, label, strict=True)]
    margin = torch.tensor([least for least, _ in found], dtype=torch.float64)
    return Worst(margin, torch.tensor(np.stack([x for _, x in found])).view_as(image))


def _relu_one(model: ReluNet, image: Tensor, label: int, eps: float) -> tuple[float, Array]:
    weight, bias = _arrays(model.hidden)
    head, head_bias = _arrays(model.head)
    x = image.double().flatten().numpy()
    box = np.clip(x - eps, 0.0, 1.0), np.clip(x + eps, 0.0, 1.0)
    constraints, bounds, integrality = _program(weight, bias, box)
    least, worst = np.inf, x
    for rival in range(len(head)):
        if rival == label:
            continue
        cost = np.zeros(len(integrality))
        cost[len(x) : len(x) + len(bias)] = head[label] - head[rival]
        found = milp(
            cost,
            constraints=constraints,
            bounds=bounds,
            integrality=integrality,
            options={"mip_rel_gap": 0.0},
        )
        assert found.success, f"the solver gave up: {found.message}"
        margin = float(found.fun + head_bias[label] - head_bias[rival])
        if margin < least:
            least, worst = margin, np.clip(found.x[: len(x)], *box)
    return least, worst


def _arrays(layer: nn.Linear) -> tuple[Array, Array]:
    return layer.weight.detach().double().numpy(), layer.bias.detach().double().numpy()


def _program(
    weight: Array, bias: Array, box: tuple[Array, Array]
) -> tuple[list[LinearConstraint], Bounds, Array]:
    """Variables: pixels x, hidden values h >= 0, switches z in {0, 1}. With a = W x + b between low and high:
    h >= a, h <= a - low (1 - z), h <= high z, so that h = relu(a).
    """
    units, pixels = weight.shape
    up, down = np.maximum(weight, 0.0), np.minimum(weight, 0.0)
    low, high = up @ box[0] + down @ box[1] + bias, up @ box[1] + down @ box[0] + bias
    below, above = np.minimum(low, 0.0), np.maximum(high, 0.0)
    one, none = np.eye(units), np.zeros((units, units))
    constraints = [
        LinearConstraint(np.hstack((-weight, one, none)), lb=bias, ub=np.inf),
        LinearConstraint(np.hstack((-weight, one, np.diag(-below))), lb=-np.inf, ub=bias - below),
        LinearConstraint(np.hstack((np.zeros((units, pixels)), one, np.diag(-above))), lb=-np.inf, ub=0.0),
    ]
    # A unit that cannot change sides has its switch set.
    switch = (low >= 0.0).astype(float), (high > 0.0).astype(float)
    bounds = Bounds(
        np.concatenate((box[0], np.zeros(units), switch[0])), np.concatenate((box[1], above, switch[1]))
    )
    return constraints, bounds, np.concatenate((np.zeros(pixels + units), np.ones(units)))


class LipschitzNet(nn.Module):
    """Orthogonal layers and GroupSort of pairs (Anil et al. 2019, arXiv:1811.05381): no layer stretches a distance.

    A margin changes by at most sqrt(2) times the l2 length of a change, so margin / sqrt(2) is a certified radius.
    `frozen` turns the orthogonal layers into plain ones.
    """

    def __init__(self, *, num_inputs: int, num_layers: int = 2, num_classes: int = 10) -> None:
        super().__init__()
        sizes = [num_inputs] * (num_layers + 1) + [num_classes]
        layers = (nn.Linear(a, b) for a, b in pairwise(sizes))
        self.layers = nn.ModuleList(orthogonal(layer) for layer in layers)

    def forward(self, image: Tensor) -> Tensor:
        x = image.flatten(1)
        for layer in self.layers[:-1]:
            pairs = layer(x).view(len(x), -1, 2)
            x = torch.stack((pairs.amax(dim=2), pairs.amin(dim=2)), dim=2).flatten(1)
        logits: Tensor = self.layers[-1](x)
        return logits

    def frozen(self) -> "LipschitzNet":
        for layer in self.layers:
            remove_parametrizations(layer, "weight")
            stretch = float(torch.linalg.matrix_norm(layer.weight.detach().double(), ord=2))
            assert stretch < 1.0 + 1e-5, f"a layer stretches by {stretch}"
        return self.requires_grad_(False)

    def radius(self, image: Tensor, label: Tensor) -> Tensor:
        """float64 [N]: no change of smaller l2 length changes the class; negative where it is wrong already."""
        with torch.no_grad():
            logits = self(image).double()
        own = logits.gather(1, label[:, None])[:, 0]
        rival = logits.scatter(1, label[:, None], -torch.inf).amax(dim=1)
        # Weights are orthogonal to float32 alone: a layer may stretch by 1e-5.
        return (own - rival) / 2.0**0.5 * (1.0 - 1e-5) ** len(self.layers) - 1e-6


def fit(model: nn.Module, image: Tensor, label: Tensor, *, epochs: int, scale: float = 1.0) -> nn.Module:
    """Trained on all images at once; `scale` sharpens the logits in the loss. In eval mode, weights frozen."""
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(epochs):
        optimizer.zero_grad()
        F.cross_entropy(scale * model(image), label).backward()
        optimizer.step()
    return model.eval().requires_grad_(False)

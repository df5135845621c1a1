"""The shortest way to a hyperplane in the box, against a linear program and against bisection."""

import numpy as np
import pytest
import torch
from scipy.optimize import linprog
from torch import Tensor

from robust.hyperplane import way


def problem(seed: int, *, size: int = 24) -> tuple[Tensor, Tensor, Tensor]:
    """Points with some coordinates on the walls, normals with some zeros, planes near and far."""
    generator = torch.Generator().manual_seed(seed)
    point = torch.rand(6, size, generator=generator, dtype=torch.float64)
    point[:2] = point[:2].round()
    normal = torch.randn(6, size, generator=generator, dtype=torch.float64)
    normal[:, ::5] = 0.0
    far = torch.tensor([0.01, 0.3, -0.2, 0.6, -0.9, 0.05], dtype=torch.float64)
    reach = torch.where(normal * far.sign()[:, None] > 0, 1 - point, point)
    total = (normal.abs() * reach).sum(1)
    return point, normal, (normal * point).sum(1) + far * total


@pytest.mark.parametrize("seed", range(3))
def test_linf_is_the_linear_programs_solution(seed: int) -> None:
    point, normal, offset = problem(seed)
    found = way(point, normal, offset, norm="linf")
    for x, w, b, move in zip(point.numpy(), normal.numpy(), offset.numpy(), found.numpy(), strict=True):
        size = len(x)
        # Variables z and t: minimise t with |z - x| <= t, w.z = b, z in [0, 1].
        bound = np.block([[np.eye(size), -np.ones((size, 1))], [-np.eye(size), -np.ones((size, 1))]])
        solved = linprog(
            np.append(np.zeros(size), 1.0),
            A_ub=bound,
            b_ub=np.append(x, -x),
            A_eq=np.append(w, 0.0)[None],
            b_eq=[b],
            bounds=[(0, 1)] * size + [(0, None)],
        )
        assert np.abs(move).max() == pytest.approx(solved.fun, abs=1e-7)
        assert float(w @ (x + move)) == pytest.approx(float(b), abs=1e-7)
        assert (x + move).min() >= -1e-12
        assert (x + move).max() <= 1 + 1e-12


@pytest.mark.parametrize("seed", range(3))
def test_l1_is_the_linear_programs_solution(seed: int) -> None:
    point, normal, offset = problem(seed)
    normal[2, 1:4] = normal[2, 6]  # equally steep
    offset[2] = (normal[2] * point[2]).sum() + 0.2
    found = way(point, normal, offset, norm="l1")
    for x, w, b, move in zip(point.numpy(), normal.numpy(), offset.numpy(), found.numpy(), strict=True):
        # Variables: the way up and the way down of each coordinate.
        solved = linprog(
            np.ones(2 * len(x)),
            A_eq=np.append(w, -w)[None],
            b_eq=[b - w @ x],
            bounds=[(0, 1 - start) for start in x] + [(0, start) for start in x],
        )
        assert np.abs(move).sum() == pytest.approx(solved.fun, abs=1e-9)
        assert float(w @ (x + move)) == pytest.approx(float(b), abs=1e-9)
        assert (x + move).min() >= -1e-12
        assert (x + move).max() <= 1 + 1e-12


@pytest.mark.parametrize("power", [1, 6])
@pytest.mark.parametrize("far", [1e-3, 0.3, 0.95])
def test_l1_is_near_the_shortest_for_many_coordinates(far: float, power: int) -> None:
    """Against an exact greedy walk."""
    generator = torch.Generator().manual_seed(power)
    point, normal = torch.rand(2, 4, 3072, generator=generator, dtype=torch.float64)
    normal = torch.erfinv(2 * normal - 1) ** power
    reach = torch.where(normal > 0, 1 - point, point)
    goal = far * (normal.abs() * reach).sum(1)
    found = way(point, normal, (normal * point).sum(1) + goal, norm="l1")
    order = normal.abs().argsort(dim=1, descending=True)
    gain = (normal.abs() * reach).gather(1, order)
    part = ((goal[:, None] - (gain.cumsum(1) - gain)) / gain).clamp(0.0, 1.0)
    shortest = (part * reach.gather(1, order)).sum(1)
    assert torch.allclose(found.abs().sum(1), shortest, rtol=1e-6)
    assert torch.allclose((normal * found).sum(1), goal, rtol=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_l2_is_the_clamped_ray_that_meets_the_plane(seed: int) -> None:
    """Karush-Kuhn-Tucker: the nearest point is clamp(x + t w) for the one t that meets the plane."""
    point, normal, offset = problem(seed)
    found = way(point, normal, offset, norm="l2")
    for x, w, b, move in zip(point, normal, offset, found, strict=True):
        low, high = -1e6, 1e6
        for _ in range(200):
            t = (low + high) / 2
            low, high = (t, high) if float(w @ (x + t * w).clamp(0, 1)) < float(b) else (low, t)
        assert torch.allclose(x + move, (x + low * w).clamp(0, 1), atol=1e-6)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_a_plane_outside_the_box_leads_to_the_corner(norm: str) -> None:
    point = torch.tensor([[0.25, 0.5, 0.75]])
    normal = torch.tensor([[1.0, -2.0, 0.0]])
    found = point + way(point, normal, torch.tensor([10.0]), norm=norm)
    assert found[0, :2].tolist() == pytest.approx([1.0, 0.0])


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_without_a_normal_the_point_stays(norm: str) -> None:
    point = torch.rand(2, 5)
    found = way(point, torch.zeros(2, 5), torch.ones(2), norm=norm)
    assert torch.equal(found, torch.zeros(2, 5))

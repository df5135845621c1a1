"""Square and FAB in l1 image by image in float64: slices, sorts and Python's branches."""

import math

import torch
from torch import Tensor, nn

from robust.noise import noise
from robust.stream import at_step

HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)


def ball_and_box(change: Tensor, clean: Tensor, eps: float) -> Tensor:
    """Of one image: the shrinking number is tried at all its breakpoints, and solved for between two of them."""
    wanted, sign = change.abs().flatten(), change.sign().flatten()
    room = torch.where(sign > 0, 1.0 - clean.flatten(), clean.flatten())

    def shrunk(by: float) -> Tensor:
        return torch.minimum((wanted - by).clamp(min=0.0), room)

    if float(shrunk(0.0).sum()) <= eps:
        return (sign * shrunk(0.0)).view_as(change)
    breaks = sorted({0.0, *wanted.tolist(), *(b for b in (wanted - room).tolist() if b > 0)})
    below, above = 0, len(breaks) - 1  # the length falls: too long at `below`, short enough at `above`
    while above - below > 1:
        middle = (below + above) // 2
        below, above = (middle, above) if float(shrunk(breaks[middle]).sum()) > eps else (below, middle)
    low, high = breaks[below], breaks[above]
    long, short = float(shrunk(low).sum()), float(shrunk(high).sum())
    return (sign * shrunk(low + (long - eps) / (long - short) * (high - low))).view_as(change)


def greedy_way(point: Tensor, normal: Tensor, offset: float) -> Tensor:
    """To the plane, the steepest coordinates first, each to its wall; flat tensors."""
    gap = offset - float(normal @ point)
    move = torch.zeros_like(point)
    for place in normal.abs().argsort(descending=True).tolist():
        w = float(normal[place])
        if w == 0.0 or gap == 0.0:
            break
        wall = (1.0 if w * gap > 0 else 0.0) - float(point[place])
        gone = math.copysign(min(abs(gap / w), abs(wall)), wall)
        move[place], gap = gone, gap - w * gone
    return move


def pile(down: int, across: int) -> Tensor:
    """Squares around the middle, the k-th reaching k places and 1 / (k+1)^4 high, brought to length 1."""
    made = torch.zeros(down, across, dtype=torch.float64)
    for k in range(max(down // 2, across // 2) + 1):
        top, left = max(down // 2 - k, 0), max(across // 2 - k, 0)
        made[top : down // 2 + k + 1, left : across // 2 + k + 1] += 1 / (k + 1) ** 4
    return made / made.sum().clamp(min=1e-300)


def pair(side: int, *, is_turned: bool) -> Tensor:
    made = torch.cat((pile(side // 2, side), -pile(side - side // 2, side)))
    made = made / made.abs().sum()
    return made.T if is_turned else made


def margin(model: nn.Module, image: Tensor, label: int) -> float:
    logits = model(image[None])[0]
    return float(logits[label] - torch.cat((logits[:label], logits[label + 1 :])).max())


def square_start(clean: Tensor, seed: int, eps: float) -> Tensor:
    """The side is a multiple of 5: five tiles by five."""
    side = clean.shape[1] // 5
    draws = noise(torch.tensor([seed]), (4, 5, 5))[0]
    delta = torch.zeros_like(clean)
    for i in range(5):
        for j in range(5):
            tile = pair(side, is_turned=float(draws[0, i, j]) < 0.5)
            for channel in range(3):
                sign = -1.0 if float(draws[1 + channel, i, j]) < 0.5 else 1.0
                delta[channel, i * side : (i + 1) * side, j * side : (j + 1) * side] = sign * tile
    return clean + ball_and_box(delta, clean, eps * (1 - 1e-6))


def square(
    model: nn.Module, clean: Tensor, label: int, seed: int, *, eps: float, queries: int
) -> tuple[Tensor, float]:
    """The best point of one image, greedily, and its margin."""
    size = clean.shape[1]
    best = square_start(clean, seed, eps)
    smallest = margin(model, best, label)
    for query in range(queries):
        draw = noise(at_step(torch.tensor([seed]), torch.tensor([query + 1]), purpose=1), (8,))[0]
        p = 0.8 / 2 ** sum(query > limit for limit in HALVINGS)
        side = max(round(math.sqrt(p * size * size)), 3)
        side += side % 2 == 0
        y, x, y2, x2 = (int(float(d) * (size - side)) for d in draw[:4])
        one = (slice(None), slice(y, y + side), slice(x, x + side))
        two = (slice(None), slice(y2, y2 + side), slice(x2, x2 + side))
        delta = best - clean
        is_either = torch.zeros_like(delta, dtype=torch.bool)
        is_either[one] = is_either[two] = True
        unused = max(eps - float(delta.abs().sum()), 0.0)
        fresh = torch.zeros(3, side, side, dtype=torch.float64)
        for channel in range(3):
            held = float(delta[channel][is_either[channel]].abs().sum())
            sign = -1.0 if float(draw[5 + channel]) < 0.5 else 1.0
            old = delta[one][channel]
            made = sign * pair(side, is_turned=float(draw[4]) < 0.5) + old / (1e-12 + old.abs().sum())
            fresh[channel] = made / (1e-12 + made.abs().sum()) * (unused / 3 + held) * 3
        delta[two] = 0.0
        delta[one] = fresh
        candidate = clean + ball_and_box(delta, clean, eps * (1 - 1e-6))
        found = margin(model, candidate, label)
        if found < smallest:
            best, smallest = candidate, found
    return best, smallest

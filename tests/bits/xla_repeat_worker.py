"""Steps that are traced once beside the same ones traced at every call, on XLA:CPU: prints a line of JSON a case."""

import itertools
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parents[2]))

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bits.environment import Environment, open_environment

STEPS, BATCH = 5, 4


class Inner(NamedTuple):
    offset: Tensor
    step: Tensor


class State(NamedTuple):
    inner: Inner
    a: Tensor
    b: Tensor
    c: Tensor


Step = Callable[[State], State]


class Case:
    """A step made anew for each way, with a model and a counter of its own."""

    def __init__(self, env: Environment) -> None:
        torch.manual_seed(0)
        self.model = env.place(nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)).eval().requires_grad_(False))
        self.number = itertools.count()
        self.calls = 0

    def plain(self, state: State) -> State:
        """`b` and `c` are one result, `offset` goes through, `a` may share its memory with `b` at first."""
        made = self.model(state.a).tanh() + state.inner.offset
        inner = state.inner._replace(step=state.inner.step + 1)
        return State(inner, made - state.b * 0.5, made, made)

    def differentiated(self, state: State) -> State:
        with torch.enable_grad():
            leaf = state.a.detach().requires_grad_(True)
            F.mse_loss(torch.sin(self.model[0](leaf)), state.b.detach()).backward()
        assert leaf.grad is not None
        return self.plain(state)._replace(a=leaf.grad)

    def changes_a_buffer(self, state: State) -> State:
        self.model.train()
        return self.plain(state)

    def draws(self, state: State) -> State:
        return self.plain(state)._replace(c=torch.rand_like(state.a))

    def reads(self, state: State) -> State:
        return self.plain(state)._replace(c=state.a * float(state.a.sum()))

    def falls_back(self, state: State) -> State:
        return self.plain(state)._replace(c=state.a * torch.nonzero(state.a > 0.0).shape[0])

    def counts(self, state: State) -> State:
        return self.plain(state)._replace(
            c=state.a * (1.7 + 0.3 * next(self.number))
        )  # no function of its state

    def gives_a_weight(self, state: State) -> State:
        return self.plain(state)._replace(c=self.model[0].weight)


CASES = [name for name in vars(Case) if not name.startswith("_")]


def start(env: Environment, rows: int) -> State:
    values = torch.linspace(-1.0, 1.0, rows * 3).view(rows, 3)
    fed = env.feed({"a": values, "offset": values[:, :1] * 0.3, "step": torch.zeros(rows, dtype=torch.int64)})
    env.cut()
    return State(Inner(fed["offset"], fed["step"]), fed["a"], fed["a"].clone(), fed["a"])


def trail(env: Environment, case: Case, step: Step, states: list[State]) -> list[list[object]]:
    """What comes out after each step, from each of `states`, and the buffers behind it all."""
    found = []
    for state in states:
        for _ in range(STEPS):
            state = step(state)
            env.cut()
            found.append([part.cpu().tolist() for part in (*state.inner, *state[1:])])
    found.append([buffer.cpu().tolist() for buffer in case.model.buffers()])
    return found


def run(env: Environment, name: str) -> dict[str, object]:
    """Two fillings of the same shape, then another shape."""
    trails, calls = [], 0
    for is_repeated in (False, True):
        case = Case(env)
        env.seed(5)

        def step(state: State, case: Case = case) -> State:
            case.calls += 1
            found: State = getattr(case, name)(state)
            return found

        states = [start(env, BATCH), start(env, BATCH), start(env, 2 * BATCH)]
        before = env.counters()["compiles"]
        trails.append(trail(env, case, env.repeated(step) if is_repeated else step, states))
        compiles, calls = env.counters()["compiles"] - before, case.calls
    return {"name": name, "equal": trails[0] == trails[1], "calls": calls, "compiles": compiles}


def replaced_weights(env: Environment) -> dict[str, object]:
    """In place, between two stages: a step that is made ready anew has the new ones."""
    case, state, found = Case(env), start(env, BATCH), []
    for weight in (1.0, -2.0):
        with torch.no_grad():
            case.model[0].weight.fill_(weight)
        wanted = case.plain(state).b
        env.cut()
        found.append(torch.equal(wanted.cpu(), env.repeated(case.plain)(state).b.cpu()))
    return {"name": "replaced weights", "equal": all(found)}


def main() -> None:
    env = open_environment("xla")
    with torch.no_grad():
        for name in CASES:
            print(json.dumps(run(env, name)), flush=True)
        print(json.dumps(replaced_weights(env)), flush=True)


if __name__ == "__main__":
    main()

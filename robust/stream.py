"""Random streams of an attack: a seed for every question, made of what the question is and of nothing else."""

from torch import Tensor

_WIDTH = 1 << 64
_ODD = (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)  # of splitmix64 (Steele et al. 2014)


def question_seed(seed: int, key: int, component: str, number: int) -> int:
    """int64 seed of the `number`-th try (target class or restart) of `component` on the image with that `key`.

    A function of its arguments alone, so that an answer does not depend on lanes, machines or interruptions.
    """
    state = _mixed(seed % _WIDTH)
    for part in (key, int.from_bytes(component.encode()[:64].ljust(8, b"\0")), number):
        while True:  # 64 bits at a time
            state = _mixed(state ^ (part % _WIDTH))
            part >>= 64
            if part in (0, -1):
                break
    return state - _WIDTH if state >= _WIDTH // 2 else state


def _mixed(state: int) -> int:
    """One step of splitmix64 and its finaliser."""
    state = (state + _ODD[0]) % _WIDTH
    state = ((state ^ (state >> 30)) * _ODD[1]) % _WIDTH
    state = ((state ^ (state >> 27)) * _ODD[2]) % _WIDTH
    return state ^ (state >> 31)


def at_step(seed: Tensor, step: Tensor, purpose: int) -> Tensor:
    """Seeds int64 [B] for one purpose at one step of each lane: odd multiples of both, which wrap at 2**64.

    Constants, so that on XLA one graph serves all steps.
    """
    return (
        seed + step * 6364136223846793005 + (purpose * 1442695040888963407 + (1 << 63)) % _WIDTH - (1 << 63)
    )

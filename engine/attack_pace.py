"""How far a process's attack is, how fast each component breaks images, and what the number is at most."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from engine.rows import CLEAN


@dataclass(slots=True)
class Tempo:
    """What a component has done so far, and the time of it that this process has seen."""

    images: int = 0
    broken: int = 0
    broken_here: int = 0  # in this process's life, as `seconds` are
    seconds: float = 0.0

    @property
    def broken_per_s(self) -> float:
        return self.broken_here / self.seconds if self.seconds > 0.0 else 0.0


@dataclass(slots=True)
class Count:
    """Of this process's images. Known ones are those that an earlier run has answered."""

    total: int
    components: Sequence[str]  # in their order, the clean look first
    now: Callable[[], float] = time.monotonic
    done: int = 0  # images that nothing more is done to
    right: int = 0  # of these
    tempi: dict[str, Tempo] = field(init=False)
    _known: int = 0
    _began: float = field(init=False)
    _at: float = field(init=False)

    def __post_init__(self) -> None:
        self.tempi = {name: Tempo() for name in self.components if name != CLEAN}
        self._began = self._at = self.now()

    def add(self, component: str, *, is_right: bool, is_known: bool = False) -> None:
        """A verdict; the last of an image where it is wrong or `component` is the last one."""
        if tempo := self.tempi.get(component):
            tempo.images += 1
            tempo.broken += not is_right
            tempo.broken_here += not is_right and not is_known
        if not is_right or component == self.components[-1]:
            self.done += 1
            self.right += is_right
            self._known += is_known

    def spend(self, component: str | None) -> None:
        """The time since the last call was spent on `component`; None: on something else."""
        now = self.now()
        if component is not None and (tempo := self.tempi.get(component)):
            tempo.seconds += now - self._at
        self._at = now

    @property
    def at_most(self) -> float:
        """The final share of robust images can only be lower: those that are not done yet count as robust."""
        return (self.total - self.done + self.right) / max(1, self.total)

    @property
    def left_s(self) -> float | None:
        """Seconds to the end at the pace of this process's life; None before an image is done."""
        made = self.done - self._known
        return (self.now() - self._began) * (self.total - self.done) / made if made else None

    def values(self) -> dict[str, Any]:
        """For the log."""
        parts = {
            name: {
                "images": tempo.images,
                "broken": tempo.broken,
                "seconds": round(tempo.seconds, 3),
                "broken_per_s": round(tempo.broken_per_s, 4),
            }
            for name, tempo in self.tempi.items()
        }
        left_s = None if self.left_s is None else round(self.left_s, 1)
        return {
            "done": self.done,
            "total": self.total,
            "at_most": self.at_most,
            "eta_s": left_s,
            "components": parts,
        }

    def __str__(self) -> str:
        parts = [
            f"{name} broke {tempo.broken} of {tempo.images} ({tempo.broken_per_s:.3g}/s)"
            for name, tempo in self.tempi.items()
            if tempo.images
        ]
        bound = f"robust accuracy at most {100 * self.at_most:.2f} %"
        ends = [f"ETA {_clock(self.left_s)}"] if self.left_s and self.done < self.total else []
        return "; ".join(
            [f"{self.done} of {self.total} images done", bound, ", ".join(parts), *ends]
        ).replace("; ; ", "; ")


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"

"""Who is told how a long piece of work goes on: this package reports, the command line shows."""

from typing import Protocol


class Watch(Protocol):
    """What `shards` and the like tell while they work."""

    def say(self, text: str) -> None:
        """One line that a person should know."""

    def advance(self, done: int, total: int, unit: str = "images") -> None:
        """`done` of `total` are through."""


class Nobody:
    """Hears all and shows nothing."""

    def say(self, text: str) -> None:
        del text

    def advance(self, done: int, total: int, unit: str = "images") -> None:
        del done, total, unit

"""One line of the doctor's report."""

from typing import Literal, NamedTuple

State = Literal["", "ok", "advice", "failed"]


class Finding(NamedTuple):
    """A fact (""), a check that passed, advice, or something that would stop a run ("failed")."""

    section: str
    name: str
    text: str
    state: State = ""


def failed(section: str, name: str, error: BaseException) -> Finding:
    """The error in one line."""
    return Finding(section, name, " ".join(str(error).split()) or type(error).__name__, "failed")

"""Which cached shards live readers need now: a file per reader, void as soon as its process is gone."""

import errno
import itertools
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Final

from data.lock import is_alive, place, process_mark

FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})  # what a full disk, or a full quota, says
FOREIGN_S: Final = 86400.0  # files of another machine on a shared disk count as in use for a day
_numbers = itertools.count()


class Lease:
    """The shards that one reader holds."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / f"{place()}.{process_mark()}.{next(_numbers)}.lease"

    def hold(self, hashes: Iterable[str]) -> None:
        """Replace what is held."""
        partial = self._path.with_suffix(".partial")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            partial.write_text("\n".join(hashes))
            partial.replace(self._path)
        except OSError as error:
            if error.errno not in FULL:  # on a full disk there is no lease, and readers do without
                raise

    def release(self) -> None:
        self._path.unlink(missing_ok=True)


def leased(folder: Path) -> set[str]:
    """Hashes of the shards that live processes hold; files of dead ones are removed."""
    names: set[str] = set()
    for path in folder.glob("*.lease"):
        owner, _, mark = path.name.partition(".")
        with suppress(FileNotFoundError):
            if owner != place():
                is_held = time.time() - path.stat().st_mtime < FOREIGN_S
            elif is_held := is_alive(mark):
                pass
            else:
                path.unlink()
            if is_held:
                names.update(path.read_text().split())
    return names

"""Work on many shards that survives its interruption: whole shards stay, and the same call goes on behind them.

Shards are written to a hidden folder beside their final place, `.NAME.partial`, with a journal: one line for each whole
shard, its description and the digest of everything its bytes follow from. A later call keeps the shards whose digest
is one of its own and whose bytes are still the noted ones, and makes the others. The folder takes its place when all
is done.
"""

import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Final, Generic, NamedTuple, TextIO, TypeVar

from data.description import Shard
from data.records import shard_workers
from data.watch import Watch

_FILE: Final = "journal.jsonl"
Source = TypeVar("Source")


class Planned(NamedTuple, Generic[Source]):
    """A shard to write. `digest`: of all that decides about its bytes. `source`: what they are made of."""

    name: str
    digest: str
    num_samples: int
    source: Source


class Journal:
    """The folder that is being filled, and which of its shards are whole."""

    def __init__(self, folder: Path, file: TextIO) -> None:
        self.folder = folder
        self._file = file
        self._whole = _read_journal(file)
        self.num_whole = 0
        self.num_planned = 0

    def write(
        self,
        planned: Sequence[Planned[Source]],
        pack: Callable[[Path, Source], Shard],
        *,
        num_workers: int,
        watch: Watch,
    ) -> list[Shard]:
        """`pack(path, source)` of every planned shard that is not there yet, in `num_workers` processes (0: in this
        one); all shards in order.
        """
        self.num_planned = len(planned)
        known = {name: shard for name, shard in self._find(planned).items() if shard is not None}
        self._sweep(known)
        if known:
            watch.say(f"going on: {len(known)} of {len(planned)} shards are there already")
        tasks = [(self.folder / plan.name, plan.source, known.get(plan.name)) for plan in planned]
        total, done, shards = sum(plan.num_samples for plan in planned), 0, []
        with shard_workers(num_workers) as run:
            for plan, shard in zip(planned, run(partial(_settle, pack=pack), tasks), strict=True):
                if shard != known.get(plan.name):
                    self._note(plan.digest, shard)
                shards.append(shard)
                done, self.num_whole = done + plan.num_samples, len(shards)
                watch.advance(done, total)
        return shards

    @property
    def state(self) -> str:
        """What an interruption leaves, in words."""
        if self.is_empty:
            return "no shard was whole yet, nothing stays"
        whole = f"{len(self._whole)} of {self.num_planned} shards are whole and stay"
        return f"{whole} in {self.folder.name}; the same command goes on from there"

    @property
    def is_empty(self) -> bool:
        return not self._whole

    def _find(self, planned: Sequence[Planned[Source]]) -> dict[str, Shard | None]:
        """Name -> the shard that the journal knows under this name and digest."""
        found = {plan.name: self._whole.get(plan.digest) for plan in planned}
        return {name: shard if shard and shard.name == name else None for name, shard in found.items()}

    def _sweep(self, known: dict[str, Shard]) -> None:
        """Remove what is half written, or belongs to other images."""
        self._whole = {
            digest: shard for digest, shard in self._whole.items() if known.get(shard.name) == shard
        }
        kept = {_FILE, *(path.name for shard in known.values() for path in _files(self.folder, shard))}
        for path in self.folder.iterdir():
            if path.name not in kept:
                path.unlink()

    def _note(self, digest: str, shard: Shard) -> None:
        self._file.write(json.dumps({"digest": digest, "shard": asdict(shard)}) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        self._whole[digest] = shard


def digest_of(*facts: object) -> str:
    """sha256 of the facts' repr."""
    return hashlib.sha256(repr(facts).encode()).hexdigest()


def partial_folder(dst: Path) -> Path:
    """Where the shards of `dst` lie until all are whole."""
    return dst.parent / f".{dst.name}.partial"


@contextmanager
def resumable_folder(dst: Path) -> Iterator[Journal]:
    """The journal of a folder that takes the place of `dst` when the block ends well, and else waits for a next call
    (it vanishes if it holds no whole shard). ValueErrors and OSErrors of the block then say so, and KeyboardInterrupt.

    ValueError where another process fills it at this moment.
    """
    dst.parent.mkdir(parents=True, exist_ok=True)
    folder = partial_folder(dst)
    with _locked(folder, dst) as file:
        journal = Journal(folder, file)
        try:
            yield journal
            take_place(folder, dst)
            (dst / _FILE).unlink()
        except BaseException as error:
            if journal.is_empty:
                shutil.rmtree(folder, ignore_errors=True)
            else:
                for path in folder.glob("*.partial-*"):  # leaves room on a disk that is full
                    path.unlink(missing_ok=True)
            _explain(error, journal)
            raise


def take_place(folder: Path, dst: Path) -> None:
    """Rename `folder` to `dst`; what was there goes when the new one stands."""
    if dst.exists() and any(dst.iterdir()):
        replaced = Path(tempfile.mkdtemp(prefix=f".{dst.name}.replaced-", dir=dst.parent))
        dst.rename(replaced)
        folder.rename(dst)
        shutil.rmtree(replaced)
    else:
        folder.rename(dst)


def _explain(error: BaseException, journal: Journal) -> None:
    """What stays, in the error's own words."""
    if isinstance(error, KeyboardInterrupt):
        error.args = (journal.state,)
    elif journal.is_empty:
        return
    elif isinstance(error, OSError) and error.strerror:
        error.strerror = f"{error.strerror} ({journal.state})"
    elif type(error) is ValueError or type(error) is ChildProcessError:
        error.args = (f"{error} ({journal.state})",)


@contextmanager
def _locked(folder: Path, dst: Path) -> Iterator[TextIO]:
    """The folder's journal, open and held: the lock goes with this process, however it ends."""
    file = None
    while file is None:
        file = _try_lock(folder, dst)
    with file:
        yield file


def _try_lock(folder: Path, dst: Path) -> TextIO | None:
    """None where the holder of a moment ago has moved the folder to its place."""
    folder.mkdir(exist_ok=True)
    try:
        file = (folder / _FILE).open("a+", encoding="utf-8")
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(file.fileno()), (folder / _FILE).stat()):
            return file
    except BlockingIOError:
        file.close()
        raise ValueError(
            f"{dst} is being written by another process; wait for it, or choose another folder"
        ) from None
    except FileNotFoundError:
        pass
    file.close()
    return None


def _read_journal(file: TextIO) -> dict[str, Shard]:
    """Digest -> shard. A last line that was cut is as if it had not been written."""
    file.seek(0)
    text = file.read()
    whole: dict[str, Shard] = {}
    for line in text.splitlines():
        with suppress(ValueError, TypeError, KeyError):
            entry = json.loads(line)
            whole[entry["digest"]] = Shard(**entry["shard"])
    if text and not text.endswith("\n"):
        file.write("\n")
    return whole


def _files(folder: Path, shard: Shard) -> tuple[Path, Path, Path]:
    path = folder / shard.name
    return path, Path(f"{path}.idx.npy"), Path(f"{path}.keys.npy")


def _settle(task: tuple[Path, Source, Shard | None], *, pack: Callable[[Path, Source], Shard]) -> Shard:
    path, source, known = task
    return known if known is not None and _is_whole(path, known) else pack(path, source)


def _is_whole(path: Path, shard: Shard) -> bool:
    files = _files(path.parent, shard)
    hashes = (shard.sha256, shard.index_sha256, shard.keys_sha256)
    try:
        if path.stat().st_size != shard.size:
            return False
        return all(_sha256(file) == expected for file, expected in zip(files, hashes, strict=True))
    except FileNotFoundError:
        return False


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

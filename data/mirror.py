"""The index of a remote folder, copied to the cache: one folder per data set id, complete or not there.

index.json is fetched at every start (it says which data set lies at the URL today), its arrays once; each must
have the sha256 that index.json names.
"""

import hashlib
import os
import shutil
import warnings
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Final

from data.cache import Cache
from data.description import INDEX_FILE, Shard, parse_description
from data.remote import RemoteError, Retry, join, read_bytes, shown

_MAX_INDEX: Final = 1 << 28  # bytes of index.json; ImageNet's has half a megabyte
_MAX_ARRAY: Final = 1 << 30
_THREADS: Final = 8
_TIMEOUT_S: Final = 1800.0  # for another process that fetches the same index


class NoIndex(RemoteError):
    """The server answers, and there is no index."""


def mirror_index(url: str, cache: Cache, *, retry: Retry) -> Path:
    """A local folder with the index that lies at `url`. A server that is out of reach is no obstacle where the
    index was fetched before; RemoteError or ValueError in one line otherwise.
    """
    name = hashlib.sha256(url.encode()).hexdigest()
    known = cache.folder / "indexes" / f"{name}.json"
    text = _read_description(url, known, retry)
    description = parse_description(text, source=shown(join(url, INDEX_FILE)), root=shown(url))
    folder = cache.folder / "indexes" / description.dataset_id
    if not folder.is_dir():
        with cache.lock(description.dataset_id).held(_TIMEOUT_S):
            if not folder.is_dir():
                _copy(url, text, description.shards, folder, retry)
    if not known.is_file() or known.read_bytes() != text:
        _write(known, text)
    return folder


def _read_description(url: str, known: Path, retry: Retry) -> bytes:
    try:
        return read_bytes(join(url, INDEX_FILE), retry=retry, limit=_MAX_INDEX)
    except RemoteError as error:
        if error.is_final:
            raise NoIndex(
                f"{error}; the folder needs an index: run `shards index` where the shards lie"
            ) from None
        if not known.is_file():
            raise
        warnings.warn(f"{error}; using the index that was fetched before", RuntimeWarning, stacklevel=2)
        return known.read_bytes()


def _copy(url: str, text: bytes, shards: tuple[Shard, ...], folder: Path, retry: Retry) -> None:
    """All or nothing; what an interrupted copy left is used."""
    staged = folder.with_name(f"{folder.name}.partial")
    staged.mkdir(parents=True, exist_ok=True)
    wanted = [
        (f"{shard.name}.{suffix}.npy", sha256)
        for shard in shards
        for suffix, sha256 in (("idx", shard.index_sha256), ("keys", shard.keys_sha256))
    ]
    with ThreadPoolExecutor(_THREADS) as pool:
        for _ in pool.map(partial(_copy_array, url=url, folder=staged, retry=retry), wanted):
            pass
    _write(staged / INDEX_FILE, text)
    try:
        staged.rename(folder)
    except OSError:
        if not folder.is_dir():  # another process was faster otherwise
            raise
        shutil.rmtree(staged, ignore_errors=True)


def _copy_array(wanted: tuple[str, str], *, url: str, folder: Path, retry: Retry) -> None:
    name, sha256 = wanted
    path = folder / name
    if path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == sha256:
        return
    content = read_bytes(join(url, name), retry=retry, limit=_MAX_ARRAY)
    if (found := hashlib.sha256(content).hexdigest()) != sha256:
        raise RemoteError(
            f"{shown(join(url, name))} does not belong to {INDEX_FILE} beside it (sha256 {found[:12]}, not "
            f"{sha256[:12]}); copy the whole folder there again"
        )
    _write(path, content)


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    staged = path.with_name(f"{path.name}.{os.getpid()}")
    staged.write_bytes(content)
    staged.replace(path)

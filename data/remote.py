"""Bytes from a URL, in order, whatever the network does on the way: cuts resume where they happened.

http and https go through urllib (so proxies of the environment hold, and nothing else needs to be installed);
gs, s3 and hf through fsspec with the package each of them needs. A `pipe:` is a command whose output is the file;
it is run without a shell, and only where the caller allows it. Nothing here knows shards or caches.
"""

import random
import re
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from threading import Event
from typing import Final
from urllib.parse import quote, urlsplit, urlunsplit

from data.answers import Answer, Failure, open_fsspec, open_http, open_pipe

_PACKAGES: Final = {"gs": "gcsfs", "s3": "s3fs", "hf": "huggingface_hub"}
_PROGRESS: Final = 4096  # bytes that an attempt must bring to count as one that helped
_SLOWEST: Final = 1024  # bytes per second; a connection below that for a whole timeout is taken for cut


class RemoteError(OSError):
    """One line: what was asked of which URL, and what came back. `is_final`: asking again would not help."""

    is_final = False


class Cancelled(Exception):
    """The caller's `cancelled` event was set."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Retry:
    """How long to insist. Attempts count only while they bring nothing new, so a server that cuts every
    connection after 64 kB is slow, and no error.
    """

    attempts: int = 6
    delay_s: float = 0.5  # before the second attempt; doubles, with jitter
    max_delay_s: float = 30.0
    timeout_s: float = 30.0  # of a connection that is silent
    wait_s: float = 300.0  # for another process that downloads, while no byte arrives


def is_url(root: object) -> bool:
    """Whether `root` names something remote rather than a folder. A Path is looked through: it turns // into /."""
    scheme, colon, _ = str(root).partition(":")
    return bool(colon) and scheme in ("http", "https", "pipe", *_PACKAGES)


def to_url(root: object, *, allow_pipes: bool = False) -> str:
    """The URL in its usual form; ValueError in one line for what cannot or may not be read."""
    text = str(root)
    scheme, _, rest = text.partition(":")
    if scheme == "pipe":
        if not allow_pipes:
            raise ValueError(
                f"{text!r} would run a command; pipes are refused unless allowed (--allow-pipes)"
            )
        return text
    url = f"{scheme}://{rest.lstrip('/')}"
    if scheme in _PACKAGES:
        _check_package(scheme)
    elif "@" in urlsplit(url).netloc:
        raise ValueError(f"{shown(url)}: user and password in a URL are not read; use a URL with a token")
    return url


def join(url: str, name: str) -> str:
    """URL of file `name` in folder `url`. A query (an access token) stays behind the path; in a pipe the name
    replaces {name}.
    """
    if url.startswith("pipe:"):
        if "{name}" not in url or not re.fullmatch(r"[\w.-]+", name, re.ASCII):
            raise ValueError(
                f"{url!r} must hold {{name}}, and file name {name!r} only letters, digits and ._-"
            )
        return url.replace("{name}", name)
    if not url.startswith("http"):
        return f"{url.rstrip('/')}/{name}"
    parts = urlsplit(url)
    return urlunsplit(parts._replace(path=f"{parts.path.rstrip('/')}/{quote(name)}"))


def shown(url: str) -> str:
    """The URL as messages may show it: without query and password, which may be secrets."""
    if url.startswith("pipe:") or not is_url(url):
        return url
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def read_stream(
    url: str,
    *,
    start: int = 0,
    stop: int | None = None,
    size: int | None = None,
    must_range: bool = False,
    retry: Retry,
    cancelled: Event | None = None,
) -> Iterator[bytes]:
    """Yield the bytes [start, stop) of a file; `size` is the whole file's, where it is known.

    After a cut, asks for the rest by Range; a server that ignores Range is read from its begin and what is known
    already skipped, or refused if the answer `must_range`. RemoteError with URL and the last answer after
    `retry.attempts` in a row that brought nothing, or at once for an answer such as 404.
    """
    offset, failures, mark, known = start, 0, start, (size, "")
    while True:
        try:
            with _open(url, offset, stop, retry) as answer:
                known = _check_same(answer, known)
                if must_range and answer.start < offset:
                    raise Failure("the server sends only whole files (no Range)", is_final=True)
                again = "" if answer.start >= offset else "; the server cannot continue there (no Range)"
                for chunk in _useful(answer, offset, stop, retry):
                    _raise_if(cancelled)
                    offset += len(chunk)
                    yield chunk
            end = known[0] if stop is None else stop
            if end is None or offset >= end:
                return
            failure = Failure(f"the connection ended at byte {offset} of {end}{again}")
        except Failure as caught:
            failure = caught
        failures, mark = (1, offset) if offset - mark >= _PROGRESS else (failures + 1, mark)
        if failure.is_final or failures >= retry.attempts:
            raise _error(url, failure, 1 if failure.is_final else failures)
        _sleep(max(_delay(failures, retry) if failures > 1 else 0.0, failure.delay_s), cancelled)


def read_bytes(
    url: str, *, retry: Retry, limit: int, start: int = 0, stop: int | None = None, must_range: bool = False
) -> bytes:
    """The bytes [start, stop), or all of a file, at most `limit` bytes."""
    content = bytearray()
    for chunk in read_stream(url, start=start, stop=stop, must_range=must_range, retry=retry):
        content += chunk
        if len(content) > limit:
            raise RemoteError(f"{shown(url)} is larger than {limit} bytes; is it the right file?")
    return bytes(content)


def _open(url: str, start: int, stop: int | None, retry: Retry) -> AbstractContextManager[Answer]:
    if url.startswith("pipe:"):
        return open_pipe(url.removeprefix("pipe:"), timeout_s=retry.timeout_s)
    if url.startswith("http"):
        return open_http(url, start, stop, timeout_s=retry.timeout_s)
    return open_fsspec(url, start, stop)


def _check_same(answer: Answer, known: tuple[int | None, str]) -> tuple[int | None, str]:
    """(size, tag) of the file; a Failure where this answer is about another file than the one before."""
    size, tag = known
    if size is not None and answer.size is not None and answer.size != size:
        first = next(answer.chunks, b"")[:40]
        raise Failure(f"{answer.status}, {answer.size} bytes where {size} were expected, starting {first!r}")
    if tag and answer.tag and answer.tag != tag:
        raise Failure("the file changed on the server while it was read", is_final=True)
    return answer.size if size is None else size, tag or answer.tag


def _useful(answer: Answer, offset: int, stop: int | None, retry: Retry) -> Iterator[bytes]:
    """The answer's bytes from `offset` to `stop`; a Failure where they come too slowly."""
    position, counted, since = answer.start, 0, time.monotonic()
    for chunk in answer.chunks:
        position, counted = position + len(chunk), counted + len(chunk)
        elapsed = time.monotonic() - since
        if elapsed > retry.timeout_s:
            if counted < _SLOWEST * elapsed:
                raise Failure(f"{counted} bytes in {elapsed:.0f} s: too slow")
            counted, since = 0, time.monotonic()
        useful = chunk[max(len(chunk) - (position - offset), 0) :] if position > offset else b""
        if stop is not None and position > stop:
            useful = useful[: len(useful) - (position - stop)]
        if useful:
            yield useful
        if stop is not None and position >= stop:
            return


def _error(url: str, failure: Failure, attempts: int) -> RemoteError:
    tried = f" ({attempts} attempts)" if attempts > 1 else ""
    error = RemoteError(f"{shown(url)}: {failure}{tried}")
    error.is_final = failure.is_final
    return error


def _delay(failures: int, retry: Retry) -> float:
    longest = min(retry.delay_s * 2.0 ** (failures - 1), retry.max_delay_s)
    return longest * random.SystemRandom().uniform(
        0.5, 1.0
    )  # jitter: a thousand readers come back one by one


def _sleep(seconds: float, cancelled: Event | None) -> None:
    if cancelled is None:
        time.sleep(seconds)
    else:
        cancelled.wait(seconds)
    _raise_if(cancelled)


def _raise_if(cancelled: Event | None) -> None:
    if cancelled is not None and cancelled.is_set():
        raise Cancelled


def _check_package(scheme: str) -> None:
    import fsspec  # half a second, and most runs need it never

    try:
        fsspec.get_filesystem_class(scheme)
    except ImportError:
        package = _PACKAGES[scheme]
        raise ValueError(
            f"{scheme}:// needs the package {package}; install it with `pip install {package}`"
        ) from None

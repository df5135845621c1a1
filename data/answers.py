"""One connection to one URL: what a server, an object store or a command answers, or why it does not.

All three forms look alike to `data.remote`, which decides about another attempt.
"""

import http.client
import re
import select
import shlex
import ssl
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any, Final, NamedTuple

_CHUNK: Final = 1 << 18
_TRY_AGAIN: Final = frozenset({408, 425, 429, 500, 502, 503, 504})
_LONGEST_WISH_S: Final = 60.0  # of a server's Retry-After


class Answer(NamedTuple):
    status: str  # for messages
    start: int  # position in the file of the first byte that comes
    size: int | None  # of the whole file, where the server says so
    tag: str  # changes when the file does, or ''
    chunks: Iterator[bytes]  # raises Failure; may end early after a cut


class Failure(Exception):
    """An attempt that did not work. `is_final`: the next would not either. `delay_s`: the server's wish."""

    def __init__(self, reason: str, *, is_final: bool = False, delay_s: float = 0.0) -> None:
        super().__init__(reason)
        self.is_final, self.delay_s = is_final, delay_s


@contextmanager
def open_http(url: str, start: int, stop: int | None, *, timeout_s: float) -> Iterator[Answer]:
    """GET of the bytes [start, stop). The server may answer with the whole file instead, see `Answer.start`."""
    headers = {"User-Agent": "robust-bits", "Accept-Encoding": "identity"}
    if start or stop is not None:
        headers["Range"] = f"bytes={start}-{'' if stop is None else stop - 1}"
    try:
        opener = urllib.request.build_opener(_Redirects)
        response = opener.open(urllib.request.Request(url, headers=headers), timeout=timeout_s)
    except urllib.error.HTTPError as error:
        with error:
            raise _http_failure(error) from None
    except (http.client.HTTPException, ValueError) as error:  # ValueError: a redirect to no URL at all
        raise Failure(f"{type(error).__name__} {error}") from None
    except OSError as error:
        reason = getattr(error, "reason", error)
        raise Failure(str(reason), is_final=isinstance(reason, ssl.SSLCertVerificationError)) from None
    with response:
        yield _http_answer(response, start)


@contextmanager
def open_fsspec(url: str, start: int, stop: int | None) -> Iterator[Answer]:
    """An object of a store. Credentials and options are those of the store's package and of fsspec's own
    configuration (for example FSSPEC_S3_ANON=true for public buckets).
    """
    import fsspec

    try:
        system, path = fsspec.core.url_to_fs(url)
        file = system.open(path, "rb")
        file.seek(start)
    except Exception as error:  # each store raises exceptions of its own
        raise _store_failure(error) from None
    with file:
        yield Answer("opened", start, getattr(file, "size", None), "", _store_chunks(file, start, stop))


@contextmanager
def open_pipe(command: str, *, timeout_s: float) -> Iterator[Answer]:
    """What a command writes, from its begin. No shell: words are split as a shell would and nothing else."""
    try:
        process = subprocess.Popen(
            shlex.split(command), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, bufsize=0
        )
    except (OSError, ValueError) as error:
        raise Failure(f"the command cannot be started ({error})", is_final=True) from None
    assert process.stdout is not None, "stdout is a pipe"
    with process.stdout:
        try:
            yield Answer("started", 0, None, "", _pipe_chunks(process, process.stdout, timeout_s))
        finally:
            process.kill()
            process.wait()


class _Redirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        allowed = ("https:",) if req.full_url.startswith("https:") else ("http:", "https:")
        if not newurl.startswith(allowed):
            fp.close()
            raise Failure(f"HTTP {code} leads to {newurl.partition('?')[0]}, which is refused", is_final=True)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _http_failure(error: urllib.error.HTTPError) -> Failure:
    try:
        first = error.read(40)
    except (OSError, http.client.HTTPException):
        first = b""
    wish = error.headers.get("Retry-After", "")
    return Failure(
        f"HTTP {error.code} {error.reason}" + (f", starting {first!r}" if first else ""),
        is_final=error.code not in _TRY_AGAIN,
        delay_s=min(float(wish), _LONGEST_WISH_S) if wish.isdigit() else 0.0,
    )


def _http_answer(response: http.client.HTTPResponse, start: int) -> Answer:
    tag, status = response.headers.get("ETag", ""), f"HTTP {response.status}"
    if response.status != 206:
        kind = response.headers.get("Content-Type", "no type")
        return Answer(f"{status} ({kind})", 0, response.length, tag, _http_chunks(response))
    found = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", "").strip())
    if not found or int(found[1]) != start:
        raise Failure(f"{status} with another range than the one from byte {start}")
    return Answer(status, start, None if found[2] == "*" else int(found[2]), tag, _http_chunks(response))


def _http_chunks(response: http.client.HTTPResponse) -> Iterator[bytes]:
    try:
        while chunk := response.read1(_CHUNK):  # at most one wait for the network each
            yield chunk
    except (OSError, http.client.HTTPException) as error:
        raise Failure(f"{type(error).__name__} {error}") from None


def _store_chunks(file: Any, start: int, stop: int | None) -> Iterator[bytes]:
    left = None if stop is None else stop - start
    try:
        while left is None or left > 0:
            chunk = file.read(4 * _CHUNK if left is None else min(4 * _CHUNK, left))
            if not chunk:
                return
            left = None if left is None else left - len(chunk)
            yield chunk
    except Exception as error:  # each store raises exceptions of its own
        raise _store_failure(error) from None


def _store_failure(error: Exception) -> Failure:
    reason = str(error).strip().partition("\n")[0]
    return Failure(
        f"{type(error).__name__} {reason}", is_final=isinstance(error, FileNotFoundError | PermissionError)
    )


def _pipe_chunks(process: subprocess.Popen[bytes], output: IO[bytes], timeout_s: float) -> Iterator[bytes]:
    while True:
        if not select.select([output], [], [], timeout_s)[0]:
            raise Failure(f"the command wrote nothing for {timeout_s:.0f} s")
        if not (chunk := output.read(_CHUNK)):
            break
        yield chunk
    try:
        code = process.wait(timeout_s)
    except subprocess.TimeoutExpired:
        raise Failure(f"the command closed its output and did not end in {timeout_s:.0f} s") from None
    if code:
        raise Failure(f"the command ended with exit code {code}")

"""Tar files read strictly and written deterministically.

Python's tarfile takes a damaged header for the end of the archive, so a cut shard looks like a shorter one.
This scanner takes nothing for granted: every header's checksum, every member's extent and the end-of-archive
marker are checked, and whatever is not a plain file under a plain relative name is refused with the shard and
the offset.
"""

import os
import tarfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import BinaryIO, Final, NamedTuple

BLOCK: Final = 512
_RECORD: Final = 20 * BLOCK  # POSIX writers fill whole records of 20 blocks
_MAX_EXTENSION: Final = 1 << 20  # a pax or long-name header larger than this is an attack or damage
# Pax records that change nothing we read; webdataset's writer puts an mtime in front of every member.
_HARMLESS_PAX: Final = frozenset(
    {"mtime", "atime", "ctime", "uid", "gid", "uname", "gname", "comment", "charset"}
)

_MAX_STREAMED: Final = 1 << 28
Read = Callable[[int, int], bytes]  # (size, offset) -> bytes, as pread


class Member(NamedTuple):
    name: str
    offset: int  # of the first data byte
    size: int


def scan(path: Path, *, require_end: bool = True) -> Iterator[Member]:
    """Yield the regular files of a tar in order; ValueError naming shard and offset for anything else.

    Without `require_end` the end-of-archive marker may be missing behind a whole member: a shard cut there, or written
    so. Reads headers only, so a scan costs one or two small reads per member, whatever the size of the shard.
    """
    with path.open("rb", buffering=0) as file:
        read = partial(os.pread, file.fileno())
        members = _members(read, path, total=os.fstat(file.fileno()).st_size, require_end=require_end)
        yield from _checked(members, path)


def stream(chunks: Iterator[bytes], name: str) -> Iterator[tuple[Member, bytes]]:
    """Yield the regular files of a tar that arrives in chunks, with their bytes; as strict as `scan`.

    ValueError when the chunks end before the archive does. Each member is in memory whole, so one above 256 MB
    is refused.
    """
    path, forward = Path(name), _Forward(chunks)
    for member in _checked(_members(forward.read, path, total=None), path):
        if member.size > _MAX_STREAMED:
            raise _error(path, member.offset, f"member {member.name!r} has {member.size} bytes, too many")
        content = forward.read(member.size, member.offset)
        if len(content) < member.size:
            raise _error(path, member.offset, f"the stream ends inside member {member.name!r}: it was cut")
        yield member, content


class Writer:
    """Plain POSIX ustar with no owner and no time, so equal contents give equal bytes."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._offset = 0

    def add(self, name: str, content: bytes) -> int:
        """Append a member and return the offset of its data. ValueError when ustar cannot hold the name."""
        info = tarfile.TarInfo(name)
        info.size, info.mode = len(content), 0o644
        try:
            header = info.tobuf(tarfile.USTAR_FORMAT, "utf-8", "strict")
        except ValueError as error:
            raise ValueError(
                f"member name {name!r} does not fit a ustar header ({error}); shorten it"
            ) from None
        start = self._offset + len(header)
        self._write(header + content + bytes(-len(content) % BLOCK))
        return start

    def close(self) -> int:
        """Write the end-of-archive marker and return the size of the whole file."""
        marked = self._offset + 2 * BLOCK
        self._write(bytes(2 * BLOCK + -marked % _RECORD))
        return self._offset

    def _write(self, content: bytes) -> None:
        self._file.write(content)
        self._offset += len(content)


class _Forward:
    """Reads at growing offsets of a stream, like pread of a file. What lies before an offset is gone."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks, self._held, self._start = chunks, bytearray(), 0

    def read(self, size: int, offset: int) -> bytes:
        """`size` bytes at `offset`, fewer at the stream's end."""
        assert offset >= self._start, "a stream is read forwards"
        while self._start + len(self._held) < offset + size:
            self._drop(offset)
            chunk = next(self._chunks, None)
            if chunk is None:
                break
            self._held += chunk
        self._drop(offset)
        return bytes(self._held[:size]) if self._start == offset else b""

    def _drop(self, offset: int) -> None:
        passed = min(offset - self._start, len(self._held))
        del self._held[:passed]
        self._start += passed


def _checked(members: Iterator[Member], path: Path) -> Iterator[Member]:
    seen: set[str] = set()
    for member in members:
        _check_name(member, path)
        if member.name in seen:
            raise _error(path, member.offset, f"member {member.name!r} appears twice")
        seen.add(member.name)
        yield member


def _members(read: Read, path: Path, *, total: int | None, require_end: bool = True) -> Iterator[Member]:
    offset, long_name = 0, ""
    while True:
        header = read(BLOCK, offset)
        if not (header or require_end or long_name):
            return
        if header == bytes(BLOCK):
            return _check_end(read, path, offset, pending=long_name)
        kind, name, size = _parse(header, path, offset)
        data, end = offset + BLOCK, offset + BLOCK + size + -size % BLOCK
        if total is not None and end > total:
            raise _error(
                path, offset, f"member {name!r} ends at byte {end} but the file at {total}: it was cut"
            )
        if kind in (b"x", b"g", b"L"):
            long_name = _extension(read(min(size, _MAX_EXTENSION), data), kind, path, offset) or long_name
        elif kind in (b"0", b"\0", b"7"):
            yield Member(long_name or name, data, size)
            long_name = ""
        elif kind == b"5":
            long_name = ""
        else:
            raise _error(
                path,
                offset,
                f"member {name!r} is of type {kind!r}, a link or device; only plain files are read",
            )
        offset = end


def _parse(header: bytes, path: Path, offset: int) -> tuple[bytes, str, int]:
    if len(header) < BLOCK:
        raise _error(path, offset, "the file ends without the end-of-archive marker: it was cut")
    if header[257:262] != b"ustar":
        raise _error(path, offset, "no ustar header here: the file is damaged or not a tar")
    unsigned = sum(header[:148]) + 8 * 32 + sum(header[156:])
    if _octal(header[148:156], path, offset) != unsigned:
        raise _error(path, offset, "the header's checksum is wrong: the file is damaged")
    prefix = (
        header[345:500] if header[262:263] == b"\0" else b""
    )  # old GNU headers keep times in the prefix field
    name = "/".join(_text(part, path, offset) for part in (prefix, header[:100]) if part.strip(b"\0"))
    return header[156:157], name, _octal(header[124:136], path, offset)


def _extension(content: bytes, kind: bytes, path: Path, offset: int) -> str:
    """The name that a pax or GNU long-name header gives to the next member, or ''."""
    if kind == b"L":
        return _text(content, path, offset)
    name = ""
    while content:
        length, _, rest = content.partition(b" ")
        # The length counts itself: one that is smaller (0) would be read again and again.
        size = int(length) - len(length) - 1 if length.isdigit() and len(length) < 9 else 0
        record = rest[: max(size, 0)]
        keyword, equals, value = record.partition(b"=")
        if not equals or not record.endswith(b"\n") or len(record) < size:
            raise _error(path, offset, "a pax header that cannot be read")
        if keyword == b"path" and kind == b"x":
            name = _text(value[:-1], path, offset)
        elif keyword.decode("ascii", "replace") not in _HARMLESS_PAX:
            raise _error(
                path,
                offset,
                f"a pax header sets {keyword!r}; write plain ustar, for example tar --format=ustar",
            )
        content = content[int(length) :]
    return name


def _check_end(read: Read, path: Path, offset: int, *, pending: str) -> None:
    if read(BLOCK, offset + BLOCK) != bytes(BLOCK):
        raise _error(path, offset, "half an end-of-archive marker: the file was cut or damaged")
    if pending:
        raise _error(path, offset, f"the long name {pending!r} has no member: the file is damaged")
    tail = offset + 2 * BLOCK
    while content := read(1 << 20, tail):
        if content.strip(b"\0"):
            raise _error(path, tail, "data after the end-of-archive marker: concatenated tars are not read")
        tail += len(content)


def _check_name(member: Member, path: Path) -> None:
    parts = member.name.split("/")
    if member.name.startswith("/") or ".." in parts or "\0" in member.name or not member.name:
        raise _error(
            path,
            member.offset,
            f"member name {member.name!r} leaves its folder; only relative names are read",
        )


def _octal(field: bytes, path: Path, offset: int) -> int:
    digits = field.strip(b" \0")
    try:
        if digits and not set(digits) <= set(b"01234567"):
            raise ValueError
        return int(digits or b"0", 8)
    except ValueError:
        raise _error(path, offset, f"the header holds {field!r} where an octal number belongs") from None


def _text(field: bytes, path: Path, offset: int) -> str:
    try:
        return field.partition(b"\0")[0].decode()
    except UnicodeDecodeError:
        raise _error(path, offset, f"the member name {field!r} is not UTF-8") from None


def _error(path: Path, offset: int, reason: str) -> ValueError:
    return ValueError(f"shard {path.name}, byte {offset}: {reason}; make the shard again or fetch it again")

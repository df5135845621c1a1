"""One tar, local or behind a URL, to its samples in the order in which they come; nothing is kept."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from data.remote import Retry, is_url, read_stream, shown, to_url
from data.tar import stream

_IMAGE_EXTENSIONS: Final = frozenset({"jpg", "jpeg", "png", "webp"})
_RANGE: Final = re.compile(r"\{(\d+)\.\.(\d+)\}")
_CHUNK: Final = 1 << 18


class Sample(NamedTuple):
    """One sample of a stream: shard, string key, encoded image, label."""

    shard: str
    name: str
    image: bytes
    label: int


def expand_urls(urls: Sequence[str], *, allow_pipes: bool = False) -> tuple[str, ...]:
    """URLs and paths of tars, with ranges such as {000000..000146} written out; ValueError for a pipe."""
    found: list[str] = []
    for url in urls:
        match = _RANGE.search(url)
        if not match:
            found.append(to_url(url, allow_pipes=allow_pipes) if is_url(url) else url)
            continue
        first, last = match[1], match[2]
        names = [f"{number:0{len(first)}d}" for number in range(int(first), int(last) + 1)]
        whole = [f"{url[: match.start()]}{name}{url[match.end() :]}" for name in names]
        found += expand_urls(whole, allow_pipes=allow_pipes)
    return tuple(found)


def read_samples(url: str, retry: Retry) -> Iterator[Sample]:
    """Samples of one tar in its order. Image and `.cls` of a key must lie next to each other, as webdataset writes
    them; other members are passed over. ValueError with shard and key where that is not so.
    """
    name, parts, current = shown(url), dict[str, bytes](), ""
    for member, content in stream(_chunks(url, retry), name):
        key, _, extension = member.name.removeprefix("./").rpartition(".")
        kind = "image" if extension.lower() in _IMAGE_EXTENSIONS else extension
        if kind not in ("image", "cls"):
            continue
        if parts and (key != current or kind in parts):
            raise _incomplete(name, current, parts)
        parts[kind], current = content, key
        if len(parts) == 2:
            yield Sample(name, key, parts["image"], _label(parts["cls"], name, key))
            parts = {}
    if parts:
        raise _incomplete(name, current, parts)


def _chunks(url: str, retry: Retry) -> Iterator[bytes]:
    if is_url(url):
        yield from read_stream(url, retry=retry)
        return
    with Path(url).open("rb", buffering=0) as file:
        while chunk := file.read(_CHUNK):
            yield chunk


def _label(content: bytes, shard: str, key: str) -> int:
    text = content.strip()
    if not (text.isdigit() and len(text) < 10):
        raise ValueError(f"shard {shard}, key {key!r}: the label {text[:20]!r} is not a whole number from 0")
    return int(text)


def _incomplete(shard: str, key: str, parts: dict[str, bytes]) -> ValueError:
    missing = "label (.cls)" if "image" in parts else "image"
    return ValueError(
        f"shard {shard}: key {key!r} has no {missing} beside it; a stream needs both together, an index "
        f"(`shards index`) does not"
    )

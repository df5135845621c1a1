"""A split of any size over HTTP that no disk holds: the bytes of its tars are made when they are asked for.

    python benchmarks/streaming_server.py FOLDER

FOLDER has the index that `write_index` made and the few hundred pictures that all samples repeat; no tar. Until
standard input ends; the first line of output is the port. streaming_memory.py starts it.
"""

import io
import json
import re
import sys
import threading
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from data.description import Description, Shard, save_index
from data.index import FORMATS, RECORD
from data.tar import Writer
from data.verify import key_hash

WIDTH, HEIGHT, POOL = 500, 375, 300
PER_SHARD, CLASSES = 1024, 1000  # a shard has about 96 MB


@dataclass(frozen=True)
class Split:
    """A split of `num_shards` shards whose contents follow from their number and from the pictures in `folder`."""

    folder: Path

    @cached_property
    def pictures(self) -> list[bytes]:
        return [path.read_bytes() for path in sorted(self.folder.glob("picture-*.jpg"))]

    def samples(self, shard: int) -> Iterator[tuple[str, int, bytes]]:
        """(string key, label, image)"""
        for number in range(shard * PER_SHARD, (shard + 1) * PER_SHARD):
            yield f"{number % CLASSES:03d}/{number:08d}", number % CLASSES, self.pictures[number % POOL]

    def pieces(self, shard: int) -> Iterator[tuple[bytes, int]]:
        """The tar in pieces: (bytes of a sample, or of the end; where in the tar its image begins)."""
        file = io.BytesIO()
        writer = Writer(file)
        for name, label, image in self.samples(shard):
            offset = writer.add(f"{name}.jpg", image)
            writer.add(f"{name}.cls", str(label).encode())
            yield _drain(file), offset
        writer.close()
        yield _drain(file), -1


def _drain(file: io.BytesIO) -> bytes:
    content = file.getvalue()
    file.seek(0)
    file.truncate()
    return content


def make_pictures(folder: Path) -> None:
    """Noise over smooth colours, as many bytes as an ImageNet image has."""
    random = np.random.default_rng(0)
    for number in range(POOL):
        coarse = Image.fromarray(random.integers(0, 256, (6, 8, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC), np.float64)
        noise = random.normal(0.0, random.uniform(10.0, 19.0), (HEIGHT, WIDTH, 1))
        pixels = (0.7 * smooth + 40 + noise).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"picture-{number:03d}.jpg", quality=92)


def write_index(split: Split, num_shards: int) -> Description:
    """index.json and the arrays, without a tar."""
    shards, names = [], []
    checksums = [zlib.crc32(picture) for picture in split.pictures]
    for number in range(num_shards):
        digest, size, offsets = sha256(), 0, []
        for content, offset in split.pieces(number):
            digest.update(content)
            size += len(content)
            offsets.append(offset)
        records, keys = np.zeros(PER_SHARD, RECORD), []
        for row, (name, label, image) in enumerate(split.samples(number)):
            crc32 = checksums[(number * PER_SHARD + row) % POOL]
            records[row] = (
                offsets[row],
                len(image),
                label,
                WIDTH,
                HEIGHT,
                FORMATS.index("JPEG"),
                crc32,
            )
            keys.append(name.encode())
        names.append(np.array(keys))
        shard = f"train-{number:06d}.tar"
        hashes = [
            _save(split.folder / f"{shard}.{kind}.npy", array)
            for kind, array in (("idx", records), ("keys", names[-1]))
        ]
        shards.append(
            Shard(
                name=shard,
                size=size,
                sha256=digest.hexdigest(),
                num_samples=PER_SHARD,
                index_sha256=hashes[0],
                keys_sha256=hashes[1],
            )
        )
    description = Description(
        dataset="streaming-memory",
        split="train",
        classes=tuple(map(str, range(CLASSES))),
        num_samples=num_shards * PER_SHARD,
        key_hash=key_hash(np.concatenate(names)),
        shards=tuple(shards),
        created_by="benchmark",
    )
    save_index(split.folder, description)
    return description


def _save(path: Path, array: np.ndarray) -> str:
    np.save(path, array, allow_pickle=False)
    return sha256(path.read_bytes()).hexdigest()


# ---- over HTTP


class Handler(BaseHTTPRequestHandler):
    """Files of the split's folder, and the tars that are not there. /sent: how many bytes of tars went out."""

    sent = 0
    mutex = threading.Lock()

    def __init__(self, split: Split, sizes: dict[str, int], *arguments: Any) -> None:
        self.split, self.sizes = split, sizes
        super().__init__(*arguments)

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        name = self.path.rsplit("/", 1)[-1]
        if name in self.sizes:
            self._send_tar(name)
        else:
            self._send(
                str(Handler.sent).encode() if name == "sent" else (self.split.folder / name).read_bytes()
            )

    def _send(self, content: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _send_tar(self, name: str) -> None:
        size, wanted = self.sizes[name], re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        first = int(wanted[1]) if wanted else 0
        stop = int(wanted[2]) + 1 if wanted and wanted[2] else size
        self.send_response(206 if wanted else 200)
        self.send_header("Content-Length", str(stop - first))
        if wanted:
            self.send_header("Content-Range", f"bytes {first}-{stop - 1}/{size}")
        self.end_headers()
        position = 0
        for content, _ in self.split.pieces(int(name[6:12])):
            part = content[max(first - position, 0) : max(stop - position, 0)]
            position += len(content)
            self.wfile.write(part)
            with Handler.mutex:
                Handler.sent += len(part)


def serve(folder: Path) -> None:
    """Until standard input ends; the first line of output is the port."""
    shards = json.loads((folder / "index.json").read_text())["shards"]
    sizes = {shard["name"]: shard["size"] for shard in shards}
    http = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, Split(folder), sizes))
    http.daemon_threads = True
    threading.Thread(target=http.serve_forever, daemon=True).start()
    print(http.server_address[1], flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    serve(Path(sys.argv[1]))

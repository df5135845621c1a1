"""Memory of the loader while it streams a split that is larger than its cache, and that no disk holds.

    OMP_NUM_THREADS=1 python benchmarks/streaming_memory.py --gigabytes 20

A second process serves the shards over HTTP and makes their bytes when they are asked for, out of a few hundred
pictures: the split has its full size on the wire and in the index, and takes no room. One epoch goes through
`data.loader.train_loader` with two workers; each key must come exactly once.
"""

import argparse
import io
import json
import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
import zlib
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property, partial
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final

import numpy as np
from PIL import Image

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.record import markdown_table, write_result
from data.cache import Cache
from data.description import Description, Shard, save_index
from data.draws import MixSettings
from data.index import FORMATS, RECORD, load_index
from data.loader import train_loader
from data.native import region_decoder
from data.order import Cursor
from data.tar import Writer
from data.transform import AugmentSettings
from data.verify import key_hash

WIDTH, HEIGHT, POOL = 500, 375, 300
PER_SHARD, CLASSES = 1024, 1000  # a shard has about 96 MB
BATCH, SIZE, WORKERS, WINDOW, CACHE_BYTES = 128, 224, 2, 4, 2 * 10**9
GOAL_MB: Final = 300
_FIELDS: Final = ("Rss", "Pss", "Anonymous", "Private")
_LOOK_EVERY_S: Final = 0.5


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


# ---- the server


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


# ---- the measurement


@dataclass
class Watcher:
    """Looks at the memory of this process and of its workers until it is stopped; keeps the highest values, in MB."""

    peaks: dict[str, dict[str, float]] = field(default_factory=lambda: defaultdict(dict))
    stopped: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        while not self.stopped.wait(_LOOK_EVERY_S):
            for child in multiprocessing.active_children():
                if child.name.startswith("loader-"):
                    self._look(child.name.replace("loader-", "worker "), child.pid)
            self._look("main process", os.getpid())

    def _look(self, name: str, pid: int | None) -> None:
        try:
            text = Path(f"/proc/{pid}/smaps_rollup").read_text()
        except OSError:
            return  # it has just ended
        fields = {found[1]: int(found[2]) / 1e3 * 1.024 for found in re.finditer(r"(\w+): +(\d+) kB", text)}
        fields["Private"] = fields["Private_Clean"] + fields["Private_Dirty"]
        peaks = self.peaks[name]
        for key in _FIELDS:
            peaks[key] = max(peaks.get(key, 0.0), round(fields[key], 1))


def measure(url: str, description: Description, folder: Path) -> dict[str, Any]:
    index = load_index(url, cache=Cache.default(folder, max_bytes=CACHE_BYTES))
    seen = np.zeros(index.num_samples, np.int64)
    watcher, most_kept = Watcher(), 0
    thread = threading.Thread(target=watcher.run)
    thread.start()
    began = shown = time.monotonic()
    try:
        for number, (_, batch) in enumerate(_batches(index), start=1):
            np.add.at(seen, batch.key.numpy(), 1)
            del batch
            if time.monotonic() - shown > 20:
                shown = time.monotonic()
                most_kept = max(most_kept, sum(path.stat().st_size for path in folder.glob("shards/*")))
                done = number * BATCH
                print(f"{done} of {index.num_samples}, {done / (shown - began):.0f} images/s", flush=True)
    finally:
        watcher.stopped.set()
        thread.join()
    seconds = time.monotonic() - began
    return {
        "num_images": index.num_samples,
        "split_bytes": sum(shard.size for shard in description.shards),
        "once": bool((seen == 1).all()),
        "missing": int((seen == 0).sum()),
        "repeated": int((seen > 1).sum()),
        "seconds": round(seconds, 1),
        "images_per_second": round(index.num_samples / seconds, 1),
        "largest_cache_bytes": most_kept,
        "peak_mb": {name: dict(peaks) for name, peaks in sorted(watcher.peaks.items(), reverse=True)},
    }


def _batches(index: Any) -> Iterator[tuple[Cursor, Any]]:
    return train_loader(
        index,
        seed=0,
        global_batch=BATCH,
        rank=0,
        world_size=1,
        start=Cursor(0, 0),
        num_epochs=1,
        image_size=SIZE,
        transform_of_epoch=[AugmentSettings()],
        mix_of_epoch=[MixSettings()],
        num_workers=WORKERS,
        window=WINDOW,
    )


def stream(num_shards: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="streaming-memory-") as temporary:
        folder = Path(temporary) / "train"
        folder.mkdir()
        make_pictures(folder)
        split = Split(folder)
        description = write_index(split, num_shards)
        mean = sum(map(len, split.pictures)) / POOL
        print(f"{num_shards} shards, images of {mean / 1e3:.1f} kB", flush=True)
        command = [sys.executable, str(Path(__file__).resolve()), "--serve", str(folder)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
            assert server.stdin is not None
            assert server.stdout is not None
            url = f"http://127.0.0.1:{int(server.stdout.readline())}"
            try:
                result = measure(f"{url}/train", description, Path(temporary) / "cache")
                with urllib.request.urlopen(f"{url}/sent") as answer:
                    result["downloaded_bytes"] = int(answer.read())
            finally:
                server.stdin.close()
    load = os.getloadavg()[0]
    return {
        **result,
        "mean_image_bytes": round(mean),
        "num_shards": num_shards,
        "load_average": round(load, 1),
    }


def report(result: dict[str, Any]) -> list[str]:
    """Lines of the Markdown result."""
    worst = max(peaks["Pss"] for name, peaks in result["peak_mb"].items() if name != "main process")
    rows = [[name, *(f"{peaks[key]:.0f}" for key in _FIELDS)] for name, peaks in result["peak_mb"].items()]
    decoder = "with" if region_decoder() is not None else "without"
    once = "yes" if result["once"] else f"NO: {result['missing']} missing, {result['repeated']} repeated"
    gigabytes, kept, sent = (
        result["split_bytes"] / 1e9,
        result["largest_cache_bytes"] / 1e9,
        result["downloaded_bytes"],
    )
    return [
        f"{gigabytes:.1f} GB in {result['num_shards']} shards behind a local HTTP server, "
        f"{result['num_images']} images of {WIDTH}x{HEIGHT} and {result['mean_image_bytes'] / 1e3:.0f} kB;",
        f"one epoch of RandomResizedCrop and flip at {SIZE} px, batch {BATCH}, {WORKERS} workers, windows of {WINDOW} "
        f"shards, cache limit {CACHE_BYTES / 1e9:.0f} GB, {decoder} the C decoder.",
        "",
        f"Each key exactly once: {once}. {result['seconds']:.0f} s, {result['images_per_second']:.0f} images/s (server "
        f"and loader share the cores; load average {result['load_average']} at the end).",
        f"Downloaded: {sent / 1e9:.2f} GB, {sent / result['split_bytes']:.4f} of the split; "
        f"the cache held {kept:.2f} GB at most.",
        "",
        "Highest values in MB, looked at twice a second (/proc/PID/smaps_rollup):",
        "",
        *markdown_table(["process", "RSS", "PSS", "anonymous", "private"], rows),
        "",
        f"Goal: below {GOAL_MB} MB a worker. Largest PSS of a worker: {worst:.0f} MB, "
        + ("met." if worst < GOAL_MB else "missed.")
        + " RSS counts in each process what all of them share: torch's code, and the batches' slots.",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=20.0)
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve(arguments.serve)
        return
    num_shards = max(round(arguments.gigabytes * 1e9 / 96e6), 2 * WINDOW)
    result = stream(num_shards)
    title = "Memory of the loader while it streams"
    print(write_result("streaming-memory", title=title, text=report(result), data=result).read_text())


if __name__ == "__main__":
    main()

"""Memory of the loader while it streams a split that is larger than its cache, and that no disk holds.

    OMP_NUM_THREADS=1 python benchmarks/streaming_memory.py --gigabytes 20

A second process, streaming_server.py, serves the shards over HTTP and makes their bytes when they are asked for, out
of a few hundred pictures: the split has its full size on the wire and in the index, and takes no room. One epoch goes
through `data.loader.train_loader` with two workers; each key must come exactly once.
"""

import argparse
import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.record import markdown_table, write_result
from benchmarks.streaming_server import HEIGHT, POOL, WIDTH, Split, make_pictures, write_index
from data.cache import Cache
from data.description import Description
from data.draws import MixSettings
from data.index import load_index
from data.loader import train_loader
from data.native import region_decoder
from data.order import Cursor
from data.transform import AugmentSettings

BATCH, SIZE, WORKERS, WINDOW, CACHE_BYTES = 128, 224, 2, 4, 2 * 10**9
GOAL_MB: Final = 300
_FIELDS: Final = ("Rss", "Pss", "Anonymous", "Private")
_LOOK_EVERY_S: Final = 0.5


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
        command = [sys.executable, str(ROOT / "benchmarks" / "streaming_server.py"), str(folder)]
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
    arguments = parser.parse_args()
    num_shards = max(round(arguments.gigabytes * 1e9 / 96e6), 2 * WINDOW)
    result = stream(num_shards)
    title = "Memory of the loader while it streams"
    print(write_result("streaming-memory", title=title, text=report(result), data=result).read_text())


if __name__ == "__main__":
    main()

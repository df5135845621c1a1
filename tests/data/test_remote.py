"""Shards behind a URL: the same bytes as local ones whatever the server does, or one clear line."""

import json
import pickle
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from fsspec.implementations.local import LocalFileSystem

from data.answers import Failure, _Redirects
from data.cache import Cache
from data.index import DatasetIndex, load_index
from data.read import ShardReader
from data.remote import RemoteError, Retry, is_url, join, read_stream, shown, to_url

FAST = Retry(attempts=3, delay_s=0.01, max_delay_s=0.02, timeout_s=2.0, wait_s=5.0)
FIRST = "train-000000.tar"


def contents(index: DatasetIndex) -> list[bytes]:
    reader = ShardReader(index)
    return [reader.read(key) for key in range(index.num_samples)]


@pytest.fixture
def server(noise: DatasetIndex, serve: Callable[[Path], Any]) -> Any:
    return serve(noise.root.parent)


@pytest.fixture
def opened(server: Any, tmp_path: Path) -> DatasetIndex:
    return load_index(f"{server.url}/train", cache=Cache.default(tmp_path), retry=FAST)


def refusal(index: DatasetIndex, key: int = 0) -> str:
    with pytest.raises(RemoteError) as caught:
        ShardReader(index).read(key)
    assert "\n" not in str(caught.value)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value), "it crosses process borders"
    return str(caught.value)


def test_remote_is_local(noise: DatasetIndex, opened: DatasetIndex, server: Any) -> None:
    assert opened.dataset_id == noise.dataset_id
    assert [opened.name(k) for k in range(60)] == [noise.name(k) for k in range(60)]
    assert np.array_equal(opened.labels(), noise.labels())
    assert not server.requests(".tar"), "shards come when they are read"
    assert contents(opened) == contents(noise)
    assert len(server.requests(".tar")) == len(opened.shards)
    assert all(request.name.endswith(".tar") for request in server.log[-6:])


def test_the_second_start_asks_for_the_description_only(
    noise: DatasetIndex, opened: DatasetIndex, server: Any
) -> None:
    contents(opened)
    server.log.clear()
    again = load_index(Path(f"{server.url}/train"), cache=opened.store.cache, retry=FAST)  # type: ignore[attr-defined]
    assert contents(again) == contents(noise)
    assert [request.name for request in server.log] == ["index.json"]


def test_an_index_travels_without_the_network(opened: DatasetIndex, server: Any) -> None:
    before = contents(opened)
    server.log.clear()
    assert contents(pickle.loads(pickle.dumps(opened))) == before
    assert server.log == []


def test_passing_errors_are_retried(noise: DatasetIndex, opened: DatasetIndex, server: Any) -> None:
    server.fault = lambda name, number: ("503", "500", "")[number % 3]
    assert contents(opened) == contents(noise)


def test_lasting_errors_end_in_one_line(opened: DatasetIndex, server: Any) -> None:
    server.fault = lambda name, number: "503"
    message = refusal(opened)
    assert message.startswith(f"shard {FIRST}: {server.url}/train/{FIRST}: HTTP 503 ")
    assert "(3 attempts)" in message
    assert len(server.requests(FIRST)) == 3


def test_a_page_instead_of_a_shard(opened: DatasetIndex, server: Any) -> None:
    server.fault = lambda name, number: "404"
    assert "HTTP 404 Not Found, starting b'<html>no such" in refusal(opened)
    assert len(server.requests(FIRST)) == 1, "asking again would not help"
    server.fault = lambda name, number: "html"
    assert (
        f"HTTP 200 (text/html), 26 bytes where {opened.shards[0].size} were expected, starting b'<html>"
        in (refusal(opened))
    )


def test_cuts_resume_where_they_happened(noise: DatasetIndex, opened: DatasetIndex, server: Any) -> None:
    server.fault = lambda name, number: "cut:65536"
    assert contents(opened) == contents(noise)
    for shard in opened.shards:
        found = server.requests(shard.name)
        assert len(found) == -(-shard.size // 65536)
        assert sum(request.sent for request in found) == shard.size, "no byte twice"
        assert [request.first for request in found[1:]] == [65536 * n for n in range(1, len(found))]


def test_more_cuts_than_attempts_are_no_error(opened: DatasetIndex, server: Any, noise: DatasetIndex) -> None:
    server.fault = lambda name, number: "cut:16384"
    assert ShardReader(opened).read(0) == ShardReader(noise).read(0)
    assert len(server.requests(FIRST)) > FAST.attempts


def test_without_range_a_cut_starts_again(noise: DatasetIndex, opened: DatasetIndex, server: Any) -> None:
    server.fault = lambda name, number: "whole cut:100000" if number == 0 else "whole"
    assert contents(opened) == contents(noise)


def test_without_range_cuts_for_ever_end_in_one_line(opened: DatasetIndex, server: Any) -> None:
    server.fault = lambda name, number: "whole cut:65536"
    assert f"ended at byte 65536 of {opened.shards[0].size}; the server cannot continue there (no Range)" in (
        refusal(opened)
    )
    assert len(server.requests(FIRST)) <= 1 + FAST.attempts


def test_slow_is_no_error_and_silent_is_no_hang(
    opened: DatasetIndex, server: Any, noise: DatasetIndex
) -> None:
    server.fault = lambda name, number: "slow:0.02"
    assert ShardReader(opened).read(0) == ShardReader(noise).read(0)
    hasty = load_index(
        f"{server.url}/train",
        cache=opened.store.cache,  # type: ignore[attr-defined]
        retry=Retry(attempts=2, delay_s=0.01, timeout_s=0.2),
    )
    server.fault = lambda name, number: "silent"
    started = time.monotonic()
    assert "timed out (2 attempts)" in refusal(hasty, 10)
    assert time.monotonic() - started < 3


def test_a_trickle_counts_as_cut(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Never silent for the timeout, and still of no use."""
    server.fault = lambda name, number: "slow:0.1"
    crawling = Retry(attempts=2, delay_s=0.01, timeout_s=0.25)
    assert b"".join(read_stream(f"{server.url}/train/index.json", retry=crawling))
    monkeypatch.setattr("data.remote._PROGRESS", 1 << 30)
    monkeypatch.setattr("data.remote._SLOWEST", 1 << 30)
    with pytest.raises(RemoteError, match=r"bytes in \d s: too slow \(2 attempts\)"):
        list(read_stream(f"{server.url}/train/{FIRST}", retry=crawling))


def test_wrong_bytes_never_reach_the_cache(noise: DatasetIndex, opened: DatasetIndex, server: Any) -> None:
    server.fault = lambda name, number: "other" if number == 0 else ""
    assert contents(opened) == contents(noise), "one wrong copy is fetched again"
    again = opened.store.cache.folder.with_name("again")  # type: ignore[attr-defined]
    bad = load_index(f"{server.url}/train", cache=Cache.default(again), retry=FAST)
    server.fault = lambda name, number: "other"
    server.log.clear()
    message = refusal(bad)
    assert message.startswith(
        f"shard {FIRST}: {server.url}/train/{FIRST} holds other bytes than the index says"
    )
    assert len(server.requests(FIRST)) == 2
    assert list((again / "shards").iterdir()) == []


def test_redirects_are_followed_but_not_anywhere(
    noise: DatasetIndex, opened: DatasetIndex, server: Any
) -> None:
    target = f"to:{server.url}/train/"
    server.fault = lambda name, number: (target + name, "cut:50000", target + name, "")[number % 4]
    assert contents(opened) == contents(noise)
    server.fault = lambda name, number: "to:file:///etc/passwd"
    with pytest.raises(RemoteError, match=r"HTTP 302 .*file:///etc/passwd"):
        list(read_stream(f"{server.url}/x", retry=FAST))


def test_https_does_not_become_http() -> None:
    import io
    import urllib.request

    request = urllib.request.Request("https://host/x")
    with pytest.raises(Failure, match="leads to http://other/x"):
        _Redirects().redirect_request(request, io.BytesIO(), 302, "", {}, "http://other/x?token=1")


def test_a_file_that_changes_in_a_stream_is_noticed(server: Any) -> None:
    server.fault = lambda name, number: f"cut:65536 tag:{number}"
    with pytest.raises(RemoteError, match="changed on the server"):
        list(read_stream(f"{server.url}/train/{FIRST}", retry=FAST))


def test_ranges_of_a_file(server: Any) -> None:
    whole = (server.root / "train" / FIRST).read_bytes()
    url = f"{server.url}/train/{FIRST}"
    for fault in ("", "whole", "cut:5000"):
        server.fault = lambda name, number, fault=fault: fault
        assert b"".join(read_stream(url, start=70_000, stop=70_100, retry=FAST)) == whole[70_000:70_100]
    server.fault = lambda name, number: "whole"
    with pytest.raises(RemoteError, match="only whole files"):
        list(read_stream(url, start=70_000, stop=70_100, must_range=True, retry=FAST))


def test_an_index_that_does_not_fit(
    noise: DatasetIndex, serve: Callable[[Path], Any], tmp_path: Path
) -> None:
    shutil.copytree(noise.root, tmp_path / "copy")
    server = serve(tmp_path)

    def load() -> str:
        with pytest.raises((ValueError, OSError)) as caught:
            load_index(f"{server.url}/copy", cache=Cache.default(tmp_path / "cache"), retry=FAST)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    keys = tmp_path / "copy" / f"{FIRST}.keys.npy"
    keys.write_bytes(keys.read_bytes()[:-1] + b"!")
    assert f"{FIRST}.keys.npy does not belong to index.json beside it" in load()
    description = json.loads((tmp_path / "copy/index.json").read_text())
    description["shards"][0]["sha256"] = "../../../../tmp/escaped"
    (tmp_path / "copy/index.json").write_text(json.dumps(description))
    assert "hash '../../../../tmp/escaped', not 64 hex digits" in load()
    (tmp_path / "copy/index.json").write_text("<html>welcome</html>")
    assert "copy/index.json: Expecting value" in load()
    (tmp_path / "copy/index.json").unlink()
    assert "HTTP 404" in (message := load())
    assert "run `shards index` where the shards lie" in message


def test_a_known_index_opens_without_its_server(
    noise: DatasetIndex, serve: Callable[[Path], Any], tmp_path: Path
) -> None:
    server = serve(noise.root.parent)
    index = load_index(f"{server.url}/train", cache=Cache.default(tmp_path), retry=FAST)
    before = contents(index)
    server.fault = lambda name, number: "503"
    with pytest.warns(RuntimeWarning, match="using the index that was fetched before"):
        again = load_index(f"{server.url}/train", cache=Cache.default(tmp_path), retry=FAST)
    assert contents(again) == before


def test_an_interrupted_copy_of_the_index_is_used(server: Any, tmp_path: Path) -> None:
    server.fault = lambda name, number: "404" if name == "train-000003.tar.keys.npy" else ""
    with pytest.raises(RemoteError, match="404"):
        load_index(f"{server.url}/train", cache=Cache.default(tmp_path), retry=FAST)
    server.fault, before = (lambda name, number: ""), len(server.requests(".npy"))
    load_index(f"{server.url}/train", cache=Cache.default(tmp_path), retry=FAST)
    assert len(server.requests(".npy")) < before + 12


def test_pipes_only_where_allowed(noise: DatasetIndex, tmp_path: Path) -> None:
    url = f"pipe:cat {noise.root}/{{name}}"
    with pytest.raises(ValueError, match="would run a command; pipes are refused unless allowed"):
        load_index(url, cache=Cache.default(tmp_path), retry=FAST)
    index = load_index(url, cache=Cache.default(tmp_path), retry=FAST, allow_pipes=True)
    assert contents(index) == contents(noise)
    with pytest.raises(RemoteError, match=r"ended with exit code 3 \(3 attempts\)"):
        list(read_stream("pipe:sh -c 'exit 3'", retry=FAST))
    with pytest.raises(RemoteError, match="cannot be started"):
        list(read_stream("pipe:no-such-command-here", retry=FAST))
    with pytest.raises(RemoteError, match="wrote nothing for"):
        list(read_stream("pipe:sleep 20", retry=Retry(attempts=1, timeout_s=0.2)))
    with pytest.raises(ValueError, match="only letters"):
        join(url, "a; rm -rf .tar")


def test_object_stores_go_through_fsspec(noise: DatasetIndex, tmp_path: Path) -> None:
    class Bucket(LocalFileSystem):  # type: ignore[misc]
        protocol = "s3"

        @classmethod
        def _strip_protocol(cls, path: str) -> str:
            return str(noise.root.parent / path.removeprefix("s3://bucket/"))

    fsspec.register_implementation("s3", Bucket, clobber=True)
    try:
        index = load_index("s3://bucket/train", cache=Cache.default(tmp_path), retry=FAST)
        assert contents(index) == contents(noise)
        with pytest.raises(RemoteError, match=r"s3://bucket/none/index.json: FileNotFoundError"):
            load_index("s3://bucket/none", cache=Cache.default(tmp_path), retry=FAST)
    finally:
        sys.modules["fsspec.registry"]._registry.pop("s3", None)


@pytest.mark.parametrize(("url", "package"), [("gs://b/train", "gcsfs"), ("s3://b/train", "s3fs")])
def test_a_missing_package_is_named(url: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ValueError, match=f"needs the package {package}; install it with"):
        load_index(url)


def test_addresses() -> None:
    assert is_url(Path("https://host/train"))
    assert to_url(Path("https://host/train")) == "https://host/train"
    assert not any(map(is_url, ("train", "/data/train", "C:/data", Path("a:b/c"))))
    assert join("https://host/a/?key=secret", "x y.tar") == "https://host/a/x%20y.tar?key=secret"
    assert join("gs://bucket/a/", "x.tar") == "gs://bucket/a/x.tar"
    assert shown("https://host/a/x.tar?key=secret") == "https://host/a/x.tar"
    with pytest.raises(ValueError, match="user and password") as caught:
        to_url("https://me:word@host/train")
    assert "word@" not in str(caught.value)

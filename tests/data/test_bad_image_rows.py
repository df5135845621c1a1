"""Single bad images: refused when the index is made; later they end an evaluation, or stand in the count of a training.

One test for each row of the list of bad inputs that is about images; `assert_policy` says what must become of one, for
both loaders, without and with workers. Covered in full elsewhere: the stand-in's choice on every layout, and after a
restart (test_bad_samples); the limit of a run, its log and its exit code (engine: test_bad_images).
"""

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.index import DatasetIndex, load_index
from data.shards import index_existing, make, verify
from data.transform import EvalTransform
from tests.data.bad_rows import (
    READERS,
    agree,
    assert_policy,
    column,
    every_reader,
    good,
    is_whole,
    overwrite,
    read,
    shards,
)
from tests.data.trees import encode, write_tar

BAD = 5  # the position of the sample that is damaged


def flip(index: DatasetIndex, key: int, place: int) -> None:
    shard, row = index.locate(key)
    with (index.root / index.shards[shard].name).open("r+b") as file:
        offset = int(index.records(shard)[row]["offset"]) + place
        byte = os.pread(file.fileno(), 1, offset)[0]
        os.pwrite(file.fileno(), bytes([byte ^ 8]), offset)


def content_of(index: DatasetIndex, key: int) -> bytes:
    shard, row = index.locate(key)
    record = index.records(shard)[row]
    with (index.root / index.shards[shard].name).open("rb") as file:
        return os.pread(file.fileno(), int(record["size"]), int(record["offset"]))


def pixels(content: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))


def test_bit_flip_that_still_decodes(tmp_path: Path) -> None:
    """Only the checksum of the index can tell."""
    index = shards(tmp_path)
    whole = content_of(index, BAD)
    place = len(whole) - 60
    flip(index, BAD, place)
    damaged = content_of(index, BAD)
    assert pixels(damaged).shape == (16, 16, 3), "a decoder has nothing to say"
    assert not np.array_equal(pixels(damaged), pixels(whole))
    assert_policy(index, BAD, r"crc32\)")
    found = verify(tmp_path, full=True).problems
    assert "shard t-1.tar, key '005': the image's crc32 differs from the index" in found
    assert verify(tmp_path, full=False, sample=12).problems == found[1:2]


@pytest.mark.parametrize(
    ("instead", "reason"),
    [
        (b"hello, this is text", "the 19 bytes starting b'hello, t' are not a JPEG"),
        (b"", "the 0 bytes starting b'' are not a JPEG"),
        (b"<html>404</html>", "are not a JPEG"),
        (b"%PDF-1.7", "are not a JPEG"),
    ],
)
def test_member_that_is_no_image(tmp_path: Path, instead: bytes, reason: str) -> None:
    members = good(4)
    members["002.jpg"] = instead
    write_tar(tmp_path / "t-0.tar", members)
    with pytest.raises(ValueError, match=rf"shard t-0\.tar, key '002': .*{reason}.*; remove or repair it"):
        index_existing(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["t-0.tar"]
    assert_policy(overwrite(shards(tmp_path), BAD, instead), BAD, reason)
    (problem,) = verify(tmp_path, full=False, sample=12, decode=True).problems
    assert reason in problem


def test_truncated_jpeg(tmp_path: Path) -> None:
    """Cut in its data, and only its end marker missing: no rows are made up."""
    for cut in (100, 2):
        index = shards(tmp_path)
        members = good(4, start=4)
        members["005.jpg"] = members["005.jpg"][:-cut]
        write_tar(tmp_path / "t-1.tar", members)
        with pytest.raises(ValueError, match=r"key '005': the JPEG image cannot be decoded"):
            index_existing(tmp_path)
        index = index_existing(tmp_path, decode=False)
        assert_policy(index, BAD, "the JPEG image cannot be decoded")
        (problem,) = verify(tmp_path, full=True, decode=True).problems
        assert problem.startswith("shard t-1.tar, key '005': the JPEG image cannot be decoded")
        (tmp_path / "index.json").unlink()


def test_decompression_bomb(tmp_path: Path) -> None:
    """300 million pixels by its header, in 70 bytes."""
    body = b"IHDR" + struct.pack(">IIBBBBB", 20_000, 15_000, 8, 2, 0, 0, 0)
    chunks = (body, b"IDAT" + zlib.compress(b""))
    bomb = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) for chunk in chunks
    )
    for decode in (True, False):
        write_tar(tmp_path / "t-0.tar", {"a.png": bomb, "a.cls": b"0"})
        with pytest.raises(ValueError, match=r"key 'a': .*(20000x15000|300000000) pixels"):
            index_existing(tmp_path, decode=decode)
    assert_policy(overwrite(shards(tmp_path), BAD, bomb), BAD, r"(20000x15000|300000000) pixels")


@every_reader
@pytest.mark.parametrize("size", [(1, 1), (500, 33), (33, 500), (1, 700)])
def test_tiny_and_long_images(tmp_path: Path, size: tuple[int, int], kind: str, num_workers: int) -> None:
    members = good(7) | {"long.jpg": encode(9, size=size), "long.cls": b"1"}
    write_tar(tmp_path / "t-0.tar", members)
    index = index_existing(tmp_path)
    assert verify(tmp_path, full=True, decode=True).ok
    for mode in ("center", "squash"):
        batches = read(index, kind, num_workers, resize=EvalTransform(mode=mode))
        assert is_whole(index, batches)
    place = column(batches, "key").tolist().index(7)
    assert column(batches, "image")[place].float().std() > 0 or size == (1, 1)


def image_of(mode: str, kind: str) -> bytes:
    """16x16 noise in a Pillow mode."""
    values = np.random.default_rng(3).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    image = Image.fromarray(values)
    if mode == "I;16":
        image = Image.fromarray(np.random.default_rng(3).integers(0, 65536, (16, 16)).astype(np.uint16))
    elif mode == "RGBA":
        image.putalpha(Image.fromarray(values[..., 0]))
    elif mode != "RGB":
        image = image.convert(mode)
    assert image.mode == mode
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


@pytest.mark.parametrize("num_workers", [0, 2])
def test_formats_equal_pillow(tmp_path: Path, num_workers: int) -> None:
    """What the loader gives is what Pillow decodes, to the bit, whatever the member is called."""
    kinds = {
        "cmyk.jpg": ("CMYK", "JPEG"), "gray.JPEG": ("L", "JPEG"), "rgba.png": ("RGBA", "PNG"),
        "deep.png": ("I;16", "PNG"), "palette.png": ("P", "PNG"), "bit.png": ("1", "PNG"), "la.png": ("LA", "PNG"),
        "a.webp": ("RGB", "WEBP"), "alpha.webp": ("RGBA", "WEBP"), "png-named.JPEG": ("RGB", "PNG"),
        "jpeg-named.png": ("RGB", "JPEG"), "webp-named.jpg": ("RGB", "WEBP"),
    }  # fmt: skip
    members = {name: image_of(*kind) for name, kind in kinds.items()}
    labels = {f"{name.rpartition('.')[0]}.cls": b"0" for name in kinds}
    write_tar(tmp_path / "t-0.tar", members | labels)
    index = index_existing(tmp_path)
    assert verify(tmp_path, full=True, decode=True).ok
    batches = read(index, "eval", num_workers)
    assert is_whole(index, batches)
    for key, image in zip(
        column(batches, "key").tolist(), column(batches, "image").permute(0, 2, 3, 1).numpy(), strict=True
    ):
        name = next(name for name in kinds if name.rpartition(".")[0] == index.name(key))
        assert np.array_equal(image, pixels(members[name])), name


@pytest.mark.parametrize("kind", ["GIF", "BMP"])
def test_formats_that_are_refused(tmp_path: Path, kind: str) -> None:
    """Formats that webdataset's readers do not take: refused where shards are made, read as Pillow does where an
    index has them.
    """
    content = image_of("P" if kind == "GIF" else "RGB", kind)
    write_tar(tmp_path / "t-0.tar", {"a.jpg": content, "a.cls": b"0"})
    with pytest.raises(ValueError, match=rf"key 'a': {kind} of 16x16 is no JPEG, PNG or WebP"):
        index_existing(tmp_path)
    folder = tmp_path / "tree/train/x"
    folder.mkdir(parents=True)
    (folder / "a.jpg").write_bytes(content)
    with pytest.raises(ValueError, match="are not JPEG, PNG or WebP images"):
        make(tmp_path / "tree", tmp_path / "made", split="train")
    members = good(12)
    members["005.jpg"] = members["005.jpg"].ljust(len(content), b"\0")
    write_tar(tmp_path / "t-0.tar", members)
    index = overwrite(index_existing(tmp_path), BAD, content)
    for reader, num_workers in READERS:
        assert is_whole(index, read(index, reader, num_workers))
    assert np.array_equal(
        column(read(index, "eval", 0), "image")[BAD].permute(1, 2, 0).numpy(), pixels(content)
    )


@pytest.mark.parametrize("num_workers", [0, 2])
def test_exif_orientation(tmp_path: Path, num_workers: int) -> None:
    """Ignored, as the published numbers do, applied on demand, and known to the index."""
    exif = Image.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    Image.fromarray(pixels(encode(1, "PNG", size=(16, 16)))).save(file, "JPEG", exif=exif, quality=95)
    write_tar(tmp_path / "t-0.tar", good(3) | {"turned.jpg": file.getvalue(), "turned.cls": b"0"})
    index = index_existing(tmp_path)
    assert [bool(flags & 0x10) for flags in index.records(0)["flags"].tolist()] == [False, False, False, True]
    plain = column(read(index, "eval", num_workers), "image")[3].permute(1, 2, 0).numpy()
    assert np.array_equal(plain, pixels(file.getvalue()))
    turn = EvalTransform(mode="none", apply_exif=True)
    turned = column(read(index, "eval", num_workers, resize=turn), "image")
    assert np.array_equal(turned[3].permute(1, 2, 0).numpy(), np.rot90(plain, -1))
    others = column(read(index, "eval", 0), "image")[:3]
    assert np.array_equal(turned[:3].numpy(), others.numpy())


@pytest.mark.parametrize("text", [b"cat", b"-1", b"1.0", b"", b"1000000000000"])
def test_label_that_is_no_number(tmp_path: Path, text: bytes) -> None:
    write_tar(tmp_path / "t-0.tar", good(2) | {"a.jpg": encode(0), "a.cls": text})
    with pytest.raises(
        ValueError, match=r"shard t-0\.tar, key 'a': the label .* is not a whole number from 0"
    ):
        index_existing(tmp_path)


@pytest.mark.parametrize("label", [-1, 2, 1_000_000])
def test_label_outside_the_classes(tmp_path: Path, label: int) -> None:
    write_tar(tmp_path / "t-0.tar", good(4) | {"002.cls": str(max(label, 2)).encode()})
    with pytest.raises(ValueError, match=rf"t-0\.tar holds label {max(label, 2)}, outside 0\.\.1"):
        index_existing(tmp_path, classes=["a", "b"])
    shards(tmp_path, count=4)
    records = np.load(tmp_path / "t-0.tar.idx.npy")
    records["label"][2] = label
    np.save(tmp_path / "t-0.tar.idx.npy", records)
    with pytest.raises(ValueError, match=rf"shard t-0\.tar holds label {label}, outside 0\.\.1"):
        agree(tmp_path, 0)
    assert f"shard t-0.tar, sample 2: label {label} is outside 0..1" in verify(tmp_path, full=False).problems
    with pytest.raises(ValueError, match="holds label"):
        load_index(tmp_path)

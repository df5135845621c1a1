"""Other people's tars as public hubs hold them: names of classes, notes, several splits, folders that are read-only."""

import json
import os
import subprocess
import tarfile
from pathlib import Path

import numpy as np
import pytest
import webdataset
from PIL import Image

from data.index import load_index
from data.read import ShardReader
from data.shards import index_existing, verify
from tests.data.trees import content, encode, write_tar


class Witness:
    def __init__(self) -> None:
        self.said, self.steps = list[str](), list[tuple[int, int, str]]()

    def say(self, text: str) -> None:
        self.said.append(text)

    def advance(self, done: int, total: int, unit: str = "images") -> None:
        self.steps.append((done, total, unit))


def write_hub(folder: Path, name: str, *, shards: int = 2, per_shard: int = 3) -> dict[str, object]:
    """Tars `NAME-NN.tar` as webdataset's writer makes them for timm: jpg, cls, json. Their entry in `_info.json`."""
    folder.mkdir(exist_ok=True)
    with webdataset.ShardWriter(str(folder / f"{name}-%02d.tar"), maxcount=per_shard, verbose=0) as writer:
        for number in range(shards * per_shard):
            facts = {"label": number % 4, "width": 20, "height": 16, "filename": f"{number}.JPEG"}
            key = f"{name}_{number:04d}"
            writer.write({"__key__": key, "jpg": encode(number), "cls": number % 4, "json": facts})
    filenames = [f"{name}-{number:02d}.tar" for number in range(shards)]
    return {
        "name": name,
        "filenames": filenames,
        "shard_lengths": [per_shard] * shards,
        "num_samples": shards * per_shard,
    }


def test_a_folder_as_timm_publishes_it(tmp_path: Path) -> None:
    hub = tmp_path / "hub"
    splits = {s: write_hub(hub, f"imagenet1k-{s}", shards=n) for s, n in (("train", 3), ("validation", 2))}
    (hub / "_info.json").write_text(json.dumps({"splits": splits}))
    before = content(hub)
    with pytest.raises(
        ValueError, match=r"holds several splits: there are train, validation; choose with --split"
    ):
        index_existing(hub)
    with pytest.raises(ValueError, match="no split test: there are train, validation"):
        index_existing(hub, split="test")
    with pytest.raises(
        ValueError, match=r"holds other shards beside those of val; give a folder for the index"
    ):
        index_existing(hub, split="val")
    watch = Witness()
    made = index_existing(hub, into=tmp_path / "val", split="val", watch=watch)
    assert content(hub) == before, "nothing is written beside the tars"
    assert (made.num_samples, made.description.split, made.description.dataset) == (6, "val", "hub")
    assert made.labels().tolist() == [0, 1, 2, 3, 0, 1]
    assert watch.steps == [(1, 2, "shards"), (2, 2, "shards")]
    assert verify(tmp_path / "val", full=True, decode=True).ok
    assert index_existing(hub, into=tmp_path / "train", split="train").num_samples == 9
    assert index_existing(hub, into=tmp_path / "val", split="val").dataset_id == made.dataset_id


def test_splits_told_by_names_alone(tmp_path: Path) -> None:
    hub = tmp_path / "hub"
    for name in ("set_train", "set_val"):
        write_hub(hub, name)
    with pytest.raises(ValueError, match=r"holds several splits: there are train, val"):
        index_existing(hub)
    assert index_existing(hub, into=tmp_path / "v", split="validation").num_samples == 6


def test_links_are_read_as_the_tars_themselves(tmp_path: Path) -> None:
    write_hub(tmp_path / "hub", "t")
    made = index_existing(tmp_path / "hub", into=tmp_path / "new" / "index")
    assert all((made.root / shard.name).is_symlink() for shard in made.shards)
    direct = index_existing(tmp_path / "hub")
    assert direct.dataset_id == made.dataset_id
    reader, other = ShardReader(made), ShardReader(direct)
    assert [reader.read(key) for key in range(6)] == [other.read(key) for key in range(6)]
    for each in (reader, other):
        each.close()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "x").write_text("x")
    with pytest.raises(ValueError, match="mine is not empty; choose another folder for the index"):
        index_existing(tmp_path / "hub", into=tmp_path / "mine")


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    write_hub(tmp_path / "hub", "t")
    mounted = tmp_path / "ro"
    mounted.mkdir()
    try:
        subprocess.run(["mount", "--bind", tmp_path / "hub", mounted], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("may not mount")
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", mounted], check=True, capture_output=True)
        with pytest.raises(ValueError, match=r"ro cannot be written; .*: shards index .*/ro DST"):
            index_existing(mounted)
        assert index_existing(mounted, into=tmp_path / "index").num_samples == 6
    finally:
        subprocess.run(["umount", "-l", mounted], check=True)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"shard_lengths": [3, 4], "num_samples": 7}, r"shard t-01.tar holds 3 samples, the folder's notes say 4"),
        ({"filenames": ["t-00.tar", "t-01.tar", "t-02.tar"], "shard_lengths": [3, 3, 3], "num_samples": 9},
         r"lacks 1 shards of its notes: t-02.tar; fetch them"),
        ({"num_samples": 5}, r"_info.json cannot be read as timm's notes .*num_samples 5 and shards of 6"),
        ({"filenames": None}, r"_info.json cannot be read"),
    ],
)  # fmt: skip
def test_notes_that_disagree(tmp_path: Path, changes: dict[str, object], reason: str) -> None:
    entry = write_hub(tmp_path, "t")
    (tmp_path / "_info.json").write_text(json.dumps({"splits": {"train": entry | changes}}))
    before = content(tmp_path)
    with pytest.raises(ValueError, match=reason):
        index_existing(tmp_path)
    assert content(tmp_path) == before
    (tmp_path / "_info.json").write_text("<html>")
    with pytest.raises(ValueError, match=r"_info.json cannot be read"):
        index_existing(tmp_path)
    (tmp_path / "_info.json").write_text(json.dumps({"splits": {"train": entry}}))
    assert index_existing(tmp_path).num_samples == 6


def test_labels_as_names_and_in_json(tmp_path: Path) -> None:
    members = {
        "a.jpg": encode(0), "a.cls": b"dog\n", "b.webp": encode(1, "WEBP"), "b.json": b'{"label": 2}',
        "c.PNG": encode(2, "PNG"), "c.json": b'{"label": "cat"}', "d.jpg": encode(3), "d.cls": b"1", "d.json": b"{}",
        "d.txt": b"?", "README": b"?",
    }  # fmt: skip
    write_tar(tmp_path / "t-0.tar", members)
    with pytest.raises(
        ValueError, match=r"key 'a': the label 'dog' is not a whole number from 0; .* --classes"
    ):
        index_existing(tmp_path)
    (tmp_path / "classnames.txt").write_text("cat\ndog\nowl\n")
    watch = Witness()
    index = index_existing(tmp_path, watch=watch)
    assert dict(zip([index.name(key) for key in range(4)], index.labels().tolist(), strict=True)) == {
        "a": 1, "b": 2, "c": 0, "d": 1,
    }  # fmt: skip
    assert watch.said == [
        f"{tmp_path}: members that are neither images nor labels stay unread: 1 .txt, 1 without extension"
    ]
    assert verify(tmp_path, full=True).ok
    given = index_existing(tmp_path, classes=["dog", "cat", "owl"])
    assert given.classes == ("dog", "cat", "owl")
    assert given.label(0) == 0
    with pytest.raises(ValueError, match="label 'dog' is not a whole number from 0 nor in the class list"):
        index_existing(tmp_path, classes=["x", "y", "z"])


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ({"a.jpg": encode(0), "a.json": b"{"}, "key 'a': its .json cannot be read"),
        ({"a.jpg": encode(0), "a.json": b"[1]"}, "key 'a': neither a .cls nor a label in its .json"),
        ({"a.jpg": encode(0), "a.json": b'{"label": -1}'}, "label '-1' is not a whole number"),
        ({"a.jpg": encode(0), "a.json": b'{"label": 1.5}'}, r"label '1.5' is not a whole number"),
        ({"a.jpg": encode(0), "a.cls": b"0" * (1 << 21)}, "the label member has 2097152 bytes"),
        ({"a.jpg": encode(0)[:-300], "a.cls": b"0"}, "key 'a': the JPEG image cannot be decoded"),
        ({"a.jpg": encode(0, "GIF"), "a.cls": b"0"}, "key 'a': GIF of 20x16 is no JPEG, PNG or WebP"),
        ({"img.v1.jpg": encode(0), "img.cls": b"0"}, "key 'img' has no image"),
        ({"a.jpg.cls": b"0", "a.jpg": encode(0)}, "key 'a' has no label"),
    ],
)
def test_samples_that_are_refused(tmp_path: Path, members: dict[str, bytes], reason: str) -> None:
    write_tar(tmp_path / "t-0.tar", members)
    with pytest.raises(ValueError, match=rf"shard t-0.tar.*{reason}"):
        index_existing(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["t-0.tar"]


def test_a_bomb_is_refused_from_its_header(tmp_path: Path) -> None:
    bomb = bytearray(encode(0, "PNG"))
    bomb[16:24] = (20_000).to_bytes(4, "big") + (15_000).to_bytes(4, "big")
    import zlib

    bomb[29:33] = zlib.crc32(bomb[12:29]).to_bytes(4, "big")
    write_tar(tmp_path / "t-0.tar", {"a.png": bytes(bomb), "a.cls": b"0"})
    for decode in (True, False):
        with pytest.raises(ValueError, match=r"key 'a': .*(300000000|20000x15000) pixels"):
            index_existing(tmp_path, decode=decode)


def test_without_decoding_headers_are_still_read(tmp_path: Path) -> None:
    write_tar(
        tmp_path / "t-0.tar",
        {"a.jpg": encode(0)[:-30], "a.cls": b"0", "b.jpg": encode(1, mode="L"), "b.cls": b"0"},
    )
    index = index_existing(tmp_path, decode=False)
    assert index.records(0)["width"].tolist() == [20, 20]
    assert verify(tmp_path, full=True).ok
    (problem,) = verify(tmp_path, full=True, decode=True).problems
    assert problem.startswith("shard t-0.tar, key 'a': the JPEG image cannot be decoded")
    write_tar(tmp_path / "t-0.tar", {"a.jpg": b"hello", "a.cls": b"0"})
    with pytest.raises(ValueError, match="key 'a': the 5 bytes"):
        index_existing(tmp_path, decode=False)


def test_a_missing_end_is_allowed_on_demand(tmp_path: Path) -> None:
    path = tmp_path / "t-0.tar"
    write_tar(path, {"a.jpg": encode(0), "a.cls": b"0", "b.jpg": encode(1), "b.cls": b"0"})
    with tarfile.open(path) as tar:
        last = tar.getmembers()[-1]
    os.truncate(path, last.offset_data + 512)
    with pytest.raises(
        ValueError, match=r"shard t-0.tar, byte \d+: the file ends without the end-of-archive"
    ):
        index_existing(tmp_path)
    assert index_existing(tmp_path, allow_no_end=True).num_samples == 2
    assert verify(tmp_path, full=True).ok
    os.truncate(path, last.offset_data)
    with pytest.raises(ValueError, match=r"t-0.tar, byte \d+: .*it was cut"):
        index_existing(tmp_path, allow_no_end=True)
    os.truncate(path, last.offset_data - 100)
    with pytest.raises(ValueError, match=r"t-0.tar, byte \d+: .*it was cut"):
        index_existing(tmp_path, allow_no_end=True)


def test_everything_a_tar_can_be_instead(tmp_path: Path) -> None:
    good = {"a.jpg": encode(0), "a.cls": b"0"}
    path = tmp_path / "t-0.tar"
    for name in ("../a.jpg", "/etc/a.jpg"):
        write_tar(path, {name: encode(0), "a.cls": b"0"})
        with pytest.raises(ValueError, match=r"t-0.tar, byte \d+: member name .* leaves its folder"):
            index_existing(tmp_path)
    for instead in (b"", b"<html>404</html>" * 100):
        path.write_bytes(instead)
        with pytest.raises(ValueError, match=r"shard t-0.tar, byte 0: "):
            index_existing(tmp_path)
    write_tar(path, good)
    with tarfile.open(path, "a") as tar:
        link = tarfile.TarInfo("b.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    with pytest.raises(ValueError, match="a link or device; only plain files are read"):
        index_existing(tmp_path)


def test_pickles_beside_the_images_are_never_opened(tmp_path: Path) -> None:
    write_tar(
        tmp_path / "t-0.tar", {"a.jpg": encode(0), "a.cls": b"0", "a.pyd": b"cos\nabort\n(tR.", "a.pth": b"x"}
    )
    watch = Witness()
    assert index_existing(tmp_path, watch=watch).num_samples == 1
    assert watch.said[0].endswith("stay unread: 1 .pth, 1 .pyd")


def test_one_pixel_and_very_long_images_are_kept(tmp_path: Path) -> None:
    sizes = {"a": (1, 1), "b": (500, 33), "c": (2, 3000)}
    members = {f"{key}.jpg": encode(0, size=size) for key, size in sizes.items()}
    write_tar(tmp_path / "t-0.tar", members | {f"{key}.cls": b"0" for key in sizes})
    records = index_existing(tmp_path).records(0)
    assert [(int(r["width"]), int(r["height"])) for r in records] == list(sizes.values())


def test_verify_reads_a_sample_of_the_bytes(tmp_path: Path) -> None:
    write_hub(tmp_path, "t", shards=4, per_shard=10)
    index_existing(tmp_path)
    report = verify(tmp_path, full=False, sample=15)
    assert (report.ok, report.num_read) == (True, 15)
    index = load_index(tmp_path)
    for number, shard in enumerate(index.shards):
        records = index.records(number)
        with (tmp_path / shard.name).open("r+b") as file:
            for record in records:
                file.seek(int(record["offset"]) + int(record["size"]) // 2)
                byte = os.pread(file.fileno(), 1, file.tell())[0]
                file.write(bytes([byte ^ 1]))
    assert verify(tmp_path, full=False).ok
    found = verify(tmp_path, full=False, sample=15).problems
    assert len(found) == 15
    assert len(set(found)) == 15
    assert verify(tmp_path, full=False, sample=15).problems == found
    everything = verify(tmp_path, full=True, num_workers=2)
    assert len(everything.problems) == 40 + 4
    assert everything.problems == verify(tmp_path, full=True).problems
    assert everything.num_read == 40


def test_verify_tells_how_far_it_is(tmp_path: Path) -> None:
    write_hub(tmp_path, "t", shards=2, per_shard=3)
    index_existing(tmp_path)
    watch = Witness()
    verify(tmp_path, full=True, watch=watch)
    assert watch.steps == [(3, 6, "images"), (6, 6, "images")]


def test_pixels_behind_a_rotation_and_cmyk_are_counted(tmp_path: Path) -> None:
    import io

    from data.info import info

    turned = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.zeros((8, 12, 3), np.uint8)).save(turned, "JPEG", exif=exif)
    members = {
        "a.jpg": turned.getvalue(), "b.jpg": encode(0, mode="CMYK"), "c.png": encode(0, "PNG", mode="L"),
        "a.cls": b"0", "b.cls": b"0", "c.cls": b"4",
    }  # fmt: skip
    write_tar(tmp_path / "t-0.tar", members)
    index_existing(tmp_path)
    facts = info(tmp_path)
    assert facts["flags"] == {"gray": 1, "cmyk": 1, "rotated": 1, "progressive": 0}
    assert facts["images_per_class"] == {"min": 1, "median": 1.5, "max": 2}
    assert facts["empty_classes"] == 3
    assert facts["width"] == {"min": 12, "median": 20.0, "max": 20}
    assert facts["height"] == {"min": 8, "median": 16.0, "max": 16}
    assert facts["image_bytes"]["max"] == max(len(members[name]) for name in ("a.jpg", "b.jpg", "c.png"))

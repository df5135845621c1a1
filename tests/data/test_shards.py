"""Shards from folders and from other people's tars: the happy path, every refusal, and what verify must
see."""

import gc
import io
import os
import shutil
import tarfile
import warnings
from pathlib import Path

import numpy as np
import pytest
import webdataset
from PIL import Image

from data.index import FLAG_CMYK, FLAG_GRAY, FLAG_PROGRESSIVE, load_index
from data.read import BadSample, ShardReader
from data.shards import index_existing, info, make, verify
from data.source import list_images, natural_key
from data.tar import Writer, scan


def encode(seed: int, kind: str = "JPEG", *, mode: str = "RGB", size: tuple[int, int] = (20, 16)) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, kind)
    return file.getvalue()


def write_tree(root: Path, *, num_classes: int = 12, per_class: int = 3) -> Path:
    for label in range(num_classes):
        (root / "train" / str(label)).mkdir(parents=True)
        for number in range(per_class):
            kind, suffix = [("JPEG", "JPEG"), ("PNG", "png"), ("WEBP", "webp")][number % 3]
            path = root / "train" / str(label) / f"im.{number}.{suffix}"
            path.write_bytes(encode(100 * label + number, kind))
    return root


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return write_tree(tmp_path / "tree")


@pytest.fixture
def shards(tree: Path, tmp_path: Path) -> Path:
    make(tree, tmp_path / "shards", split="train", samples_per_shard=10)
    return tmp_path / "shards"


def write_tar(path: Path, members: dict[str, bytes]) -> None:
    with path.open("wb") as file:
        writer = Writer(file)
        for name, content in members.items():
            writer.add(name, content)
        writer.close()


def flip_byte(path: Path, offset: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 1]))


def listing(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_every_file_arrives_with_its_label_and_bytes(tree: Path, shards: Path) -> None:
    index = load_index(shards)
    assert index.classes == tuple(str(label) for label in range(12)), "naturally sorted: 2 before 10"
    assert [shard.num_samples for shard in index.shards] == [10, 10, 10, 6]
    reader = ShardReader(index)
    seen = set()
    for key in range(index.num_samples):
        folder, stem = index.name(key).split("/")
        (path,) = (tree / "train" / folder).glob(stem.replace("_", ".") + ".*")
        assert reader.read(key) == path.read_bytes()
        assert index.label(key) == int(folder)
        seen.add(path)
    assert len(seen) == 36
    assert index.labels().tolist() == [index.label(key) for key in range(36)]


def test_classes_are_mixed_over_shards(shards: Path) -> None:
    assert len(set(load_index(shards).records(0)["label"].tolist())) > 4


def test_our_shards_are_readable_by_webdataset(shards: Path) -> None:
    index = load_index(shards)
    urls = [str(shards / shard.name) for shard in index.shards]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # webdataset leaves its files to the collector
        found = list(webdataset.WebDataset(urls, shardshuffle=False, empty_check=False))
        gc.collect()
    assert [sample["__key__"] for sample in found] == [index.name(key) for key in range(index.num_samples)]
    assert [int(sample["cls"]) for sample in found] == index.labels().tolist()
    reader = ShardReader(index)
    for key, sample in enumerate(found):
        (image,) = (sample[extension] for extension in ("jpg", "png", "webp") if extension in sample)
        assert image == reader.read(key)


def test_make_gives_the_same_bytes_with_workers(tree: Path, shards: Path, tmp_path: Path) -> None:
    make(tree, tmp_path / "again", split="train", samples_per_shard=10, num_workers=2)
    assert listing(tmp_path / "again") == listing(shards)
    make(tree, tmp_path / "other", split="train", samples_per_shard=10, seed=1)
    assert load_index(tmp_path / "other").dataset_id != load_index(shards).dataset_id


def test_a_shard_closes_at_max_bytes(tree: Path, tmp_path: Path) -> None:
    index = make(tree, tmp_path / "s", split="train", max_bytes=2000)
    for number, shard in enumerate(index.shards):
        total = int(index.records(number)["size"].sum())
        assert total <= 2000 or shard.num_samples == 1


def test_root_and_split_folder_are_both_accepted(tree: Path, shards: Path, tmp_path: Path) -> None:
    direct = make(tree / "train", tmp_path / "s", split="train", samples_per_shard=10, dataset="tree")
    assert direct.dataset_id == load_index(shards).dataset_id
    (tree / "train").rename(tree / "val")
    assert make(tree, tmp_path / "v", split="validation").num_samples == 36


def test_reindexing_gives_the_same_dataset(shards: Path) -> None:
    before = load_index(shards).dataset_id
    assert index_existing(shards).dataset_id == before


def test_natural_order() -> None:
    assert sorted(["10", "9", "a10", "a9", "B", "01"], key=natural_key) == ["01", "9", "10", "B", "a9", "a10"]


@pytest.mark.parametrize("name", ["notes.txt", "README.md", "really_text.jpg", "empty.png"])
def test_make_names_files_that_are_no_images(tree: Path, tmp_path: Path, name: str) -> None:
    (tree / "train" / "3" / name).write_bytes(b"" if name == "empty.png" else b"hello")
    with pytest.raises(ValueError, match=rf"1 files .* not JPEG, PNG or WebP images: 3/{name}"):
        make(tree, tmp_path / "s", split="train")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tree"]


def test_make_names_an_image_that_cannot_be_decoded_and_leaves_nothing(tree: Path, tmp_path: Path) -> None:
    path = tree / "train" / "7" / "im.0.JPEG"
    path.write_bytes(path.read_bytes()[:-300])
    with pytest.raises(ValueError, match=r"7/im.0.JPEG: .*cannot be decoded"):
        make(tree, tmp_path / "s", split="train")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["tree"], "no half-made folder may stay"


def test_make_keeps_an_old_folder_unless_told(tree: Path, shards: Path) -> None:
    before = listing(shards)
    with pytest.raises(ValueError, match="is not empty"):
        make(tree, shards, split="train")
    assert listing(shards) == before
    (tree / "train" / "7" / "im.0.JPEG").write_bytes(b"\xff\xd8\xff broken")
    with pytest.raises(ValueError, match=r"im.0.JPEG"):
        make(tree, shards, split="train", overwrite=True)
    assert listing(shards) == before, "a failed overwrite must not cost the old shards"
    (tree / "train" / "7" / "im.0.JPEG").unlink()
    assert make(tree, shards, split="train", overwrite=True).num_samples == 35
    assert sorted(path.name for path in shards.parent.iterdir()) == ["shards", "tree"]


def test_source_refusals(tree: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no folder"):
        list_images(tree / "nowhere", split="train")
    with pytest.raises(ValueError, match="folder inside a class folder"):
        list_images(tree, split="test")
    with pytest.raises(ValueError, match="not in the class list: 2, 3"):
        list_images(tree, split="train", classes=["0", "1"])
    (tree / "train" / "12").mkdir()
    with pytest.raises(ValueError, match="12 is empty"):
        list_images(tree, split="train")
    (tree / "train" / "12").rmdir()
    (tree / "train" / "notes.md").write_text("x")
    with pytest.raises(ValueError, match=r"files beside its class folders: notes.md"):
        list_images(tree, split="train")


def test_the_systems_own_files_are_counted_and_left(tree: Path) -> None:
    """And a README beside the class folders, as ImageNet-A and -R come with."""
    for place in (tree / "train", tree / "train" / "3"):
        for name in (".DS_Store", "Thumbs.db", "._0.JPEG", "desktop.ini"):
            (place / name).write_bytes(b"x")
    (tree / "train" / ".cache").mkdir()
    (tree / "train" / "README.txt").write_text("x")
    source = list_images(tree, split="train")
    assert (len(source.images), source.num_ignored) == (36, 9)


def test_numbered_folders_mean_places_in_the_class_list(tree: Path, tmp_path: Path) -> None:
    """ImageNet-V2: folders 0 to 999, which sort as numbers, and keys named after classes."""
    shutil.rmtree(tree / "train" / "7")
    with pytest.raises(
        ValueError, match=r"train has folders 0 to 11, but 7 missing; unpack it again, or give"
    ):
        list_images(tree, split="train")
    wnids = [f"n{number:08d}" for number in range(90, 102)]
    source = list_images(tree, split="train", classes=wnids)
    assert source.classes == tuple(wnids)
    assert {(image.name.split("/")[0], image.label) for image in source.images} == {
        (wnid, label) for label, wnid in enumerate(wnids) if label != 7
    }
    index = make(tree, tmp_path / "s", split="train", classes=wnids)
    assert index.name(0).startswith("n00000")
    assert (index.num_samples, len(index.classes), source.num_found) == (33, 12, 11)


def test_a_folder_named_like_the_split_is_a_class_where_asked(tmp_path: Path) -> None:
    """ImageNet-C's gaussian_noise/3 packed as split 3 is not its class folder 3."""
    write_tree(tmp_path / "t")
    (tmp_path / "t" / "train").rename(tmp_path / "3")
    assert make(tmp_path / "3", tmp_path / "s", split="3", descend=False).num_samples == 36


def test_headers_alone_give_the_same_shards(tree: Path, shards: Path, tmp_path: Path) -> None:
    make(tree, tmp_path / "quick", split="train", samples_per_shard=10, decode=False)
    assert listing(tmp_path / "quick") == listing(shards)


def test_a_class_list_keeps_labels_when_classes_are_missing(tree: Path) -> None:
    names = [str(label) for label in range(20, -1, -1)]
    source = list_images(tree, split="train", classes=names)
    assert {image.label for image in source.images if image.name.startswith("3/")} == {17}


def test_same_stem_gets_distinct_keys(tree: Path) -> None:
    folder = tree / "train" / "0"
    (folder / "x.jpg").write_bytes(encode(1))
    (folder / "x.png").write_bytes(encode(2, "PNG"))
    names = {image.name for image in list_images(tree, split="train").images}
    assert {"0/x_jpg", "0/x_png"} <= names
    (folder / "x_jpg.jpg").write_bytes(encode(3))
    with pytest.raises(ValueError, match="would both get the key '0/x_jpg'"):
        list_images(tree, split="train")


def test_flags_describe_the_image(tmp_path: Path) -> None:
    file = io.BytesIO()
    Image.new("RGB", (9, 7)).save(file, "JPEG", progressive=True)
    members = {
        "a.jpg": encode(0, mode="CMYK"),
        "b.jpeg": encode(0, mode="L", size=(5, 4)),
        "c.jpg": file.getvalue(),
    }
    write_tar(tmp_path / "x-0.tar", members | {f"{name}.cls": b"0\n" for name in "abc"})
    records = index_existing(tmp_path).records(0)
    assert records["flags"].tolist() == [1 | FLAG_CMYK, 1 | FLAG_GRAY, 1 | FLAG_PROGRESSIVE]
    assert (records["width"].tolist(), records["height"].tolist()) == ([20, 5, 9], [16, 4, 7])


def test_index_existing_groups_by_key_and_reads_class_names(tmp_path: Path) -> None:
    images = {f"img.v1.{i}.jpg": encode(i) for i in range(3)}
    write_tar(
        tmp_path / "val-0000.tar",
        images | {f"img.v1.{i}.cls": str(i).encode() for i in range(3)} | {"a.txt": b"?"},
    )
    assert index_existing(tmp_path).classes == ("0", "1", "2")
    (tmp_path / "classes.txt").write_text("cat\ndog\nowl\nyak\n")
    index = index_existing(tmp_path, dataset="pets")
    assert index.classes == ("cat", "dog", "owl", "yak")
    assert [index.name(key) for key in range(3)] == ["img.v1.0", "img.v1.1", "img.v1.2"]
    assert (index.description.split, index.description.dataset) == ("val", "pets")


def test_index_existing_reads_webdataset_writers_shards(tmp_path: Path) -> None:
    with webdataset.ShardWriter(str(tmp_path / "train-%04d.tar"), maxcount=3, verbose=0) as writer:
        for number in range(7):
            writer.write({"__key__": f"s{number}", "jpg": encode(number), "cls": number % 2})
    index = index_existing(tmp_path)
    assert [shard.num_samples for shard in index.shards] == [3, 3, 1]
    assert index.labels().tolist() == [0, 1, 0, 1, 0, 1, 0]


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ({"a.jpg": encode(0)}, "key 'a' has no label"),
        ({"a.cls": b"0"}, "key 'a' has no image"),
        ({"a.jpg": encode(0), "a.png": encode(0, "PNG"), "a.cls": b"0"}, "key 'a' has two images"),
        ({"a.jpg": encode(0), "a.cls": b"cat"}, "label 'cat' is not a whole number"),
        ({"a.jpg": encode(0), "a.cls": b"-1"}, "label '-1' is not a whole number"),
        ({"a.jpg": b"hello", "a.cls": b"0"}, "key 'a': the 5 bytes .* are not a JPEG"),
        ({"a.jpg": b"", "a.cls": b"0"}, "key 'a': the 0 bytes"),
        ({"a.txt": b"0"}, "holds no samples"),
    ],
)
def test_index_existing_refuses(tmp_path: Path, members: dict[str, bytes], reason: str) -> None:
    write_tar(tmp_path / "t-0.tar", members)
    with pytest.raises(ValueError, match=rf"shard t-0.tar.*{reason}"):
        index_existing(tmp_path)


def test_duplicate_keys_across_shards_are_refused(tmp_path: Path) -> None:
    for number in range(2):
        write_tar(tmp_path / f"t-{number}.tar", {"a.jpg": encode(0), "a.cls": b"0"})
    with pytest.raises(ValueError, match="key 'a' appears in 2 samples"):
        index_existing(tmp_path)


def test_label_outside_the_class_list_is_refused(tmp_path: Path) -> None:
    write_tar(tmp_path / "t-0.tar", {"a.jpg": encode(0), "a.cls": b"1000000"})
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    with pytest.raises(ValueError, match=r"t-0.tar holds label 1000000, outside 0..1"):
        index_existing(tmp_path)


def test_index_without_shards(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no .*tar files"):
        index_existing(tmp_path)


def test_verify_passes_what_make_wrote(shards: Path) -> None:
    report = verify(shards, full=True)
    assert report.ok
    assert (report.num_shards, report.num_samples) == (4, 36)


def test_verify_finds_a_flipped_bit_and_names_the_key(shards: Path) -> None:
    index = load_index(shards)
    record = index.records(1)[4]
    flip_byte(shards / index.shards[1].name, int(record["offset"]) + int(record["size"]) // 2)
    assert verify(shards, full=False).ok, "a flipped bit keeps sizes"
    problems = "\n".join(verify(shards, full=True).problems)
    assert f"shard train-000001.tar, key {index.name(14)!r}: the image's crc32" in problems
    assert "shard train-000001.tar: sha256" in problems


def test_verify_finds_a_changed_label(shards: Path) -> None:
    name = load_index(shards).name(0)
    offset = next(m.offset for m in scan(shards / "train-000000.tar") if m.name == f"{name}.cls")
    flip_byte(shards / "train-000000.tar", offset)
    problems = verify(shards, full=True).problems
    assert any(f"key {name!r}: its .cls is not the indexed label" in problem for problem in problems)


def test_verify_lists_every_problem(shards: Path) -> None:
    (shards / "train-000000.tar").unlink()
    os.truncate(shards / "train-000001.tar", 5000)
    flip_byte(shards / "train-000002.tar.idx.npy", 200)
    (shards / "train-000003.tar.keys.npy").unlink()
    problems = "\n".join(verify(shards, full=False).problems)
    assert "train-000000.tar: missing" in problems
    assert "train-000001.tar: 5000 bytes" in problems
    assert "train-000002.tar.idx.npy: sha256" in problems
    assert "train-000003.tar.keys.npy: missing" in problems
    assert "cut" in "\n".join(verify(shards, full=True).problems)


def test_info_counts(shards: Path) -> None:
    facts = info(shards)
    assert facts["class_counts"] == [3] * 12
    assert facts["formats"] == {"JPEG": 12, "PNG": 12, "WEBP": 12}
    assert facts["bytes"] == sum(path.stat().st_size for path in shards.glob("*.tar"))
    assert (facts["split"], facts["dataset"], facts["num_shards"]) == ("train", "tree", 4)


def test_reading_a_damaged_sample_names_shard_and_key(shards: Path) -> None:
    index = load_index(shards)
    record = index.record(25)
    flip_byte(shards / "train-000002.tar", int(record["offset"]) + 20)
    reader = ShardReader(index)
    reader.read(24)
    with pytest.raises(BadSample, match=r"in shard train-000002.tar") as caught:
        reader.read(25)
    assert (caught.value.shard, caught.value.key) == ("train-000002.tar", index.name(25))


def test_a_file_of_another_format_gets_its_true_extension(tree: Path, tmp_path: Path) -> None:
    """ImageNet's n02105855_2933.JPEG is a PNG."""
    (tree / "train" / "0" / "im.0.JPEG").write_bytes(encode(0, "PNG"))
    make(tree, tmp_path / "s", split="train")
    with tarfile.open(tmp_path / "s" / "train-000000.tar") as tar:
        assert "0/im_0.png" in tar.getnames()

"""The scanner accepts what common writers make and refuses every damage that tarfile passes over in
silence."""

import io
import tarfile
from pathlib import Path

import pytest
import webdataset

from data.tar import BLOCK, Writer, scan

CONTENT = {"a/x.png": b"p" * 700, "a/x.cls": b"3", "b/y.png": b"", "b/y.cls": b"1" * BLOCK}


def write(path: Path, content: dict[str, bytes] = CONTENT) -> dict[str, int]:
    with path.open("wb") as file:
        writer = Writer(file)
        offsets = {name: writer.add(name, data) for name, data in content.items()}
        assert writer.close() == file.tell()
    return offsets


def write_with_tarfile(
    path: Path, members: list[tarfile.TarInfo], *, format: int = tarfile.USTAR_FORMAT
) -> None:
    with tarfile.open(path, "w", format=format) as tar:
        for member in members:
            tar.addfile(member, io.BytesIO(b"z" * member.size))


def test_written_tars_are_deterministic_and_plain(tmp_path: Path) -> None:
    offsets = write(tmp_path / "a.tar")
    write(tmp_path / "b.tar")
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()
    with tarfile.open(tmp_path / "a.tar") as tar:
        for member in tar.getmembers():
            assert (member.mtime, member.uid, member.gid, member.uname) == (0, 0, 0, "")
            assert tar.extractfile(member).read() == CONTENT[member.name]
            assert member.offset_data == offsets[member.name]


def test_scan_finds_every_member(tmp_path: Path) -> None:
    offsets = write(tmp_path / "a.tar")
    found = list(scan(tmp_path / "a.tar"))
    assert {member.name: member.offset for member in found} == offsets
    raw = (tmp_path / "a.tar").read_bytes()
    assert all(raw[m.offset : m.offset + m.size] == CONTENT[m.name] for m in found)


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_scan_reads_what_tarfile_writes(tmp_path: Path, format: int) -> None:
    names = ["x.jpg", "d/" + "n" * 90 + ".jpg", *(["long/" + "m" * 200 + "é.jpg"] if format else [])]
    members = [tarfile.TarInfo(name) for name in names]
    for member in members:
        member.size, member.mtime = 10, 1.5
    folder = tarfile.TarInfo("d")
    folder.type = tarfile.DIRTYPE
    write_with_tarfile(tmp_path / "a.tar", [folder, *members], format=format)
    assert [member.name for member in scan(tmp_path / "a.tar")] == names


def test_scan_reads_what_webdataset_writes(tmp_path: Path) -> None:
    with webdataset.TarWriter(str(tmp_path / "a.tar")) as writer:
        writer.write({"__key__": "k1", "jpg": b"123", "cls": b"4"})
    assert [member.name for member in scan(tmp_path / "a.tar")] == ["k1.cls", "k1.jpg"]


@pytest.mark.parametrize(
    ("length", "reason"),
    [
        (BLOCK + 300, "ends at byte"),  # inside a member's data
        (BLOCK + 1024, "without the end-of-archive marker"),  # at a member's end
        (BLOCK + 1024 + 100, "without the end-of-archive marker"),  # inside a header
        (0, "without the end-of-archive marker"),
    ],
)
def test_cut_tars_are_refused(tmp_path: Path, length: int, reason: str) -> None:
    write(tmp_path / "a.tar")
    (tmp_path / "cut.tar").write_bytes((tmp_path / "a.tar").read_bytes()[:length])
    with pytest.raises(ValueError, match=rf"shard cut.tar, byte \d+: .*{reason}"):
        list(scan(tmp_path / "cut.tar"))


def test_every_cut_before_the_end_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "a.tar")
    raw = (tmp_path / "a.tar").read_bytes()
    end = (
        max(member.offset + -(-member.size // BLOCK) * BLOCK for member in scan(tmp_path / "a.tar"))
        + 2 * BLOCK
    )
    for length in [*range(0, end, 256), end - 1]:
        (tmp_path / "cut.tar").write_bytes(raw[:length])
        with pytest.raises(ValueError, match="cut"):
            list(scan(tmp_path / "cut.tar"))


@pytest.mark.parametrize("place", [0, 5, 100, 130, 150, 156, 260, 345, 511])
def test_a_flipped_header_bit_is_refused(tmp_path: Path, place: int) -> None:
    offsets = write(tmp_path / "a.tar")
    raw = bytearray((tmp_path / "a.tar").read_bytes())
    raw[offsets["a/x.cls"] - BLOCK + place] ^= 1
    (tmp_path / "bad.tar").write_bytes(raw)
    with pytest.raises(ValueError, match=r"shard bad.tar, byte"):
        list(scan(tmp_path / "bad.tar"))


@pytest.mark.parametrize("name", ["../x.jpg", "a/../../x.jpg", "/etc/x.jpg"])
def test_names_that_leave_the_folder_are_refused(tmp_path: Path, name: str) -> None:
    write(tmp_path / "a.tar", {name: b"1"})
    with pytest.raises(ValueError, match="leaves its folder"):
        list(scan(tmp_path / "a.tar"))


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_are_refused(tmp_path: Path, kind: bytes) -> None:
    member = tarfile.TarInfo("x.jpg")
    member.type, member.linkname = kind, "/etc/passwd"
    write_with_tarfile(tmp_path / "a.tar", [member])
    with pytest.raises(ValueError, match="a link or device"):
        list(scan(tmp_path / "a.tar"))


def test_duplicate_members_are_refused(tmp_path: Path) -> None:
    write_with_tarfile(tmp_path / "a.tar", [tarfile.TarInfo("x.jpg"), tarfile.TarInfo("x.jpg")])
    with pytest.raises(ValueError, match=r"'x.jpg' appears twice"):
        list(scan(tmp_path / "a.tar"))


def test_pax_tricks_are_refused(tmp_path: Path) -> None:
    member = tarfile.TarInfo("x.jpg")
    member.pax_headers = {"GNU.sparse.major": "1"}
    write_with_tarfile(tmp_path / "a.tar", [member], format=tarfile.PAX_FORMAT)
    with pytest.raises(ValueError, match=r"GNU.sparse.major"):
        list(scan(tmp_path / "a.tar"))


def test_appended_archives_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "a.tar")
    raw = (tmp_path / "a.tar").read_bytes()
    (tmp_path / "two.tar").write_bytes(raw + raw)
    with pytest.raises(ValueError, match="data after the end-of-archive"):
        list(scan(tmp_path / "two.tar"))


def test_a_web_page_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(b"<html>404 Not Found</html>".ljust(2000))
    with pytest.raises(ValueError, match="not a tar"):
        list(scan(tmp_path / "a.tar"))


def test_names_too_long_for_ustar_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="does not fit a ustar header"):
        write(tmp_path / "a.tar", {"n" * 101: b""})

"""Hostile archives: a typed error each, in bounded time, and nothing written or read outside."""

from __future__ import annotations

import io
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from sightline.errors import DataError
from sightline.training import open_pairs
from sightline.training.readers import tar as safe
from sightline.training.readers.shards import expand, read_shards


def shard(path: Path, *members: tuple[str, bytes], change: Callable[[tarfile.TarInfo], None] | None = None,
          form: int = tarfile.USTAR_FORMAT) -> Path:  # fmt: skip
    with tarfile.open(path, "w", format=form) as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            if change is not None:
                change(info)
            archive.addfile(info, io.BytesIO(data) if info.isreg() else None)
    return path


def kind(value: bytes) -> Callable[[tarfile.TarInfo], None]:
    def change(info: tarfile.TarInfo) -> None:
        info.type, info.linkname, info.size = value, "/etc/passwd", 0

    return change


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("name", ["a.txt", "folder/b.txt", "long/" * 30 + "ünïcode.txt", "x" * 95 + ".txt"])
def test_members_are_those_of_tarfile(tmp_path: Path, form: int, name: str) -> None:
    path = shard(tmp_path / "a.tar", ("first.txt", b"x" * 512), (name, b"0123456789abc"), ("last.txt", b""), form=form)
    found = list(safe.members(path))
    with tarfile.open(path) as theirs:
        assert [(m.name, m.size, m.offset) for m in found] == [(m.name, m.size, m.offset_data) for m in theirs]
    assert safe.read_member(path, found[1], 100) == b"0123456789abc"
    with pytest.raises(DataError, match="at most 5 are read"):
        safe.read_member(path, found[1], 5)


@pytest.mark.parametrize(
    "name", ["/etc/x.txt", "../x.txt", "a/../../x.txt", "C:x.txt", "a\\..\\x.txt", "\\\\host\\share.txt"]
)
def test_names_that_lead_outside(tmp_path: Path, name: str) -> None:
    path = shard(tmp_path / "a.tar", ("k.jpg", b"j"), (name, b"t"))
    with pytest.raises(DataError, match="names must be relative and stay inside"):
        open_pairs(path)


@pytest.mark.parametrize(
    ("value", "word"),
    [(tarfile.SYMTYPE, "symbolic link"), (tarfile.LNKTYPE, "hard link"), (tarfile.CHRTYPE, "device"),
     (tarfile.BLKTYPE, "device"),
     (tarfile.FIFOTYPE, "pipe"), (tarfile.GNUTYPE_SPARSE, "sparse"), (b"Z", "unknown kind")],
)  # fmt: skip
def test_members_that_are_no_files(tmp_path: Path, value: bytes, word: str) -> None:
    path = tmp_path / "a.tar"
    header = tarfile.TarInfo("k.txt")
    kind(value)(header)
    path.write_bytes(header.tobuf(tarfile.GNU_FORMAT) + bytes(1024))
    with pytest.raises(DataError, match=word):
        open_pairs(path)


def test_a_sparse_file_by_pax_header(tmp_path: Path) -> None:
    info = tarfile.TarInfo("k.txt")
    info.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.realsize": str(10 << 30)}
    path = tmp_path / "a.tar"
    path.write_bytes(info.tobuf(tarfile.PAX_FORMAT) + bytes(1024))
    with pytest.raises(DataError, match="sparse"):
        open_pairs(path)


def test_a_size_beyond_the_end(tmp_path: Path) -> None:
    info = tarfile.TarInfo("k.txt")
    info.size = 10 << 30  # base-256 in the header
    path = tmp_path / "a.tar"
    path.write_bytes(info.tobuf(tarfile.GNU_FORMAT) + b"little")
    with pytest.raises(DataError, match="cut short"):
        open_pairs(path)


def test_a_million_members_end_early(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(safe, "MOST_MEMBERS", 5_000)  # of 200,000, to keep the test short
    one = tarfile.TarInfo("k.txt").tobuf(tarfile.USTAR_FORMAT)
    path = tmp_path / "a.tar"
    with path.open("wb") as file:
        for i in range(7_000):  # names that differ, without building a TarInfo for each
            name = b"%d.txt" % i
            header = bytearray(one)
            header[:100] = name.ljust(100, b"\0")
            header[148:156] = b" " * 8
            header[148:156] = b"%06o\0 " % sum(header)
            file.write(header)
    with pytest.raises(DataError, match="more than 5,000 members"):
        open_pairs(path)


def test_duplicate_names_and_keys(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds 'k.jpg' twice"):
        open_pairs(shard(tmp_path / "a.tar", ("k.jpg", b"1"), ("k.jpg", b"2")))
    with pytest.raises(DataError, match=r"uses the key 'k' for two samples"):
        open_pairs(shard(tmp_path / "b.tar", ("k.jpg", b"1"), ("l.jpg", b"2"), ("k.txt", b"3")))


@pytest.mark.parametrize("ending", ["pyd", "pkl", "pickle", "pth", "npy", "npz", "pt", "left.pkl"])
def test_members_that_carry_code(tmp_path: Path, ending: str) -> None:
    with pytest.raises(DataError, match="can carry code"):
        open_pairs(shard(tmp_path / "a.tar", ("k.jpg", b"1"), (f"k.{ending}", b"cos\nsystem\n(S'true'\ntR.")))


def test_other_members_are_not_read(tmp_path: Path) -> None:
    data = open_pairs(
        shard(tmp_path / "a.tar", ("k.jpg", b"1"), ("k.txt", b" a cat "), ("k.cls", b"3"), ("__meta__.yaml", b"x"))
    )
    assert data.captions == [("a cat",)] and data.pair(0).picture == b"1"


def test_samples_without_a_half_are_listed(tmp_path: Path) -> None:
    path = shard(
        tmp_path / "a.tar",
        ("a.jpg", b"1"),
        ("b.txt", b"words"),
        ("c.jpg", b"2"),
        ("c.json", b"[[["),
        ("d.jpg", b"3"),
        ("d.txt", b"ok"),
    )
    data = open_pairs(path)
    assert data.names == ["a.tar/d"]
    assert data.problems == [
        "a.tar: 'a' has no readable caption.",
        "a.tar: 'b' has no picture.",
        "a.tar: 'c' has no readable caption.",
    ]


def test_compressed_empty_and_torn(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(b"\x1f\x8b\x08\x00 gzip")
    with pytest.raises(DataError, match="is compressed"):
        open_pairs(path)
    path.write_bytes(b"")
    with pytest.raises(DataError, match="is empty"):
        open_pairs(path)
    path.write_bytes(b"x" * 700)
    with pytest.raises(DataError, match="is not a tar, or is damaged"):
        open_pairs(path)
    whole = shard(tmp_path / "b.tar", ("k.jpg", b"1" * 2000)).read_bytes()
    path.write_bytes(whole[:1500])
    with pytest.raises(DataError, match="cut short"):
        open_pairs(path)


def test_braces_are_bounded(tmp_path: Path) -> None:
    for i in range(3):
        shard(tmp_path / f"s-{i:03d}.tar", (f"k{i}.jpg", b"1"), (f"k{i}.txt", b"words"))
    assert [p.name for p in expand(str(tmp_path / "s-{000..002}.tar"))] == ["s-000.tar", "s-001.tar", "s-002.tar"]
    assert len(read_shards(expand(str(tmp_path / "s-*.tar")))) == 3
    start = time.perf_counter()
    for bomb in ("{0..999999999}", "{0..99999}{0..99999}", "{0..99999999999999999999999}"):
        with pytest.raises(DataError, match="more than 10,000 shards"):
            open_pairs(str(tmp_path / f"s-{bomb}.tar"))
    assert time.perf_counter() - start < 1
    with pytest.raises(DataError, match="does not exist"):
        open_pairs(str(tmp_path / "s-{000..003}.tar"))
    with pytest.raises(DataError, match="braces that are not"):
        open_pairs(str(tmp_path / "s-{a,b}.tar"))

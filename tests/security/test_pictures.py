"""Hostile pictures (tests 6 and 7 of the users' list): refused on the header, in bounded memory, in one sentence."""

from __future__ import annotations

import io
import os
import re
import socket
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from sightline.errors import PictureError, UsageError
from sightline.media import Limits, Picture, PictureProcessor, find_pictures, read_picture

SOURCE = str(Path(__file__).resolve().parents[2] / "src")


def png_header(width: int, height: int, depth: int = 1, colour: int = 0, rows: bytes | None = None) -> bytes:
    """A PNG that says how large it is; its pixels are zeros, which shrink a thousandfold."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    if rows is None:
        rows = zlib.compress(bytes((1 + (width * depth + 7) // 8) * height), 9)
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def bmp_header(width: int, height: int) -> bytes:
    return b"BM" + struct.pack("<IHHI", 54, 0, 0, 54) + struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, *[0] * 6)


def gif_header(width: int, height: int, frames: int = 1) -> bytes:
    frame = b"\x2c" + struct.pack("<HHHHB", 0, 0, width, height, 0) + b"\x02\x02\x4c\x01\x00"
    return b"GIF89a" + struct.pack("<HHBBB", width, height, 0x80, 0, 0) + bytes(6) + frame * frames + b"\x3b"


def webp_header(width: int, height: int) -> bytes:
    body = struct.pack("<I", 0) + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    return b"RIFF" + struct.pack("<I", 22) + b"WEBPVP8X" + struct.pack("<I", 10) + body


def tiff_bomb() -> bytes:
    """60,000×60,000 in one bit per pixel, whose strip is not there."""
    tags = [(256, 4, 60_000), (257, 4, 60_000), (258, 3, 1), (259, 3, 1), (262, 3, 1), (273, 4, 200), (278, 4, 60_000)]
    tags += [(279, 4, 450_000_000)]
    ifd = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", t, k, 1, v) for t, k, v in tags) + bytes(4)
    return b"II*\0" + struct.pack("<I", 8) + ifd


def tiff_loop() -> bytes:
    """An image file directory that names itself as the next one."""
    return b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", 0) + struct.pack("<I", 8)


BOMBS: dict[str, bytes] = {
    "9,000×9,000 in 10 KB": png_header(9_000, 9_000),
    "10,000×10,000 in 12 KB": png_header(10_000, 10_000),
    "9,000×9,000 grey": png_header(9_000, 9_000, depth=8),
    "four thousand million": png_header(2**31 - 1, 2**31 - 1, rows=b""),
    "bmp": bmp_header(100_000, 100_000),
    "gif": gif_header(65_535, 65_535),
    "gif of 10,000 frames": gif_header(5, 7, 10_000),
    "webp": webp_header(16_384, 16_384),
    "tiff": tiff_bomb(),
    "ppm": b"P6 90000 90000 255\n" + bytes(100),
    "ppm with a huge number": b"P6 " + b"9" * 5000 + b" 1 255\n",
}

PEAK = """
import resource, sys, time
import numpy, PIL.Image
from sightline.errors import PictureError
from sightline.media import Limits, read_picture
read_picture(sys.argv[2])
before, begun = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
limits = Limits() if sys.argv[3] == "default" else Limits.server()
for path in sys.argv[4:]:
    try:
        read_picture(path, limits=limits)
    except PictureError as error:
        print("refused:", error)
    else:
        print("READ", path)
print(time.monotonic() - begun)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


def test_a_bomb_of_ten_kilobytes_is_what_it_says() -> None:
    assert len(BOMBS["9,000×9,000 in 10 KB"]) < 10_500


@pytest.mark.parametrize("limits", ["default", "server"])
def test_bombs_are_refused_before_decoding(tmp_path: Path, limits: str) -> None:
    """In a fresh process: every bomb refused in one sentence, under 2 s and 50 MB for all of them together."""
    good = tmp_path / "good.png"
    Image.new("RGB", (31, 37)).save(good)
    paths = []
    for number, data in enumerate(BOMBS.values()):
        paths.append(tmp_path / f"bomb{number}")
        paths[-1].write_bytes(data)
    result = subprocess.run(
        [sys.executable, "-c", PEAK, "x", str(good), limits, *map(str, paths)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": SOURCE},
        timeout=60,
    )
    assert result.returncode == 0, result.stderr
    *lines, seconds, megabytes = result.stdout.splitlines()
    assert len(lines) == len(BOMBS) and all(line.startswith("refused:") for line in lines), lines
    assert float(seconds) < 2 and int(megabytes) < 50, (seconds, megabytes)


def test_refusals_say_how_to_allow_it(tmp_path: Path) -> None:
    bomb = BOMBS["9,000×9,000 in 10 KB"]
    with pytest.raises(PictureError, match=r"decompression bomb.*Limits\(expansion=(\d+)\)") as caught:
        read_picture(bomb, name="b.png")
    allowed = int(re.search(r"expansion=(\d+)", str(caught.value)).group(1))  # type: ignore[union-attr]
    assert read_picture(bomb, limits=Limits(expansion=allowed)).original_size == (9_000, 9_000)
    with pytest.raises(PictureError, match="over the limit of 50 million"):
        read_picture(bomb, limits=Limits.server())
    with pytest.raises(PictureError, match=r"over the limit of 100; .*Limits\(bytes="):
        read_picture(bomb, limits=Limits(bytes=100))
    (tmp_path / "b.png").write_bytes(bomb)
    with pytest.raises(PictureError, match="over the limit of 100"):
        read_picture(tmp_path / "b.png", limits=Limits(bytes=100))
    with pytest.raises(UsageError, match="limit on pixels is 0"):
        Limits(pixels=0)


def test_honest_large_and_thin_pictures_pass() -> None:
    assert read_picture(png_header(5_000, 5_000)).width == 5_000  # blank, 25 million pixels, 4 KB
    strip = read_picture(png_header(200_000, 1))
    assert PictureProcessor.from_dict({})([strip])["pixel_values"].shape == (1, 3, 224, 224)


def test_directories_that_loop_end() -> None:
    begun = time.monotonic()
    with pytest.raises(PictureError):
        read_picture(tiff_loop(), name="loop.tif")
    assert time.monotonic() - begun < 1


@pytest.mark.parametrize(
    ("start", "words"),
    [
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", "EPS"),
        (b"8BPS\0\1" + bytes(20), "Photoshop"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "SVG"),
        (b"\xef\xbb\xbf  <?xml version='1.0'?><svg/>", "XML or SVG"),
        (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC"),
        (b"\0\0\0\x18ftypmp42\0\0\0\0isommp42", "a video"),
        (b"%PDF-1.7", "PDF"),
        (b"PK\x03\x04" + bytes(30), "zip"),
        (b"\x80\x04\x95" + bytes(30), "pickle"),
        (b"<!doctype html><html>", "HTML"),
        (b"hello, world", "not a picture"),
        (b"\0" * 64, "not a picture"),
        (b"x", "not a picture"),
    ],
)
def test_what_is_no_picture_is_named(start: bytes, words: str) -> None:
    with pytest.raises(PictureError, match=words) as caught:
        read_picture(start, name="photo.jpg")
    assert "convert it to JPEG" in str(caught.value)


LEAK = re.compile(r"0x[0-9a-f]{6,}|Traceback|<[A-Za-z_.]+ object|BytesIO|PIL\.|\bplugin\b|\.py\b")


def small_file(kind: str) -> bytes:
    file = io.BytesIO()
    generator = np.random.default_rng(3)
    Image.fromarray(generator.integers(0, 256, (13, 17, 3), dtype=np.uint8)).save(file, kind)
    return file.getvalue()


SMALL = {kind: small_file(kind) for kind in ("JPEG", "PNG", "GIF", "BMP", "TIFF", "PPM", "WEBP", "AVIF")}


@settings(max_examples=400, deadline=None)
@given(
    kind=st.sampled_from(sorted(SMALL)),
    cuts=st.lists(st.tuples(st.integers(0, 2**16), st.binary(min_size=1, max_size=8)), max_size=6),
    length=st.floats(0, 1),
)
def test_no_bytes_make_it_crash_or_leak(kind: str, cuts: list[tuple[int, bytes]], length: float) -> None:
    """Overwritten and cut files give a Picture or a PictureError, whose sentence holds nothing of our insides."""
    data = bytearray(SMALL[kind])
    for at, new in cuts:
        at %= len(data)
        data[at : at + len(new)] = new
    data = data[: max(1, int(len(data) * length))]
    try:
        picture = read_picture(bytes(data), name="some.file", limits=Limits(pixels=10**6))
    except PictureError as error:
        words = str(error)
        assert not LEAK.search(words) and "\n" not in words and words.startswith("some.file") and words.endswith(".")
        assert error.__cause__ is None
    else:
        assert isinstance(picture, Picture)


@settings(max_examples=100, deadline=None)
@given(st.binary(min_size=1, max_size=200))
def test_random_bytes(data: bytes) -> None:
    for start in (b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"BM", b"II*\0", b"P6 ", b"RIFF....WEBP"):
        with pytest.raises(PictureError) as caught:
            read_picture(start + data, name="x", limits=Limits(pixels=10**5))
        assert not LEAK.search(str(caught.value))


def test_scans_without_end_are_refused() -> None:
    file = io.BytesIO()
    Image.new("RGB", (17, 13)).save(file, "JPEG", progressive=True)
    data = file.getvalue()
    scan = data[data.index(b"\xff\xda") :]
    with pytest.raises(PictureError, match="more than 200 scans"):
        read_picture(data[: -len(scan)] + scan[:-2] * 300 + scan[-2:], name="x.jpg")


# ---- the file system


def test_missing_empty_folder_and_link(tmp_path: Path) -> None:
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "dead.jpg").symlink_to(tmp_path / "nowhere.jpg")
    (tmp_path / "loop.jpg").symlink_to(tmp_path / "loop.jpg")
    for name, words in [
        ("gone.jpg", "does not exist"),
        ("empty.jpg", r"is empty \(0 bytes\)"),
        ("dead.jpg", "link to a file that does not exist"),
        ("loop.jpg", "cannot be opened"),
        (".", "is a folder, not a picture"),
        ("empty.jpg/under.jpg", "cannot be opened"),
        ("n" * 300 + ".jpg", "cannot be opened"),
        ("nul\0.jpg", "NUL character"),
    ]:
        with pytest.raises(PictureError, match=words) as caught:
            read_picture(tmp_path / name)
        assert "\n" not in str(caught.value) and not LEAK.search(str(caught.value))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFOs here")
def test_pipes_sockets_and_devices_do_not_hold_it_up(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "s.jpg"))
        begun = time.monotonic()
        for path in (tmp_path / "pipe.jpg", Path("/dev/zero")):
            with pytest.raises(PictureError, match="no regular file"):
                read_picture(path)
        with pytest.raises(PictureError, match=r"cannot be opened|no regular file"):
            read_picture(tmp_path / "s.jpg")
        assert time.monotonic() - begun < 1
    assert len(find_pictures(tmp_path).paths) == 2  # their suffix says picture; reading decides


def test_a_file_without_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "secret.jpg"
    path.write_bytes(SMALL["JPEG"])
    path.chmod(0)
    if os.access(path, os.R_OK):  # root reads everything: let the system call refuse as it would for others

        def refuse(*_: object, **__: object) -> int:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr("sightline.media.files.os.open", refuse)
    with pytest.raises(PictureError, match=r"permission denied.*change its permissions"):
        read_picture(path)


@pytest.mark.parametrize(
    "name", ["ünïcödé 图片.jpg", "new\nline.jpg", "x" * 251 + ".jpg", "\x1b[31mred.jpg", "a%s{}.jpg"]
)
def test_odd_names_are_read_and_shown_on_one_line(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(SMALL["PNG"])
    assert read_picture(tmp_path / name).width == 17
    (tmp_path / name).write_bytes(b"junk")
    with pytest.raises(PictureError) as caught:
        read_picture(tmp_path / name)
    assert str(caught.value).isprintable()


def test_a_text_that_looks_like_a_url_is_a_missing_file() -> None:
    with pytest.raises(PictureError, match="does not exist"):
        read_picture("http://127.0.0.1:1/x.png")


def test_a_swap_between_looking_and_reading_cannot_exceed_the_budget(tmp_path: Path) -> None:
    """The size is taken from the open handle, and no more than the budget is read, even if the file grows."""
    path = tmp_path / "grows.png"
    path.write_bytes(SMALL["PNG"])
    with pytest.raises(PictureError, match="over the limit"):
        read_picture(path, limits=Limits(bytes=len(SMALL["PNG"]) - 1))
    assert read_picture(path, limits=Limits(bytes=len(SMALL["PNG"]))).height == 13

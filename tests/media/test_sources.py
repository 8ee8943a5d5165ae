"""find_pictures: files, folders, globs, lists; loops, odd names and refusals."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path

import pytest

from sightline.media import find_pictures


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in [
        "b.jpg",
        "a.PNG",
        "notes.txt",
        "clip.mp4",
        ".hidden.jpg",
        "sub/c.webp",
        "sub/deep/d.gif",
        ".git/e.jpg",
    ]:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    return tmp_path


def names(paths: list[Path], root: Path) -> list[str]:
    return [path.relative_to(root).as_posix() for path in paths]


def test_a_folder_is_searched_in_order(tree: Path) -> None:
    found = find_pictures([str(tree)])
    assert names(found.paths, tree) == ["a.PNG", "b.jpg", "sub/c.webp", "sub/deep/d.gif"]
    assert found.skipped == {".txt": 1, ".mp4": 1} and not found.problems
    assert names(find_pictures(tree, recursive=False).paths, tree) == ["a.PNG", "b.jpg"]


def test_named_outright_a_file_needs_no_suffix_and_comes_once(tree: Path) -> None:
    found = find_pictures([tree / "notes.txt", tree / "b.jpg", tree])
    assert names(found.paths, tree) == ["notes.txt", "b.jpg", "a.PNG", "sub/c.webp", "sub/deep/d.gif"]


def test_globs(tree: Path) -> None:
    assert names(find_pictures(f"{tree}/*").paths, tree) == ["a.PNG", "b.jpg", "sub/c.webp", "sub/deep/d.gif"]
    assert names(find_pictures(f"{tree}/**/*.gif").paths, tree) == ["sub/deep/d.gif"]
    (problem,) = find_pictures(f"{tree}/*.tiff").problems
    assert "matches no file" in problem.reason


def test_a_file_whose_name_has_glob_letters_is_that_file(tree: Path) -> None:
    (tree / "[1]*.jpg").write_bytes(b"x")
    assert names(find_pictures(str(tree / "[1]*.jpg")).paths, tree) == ["[1]*.jpg"]


def test_lists_from_standard_input_and_files(tree: Path) -> None:
    listing = f"{tree}/b.jpg\r\n\n{tree}/sub\n-\n{tree}/*.PNG\n".encode()
    found = find_pictures("-", stdin=io.BytesIO(listing))
    assert names(found.paths, tree) == ["b.jpg", "sub/c.webp", "sub/deep/d.gif"]
    assert [problem.source for problem in found.problems] == ["-", f"{tree}/*.PNG"]  # ordinary letters in a list
    (tree / "list").write_bytes(f"{tree}/b.jpg\0{tree}/a.PNG\0".encode())
    assert names(find_pictures(f"@{tree}/list").paths, tree) == ["b.jpg", "a.PNG"]
    assert "lists no paths" in find_pictures("-", stdin=io.BytesIO(b"\n")).problems[0].reason
    assert "does not exist" in find_pictures("@nowhere").problems[0].reason


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("http://127.0.0.1/x.png", "is a URL, and nothing is fetched"),
        ("HTTPS://example.org/a.jpg", "is a URL"),
        ("file:///etc/hostname", "is a URL"),
        ("data:image/png;base64,AAAA", "is a URL"),
        ("nowhere.jpg", "does not exist"),
        ("", "names nothing"),
        ("nul\0.jpg", "NUL character"),
        ("x" * 5000, "does not exist|cannot be looked at"),
    ],
)
def test_one_sentence_for_each_thing_that_gives_nothing(source: str, words: str) -> None:
    found = find_pictures([source])
    assert not found.paths
    (problem,) = found.problems
    import re

    assert re.search(words, problem.reason) and problem.reason.endswith(".") and "\n" not in problem.reason


def test_videos_are_said_to_be_not_read_yet(tree: Path) -> None:
    (problem,) = find_pictures(tree / "clip.mp4").problems
    assert "videos are not read yet" in problem.reason


def test_empty_folders_say_so(tree: Path) -> None:
    (tree / "empty").mkdir()
    assert "holds no pictures." in find_pictures(tree / "empty").problems[0].reason
    (tree / "empty" / "x.txt").write_text("")
    assert "(1 other files)" in find_pictures(tree / "empty").problems[0].reason


def test_one_bad_source_does_not_hide_the_good_ones(tree: Path) -> None:
    found = find_pictures(["nowhere.jpg", str(tree / "b.jpg")])
    assert len(found.paths) == 1 and len(found.problems) == 1


@pytest.mark.skipif(sys.platform == "win32", reason="links need a privilege on Windows")
def test_links_are_followed_and_loops_end(tree: Path) -> None:
    (tree / "sub" / "up").symlink_to(tree, target_is_directory=True)
    (tree / "sub" / "self").symlink_to("self")
    (tree / "linked.jpg").symlink_to(tree / "b.jpg")
    (tree / "gone.jpg").symlink_to(tree / "nowhere")
    found = find_pictures(tree)
    assert names(found.paths, tree) == ["a.PNG", "b.jpg", "gone.jpg", "linked.jpg", "sub/c.webp", "sub/deep/d.gif"]


@pytest.mark.parametrize(
    "name", ["ünïcödé 图片.jpg", "new\nline.jpg", "tab\t.jpg", "x" * 251 + ".jpg", "-.jpg", "a b'\".jpg"]
)
def test_odd_names(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"x")
    assert find_pictures(tmp_path).paths == [tmp_path / name]
    assert find_pictures(tmp_path / name).paths == [tmp_path / name]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux keeps any byte in a name")
def test_names_that_are_no_text(tmp_path: Path) -> None:
    raw = os.fsencode(tmp_path) + b"/\xff\xfe.jpg"
    with open(raw, "wb") as file:
        file.write(b"x")
    assert [os.fsencode(path) for path in find_pictures(tmp_path)] == [raw]


def test_finding_imports_neither_torch_nor_pillow() -> None:
    import subprocess

    code = "import sys, sightline.media.sources; print('torch' in sys.modules, 'PIL' in sys.modules)"
    source = str(Path(__file__).resolve().parents[2] / "src")
    result = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": source},
        check=True,
    )
    assert result.stdout.split() == ["False", "False"]

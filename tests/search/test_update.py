"""What an update does to an index: new, changed, moved, copied, deleted, broken; and what it refuses."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from search.fakes import FakeEmbedder, album, manifest, paint, picture_vector
from sightline.errors import ManifestError, StoreError
from sightline.media import read_picture
from sightline.search import Index
from sightline.search.lance import LanceStore
from sightline.search.lock import writer_lock


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    album(tmp_path / "album", 23)
    return tmp_path / "album"


@pytest.fixture
def index(tmp_path: Path) -> Index:
    return Index.create(tmp_path / "index", manifest())


def rows(index: Index) -> dict[str, np.ndarray]:
    """path → vector, of everything in the index."""
    reader = index.reader
    paths = reader.column("path")
    assert len(paths) == len(set(paths))
    return dict(zip(paths, reader.vectors(np.arange(len(paths))), strict=True))


def check(index: Index, folder: Path, *, without: tuple[str, ...] = ()) -> None:
    """The index holds exactly the folder's pictures, each with its own vector."""
    held = rows(index)
    files = {str(p) for p in folder.rglob("*.*") if p.name not in without}
    assert set(held) == files
    for path, vector in held.items():
        np.testing.assert_allclose(vector, picture_vector(read_picture(path).pixels), atol=1e-6)


def counts(report: object) -> tuple[int, ...]:
    return tuple(getattr(report, name) for name in ("added", "changed", "moved", "deleted", "unchanged", "embedded"))


def test_second_run_reads_no_file(index: Index, pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert counts(index.update(pictures, FakeEmbedder(), batch=5)) == (23, 0, 0, 0, 0, 23)
    monkeypatch.setattr("sightline.search.update.read_bytes", lambda path: pytest.fail(f"{path} was read again"))
    again = FakeEmbedder()
    report = index.update(pictures, again)
    assert counts(report) == (0, 0, 0, 0, 23, 0) and not report.failed and not again.files and report.total == 23


def test_each_kind_of_change(index: Index, pictures: Path) -> None:
    index.update(pictures, FakeEmbedder(), batch=5)
    (pictures / "001-green.png").rename(pictures / "sub" / "it's moved.png")  # moved
    (pictures / "002-blue.png").unlink()  # deleted
    paint(pictures / "004-cyan.png", "red", 999)  # changed
    paint(pictures / "new — ünïcode.png", "pink", 1000)  # new
    shutil.copy(pictures / "005-pink.png", pictures / "copy.png")  # new name, known content
    shutil.copy(pictures / "007-green.png", pictures / "008-blue.png")  # changed to known content
    os.utime(pictures / "010-cyan.png", (1, 1))  # touched, same content
    again = FakeEmbedder()
    report = index.update(pictures, again, batch=2)
    #      added: new, copy; changed: 004, 008; moved; deleted; unchanged: 23 − 4; embedded: 004 and new
    assert counts(report) == (2, 2, 1, 1, 19, 2), report
    assert {Path(p).name for p in again.files} == {"004-cyan.png", "new — ünïcode.png"}
    check(index, pictures)
    assert counts(index.update(pictures, FakeEmbedder())) == (0, 0, 0, 0, 24, 0)


def test_equal_new_files_are_embedded_once(index: Index, pictures: Path) -> None:
    for i in range(11):
        shutil.copy(pictures / "001-green.png", pictures / f"copy-{i}.png")
    embedder = FakeEmbedder()
    report = index.update(pictures, embedder, batch=3)
    assert (report.added, report.embedded, len(embedder.files)) == (34, 23, 23)
    check(index, pictures)


def test_a_renamed_folder_is_not_embedded_again(index: Index, pictures: Path, tmp_path: Path) -> None:
    index.update(tmp_path / "album", FakeEmbedder())
    (pictures / "sub").rename(pictures / "other name")
    report = index.update(pictures, FakeEmbedder(), batch=3)
    assert counts(report) == (0, 0, 8, 0, 15, 0)
    check(index, pictures)


def test_broken_files_are_lines_and_the_rest_is_done(index: Index, pictures: Path) -> None:
    index.update(pictures, FakeEmbedder())
    (pictures / "000-empty.png").write_bytes(b"")
    (pictures / "text.jpg").write_text("not a picture")
    whole = (pictures / "005-pink.png").read_bytes()
    (pictures / "005-pink.png").write_bytes(whole[:60])  # known before: what the index holds is no longer true
    os.symlink(pictures / "nowhere", pictures / "dangling.png")
    paint(pictures / "fine.png", "red", 77)
    report = index.update(pictures, FakeEmbedder())
    broken = {"000-empty.png", "text.jpg", "005-pink.png", "dangling.png"}
    assert {Path(path).name for path, _ in report.failed} == broken
    assert all(len(reason) > 20 for _, reason in report.failed) and report.added == 1
    check(index, pictures, without=tuple(broken))
    lines = [json.loads(line) for line in Path(index.folder, "report.jsonl").read_text().splitlines()]
    assert {Path(line["path"]).name for line in lines[:-1]} == broken and lines[-1]["added"] == 1


@pytest.mark.skipif(os.name == "nt", reason="Windows has no file names outside Unicode")
def test_a_name_that_is_not_utf8_is_a_line(index: Index, pictures: Path) -> None:
    os.rename(pictures / "001-green.png", os.fsencode(pictures) + b"/\xff\xfe.png")
    report = index.update(pictures, FakeEmbedder())
    assert report.added == 22 and "not UTF-8" in report.failed[0][1]


def test_only_what_lies_below_the_sources_is_dropped(index: Index, tmp_path: Path) -> None:
    album(tmp_path / "one", 7)
    album(tmp_path / "two", 5)
    index.update([tmp_path / "one", tmp_path / "two"], FakeEmbedder())
    shutil.rmtree(tmp_path / "two")
    assert index.update(tmp_path / "one", FakeEmbedder()).deleted == 0
    assert len(index) == 12


def test_a_vanished_or_empty_folder_keeps_its_entries(index: Index, pictures: Path) -> None:
    index.update(pictures, FakeEmbedder())
    shutil.rmtree(pictures)
    report = index.update(pictures, FakeEmbedder())
    assert report.deleted == 0 and any("23 entries in the index were kept" in reason for _, reason in report.failed)
    pictures.mkdir()  # an empty mount point
    assert index.update(pictures, FakeEmbedder()).deleted == 0 and len(index) == 23
    assert index.update(pictures, FakeEmbedder(), forget=True).deleted == 23 and len(index) == 0


def test_a_glob_drops_what_it_named(index: Index, pictures: Path) -> None:
    index.update(f"{pictures}/*-green.png", FakeEmbedder())
    before = len(index)
    (pictures / "001-green.png").unlink()
    assert index.update(f"{pictures}/*-green.png", FakeEmbedder()).deleted == 1 and len(index) == before - 1


def test_another_model_is_refused_and_both_are_named(index: Index, pictures: Path) -> None:
    index.update(pictures, FakeEmbedder())
    other = FakeEmbedder(weights_sha256="9" * 64)
    for attempt in (
        lambda: Index.open(index.folder, other.manifest),
        lambda: index.update(pictures, other),
        lambda: index.search_texts(["red"], other),
        lambda: index.search_picture(pictures / "001-green.png", other),
    ):
        with pytest.raises(ManifestError) as caught:
            attempt()
        assert manifest().digest in str(caught.value) and other.manifest.digest in str(caught.value)
    assert len(Index.open(index.folder, manifest(library_version="9.9"))) == 23


def test_create_and_open_refuse_what_is_no_index(index: Index, pictures: Path, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="holds an index already"):
        Index.create(index.folder, manifest())
    with pytest.raises(StoreError, match="holds other things"):
        Index.create(pictures, manifest())
    for folder in (pictures, tmp_path / "nothing"):
        with pytest.raises(StoreError, match="holds no index"):
            Index.open(folder)
    assert not (tmp_path / "nothing").exists()


def test_a_second_writer_is_told_who_writes(index: Index, pictures: Path) -> None:
    with writer_lock(Path(index.folder)), pytest.raises(StoreError, match=f"process {os.getpid()} on"):
        index.update(pictures, FakeEmbedder())
    assert index.update(pictures, FakeEmbedder()).added == 23  # the file that remains locks nothing


def test_no_space_is_one_line_and_the_next_run_goes_on(
    index: Index, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, saved = LanceStore.write, []

    def full(store: LanceStore, batch: list, **options: bool) -> None:
        if len(saved) == 2:
            monkeypatch.setattr(store, "_table", Full())
        saved.append(len(batch))
        whole(store, batch, **options)

    class Full:
        schema = index.store._table.schema

        def add(self, data: object) -> None:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(LanceStore, "write", full)
    report = index.update(pictures, FakeEmbedder(), batch=5)
    assert report.added == report.total == 10
    assert [reason for _, reason in report.failed] == [report.stopped] and "no space is left" in report.stopped
    monkeypatch.undo()
    again = FakeEmbedder()
    report = Index.open(index.folder).update(pictures, again)
    assert (report.added, report.unchanged, len(again.files)) == (13, 10, 13)


@pytest.mark.parametrize("what", ["data", "versions"])
def test_a_damaged_store_is_a_sentence(index: Index, pictures: Path, what: str) -> None:
    index.update(pictures, FakeEmbedder())
    folder = Path(index.folder, "pictures.lance", {"data": "data", "versions": "_versions"}[what])
    for file in folder.iterdir():
        data = file.read_bytes()
        file.write_bytes(b"\x00" * (len(data) // 2))
    with pytest.raises(StoreError, match=r"index.*(damaged|cannot be)"):
        opened = Index.open(index.folder)
        rows(opened)


@pytest.mark.parametrize("tidy", [2, 1000])
def test_pieces_do_not_pile_up(index: Index, pictures: Path, monkeypatch: pytest.MonkeyPatch, tidy: int) -> None:
    """23 pictures saved two by two make 12 pieces; they are merged on the way (tidy 2) and at the end."""
    monkeypatch.setattr("sightline.search.lance.MANY_PIECES", 4)
    monkeypatch.setattr("sightline.search.update.TIDY", tidy)
    index.update(pictures, FakeEmbedder(), batch=2)
    assert index.store._table.stats()["fragment_stats"]["num_fragments"] <= 5
    check(index, pictures)


def test_a_reader_follows_another_writer(index: Index, pictures: Path) -> None:
    index.update(pictures, FakeEmbedder())
    reader = Index.open(index.folder, manifest())
    (green,) = reader.search_texts(["green"], FakeEmbedder(), 1)
    os.remove(green.hits[0].path)
    index.update(pictures, FakeEmbedder())
    index.store.compact(always=True)
    (after,) = reader.search_texts(["green"], FakeEmbedder(), 30)
    assert green.hits[0].path not in {hit.path for hit in after.hits} and after.searched == 22


def test_progress_counts_every_file_once(index: Index, pictures: Path) -> None:
    (pictures / "broken.png").write_bytes(b"broken")
    seen = []
    index.update(pictures, FakeEmbedder(), progress=seen.append, batch=5)
    assert [p.done for p in seen] == list(range(1, 25)) and {p.total for p in seen} == {24}
    assert seen[-1].failed == 1 and seen[-1].seconds_left == 0


def test_what_a_kill_left_half_made_is_made_anew(pictures: Path, tmp_path: Path) -> None:
    """Folders without any version, as a kill or a full disk leaves them while a table is created."""
    (tmp_path / "half" / "pictures.lance" / "data").mkdir(parents=True)
    (tmp_path / "half" / "notes.lance" / "_versions").mkdir(parents=True)
    with pytest.raises(StoreError, match="holds no index"):
        Index.open(tmp_path / "half")
    index = Index.open_or_create(tmp_path / "half", manifest())
    assert not index.update(pictures, FakeEmbedder()).failed
    assert Index.open(index.folder).calibration is not None
    check(index, pictures)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no file names with a colon")
def test_a_colon_in_the_name_is_no_address(pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    index = Index.create("s3:holidays", manifest())
    assert index.update(pictures, FakeEmbedder()).added == 23
    assert len(Index.open("s3:holidays")) == 23 and (tmp_path / "s3:holidays").is_dir()

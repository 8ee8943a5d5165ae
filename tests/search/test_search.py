"""What a search gives: order, percentiles, match or no match, exclusion, filters, likeness, duplicates."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from search.fakes import COLOURS, FakeEmbedder, album, manifest, paint, picture_vector, text_vector, unit
from sightline.errors import StoreError, UsageError
from sightline.media import read_picture
from sightline.search import Index, Where, parse_date
from sightline.search.cohort import scenes
from sightline.search.dates import date_taken
from sightline.search.null import Calibration, Nulls, null_prompts


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("album")
    album(folder, 53)
    return folder


@pytest.fixture(scope="module")
def index(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Index:
    made = Index.create(tmp_path_factory.mktemp("indexes") / "index", manifest())
    made.update(pictures, FakeEmbedder())
    return made


def names(results: object) -> list[str]:
    return [Path(hit.path).name for hit in results.hits]


def test_order_and_scores_are_exact(index: Index, pictures: Path) -> None:
    (results,) = index.search_texts(["something blue"], FakeEmbedder(), 53)
    truth = {
        p.name: float(picture_vector(read_picture(p).pixels) @ text_vector("something blue"))
        for p in pictures.rglob("*.png")
    }
    assert names(results) == sorted(truth, key=lambda name: -truth[name])
    np.testing.assert_allclose([hit.score for hit in results.hits], sorted(truth.values(), reverse=True), atol=1e-5)


def test_colours_match_and_nonsense_does_not(index: Index) -> None:
    embedder = FakeEmbedder()
    for colour in COLOURS:
        (results,) = index.search_texts([f"a {colour} thing"], embedder, 9)
        assert results.match and all(colour in name for name in names(results)[:8])
        assert results.hits[0].percentile >= 97 and not results.note
    words = ["sdfsdflksdfj", "the vote was postponed", "qwlkj", "zxcvb nm", "per se", "wrblgtz", "0000", "therefore so"]
    found = index.search_texts(words, embedder, 3)
    assert sum(results.match for results in found) == 0
    assert all("no match" in results.note for results in found)


def test_eight_pictures_are_enough_to_say_no(tmp_path: Path) -> None:
    for i in range(8):
        paint(tmp_path / "few" / f"{i}.png", "red" if i else "blue", i)
    made = Index.create(tmp_path / "index", manifest())
    made.update(tmp_path / "few", FakeEmbedder())
    red, blue, nothing, absent = made.search_texts(["red", "blue", "gfdhjk", "hkjlwe"], FakeEmbedder(), 8)
    assert [hit.match for hit in red.hits] == [True] * 7 + [False]  # most of the index is an answer
    assert [hit.match for hit in blue.hits] == [True] + [False] * 7
    assert not nothing.match and not absent.match


def test_percentile_by_hand() -> None:
    """Cohort along −axis 0: the query along axis 0 gets −1 from it, the prompts along ±axis 1 get 0.

    The picture (0.6, 0.8) gives the prompts ±0.8: mean 0, deviation 0.8. Its fit is (0.6 − (−1) − 0) / 0.8 = 2.
    """
    nulls = Nulls(np.array([[0, 1], [0, -1]], np.float32), np.array([[-1, 0]] * 3, np.float32))
    calibration = Calibration(nulls, np.array([0.1, 0.7, 1.9, 2.5], np.float32), np.array([0.9], np.float32), 4)
    picture, query = np.array([[0.6, 0.8]], np.float32), np.array([1, 0], np.float32)
    assert nulls.fits(picture, query) == pytest.approx([2.0])
    assert calibration.text_percentiles(picture, query) == pytest.approx([75.0])
    assert calibration.picture_percentiles(np.array([0.95, 0.5], np.float32)) == pytest.approx([100.0, 0.0])


def test_calibration_travels_and_damage_is_a_sentence(index: Index) -> None:
    calibration = index.calibration
    assert calibration is not None
    again = Calibration.from_bytes(calibration.to_bytes())
    assert np.array_equal(again.best, calibration.best) and again.rows == 53
    for data in (b"", b"\xff" * 40, calibration.to_bytes()[:-9]):
        with pytest.raises(StoreError, match="calibration is damaged"):
            Calibration.from_bytes(data)


def test_calibrated_again_only_when_grown(tmp_path: Path) -> None:
    album(tmp_path / "album", 20)
    made = Index.create(tmp_path / "index", manifest())
    made.update(tmp_path / "album", FakeEmbedder())
    for count, rows in ((22, 20), (23, 23)):  # 22 is 10 % more, 23 is past it
        album(tmp_path / "album", count)
        made.update(tmp_path / "album", FakeEmbedder())
        assert made.calibration is not None and made.calibration.rows == rows


def test_the_cohort_is_the_same_everywhere_and_varied() -> None:
    pictures = scenes()
    assert len(pictures) == 64 and {p.shape for p in pictures} == {(128, 128, 3)}
    assert all(np.array_equal(a, b) for a, b in zip(pictures[:3], scenes.__wrapped__(), strict=False))
    assert len({p.tobytes() for p in pictures}) == 64


def test_null_prompts_are_many_and_different() -> None:
    prompts, blank = null_prompts()
    assert len(prompts) == len(set(prompts)) >= 500 and blank >= 250
    assert all(p.strip() == p and p for p in prompts)


def test_an_index_without_calibration_claims_no_match(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = Index.open(index.folder)
    monkeypatch.setattr(type(opened), "calibration", None)
    (results,) = opened.search_texts(["red"], FakeEmbedder(), 3)
    assert not results.match and "never finished" in results.note


def test_min_percentile_moves_the_line(index: Index) -> None:
    strict, mild = (index.search_texts(["ghghgh"], FakeEmbedder(), 3, min_percentile=p)[0] for p in (100, 0))
    assert not strict.match and mild.match
    with pytest.raises(UsageError, match="between 0 and 100"):
        index.search_texts(["red"], FakeEmbedder(), min_percentile=101)


def test_exclude_drops_what_matches_the_excluded_words(index: Index) -> None:
    embedder = FakeEmbedder()
    (both,) = index.search_texts(["red green"], embedder, 18)
    (red,) = index.search_texts(["red green"], embedder, 18, exclude=["green"])
    assert any("green" in name for name in names(both)[:10])
    assert not any("green" in name for name in names(red)) and red.excluded >= 8
    assert [name for name in names(both) if "-red" in name] == [name for name in names(red) if "-red" in name]
    (none,) = index.search_texts(["red"], embedder, 5, exclude=["red"], where=Where(glob="*-red.png"))
    assert not none.hits and "excluded" in none.note


def test_an_excluded_nonsense_word_drops_no_match(index: Index) -> None:
    (plain,) = index.search_texts(["red"], FakeEmbedder(), 8)
    (without,) = index.search_texts(["red"], FakeEmbedder(), 8, exclude=["wqkjh"])
    assert names(plain) == names(without)


def test_filters_on_path(index: Index) -> None:
    def found(glob: str) -> set[str]:
        return set(names(index.search_texts(["red"], FakeEmbedder(), 60, Where(glob=glob))[0]))

    assert found("sub/*") == {f"{i:03d}-{list(COLOURS)[i % 6]}.png" for i in range(0, 53, 3)}
    assert found("01?-[rg]*.png") == {"012-red.png", "013-green.png", "018-red.png", "019-green.png"}
    assert found("0[!0]*-pink.png") == {f"{i:03d}-pink.png" for i in range(11, 53, 6)}
    assert found("01.-red.png") == set()  # a dot is a dot
    (nothing,) = index.search_texts(["red"], FakeEmbedder(), 5, Where(glob="nowhere/*"))
    assert not nothing.hits and nothing.searched == 0 and "nothing to search" in nothing.note
    with pytest.raises(UsageError):
        found("")


def test_filters_on_date(tmp_path: Path) -> None:
    taken = {"a": "2024:01:31 23:59:59", "b": "2024:02:01 00:00:00", "c": "nonsense", "d": None}
    for i, (name, text) in enumerate(taken.items()):
        from PIL import Image

        exif = Image.Exif()
        if text is not None:
            exif.get_ifd(0x8769)[0x9003] = text
        paint(tmp_path / "album" / f"{name}.jpg", "red", i, exif=exif)
    made = Index.create(tmp_path / "index", manifest())
    made.update(tmp_path / "album", FakeEmbedder())

    def found(**limits: float) -> set[str]:
        return set(names(made.search_texts(["red"], FakeEmbedder(), 9, Where(**limits))[0]))

    february = parse_date("2024-02-01")
    assert february == 1706745600  # date -u -d 2024-02-01 +%s
    assert found(before=february) == {"a.jpg"} and found(after=february, before=february + 1) == {"b.jpg"}
    assert found(after=february + 1) == {"c.jpg", "d.jpg"}  # the files' own dates: today
    assert parse_date("2024-02-01T02:00:00+02:00") == february
    with pytest.raises(UsageError, match="is no date"):
        parse_date("last week")


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_damaged_exif_is_no_date() -> None:
    for data in (b"", b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM\0*\0\0\0\x08" + b"\xff" * 99):
        assert date_taken(data) is None


def test_a_picture_does_not_find_itself_or_its_copies(index: Index, pictures: Path, tmp_path: Path) -> None:
    own = pictures / "001-green.png"
    copy = shutil.copy(own, tmp_path / "copy.png")
    for query in (own, copy):
        results = index.search_picture(query, FakeEmbedder(), 8)
        assert own.name not in names(results) and all("green" in name for name in names(results))
        assert results.kind == "picture"
    strange = np.full((5, 7, 3), 127, np.uint8)
    far = index.search_picture(strange, FakeEmbedder(), 3)
    assert not far.match and far.query == "picture"


def test_duplicates_and_near_duplicates(tmp_path: Path) -> None:
    folder = tmp_path / "album"
    album(folder, 6)
    shutil.copy(folder / "001-green.png", folder / "z-copy.png")
    pixels = read_picture(folder / "002-blue.png").pixels.copy()
    pixels[0, 0, 0] ^= 1
    from PIL import Image

    Image.fromarray(pixels).save(folder / "near.png")
    made = Index.create(tmp_path / "index", manifest())
    made.update(folder, FakeEmbedder())
    cosine = float(picture_vector(pixels) @ picture_vector(read_picture(folder / "002-blue.png").pixels))
    groups = made.duplicates(cosine - 1e-4)
    assert [(g.kind, [Path(p).name for p in g.paths]) for g in groups] == [
        ("exact", ["001-green.png", "z-copy.png"]),
        ("near", ["002-blue.png", "near.png"]),
    ]
    ((_, _, linked),) = groups[1].pairs
    assert linked == pytest.approx(cosine, abs=1e-5)
    assert [g.kind for g in made.duplicates(cosine + 1e-4)] == ["exact"]
    assert [g.kind for g in made.duplicates(-1.0, near=False)] == ["exact"]


def test_near_pairs_equal_brute_force() -> None:
    from sightline.search.duplicates import near_pairs
    from sightline.search.scan import Scan, quantise

    generator = np.random.default_rng(0)
    vectors = np.stack([unit(v) for v in generator.standard_normal((601, 5))])
    pairs = {(a, b): c for a, b, c in near_pairs(Scan(*quantise(vectors)), lambda rows: vectors[rows], 0.95)}
    exact = vectors @ vectors.T
    assert set(pairs) == {(a, b) for a, b in zip(*np.nonzero(np.triu(exact >= 0.95, 1)), strict=True)}
    assert all(cosine == pytest.approx(exact[pair], abs=1e-6) for pair, cosine in pairs.items())


def test_wrong_queries_are_refused(index: Index) -> None:
    good = text_vector("red")
    for vector, words in ((good[:5], "5 numbers"), (good * 3, "no unit vector"), (good * np.nan, "no unit vector")):
        with pytest.raises(UsageError, match=words):
            index.search(vector)
    with pytest.raises(UsageError, match="at least 1"):
        index.search(good, 0)
    with pytest.raises(UsageError, match="empty text"):
        index.search_texts(["  "], FakeEmbedder())
    with pytest.raises(UsageError, match="not one string"):
        index.search_texts("red", FakeEmbedder())


def test_a_text_is_only_a_text(index: Index, pictures: Path) -> None:
    """A query that is the name of a file is not opened."""
    texts = [str(pictures / "001-green.png"), "http://127.0.0.1:9/x.png", "'; DROP TABLE pictures; --"]
    embedder = FakeEmbedder()
    assert len(index.search_texts(texts, embedder, 3, exclude=["/etc/hostname"])) == 3 and not embedder.seen


def test_results_as_plain_data(index: Index) -> None:
    import json

    (results,) = index.search_texts(["red"], FakeEmbedder(), 2)
    data = json.loads(json.dumps(results.to_dict()))
    assert data["match"] is True and data["searched"] == 53 and set(data["hits"][0]) == {
        "path", "score", "percentile", "match", "content_hash", "size", "date",
    }  # fmt: skip

"""Readers: each format gives the same pairs; what is missing is listed and the rest goes on."""

from __future__ import annotations

import csv
import json
import tarfile
from pathlib import Path

import pytest

from sightline.errors import DataError
from sightline.training import open_pairs
from sightline.training.readers.pairs import PairData
from training.stand_ins import COLOURS, write_squares

EXPECTED = {f"{name}": (f"a {name} square", f"this picture is {name}") for name in COLOURS}


def by_name(data: PairData) -> dict[str, tuple[str, ...]]:
    return {Path(data.names[i]).stem: data.pair(i).captions for i in range(len(data))}


@pytest.fixture
def squares(tmp_path: Path) -> Path:
    return write_squares(tmp_path / "squares")


def test_json_lines(squares: Path) -> None:
    data = open_pairs(squares)
    assert by_name(data) == EXPECTED
    assert data.pair(0).picture == squares.parent / "pictures" / "red.png"
    single = squares.with_name("single.jsonl")
    single.write_text(
        '\n{"image": "pictures/red.png", "caption": "red"}\n{"image": "pictures/red.png", "caption": "rot"}\n'
    )
    assert open_pairs(single).captions == [("red", "rot")]  # two lines about one picture are one pair


def test_tables(squares: Path) -> None:
    for name, mark in (("pairs.csv", ","), ("pairs.tsv", "\t")):
        path = squares.with_name(name)
        with path.open("w", newline="") as file:
            table = csv.writer(file, delimiter=mark)
            table.writerow(["id", "filepath", "title"])
            for colour, captions in EXPECTED.items():
                table.writerows([["7", f"pictures/{colour}.png", caption] for caption in captions])
        assert by_name(open_pairs(path)) == EXPECTED
    path.write_text("a\tb\n1\t2\n")
    with pytest.raises(DataError, match=r"no column named image or picture .* header is \['a', 'b'\]"):
        open_pairs(path)


def test_coco_captions(squares: Path) -> None:
    folder = squares.parent
    (folder / "annotations").mkdir()
    (folder / "pictures").rename(folder / "val2017")
    images = [{"id": 100 + i, "file_name": f"{name}.png"} for i, name in enumerate(COLOURS)]
    annotations = [{"image_id": 100 + i, "caption": c} for i, name in enumerate(COLOURS) for c in EXPECTED[name]]
    path = folder / "annotations" / "captions_val2017.json"
    path.write_text(json.dumps({"images": images, "annotations": [*annotations, {"image_id": 5, "caption": "lost"}]}))
    data = open_pairs(path)
    assert by_name(data) == EXPECTED
    assert data.problems == ["captions_val2017.json: 1 captions belong to pictures that it does not list."]
    path.write_text('{"images": []}')
    with pytest.raises(DataError, match="is not a COCO captions file"):
        open_pairs(path)


def test_class_folders(squares: Path) -> None:
    root = squares.parent / "classes"
    for name in ("red", "green", "light_blue"):
        (root / name / "deep").mkdir(parents=True)
    for place, source in (("red/1.png", "red"), ("green/1.png", "green"), ("light_blue/deep/1.png", "blue")):
        (root / place).write_bytes((squares.parent / "pictures" / f"{source}.png").read_bytes())
    data = open_pairs(root, templates=("a {}", "the {} thing"))
    assert data.classes == ["green", "light blue", "red"]
    assert data.labels == [0, 1, 2]
    assert data.captions[1] == ("a light blue", "the light blue thing")
    with pytest.raises(DataError, match=r"needs a \{\} for the class name"):
        open_pairs(root, templates=("a photo",))


def test_parquet(squares: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    pictures = [
        {"bytes": (squares.parent / "pictures" / f"{name}.png").read_bytes(), "path": "/etc/passwd"} for name in COLOURS
    ]
    table = pyarrow.table({"img": pictures, "captions": [list(EXPECTED[name]) for name in COLOURS]})
    path = squares.with_name("pairs.parquet")
    pyarrow.parquet.write_table(table, path, row_group_size=3)
    data = open_pairs(path)
    assert list(data.captions) == list(EXPECTED.values())
    assert data.pair(4).picture == pictures[4]["bytes"]
    assert data.pair(0).picture == pictures[0]["bytes"]
    labelled = pyarrow.table({"img": pictures, "label": [0, 1, 2, 0, 1, 2, 1]})
    notes = {"info": {"features": {"label": {"names": ["warm", "green", "cold"], "_type": "ClassLabel"}}}}
    pyarrow.parquet.write_table(labelled.replace_schema_metadata({"huggingface": json.dumps(notes)}), path)
    data = open_pairs(path)
    assert data.classes == ["warm", "green", "cold"] and data.captions[2] == ("a photo of a cold.",)
    pyarrow.parquet.write_table(labelled, path)
    with pytest.raises(DataError, match=r"no class names; give them, or put a labels.json"):
        open_pairs(path)
    with pytest.raises(DataError, match=r"the label 2, but there are 2 class names"):
        open_pairs(path, classes=["a", "b"])
    path.write_bytes(b"PAR1 not really")
    with pytest.raises(DataError, match="cannot be read as parquet"):
        open_pairs(path)


def test_shards(squares: Path) -> None:
    shard = squares.with_name("shard-000.tar")
    with tarfile.open(shard, "w") as tar:
        for name in COLOURS:
            tar.add(squares.parent / "pictures" / f"{name}.png", f"{name}.png")
            record = squares.with_name("record.json")
            record.write_text(json.dumps({"captions": EXPECTED[name]}))
            tar.add(record, f"{name}.json")
    data = open_pairs(shard)
    assert by_name(data) == EXPECTED
    assert data.pair(3).picture == (squares.parent / "pictures" / "yellow.png").read_bytes()
    assert by_name(open_pairs(str(squares.with_name("shard-{000..000}.tar")))) == EXPECTED


def test_what_is_missing_is_listed_and_the_rest_goes_on(squares: Path) -> None:
    with squares.open("a") as file:
        for picture in ("pictures/gone.png", "https://example.org/a.jpg", "x" * 5000, "nul\0byte"):
            file.write(json.dumps({"image": picture, "caption": "gone"}) + "\n")
        file.write('{"image": "pictures/red.png", "captions": [" "]}\n')
    data = open_pairs(squares)
    assert by_name(data) == EXPECTED
    assert len(data.problems) == 5
    assert (
        data.problems[0] == f"pairs.jsonl, line 8: the picture 'pictures/gone.png' is missing under {squares.parent}."
    )
    assert "is an address; download the picture" in data.problems[1]
    assert data.problems[4] == "pairs.jsonl, line 12: 'pictures/red.png' has no caption."


def test_nothing_left_is_an_error(squares: Path) -> None:
    alone = squares.with_name("alone.jsonl")
    alone.write_text('{"image": "gone.png", "caption": "gone"}\n')
    with pytest.raises(
        DataError, match=r"alone.jsonl holds no usable pair of picture and caption: .*gone.png' is missing"
    ):
        open_pairs(alone)
    alone.write_text("")
    with pytest.raises(DataError, match="holds no usable pair"):
        open_pairs(alone)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{not json", "line 1 is not JSON"),
        ("[1, 2]", "is not an object like"),
        ('{"image": 7, "caption": "x"}', 'needs "image" \\(text\\)'),
        ('{"picture": "a.png"}', 'and "captions"'),
        ("[" * 100_000, "line 1 is not JSON"),
    ],
)
def test_lines_that_say_nothing(tmp_path: Path, line: str, says: str) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(DataError, match=says):
        open_pairs(path)


@pytest.mark.parametrize("source", ["pipe:cat /etc/passwd", "https://example.org/a.tar", "a.tar | sh", "s3://b/a.tar"])
def test_commands_and_addresses_are_refused(source: str) -> None:
    with pytest.raises(DataError, match="runs no commands and fetches no addresses"):
        open_pairs(source)


def test_a_source_of_no_known_kind(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="neither a file nor a folder"):
        open_pairs(tmp_path / "none")
    (tmp_path / "a.zip").write_bytes(b"PK")
    with pytest.raises(DataError, match=r"reads \(.jsonl, .csv"):
        open_pairs(tmp_path / "a.zip")
    (tmp_path / "binary.jsonl").write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(DataError, match="not UTF-8"):
        open_pairs(tmp_path / "binary.jsonl")


def test_the_fingerprint_follows_names_and_captions(squares: Path) -> None:
    first = open_pairs(squares).fingerprint()
    assert open_pairs(squares).fingerprint() == first
    squares.write_text(squares.read_text().replace("a red square", "a rad square"))
    assert open_pairs(squares).fingerprint() != first


def test_real_pairs_and_labels(shared_data: Path) -> None:
    flickr = open_pairs(shared_data / "flickr8k" / "val.jsonl")
    assert len(flickr) == 1000 and {len(captions) for captions in flickr.captions} == {5} and not flickr.problems
    cifar = open_pairs(shared_data / "cifar10" / "test.parquet")
    assert len(cifar) == 10_000 and len(cifar.classes or ()) == 10
    assert cifar.captions[0] == (f"a photo of a {cifar.classes[cifar.labels[0]]}.",)
    assert isinstance(cifar.read(9_999), bytes)

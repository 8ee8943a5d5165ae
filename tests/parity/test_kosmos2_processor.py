"""Kosmos-2's processor gives what the official one gives: slots, mask, boxes in texts, padding, pixels, decoded text."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from models.kosmos2_words import processor
from sightline.errors import ConfigError, TokenizerError, UsageError
from sightline.media import Boxes
from sightline.models.vlm.kosmos2_places import cells_of
from sightline.models.vlm.kosmos2_processor import Kosmos2Processor, read_kosmos2_processor

TEXTS = [
    "<grounding><phrase> a red mug</phrase> on the table",
    "  <grounding> An image of ",
    "two mugs",
    "<grounding><phrase> two mugs</phrase> and<phrase> a fire</phrase>.\n",
    "plain <image> text </image> < b > é",
    "",
]


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    theirs = processor()
    folder = tmp_path_factory.mktemp("kosmos2")
    theirs.save_pretrained(folder)
    return theirs, read_kosmos2_processor(folder, 5, 97), folder


def looks(count):
    choose = np.random.default_rng(0)
    return [choose.integers(0, 256, (31 + 6 * i, 53 - 7 * i, 3), dtype=np.uint8) for i in range(count)]


@pytest.mark.parametrize("side", ["left", "right"])
def test_batches_are_equal(both, side):
    theirs, ours, _ = both
    theirs.tokenizer.padding_side = side
    pictures = looks(len(TEXTS))
    want = theirs(images=pictures, text=list(TEXTS), padding=True, return_tensors="pt", num_image_tokens=5)
    got = ours(pictures, TEXTS, side=side)
    assert set(got) == set(want)
    for name in want:
        assert torch.equal(got[name], want[name]), name
    assert got["image_embeds_position_mask"].sum(dim=1).tolist() == [5] * len(TEXTS)


def test_texts_alone_and_with_an_end(both):
    theirs, ours, _ = both
    for text in TEXTS:
        want = theirs(text=[text], return_tensors="pt")
        assert torch.equal(ours(None, [text])["input_ids"], want["input_ids"])
        [look] = looks(1)
        want = theirs(images=[look], text=[text], return_tensors="pt", num_image_tokens=5, add_eos_token=True)
        assert torch.equal(ours([look], [text], end=True)["input_ids"], want["input_ids"])


def test_boxes_are_written_as_officially(both):
    theirs, ours, _ = both
    rows = np.array([[0.1, 0.2, 0.5, 0.9], [0.0, 0.0, 1.0, 1.0], [0.7, 0.31, 0.72, 0.33]])
    rows32 = rows.astype(np.float32)
    places = Boxes(rows32 * 640, np.array([0, 1, 1]), np.ones(3, np.float32), ("two mugs", "a fire"), 640, 640)
    official = [[tuple(rows[0].tolist()), [tuple(rows[1].tolist()), tuple(rows[2].tolist())]]]
    [look] = looks(1)
    want = theirs(images=[look], text=[TEXTS[3]], bboxes=official, return_tensors="pt", num_image_tokens=5)
    got = ours([look], [TEXTS[3]], boxes=[places])
    assert torch.equal(got["input_ids"], want["input_ids"])
    by_cells = [[tuple(cells_of(places)[0].tolist()), None]]
    want = theirs(images=[look], text=[TEXTS[3]], bboxes=by_cells, return_tensors="pt", num_image_tokens=5)
    alone = Boxes(rows32[:1] * 640, np.array([0]), np.ones(1, np.float32), ("two mugs", "a fire"), 640, 640)
    assert torch.equal(ours([look], [TEXTS[3]], boxes=[alone])["input_ids"], want["input_ids"])


def test_answers_are_decoded_as_officially(both):
    theirs, ours, _ = both
    for text in TEXTS:
        ids = theirs.tokenizer(text + "<object><patch_index_0003><patch_index_0077></object> by")["input_ids"]
        want = theirs.batch_decode([ids], skip_special_tokens=True)[0]
        assert ours.tokenizer.decode(ids) == want


def test_its_files_are_read_back_by_the_reference(both, tmp_path):
    from transformers import Kosmos2Processor as Official

    theirs, ours, _ = both
    ours.save(tmp_path)
    back = Official.from_pretrained(tmp_path)
    [look] = looks(1)
    a = back(images=[look], text=[TEXTS[0]], return_tensors="pt", num_image_tokens=5)
    b = theirs(images=[look], text=[TEXTS[0]], return_tensors="pt", num_image_tokens=5)
    assert all(torch.equal(a[name], b[name]) for name in b)
    again = read_kosmos2_processor(tmp_path, 5, 97)
    assert again.describe() == ours.describe()


def test_the_square_of_the_official_file(both, tmp_path):
    """ "use_square_size": the picture is squeezed, so all of it is seen; without it the middle is."""
    _, ours, folder = both
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    record = {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 224}, "use_square_size": True}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(record))
    square = read_kosmos2_processor(tmp_path, 5, 97)
    assert square.pictures.size == {"height": 224, "width": 224}
    assert square.seen_part(640, 480) == (0, 0, 640, 480)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({**record, "use_square_size": False}))
    middle = read_kosmos2_processor(tmp_path, 5, 97)
    left, top, right, bottom = middle.seen_part(640, 480)  # 298×224 after resizing; 37 px cut on the left
    assert (top, bottom) == (0, 480) and left == 37 * 640 / 298 and right == (37 + 224) * 640 / 298
    assert ours.seen_part(97, 31) == (0, 0, 97, 31)


def test_what_does_not_fit_is_named(both, tmp_path):
    _, ours, folder = both
    assert isinstance(ours, Kosmos2Processor)
    with pytest.raises(UsageError, match="2 pictures and 1 texts"):
        ours(looks(2), ["a"])
    with pytest.raises(UsageError, match="give a list"):
        ours(looks(1), "a")
    with pytest.raises(UsageError, match="boxes for 0 texts"):
        ours(looks(1), ["a"], boxes=[])
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    data = json.loads((folder / "processor_config.json").read_text())
    (tmp_path / "processor_config.json").write_text(json.dumps({**data, "num_patch_index_tokens": 256}))
    with pytest.raises(ConfigError, match="16×16"):
        read_kosmos2_processor(tmp_path, 5, 97)
    (tmp_path / "processor_config.json").write_text(json.dumps(data))
    words = json.loads((folder / "tokenizer.json").read_text())
    words["added_tokens"] = [t for t in words["added_tokens"] if t["content"] != "<object>"]
    (tmp_path / "tokenizer.json").write_text(json.dumps(words))
    with pytest.raises(TokenizerError, match="<object>"):
        read_kosmos2_processor(tmp_path, 5, 97)

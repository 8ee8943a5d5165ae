"""Florence-2's codec: boxes ⇄ text at 12 sizes, the official post-processor's answers, hostile text in linear time."""

from __future__ import annotations

import random
import time

import numpy as np
import pytest
import transformers
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sightline.errors import DataError, UsageError
from sightline.media import Boxes
from sightline.models.vlm.florence2_asking import Spelled, first_named, worded
from sightline.models.vlm.florence2_places import centres, place_text
from sightline.models.vlm.florence2_processor import RULES
from sightline.models.vlm.florence2_tasks import BANNED, TASKS, prompt, prompt_of, understand

SIZES = [
    (64, 48), (48, 64), (97, 97), (640, 480), (480, 640), (768, 768), (1920, 1080), (1080, 1920), (3000, 200),
    (200, 3000), (4000, 3000), (333, 1777),
]  # fmt: skip


class Words:
    """What the official post-processor wants of a tokenizer when it is given text."""

    all_special_tokens = ["<s>", "</s>", "<pad>"]  # noqa: RUF012


def official():
    """transformers' post-processing without its tokenizer and image processor."""
    from transformers.models.florence2.processing_florence2 import Florence2PostProcessor

    rules = {name: {} for name in RULES} | {"phrase_grounding": {"banned_grounding_tokens": sorted(BANNED)}}
    made = object.__new__(transformers.Florence2Processor)
    kinds = {"text": "pure_text", "quads": "ocr", "boxes": "description_with_bboxes", "proposals": "bboxes"}
    kinds |= {"grounding": "phrase_grounding", "outlines": "polygons", "either": "description_with_bboxes_or_polygons"}
    made.tasks_answer_post_processing_type = {name: kinds[task.kind] for name, task in TASKS.items()}
    made.post_processor = Florence2PostProcessor(config=rules, tokenizer=Words())
    return made


OFFICIAL = official()


def rectangles(width, height, count=40, seed=0):
    """Boxes of at least a tenth of each side."""
    noise = np.random.default_rng(seed)
    sides = np.array([width, height]) * noise.uniform(0.1, 1, (count, 2))
    corner = (np.array([width, height]) - sides) * noise.uniform(0, 1, (count, 2))
    xyxy = np.concatenate([corner, corner + sides], axis=1).astype(np.float32)
    labels = noise.integers(0, 3, count)
    return Boxes(xyxy, labels, np.ones(count, np.float32), ("mug", "a red box", "naïve 本"), width, height)


@pytest.mark.parametrize("size", SIZES)
def test_rectangles_come_back(size):
    boxes = rectangles(*size)
    text = "".join(boxes.phrases[i] + t for i, t in zip(boxes.labels, place_text(boxes), strict=True))
    back = understand("<OD>", f"</s><s>{text}</s><pad>", size).boxes
    assert back.names == boxes.names and back.scores.tolist() == [1.0] * 40
    assert np.diag(back.iou(boxes)).min() >= 0.98
    assert (back.width, back.height) == size
    assert place_text(back) == place_text(boxes)  # a bin's middle is in the bin
    outline = understand("<REGION_TO_SEGMENTATION>", place_text(boxes)[0], size).outlines[0].rings[0]
    assert outline.ravel() == pytest.approx(back.xyxy[0], rel=1e-6)


def test_by_hand():
    boxes = Boxes.from_xywh([[0, 0, 640, 480], [64, 48, 256.5, 431.9]], [0, 0], [1, 1], ["mug"], 640, 480)
    assert place_text(boxes) == ["<loc_0><loc_0><loc_999><loc_999>", "<loc_100><loc_100><loc_500><loc_999>"]
    assert centres([100, 100, 500, 999], 640, 480) == pytest.approx([64.32, 48.24, 320.32, 479.76])
    said = understand("<OD>", "mug<loc_100><loc_100><loc_500><loc_999>", (640, 480))
    assert said.official() == {"<OD>": {"bboxes": [[64, 48, 320, 479]], "labels": ["mug"]}}
    quad = understand(
        "<OCR_WITH_REGION>", "STOP" + "<loc_0><loc_0><loc_9><loc_0><loc_9><loc_4><loc_0><loc_4>", (1000, 500)
    )
    assert quad.quads[0].text == "STOP"
    assert quad.quads[0].corners.tolist() == [[0.5, 0.25], [9.5, 0.25], [9.5, 2.25], [0.5, 2.25]]
    text = "a cup<poly><loc_0><loc_0><loc_9><loc_0><loc_9><loc_9><sep><loc_5><loc_5><loc_6><loc_5></poly>"
    (shape,) = understand("<OPEN_VOCABULARY_DETECTION>", text, (1000, 1000)).outlines
    assert shape.label == "a cup" and [len(ring) for ring in shape.rings] == [3, 2]
    turned = understand("<OD>", "mug<loc_500><loc_5><loc_1><loc_9>", (1000, 1000))
    assert turned.boxes.xyxy.tolist() == [[1.5, 5.5, 500.5, 9.5]] and "turned round" in turned.problems[0]
    assert turned.official()["<OD>"]["bboxes"] == [[500, 5, 1, 9]]
    far = understand("<OD>", "mug<loc_1><loc_5><loc_1000><loc_9><loc_1><loc_2><loc_3><loc_4>", (1000, 1000))
    assert far.boxes.xyxy.tolist() == [[1.5, 2.5, 3.5, 4.5]] and "beyond" in far.problems[0]
    assert understand("<CAPTION>", "</s><s> A mug. </s>", (3, 3)).text == "A mug."
    with pytest.raises(DataError, match="0×3"):
        understand("<OD>", "", (0, 3))


PIECES = [
    *(f"<loc_{n}>" for n in (0, 1, 7, 250, 999)), "<loc_5><loc_6><loc_7><loc_8>", "<poly>", "</poly>", "<sep>", "mug",
    "the", "it", " ", "\n", "naïve 本", "<", ">", "<s>", "</s>", "<pad>", "<loc_", "a <b> c", "<od>", "<ground>", "e" * 9,
]  # fmt: skip
texts = st.lists(st.sampled_from(PIECES), max_size=30).map("".join)
RUN = "<loc_1><loc_2><loc_3><loc_4>"


@settings(max_examples=120, deadline=None)
@given(texts, st.sampled_from(sorted(TASKS)), st.sampled_from(SIZES))
@example(f"<loc_1>{RUN}{RUN}x{RUN}", "<OCR_WITH_REGION>", (640, 480))
@example(f"<{RUN}<loc_5>{RUN}", "<OD>", (97, 97))
@example(f"cup<sep>{RUN}<sep>\n{RUN}", "<OPEN_VOCABULARY_DETECTION>", (97, 97))
@example(f"cup<poly>{RUN}</poly><poly>{RUN}<sep>{RUN}</poly> it{RUN}", "<OPEN_VOCABULARY_DETECTION>", (97, 97))
@example(f"{RUN}<sep>{RUN}<poly>{RUN}</poly>", "<REFERRING_EXPRESSION_SEGMENTATION>", (333, 1777))
def test_the_official_answers(text, task, size):
    """The very dict of `post_process_generation`, for sensible and for broken text."""
    want = OFFICIAL.post_process_generation(text=text, task=task, image_size=size)
    got = understand(task, text, size)
    if TASKS[task].kind == "text":
        assert got.official()[task] == want[task].replace("<pad>", "").strip()
        return
    assert got.official() == want
    count = sum(len(f.places) for f in got.found)
    assert count == len(got.boxes) + len(got.quads) + sum(len(o.rings) for o in got.outlines)


SIZE = 60_000  # characters
HOSTILE = {
    "words": "a" * SIZE,
    "open": "<" * SIZE,
    "digits": "<loc_" + "1" * SIZE + ">",
    "halves": "<loc_1" * (SIZE // 6),
    "places": "<loc_1>" * (SIZE // 7),
    "triples": "mug<loc_1><loc_2><loc_3>" * (SIZE // 24),
    "sevens": ("x" + "<loc_1>" * 7 + "\n") * (SIZE // 51),
    "lines": "\n" * SIZE,
    "polygons": "</poly>" + "<poly>" * (SIZE // 6),
    "unclosed": "mug" + "<loc_1>" * (SIZE // 7) + "<poly>",
    "separators": "mug" + "<loc_1><sep>" * (SIZE // 12),
    "pairs": "mug<poly><loc_1><loc_2></poly>" * (SIZE // 30),
    "one run": "mug" + "<poly><loc_1><loc_2></poly>" * (SIZE // 27),
    "marks": "<s>" * (SIZE // 3),
    "spaces": " " * SIZE + "<loc_1><loc_1><loc_1><loc_1>",
    "noise": "".join(random.Random(0).choices(PIECES, k=SIZE // 6)),
}


KINDS = ("<OD>", "<REGION_PROPOSAL>", "<OCR_WITH_REGION>", "<REGION_TO_SEGMENTATION>", "<OPEN_VOCABULARY_DETECTION>")


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_text_takes_linear_time(name):
    """What takes 0.05 s here takes the official expressions minutes ("words": 60,000² / 2 steps)."""
    for task in KINDS:
        began = time.process_time()
        understand(task, HOSTILE[name], (640, 480))
        assert time.process_time() - began < 1.5, task


@pytest.mark.parametrize("name", ["one run", "separators"])
def test_a_megabyte(name):
    """The slowest of them: 0.65 s without the checks of shapes that run with the tests."""
    text = (HOSTILE[name] * 17)[:1_000_000]
    began = time.process_time()
    understand("<REGION_TO_SEGMENTATION>", text, (640, 480))
    assert time.process_time() - began < 6


@settings(max_examples=40, deadline=None)
@given(st.text(max_size=200), st.sampled_from(sorted(TASKS)))
def test_no_text_is_too_broken(text, task):
    understand(task, text, (640, 480))


def test_prompts():
    assert prompt("<OD>") == "Locate the objects with category name in the image."
    assert (
        prompt("<CAPTION_TO_PHRASE_GROUNDING>", " {input} and {0} ")
        == "Locate the phrases in the caption: {input} and {0}"
    )
    assert prompt_of("<CAPTION>") == "What does the image describe?" and prompt_of("how many?") == "how many?"
    boxes = Boxes.from_xywh([[0, 0, 10, 10]], [0], [1], ["?"], 100, 100)
    assert (
        prompt("<REGION_TO_OCR>", worded("", boxes)) == "What text is in the region <loc_0><loc_0><loc_100><loc_100>?"
    )
    for task, text, told in [
        ("<CAPTIONS>", "", "no task"), ("<OD>", "cats", "takes no text"), ("<REGION_TO_OCR>", " ", "asks about"),
    ]:  # fmt: skip
        with pytest.raises(UsageError, match=told):
            prompt(task, text)


def test_the_phrase_that_was_asked():
    """Of "the mug on the box" the mug counts; a label that is not in the phrase counts nowhere."""
    text = "the box<loc_1><loc_1><loc_2><loc_2>The  mug<loc_3><loc_3><loc_4><loc_4><loc_5><loc_5><loc_6><loc_6>"
    boxes = understand("<CAPTION_TO_PHRASE_GROUNDING>", text, (1000, 1000)).boxes
    assert first_named(boxes, "the mug on the box").xyxy[:, 0].tolist() == [3.5, 5.5]
    assert first_named(boxes, "The box").xyxy[:, 0].tolist() == [1.5]
    assert len(first_named(boxes, "a dog")) == 0


class Backend:
    def get_added_tokens_decoder(self):
        from tokenizers import AddedToken

        names = {0: "<s>", 1: "<pad>", 2: "</s>"} | {10 + i: f"<loc_{i}>" for i in range(9)}
        return {i: AddedToken(name) for i, name in names.items()}


class Letters:
    """Ids from 100 on are letters."""

    backend = Backend()

    def decode(self, ids, *, skip_special=True):
        return "".join(chr(i - 100 + ord("a")) for i in ids)


def test_scores_are_mean_probabilities():
    ids = [0, 100, 101, 10, 11, 12, 13, 102, 14, 15, 16, 17, 14, 15, 16, 17, 2]
    shares = [0.1, 0.5, 0.7, 1.0, 0.9, 0.8, 0.6, 0.25, 1.0, 1.0, 1.0, 1.0, 0.5, 0.5, 0.5, 0.5, 0.1]
    said = Spelled(Letters(), ids, np.log(shares).tolist())
    assert said.text == "ab<loc_0><loc_1><loc_2><loc_3>c<loc_4><loc_5><loc_6><loc_7><loc_4><loc_5><loc_6><loc_7>"
    boxes = understand("<OD>", said.text, (1000, 1000), certainty=said.certainty).boxes
    assert boxes.names == ["ab", "c", "c"]
    assert boxes.scores.tolist() == pytest.approx([4.5 / 6, 4.25 / 5, 2.25 / 5])  # letters and four places each
    proposals = understand("<REGION_PROPOSAL>", said.text, (1000, 1000), certainty=said.certainty).boxes
    assert proposals.scores.tolist() == pytest.approx([3.3 / 4, 1.0, 0.5])

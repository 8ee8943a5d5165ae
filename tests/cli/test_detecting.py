"""detect, train detection, evaluate detection: files in and out, exit codes, one line per bad picture."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

import sightline
from sightline.app.cli import main
from sightline.app.drawing import SHORTEST, boxes_drawn, colour_of
from sightline.errors import UsageError
from sightline.media import Boxes, Picture
from sightline.models.detection.detr import DETR, DetrConfig
from sightline.models.detection.grid import Grid, GridConfig
from sightline.models.detection.processor import DetrProcessor
from sightline.models.processor import Processor
from sightline.models.vision.resnet import ResNet, ResNetConfig
from sightline.worlds.tabletop import KINDS

RESNET = {
    "model_type": "resnet",
    "embedding_size": 8,
    "hidden_sizes": [12, 20],
    "depths": [1, 1],
    "layer_type": "basic",
}
NAMES = {str(i): kind for i, kind in enumerate(KINDS)}


def run(monkeypatch, capsys, *words):
    monkeypatch.setattr("sys.argv", ["sightline", *map(str, words)])
    try:
        main()
        code = 0
    except SystemExit as stop:
        code = int(stop.code or 0)
    out, err = capsys.readouterr()
    return code, out, err


@pytest.fixture
def models(tmp_path):
    """A DETR and a grid with random weights, in folders."""
    torch.manual_seed(0)
    sizes = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2,
             "decoder_attention_heads": 2, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16}  # fmt: skip
    made = {
        "detr": DETR(DetrConfig(backbone_config=RESNET, num_queries=5, id2label=NAMES, **sizes)),
        "grid": Grid(GridConfig(backbone_config=RESNET, hidden_size=8, anchors=((12.0, 12.0),), id2label=NAMES)),
    }
    looks = {"image_processor_type": "DetrImageProcessor", "size": {"height": 32, "width": 32}}
    for name, model in made.items():
        model.processor = Processor(DetrProcessor.from_dict(looks), None)
        model.save(tmp_path / name)
    return tmp_path


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for number, size in enumerate(((48, 32), (30, 50))):
        pixels = np.random.default_rng(number).integers(0, 256, (*size[::-1], 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"photo {number}.png")
    return folder


def test_detect_writes_lines_drawings_and_names_what_is_broken(models, photos, monkeypatch, capsys, tmp_path):
    (photos / "bad.jpg").write_bytes(b"junk")
    out = tmp_path / "found"
    code, text, err = run(monkeypatch, capsys, "detect", photos, "-m", models / "detr", "-t", "0", "--json", "-o", out)
    records = [json.loads(line) for line in text.splitlines()]
    assert code == 3 and len(records) == 3 and "bad.jpg" in records[2]["error"]
    assert [r for r in err.splitlines() if "bad.jpg" in r] and "Traceback" not in err
    first = records[0]
    assert (first["width"], first["height"]) == (48, 32) and len(first["boxes"]) == 5
    scores = [box["score"] for box in first["boxes"]]
    assert scores == sorted(scores, reverse=True) and {box["label"] for box in first["boxes"]} <= set(KINDS)
    assert all(
        0 <= b["xyxy"][0] <= b["xyxy"][2] <= 48 and 0 <= b["xyxy"][1] <= b["xyxy"][3] <= 32 for b in first["boxes"]
    )
    assert (out / "boxes.jsonl").read_text().splitlines() == text.splitlines()
    drawing = Image.open(out / "photo_0.png")
    assert max(drawing.size) >= SHORTEST and drawing.size[0] * 32 == drawing.size[1] * 48
    code, text, _ = run(monkeypatch, capsys, "detect", photos / "photo 1.png", "-m", models / "grid", "-t", "1")
    assert code == 0 and "nothing with a score above 1" in text


def test_wrong_models_labels_and_sources(models, photos, monkeypatch, capsys):
    code, _, err = run(monkeypatch, capsys, "detect", photos, "-m", models / "detr", "-l", "mugg")
    assert code == 2 and 'no "mugg"' in err and "mug" in err
    assert run(monkeypatch, capsys, "detect")[0] == 2
    assert run(monkeypatch, capsys, "detect", photos, "-m", models / "detr", "-t", "1.5")[0] == 2
    assert run(monkeypatch, capsys, "train", "detection")[0] == 2
    assert run(monkeypatch, capsys, "train", "detection", "--recipe", "yolo")[0] == 2
    with pytest.raises(UsageError, match="ResNet does not detect"):
        sightline.detect(photos, model=ResNet(ResNetConfig.from_dict(RESNET)))


def test_labels_choose_classes(models, photos):
    everything = sightline.detect(photos, model=models / "detr", threshold=0.0)
    name = everything.pictures[0].boxes.names[0]
    some = sightline.detect(photos, model=models / "detr", threshold=0.0, labels=[name])
    assert {n for one in some.pictures for n in one.boxes.names} == {name}


def test_evaluate_compares_and_replays(models, monkeypatch, capsys, tmp_path):
    words = ["evaluate", "detection", "tabletop:test:3", "-m", models / "detr", "--compare", models / "grid",
             "-o", tmp_path / "records", "-t", "0.02", "--dtype", "float32", "--quiet"]  # fmt: skip
    code, text, err = run(monkeypatch, capsys, *words, "--json")
    assert code == 0, err
    records = [json.loads(line) for line in text.splitlines()]
    assert [r.get("kind") for r in records] == ["detection", "detection", None, None]
    assert {s["metric"] for s in records[0]["scores"]} >= {"AP", "AP50", "AP75", "AR@100", "recall@0.02"}
    needs = [r["compared"] for r in records[2:]]
    assert needs[0]["needs"] == "5 queries, a transformer" and needs[1]["needs"] == "1 anchors, suppression at IoU 0.5"
    assert all(n["guesses_suppressed"] <= n["guesses_unsuppressed"] for n in needs)
    code, text, _ = run(monkeypatch, capsys, "evaluate", "--replay", tmp_path / "records" / "detection-2.json")
    assert code == 0 and "the same" in text
    code, _, err = run(monkeypatch, capsys, "evaluate", "detection", "tabletop:none:3", "-m", models / "detr")
    assert code == 2 and "names no scenes" in err


def test_the_built_in_grid_needs_suppression_and_the_detr_does_not():
    detr, grid = sightline.evaluate_detection("tabletop:test:40", compare="sightline:tabletop-grid").needs
    assert grid.ap50_suppressed > 0.6 > 0.5 > grid.ap50_unsuppressed and grid.guesses_unsuppressed > 8
    assert detr.ap50_unsuppressed > 0.6 and abs(detr.ap50_suppressed - detr.ap50_unsuppressed) < 0.12


def test_a_drawing_shows_boxes_where_they_are():
    boxes = Boxes(
        np.array([[10, 20, 30, 40]], np.float32), np.array([0]), np.array([0.5], np.float32), ("mug",), 100, 100
    )
    picture = Picture(np.zeros((50, 50, 3), np.uint8), "a.png", (100, 100))  # a scaled decode: half of the original
    sheet = boxes_drawn(picture, boxes)
    zoom = sheet.shape[0] / 100
    assert tuple(sheet[round(40 * zoom) - 1, round(20 * zoom)]) == colour_of(0)  # inside the lower edge
    assert tuple(sheet[round(30 * zoom), round(20 * zoom)]) == (0, 0, 0)  # the middle is not painted over
    assert boxes_drawn(picture, boxes[:0]).shape == sheet.shape
    sure = Boxes(np.tile(boxes.xyxy, (2, 1)), np.array([1, 0]), np.array([0.9, 0.2], np.float32), ("a", "b"), 100, 100)
    assert tuple(boxes_drawn(picture, sure)[round(40 * zoom) - 1, round(20 * zoom)]) == colour_of(
        1
    )  # the surest, on top

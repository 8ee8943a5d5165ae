"""locate, where, perceive, ablate and error-budget on the command line: tiny models, exit codes, files, sentences."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import transformers
from PIL import Image
from transformers.models.dpt.image_processing_pil_dpt import DPTImageProcessorPil

import sightline
from app.tiny_llava import tiny_llava
from parity.test_depth_anything import METRIC, theirs
from parity.test_detr import reference
from pipelines.truthful import MUG_BOXES, BoxLocator, TrueDepth, TrueDetector, TrueLocator, picture_of, scenes
from sightline.app.cli import main
from sightline.app.commands.placing import split_picture
from sightline.errors import UsageError, WeightsError

CPU = ("--device", "cpu", "--dtype", "float32")


@pytest.fixture(scope="module")
def models(tmp_path_factory, awake):
    """A tiny detector, a tiny metric depth model and a tiny LLaVA without places, in the official files."""
    root = tmp_path_factory.mktemp("models")
    awake(transformers.DetrForObjectDetection(reference()), seed=3).save_pretrained(root / "detr")
    looks = transformers.DetrImageProcessorPil(size={"shortest_edge": 96, "longest_edge": 128})
    looks.save_pretrained(root / "detr")
    theirs(awake, **METRIC).save_pretrained(root / "depth")
    DPTImageProcessorPil(size={"height": 35, "width": 35}, ensure_multiple_of=7).save_pretrained(root / "depth")
    tiny_llava(root / "llava", awake)
    return root


@pytest.fixture(scope="module")
def photo(tmp_path_factory):
    path = tmp_path_factory.mktemp("photos") / "photo.png"
    Image.fromarray(np.random.default_rng(5).integers(0, 256, (41, 47, 3), dtype=np.uint8)).save(path)
    return path


@pytest.fixture
def run(monkeypatch, capsys):
    def call(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["sightline", *map(str, words)])
        try:
            main()
            code = 0
        except SystemExit as stop:
            code = int(stop.code or 0)
        out, err = capsys.readouterr()
        return code, out, err

    return call


def test_a_model_without_places_places_nothing_and_says_so(run, models, photo):
    words = (photo, "the red mug", "--grounder", models / "llava", "--depth-model", models / "depth", "--fov", 60, *CPU)
    code, out, err = run("where", *words, "--json")
    (said,) = map(json.loads, out.splitlines())
    assert code == 3 and said["match"] is False and said["box"] is None and said["xyz"] is None
    assert 'not placed: the red mug: nothing in the picture fits "the red mug"' in err
    code, out, _ = run("locate", photo, "the red mug", "--model", models / "llava", *CPU)
    assert code == 0 and "no match" in out


def test_where_writes_what_python_gives(run, models, photo, tmp_path, monkeypatch):
    box = BoxLocator({"photo.png": (10, 10, 30, 30)})
    monkeypatch.setattr("sightline.app.verbs.where.open_locator", lambda *_: box)
    Image.fromarray(np.full((41, 47), 1500, np.uint16)).save(tmp_path / "depth.png")
    (tmp_path / "base.json").write_text(json.dumps(np.eye(4).tolist()))
    options = ("--depth", tmp_path / "depth.png", "--fov", 60, "--to-base", tmp_path / "base.json")
    code, out, _ = run("where", photo, "it", *options, "--json", "--out", tmp_path / "out")
    done = sightline.where(
        photo, "it", depth=tmp_path / "depth.png", fov=60, to_base=tmp_path / "base.json", grounder="anything"
    )
    said = json.loads(out)
    assert code == 0 and {**said, "seconds": 0} == {**done.records()[0], "seconds": 0}
    assert said["depth"] == 1.5 and [call["call"] for call in said["action"]] == ["move_to", "grasp"]
    assert json.loads((tmp_path / "out" / "places.json").read_text())[0]["xyz"] == said["xyz"]
    assert "<script" not in (tmp_path / "out" / "page.html").read_text()
    assert Image.open(tmp_path / "out" / "picture.png").size == (470, 410)
    code, out, err = run("where", photo, "it", "--depth", tmp_path / "depth.png", "--to-base", tmp_path / "base.json")
    assert code == 3 and "not to be trusted" in out and "no robot call" in out and "--fov" in err
    code, out, _ = run("where", photo, "it", *options, "--widest", 0.01)
    assert code == 0 and "opens only" in out


def test_real_frames(run, shared_data, monkeypatch):
    monkeypatch.setattr("sightline.app.verbs.where.open_locator", lambda *_: BoxLocator(MUG_BOXES))
    folder = shared_data / "rgbd_7scenes"
    first = folder / "frame-000000.color.jpg"
    code, out, _ = run("where", first, "the white mug", "--frames", folder, "--json")
    said = json.loads(out)
    assert code == 0 and said["frame"] == "world" and said["depth_from"] == "given"
    code, out, _ = run("where", "the white mug", "--frames", folder, "--views", 2)  # the first and the last show it
    assert code == 0 and "vote" in out
    assert run("where", first, "it", "--frames", folder, "--fov", 60)[0] == 2


def test_a_person_shows_where(run, shared_data, photo):
    """One mug, shown in two real frames twenty seconds apart, is at one place of the room."""
    folder = shared_data / "rgbd_7scenes"
    places = []
    for frame, box in (("000000", "363,164,400,203"), ("000500", "126,251,161,296")):
        code, out, _ = run(
            "where", folder / f"frame-{frame}.color.jpg", "the white mug", "--frames", folder, "--box", box, "--json"
        )
        (record,) = map(json.loads, out.splitlines())
        assert code == 0 and record["trusted"] and record["locator"] == "given" and record["frame"] == "world"
        places.append(record["xyz"])
    assert np.linalg.norm(np.subtract(*places)) < 0.06  # half of a mug's width: each frame sees another side
    for boxes, told in (
        (["--box", "1,2,3,4"] * 2, "2 boxes and 1 phrases"),
        (["--box", "0,0,641,9"], "leaves the picture, which is 640 × 480"),
        (["--box", "5,5,5,9"], "no box"),
        (["--box", "a mug"], "no box"),
        (["--box", "1,2,nan,9"], "no box"),
    ):
        code, _, err = run("where", folder / "frame-000000.color.jpg", "the mug", "--frames", folder, *boxes)
        assert code == 2 and told in err, err
    code, _, err = run("where", "the mug", "--frames", folder, "--box", "1,2,3,4")
    assert code == 2 and "boxes are those of one picture" in err


def test_bad_calls_are_one_sentence(run, models, photo, tmp_path):
    (tmp_path / "wide.json").write_text(json.dumps({"K": np.eye(3).tolist(), "width": 400, "height": 41}))
    (tmp_path / "mirror.json").write_text(json.dumps(np.diag([1, 1, -1, 1]).tolist()))
    grounder = ("--grounder", models / "llava", *CPU)
    for words, code, said in (
        (("where", photo), 2, "no phrase follows"),
        (("where", photo, " ", *grounder), 2, "blank"),
        (("where", tmp_path / "none.png", "it", *grounder), 1, "none.png"),
        (("where", photo, "it", "--camera", tmp_path / "wide.json", *grounder), 1, "another shape"),
        (("where", photo, "it", "--to-base", tmp_path / "mirror.json", *grounder), 1, "mirrors space"),
        (("where", photo, "it", "--scale-from", "far", *grounder), 2, "X,Y=METRES"),
        (("where", photo, "it", "--grounder", models / "depth", *CPU), 2, "tells no places"),
        (("where", photo, "it", "--depth-model", models / "detr", *grounder), 2, "estimates no depth"),
        (("where", photo, "the red thing", "--grounder", models / "detr", *CPU), 2, "--reranker"),
        (("perceive", photo, "--detector", models / "depth", *CPU), 2, "is no detector"),
        (("perceive", photo, "--without", "sound"), 2, "no module 'sound'"),
        (("ablate", "tabletop:moon:3", "--detector", models / "detr", *CPU), 2, "names no scenes"),
        (("error-budget", "photos/", *grounder), 2, "only they have truth"),
    ):
        got, _, err = run(*words)
        assert (got, said in err, err.count("Error")) == (code, True, 1), (words, err)


def test_what_is_not_built_in_yet_is_said(monkeypatch):
    monkeypatch.setattr("sightline.app.verbs.locating.built_in_names", list)
    picture = picture_of(scenes(1)[0])
    for call in (lambda: sightline.locate(picture, "it"), lambda: sightline.where(picture, "it", fov=60),
                 lambda: sightline.perceive(picture), lambda: sightline.ablate([scenes(1)[0]]),
                 lambda: sightline.error_budget([scenes(1)[0]], grounder=TrueLocator([]))):  # fmt: skip
        with pytest.raises(WeightsError, match=r"this version has no sightline:tabletop-.* yet; name") as caught:
            call()
        assert "\n" not in str(caught.value)


def test_perceive(run, models, photo, tmp_path):
    models_ = ("--detector", models / "detr", "--depth-model", models / "depth", "--threshold", 0.0, "--fov", 60, *CPU)
    code, out, _ = run("perceive", photo, *models_, "--json", "--out", tmp_path / "out")
    said = json.loads(out)
    assert (
        code == 0 and said["features"] == [7, 9, 128] and said["depth"]["unit"] == "metre" and len(said["objects"]) == 7
    )
    assert {p.suffix for p in (tmp_path / "out").iterdir()} == {".png", ".json", ".html"}
    code, out, _ = run("perceive", photo, *models_, "--without", "features", "--without", "depth", "--json")
    assert code == 0 and json.loads(out)["features"] is None and json.loads(out)["objects"][0]["xyz"] is None
    code, out, err = run("perceive", photo, tmp_path / "none.png", *models_)
    assert code == 3 and "none.png" in err and "photo.png" in out


def test_ablate_and_budget_write_pages(tmp_path):
    truths = scenes(3)
    done = sightline.ablate(truths, detector=TrueDetector(truths), depth_model=TrueDepth(truths), features=None,
                            out=tmp_path / "a")  # fmt: skip
    assert [b.config for b in done.benchmarks] == ["full", "no depth"]
    page = (tmp_path / "a" / "page.html").read_text()
    assert (
        "<svg" in page and "no depth" in page and len(json.loads((tmp_path / "a" / "ablation.json").read_text())) == 2
    )
    budget = sightline.error_budget(truths, grounder=TrueLocator(truths), measured=True, fov=60, out=tmp_path / "b")
    assert [row["name"] for row in budget.records()] == ["as it is", "true grounding", "true camera", "all true"]
    assert "only they" not in (tmp_path / "b" / "page.html").read_text()


def test_words_are_a_picture_and_phrases(photo):
    assert split_picture([str(photo), "a", "b"], False) == (str(photo), ["a", "b"])
    assert split_picture(["a", "b"], True) == (None, ["a", "b"])
    assert split_picture([str(photo), "a"], True) == (str(photo), ["a"])
    with pytest.raises(UsageError, match="no phrase follows"):
        split_picture([str(photo)], True)


def test_names_from_outside_are_escaped(tmp_path):
    truth = scenes(1)[0]
    phrase = "<script>alert(1)</script>"
    sightline.where(picture_of(truth), phrase, camera=truth.camera, grounder=TrueLocator([truth]), out=tmp_path)
    assert "<script" not in (tmp_path / "page.html").read_text()


def test_files_are_named_after_pictures(photo, tmp_path):
    done = sightline.locate(photo, "it", model=BoxLocator({"photo.png": (1, 2, 9, 9)}), out=tmp_path)
    assert [Path(str(one.file)).name for one in done.found] == ["0000-photo.png"] and done.found[0].to_dict()["file"]

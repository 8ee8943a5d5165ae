"""The built-in LLaVA in small: drawn scenes, a new tokenizer, three stages, an official folder, the same again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers

import sightline
from sightline.errors import UsageError
from sightline.training import lesson_bank
from sightline.training.recipes.llava import llava_recipe
from sightline.training.tabletop_llava import build_tabletop_llava, train_tabletop_llava

TINY = ["scenes=12", "width=16", "layers=1", "heads=2", "kv_heads=2", "intermediate=24", "batch_size=4", "steps=3",
        "words_steps=2", "sight_steps=3", "sight_batch=4", "bridge_steps=2", "look_layer=none", "warmup=1",
        "log_every=1", "dtype=float32", "vocab_size=400", "device=cpu"]  # fmt: skip


def test_small_from_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lesson_bank, "SHARD", 6)
    done = train_tabletop_llava(tmp_path, settings=TINY, quiet=True)
    assert done.folder is not None and {p.name for p in tmp_path.iterdir()} >= {
        "words",
        "sight",
        "bridge",
        "model",
        "scenes",
    }
    again = train_tabletop_llava(tmp_path, settings=TINY, quiet=True)
    pairs = zip(done.model.state_dict().values(), again.model.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    model = sightline.load(done.folder, dtype="float32")
    tokenizer = model.processor.tokenizer
    assert tokenizer.token_id("<loc_999>") - tokenizer.token_id("<loc_000>") == 999
    assert tokenizer.decode([tokenizer.token_id("<loc_042>")]) == "<loc_042>"
    theirs = transformers.LlavaForConditionalGeneration.from_pretrained(done.folder, dtype=torch.float32)
    official = transformers.AutoProcessor.from_pretrained(done.folder)
    asked = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Where is the mug?"}]}]
    text = official.apply_chat_template(asked, add_generation_prompt=True)
    assert text == model.processor.render(asked) == "USER: <image>\nWhere is the mug? ASSISTANT:"
    truth = sightline.worlds.tabletop.render(sightline.worlds.tabletop.scene(3, split="val", size=128))
    from PIL import Image

    inputs = official(images=Image.fromarray(truth.picture), text=text, return_tensors="pt")
    ours = model.processor([truth.picture], [text])
    assert torch.equal(inputs["input_ids"], ours["input_ids"])
    with torch.no_grad():
        expected = theirs(**inputs).logits
        assert (model(**ours).logits - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_on_from_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lesson_bank, "SHARD", 6)
    first = train_tabletop_llava(tmp_path / "one", settings=[*TINY, "image_size=128"], quiet=True)
    more = ["scenes=12", "batch_size=4", "steps=2", "warmup=1", "look_layer=none", "dtype=float32", "device=cpu"]
    done = sightline.train_llava(
        out=tmp_path / "two", recipe="tabletop-llava-further", model=first.folder, settings=[*more, "image_size=128"],
        quiet=True,
    )  # fmt: skip
    assert {p.name for p in (tmp_path / "two").iterdir()} >= {"model", "scenes"}
    assert not (tmp_path / "two" / "words").exists() and not (tmp_path / "two" / "sight").exists()
    old, new = (sightline.load(folder, dtype="float32").state_dict() for folder in (first.folder, done.folder))
    changed = {name for name in old if not torch.equal(old[name], new[name])}
    assert changed and not any(name.startswith("vision") for name in changed)
    with pytest.raises(UsageError, match="128 pixels a side and the scenes 192"):
        sightline.train_llava(out=tmp_path / "x", recipe="tabletop-llava-further", model=first.folder, settings=more)


def test_the_recipe_is_small(tmp_path: Path) -> None:
    texts = ["What colour is the mug?", " red <loc_003>", "USER: ASSISTANT:"] * 3
    model = build_tabletop_llava(llava_recipe("tabletop-llava"), texts)
    assert sum(p.numel() for p in model.parameters()) < 10_000_000
    assert model.tokens_per_picture(192, 192) == 144


def test_the_verb_names_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no recipe"):
        sightline.train_llava("x.json", tmp_path, recipe="nothing")
    with pytest.raises(UsageError, match="or --recipe tabletop-llava"):
        sightline.train_llava(out=tmp_path)
    with pytest.raises(UsageError, match="makes its own model"):
        sightline.train_llava(out=tmp_path, recipe="tabletop-llava", model="x")
    with pytest.raises(UsageError, match="makes its own model"):
        sightline.train_llava(out=tmp_path, recipe="tabletop-llava-further", vision="x")


def test_show_and_check_from_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from sightline.app.cli import main
    from training.seeing import tiny_llava, write_conversations

    data = write_conversations(tmp_path / "data")
    tiny_llava().save(tmp_path / "model")

    def run(*words: str) -> str:
        monkeypatch.setattr(
            "sys.argv", ["sightline", "train", "llava", str(data), "-m", str(tmp_path / "model"), *words]
        )
        try:
            main()
        except SystemExit as stop:
            assert not stop.code
        return capsys.readouterr().out

    assert "⟦" in run("--show", "2")
    assert "were learned" in run("--check", "learning_rate=0.02", "device=cpu", "dtype=float32")
    small = [
        "steps=2",
        "batch_size=4",
        "device=cpu",
        "dtype=float32",
        "--quiet",
        "--json",
        "--out",
        str(tmp_path / "run"),
    ]
    assert json.loads(run(*small))["steps"] == 2

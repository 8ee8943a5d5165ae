"""Every command of docs/training-llava.md runs, on tiny folders with the names that it uses."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
from PIL import Image

from sightline.app.cli import main
from sightline.training import lesson_bank
from training.seeing import COLOURS, tiny_language, tiny_tower, write_conversations

PAGE = Path(__file__).parents[2] / "docs" / "training-llava.md"
TINY = ["steps=2", "batch_size=2", "device=cpu", "dtype=float32"]
FROM_NOTHING = [*TINY, "scenes=12", "width=16", "layers=2", "heads=2", "kv_heads=2", "intermediate=24", "vocab_size=400",
                "words_steps=1", "sight_steps=1", "sight_batch=4", "look_layer=1", "look_again=none", "warmup=1"]  # fmt: skip


def commands() -> list[list[str]]:
    blocks = re.findall(r"^```sh\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.M | re.S)
    return [shlex.split(line, comments=True) for block in blocks for line in block.splitlines() if line]


def test_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sightline.training.check_llava.STEPS", 12)
    monkeypatch.setattr(lesson_bank, "SHARD", 6)
    shutil.copytree(write_conversations(tmp_path / "made").parent, tmp_path, dirs_exist_ok=True)
    tiny_tower().save(tmp_path / "clip")
    language = tiny_language()
    language.config = language.config.replace(max_position_embeddings=4000)  # its positions need no table
    language.save(tmp_path / "llama")
    chat = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}assistant:"
    (tmp_path / "llama" / "chat_template.jinja").write_text(chat)
    images = [
        {"id": n, "file_name": f"pictures/{name}.png", "width": 33, "height": 28} for n, name in enumerate(COLOURS)
    ]
    captions = [{"id": n, "image_id": n, "caption": f"a {name} square"} for n, name in enumerate(COLOURS)]
    boxes = [{"id": n, "image_id": n, "category_id": 1, "bbox": [1, 2, 9, 9]} for n in range(len(COLOURS))]
    for name, few in (("captions.json", 2), ("captions_val.json", 1)):  # five answers in a row that do not end stop all
        (tmp_path / name).write_text(json.dumps({"images": images[:few], "annotations": captions[:few]}))
    kinds = {"categories": [{"id": 1, "name": "square"}]}
    (tmp_path / "instances_val.json").write_text(json.dumps({"images": images[:2], "annotations": boxes[:2], **kinds}))
    Image.new("RGB", (28, 28)).save(tmp_path / "photo.png")
    listed = commands()
    assert len(listed) == 14 and {words[0] for words in listed} == {"sightline"}
    for words in listed:
        if "--endpoint" in words:  # a server; tests/training/test_making.py has one
            continue
        if words[1:3] == ["train", "llava"] and "--show" not in words:
            small = FROM_NOTHING if "tabletop-llava" in words else TINY
            if "tabletop-llava-further" in words:
                small = [*TINY, "scenes=12", "look_layer=none"]
            words = [*words, *(f"--set={setting}" for setting in small), *["--quiet"][: "--check" not in words]]
        code = 0
        monkeypatch.setattr("sys.argv", words)
        try:
            main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        said = capsys.readouterr()
        wanted = {0, 1} if "--check" in words else {0, 3} if "written" in words else {0}  # random weights learn little
        assert code in wanted and "Traceback" not in said.err, (words, code, said.err)
        if "--show" in words:
            assert "⟦" in said.out and "<image>×" in said.out
        if "--check" in words:
            assert "step" in said.out + said.err
    assert (tmp_path / "stage2" / "model" / "config.json").is_file()
    assert (tmp_path / "runs" / "llava" / "model" / "config.json").is_file()
    assert (tmp_path / "drawn" / "instructions.json").is_file()

"""Conversations from every format, and single questions that become one conversation."""

from __future__ import annotations

import json
from pathlib import Path

from sightline.training.conversations import merged, open_conversations
from training.seeing import write_conversations


def test_every_format(tmp_path: Path) -> None:
    write_conversations(tmp_path)
    rows = [
        {"image": "pictures/red.png", "question": "what colour?", "answer": "red"},
        {"image": "pictures/blue.png", "captions": ["a blue square", "blue"]},
        {"images": ["pictures/red.png", "pictures/blue.png"], "messages": [
            {"role": "system", "content": "Be brief."}, {"role": "user", "content": "first <image> then <image> which?"},
            {"role": "assistant", "content": [{"type": "text", "text": "both"}]}]},
        {"messages": [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "hi"}]},
    ]  # fmt: skip
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join([*map(json.dumps, rows), "not json"]))
    data = open_conversations(path)
    assert len(data) == 4 and data.problems == ["rows.jsonl, line 5: it is not JSON."]
    assert list(data.picture_names) == ["pictures/red.png", "pictures/blue.png"]
    assert [data.rows[n].pictures for n in range(4)] == [(0,), (1,), (0, 1), ()]
    assert data.variants(1) == 2
    items = data.conversation(2).messages[1]["content"]
    assert [i["type"] for i in items] == ["text", "image", "text", "image", "text"]
    coco = {"images": [{"id": 3, "file_name": "red.png"}], "annotations": [{"image_id": 3, "caption": "A red one."}]}
    (tmp_path / "captions_train.json").write_text(json.dumps(coco))
    captions = open_conversations(tmp_path / "captions_train.json", tmp_path / "pictures")
    assert captions.conversation(0).messages[1]["content"][0]["text"] == "A red one."


def test_questions_on_one_picture_become_a_conversation(tmp_path: Path) -> None:
    write_conversations(tmp_path)
    rows = [{"image": f"pictures/{c}.png", "question": f"q{n}", "answer": f"a{n}"} for n, c in enumerate(
        ["red", "blue", "red", "red", "blue"])]  # fmt: skip
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    one = merged(open_conversations(tmp_path / "rows.jsonl"), 2)
    said = [[m["content"][-1]["text"] for m in one.conversation(n).messages] for n in range(len(one))]
    assert sorted(said) == [["q0", "a0", "q2", "a2"], ["q1", "a1", "q4", "a4"], ["q3", "a3"]]
    for row in one.rows:
        assert sum(i["type"] == "image" for m in row.variants[0] for i in m["content"]) == 1

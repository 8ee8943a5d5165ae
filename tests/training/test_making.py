"""Instruction data: LLaVA's contexts, an endpoint that must be named, answers that must pass, work that goes on."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from sightline.app.verbs.making import make_instructions
from sightline.errors import DataError, SourceError, UsageError
from sightline.training.contexts import Context, read_answer, read_contexts
from sightline.training.conversations import open_conversations
from sightline.training.endpoint import Endpoint

GOOD = "Question:\nWhat is there?\n===\nAnswer:\nA dog.\n===\nQuestion:\nHow many?\n===\nAnswer:\nOne."


class Server(BaseHTTPRequestHandler):
    replies: list[Any] = []  # noqa: RUF012  of one test: text, or a number for a status
    asked: list[dict[str, Any]] = []  # noqa: RUF012

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.asked.append({"path": self.path, "key": self.headers.get("Authorization"), **body})
        reply = self.replies.pop(0) if self.replies else GOOD
        if isinstance(reply, int):
            self.send_response(reply)
            if reply == 302:
                self.send_header("Location", "http://127.0.0.1:9/elsewhere")
            self.end_headers()
            return
        text = reply if isinstance(reply, bytes) else json.dumps(
            {"choices": [{"message": {"content": reply}, "finish_reason": "stop"}]}).encode()  # fmt: skip
        self.send_response(200)
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_: Any) -> None:
        return


@pytest.fixture
def server() -> Iterator[str]:
    Server.replies, Server.asked = [], []
    httpd = HTTPServer(("127.0.0.1", 0), Server)
    thread = threading.Thread(target=httpd.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{httpd.server_port}/v1"
    httpd.shutdown()
    httpd.server_close()


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    images = [{"id": i, "file_name": f"{i}.jpg", "width": 640, "height": 480} for i in (3, 5, 7)]
    captions = [{"image_id": i, "caption": f"A dog  number {i}."} for i in (3, 3, 5)]
    boxes = [{"image_id": 3, "category_id": 18, "bbox": [64, 48, 128, 96]}]
    (tmp_path / "captions_val.json").write_text(json.dumps({"images": images, "annotations": captions}))
    (tmp_path / "instances_val.json").write_text(json.dumps(
        {"images": images, "annotations": boxes, "categories": [{"id": 18, "name": "dog"}]}))  # fmt: skip
    return tmp_path


def test_contexts_are_the_papers(coco: Path) -> None:
    first, second = read_contexts(coco / "captions_val.json", coco / "instances_val.json")
    # 64/640, 48/480, (64+128)/640, (48+96)/480
    assert first.text() == "A dog number 3.\nA dog number 3.\n\ndog: [0.100, 0.100, 0.300, 0.300]"
    assert second.text() == "A dog number 5."
    assert "dog: [" not in first.messages("conversation")[1]["content"]  # captions alone, as in the few-shots
    assert "dog: [" in first.messages("reasoning")[1]["content"]
    assert "===" in first.messages("reasoning")[0]["content"] and "boxes" in first.messages("detail")[0]["content"]
    assert "dog: [" in Context("a", (), first.boxes).messages("conversation")[1]["content"]
    with pytest.raises(DataError, match="describes no picture"):
        read_contexts(None, coco / "captions_val.json")
    (coco / "list.json").write_text("[]")
    with pytest.raises(DataError, match="not a COCO file"):
        read_contexts(coco / "list.json", None)


def test_answers_are_validated() -> None:
    messages = read_answer(GOOD, "conversation")
    assert [m["role"] for m in messages] == ["user", "assistant"] * 2
    assert messages[0]["content"] == [{"type": "image"}, {"type": "text", "text": "What is there?"}]
    assert len(read_answer("A dog runs.", "detail")) == 2
    for text, style, why in (
        ("", "detail", "empty"), ("A dog.", "conversation", "parts between ==="), (GOOD, "reasoning", "2 questions"),
        ("Question:\nWhat?\n===\nAnswer:\n", "conversation", "blank|form"), ("x" * 5000, "detail", "5,000 characters"),
        ("The captions say a dog.", "detail", "speaks of its source"), ("A <image> dog.", "detail", "<image>"),
        ("Q:\nWhat?\n===\nA:\nThat.", "conversation", "not of the form"),
    ):  # fmt: skip
        with pytest.raises(DataError, match=why):
            read_answer(text, style)


def test_written_by_an_endpoint_and_resumed(coco: Path, server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "secret")
    Server.replies = [GOOD, "A dog runs.", 500, "bad", GOOD, "It stands there."]
    how: dict[str, Any] = {"boxes": coco / "instances_val.json", "endpoint": server, "model": "m", "key": "MY_KEY"}
    out = coco / "out"
    done = make_instructions(coco / "captions_val.json", out, **how)
    # picture 3: conversation, detail, reasoning (busy, then bad); picture 5: conversation, detail, reasoning (2 questions)
    assert (done.entries, done.new, len(done.failed)) == (4, 4, 2)
    assert Server.asked[0]["path"] == "/v1/chat/completions" and Server.asked[0]["key"] == "Bearer secret"
    asked = len(Server.asked)
    (out / "instructions.jsonl").open("a").write('{"key": "torn')  # a run killed in the middle of a line
    Server.replies = ["Question:\nWhy?\n===\nAnswer:\nBecause."] * 2
    done = make_instructions(coco / "captions_val.json", out, **how)
    assert (done.entries, done.new, len(done.failed)) == (6, 2, 0) and len(Server.asked) == asked + 2
    for name in ("3.jpg", "5.jpg"):
        (coco / name).write_bytes(b"")
    data = open_conversations(done.file, coco)
    assert len(data) == 6 and len(data.picture_names) == 2


def test_nothing_is_sent_unless_an_endpoint_is_named(coco: Path, server: str) -> None:
    with pytest.raises(UsageError, match="nothing is sent without"):
        make_instructions(coco / "captions_val.json", coco / "out")
    make_instructions("tabletop", coco / "world", seeds="0-1")
    assert not Server.asked


def test_bad_endpoints(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for url, why in (("ftp://a/v1", "no address"), ("a.com", "no address"), ("http://u:p@a.com/v1", "password")):
        with pytest.raises(UsageError, match=why):
            Endpoint(url, "m")
    with pytest.raises(UsageError, match="holds no key"):
        Endpoint(server, "m", key_variable="NOT_SET_HERE")
    monkeypatch.setenv("MY_KEY", "secret")
    with pytest.raises(UsageError, match="unencrypted"):
        Endpoint("http://example.com/v1", "m", key_variable="MY_KEY")
    for reply, why in ((401, "answers 401"), (302, "answers 302"), (b"<html>", "no chat completion")):
        Server.replies = [reply]
        with pytest.raises(SourceError, match=why):
            Endpoint(server, "m")([{"role": "user", "content": "hello"}])
    Server.replies = [503, 429, "hello"]
    assert Endpoint(server, "m")([{"role": "user", "content": "hello"}]) == "hello"


def test_a_server_that_is_gone_ends_the_work(coco: Path, server: str) -> None:
    Server.replies = [401] * 9
    with pytest.raises(SourceError, match="5 requests in a row"):
        make_instructions(coco / "captions_val.json", coco / "out", endpoint=server, model="m")


def test_the_world_by_rule(tmp_path: Path) -> None:
    done = make_instructions("tabletop", tmp_path / "w", seeds="0-2", turns=3)
    again = make_instructions("tabletop", tmp_path / "w", seeds="0-3", turns=3)
    assert done.entries >= 8 and done.new == done.entries and again.new <= 3
    data = open_conversations(done.file)
    assert not data.problems and len(data.picture_names) == 4
    assert all(len(row.variants[0]) <= 6 for row in data.rows)


def test_written_by_a_model_of_this_machine(coco: Path) -> None:
    """A random model never ends its answer, which is told as a problem of every item."""
    from sightline.models.language.chat import ChatTemplate
    from training.seeing import tiny_language

    folder = tiny_language().save(coco / "language")
    ChatTemplate("{% for m in messages %}{{ m['role'] }}: {{ m['content'][:40] }}\n{% endfor %}assistant:").save(folder)
    with pytest.raises(SourceError, match="did not end"):
        make_instructions(coco / "captions_val.json", coco / "out", model=str(folder), max_tokens=5)
    with pytest.raises(UsageError, match="no language model"):
        make_instructions(coco / "captions_val.json", coco / "out", model="sightline:tabletop-clip")

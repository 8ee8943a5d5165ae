"""A model behind a server: what is sent, what comes back, what is refused; the server is a thread of the test."""

from __future__ import annotations

import base64
import io
import json
import math
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import sightline
from sightline.app.cli import main
from sightline.errors import SourceError, UsageError
from sightline.hub.endpoint import Server
from sightline.models.language.generate import Generation
from sightline.pipelines import Answerer, Request
from sightline.pipelines.remote import Remote, Sent

SECRET = "sk-do-not-show"


def completion(text: str, logprobs: Any = None, finished: str = "stop", tops: Any = ()) -> bytes:
    choice: dict[str, Any] = {"message": {"role": "assistant", "content": text}, "finish_reason": finished}
    if logprobs is not None:
        rows = [
            {"token": text, "logprob": p, "top_logprobs": [{"token": t, "logprob": q} for t, q in tops]}
            for p in logprobs
        ]
        choice["logprobs"] = {"content": rows}
    return json.dumps({"choices": [choice], "usage": {"completion_tokens": 7}}).encode()


def events(*parts: dict[str, Any]) -> bytes:
    return b"".join(b"data: " + json.dumps(part).encode() + b"\n\n" for part in parts) + b"data: [DONE]\n\n"


class Stub(BaseHTTPRequestHandler):
    replies: list[Any] = []  # noqa: RUF012  bytes, (status, bytes, headers), or a function of handler and body
    asked: list[dict[str, Any]] = []  # noqa: RUF012

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.asked.append({"key": self.headers.get("Authorization"), "path": self.path, **body})
        reply = self.replies.pop(0) if self.replies else completion("a mug", [-0.5, -0.25])
        if callable(reply):
            reply = reply(self, body)
        status, data, headers = reply if isinstance(reply, tuple) else (200, reply, {})
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        return


@pytest.fixture
def server() -> Iterator[str]:
    Stub.replies, Stub.asked = [], []
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Stub)
    threading.Thread(target=httpd.serve_forever, args=(0.02,), daemon=True).start()
    yield f"http://127.0.0.1:{httpd.server_port}/v1"
    httpd.shutdown()
    httpd.server_close()


def pictures_of(body: dict[str, Any]) -> list[Image.Image]:
    urls = [p["image_url"]["url"] for p in body["messages"][-1]["content"] if p["type"] == "image_url"]
    assert all(url.startswith("data:image/jpeg;base64,") for url in urls)
    return [Image.open(io.BytesIO(base64.b64decode(url.split(",")[1]))) for url in urls]


def test_ask_and_caption_are_the_same_verbs(server: str, photos: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", SECRET)
    model = f"endpoint:{server}#some/model:7b,key=MY_KEY,side=31"
    done = sightline.ask(photos, ["what is it?", "what colour?"], model=model, max_new_tokens=11)
    assert done.texts == ["a mug"] * 6 and not done.failed and len(Stub.asked) == 6
    answer = done.answers[0].answer
    assert answer.confidence == pytest.approx(math.exp(-0.75)) and answer.tokens == 7 and answer.flags == ()
    body = Stub.asked[0]
    assert (body["path"], body["key"], body["model"]) == ("/v1/chat/completions", f"Bearer {SECRET}", "some/model:7b")
    assert (body["max_tokens"], body["temperature"], body["logprobs"]) == (11, 0.0, True)
    # 37 × 41 px, longest side 31: 37 · 31 / 41 = 27.98
    assert {p.size for b in Stub.asked for p in pictures_of(b)} >= {(28, 31)}
    words = sorted(b["messages"][0]["content"][1]["text"] for b in Stub.asked)  # several are under way at once
    assert words == ["what colour?"] * 3 + ["what is it?"] * 3
    assert sightline.caption(photos[:1], model=model).texts == ["a mug"]
    assert all(SECRET not in repr(thing) for thing in (done, Remote.open(model).manifest, Remote.open(model).server))


def test_what_is_sent_of_a_picture() -> None:
    rng = np.random.default_rng(0)
    for height, width, size in ((1, 1, (1, 1)), (7, 1400, (100, 1)), (200, 100, (50, 100)), (13, 17, (17, 13))):
        picture = sightline.media.Picture.from_array(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
        jpeg = Sent(100)([picture])["jpeg"].numpy().tobytes()
        assert Image.open(io.BytesIO(jpeg)).size == size and not Image.open(io.BytesIO(jpeg)).getexif()


def test_without_logprobs_confidence_is_not_known(server: str, photos: list[Path], tmp_path: Path) -> None:
    Stub.replies = [completion("a mug")] * 2
    model, out = f"endpoint:{server}#m", tmp_path / "answers.jsonl"
    (one,) = sightline.ask(photos[:1], "what is it?", model=model, out=out).answers
    assert math.isnan(one.answer.confidence) and one.answer.flags == ("unscored",)
    assert json.loads(out.read_text())["confidence"] is None
    again = sightline.ask(photos[:1], "what is it?", model=model, out=out)
    assert again.kept == 1 and math.isnan(again.answers[0].answer.confidence) and len(Stub.asked) == 1
    assert sightline.ask(photos[:1], "what is it?", model=model + "2", out=out).kept == 0


def test_choices_by_logprobs_and_by_letter(server: str, photos: list[Path]) -> None:
    model = Answerer(Remote.open(f"endpoint:{server}#m"))
    tops = [(" B", math.log(0.5)), ("B", math.log(0.25)), ("A", math.log(0.15)), ("x", math.log(0.05))]
    Stub.replies = [completion("B", [-0.1], tops=tops)]
    answer = model.ask(photos[0], "is it?", choices=["yes", "no"])
    assert answer.text == "no" and answer.confidence == pytest.approx(0.75 / 0.9)
    assert Stub.asked[0]["messages"][0]["content"][-1]["text"] == "\nA. yes\nB. no\nAnswer with the letter alone."
    for said, picked in (("B", "no"), ("A. yes", "yes"), ("(B)", "no"), ("No.", "no"), ("**A**", "yes")):
        Stub.replies = [completion(said)]
        answer = model.ask(photos[0], "is it?", choices=["yes", "no"])
        assert answer.text == picked and math.isnan(answer.confidence) and answer.flags == ("unscored",)
    Stub.replies = [completion("A mug, surely", [-0.1], tops=[("A", -0.1)])]
    done = sightline.ask(photos[:2], "is it?", model=model, choices=["yes", "no"])
    assert len(done.failed) == 2 and "chose none of the 2" in done.failed[0].reason
    with pytest.raises(UsageError, match="27 choices"):
        model.ask(photos[0], "is it?", choices=[str(i) for i in range(27)])


def test_words_are_streamed(server: str, photos: list[Path]) -> None:
    parts = [
        {"choices": [{"delta": {"role": "assistant", "content": ""}, "finish_reason": None}]},
        *({"choices": [{"delta": {"content": word}, "logprobs": {"content": [{"token": word, "logprob": -0.5}]}}]}
          for word in ("a ", "mug")),
        {"choices": [{"delta": {}, "finish_reason": "length"}]},
        {"choices": [], "usage": {"completion_tokens": 2}},
    ]  # fmt: skip
    heard: list[str] = []
    talk = sightline.chat(photos[0], model=f"endpoint:{server}#m")
    Stub.replies = [(200, events(*parts), {"Content-Type": "text/event-stream"})]
    answer = talk.say("what is it?", on_text=heard.append)
    assert heard == ["a ", "mug"] and answer.text == "a mug" and answer.flags == ("truncated",)
    assert answer.confidence == pytest.approx(math.exp(-1)) and answer.tokens == 2 and Stub.asked[0]["stream"] is True
    assert talk.say("sure?").text == "a mug"  # a server that does not stream
    roles = [
        (m["role"], m["content"] if isinstance(m["content"], str) else len(m["content"]))
        for m in Stub.asked[1]["messages"]
    ]
    assert roles == [("user", 2), ("assistant", "a mug"), ("user", 1)]  # the picture before the first question alone
    Stub.replies = [(200, events(*parts[:2]), {"Content-Type": "text/event-stream"})]
    with pytest.raises(SourceError, match="broke off"):
        talk.say("again?")


def test_a_busy_server_is_asked_again(server: str, photos: list[Path]) -> None:
    busy = (429, b"", {"Retry-After": "0"})
    Stub.replies = [busy, (503, b"", {}), completion("yes", [-0.5])]
    assert sightline.ask(photos[:1], "is it?", model=f"endpoint:{server}#m").texts == ["yes"] and len(Stub.asked) == 3
    Stub.replies = [busy] * 3
    with pytest.raises(SourceError, match="answers 429"):
        sightline.ask(photos[:1], "is it?", model=f"endpoint:{server}#m,tries=2")
    assert len(Stub.asked) == 5
    closed = "http://127.0.0.1:9/v1"
    with pytest.raises(SourceError, match="does not answer"):
        sightline.ask(photos[:1], "is it?", model=f"endpoint:{closed}#m,tries=2", choices=["a", "b"])


def test_what_a_server_does_not_know_is_left_out(server: str, photos: list[Path]) -> None:
    def picky(_: Any, body: dict[str, Any]) -> Any:
        for name, told in (("max_tokens", "use 'max_completion_tokens'"), ("logprobs", "unknown: logprobs")):
            if name in body:
                return 400, json.dumps({"error": {"message": told}}).encode(), {}
        return completion("yes")

    Stub.replies = [picky] * 3
    (one,) = sightline.ask(photos[:1], "is it?", model=f"endpoint:{server}#m,tries=1", max_new_tokens=5).answers
    assert one.answer.text == "yes" and Stub.asked[-1]["max_completion_tokens"] == 5


def test_a_slow_body_runs_out_of_time(server: str, photos: list[Path]) -> None:
    def drip(handler: Any, _: Any) -> Any:
        handler.send_response(200)
        handler.end_headers()
        try:
            for _ in range(40):
                handler.wfile.write(b" ")
                handler.wfile.flush()
                time.sleep(0.05)
        except OSError:
            pass
        return 200, b"", {}

    Stub.replies = [drip]
    began = time.monotonic()
    with pytest.raises(SourceError, match=r"does not answer.*timed out"):
        sightline.ask(photos[:1], "is it?", model=f"endpoint:{server}#m,seconds=0.2,tries=1")
    assert time.monotonic() - began < 1.5


def test_errors_are_one_sentence_without_the_key(
    server: str, photos: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_KEY", SECRET)
    model = f"endpoint:{server}#m,key=MY_KEY"
    Stub.replies = [(401, json.dumps({"error": {"message": f"Bad key {SECRET}.\nGo away."}}).encode(), {})]
    with pytest.raises(SourceError) as error:
        sightline.ask(photos[:1], "is it?", model=model)
    assert str(error.value).endswith("answers 401 (Bad key …. Go away).") and SECRET not in str(error.value)
    elsewhere = {"Location": f"{server}/other/chat/completions"}
    for status in (301, 302, 307, 308):
        Stub.asked.clear()
        Stub.replies = [(status, b"", elsewhere)]
        with pytest.raises(SourceError, match=f"answers {status}"):
            sightline.ask(photos[:1], "is it?", model=model)
        assert len(Stub.asked) == 1
    broken = (b'{"choices": [', b"[]", b"<html>", json.dumps({"choices": [{"message": 3}]}).encode(), b"[" * 99_999)
    Stub.replies = list(broken)
    done = sightline.ask(photos[:1], [f"question {i}?" for i in range(6)], model=model)
    assert len(done.failed) == 5 and done.texts == ["a mug"]  # one broken reply costs one answer
    assert all("sent no chat completion" in f.reason and "\n" not in f.reason for f in done.failed)
    Stub.replies = [
        (400, b'{"error": {"message": "this picture is not allowed"}}', {}),
        completion("", finished="content_filter"),
    ]
    (refused, filtered) = sightline.ask(photos[:1], ["a?", "b?"], model=model).failed
    assert {"not allowed" in f.reason or "filtered" in f.reason for f in (refused, filtered)} == {True}


def test_bad_references(server: str, monkeypatch: pytest.MonkeyPatch, photos: list[Path]) -> None:
    for reference, why in (
        ("endpoint:", "lacks an address"), ("endpoint:http://a/v1", "lacks an address"), ("endpoint:#m", "lacks"),
        ("endpoint:ftp://a/v1#m", "no address"), ("endpoint:http://a:b/v1#m", "no address"),
        (f"endpoint:{server}?a=b#m", "goes on"), (f"endpoint:{server}#m,side=x", "says nothing"),
        (f"endpoint:{server}#m,side=0", "at least 1"), (f"endpoint:{server}#m,colour=red", "says nothing"),
        (f"endpoint:{server}#m,key=NOT_SET_HERE", "holds no key"), (f"endpoint:{server}#m,tries=0", "a try"),
        ("endpoint:https://u:p@a.com/v1#m", "password"),
    ):  # fmt: skip
        with pytest.raises(UsageError, match=why):
            Remote.open(reference)
    monkeypatch.setenv("MY_KEY", f"{SECRET}\nX-Other: 1")
    with pytest.raises(UsageError, match="more than one plain line") as error:
        Remote.open(f"endpoint:{server}#m,key=MY_KEY")
    assert SECRET not in str(error.value)
    with pytest.raises(UsageError, match="no beams"):
        sightline.ask(photos[:1], "is it?", model=f"endpoint:{server}#m", num_beams=3)
    many = Answerer(Remote.open(f"endpoint:{server}#m,side=4000"))
    noise = np.random.default_rng(0).integers(0, 256, (2000, 2000, 3), dtype=np.uint8)
    with pytest.raises(UsageError, match="MB to send"):
        many.ask([noise] * 5, "is it?")
    assert not Stub.asked  # nothing of this was sent


def test_a_name_that_leads_to_a_private_address(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    real = socket.getaddrinfo
    monkeypatch.setattr(socket, "getaddrinfo", lambda host, *rest, **more: real("127.0.0.1", *rest, **more))
    url = server.replace("127.0.0.1", "public.example.com")
    with pytest.raises(SourceError, match=r"leads to the private address 127\.0\.0\.1; nothing was sent"):
        Server(url, "m").complete({"messages": []})
    assert not Stub.asked
    assert Server(url, "m", private=True).complete({"messages": []}).text == "a mug"
    assert Server(server.replace("127.0.0.1", "localhost"), "m").complete({"messages": []}).text == "a mug"


def test_a_batch_is_single_requests(server: str, photos: list[Path]) -> None:
    """Answers stand in the order of the questions, however the server takes them up."""

    def echo(_: Any, body: dict[str, Any]) -> bytes:
        text = body["messages"][-1]["content"][-1]["text"]
        time.sleep(0.02 * (7 - int(text.split()[1])))
        return completion(text.upper(), [-0.5])

    Stub.replies = [echo] * 7
    model = Answerer(Remote.open(f"endpoint:{server}#m"))
    request = Request((photos[0],), tuple(f"question {i}" for i in range(7)))
    told = [
        one.answer.text for one in model.answers([request], options=Generation(temperature=0.5, seed=3)) if one.answer
    ]
    assert told == [f"QUESTION {i}" for i in range(7)] and Stub.asked[0]["seed"] == 3


def test_evaluate_and_the_command_line(
    server: str, photos: list[Path], tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [{"image": p.name, "question": "what is it?", "answer": "a mug"} for p in photos]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    Stub.replies = [completion("a mug")] * 2  # of the third, probabilities
    record = sightline.evaluate_vqa(
        tmp_path / "q.jsonl", pictures=photos[0].parent, model=f"endpoint:{server}#m"
    ).record
    assert record.answers["confidence"] is None and record.manifest["model"] == "m"
    assert len(sightline.evaluate_vqa("tabletop:test:1", model=f"endpoint:{server}#m").record.answers["confidence"]) > 0
    Stub.replies = [completion("ein Krug")]
    monkeypatch.setattr("sys.argv", ["sightline", "ask", str(photos[0]), "what is it?", "-m", f"endpoint:{server}#m"])
    with pytest.raises(SystemExit) as stopped:
        main()
    out, err = capsys.readouterr()
    assert not stopped.value.code and "ein Krug" in out and "how sure is not known" in err

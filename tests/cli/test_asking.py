"""ask, caption and chat on the command line: what Python gives, exit codes, a kill in the middle."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import sightline
from app.tiny_llava import write_photos
from sightline.app.cli import main
from sightline.app.commands.speaking import split_words
from sightline.errors import UsageError
from sightline.models.language.generate import Generation

CPU = ("--device", "cpu", "--dtype", "float32")
PLAIN = {"device": "cpu", "dtype": "float32"}


@pytest.fixture
def run(monkeypatch, capsys):
    def call(*words: object, stdin: str = "") -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["sightline", *map(str, words)])
        monkeypatch.setattr("sys.stdin", io.StringIO(stdin))
        try:
            main()
            code = 0
        except SystemExit as stop:
            code = int(stop.code or 0)
        out, err = capsys.readouterr()
        return code, out, err

    return call


def timeless(records):
    return [{**record, "seconds": 0} if "seconds" in record else record for record in records]


def test_ask_is_what_python_gives(run, llava_folder, photos):
    words = [
        *photos,
        "what is this ?",
        "-q",
        "how many mugs are there ?",
        "--max-new-tokens",
        5,
        "--model",
        llava_folder,
        *CPU,
    ]
    code, out, _ = run("ask", *words, "--json")
    done = sightline.ask(
        photos, ["what is this ?", "how many mugs are there ?"], model=llava_folder, max_new_tokens=5, **PLAIN
    )
    assert code == 0
    assert timeless(map(json.loads, out.splitlines())) == timeless(done.records())
    code, out, _ = run("ask", *words)
    assert code == 0 and all(answer.text in out for answer in (a.answer for a in done.answers))


def test_choices_and_files(run, llava_folder, photos, tmp_path):
    words = ["ask", photos[0], "is this a mug ?", "--choices", "yes, no", "--model", llava_folder, *CPU]
    code, out, _ = run(*words, "--json")
    done = sightline.ask(photos[0], "is this a mug ?", choices=["yes", "no"], model=llava_folder, **PLAIN)
    assert code == 0 and timeless([json.loads(out)]) == timeless(done.records())
    code, out, _ = run(*words, "--out", tmp_path / "a.jsonl")
    assert code == 0 and "1 answers in" in out
    assert "were there already" in run(*words, "--out", tmp_path / "a.jsonl")[1]


def test_one_answer_streams(run, llava_folder, photos):
    code, out, err = run("ask", photos[0], "what is this ?", "--model", llava_folder, *CPU)
    done = sightline.ask(photos[0], "what is this ?", model=llava_folder, **PLAIN)
    assert code == 0 and out.strip() == done.texts[0] and "looped" in err


def test_one_bad_file_is_one_line_and_3(run, llava_folder, photos, tmp_path):
    write_photos(tmp_path / "some", 2)
    (tmp_path / "some" / "zz.png").write_bytes(b"junk")
    words = ("caption", tmp_path / "some", "--model", llava_folder, "--max-new-tokens", 4, *CPU)
    code, out, err = run(*words, "--out", tmp_path / "c.jsonl")
    assert code == 3 and err.count("zz.png") == 1 and "2 captions in" in out
    kept = [json.loads(line) for line in (tmp_path / "c.jsonl").read_text().splitlines()]
    code, out, _ = run(*words, "--json")
    said = [json.loads(line) for line in out.splitlines()]
    assert code == 3 and [line.get("caption") for line in said] == [*(k["caption"] for k in kept), None]
    (tmp_path / "some" / "zz.png").unlink()
    code, out, _ = run(*words, "--out", tmp_path / "c.jsonl")
    assert code == 0 and "2 of them were there already" in out


def test_wrong_usage(run, llava_folder, photos, monkeypatch):
    code, _, err = run("ask", photos[0], "what is <image> ?", "--model", llava_folder, *CPU)
    assert code == 2 and err.startswith("Error: ") and err.count("\n") == 1
    monkeypatch.setattr("sightline.app.verbs.asking.built_in_names", list)
    code, _, err = run("ask", photos[0], "what ?")
    assert code == 1 and "name the folder of a LLaVA checkpoint" in err and err.count("\n") == 1
    assert run("ask", "what is this ?")[0] == 2
    assert run("ask", photos[0])[0] == 2


def test_words_are_pictures_and_then_a_question(photos, tmp_path, monkeypatch):
    monkeypatch.chdir(photos[0].parent)
    assert split_words(["0.png", "1.png", "what ?"], []) == (["0.png", "1.png"], ["what ?"])
    assert split_words(["0.png", "what ?"], ["why ?"]) == (["0.png"], ["what ?", "why ?"])
    assert split_words(["0.png", "1.png"], ["why ?"]) == (["0.png", "1.png"], ["why ?"])
    assert split_words(["*.png"], ["why ?"]) == (["*.png"], ["why ?"])
    for words in (["0.png", "1.png"], ["what ?"]):
        with pytest.raises(UsageError):
            split_words(words, [])


def test_chat(run, llava_folder, photos):
    said = "what is this ?\n\nwhat is <image> ?\nhow many mugs are there ?\n"
    code, out, err = run("chat", photos[0], "--model", llava_folder, "--max-new-tokens", 6, *CPU, stdin=said)
    talk = sightline.chat(photos[0], model=llava_folder, **PLAIN)
    options = Generation(max_new_tokens=6)
    wanted = [talk.say(q, options=options).text for q in ("what is this ?", "how many mugs are there ?")]
    assert code == 0 and [line.strip() for line in out.splitlines()] == wanted
    assert "stands for a picture" in err


def test_ctrl_c_stops_an_answer_and_not_the_chat(run, llava_folder, photos, monkeypatch):
    from sightline.app.commands import speaking

    calls = []

    def speak(self, text):
        calls.append(text)
        if len(calls) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(speaking.Aloud, "__call__", speak)
    code, _, err = run("chat", photos[0], "--model", llava_folder, *CPU, stdin="what is this ?\nis this a mug ?\n")
    assert code == 0 and "stopped" in err and len(calls) > 2


def test_evaluate_vqa(run, llava_folder, photos, tmp_path):
    rows = [
        {"image": str(p), "question": "is this a mug ?", "answer": a}
        for p, a in zip(photos, ["yes", "no", "no"], strict=True)
    ]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ("evaluate", "vqa", tmp_path / "q.jsonl", "--model", llava_folder, *CPU)
    code, out, _ = run(*words, "--out", tmp_path / "run")
    assert code == 0 and "vqa on 3 questions" in out and "yes/no F1" in out
    code, out, _ = run("evaluate", "--replay", tmp_path / "run" / "vqa.json")
    assert code == 0 and "the same" in out
    code, out, _ = run(
        "evaluate", "caption", "tabletop:val:2", "--model", llava_folder, "--metric", "CIDEr-D", *CPU, "--json"
    )
    assert code == 3 and [json.loads(line)["kind"] for line in out.splitlines()] == ["caption", "hallucination"]


def test_kill_9_loses_nothing_and_nothing_is_twice(llava_folder, tmp_path):
    paths = write_photos(tmp_path / "many", 60)
    out = tmp_path / "c.jsonl"
    command = [sys.executable, "-m", "sightline.app.cli", "caption", str(tmp_path / "many"), "--model", str(llava_folder),
               "--batch-size", "1", "--max-new-tokens", "40", "--out", str(out), *CPU]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(Path(sightline.__file__).parent.parent)}
    running = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not out.exists() or out.read_bytes().count(b"\n") < 5:
        assert running.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    running.send_signal(signal.SIGKILL)
    running.wait()
    before = [json.loads(line) for line in out.read_bytes().rpartition(b"\n")[0].splitlines()]
    assert 5 <= len(before) < 60
    done = sightline.caption(tmp_path / "many", model=llava_folder, out=out, max_new_tokens=40, **PLAIN)
    after = [json.loads(line) for line in out.read_text().splitlines()]
    assert done.kept == len(before) and after[: len(before)] == before
    assert [line["picture"] for line in after] == [str(p) for p in sorted(paths, key=str)]

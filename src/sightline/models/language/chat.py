"""Chat templates: a list of messages → the one text that the model was trained to continue.

A template is a program that comes with a checkpoint, so it is run as a stranger's: in Jinja's sandbox, in a process of
its own, with limits on time, memory and length. The process is started once and kept (a first rendering takes about a
tenth of a second, later ones well under a millisecond).
"""

from __future__ import annotations

import atexit
import contextlib
import importlib.util
import json
import os
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from sightline.errors import ConfigError, UsageError
from sightline.hub import read_json
from sightline.models.language.tokenizers import token_name

TOKENS = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")
Message = Mapping[str, Any]  # {"role": "user", "content": text or [{"type": "image"}, {"type": "text", "text": …}]}


@dataclass(frozen=True)
class Rendered:
    """A conversation as text. spans: [start, end) in characters of what the assistant says (and its end token).

    found: how spans were found: by the template's own "markers" ({% generation %}), or by rendering "prefixes" of the
    conversation, which holds for templates that write each message after the ones before it.
    """

    text: str
    spans: tuple[tuple[int, int], ...] = ()
    found: Literal["markers", "prefixes"] = "prefixes"


@dataclass(frozen=True)
class ChatTemplate:
    """One template with the special tokens it may name. seconds and characters are the limits of one rendering.

    built_in: the name of one that Sightline put in place of a missing one; "" for one that came with a checkpoint.
    """

    source: str
    tokens: Mapping[str, str] = field(default_factory=dict)
    seconds: float = 5.0
    characters: int = 1_000_000
    built_in: str = ""

    @staticmethod
    def from_folder(folder: Path, name: str = "default") -> ChatTemplate | None:
        """From chat_template.jinja, chat_template.json or tokenizer_config.json, in this order; None without any.

        name: which one, where tokenizer_config.json holds several.
        """
        config = read_json(folder / "tokenizer_config.json") if (folder / "tokenizer_config.json").is_file() else {}
        source: Any = config.get("chat_template")
        if (folder / "chat_template.jinja").is_file():
            source = (folder / "chat_template.jinja").read_text(encoding="utf-8")
        elif (folder / "chat_template.json").is_file():
            source = read_json(folder / "chat_template.json").get("chat_template")
        if isinstance(source, list):
            several = {str(t.get("name")): t.get("template") for t in source if isinstance(t, dict)}
            if name not in several:
                raise ConfigError(f'{folder} has no chat template "{name}"; it has {", ".join(several) or "none"}.')
            source = several[name]
        if source is None:
            return None
        if not isinstance(source, str):
            raise ConfigError(f"the chat template in {folder} is no text; fetch the files again.")
        tokens = {n: token_name(config, n, "") for n in TOKENS}
        return ChatTemplate(source, {n: t for n, t in tokens.items() if t})

    def save(self, folder: Path) -> None:
        """chat_template.jinja, as the reference library writes it."""
        (folder / "chat_template.jinja").write_text(self.source, encoding="utf-8")

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = False, **extra: Any) -> str:
        """The text. add_generation_prompt: with the words after which the assistant speaks.

        Raises UsageError for messages that the template refuses, ConfigError for a template that fails or does not end.
        """
        text: str = self._run(messages, add_generation_prompt, extra)["text"]
        return text

    def spans(self, messages: Sequence[Message], **extra: Any) -> Rendered:
        """The text of a finished conversation, and where the assistant speaks in it.

        Raises ConfigError when the template neither marks the assistant's words nor writes messages one after another.
        """
        whole = self._run(messages, False, extra)
        text: str = whole["text"]
        if whole["spans"]:
            return Rendered(text, tuple((a, b) for a, b in whole["spans"]), "markers")
        spans: list[tuple[int, int]] = []
        for i, message in enumerate(messages):
            if message.get("role") != "assistant":
                continue
            start = self.render(messages[:i], add_generation_prompt=True, **extra)
            if not text.startswith(start):  # some write no prompt, or another one
                start = self.render(messages[:i], **extra) if i else ""
            end = text if i + 1 == len(messages) else self.render(messages[: i + 1], **extra)
            if not (text.startswith(start) and text.startswith(end) and len(start) < len(end)):
                raise ConfigError(
                    f"the chat template rewrites earlier messages, so where message {i} (the assistant's) stands cannot "
                    "be told; mark it in the template with {% generation %} … {% endgeneration %}."
                )
            spans.append((len(start), len(end)))
        return Rendered(text, tuple(spans), "prefixes")

    def _run(self, messages: Sequence[Message], prompt: bool, extra: Mapping[str, Any]) -> dict[str, Any]:
        values = {**self.tokens, "tools": None, "documents": None, **extra}
        values |= {"messages": list(messages), "add_generation_prompt": prompt}
        try:
            line = json.dumps({"template": self.source, "values": values, "characters": self.characters})
        except (TypeError, ValueError) as error:
            raise UsageError(f"messages must be plain data, as in a JSON file ({error}).") from None
        answer = PROCESS.ask(line, self.seconds)
        kind = answer.get("kind")
        if kind is None:
            return answer
        if kind == "TemplateError":  # the template's own raise_exception
            raise UsageError(f"the chat template refuses these messages: {answer['error']}")
        raise ConfigError(
            {
                "time": f"the chat template did not end within {self.seconds:g} seconds; it may loop.",
                "length": f"the chat template wrote more than {self.characters:,} characters; it may loop.",
                "memory": "the chat template used up its memory; it may loop.",
                "died": "the process that renders chat templates ended by itself; the template may be at fault.",
            }.get(kind, f"the chat template fails on these messages ({kind}: {answer['error']}).")
        )


class Process:
    """The process that renders, started at the first question and again after it was killed (or this one forked)."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.child: subprocess.Popen[str] | None = None
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._forked)

    def _forked(self) -> None:
        """In a forked process: the lock may be held by no one who is here, and the pipe is the parent's."""
        self.lock, self.child = threading.Lock(), None

    def ask(self, line: str, seconds: float) -> dict[str, Any]:
        """One line in, one line out, or {"kind": "time"} when it took longer; then the process is gone."""
        with self.lock:
            child = self.child if self.child is not None and self.child.poll() is None else self._start()
            assert child.stdin is not None and child.stdout is not None
            late = threading.Event()

            def stop(child: subprocess.Popen[str] = child) -> None:
                late.set()
                child.kill()

            timer = threading.Timer(seconds, stop)
            timer.start()
            answer = ""
            with contextlib.suppress(OSError, ValueError):  # a killed child: what counts is that nothing came back
                child.stdin.write(line + "\n")
                child.stdin.flush()
                answer = child.stdout.readline()
            timer.cancel()
            if late.is_set() or not answer.endswith("\n"):
                self._end(child)
                return {"kind": "time" if late.is_set() else "died", "error": ""}
            found: dict[str, Any] = json.loads(answer)
            return found

    def _start(self) -> subprocess.Popen[str]:
        spec = importlib.util.find_spec("jinja2")
        if spec is None or spec.origin is None:
            raise ConfigError("chat templates need the package jinja2; install it with: pip install jinja2.")
        self.child = subprocess.Popen(
            [
                sys.executable,
                "-I",
                str(Path(__file__).with_name("chat_process.py")),
                str(Path(spec.origin).parent.parent),
            ],
            start_new_session=True,  # Ctrl-C is for the program that asks, not for its helper
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            encoding="utf-8",
            errors="surrogatepass",
            env={k: v for k, v in os.environ.items() if k in ("PATH", "SYSTEMROOT", "TZ")},
        )
        return self.child

    def _end(self, child: subprocess.Popen[str]) -> None:
        child.kill()
        child.wait()
        self.child = None

    def close(self) -> None:
        if self.child is not None:
            self._end(self.child)


PROCESS = Process()
atexit.register(PROCESS.close)

"""`--engine openvino-int8` of ask, caption and chat."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

import sightline
from sightline.app.verbs.asking import open_answerer
from sightline.errors import UsageError
from sightline.pipelines import Answerer

pytestmark = pytest.mark.skipif(
    find_spec("openvino") is None, reason='openvino is not installed; pip install "sightline[fast]"'
)
QUESTION = "what is this ?"


def test_an_engine_that_writes(photos, llava_folder):
    done = sightline.ask(
        photos[:2], QUESTION, model=llava_folder, dtype="float32", engine="openvino-int8", max_new_tokens=9
    )
    assert [one.answer.tokens for one in done.answers] == [9, 9] and not done.failed
    plain, opened = (
        Answerer(sightline.load(llava_folder, dtype="float32")),
        open_answerer(llava_folder, dtype="float32", engine="openvino-int8"),
    )
    assert opened.manifest == plain.manifest | {"writes_with": "openvino-int8"}
    with pytest.raises(UsageError, match='engine "eager" cannot write; choose auto or openvino-int8'):
        sightline.ask(photos[0], "Why?", model=llava_folder, engine="eager")


def test_the_engine_leaves_stdout_to_the_answers(photos, llava_folder):
    """nncf writes tables there when it is first imported, so in a process of its own."""
    command = [sys.executable, "-m", "sightline.app.cli", "ask", str(photos[0]), QUESTION, "--json",
               "--model", str(llava_folder), "--engine", "openvino-int8", "--max-new-tokens", "3"]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(Path(sightline.__file__).parent.parent)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr
    assert [json.loads(line)["tokens"] for line in done.stdout.splitlines()] == [3]

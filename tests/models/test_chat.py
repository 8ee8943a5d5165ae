"""Chat templates: the text of transformers, spans of the assistant, and strangers' templates that misbehave."""

from __future__ import annotations

import json
import os
import threading
import time

import pytest
import transformers
from tokenizers import Tokenizer, models

from sightline.errors import ConfigError, UsageError
from sightline.models.language import chat
from sightline.models.language.chat import ChatTemplate

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAVA = (
    "{% for message in messages %}{% if message['role'] != 'system' %}{{ message['role'].upper() + ': '}}{% endif %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% endfor %}"
    "{% if message['role'] != 'assistant' %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{{ content['text'] + ' '}}{% endfor %}"
    "{% else %}{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{% generation %}{{ content['text'] + ' '}}{% endgeneration %}{% endfor %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
MIXED = """{{- bos_token }}
{%- set ns = namespace(found=false) %}
{%- for m in messages %}
    {%- if m.role == 'tool' %}{% continue %}{% endif %}
    {%- if m.role not in ['user', 'assistant'] %}{{ raise_exception('roles are user and assistant, é') }}{% endif %}
[{{ m.role | upper }}] {{ m.content | trim }}{{ m.extra | tojson if m.extra }}{{ eos_token }}
{%- endfor %}
  {% if add_generation_prompt %}
[ASSISTANT]{% endif %}
"""
TALK = [
    {"role": "user", "content": "What is left of the mug? 日本 <b>"},
    {"role": "assistant", "content": "A red box."},
    {"role": "user", "content": "And right?"},
    {"role": "assistant", "content": "Nothing."},
]
PICTURE_TALK = [
    {"role": m["role"], "content": [{"type": "image"}] * (i == 0) + [{"type": "text", "text": m["content"]}]}
    for i, m in enumerate(TALK)
]


@pytest.fixture(scope="module")
def theirs():
    backend = Tokenizer(models.WordLevel({"<s>": 0, "</s>": 1}))
    return transformers.PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")


@pytest.mark.parametrize("prompt", [False, True])
@pytest.mark.parametrize(("source", "talk"), [(CHATML, TALK), (LLAVA, PICTURE_TALK), (MIXED, TALK)])
def test_the_text_is_theirs(source, talk, prompt, theirs):
    ours = ChatTemplate(source, {"bos_token": "<s>", "eos_token": "</s>"})
    for count in (1, 3, 4):
        want = theirs.apply_chat_template(
            talk[:count], chat_template=source, add_generation_prompt=prompt, tokenize=False
        )
        assert ours.render(talk[:count], add_generation_prompt=prompt) == want


def test_json_is_written_as_theirs(theirs):
    talk = [{"role": "user", "content": "x", "extra": {"b": "é<&>'", "a": [1, None]}}, {"role": "tool", "content": ""}]
    ours = ChatTemplate(MIXED, {"bos_token": "<s>", "eos_token": "</s>"})
    assert ours.render(talk) == theirs.apply_chat_template(talk, chat_template=MIXED, tokenize=False)


def test_spans_by_prefixes():
    done = ChatTemplate(CHATML).spans(TALK)
    assert done.found == "prefixes"
    assert [done.text[a:b] for a, b in done.spans] == ["A red box.<|im_end|>\n", "Nothing.<|im_end|>\n"]


def test_spans_by_markers():
    done = ChatTemplate(LLAVA).spans(PICTURE_TALK)
    assert done.found == "markers" and "\x00" not in done.text
    assert [done.text[a:b] for a, b in done.spans] == ["A red box. ", "Nothing. "]
    assert done.text == ChatTemplate(LLAVA).render(PICTURE_TALK)


def test_a_template_that_rewrites_the_past_is_told():
    source = "{{ messages | length }}{% for m in messages %}{{ m.content }}{% endfor %}"
    with pytest.raises(ConfigError, match="rewrites earlier messages"):
        ChatTemplate(source).spans(TALK)
    assert ChatTemplate(CHATML).spans(TALK[:1]).spans == ()


def test_files(tmp_path, theirs):
    assert ChatTemplate.from_folder(tmp_path) is None
    config = {"chat_template": "config", "bos_token": {"content": "<s>"}, "eos_token": "</s>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    found = ChatTemplate.from_folder(tmp_path)
    assert found.source == "config" and found.tokens == {"bos_token": "<s>", "eos_token": "</s>"}
    (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": "json"}))
    assert ChatTemplate.from_folder(tmp_path).source == "json"
    found.save(tmp_path)
    assert ChatTemplate.from_folder(tmp_path).source == "config"


def test_files_with_several(tmp_path):
    several = [{"name": "default", "template": "a"}, {"name": "tool_use", "template": "b"}]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": several}))
    assert ChatTemplate.from_folder(tmp_path).source == "a"
    assert ChatTemplate.from_folder(tmp_path, "tool_use").source == "b"
    with pytest.raises(ConfigError, match='no chat template "rag"; it has default, tool_use'):
        ChatTemplate.from_folder(tmp_path, "rag")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": 5}))
    with pytest.raises(ConfigError, match="is no text"):
        ChatTemplate.from_folder(tmp_path)


FOR_EVER = (
    "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}{% endfor %}" + "{% endfor %}" * 2
)
HOSTILE = {
    "time": (FOR_EVER, "did not end within 1 second"),
    "length": ("{% for a in range(99999) %}{{ 'x' * 50 }}{% endfor %}", "more than 1,000,000 characters"),
    "one giant string": ("{{ ('x' * 9999999999) | length }}", r"memory|did not end within"),
    "doubling": (
        "{% set n = namespace(x='x') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
        r"memory|did not end within",
    ),
    "a giant list": ("{{ (['x' * 99999] * 99999) | join | length }}", r"memory|did not end within"),
    "itself": ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "calls itself"),
    "the interpreter": ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "SecurityError"),
    "a file": ("{% include '/etc/passwd' %}", "fails"),
    "messages": ("{{ messages.append(1) }}", "SecurityError"),
    "syntax": ("{% for %}", "TemplateSyntaxError"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_templates_are_one_sentence(name):
    source, told = HOSTILE[name]
    start = time.perf_counter()
    with pytest.raises(ConfigError, match=told) as error:
        ChatTemplate(source, seconds=1.0).render(TALK)
    assert "\n" not in str(error.value) and time.perf_counter() - start < 5
    assert ChatTemplate(CHATML).render(TALK).startswith("<|im_start|>user")  # the next one is served


def test_refused_messages_and_odd_data():
    with pytest.raises(UsageError, match="refuses these messages: roles are user and assistant, é"):
        ChatTemplate(MIXED).render([{"role": "king", "content": ""}])
    with pytest.raises(UsageError, match="plain data"):
        ChatTemplate(CHATML).render([{"role": "user", "content": object()}])
    lone = ChatTemplate(CHATML).render([{"role": "user", "content": "\ud800 \x00 \u2028"}])
    assert "\ud800 \x00 \u2028" in lone


def test_threads_and_forks_are_served():
    template = ChatTemplate(CHATML)
    want = template.render(TALK)
    got: list[str] = []
    threads = [threading.Thread(target=lambda: got.append(template.render(TALK))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == [want] * 8
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writer, b"y" if template.render(TALK) == want else b"n")
        chat.PROCESS.close()
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(reader, 1) == b"y" and template.render(TALK) == want

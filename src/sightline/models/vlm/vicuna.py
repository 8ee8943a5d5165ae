"""Vicuna's prompt, version 1, as LLaVA-1.5 was trained with it.

SYSTEM USER: <image>\\nquestion ASSISTANT: answer</s>USER: …

LLaVA's first folders bring no chat template; this is theirs. Source: haotian-liu/LLaVA, `conv_vicuna_v1`.
"""

from __future__ import annotations

from sightline.models.language.chat import ChatTemplate
from sightline.models.language.tokenizers import Tokenizer, token_name

VICUNA = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions. "
)
NAME = "vicuna_v1"
LISTS = (  # a message may be a plain text; the template below reads lists of items
    "{% set ns = namespace(said=[]) %}{% for m in messages %}{% set ns.said = ns.said + "
    "[dict(m, content=[{'type': 'text', 'text': m['content']}]) if m['content'] is string else m] %}{% endfor %}"
    "{% set messages = ns.said %}"
)


def llava_template(
    system: str = VICUNA, *, bos: str = "<s>", eos: str = "</s>", image: str = "<image>\n"
) -> ChatTemplate:
    """LLaVA-1.5's template. The tokenizer adds the start token. image: what stands for a picture."""
    source = (
        "{% if messages[0]['role'] == 'system' %}{{ messages[0]['content'][0]['text'] + ' ' }}"
        "{% else %}{{ " + repr(system) + " }}{% endif %}"
        "{% for message in messages %}{% if message['role'] == 'user' %}{{ 'USER: ' }}"
        "{% for item in message['content'] if item['type'] == 'image' %}{{ " + repr(image) + " }}{% endfor %}"
        "{% for item in message['content'] if item['type'] == 'text' %}{{ item['text'] }}{% endfor %}{{ ' ' }}"
        "{% elif message['role'] == 'assistant' %}{{ 'ASSISTANT:' }}{% generation %}{{ ' ' }}"
        "{% for item in message['content'] if item['type'] == 'text' %}{{ item['text'] }}{% endfor %}"
        "{{ eos_token }}{% endgeneration %}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
    )
    return ChatTemplate(source, {"bos_token": bos, "eos_token": eos})


def vicuna_template(tokenizer: Tokenizer, *, image: str = "<image>\n") -> ChatTemplate:
    """The built-in template for a checkpoint without one, with the tokens of its own tokenizer."""
    bos, eos = (
        token_name(tokenizer.extra, name, token) for name, token in (("bos_token", "<s>"), ("eos_token", "</s>"))
    )
    plain = llava_template(bos=bos, eos=eos, image=image)
    return ChatTemplate(LISTS + plain.source, plain.tokens, built_in=NAME)

"""From one line of config, `kind`, to a bridge."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TypeVar

from torch import nn

from sightline.errors import ConfigError
from sightline.models.bridges.attention_pooling import AttentionPooling
from sightline.models.bridges.bridge import Bridge, BridgeConfig
from sightline.models.bridges.perceiver import Perceiver, flamingo_resampler, idefics2_resampler
from sightline.models.bridges.pixel_shuffle import PixelShuffle
from sightline.models.bridges.projector import Projector
from sightline.models.bridges.qformer import QFormer, QFormerBridge
from sightline.models.bridges.qwen_resampler import QwenResampler
from sightline.nn import GatedMLP

T = TypeVar("T")
MOST_LAYERS = 16  # of mlp{n}x_gelu; the largest in use has 2


def build_bridge(config: BridgeConfig | str, vision_hidden: int, text_hidden: int) -> Bridge:
    """The bridge that a config, or its kind alone, names, with random weights.

    vision_hidden, text_hidden: widths of the vision tower and of the language model. Raises ConfigError, one sentence,
    for a kind that nobody knows and for numbers that do not go together.
    """
    c = BridgeConfig(kind=config) if isinstance(config, str) else BridgeConfig.from_dict(config.to_dict())  # in range
    found = re.fullmatch(r"mlp([1-9]\d?)x_gelu", c.kind)
    if found and int(found[1]) <= MOST_LAYERS:
        return Projector(vision_hidden, text_hidden, int(found[1]), _or(c.act, "gelu"), bias=c.bias)
    if c.kind in BUILDERS:
        return BUILDERS[c.kind](c, vision_hidden, text_hidden)
    gate = " (gated cross-attention is no bridge but a block between layers: GatedCrossBlock)" * ("gated" in c.kind)
    raise ConfigError(f'bridge kind "{c.kind}" is unknown{gate}; name one of {", ".join(KINDS)}, mlp{{n}}x_gelu.')


def _linear(c: BridgeConfig, vision: int, text: int) -> Bridge:
    return Projector(vision, text, 1, bias=c.bias)


def _pixel_shuffle(c: BridgeConfig, vision: int, text: int) -> Bridge:
    """Idefics3, SmolVLM."""
    return PixelShuffle(vision, text, c.scale_factor, mlp=False)


def _pixel_shuffle_mlp(c: BridgeConfig, vision: int, text: int) -> Bridge:
    """InternVL."""
    return PixelShuffle(vision, text, c.scale_factor, act=_or(c.act, "gelu"), eps=_or(c.eps, 1e-5))


def _qformer(c: BridgeConfig, vision: int, text: int) -> Bridge:
    """BLIP-2; with a vocabulary InstructBLIP. The blocks are BERT-base's unless said otherwise."""
    hidden = _or(c.hidden, 768)
    qformer = QFormer(
        vision, hidden, _or(c.num_layers, 12), _or(c.heads, max(1, hidden // 64)), _or(c.intermediate, 4 * hidden),
        _or(c.act, "gelu"), _or(c.eps, 1e-12), cross_attention_frequency=c.cross_attention_frequency,
        vocab_size=c.vocab_size,
    )  # fmt: skip
    return QFormerBridge(vision, text, qformer, _or(c.queries, 32))


def _perceiver(c: BridgeConfig, vision: int, text: int) -> Bridge:
    """Flamingo, IDEFICS: resampled at the width of the vision tower, then one matrix."""
    resampler = flamingo_resampler(
        vision, _or(c.queries, 64), _or(c.num_layers, 6), _or(c.heads, 16), _or(c.head_size, 96), c.intermediate,
        _or(c.act, "relu"), _or(c.eps, 1e-5), norm_heads=c.norm_heads,
    )  # fmt: skip
    return Perceiver(vision, text, resampler, enter=nn.Identity(), leave=nn.Linear(vision, text))


def _perceiver_idefics2(c: BridgeConfig, vision: int, text: int) -> Bridge:
    """Idefics2: a gated MLP (3.5 times as wide as the language model, as Mistral's) to its width, then resampled."""
    act = _or(c.act, "silu")
    resampler = idefics2_resampler(
        text, _or(c.queries, 64), _or(c.num_layers, 3), _or(c.heads, 16), _or(c.head_size, 96), _or(c.kv_heads, 4),
        act, _or(c.eps, 1e-6),
    )  # fmt: skip
    enter = GatedMLP(vision, _or(c.intermediate, 7 * text // 2), act, out=text)
    return Perceiver(vision, text, resampler, enter=enter, leave=nn.Identity())


def _attention_pooling(c: BridgeConfig, vision: int, text: int) -> Bridge:
    return AttentionPooling(vision, text, _or(c.queries, 64), _or(c.heads, 16), _or(c.head_size, 64), _or(c.eps, 1e-5))


def _qwen_resampler(c: BridgeConfig, vision: int, text: int) -> Bridge:
    return QwenResampler(vision, text, _or(c.queries, 256), c.hidden, c.heads, _or(c.eps, 1e-6))


def _or(given: T | None, published: T) -> T:
    return published if given is None else given


BUILDERS: dict[str, Callable[[BridgeConfig, int, int], Bridge]] = {
    "linear": _linear,
    "pixel_shuffle": _pixel_shuffle,
    "pixel_shuffle_mlp": _pixel_shuffle_mlp,
    "qformer": _qformer,
    "perceiver": _perceiver,
    "perceiver_idefics2": _perceiver_idefics2,
    "attention_pooling": _attention_pooling,
    "qwen_resampler": _qwen_resampler,
}
KINDS = {  # kind → whose it is
    "linear": "LLaVA",
    "mlp2x_gelu": "LLaVA-1.5, TinyLLaVA",
    "pixel_shuffle": "Idefics3, SmolVLM",
    "pixel_shuffle_mlp": "InternVL",
    "qformer": "BLIP-2, InstructBLIP",
    "perceiver": "Flamingo, IDEFICS",
    "perceiver_idefics2": "Idefics2",
    "attention_pooling": "CoCa, Kosmos-2",
    "qwen_resampler": "Qwen-VL",
}

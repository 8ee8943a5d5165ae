"""Bridges equal transformers, both ways: every parameter random, odd sizes, padding."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from torch import nn
from transformers.models.blip_2.modeling_blip_2 import Blip2QFormerModel, Blip2TextEmbeddings
from transformers.models.idefics.modeling_idefics import IdeficsGatedCrossAttentionLayer
from transformers.models.idefics.perceiver import IdeficsPerceiverResampler
from transformers.models.idefics2.modeling_idefics2 import Idefics2Connector
from transformers.models.idefics3.modeling_idefics3 import Idefics3Connector
from transformers.models.instructblip.modeling_instructblip import InstructBlipQFormerModel
from transformers.models.internvl.modeling_internvl import InternVLModel, InternVLMultiModalProjector
from transformers.models.llava.modeling_llava import LlavaMultiModalProjector

from parity.tiny import assert_equal, assert_same_state
from sightline.hub import KeyTable
from sightline.models.bridges import Bridge, BridgeConfig, build_bridge, gated, perceiver, pixel_shuffle, projector
from sightline.models.bridges.gated import idefics_block
from sightline.models.bridges.perceiver import flamingo_resampler
from sightline.models.bridges.qformer import (
    BLIP2_KEYS,
    BLIP2_QFORMER_KEYS,
    INSTRUCTBLIP_KEYS,
    INSTRUCTBLIP_QFORMER_KEYS,
    QFormer,
)

VISION, TEXT = 22, 30  # widths of the towers


def taken(ours: Any, theirs: nn.Module, keys: KeyTable) -> Any:
    """Ours with their weights; writing them back under their names gives the same bits."""
    state = theirs.state_dict()
    ours.load_state_dict(keys.to_ours({k: v.shape for k, v in ours.state_dict().items()}, state, type(ours).__name__))
    assert_same_state(keys.to_theirs(ours.state_dict()), state)
    return ours.eval()


def bridge(kind: str, **options: Any) -> Bridge:
    return build_bridge(BridgeConfig(kind=kind, **options), VISION, TEXT)


def tokens(batch: int, count: int, width: int = VISION) -> torch.Tensor:
    return torch.randn(batch, count, width, generator=torch.Generator().manual_seed(3))


def mask(length: int, side: str) -> torch.Tensor:
    """Three rows: full, 5 real, 2 real."""
    real = torch.arange(length) < torch.tensor([[length], [5], [2]])
    return (real if side == "right" else real.flip(1)).long()


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("act", ["gelu", "relu"])
def test_llava_mlp(bias, act, awake):
    config = transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(hidden_size=VISION, num_attention_heads=2),
        text_config=transformers.LlamaConfig(hidden_size=TEXT, num_attention_heads=5),
        projector_hidden_act=act,
        multimodal_projector_bias=bias,
    )
    theirs = awake(LlavaMultiModalProjector(config))
    ours = taken(bridge("mlp2x_gelu", bias=bias, act=act), theirs, projector.LLAVA_KEYS)
    with torch.no_grad():
        assert_equal(ours(tokens(3, 7)), theirs(tokens(3, 7)))


@pytest.mark.parametrize("factor, side", [(2, 6), (3, 9)])
def test_idefics3(factor, side, awake):
    config = transformers.Idefics3Config(
        vision_config={"hidden_size": VISION}, scale_factor=factor,
        text_config={"model_type": "llama", "hidden_size": TEXT, "num_attention_heads": 5},
    )  # fmt: skip
    theirs = awake(Idefics3Connector(config))
    ours = taken(bridge("pixel_shuffle", scale_factor=factor), theirs, pixel_shuffle.IDEFICS3_KEYS)
    with torch.no_grad():
        want = theirs(tokens(3, side * side))
        assert_equal(ours(tokens(3, side * side)), want)
    assert ours.tokens_out((side, side)) == want.shape[1]


@pytest.mark.parametrize("grid", [(6, 6), (4, 10)])
def test_internvl(grid, awake):
    config = transformers.InternVLConfig(
        vision_config={"hidden_size": VISION}, text_config={"model_type": "qwen2", "hidden_size": TEXT},
        projector_hidden_act="relu",
    )  # fmt: skip
    theirs = awake(InternVLMultiModalProjector(config))
    ours = taken(bridge("pixel_shuffle_mlp", act="relu"), theirs, pixel_shuffle.INTERNVL_KEYS)
    seen = tokens(3, grid[0] * grid[1])
    with torch.no_grad():
        cells = InternVLModel.pixel_shuffle(None, seen.unflatten(1, grid), 0.5)
        assert_equal(ours(seen, grid), theirs(cells.flatten(1, 2)))


def qformer_config(kind: type, **options: Any) -> Any:
    sizes = {
        "hidden_size": 28, "num_hidden_layers": 5, "num_attention_heads": 7, "intermediate_size": 37,
        "encoder_hidden_size": VISION, "vocab_size": 61, "max_position_embeddings": 17,
    }  # fmt: skip
    config = kind(**{**sizes, **options})
    config._attn_implementation = "eager"
    return config


def our_qformer(config: Any, **options: Any) -> QFormer:
    return QFormer(
        VISION, 28, 5, 7, 37, config.hidden_act, config.layer_norm_eps,
        cross_attention_frequency=config.cross_attention_frequency, **options,
    )  # fmt: skip


@pytest.mark.parametrize("every", [1, 2, 3])
@pytest.mark.parametrize("side", [None, "left", "right"])
def test_blip2_qformer(every, side, awake):
    options = {"hidden_act": "relu", "layer_norm_eps": 1e-3} if every == 3 else {}
    config = qformer_config(transformers.Blip2QFormerConfig, cross_attention_frequency=every, **options)
    theirs = awake(Blip2QFormerModel(config))
    ours = taken(our_qformer(config), theirs, BLIP2_QFORMER_KEYS)
    queries, seen = tokens(3, 5, 28), tokens(3, 11)
    padding = None if side is None else mask(11, side)
    with torch.no_grad():
        got, words = ours(queries, seen, padding=padding)
        want = theirs(queries, encoder_hidden_states=seen, encoder_attention_mask=padding).last_hidden_state
    assert words is None
    assert_equal(got, want)


@pytest.mark.parametrize("side", ["left", "right"])
def test_blip2_qformer_with_words(side, awake):
    """As in BLIP-2's image–text matching: the words are embedded outside and go through MLPs of their own."""
    config = qformer_config(transformers.Blip2QFormerConfig, use_qformer_text_input=True)
    theirs, embeddings = awake(Blip2QFormerModel(config)), awake(Blip2TextEmbeddings(config))
    ours = taken(our_qformer(config, text=True), theirs, BLIP2_QFORMER_KEYS)
    queries, seen, words_mask = tokens(3, 5, 28), tokens(3, 11), mask(7, side)
    words = embeddings(torch.arange(21).reshape(3, 7))
    whole = torch.cat([torch.ones(3, 5, dtype=torch.long), words_mask], dim=1)
    with torch.no_grad():
        want = theirs(
            torch.cat([queries, words], dim=1), query_length=5, attention_mask=whole, encoder_hidden_states=seen
        ).last_hidden_state
        got = ours(queries, seen, words=words, words_mask=words_mask)
    assert_equal(torch.cat(got, dim=1), want)


@pytest.mark.parametrize("words_side", [None, "left", "right"])
@pytest.mark.parametrize("side", [None, "left", "right"])
def test_instructblip_qformer(words_side, side, awake):
    config = qformer_config(transformers.InstructBlipQFormerConfig)
    theirs = awake(InstructBlipQFormerModel(config))
    ours = taken(our_qformer(config, vocab_size=61, max_positions=17), theirs, INSTRUCTBLIP_QFORMER_KEYS)
    queries, seen, ids = tokens(3, 5, 28), tokens(3, 11), torch.arange(3, 24).reshape(3, 7)
    words_mask = None if words_side is None else mask(7, words_side)
    padding = None if side is None else mask(11, side)
    whole = None if words_mask is None else torch.cat([torch.ones(3, 5, dtype=torch.long), words_mask], dim=1)
    with torch.no_grad():
        want = theirs(
            ids, query_embeds=queries, attention_mask=whole, encoder_hidden_states=seen, encoder_attention_mask=padding
        ).last_hidden_state
        got = ours(queries, seen, words=ours.embed(ids), words_mask=words_mask, padding=padding)
    assert_equal(torch.cat(got, dim=1), want)


class AroundQFormer(nn.Module):
    """What stands around the Q-Former in Blip2Model and InstructBlipModel, under the names it has there."""

    def __init__(self, qformer: nn.Module) -> None:
        super().__init__()
        self.query_tokens = nn.Parameter(torch.zeros(1, 5, 28))
        self.qformer, self.language_projection = qformer, nn.Linear(28, TEXT)


@pytest.mark.parametrize("text", [False, True])
def test_the_whole_qformer_bridge(text, awake):
    kind = transformers.InstructBlipQFormerConfig if text else transformers.Blip2QFormerConfig
    config = qformer_config(kind, max_position_embeddings=512)
    theirs = awake(AroundQFormer((InstructBlipQFormerModel if text else Blip2QFormerModel)(config)))
    ours = bridge(
        "qformer", queries=5, hidden=28, num_layers=5, heads=7, intermediate=37, vocab_size=61 if text else None
    )
    taken(ours, theirs, INSTRUCTBLIP_KEYS if text else BLIP2_KEYS)
    seen, ids, words_mask = tokens(3, 11), torch.arange(3, 24).reshape(3, 7), mask(7, "left")
    queries = theirs.query_tokens.expand(3, -1, -1)
    whole = torch.cat([torch.ones(3, 5, dtype=torch.long), words_mask], dim=1)
    with torch.no_grad():
        words = {"input_ids": ids, "attention_mask": whole} if text else {}
        read = theirs.qformer(**words, query_embeds=queries, encoder_hidden_states=seen).last_hidden_state[:, :5]
        got = ours(seen, input_ids=ids, attention_mask=words_mask) if text else ours(seen)
        assert_equal(got, theirs.language_projection(read))


@pytest.mark.parametrize("normed", [False, True])
def test_idefics_resampler(normed, awake):
    config = transformers.IdeficsConfig(
        vision_config={"embed_dim": VISION}, perceiver_config={"qk_layer_norms_perceiver": normed}
    )
    theirs = awake(IdeficsPerceiverResampler(config, VISION, 3, 3, 5, 7))
    ours = flamingo_resampler(VISION, 7, 3, 3, 5, norm_heads=normed)
    taken(ours, theirs, perceiver.IDEFICS_KEYS)
    with torch.no_grad():
        assert_equal(ours(tokens(3, 11)), theirs(tokens(3, 11)))


@pytest.mark.parametrize("side", [None, "left", "right"])
def test_idefics2_connector(side, awake):
    config = transformers.Idefics2Config(
        vision_config={"hidden_size": VISION},
        text_config={"model_type": "mistral", "hidden_size": TEXT, "intermediate_size": 41, "hidden_act": "gelu"},
        perceiver_config={
            "hidden_size": TEXT, "resampler_n_latents": 7, "resampler_depth": 3, "resampler_n_heads": 6,
            "resampler_head_dim": 5, "num_key_value_heads": 2, "hidden_act": "gelu", "rms_norm_eps": 1e-3,
        },
    )  # fmt: skip
    config.perceiver_config._attn_implementation = "eager"
    theirs = awake(Idefics2Connector(config))
    ours = bridge(
        "perceiver_idefics2", queries=7, num_layers=3, heads=6, head_size=5, kv_heads=2, intermediate=41, act="gelu",
        eps=1e-3,
    )  # fmt: skip
    taken(ours, theirs, perceiver.IDEFICS2_KEYS)
    seen, padding = tokens(3, 11), None if side is None else mask(11, side)
    with torch.no_grad():
        want = theirs(seen, torch.ones(3, 11, dtype=torch.long) if padding is None else padding)
        assert_equal(ours(seen, padding=padding), want)


@pytest.mark.parametrize("alpha, gates", [("float", 1), ("vector", TEXT)])
@pytest.mark.parametrize("normed", [False, True])
def test_idefics_gated_cross_attention(alpha, gates, normed, awake):
    """Words before the first picture see none; the reference is told so by a second mask, ours finds out."""
    config = transformers.IdeficsConfig(
        hidden_size=TEXT, intermediate_size=41, num_attention_heads=5, vision_config={"embed_dim": VISION},
        alpha_type=alpha, qk_layer_norms=normed, rms_norm_eps=1e-3, hidden_act="gelu",
    )  # fmt: skip
    config._attn_implementation = "eager"
    theirs = awake(IdeficsGatedCrossAttentionLayer(config, layer_idx=0))
    ours = idefics_block(TEXT, VISION, 5, 41, "gelu", 1e-3, gates=gates, norm_heads=normed)
    taken(ours, theirs, gated.keys(gates))
    words, seen = tokens(3, 7, TEXT), tokens(3, 11)
    sees = torch.zeros(3, 7, 11, dtype=torch.bool)
    sees[0, 2:, :4], sees[0, 5:, 4:], sees[1] = True, True, True  # row 2 sees nothing at all
    hidden = torch.zeros(3, 1, 7, 11).masked_fill(~sees[:, None], torch.finfo(torch.float32).min)
    with torch.no_grad():
        want = theirs(
            words, image_hidden_states=seen, image_attention_mask=hidden,
            cross_attention_gate=sees.any(-1).float(),
        )  # fmt: skip
        assert_equal(ours(words, seen, sees), want)


def test_published_sizes():
    """Parameters of the official checkpoints (shared/systems.md §4.2, counted on the meta device)."""
    with torch.device("meta"):
        assert size(build_bridge("mlp2x_gelu", 1024, 4096)) == 20_979_712  # LLaVA-1.5-7B's projector
        blip2 = build_bridge("qformer", 1408, 2560)
        assert abs(size(blip2.qformer) - 105.14e6) < 0.01e6  # BLIP-2 OPT-2.7B
        assert abs(size(blip2.project) - 1.97e6) < 0.01e6
        assert size(QFormer(1408, vocab_size=30522)) == 185_659_392  # InstructBLIP's
        assert abs(size(flamingo_resampler(1280, intermediate=5120)) - 125.96e6) < 0.01e6  # Idefics-9B


def size(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())

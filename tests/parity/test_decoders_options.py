"""Causal decoders beyond plain text: M-RoPE, vectors in, packed samples, old and new configs, half precision, errors."""

from __future__ import annotations

import json

import pytest
import torch
import transformers

from parity.test_decoders import FAMILIES, TINY, batch, opened, reference
from parity.tiny import assert_equal, assert_same_state
from sightline.errors import ConfigError, TokenizerError, UsageError
from sightline.hub import KeyTable, read_weights, write_weights
from sightline.models.language import gemma, llama, opt, phi, qwen2
from sightline.models.language.decoder_config import GroupedKeys

SECTIONS = [2, 1, 3]  # of half a head, 6


def qwen2_vl_text(awake):
    """Qwen2-VL's decoder, and ours with its weights."""
    rope = {"rope_type": "default", "rope_theta": 100.0, "mrope_section": SECTIONS}
    config = transformers.Qwen2VLTextConfig(
        **{**TINY, "num_attention_heads": 2, "num_key_value_heads": 1, "rope_parameters": rope}
    )
    config._attn_implementation = "eager"
    theirs = awake(transformers.models.qwen2_vl.modeling_qwen2_vl.Qwen2VLTextModel(config))
    ours = qwen2.Qwen2.shaped(qwen2.Qwen2Config.from_dict({**config.to_dict(), "tie_word_embeddings": True}))
    ours.take({f"model.{k}": v for k, v in theirs.state_dict().items()}, dtype=torch.float32)
    return theirs, ours.eval()


def places(rows=3):
    """[3, rows, 13]: three words, a picture of 2 × 3 at position 3, four words from 3 + 3 = 6 on."""
    words = torch.arange(3).expand(3, 3)
    row, column = torch.meshgrid(torch.arange(2), torch.arange(3), indexing="ij")
    picture = 3 + torch.stack([torch.zeros(6, dtype=torch.long), row.flatten(), column.flatten()])
    after = torch.arange(6, 10).expand(3, 4)
    return torch.cat([words, picture, after], dim=1)[:, None].expand(3, rows, 13).contiguous()


def test_positions_in_three_axes(awake):
    theirs, ours = qwen2_vl_text(awake)
    ids, _ = batch("none")
    with torch.no_grad():
        want = theirs(ids, position_ids=places()).last_hidden_state
        assert_equal(ours(ids, position_ids=places()).last_hidden_state, want)
        plain = theirs(ids).last_hidden_state  # text: all three equal
        assert_equal(ours(ids).last_hidden_state, plain)


def test_words_behind_a_picture_go_on(awake):
    """The highest position is 5, so the next word stands at 6, though nine tokens came before."""
    _, ours = qwen2_vl_text(awake)
    ids, _ = batch("none")
    mask = torch.ones_like(ids)
    mask[1, :1], mask[2, :2] = 0, 0
    shifted = places() - (mask == 0).sum(-1)[None, :, None]
    with torch.no_grad():
        whole = ours(ids, position_ids=shifted.clamp(min=0), attention_mask=mask).last_hidden_state
        cache = ours.new_cache()
        ours(ids[:, :9], position_ids=shifted[..., :9].clamp(min=0), attention_mask=mask[:, :9], cache=cache)
        cache = cache.copy()
        cache.reorder(torch.tensor([0, 1, 2]))
        parts = [ours(ids[:, i : i + 1], cache=cache).last_hidden_state for i in range(9, 13)]
    assert_equal(torch.cat(parts, dim=1), whole[:, 9:])


def test_three_axes_need_sections(awake, saved):
    ours = opened(saved(reference("qwen2", awake)))
    with pytest.raises(ConfigError, match="mrope_section"):
        ours(batch("none")[0], position_ids=places())
    with pytest.raises(ConfigError, match="half a head, 6"):
        qwen2.Qwen2(qwen2.Qwen2Config(hidden_size=24, num_attention_heads=2, rope_scaling={"mrope_section": [1, 1]}))


@pytest.mark.parametrize("name", ["llama", "gemma2", "opt-350m", "phi"])
def test_vectors_instead_of_ids(name, awake, saved):
    ours = opened(saved(reference(name, awake)))
    ids, mask = batch("left")
    with torch.no_grad():
        vectors = ours.embed(ids)
        assert vectors.shape[-1] == ours.hidden_size
        assert torch.equal(
            ours(inputs_embeds=vectors, attention_mask=mask).logits, ours(ids, attention_mask=mask).logits
        )
    with pytest.raises(UsageError, match="one of the two"):
        ours(ids, inputs_embeds=vectors)
    with pytest.raises(UsageError, match="one of the two"):
        ours()


@pytest.mark.parametrize("name", ["llama", "mistral", "gemma2", "opt"])
def test_packed_samples_do_not_see_one_another(name, awake, saved):
    ours = opened(saved(reference(name, awake)))
    ids, _ = batch("none", rows=2)
    segments = torch.tensor([[0] * 5 + [1] * 8, [4] * 7 + [2] * 5 + [3]])
    with torch.no_grad():
        packed = ours(ids, segments=segments).logits
        for row in range(2):
            for number in segments[row].unique():
                own = segments[row] == number
                assert_equal(packed[row, own], ours(ids[row : row + 1, own]).logits[0])
    with pytest.raises(UsageError, match="segments or the cache"):
        cache = ours.new_cache()
        ours(ids, cache=cache)
        ours(ids, cache=cache, segments=segments)


def test_one_prefix_many_questions(awake, saved):
    """A picture is read once; each question goes on from a copy, a batch of them from repeated rows."""
    ours = opened(saved(reference("llama-grouped-tied", awake)))
    ids, _ = batch("none")
    with torch.no_grad():
        cache = ours.new_cache()
        ours(ids[:1, :6], cache=cache)
        questions = [ours(ids[i : i + 1, 6:], cache=cache.copy()).logits for i in range(3)]
        cache.reorder(torch.zeros(3, dtype=torch.long))
        together = ours(ids[:, 6:], cache=cache).logits
        alone = ours(torch.cat([ids[:1, :6].expand(3, -1), ids[:, 6:]], dim=1)).logits[:, 6:]
        cache.crop(6)
        again = ours(ids[:, 6:], cache=cache).logits
    assert_equal(torch.cat(questions), alone)
    assert_equal(together, alone)
    assert torch.equal(again, together)


@pytest.mark.parametrize("name", ["llama-3.1", "llama-linear", "phi-grouped", "gemma", "mistral"])
def test_old_configs(name, awake, saved):
    """Files of transformers 4: rope_theta, rope_scaling (with "type"), torch_dtype; tied heads twice, inv_freq."""
    theirs = reference(name, awake)
    folder = saved(theirs)
    path = folder / "config.json"
    data = json.loads(path.read_text())
    rope = data.pop("rope_parameters")
    data["rope_theta"] = rope.pop("rope_theta")
    if "partial_rotary_factor" in rope:
        data["partial_rotary_factor"] = rope.pop("partial_rotary_factor")
    rope["type"] = rope.pop("rope_type")
    data["rope_scaling"] = None if rope["type"] == "default" else rope
    data["torch_dtype"] = data.pop("dtype", "float32")
    path.write_text(json.dumps(data))
    tensors = read_weights(folder)
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(3)
    if data["tie_word_embeddings"]:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    write_weights(folder, tensors)
    ids, _ = batch("none")
    ours = opened(folder)
    with torch.no_grad():
        want = theirs(ids).logits
        assert_equal(ours(ids).logits, want)
        back = type(theirs).from_pretrained(ours.save(folder.parent / "ours"), attn_implementation="eager")
        assert torch.equal(back(ids).logits, want)
    written = json.loads((folder.parent / "ours" / "config.json").read_text())
    assert "rope_scaling" not in written and "torch_dtype" not in written and written["dtype"] == "float32"


def test_old_opt_files(awake, saved):
    theirs = reference("opt", awake)
    folder = saved(theirs)
    tensors = read_weights(folder)
    write_weights(folder, {name.removeprefix("model."): tensor for name, tensor in tensors.items()})
    with torch.no_grad():
        assert_equal(opened(folder)(batch("none")[0]).logits, theirs(batch("none")[0]).logits)


@pytest.mark.parametrize("name", FAMILIES)
def test_half_precision_runs_close(name, awake, saved):
    """bfloat16 keeps 8 bits: within some per cent of the largest logit, cached or not."""
    folder = saved(reference(name, awake))
    ours, full = opened(folder).to(torch.bfloat16), opened(folder)
    ids, mask = batch("left")
    with torch.no_grad():
        want = full(ids, attention_mask=mask).logits
        cache = ours.new_cache()
        first = ours(ids[:, :12], attention_mask=mask[:, :12], cache=cache).logits
        got = torch.cat([first, ours(ids[:, 12:], cache=cache).logits], dim=1)
    assert got.dtype == torch.bfloat16
    real = mask.bool()
    assert (got[real].float() - want[real]).abs().max() < 0.12 * want[real].abs().max()


def test_gradients_reach_every_weight(awake, saved):
    for name in ("llama", "phi-norms", "gemma2", "opt-350m"):
        ours = opened(saved(reference(name, awake)))
        ids, mask = batch("right")
        ours(ids, attention_mask=mask).logits[mask.bool()].square().mean().backward()
        assert [n for n, p in ours.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


def test_tables_keep_their_shares_inside_another_model(awake, saved):
    """A vision–language model puts the decoder's table under its own prefixes and beside others."""
    ours = opened(saved(reference("llama-grouped-tied", awake)))
    other = KeyTable({"bridge.*": "bridge.*"})
    state = {f"language.{k}": v for k, v in ours.state_dict().items()} | {"bridge.weight": torch.ones(2, 3)}
    inner = ours.keys().under("language_model.", "language.")
    want = {f"language_model.{k}": v for k, v in ours.official_state().items()} | {"bridge.weight": torch.ones(2, 3)}
    for table in (other | inner, inner | other, (other | inner).under("", "")):
        assert isinstance(table, GroupedKeys)
        assert_same_state(table.to_theirs(state), want)
        assert_same_state(table.to_ours({k: v.shape for k, v in state.items()}, want, "it"), state)


BAD = [  # family, changes, what the sentence says
    ("Llama", {"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, 'type "yarn" is unknown'),
    ("Llama", {"rope_scaling": {"rope_type": "llama3", "factor": 2.0}}, "lacks a number"),
    ("Llama", {"rope_scaling": 3}, "expects an object"),
    ("Llama", {"num_key_value_heads": 5}, "cannot share 5"),
    ("Llama", {"head_dim": 7}, "pairs of channels"),
    ("Qwen2", {"use_sliding_window": True, "layer_types": ["full_attention"]}, "layer_types"),
    ("Gemma", {"use_bidirectional_attention": True}, "decoder only"),
]


@pytest.mark.parametrize(("family", "changes", "sentence"), BAD)
def test_configs_that_cannot_be(family, changes, sentence):
    kind = getattr({"Llama": llama, "Qwen2": qwen2, "Gemma": gemma}[family], family)
    with pytest.raises(ConfigError, match=sentence):
        kind.shaped(kind.Config.from_dict({**TINY, **changes}))


def test_inputs_that_cannot_be(awake, saved):
    ours = opened(saved(reference("opt", awake)))
    with pytest.raises(TokenizerError, match="62 tokens is longer than the 61"):
        ours(torch.ones(1, 62, dtype=torch.long))
    with pytest.raises(TokenizerError, match="token 67 is not among the 67"):
        ours(torch.tensor([[3, 67]]))
    with pytest.raises(UsageError, match=r"expected \[1, 2\]"):
        ours(torch.tensor([[3, 4]]), attention_mask=torch.ones(1, 3, dtype=torch.long))


FULL = {  # id → class, and values of the official config.json where they differ from our defaults
    "TinyLlama/TinyLlama-1.1B-Chat-v1.0": (
        llama.Llama,
        {"hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22, "num_key_value_heads": 4},
    ),
    "lmsys/vicuna-7b-v1.5": (llama.Llama, {}),
    "mistralai/Mistral-7B-v0.1": (llama.Mistral, {}),
    "Qwen/Qwen2-0.5B": (
        qwen2.Qwen2,
        {"hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14,
         "num_key_value_heads": 2, "tie_word_embeddings": True},
    ),
    "Qwen/Qwen2-7B": (
        qwen2.Qwen2,
        {"vocab_size": 152064, "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28,
         "num_attention_heads": 28, "num_key_value_heads": 4},
    ),
    "microsoft/phi-2": (phi.Phi, {"hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 32}),
    "google/gemma-2b": (
        gemma.Gemma,
        {"hidden_size": 2048, "intermediate_size": 16384, "num_hidden_layers": 18, "num_attention_heads": 8,
         "num_key_value_heads": 1},
    ),
    "google/gemma-2-2b": (gemma.Gemma2, {}),
    "facebook/opt-125m": (opt.OPT, {}),
    "facebook/opt-350m": (
        opt.OPT,
        {"hidden_size": 1024, "word_embed_proj_dim": 512, "num_hidden_layers": 24, "num_attention_heads": 16,
         "ffn_dim": 4096, "do_layer_norm_before": False},
    ),
    "facebook/opt-2.7b": (
        opt.OPT, {"hidden_size": 2560, "num_hidden_layers": 32, "num_attention_heads": 32, "ffn_dim": 10240},
    ),
}  # fmt: skip
VARIANTS = llama.VARIANTS | qwen2.VARIANTS | phi.VARIANTS | gemma.VARIANTS | opt.VARIANTS


@pytest.mark.parametrize("name", VARIANTS)
def test_full_size(name):
    """Our defaults are the official ones, and every official name and shape is covered."""
    kind, values = FULL[name]
    mine = kind.shaped(kind.Config.from_dict(values))
    assert sum(p.numel() for p in mine.parameters()) == VARIANTS[name]
    theirs = getattr(transformers, kind.ARCHITECTURE)
    with torch.device("meta"):
        full = theirs(theirs.config_class(**values))
    shapes = {k: tuple(v.shape) for k, v in full.state_dict().items()}
    if mine.head is None:
        shapes.pop("lm_head.weight")
    assert {k: tuple(v.shape) for k, v in mine.official_state().items()} == shapes
    assert mine.config.rope_theta == full.config.rope_parameters["rope_theta"] if mine.rotary else True
    assert mine.context_length == full.config.max_position_embeddings

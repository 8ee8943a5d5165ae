"""T5 and BART equal transformers: encoder, decoder, cache, padding, heads, both ways."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers

from parity.tiny import assert_equal, assert_same_state
from sightline.errors import ConfigError, TokenizerError, UsageError, WeightsError
from sightline.hub import read_json, read_weights, write_json, write_weights
from sightline.models.language.bart import Bart
from sightline.models.language.t5 import T5, Distances, T5Config, T5Encoder, finite
from sightline.models.zoo import model_class

T5_SHAPE: dict[str, Any] = {
    "vocab_size": 61, "d_model": 20, "d_kv": 7, "d_ff": 37, "num_layers": 3, "num_heads": 3,
    "relative_attention_num_buckets": 10, "relative_attention_max_distance": 13,
    "pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0,
}  # fmt: skip
BART_SHAPE: dict[str, Any] = {
    "vocab_size": 61, "d_model": 21, "encoder_layers": 2, "decoder_layers": 3, "encoder_attention_heads": 3,
    "decoder_attention_heads": 7, "encoder_ffn_dim": 37, "decoder_ffn_dim": 23, "max_position_embeddings": 29,
    "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 2, "forced_eos_token_id": None,
}  # fmt: skip

T5_KINDS = {
    "first": {},
    "v1.1": {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False, "num_decoder_layers": 2},
    "odd": {"feed_forward_proj": "gated-silu", "num_decoder_layers": 5, "layer_norm_epsilon": 1e-3, "num_heads": 5},
    "plain": {"feed_forward_proj": "gelu", "relative_attention_num_buckets": 6, "relative_attention_max_distance": 41},
}
BART_KINDS = {
    "base": {},
    "scaled": {"scale_embedding": True, "activation_function": "relu"},
    "untied": {"tie_word_embeddings": False},
}
ALL = [("t5", kind) for kind in T5_KINDS] + [("bart", kind) for kind in BART_KINDS]


def oracle(family: str, kind: str, awake: Any) -> Any:
    if family == "t5":
        config = transformers.T5Config(**{**T5_SHAPE, **T5_KINDS[kind]})
        made = transformers.T5ForConditionalGeneration(config)
        if kind == "v1.1":  # as the official files are: config says "untied", the file holds a head of its own
            made.lm_head.weight = torch.nn.Parameter(made.lm_head.weight.clone())
    else:
        config = transformers.BartConfig(**{**BART_SHAPE, **BART_KINDS[kind]})
        made = transformers.BartForConditionalGeneration(config)
        if kind == "untied":  # the head alone, as older libraries mean it; transformers 5 also parts the word tables
            made.model.set_input_embeddings(made.model.shared)
    made.set_attn_implementation("eager")
    return awake(made)


@pytest.fixture
def pair(request, awake, saved):
    """(reference, ours) for a family and a kind."""
    family, kind = request.param
    theirs = oracle(family, kind, awake)
    folder = saved(theirs)
    return theirs, model_class(folder).from_folder(folder)


both = pytest.mark.parametrize("pair", ALL, indirect=True, ids=lambda p: "-".join(p))


def source(count: int = 3, length: int = 11, left: bool = False, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """ids and mask; rows of length, length − 4, length − 8, …"""
    ids = torch.randint(3, 61, (count, length), generator=torch.Generator().manual_seed(seed))
    mask = torch.ones_like(ids)
    for row in range(1, count):
        mask[row, slice(0, 4 * row) if left else slice(length - 4 * row, length)] = 0
    return ids.masked_fill(mask == 0, 1), mask


def target(count: int = 3, length: int = 7) -> torch.Tensor:
    return source(count, length, seed=5)[0].masked_fill(torch.arange(length) == 0, 2)


def real(states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The rows of real tokens."""
    return states[mask.bool()]


def run(ours: Any, ids: torch.Tensor, mask: torch.Tensor | None, text: torch.Tensor, **options: Any) -> Any:
    states = ours.encode(ids, mask).last_hidden_state
    return ours(text, encoder_hidden_states=states, encoder_attention_mask=mask, **options)


@both
@pytest.mark.parametrize("left", [False, True])
@torch.no_grad()
def test_everything_equals_the_reference(pair, left):
    theirs, ours = pair
    (ids, mask), text = source(left=left), target()
    asked = {"output_hidden_states": True, "output_attentions": True}
    want = theirs(input_ids=ids, attention_mask=mask, decoder_input_ids=text, **asked)
    encoded = ours.encode(ids, mask, **asked)
    got = ours(text, encoder_hidden_states=encoded.last_hidden_state, encoder_attention_mask=mask, **asked)
    assert_equal(real(encoded.last_hidden_state, mask), real(want.encoder_last_hidden_state, mask))
    assert_equal(got.logits, want.logits)
    assert_equal(got.last_hidden_state, want.decoder_hidden_states[-1])
    for a, b in zip(encoded.hidden_states, want.encoder_hidden_states, strict=True):
        assert_equal(real(a, mask), real(b, mask))
    for a, b in zip(encoded.attentions, want.encoder_attentions, strict=True):
        assert_equal(real(a.transpose(1, 2), mask), real(b.transpose(1, 2), mask))
    for mine, other in [
        (got.hidden_states, want.decoder_hidden_states),
        (got.attentions, want.decoder_attentions),
        (got.cross_attentions, want.cross_attentions),
    ]:
        for a, b in zip(mine, other, strict=True):
            assert_equal(a, b)
    fast = run(ours, ids, mask, text)  # the fused kernels, which return no weights
    assert_equal(fast.logits, want.logits)
    assert fast.hidden_states is fast.attentions is fast.cross_attentions is None
    assert_equal(ours.embed(ids), theirs.get_input_embeddings()(ids))  # BART's reference scales here as well
    states = ours.encode(attention_mask=mask, inputs_embeds=ours.embed(ids)).last_hidden_state
    vectors = ours(decoder_inputs_embeds=ours.embed(text), encoder_hidden_states=states, encoder_attention_mask=mask)
    assert torch.equal(vectors.logits, fast.logits)


@both
@torch.no_grad()
def test_padding_in_the_text(pair):
    """A decoder's padding is hidden; on the left it moves BART's positions, as it does in the reference."""
    theirs, ours = pair
    (ids, mask), text = source(), target()
    for left in (False, True):
        shown = torch.ones_like(text)
        shown[1, slice(0, 3) if left else slice(4, 7)] = 0
        want = theirs(input_ids=ids, attention_mask=mask, decoder_input_ids=text, decoder_attention_mask=shown)
        got = run(ours, ids, mask, text, decoder_attention_mask=shown)
        assert_equal(real(got.logits, shown), real(want.logits, shown))


@both
@pytest.mark.parametrize("pieces", [[1] * 7, [3, 1, 3], [5, 2]])
@torch.no_grad()
def test_cached_equals_uncached(pair, pieces):
    """Piece by piece with a cache; the context is handed in once, with its mask, and projected once."""
    _, ours = pair
    (ids, mask), text, calls = source(), target(), []
    want, states = run(ours, ids, mask, text).logits, ours.encode(ids, mask).last_hidden_state
    context = {"encoder_hidden_states": states, "encoder_attention_mask": mask}
    for block in ours.decoder.stack.blocks:
        block.cross.key_value.register_forward_hook(lambda *_: calls.append(1))
    cache, end = ours.new_cache(capacity=4), 0
    for piece in pieces:
        out = ours(text[:, end : end + piece], cache=cache, last_only=True, **(context if end == 0 else {}))
        end += piece
        assert out.cache is cache and cache.length == end and out.logits.shape == (3, 1, 61)
        assert_equal(out.logits[:, 0], want[:, end - 1])
    assert len(calls) == len(ours.decoder.stack.blocks)


@both
@torch.no_grad()
def test_a_cache_with_padding_goes_on(pair):
    _, ours = pair
    (ids, mask), text = source(), target()
    shown = torch.ones_like(text)
    shown[1, :3] = 0
    want = run(ours, ids, mask, text, decoder_attention_mask=shown).logits
    for later in (None, shown):  # of the new tokens, or of all keys
        cache = ours.new_cache()
        run(ours, ids, mask, text[:, :5], decoder_attention_mask=shown[:, :5], cache=cache)
        first = ours(text[:, 5:6], cache=cache, decoder_attention_mask=None if later is None else shown[:, :6])
        again = ours(text[:, 6:7], cache=cache, decoder_attention_mask=None if later is None else shown[:, 6:7])
        assert_equal(torch.cat([first.logits, again.logits], 1), want[:, 5:])


@both
@torch.no_grad()
def test_beams_reorder_and_prefixes_copy(pair):
    _, ours = pair
    (ids, mask), text = source(), target()
    want = run(ours, ids, mask, text).logits
    cache = ours.new_cache()
    run(ours, ids, mask, text[:, :4], cache=cache)
    spare, rows = cache.copy(), torch.tensor([2, 0, 2, 1])
    cache.reorder(rows)
    assert_equal(ours(text[rows, 4:], cache=cache).logits, want[rows, 4:])
    assert_equal(ours(text[:, 4:], cache=spare).logits, want[:, 4:])
    spare.crop(4)
    assert_equal(ours(text[:, 4:6], cache=spare).logits, want[:, 4:6])
    assert spare.memory() > 0


@both
@torch.no_grad()
def test_batch_equals_single(pair):
    _, ours = pair
    (ids, mask), text = source(), target()
    batch = run(ours, ids, mask, text).logits
    for row in range(3):
        length = int(mask[row].sum())
        assert_equal(run(ours, ids[row : row + 1, :length], None, text[row : row + 1]).logits[0], batch[row])


@both
@torch.no_grad()
def test_greedy_text_equals_the_references(pair):
    theirs, ours = pair
    ids, mask = source()
    want = theirs.generate(  # its cache has the encoder's number of layers, too few for a deeper decoder
        input_ids=ids, attention_mask=mask, do_sample=False, num_beams=1, max_new_tokens=9, min_new_tokens=9,
        eos_token_id=60, use_cache=False,
    )  # fmt: skip
    states, cache = ours.encode(ids, mask).last_hidden_state, ours.new_cache()
    text = want[:, :1]  # the start token
    for _ in range(9):
        logits = ours(text[:, -1:], encoder_hidden_states=states, encoder_attention_mask=mask, cache=cache).logits
        logits[..., 60] = -torch.inf  # min_new_tokens hides the end
        text = torch.cat([text, logits[:, -1].argmax(-1, keepdim=True)], 1)
    assert torch.equal(text, want)


@both
def test_both_ways(pair, tmp_path):
    theirs, ours = pair
    folder = ours.save(tmp_path / "ours")
    back = type(theirs).from_pretrained(folder)
    assert_same_state(back.state_dict(), theirs.state_dict())
    again = model_class(folder).from_folder(folder)
    assert_same_state(again.state_dict(), ours.state_dict())
    (ids, mask), text = source(), target()
    with torch.no_grad():
        want = theirs(input_ids=ids, attention_mask=mask, decoder_input_ids=text).logits
        assert_equal(back(input_ids=ids, attention_mask=mask, decoder_input_ids=text).logits, want)
        assert_equal(run(again, ids, mask, text).logits, want)
    run(again.train(), ids, mask, text).logits.square().mean().backward()
    assert not [name for name, p in again.named_parameters() if p.grad is None or not p.grad.any()]


def test_t5_encoder_alone(awake, saved, tmp_path):
    theirs = awake(transformers.T5EncoderModel(transformers.T5Config(**T5_SHAPE, feed_forward_proj="gated-gelu")))
    folder = saved(theirs)
    assert model_class(folder) is T5Encoder
    ours, (ids, mask) = T5Encoder.from_folder(folder), source()
    with torch.no_grad():
        want = theirs(ids, attention_mask=mask).last_hidden_state
        assert_equal(real(ours(ids, mask).last_hidden_state, mask), real(want, mask))
    back = transformers.T5EncoderModel.from_pretrained(ours.save(tmp_path / "ours"))
    assert_same_state(back.state_dict(), theirs.state_dict())


def test_official_flan_layout(awake, saved):
    """Published Flan-T5 folders say "untied", know no scale, and hold the word table up to three times."""
    theirs = oracle("t5", "v1.1", awake)
    folder = saved(theirs)
    data = read_json(folder / "config.json") | {"tie_word_embeddings": False, "n_positions": 77}
    write_json(folder / "config.json", {k: v for k, v in data.items() if k != "scale_decoder_outputs"})
    tensors = read_weights(folder)
    copies = {f"{side}.embed_tokens.weight": tensors["shared.weight"].clone() for side in ("encoder", "decoder")}
    old = {"decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight": torch.randn(10, 3)}
    write_weights(folder, {**tensors, **copies, **old})
    ours = T5.from_folder(folder)
    assert not ours.config.scaled and ours.head is not None and ours.context_length == 77
    (ids, mask), text = source(), target()
    with torch.no_grad():
        want = theirs(input_ids=ids, attention_mask=mask, decoder_input_ids=text).logits
        assert_equal(run(ours, ids, mask, text).logits, want)
    copies["encoder.embed_tokens.weight"] += 1
    write_weights(folder, {**tensors, **copies})
    with pytest.raises(WeightsError, match=r"encoder\.embed_tokens\.weight and shared\.weight with different numbers"):
        T5.from_folder(folder)


def test_bart_without_its_head(awake, saved):
    """Published bart-base holds the model without prefix, head and bias."""
    theirs = awake(transformers.BartModel(transformers.BartConfig(**BART_SHAPE)))
    folder = saved(theirs)
    ours = Bart.from_folder(folder)
    (ids, mask), text = source(), target()
    with torch.no_grad():
        want = theirs(input_ids=ids, attention_mask=mask, decoder_input_ids=text).last_hidden_state
        got = run(ours, ids, mask, text)
    assert_equal(got.last_hidden_state, want)
    assert_equal(got.logits, want @ theirs.shared.weight.T)
    write_weights(folder, ours.official_state() | {"lm_head.weight": torch.ones(61, 21)})
    assert Bart.from_folder(folder).head is not None  # it differs, so it is not tied, whatever the config says


def test_buckets_by_hand():
    """8 buckets a side, furthest 16: 4 exact, then 4 + ⌊4 log(d/4) / log(16/4)⌋: 4→4, 5→4, 6→5, 8→6, 12→7, 16→7."""
    causal, both_ways = Distances(8, 16, 3, both=False), Distances(16, 16, 3, both=True)
    back = torch.tensor([0, -1, -3, -4, -5, -6, -8, -12, -16, -99])
    want = [0, 1, 3, 4, 4, 5, 6, 7, 7, 7]
    assert causal.bucket(back).tolist() == want
    assert causal.bucket(-back).tolist() == [0] * 10  # what comes later counts as here
    assert both_ways.bucket(back).tolist() == want
    assert both_ways.bucket(-back).tolist() == [0, *(8 + b for b in want[1:])]


def test_buckets_equal_the_references():
    official = transformers.models.t5.modeling_t5.T5Attention._relative_position_bucket
    distance = torch.arange(-700, 701)
    for buckets, furthest in [(32, 128), (10, 13), (64, 500)]:
        for way in (False, True):
            want = official(distance, bidirectional=way, num_buckets=buckets, max_distance=furthest)
            assert torch.equal(Distances(buckets, furthest, 3, both=way).bucket(distance), want)


def test_half_precision_stays_finite():
    """In float16 T5's sums outgrow the type; they are cut off below its end."""
    grown = torch.tensor([float("inf"), -float("inf"), 3.0], dtype=torch.float16)
    assert finite(grown).isfinite().all() and finite(grown)[2] == 3 and finite(grown.float()).isinf()[0]


@pytest.mark.parametrize(("family", "kind"), [("t5", "v1.1"), ("bart", "base")])
@torch.no_grad()
def test_bfloat16_is_near(family, kind, awake, saved):
    folder, (ids, mask) = saved(oracle(family, kind, awake)), source()
    want, got = (
        run(model_class(folder).from_folder(folder, dtype=dtype), ids, mask, target()).logits
        for dtype in (torch.float32, torch.bfloat16)
    )
    assert got.dtype == torch.bfloat16 and (got.float() - want).abs().max() < 0.1 * want.abs().max()


@both
def test_bad_calls_are_told_in_one_sentence(pair):
    _, ours = pair
    ids, text = source()[0], target()
    with pytest.raises(UsageError, match="give encoder_hidden_states"):
        ours(text)
    with pytest.raises(UsageError, match="either decoder_input_ids or decoder_inputs_embeds"):
        ours(encoder_hidden_states=ours.encode(ids).last_hidden_state)
    with pytest.raises(UsageError, match="either input_ids or inputs_embeds"):
        ours.encode()


def test_texts_beyond_barts_positions(awake, saved):
    ours = Bart.from_folder(saved(oracle("bart", "base", awake)))
    with pytest.raises(TokenizerError, match="30 tokens is longer than the 29"):
        ours.encode(source(1, 30)[0])
    run(ours, source(1, 29)[0], None, target(1, 29), cache=(cache := ours.new_cache()))
    with pytest.raises(TokenizerError, match="30 tokens"):
        ours(target(1, 1), cache=cache)


def test_bad_configs():
    with pytest.raises(ConfigError, match=r'"feed_forward_proj": "swiglu-gelu"'):
        T5.shaped(T5Config.from_dict(T5_SHAPE | {"feed_forward_proj": "swiglu-gelu"}))
    with pytest.raises(ConfigError, match="relative_attention_num_buckets 2 "):
        T5.shaped(T5Config.from_dict(T5_SHAPE | {"relative_attention_num_buckets": 2}))

"""BERT equals transformers: encoder, causal decoder with a look at a context, masked words, both ways."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers

from parity.tiny import assert_equal, assert_same_state
from sightline.errors import ConfigError, TokenizerError, UsageError
from sightline.hub import read_json, read_weights, write_json, write_weights
from sightline.models.language import bart, bert, t5
from sightline.models.language.bert import Bert, BertConfig, BertLM
from sightline.models.zoo import model_class

SHAPE: dict[str, Any] = {
    "vocab_size": 61, "hidden_size": 21, "num_hidden_layers": 3, "num_attention_heads": 3, "intermediate_size": 37,
    "max_position_embeddings": 19, "type_vocab_size": 3, "pad_token_id": 0, "bos_token_id": 5,
}  # fmt: skip
DECODER = {"is_decoder": True, "add_cross_attention": True}
KINDS = [{}, {"hidden_act": "relu", "layer_norm_eps": 1e-3, "num_attention_heads": 7}]
HEADS = [DECODER, DECODER | {"tie_word_embeddings": False, "hidden_act": "gelu_new"}, {"is_decoder": True}]


def made(kind: type, options: dict[str, Any]) -> Any:
    model = kind(transformers.BertConfig(**{**SHAPE, **options}))
    model.set_attn_implementation("eager")
    return model


def texts(count: int = 3, length: int = 11, left: bool = False) -> dict[str, torch.Tensor]:
    """ids, mask, segments; rows of length, length − 4, length − 8."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, 61, (count, length), generator=generator)
    mask = torch.ones_like(ids)
    for row in range(1, count):
        mask[row, slice(0, 4 * row) if left else slice(length - 4 * row, length)] = 0
    return {
        "input_ids": ids.masked_fill(mask == 0, 0),
        "attention_mask": mask,
        "token_type_ids": torch.randint(0, 3, (count, length), generator=generator),
    }


def counted(mask: torch.Tensor) -> torch.Tensor:
    """Positions of real tokens from 0, as the reference must be told them."""
    return (mask.cumsum(-1) - 1).clamp(min=0)


def context(count: int = 3) -> dict[str, torch.Tensor]:
    """What a picture's tower gives: 13 tokens, of which the second row has 9."""
    states = torch.randn(count, 13, 21, generator=torch.Generator().manual_seed(3))
    mask = torch.ones(count, 13, dtype=torch.long)
    mask[1:2, 9:] = 0
    return {"encoder_hidden_states": states, "encoder_attention_mask": mask}


def assert_all_equal(ours: Any, theirs: Any, mask: torch.Tensor, crosses: bool = True) -> None:
    """Hidden states and both kinds of attention at the real tokens."""
    pairs = [*zip(ours.hidden_states, theirs.hidden_states, strict=True)]
    kinds = ["attentions", "cross_attentions"] if crosses else ["attentions"]
    for kind in kinds:
        mine, other = getattr(ours, kind), getattr(theirs, kind)
        pairs += [(a.transpose(1, 2), b.transpose(1, 2)) for a, b in zip(mine, other, strict=True)]
    assert len(pairs) == (10 if crosses else 7)
    for a, b in pairs:
        assert_equal(a[mask.bool()], b[mask.bool()])


@pytest.mark.parametrize("options", KINDS)
@pytest.mark.parametrize("left", [False, True])
@torch.no_grad()
def test_encoder(options, left, awake, saved):
    theirs = awake(made(transformers.BertModel, options))
    folder = saved(theirs)
    assert model_class(folder) is Bert
    ours, inputs = Bert.from_folder(folder), texts(left=left)
    asked, mask = {"output_hidden_states": True, "output_attentions": True}, inputs["attention_mask"]
    want = theirs(**inputs, position_ids=counted(mask), **asked)
    got = ours(**inputs, **asked)
    assert_all_equal(got, want, mask, crosses=False)
    if not left:  # the pooled token is the first
        assert_equal(got.pooler_output, want.pooler_output)
        plain = theirs(**inputs).last_hidden_state  # positions untold: on the right, padding moves nothing
        assert_equal(ours(**inputs).last_hidden_state[mask.bool()], plain[mask.bool()])
    told = ours(**inputs, position_ids=torch.arange(11)[None]).last_hidden_state
    assert_equal(told[mask.bool()], theirs(**inputs).last_hidden_state[mask.bool()])


@pytest.mark.parametrize("options", HEADS)
@pytest.mark.parametrize("left", [False, True])
@torch.no_grad()
def test_decoder(options, left, awake, saved):
    theirs = awake(made(transformers.BertLMHeadModel, options))
    folder = saved(theirs)
    assert model_class(folder) is BertLM
    ours, inputs = BertLM.from_folder(folder), texts(left=left)
    looks = context() if "add_cross_attention" in options else {}
    mask = inputs["attention_mask"]
    asked = {"output_hidden_states": True, "output_attentions": True}
    want = theirs(**inputs, **looks, position_ids=counted(mask), use_cache=False, **asked)
    got = ours(**inputs, **looks, **asked)
    assert_equal(got.logits[mask.bool()], want.logits[mask.bool()])
    assert_all_equal(got, want, mask, crosses=bool(looks))
    fast = ours(**inputs, **looks, last_only=True)
    assert fast.logits.shape == (3, 1, 61)
    assert (ours.hidden_size, ours.vocab_size, ours.context_length) == (21, 61, 19)
    if left:
        assert_equal(fast.logits, want.logits[:, -1:])


@pytest.mark.parametrize("kind", ["BertForMaskedLM", "BertForPreTraining"])
@torch.no_grad()
def test_masked_words(kind, awake, saved):
    theirs = awake(made(getattr(transformers, kind), {}))
    folder = saved(theirs)
    ours, inputs = model_class(folder).from_folder(folder), texts()
    out, mask = theirs(**inputs), inputs["attention_mask"].bool()
    assert_equal(ours(**inputs).logits[mask], getattr(out, "logits", getattr(out, "prediction_logits", None))[mask])
    body = Bert.from_folder(folder)  # the encoder out of a file with heads
    assert_equal(body(**inputs).last_hidden_state[mask], theirs.bert(**inputs).last_hidden_state[mask])
    assert (body.pooler is not None) == (kind == "BertForPreTraining")


@pytest.mark.parametrize("pieces", [[1] * 11, [4, 1, 6], [10, 1]])
@pytest.mark.parametrize("left", [False, True])
@torch.no_grad()
def test_cached_equals_uncached(pieces, left, awake, saved):
    ours = BertLM.from_folder(saved(awake(made(transformers.BertLMHeadModel, DECODER))))
    inputs, cache, start, got = texts(left=left), ours.new_cache(capacity=3), 0, []
    want = ours(**inputs, **context()).logits
    for piece in pieces:
        end = start + piece
        part = {name: value[:, start:end] for name, value in inputs.items()}
        got.append(ours(**part, **(context() if start == 0 else {}), cache=cache).logits)
        start = end
    real = inputs["attention_mask"].bool()
    assert_equal(torch.cat(got, 1)[real], want[real])


@torch.no_grad()
def test_beams_and_prefixes(awake, saved):
    ours = BertLM.from_folder(saved(awake(made(transformers.BertLMHeadModel, DECODER))))
    ids = texts()["input_ids"].clamp(min=3)
    want = ours(ids, **context()).logits
    cache = ours.new_cache()
    ours(ids[:, :6], **context(), cache=cache)
    spare, rows = cache.copy(), torch.tensor([1, 1, 0])
    cache.reorder(rows)
    assert_equal(ours(ids[rows, 6:], cache=cache).logits, want[rows, 6:])
    assert_equal(ours(ids[:, 6:], cache=spare).logits, want[:, 6:])


@torch.no_grad()
def test_batch_equals_single(awake, saved):
    for left in (False, True):
        ours = BertLM.from_folder(saved(awake(made(transformers.BertLMHeadModel, DECODER))))
        inputs, looks = texts(left=left), context()
        batch = ours(**inputs, **looks).logits
        for row in range(3):
            real = inputs["attention_mask"][row].bool()
            shown = looks["encoder_attention_mask"][row].bool()
            alone = ours(
                inputs["input_ids"][row : row + 1, real],
                token_type_ids=inputs["token_type_ids"][row : row + 1, real],
                encoder_hidden_states=looks["encoder_hidden_states"][row : row + 1, shown],
            )
            assert_equal(alone.logits[0], batch[row, real])


@torch.no_grad()
def test_greedy_text_equals_the_references(awake, saved):
    theirs = awake(made(transformers.BertLMHeadModel, DECODER))
    ours = BertLM.from_folder(saved(theirs))
    inputs, looks = texts(2, 6, left=True), context(2)
    inputs["token_type_ids"] = torch.zeros_like(inputs["input_ids"])
    want = theirs.generate(  # with its cache, transformers 5.23 fails for a BERT that looks at a context
        inputs["input_ids"], attention_mask=inputs["attention_mask"], **looks, do_sample=False, max_new_tokens=7,
        min_new_tokens=7, eos_token_id=60, use_cache=False,
    )  # fmt: skip
    cache, text, fresh = ours.new_cache(), inputs["input_ids"], inputs["input_ids"]
    mask: torch.Tensor | None = inputs["attention_mask"]
    for _ in range(7):
        logits = ours(fresh, mask, **looks, cache=cache, last_only=True).logits[:, -1]
        logits[:, 60] = -torch.inf
        fresh, mask = logits.argmax(-1, keepdim=True), None
        text = torch.cat([text, fresh], 1)
    assert torch.equal(text, want)


@torch.no_grad()
def test_causal_is_a_choice_of_the_call(awake, saved):
    """BLIP reads with one network both ways: matching sees everything, captioning does not."""
    folder = saved(awake(made(transformers.BertLMHeadModel, DECODER)))
    ours, inputs = BertLM.from_folder(folder), texts(1)
    later = {**inputs, "input_ids": inputs["input_ids"].clone()}
    later["input_ids"][:, -1] = 7
    first = [ours(**x, **context(1), causal=c).logits[:, 0] for c in (True, False) for x in (inputs, later)]
    assert_equal(first[0], first[1])
    assert (first[2] - first[3]).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("kind", "options"),
    [("BertModel", {}), ("BertModel", DECODER), *(("BertLMHeadModel", options) for options in HEADS)],
)
def test_both_ways(kind, options, awake, saved, tmp_path):
    theirs = awake(made(getattr(transformers, kind), options))
    folder = saved(theirs)
    ours = model_class(folder).from_folder(folder)
    back = type(theirs).from_pretrained(ours.save(tmp_path / "ours"))
    got, want = back.state_dict(), theirs.state_dict()
    if options.get("tie_word_embeddings") is False:  # untied, the reference never reads this one
        want = {**want, "cls.predictions.bias": want["cls.predictions.decoder.bias"]}
    assert_same_state(got, want)
    assert_same_state(model_class(folder).from_folder(tmp_path / "ours").state_dict(), ours.state_dict())


def test_first_checkpoints_call_a_norms_parameters_gamma_and_beta(awake, saved):
    theirs = awake(made(transformers.BertForPreTraining, {}))
    folder = saved(theirs)
    old = {
        k.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): v
        for k, v in read_weights(folder).items()
    }
    old["cls.predictions.decoder.weight"] = old["bert.embeddings.word_embeddings.weight"].clone()
    old["bert.embeddings.position_ids"] = torch.arange(19)[None]
    write_weights(folder, old)
    ours = model_class(folder).from_folder(folder)
    assert ours.head is None
    with torch.no_grad():
        assert_equal(ours(texts(1)["input_ids"]).logits, theirs(texts(1)["input_ids"]).prediction_logits)


def test_without_the_pooling_layer(awake, saved):
    theirs = awake(transformers.BertModel(transformers.BertConfig(**SHAPE), add_pooling_layer=False))
    ours = Bert.from_folder(saved(theirs))
    with torch.no_grad():
        got = ours(texts(2)["input_ids"])
    assert got.pooler_output is None
    assert_equal(got.last_hidden_state, theirs(texts(2)["input_ids"]).last_hidden_state.detach())


def test_vectors_in_place_of_ids(awake, saved):
    ours, inputs = Bert.from_folder(saved(awake(made(transformers.BertModel, {})))), texts()
    want = ours(**inputs).last_hidden_state
    vectors = ours.embed(inputs.pop("input_ids"))
    assert torch.equal(ours(inputs_embeds=vectors, **inputs).last_hidden_state, want)


@pytest.mark.parametrize("options", [DECODER, {}])
def test_gradients_reach_every_parameter(options, awake, saved):
    ours = BertLM.from_folder(saved(awake(made(transformers.BertLMHeadModel, options)))).train()
    looks = context() if options else {}
    ours(**texts(), **looks).logits.square().mean().backward()
    assert not [name for name, p in ours.named_parameters() if p.grad is None or not p.grad.any()]


def test_a_variant_without_segments():
    """BLIP's: no segment table, and a context of another width."""

    class Variant(BertConfig):
        context_size = 17

    ours = Bert(Variant(**{**SHAPE, **DECODER, "type_vocab_size": 0}, others={}))  # type: ignore[arg-type]
    assert ours.segments is None
    states = torch.randn(2, 13, 17)
    assert ours(torch.ones(2, 5, dtype=torch.long), encoder_hidden_states=states).last_hidden_state.shape == (2, 5, 21)
    with pytest.raises(UsageError, match="knows no segments"):
        ours(torch.ones(2, 5, dtype=torch.long), token_type_ids=torch.zeros(2, 5, dtype=torch.long))


def test_bad_calls_are_told_in_one_sentence(awake, saved):
    folder = saved(awake(made(transformers.BertModel, {})))
    ours = Bert.from_folder(folder)
    ids = torch.full((1, 5), 7)
    with pytest.raises(UsageError, match="has no cross-attention"):
        ours(ids, **context(1))
    with pytest.raises(UsageError, match="only a causal Bert"):
        ours(ids, cache=ours.new_cache())
    with pytest.raises(UsageError, match="either input_ids or inputs_embeds"):
        ours()
    with pytest.raises(TokenizerError, match="20 tokens is longer than the 19"):
        ours(torch.full((1, 20), 7))
    write_json(folder / "config.json", read_json(folder / "config.json") | {"position_embedding_type": "relative_key"})
    with pytest.raises(ConfigError, match='"position_embedding_type": "relative_key"'):
        Bert.from_folder(folder)


BASE = {"d_model": 768, "encoder_layers": 6, "decoder_layers": 6, "encoder_ffn_dim": 3072, "decoder_ffn_dim": 3072}
FULL = {  # values of the official config.json files where they differ from the defaults
    "google-bert/bert-base-uncased": (bert.Bert, {}),
    "facebook/bart-base": (bart.Bart, BASE | {"encoder_attention_heads": 12, "decoder_attention_heads": 12}),
    "facebook/bart-large": (bart.Bart, {}),
    "google-t5/t5-small": (t5.T5, {}),
    "google-t5/t5-base": (t5.T5, {"d_model": 768, "d_ff": 3072, "num_layers": 12, "num_heads": 12}),
    "google/flan-t5-xl": (
        t5.T5,
        {"d_model": 2048, "d_ff": 5120, "num_layers": 24, "num_heads": 32, "feed_forward_proj": "gated-gelu"}
        | {"tie_word_embeddings": False},
    ),
}


@pytest.mark.parametrize("name", FULL)
def test_full_size_networks_have_the_published_number_of_parameters(name):
    kind, options = FULL[name]
    count = sum(p.numel() for p in kind.shaped(kind.Config.from_dict(options)).parameters())
    assert (bert.VARIANTS | bart.VARIANTS | t5.VARIANTS)[name] == count

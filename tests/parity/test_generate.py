"""Greedy and beam answers equal transformers.generate, token for token; batches equal single runs."""

from __future__ import annotations

import pytest
import torch
import transformers

from sightline.errors import TokenizerError
from sightline.models.language.bart import Bart
from sightline.models.language.generate import Generation, Prefix, respond, respond_encoded, respond_stream
from sightline.models.language.llama import Llama
from sightline.models.language.t5 import T5

LLAMA = {
    "vocab_size": 61, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 97, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip


def llama(awake, saved):
    theirs = awake(transformers.LlamaForCausalLM(transformers.LlamaConfig(**LLAMA)))
    with torch.no_grad():
        theirs.lm_head.weight.mul_(3)  # sharper, so that answers differ and end
    return theirs, Llama.from_folder(saved(theirs))


@pytest.fixture
def pair(awake, saved):
    return llama(awake, saved)


def prompts(side: str) -> tuple[torch.Tensor, torch.Tensor]:
    """The same five prompts, of 11, 7, 3, 11 and 1 tokens, padded on either side."""
    words = torch.randint(3, 61, (5, 11), generator=torch.Generator().manual_seed(3))
    ids, mask = torch.zeros_like(words), torch.zeros_like(words)
    for row, length in enumerate((11, 7, 3, 11, 1)):
        place = slice(11 - length, 11) if side == "left" else slice(0, length)
        mask[row, place], ids[row, place] = 1, words[row, :length]
    return ids, mask


def theirs_say(theirs, ids, mask, **options) -> list[list[int]]:
    """The new tokens of each row, cut behind the first stop id."""
    with torch.no_grad():
        out = theirs.generate(ids, attention_mask=mask, **options)[:, ids.shape[1] :].tolist()
    stops = theirs.generation_config.eos_token_id
    return [row[: row.index(stops) + 1] if stops in row else row for row in out]


GREEDY = [
    {}, {"repetition_penalty": 1.3}, {"no_repeat_ngram_size": 2}, {"min_new_tokens": 9},
    {"num_beams": 3}, {"num_beams": 4, "length_penalty": 0.3}, {"num_beams": 2, "length_penalty": 2.0},
    {"num_beams": 3, "early_stopping": True}, {"num_beams": 3, "repetition_penalty": 1.2, "no_repeat_ngram_size": 3},
]  # fmt: skip


@pytest.mark.parametrize("options", GREEDY, ids=str)
@pytest.mark.parametrize("stop", [2, 17])
def test_tokens_are_theirs(options, stop, pair):
    theirs, ours = pair
    theirs.generation_config.eos_token_id = stop
    ids, mask = prompts("left")
    asked = {"max_new_tokens": 23, "do_sample": False, **options}
    if "repetition_penalty" in options or "no_repeat_ngram_size" in options:
        # In a batch theirs counts padding as words that were said; ours looks at real tokens only. Alone, both agree.
        alone = [row[real == 1][None] for row, real in zip(ids, mask, strict=True)]
        want = [theirs_say(theirs, row, torch.ones_like(row), **asked)[0] for row in alone]
    else:
        want = theirs_say(theirs, ids, mask, **asked)
    rules = Generation(max_new_tokens=23, stop=(stop,), loops=None, **options)
    got = respond(ours, ids, attention_mask=mask, options=rules)
    assert got.tokens == want
    assert len({tuple(row) for row in want}) > 2


@pytest.mark.parametrize("options", GREEDY, ids=str)
def test_a_batch_is_its_single_runs(options, pair):
    _, ours = pair
    rules = Generation(max_new_tokens=19, stop=(17,), loops=None, **options)
    left, right = prompts("left"), prompts("right")
    together = respond(ours, left[0], attention_mask=left[1], options=rules)
    assert respond(ours, right[0], attention_mask=right[1], options=rules).tokens == together.tokens
    for row in range(5):
        alone = respond(ours, left[0][row, left[1][row] == 1][None], options=rules)
        assert alone.tokens[0] == together.tokens[row]
        assert alone.logprobs[0] == pytest.approx(together.logprobs[row], abs=1e-4)
        assert alone.finished[0] == together.finished[row]


def test_draws_in_a_batch_are_those_of_single_runs(pair):
    _, ours = pair
    ids, mask = prompts("left")
    rules = Generation(max_new_tokens=19, temperature=0.8, top_k=20, top_p=0.9, seed=7, loops=None)
    together = respond(ours, ids, attention_mask=mask, options=rules)
    for row in range(5):
        assert respond(ours, ids[row, mask[row] == 1][None], options=rules).tokens[0] == together.tokens[row]


def test_log_probabilities_are_the_models(pair):
    """One forward over prompt and answer gives what the steps gave."""
    _, ours = pair
    ids, _ = prompts("left")
    done = respond(ours, ids[:1], options=Generation(max_new_tokens=13, temperature=1.5, loops=None))
    whole = torch.cat([ids[:1], torch.tensor(done.tokens)], dim=1)
    with torch.no_grad():
        logprobs = ours(whole).logits.log_softmax(-1)[0, 10:-1]
    want = logprobs.gather(1, torch.tensor(done.tokens[0])[:, None])[:, 0]
    assert torch.allclose(torch.tensor(done.logprobs[0]), want, atol=1e-4)


def test_embeddings_give_what_ids_give(pair):
    _, ours = pair
    ids, mask = prompts("right")
    rules = Generation(max_new_tokens=13, loops=None)
    want = respond(ours, ids, attention_mask=mask, options=rules).tokens
    with torch.no_grad():
        vectors = ours.embed(ids)
    assert respond(ours, inputs_embeds=vectors, attention_mask=mask, options=rules).tokens == want


def test_many_questions_on_one_prefix(pair):
    _, ours = pair
    ids, _ = prompts("left")
    questions = [[5, 6, 7], [8], [9, 10, 11, 12, 13]]
    rules = Generation(max_new_tokens=13, stop=(17,), loops=None, repetition_penalty=1.2)
    prefix = Prefix.read(ours, ids[:1])
    got = prefix.respond(questions, rules)
    for row, question in enumerate(questions):
        whole = torch.cat([ids[:1], torch.tensor([question])], dim=1)
        want = respond(ours, whole, options=rules)
        assert got.tokens[row] == want.tokens[0]
        assert prefix.extend(torch.tensor([question])).respond(options=rules).tokens == want.tokens
    with torch.no_grad():
        vectors = [ours.embed(torch.tensor(q)[None])[0] for q in questions]
    plain = Generation(max_new_tokens=13, stop=(17,), loops=None)
    assert prefix.respond(vectors, plain).tokens == prefix.respond(questions, plain).tokens
    assert prefix.respond(questions, rules).tokens == got.tokens  # the prefix is as it was


def test_choices_are_scored_as_a_forward_scores_them(pair):
    _, ours = pair
    ids, _ = prompts("left")
    choices = [[5], [6, 7, 8], [9, 10]]
    got = Prefix.read(ours, ids[:1]).score(choices)
    for choice, scores in zip(choices, got, strict=True):
        whole = torch.cat([ids[:1], torch.tensor([choice])], dim=1)
        with torch.no_grad():
            logprobs = ours(whole).logits.log_softmax(-1)[0, 10:-1]
        want = logprobs.gather(1, torch.tensor(choice)[:, None])[:, 0]
        assert scores == pytest.approx(want.tolist(), abs=1e-4)


def test_the_context_is_the_end(pair):
    _, ours = pair
    ids = torch.randint(3, 61, (1, 90), generator=torch.Generator().manual_seed(4))
    done = respond(ours, ids, options=Generation(max_new_tokens=50, loops=None))
    assert len(done.tokens[0]) == 8 and done.finished == ["length"]  # 97 read, and one more said
    assert len(respond(ours, torch.cat([ids, ids[:, :7]], 1), options=Generation()).tokens[0]) == 1
    with pytest.raises(TokenizerError, match="98 tokens, but this model reads 97"):
        respond(ours, torch.cat([ids, ids[:, :8]], 1))


def test_streams_return_what_respond_returns(pair):
    _, ours = pair
    ids, mask = prompts("left")
    pieces = respond_stream(ours, ids, attention_mask=mask, options=Generation(max_new_tokens=11))
    got: dict[int, list[int]] = {}
    for piece in pieces:
        got.setdefault(piece.row, []).extend(piece.tokens)
    want = respond(ours, ids, attention_mask=mask, options=Generation(max_new_tokens=11))
    assert [got[row] for row in range(5)] == want.tokens


# ---- encoder–decoders


def encoder_decoder(name: str, awake, saved):
    if name == "t5":
        config = transformers.T5Config(
            vocab_size=61, d_model=24, d_kv=8, d_ff=40, num_layers=2, num_heads=3, decoder_start_token_id=0
        )
        theirs = awake(transformers.T5ForConditionalGeneration(config))
    else:
        config = transformers.BartConfig(
            vocab_size=61, d_model=24, encoder_layers=2, decoder_layers=2, encoder_attention_heads=3,
            decoder_attention_heads=3, encoder_ffn_dim=40, decoder_ffn_dim=37, max_position_embeddings=97,
            decoder_start_token_id=2, forced_eos_token_id=None,
        )  # fmt: skip
        theirs = awake(transformers.BartForConditionalGeneration(config))
    with torch.no_grad():  # louder, so that answers depend on what was read and on what was said
        for part, value in theirs.named_parameters():
            looks = "EncDecAttention" in part or ("encoder_attn." in part and part.endswith("weight"))
            if looks or "embed_positions" in part:  # positions: BART's head is its word table, so it tends to repeat
                value.mul_(6)
            elif "decoder" in part and part.endswith("bias"):
                value.zero_().add_(0.01)
    return theirs, {"t5": T5, "bart": Bart}[name].from_folder(saved(theirs))


@pytest.mark.parametrize("options", GREEDY, ids=str)
@pytest.mark.parametrize("name", ["t5", "bart"])
def test_encoder_decoders_say_what_theirs_say(name, options, awake, saved):
    theirs, ours = encoder_decoder(name, awake, saved)
    ids, mask = prompts("right")
    theirs.generation_config.eos_token_id = 17
    theirs.generation_config.forced_bos_token_id = None
    first = theirs.config.decoder_start_token_id
    with torch.no_grad():
        said = theirs.generate(ids, attention_mask=mask, max_new_tokens=19, do_sample=False, **options)[:, 1:].tolist()
        states = ours.encode(ids, attention_mask=mask).last_hidden_state
    want = [row[: row.index(17) + 1] if 17 in row else row for row in said]
    rules = Generation(max_new_tokens=19, stop=(17,), loops=None, **options)
    start = torch.full((5, 1), first)
    got = respond_encoded(ours, states, mask, start=start, options=rules)
    assert got.tokens == want
    assert len({tuple(row) for row in want}) > 2
    for row in range(5):
        real = int(mask[row].sum())
        alone = respond_encoded(ours, states[row : row + 1, :real], start=start[:1], options=rules)
        assert alone.tokens[0] == want[row]

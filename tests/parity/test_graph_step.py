"""Writing by OpenVINO: in float32 the tokens are those that torch writes, with padding, beams, prefixes and pictures' shift."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
import torch
import transformers

from sightline.errors import RuntimeChoiceError
from sightline.models.language.generate import Generation, Prefix, respond
from sightline.models.language.generate.graph_step import write_by_openvino
from sightline.models.language.generate.steps import step_of
from sightline.models.zoo import load

pytestmark = pytest.mark.skipif(
    find_spec("openvino") is None, reason='openvino is not installed; pip install "sightline[fast]"'
)
SIZES = {
    "vocab_size": 61, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 3, "num_attention_heads": 4,
    "max_position_embeddings": 97, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
FAMILIES = {
    "llama, shared keys": lambda: transformers.LlamaConfig(**SIZES, num_key_value_heads=2),
    "qwen2, tied": lambda: transformers.Qwen2Config(**SIZES, num_key_value_heads=1, tie_word_embeddings=True),
    "phi, partly turned": lambda: transformers.PhiConfig(**SIZES, partial_rotary_factor=0.67),
    "gemma, wide heads": lambda: transformers.GemmaConfig(**SIZES, num_key_value_heads=2, head_dim=10),
    "opt, learned places": lambda: transformers.OPTConfig(
        **{k: v for k, v in SIZES.items() if k != "intermediate_size"}, ffn_dim=40, word_embed_proj_dim=24
    ),
}  # fmt: skip


def model_of(config, awake, saved):
    theirs = awake(transformers.AutoModelForCausalLM.from_config(config))
    with torch.no_grad():
        theirs.get_output_embeddings().weight.mul_(3)  # sharper, so that answers differ
    return saved(theirs)


@pytest.mark.parametrize("family", FAMILIES)
def test_it_writes_what_torch_writes(family, awake, saved):
    folder = model_of(FAMILIES[family](), awake, saved)
    plain, ours = load(folder, dtype="float32"), write_by_openvino(load(folder, dtype="float32"), int8=False)
    words = torch.randint(3, 61, (3, 9), generator=torch.Generator().manual_seed(3))
    mask = torch.ones_like(words)
    mask[1, :4] = mask[2, :8] = 0
    for options in (Generation(max_new_tokens=13, loops=None), Generation(max_new_tokens=11, num_beams=3, loops=None)):
        want, got = (respond(m, words * mask, attention_mask=mask, options=options) for m in (plain, ours))
        assert got.tokens == want.tokens
        assert torch.allclose(torch.tensor(got.scores), torch.tensor(want.scores), atol=1e-4)
    prefixes = [Prefix.read(m, words[:1]) for m in (plain, ours)]
    asked = [[5, 6, 7], [8]]
    first, second = (prefix.respond(asked, Generation(max_new_tokens=9, loops=None)).tokens for prefix in prefixes)
    assert first == second
    again = prefixes[1].respond(asked, Generation(max_new_tokens=9, loops=None)).tokens
    assert again == first  # the prefix was not written to


def test_positions_that_are_ahead_stay_ahead(awake, saved):
    folder = model_of(FAMILIES["llama, shared keys"](), awake, saved)
    plain, ours = load(folder, dtype="float32"), write_by_openvino(load(folder, dtype="float32"), int8=False)
    words = torch.randint(3, 61, (2, 6), generator=torch.Generator().manual_seed(4))
    places = torch.tensor([[0, 1, 2, 3, 4, 9], [0, 1, 2, 5, 5, 6]])
    logits = []
    with torch.inference_mode():
        for model in (plain, ours):
            cache = model.new_cache()
            model(words, position_ids=places, cache=cache)
            step = step_of(model, cache)
            logits.append([step.step(words[:, :1]), step.step(words[:, 1:3])])
            step.reorder(torch.tensor([1]))
            logits[-1].append(step.step(words[1:, :1]))
    for want, got in zip(*logits, strict=True):
        assert (got - want).abs().max() < 1e-5 * want.abs().max()


def test_eight_bits_are_close(awake, saved):
    folder = model_of(FAMILIES["llama, shared keys"](), awake, saved)
    plain, ours = load(folder, dtype="float32"), write_by_openvino(load(folder, dtype="bfloat16"))
    words = torch.randint(3, 61, (1, 9), generator=torch.Generator().manual_seed(3))
    logits = []
    with torch.inference_mode():
        for model in (plain, ours):
            cache = model.new_cache()
            model(words, cache=cache)
            logits.append(step_of(model, cache).step(words[:, :1]).float())
    assert torch.nn.functional.cosine_similarity(*logits).item() > 0.995


def test_what_it_cannot_write_with_is_said(awake, saved):
    folder = model_of(transformers.MistralConfig(**SIZES, num_key_value_heads=2, sliding_window=4), awake, saved)
    with pytest.raises(RuntimeChoiceError, match="cannot write with this decoder: its layers see only a window"):
        write_by_openvino(load(folder, dtype="float32"))

"""Kosmos-2 equals transformers, both ways: features, logits, greedy text; padding, several pictures, odd widths."""

from __future__ import annotations

import json

import pytest
import torch
import transformers
from safetensors.torch import load_file

from parity.tiny import CLIP_VISION, assert_equal, assert_same_state, pictures
from sightline.errors import ConfigError, UsageError
from sightline.models.language.generate import Generation, respond
from sightline.models.language.kosmos_text import KosmosTextConfig, Sinusoids
from sightline.models.vlm.kosmos2 import VARIANTS, Kosmos2, Kosmos2Config
from sightline.models.zoo import model_class

SLOTS = 5
TEXT = {
    "vocab_size": 67, "embed_dim": 24, "layers": 3, "ffn_dim": 37, "attention_heads": 3, "max_position_embeddings": 97,
    "dropout": 0.0, "attention_dropout": 0.0,
}  # fmt: skip
VISION = {k: v for k, v in CLIP_VISION.items() if k != "projection_dim"}
CASES = {  # name → what differs in the text, what differs in the whole
    "plain": ({}, {}),
    "odd-width": ({"embed_dim": 21, "activation_function": "relu"}, {}),
    "unscaled": ({"scale_embedding": False, "layer_norm_eps": 1e-3, "pad_token_id": 4}, {}),
    "untied": ({"tie_word_embeddings": False}, {"tie_word_embeddings": False}),
}


def reference(awake, text=None, **whole):
    config = transformers.Kosmos2Config(
        text_config={**TEXT, **(text or {})}, vision_config=VISION, latent_query_num=SLOTS, **whole
    )
    config._attn_implementation = "eager"
    model = awake(transformers.Kosmos2ForConditionalGeneration(config))
    for part in model.modules():
        if hasattr(part, "make_weights"):  # a formula that `awake` took for weights
            part.make_weights(part.num_positions + part.offset, part.embedding_dim, part.padding_idx)
    return model


def opened(folder):
    return model_class(folder).from_folder(folder)


def batch(words=(11, 4, 7), side="left", pad=1, named=(1, 1, 1), seed=0):
    """ids, mask, places: a start, `named` pictures of SLOTS slots between two tags, and so many words; padded."""
    generator = torch.Generator().manual_seed(seed)
    rows, places = [], []
    for count, have in zip(words, named, strict=True):
        row, place = [0], [0]
        for _ in range(have):
            row += [60, *range(5, 5 + SLOTS), 61]
            place += [0] + [1] * SLOTS + [0]
        text = torch.randint(12, 60, (count,), generator=generator).tolist()
        rows.append(row + text)
        places.append(place + [0] * count)
    longest = max(map(len, rows))

    def padded(values, fill):
        return torch.tensor(
            [[fill] * (longest - len(v)) + v if side == "left" else v + [fill] * (longest - len(v)) for v in values]
        )

    return padded(rows, pad), padded([[1] * len(r) for r in rows], 0), padded(places, 0)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("case", CASES)
def test_it_equals_the_reference(case, side, awake, saved):
    text, whole = CASES[case]
    theirs = reference(awake, text, **whole)
    ours = opened(saved(theirs))
    ids, mask, places = batch(side=side, pad=text.get("pad_token_id", 1))
    pixels = pictures(3, 35, 35)
    with torch.no_grad():
        want = theirs(
            pixel_values=pixels, input_ids=ids, attention_mask=mask, image_embeds_position_mask=places,
            output_hidden_states=True, output_attentions=True,
        )  # fmt: skip
        got = ours(ids, pixels, places, mask, output_hidden_states=True, output_attentions=True)
        feats = ours.image_features(pixels)
    real = mask.bool()
    assert_equal(got.image_embeds, want.image_embeds)
    assert torch.equal(got.image_embeds, feats) or (got.image_embeds - feats).abs().max() < 1e-5
    assert_equal(got.projection_attentions, want.projection_attentions)
    assert got.projection_attentions.shape == (3, 3, SLOTS, 26 + SLOTS)
    assert_equal(got.vision_model_output.last_hidden_state, want.vision_model_output.last_hidden_state)
    assert_equal(got.logits[real], want.logits[real])
    # transformers 5.23 records the first state under hidden_states[0]; the list ends with the normed one, as ours
    assert len(got.hidden_states) == len(want.hidden_states) == 4
    for a, b in zip(got.hidden_states, want.hidden_states, strict=True):
        assert_equal(a[real], b[real])
    for a, b in zip(got.attentions, want.attentions, strict=True):
        assert_equal(a.transpose(1, 2)[real], b.transpose(1, 2)[real])


def test_saving_gives_the_reference_its_file_back(awake, saved, tmp_path):
    theirs = reference(awake)
    folder = saved(theirs)
    ours = opened(folder)
    out = ours.save(tmp_path / "ours")
    assert_same_state(load_file(out / "model.safetensors"), load_file(folder / "model.safetensors"))
    back = transformers.Kosmos2ForConditionalGeneration.from_pretrained(out)
    assert_same_state(back.state_dict(), theirs.state_dict())
    assert isinstance(ours, Kosmos2)
    config = json.loads((out / "config.json").read_text())
    assert config["text_config"]["embed_dim"] == 24 and "hidden_size" not in config["text_config"]
    assert back.config.text_config.layers == 3 and back.config.latent_query_num == SLOTS


def test_names_are_strict(awake, saved):
    from safetensors.torch import save_file

    folder = saved(reference(awake))
    tensors = load_file(folder / "model.safetensors")
    lost = tensors.pop("text_model.model.layers.1.ffn.ffn_layernorm.weight")
    save_file({**tensors, "text_model.stray": lost.clone()}, folder / "model.safetensors")
    with pytest.raises(Exception, match=r"stray.*lacks 1.*ffn_layernorm"):
        opened(folder)


@pytest.mark.parametrize("named", [(2, 1, 0), (0, 3, 1)])
def test_any_number_of_pictures_in_a_text(named, awake, saved):
    theirs = reference(awake)
    ours = opened(saved(theirs))
    ids, mask, places = batch(named=named)
    pixels = pictures(sum(named), 35, 35)
    with torch.no_grad():
        want = theirs(pixel_values=pixels, input_ids=ids, attention_mask=mask, image_embeds_position_mask=places)
        got = ours(ids, pixels, places, mask)
    assert_equal(got.logits[mask.bool()], want.logits[mask.bool()])


def test_greedy_text_is_identical(awake, saved):
    """Ours as a batch, theirs row by row: with a cache the reference counts padding into positions."""
    theirs = reference(awake, {"tie_word_embeddings": False}, tie_word_embeddings=False)
    with torch.no_grad():  # livelier: else every text is one word repeated
        for name, value in theirs.text_model.named_parameters():
            if value.ndim == 2:
                value.mul_(6)
            elif name == "model.layer_norm.bias":
                value.zero_()
    ours = opened(saved(theirs))
    ids, mask, places = batch()
    pixels = pictures(3, 35, 35)
    with torch.no_grad():
        vectors, real = ours.embed(
            {"input_ids": ids, "attention_mask": mask, "image_embeds_position_mask": places, "pixel_values": pixels}
        )
        together = respond(
            ours.language, inputs_embeds=vectors, attention_mask=real,
            options=Generation(max_new_tokens=9, stop=(2,), loops=None),
        ).tokens  # fmt: skip
        for row, tokens in enumerate(together):
            keep = mask[row].bool()
            alone = {
                "input_ids": ids[row : row + 1, keep],
                "attention_mask": mask[row : row + 1, keep],
                "image_embeds_position_mask": places[row : row + 1, keep],
                "pixel_values": pixels[row : row + 1],
            }
            want = theirs.generate(**alone, max_new_tokens=9, do_sample=False, eos_token_id=2)[0, keep.sum() :]
            assert tokens == want.tolist()
        assert len({tuple(tokens) for tokens in together}) == 3 and len(set(together[0])) > 3


def test_cached_equals_uncached_and_a_batch_equals_its_rows(awake, saved):
    ours = opened(saved(reference(awake)))
    ids, mask, places = batch()
    pixels = pictures(3, 35, 35)
    with torch.no_grad():
        whole = ours(ids, pixels, places, mask).logits
        cache = ours.language.new_cache()
        first = ids.shape[1] - 3
        parts = [ours(ids[:, :first], pixels, places[:, :first], mask[:, :first], cache=cache).logits]
        parts += [
            ours(ids[:, i : i + 1], attention_mask=mask[:, : i + 1], cache=cache).logits
            for i in range(first, first + 3)
        ]
        assert_equal(torch.cat(parts, dim=1)[mask.bool()], whole[mask.bool()])
        for row in range(3):
            keep = mask[row].bool()
            alone = ours(ids[row : row + 1, keep], pixels[row : row + 1], places[row : row + 1, keep]).logits
            assert_equal(alone[0], whole[row, keep])


def test_full_size_without_weights():
    name = "microsoft/kosmos-2-patch14-224"
    ours = Kosmos2.shaped(Kosmos2Config())
    with torch.device("meta"):
        theirs = transformers.Kosmos2ForConditionalGeneration(transformers.Kosmos2Config())
    assert sum(p.numel() for p in ours.parameters()) == VARIANTS[name] == sum(p.numel() for p in theirs.parameters())
    shapes = {k: tuple(v.shape) for k, v in theirs.state_dict().items() if k != "text_model.lm_head.weight"}
    assert {k: tuple(v.shape) for k, v in ours.official_state().items()} == shapes


def test_sinusoids_by_hand():
    """Width 4: frequencies 1 and 1/10,000. Width 5 ends with 0."""
    got = Sinusoids(5)(torch.tensor([[0, 3]]))
    want = [[0, 0, 1, 1, 0], [0.14112001, 0.0003, -0.9899925, 1.0, 0]]
    assert torch.allclose(got[0], torch.tensor(want), atol=1e-6)


def test_bad_configs_and_inputs(awake, saved):
    with pytest.raises(ConfigError, match="add_cross_attention"):
        KosmosTextConfig.from_dict({"add_cross_attention": True})
    with pytest.raises(ConfigError, match="width of 4"):
        KosmosTextConfig.from_dict({"embed_dim": 3, "attention_heads": 1})
    assert Kosmos2Config.from_dict({"text_config": None}).text_config.hidden_size == 2048
    ours = opened(saved(reference(awake)))
    ids, mask, places = batch()
    with pytest.raises(UsageError, match="image_embeds_position_mask"):
        ours(ids, pictures(3, 35, 35), None, mask)
    with pytest.raises(UsageError, match="give as many"):
        ours(ids, pictures(2, 35, 35), places, mask)
    with pytest.raises(UsageError, match="not both"):
        ours(ids, pictures(3, 35, 35), places, mask, image_embeds=torch.zeros(3, SLOTS, 24))
    with pytest.raises(UsageError, match="no processor"):
        ours.locate(torch.zeros(5, 7, 3, dtype=torch.uint8).numpy(), ["a mug"])

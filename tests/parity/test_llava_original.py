"""LLaVA in its authors' own layout: the tower elsewhere or inside, their prompt, their ids; and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file

from models.test_sentencepiece import trained
from parity.test_llava import CLIP, IMAGE, SIGLIP, TEXT
from parity.tiny import CLIP_TEXT, SIGLIP_TEXT, assert_equal, pictures
from sightline.app.verbs.cost import cost
from sightline.errors import ConfigError, WeightsError
from sightline.media import Picture
from sightline.models.language.chat import ChatTemplate
from sightline.models.vlm.llava import Llava
from sightline.models.vlm.vicuna import VICUNA
from sightline.models.zoo import load

WORDS = 61  # of the language model; a multiple of 64 with <image>


def original(awake, saved, tmp_path: Path, *, tower=CLIP, inside=False, linear=False, words=WORDS, **changes):
    """(their model in transformers, the folder as the authors would have saved it, the tower's folder)."""
    config = transformers.LlavaConfig(
        vision_config=tower, text_config=transformers.LlamaConfig(**{**TEXT, "vocab_size": words}),
        image_token_index=IMAGE, vision_feature_select_strategy="default" if tower is CLIP else "full",
    )  # fmt: skip
    config._attn_implementation = "eager"
    theirs = awake(transformers.LlavaForConditionalGeneration(config))
    tensors = load_file(saved(theirs) / "model.safetensors")
    mine = {}
    for name, tensor in tensors.items():
        if name.startswith("vision_tower."):
            name = name.replace("vision_tower.", "model.vision_tower.vision_tower.vision_model.")
            if not inside:
                continue
        name = name.removeprefix("language_model.")
        for old, new in (("linear_1.", "" if linear else "0."), ("linear_2.", "2.")):
            name = name.replace(f"multi_modal_projector.{old}", f"model.mm_projector.{new}")
        mine[name] = tensor
    if linear:
        mine = {k: v for k, v in mine.items() if "mm_projector.2" not in k}
    folder = tmp_path / "llava-v1.5"
    folder.mkdir()
    save_file(mine, folder / "model.safetensors", metadata={"format": "pt"})
    outside = tmp_path / "tower"
    if tower is CLIP:
        whole = transformers.CLIPModel(transformers.CLIPConfig(vision_config=tower, text_config=CLIP_TEXT))
    else:
        whole = transformers.SiglipModel(transformers.SiglipConfig(vision_config=tower, text_config=SIGLIP_TEXT))
    whole.vision_model.load_state_dict(theirs.model.vision_tower.state_dict())
    whole.save_pretrained(outside)
    looks = transformers.CLIPImageProcessorPil(size={"shortest_edge": 35}, crop_size={"height": 35, "width": 35})
    looks.save_pretrained(outside)
    numbers = {k: v for k, v in TEXT.items() if k != "vocab_size"}
    record = {
        "architectures": ["LlavaLlamaForCausalLM"], "model_type": "llava", **numbers, "vocab_size": words,
        "hidden_act": "silu", "rms_norm_eps": 1e-6, "num_key_value_heads": 6, "rope_scaling": None, "torch_dtype": "float16",
        "mm_vision_tower": str(outside), "mm_hidden_size": tower["hidden_size"], "image_aspect_ratio": "pad",
        "mm_projector_type": "linear" if linear else "mlp2x_gelu", "mm_vision_select_layer": -2,
        "mm_vision_select_feature": "patch", "mm_use_im_start_end": False, "mm_resampler_type": None,
        "pretraining_tp": 1, "tie_word_embeddings": False, **changes,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(record))
    return theirs, folder, outside


def inputs():
    ids = torch.tensor([[1, 7, 9, *[IMAGE] * 25, 11, 13], [1, *[IMAGE] * 25, 5, 6, 8, 3]])
    return {"input_ids": ids, "pixel_values": pictures(2, 35, 35)}


def renumbered(given, model):
    """Our id for a picture; theirs is one of the vocabulary here, which their own code has not."""
    ids = given["input_ids"]
    return {**given, "input_ids": torch.where(ids == IMAGE, model.config.image_token_index, ids)}


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("tower", [CLIP, SIGLIP], ids=["clip", "siglip"])
def test_logits(tower, inside, awake, saved, tmp_path):
    theirs, folder, outside = original(awake, saved, tmp_path, tower=tower, inside=inside)
    if inside:  # the tower that was trained counts, not the one it came from
        tensors = load_file(outside / "model.safetensors")
        save_file({k: v + 1 for k, v in tensors.items()}, outside / "model.safetensors", metadata={"format": "pt"})
    ours = load(folder, device="cpu", dtype="float32")
    assert isinstance(ours, Llava) and ours.config.image_token_index == WORDS
    assert ours.language.vocab_size == 64
    with torch.no_grad():
        want = theirs(**inputs())
        got = ours(**renumbered(inputs(), ours))
    assert_equal(got.image_hidden_states, want.image_hidden_states)
    assert_equal(got.logits[..., :WORDS], want.logits)
    assert cost(folder).parameters == sum(p.numel() for p in ours.parameters())
    assert [p.parent for p in ours.weight_files()] == [folder, outside]


def test_saved_it_is_the_official_format(awake, saved, tmp_path):
    theirs, folder, _ = original(awake, saved, tmp_path, model_type="llava_llama", architectures=None)
    ours = load(folder, device="cpu", dtype="float32")
    back = transformers.LlavaForConditionalGeneration.from_pretrained(ours.save(tmp_path / "ours"))
    given = renumbered(inputs(), ours)
    with torch.no_grad():
        assert_equal(back(**given).logits, ours(**given).logits)
        assert_equal(back(**given).logits[..., :WORDS], theirs(**inputs()).logits)
    assert type(load(tmp_path / "ours", device="cpu")) is Llava


def test_one_matrix(awake, saved, tmp_path):
    """Version 1: mm_projector has no number; its features are the first matrix of the reference's bridge alone."""
    theirs, folder, _ = original(awake, saved, tmp_path, linear=True)
    ours = load(folder, device="cpu", dtype="float32")
    pixels = pictures(2, 35, 35)
    with torch.no_grad():
        states = theirs.model.vision_tower(pixels, output_hidden_states=True).hidden_states[-2][:, 1:]
        assert_equal(ours.image_features(pixels), theirs.model.multi_modal_projector.linear_1(states))


def test_prompt_ids_and_squares(awake, saved, tmp_path):
    """Their code cuts the prompt at <image> and gives each piece to SentencePiece, which puts a ▁ before it."""
    raw = trained(
        model_type="bpe", byte_fallback=True, vocab_size=420, normalization_rule_name="identity",
        remove_extra_whitespaces=False,
    )  # fmt: skip
    pieces = sentencepiece.SentencePieceProcessor(model_proto=raw)
    _, folder, _ = original(awake, saved, tmp_path, words=pieces.get_piece_size(), max_position_embeddings=1000)
    (folder / "tokenizer.model").write_bytes(raw)
    tokens = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "add_bos_token": True}
    for legacy in (False, True):
        record = {"tokenizer_class": "LlamaTokenizer", "legacy": legacy, **tokens}
        (folder / "tokenizer_config.json").write_text(json.dumps(record))
        ours = load(folder, device="cpu", dtype="float32")
        noise = np.random.default_rng(3).integers(0, 256, (53, 41, 3), dtype=np.uint8)
        ask = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what is this?"}]}]
        got = ours.processor.chat([ask], [Picture.from_array(noise, "noise")])
        head, tail = pieces.encode(f"{VICUNA}USER: "), pieces.encode("\nwhat is this? ASSISTANT:")
        number = ours.config.image_token_index
        assert number == pieces.get_piece_size()
        assert got["input_ids"].tolist() == [[1, *head, *[number] * 25, *tail]]
        with torch.no_grad():
            ours(**got)
    assert ours.processor.describe()["built_in_template"] == "vicuna_v1"
    look = transformers.LlavaImageProcessorPil(
        size={"shortest_edge": 35}, crop_size={"height": 35, "width": 35}, do_pad=True
    )
    assert torch.equal(got["pixel_values"], look(Image.fromarray(noise), return_tensors="pt")["pixel_values"])


def test_a_tower_inside_the_folder(awake, saved, tmp_path):
    _, folder, outside = original(awake, saved, tmp_path, mm_vision_tower="tower")
    with pytest.raises(
        WeightsError, match=r'keeps its vision tower elsewhere .*"tower".*, and it cannot be had: tower is no'
    ):
        load(folder, device="cpu")
    shutil.copytree(outside, folder / "tower")
    load(folder, device="cpu")


def test_what_is_refused(awake, saved, tmp_path):
    _, folder, outside = original(awake, saved, tmp_path)
    record = json.loads((folder / "config.json").read_text())
    for change, error, message in (
        ({"mm_vision_tower": "nobody/no-tower"}, WeightsError, "nobody/no-tower is not in the local cache"),
        ({"mm_vision_tower": None}, ConfigError, 'names no vision tower; it needs "mm_vision_tower"'),
        ({"mm_hidden_size": 29}, ConfigError, "has the width 28; name the tower that it was trained with"),
        ({"image_aspect_ratio": "anyres"}, ConfigError, r"'anyres' \(LLaVA-NeXT\), which is not built here"),
        ({"mm_use_im_start_end": True}, ConfigError, '"mm_use_im_start_end": True, which is not built here'),
        ({"mm_projector_type": "identity"}, ConfigError, "'identity'; expected linear or mlp2x_gelu"),
        ({"mm_projector_type": "linear"}, WeightsError, "mm_projector|multi_modal_projector.linear_2"),
        ({"mm_vision_select_layer": 9}, ConfigError, "a tower of 3 layers has the layers -4 to 3"),
        ({"model_type": "llava_mpt"}, ConfigError, 'of model_type "llava_mpt", which Sightline does not know'),
    ):  # fmt: skip
        (folder / "config.json").write_text(json.dumps({**record, **change}))
        with pytest.raises(error, match=message):
            load(folder, device="cpu")
    (folder / "config.json").write_text(json.dumps(record))
    (outside / "preprocessor_config.json").unlink()
    with pytest.raises(ConfigError, match=r"has no preprocessor_config.json of CLIP or SigLIP"):
        load(folder, device="cpu")


def test_the_built_in_prompt_reads_plain_texts_too():
    from sightline.models.vlm.vicuna import LISTS, llava_template

    plain = llava_template()
    template = ChatTemplate(LISTS + plain.source, plain.tokens)
    said = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "what?"},
            {"role": "assistant", "content": "a mug"}, {"role": "user", "content": [{"type": "text", "text": "and?"}]}]  # fmt: skip
    assert template.render(said, add_generation_prompt=True) == (
        "Be brief. USER: what? ASSISTANT: a mug</s>USER: and? ASSISTANT:"
    )
    whole = template.spans(said[:3])
    assert [whole.text[a:b] for a, b in whole.spans] == [" a mug</s>"] and whole.found == "markers"

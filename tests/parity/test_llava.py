"""LLaVA equals transformers, both ways: features, logits, greedy text; towers, layers, strategies, decoders, bridges."""

from __future__ import annotations

import json

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from parity.tiny import CLIP_VISION, SIGLIP_VISION, assert_equal, assert_same_state, pictures
from sightline.models.bridges import BridgeConfig
from sightline.models.language.generate import Generation, Prefix, respond
from sightline.models.vlm.llava import VARIANTS as VARIANTS_OF_LLAVA
from sightline.models.vlm.llava import Llava, LlavaConfig
from sightline.models.vlm.parts import DECODERS, TOWERS
from sightline.models.zoo import ZOO, model_class

IMAGE = 59  # the placeholder's id
TEXT = {
    "vocab_size": 67, "hidden_size": 24, "intermediate_size": 37, "num_hidden_layers": 2, "num_attention_heads": 6,
    "max_position_embeddings": 211, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
CLIP = {"model_type": "clip_vision_model", **CLIP_VISION}  # 35 px in patches of 7: 25 tokens and [CLS]
SIGLIP = {"model_type": "siglip_vision_model", **SIGLIP_VISION}  # 25 tokens
BARE = {**SIGLIP, "vision_use_head": False}
# fmt: off
VARIANTS = {  # name → tower, decoder, what differs in the decoder, what differs in the whole
    "1.5": (CLIP, "Llama", {}, {}),
    "last-layer": (CLIP, "Llama", {"num_key_value_heads": 2}, {"vision_feature_layer": -1}),
    "full": (CLIP, "Mistral", {"num_key_value_heads": 3, "sliding_window": 19}, {"vision_feature_select_strategy": "full"}),
    "layers": (CLIP, "Llama", {}, {"vision_feature_layer": [-1, 1, -3], "multimodal_projector_bias": False}),
    "embeddings": (CLIP, "Llama", {}, {"vision_feature_layer": [0, -1]}),
    "tiny": (BARE, "Phi", {}, {"vision_feature_select_strategy": "full"}),
    "tiny-qwen": (SIGLIP, "Qwen2", {"num_key_value_heads": 2, "tie_word_embeddings": True},
                  {"vision_feature_select_strategy": "full", "vision_feature_layer": -1}),
    "siglip-default": (SIGLIP, "Gemma", {"num_key_value_heads": 1, "head_dim": 10}, {"projector_hidden_act": "quick_gelu"}),
    "gemma2": (SIGLIP, "Gemma2", {"num_key_value_heads": 2, "head_dim": 10, "sliding_window": 23},
               {"vision_feature_select_strategy": "full"}),
    "opt": (CLIP, "OPT", {"ffn_dim": 37, "tie_word_embeddings": False}, {"vision_feature_layer": 2}),
}
# fmt: on


def reference(name, awake, **changes):
    tower, family, text, whole = VARIANTS[name]
    config = transformers.LlavaConfig(
        vision_config=tower,
        text_config=getattr(transformers, f"{family}Config")(**{**TEXT, **text}),
        image_token_index=IMAGE,
        **{**whole, **changes},
    )
    config._attn_implementation = "eager"
    model = awake(transformers.LlavaForConditionalGeneration(config))
    for part in model.modules():
        if hasattr(part, "scalar_embed_scale"):  # Gemma's √hidden is a buffer there, which files do not hold
            part.embed_scale.fill_(part.scalar_embed_scale)
    return model


def opened(folder):
    return model_class(folder).from_folder(folder)


def visual(model):
    return model.tokens_per_picture(35, 35)


def batch(count, named=(1, 2, 0, 1), seed=0):
    """ids, mask, pixels: row i names named[i] pictures amid 7, 3, 12 and 2 words, padded on the left."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for have, words in zip(named, (7, 3, 12, 2), strict=False):
        row = torch.randint(3, 50, (words,), generator=generator).tolist()
        for number in range(have):  # before, amid and behind the text, two side by side
            place = (number * 2) % (len(row) + 1) if number else min(4, len(row) - 1)
            row[place:place] = [IMAGE] * count
        rows.append(row)
    longest = max(map(len, rows))
    ids = torch.tensor([[0] * (longest - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
    return {"input_ids": ids, "attention_mask": mask, "pixel_values": pictures(sum(named), 35, 35)}


@pytest.mark.parametrize("name", VARIANTS)
def test_everything_it_returns(name, awake, saved):
    theirs = reference(name, awake)
    ours = opened(saved(theirs))
    inputs = batch(visual(ours))
    mask = inputs["attention_mask"]
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    asked = {"output_hidden_states": True, "output_attentions": True}
    with torch.no_grad():
        want = theirs(**inputs, position_ids=positions, **asked)
        got = ours(**inputs, **asked)
        features = ours.image_features(inputs["pixel_values"])
        again = ours(inputs["input_ids"], attention_mask=mask, image_features=features)
        official = theirs.get_image_features(inputs["pixel_values"]).pooler_output
    real = mask.bool()
    assert_equal(features, torch.stack(list(official)))
    assert_equal(got.image_hidden_states, want.image_hidden_states)
    assert_equal(got.logits[real], want.logits[real])
    assert torch.equal(again.logits, ours(**inputs).logits)
    for x, y in zip(got.hidden_states, want.hidden_states, strict=True):
        assert_equal(x[real], y[real])
    for x, y in zip(got.attentions, want.attentions, strict=True):
        assert_equal(x.transpose(1, 2)[real], y.transpose(1, 2)[real])


@pytest.mark.parametrize("name", VARIANTS)
def test_greedy_text(name, awake, saved):
    """Rows of unequal length, together, alone, and behind a shared prefix: the same tokens as transformers."""
    theirs = reference(name, awake)
    ours = opened(saved(theirs))
    inputs = batch(visual(ours))
    with torch.no_grad():
        want = theirs.generate(**inputs, max_new_tokens=9, do_sample=False, eos_token_id=None, pad_token_id=0)
        vectors, mask = ours.embed(inputs)
        options = Generation(max_new_tokens=9, loops=None)
        got = respond(ours.language, inputs["input_ids"], inputs_embeds=vectors, attention_mask=mask, options=options)
    want = want[:, -9:]
    assert got.tokens == want.tolist()
    assert len({tuple(row) for row in got.tokens}) > 1
    real = mask[1].bool()
    alone = respond(ours.language, inputs_embeds=vectors[1:2, real], options=options)
    assert alone.tokens[0] == got.tokens[1]
    head = Prefix.read(ours.language, inputs_embeds=vectors[1:2, real][:, :-1])
    assert head.respond([inputs["input_ids"][1, -1:].tolist()], options).tokens[0] == got.tokens[1]


@pytest.mark.parametrize("name", VARIANTS)
def test_saved_by_us_loads_there(name, awake, saved, tmp_path):
    theirs = reference(name, awake)
    ours = opened(saved(theirs))
    back = type(theirs).from_pretrained(ours.save(tmp_path / "ours"), attn_implementation="eager")
    assert_same_state(back.state_dict(), theirs.state_dict())
    inputs = batch(visual(ours))
    with torch.no_grad():
        assert torch.equal(back(**inputs).logits, theirs(**inputs).logits)
    assert opened(tmp_path / "ours").config == ours.config


@pytest.mark.parametrize("name", ["1.5", "tiny-qwen", "opt"])
@pytest.mark.parametrize("layout", ["old", "in memory"])
def test_every_layout_of_weights_is_read(name, layout, awake, saved):
    theirs = reference(name, awake)
    folder = saved(theirs)
    ours = opened(folder)
    tensors = load_file(folder / "model.safetensors")
    if layout == "old":
        tensors = {k.replace("vision_tower.", "vision_tower.vision_model.", 1): v for k, v in tensors.items()}
        assert "vision_tower.vision_model.encoder.layers.0.mlp.fc1.weight" in tensors
    else:
        tensors = {k: v.clone() for k, v in theirs.state_dict().items()}
        assert any(k.startswith("model.language_model.") for k in tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    assert_same_state(opened(folder).state_dict(), ours.state_dict())
    config = json.loads((folder / "config.json").read_text())
    config["image_token_id"] = config.pop("image_token_index")
    (folder / "config.json").write_text(json.dumps(config))
    assert opened(folder).config == ours.config


def test_a_head_bias_of_version_4_is_kept(awake, saved, tmp_path):
    """Phi's head had a bias inside LLaVA once; logits move by it, and our own file holds it."""
    folder = saved(reference("tiny", awake))
    plain = opened(folder)
    tensors = load_file(folder / "model.safetensors")
    bias = torch.linspace(-1, 1, 67)
    save_file({**tensors, "language_model.lm_head.bias": bias}, folder / "model.safetensors", metadata={"format": "pt"})
    inputs = batch(visual(plain))
    with torch.no_grad():
        assert_equal(opened(folder)(**inputs).logits, plain(**inputs).logits + bias)
    opened(folder).save(tmp_path / "ours")
    assert torch.equal(load_file(tmp_path / "ours" / "model.safetensors")["language_model.lm_head.bias"], bias)


def test_version_1_has_one_matrix(awake, saved, tmp_path):
    """Its file is the official one without linear_2, and mm_projector_type says so. The oracle is 1.5's class with a
    second matrix that takes the activation back: quick_gelu(x) − quick_gelu(−x) = x."""
    theirs = reference("1.5", awake, projector_hidden_act="quick_gelu")
    folder = saved(theirs)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "mm_projector_type": "linear"}))
    tensors = load_file(folder / "model.safetensors")
    cut = {k: v for k, v in tensors.items() if "linear_2" not in k}
    save_file(cut, folder / "model.safetensors", metadata={"format": "pt"})
    ours = opened(folder)
    assert ours.config.bridge_config == BridgeConfig(kind="linear")
    projector = theirs.model.multi_modal_projector
    matrix, bias = projector.linear_1.weight.data, projector.linear_1.bias.data
    projector.linear_1 = torch.nn.Linear(28, 48)
    projector.linear_1.weight.data, projector.linear_1.bias.data = (
        torch.cat([matrix, -matrix]),
        torch.cat([bias, -bias]),
    )
    projector.linear_2 = torch.nn.Linear(48, 24)
    projector.linear_2.weight.data, projector.linear_2.bias.data = torch.eye(24).repeat(1, 2), torch.zeros(24)
    projector.linear_2.weight.data[:, 24:] *= -1
    inputs = batch(25)
    positions = (inputs["attention_mask"].cumsum(-1) - 1).clamp(min=0)
    real = inputs["attention_mask"].bool()
    with torch.no_grad():
        got, want = ours(**inputs), theirs(**inputs, position_ids=positions)
    assert_equal(got.image_hidden_states, want.image_hidden_states)
    assert_equal(got.logits[real], want.logits[real])
    again = opened(ours.save(tmp_path / "ours"))
    assert again.config == ours.config
    assert_same_state(again.state_dict(), ours.state_dict())
    assert sorted(k for k in load_file(tmp_path / "ours" / "model.safetensors") if "projector" in k) == [
        "multi_modal_projector.linear_1.bias",
        "multi_modal_projector.linear_1.weight",
    ]


@pytest.mark.parametrize(
    ("bridge", "tokens"),
    [
        (BridgeConfig(kind="attention_pooling", queries=7, heads=2, head_size=5), 7),
        (BridgeConfig(kind="perceiver", queries=5, num_layers=2, heads=2, head_size=5), 5),
        (BridgeConfig(kind="mlp3x_gelu"), 36),
        (BridgeConfig(kind="pixel_shuffle_mlp", scale_factor=3), 4),
    ],
)
def test_any_bridge(bridge, tokens, tmp_path):
    """A picture of 42 px has 6×6 patches of 7; shuffled by 3, 2×2 tokens are left."""
    config = LlavaConfig.from_dict({
        "vision_config": {**CLIP, "image_size": 42}, "text_config": {"model_type": "llama", **TEXT},
        "image_token_index": IMAGE,
    }).replace(bridge_config=bridge)  # fmt: skip
    ours = Llava(config).eval()
    assert ours.tokens_per_picture(42, 42) == tokens
    inputs = {"input_ids": batch(tokens)["input_ids"], "pixel_values": pictures(4, 42, 42)}
    again = opened(ours.save(tmp_path / "ours"))
    assert again.config == config
    with torch.no_grad():
        assert torch.equal(again(**inputs).logits, ours(**inputs).logits)


def test_layers_behind_the_last_needed_are_not_run(awake, saved):
    ours = opened(saved(reference("1.5", awake)))
    run = []
    for number, block in enumerate(ours.vision.encoder.blocks):
        block.register_forward_hook(lambda *_, number=number: run.append(number))
    ours.vision.norm.register_forward_hook(lambda *_: run.append("norm"))
    ours.image_features(pictures(1, 35, 35)).sum().backward()
    assert run == [0, 1]  # of three
    assert ours.vision.encoder.blocks[1].mlp.up.weight.grad is not None


def test_parts_are_those_of_the_zoo():
    for kind, home in {**TOWERS, **DECODERS}.items():
        assert ZOO[(kind, "")] == home


def test_version_1_5_of_the_hub():
    """Its config.json of 2023 says little of the decoder; parameters counted without weights."""
    vision = {
        "model_type": "clip_vision_model", "hidden_size": 1024, "image_size": 336, "intermediate_size": 4096,
        "num_attention_heads": 16, "num_hidden_layers": 24, "patch_size": 14, "projection_dim": 768, "vocab_size": 32000,
    }  # fmt: skip
    text = {"model_type": "llama", "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "torch_dtype": "float16",
            "vocab_size": 32064}  # fmt: skip
    record = {"image_token_index": 32000, "ignore_index": -100, "torch_dtype": "float16"}
    config = LlavaConfig.from_dict({**record, "vision_config": vision, "text_config": text})
    assert config.vision_config == LlavaConfig().vision_config
    model = Llava.shaped(config)
    assert sum(p.numel() for p in model.parameters()) == VARIANTS_OF_LLAVA["llava-hf/llava-1.5-7b-hf"]
    assert model.tokens_per_picture(336, 336) == 576
    assert "torch_dtype" not in config.to_dict()

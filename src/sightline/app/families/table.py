"""One tiny checkpoint for every family: odd sizes, so that a wrong transpose cannot pass; what it is shown; its oracle."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

IMAGE = 59  # the placeholder's id, above every word below
WORDS = ((5, 31, 8, 44, 12, 27, 50), (9, 40, 6))  # of the two texts, behind what stands for the picture


@dataclass(frozen=True, kw_only=True)
class Family:
    """A family, and how to build and show a tiny one of it.

    module: under sightline.models. official: a key of its VARIANTS. library: the oracle's package; theirs: its classes
    of the config and of the model. pictures: inputs by name; a tuple is the shape of random numbers, a list is given as
    it stands. visual: placeholders of each text, with `before` and `after` around them. pad: the id behind the shorter
    text. places: under which name the oracle is told where the placeholders are (`told`: we are, too). given: other
    inputs. compared: where the logits stand in their output and in ours.
    """

    name: str
    module: str
    official: str
    library: str = "transformers"
    theirs: tuple[str, str]
    config: dict[str, Any]
    pictures: dict[str, Any] = field(default_factory=lambda: {"pixel_values": (2, 3, 35, 35)})
    visual: tuple[int, int] = (0, 0)
    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()
    pad: int = 0
    places: str = ""
    told: bool = False
    given: dict[str, Any] = field(default_factory=dict)
    compared: tuple[str, str] = ("logits", "logits")


LLAMA: dict[str, Any] = {
    "model_type": "llama", "vocab_size": 67, "hidden_size": 24, "intermediate_size": 37, "num_hidden_layers": 2,
    "num_attention_heads": 6, "num_key_value_heads": 2, "max_position_embeddings": 211, "pad_token_id": 0,
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
MISTRAL = {**LLAMA, "model_type": "mistral", "sliding_window": None}
QWEN2 = {**LLAMA, "model_type": "qwen2"}
GEMMA = {**LLAMA, "model_type": "gemma", "num_key_value_heads": 1, "head_dim": 10}
OPT = {
    "model_type": "opt", "vocab_size": 67, "hidden_size": 30, "ffn_dim": 37, "num_hidden_layers": 2,
    "num_attention_heads": 5, "max_position_embeddings": 71, "word_embed_proj_dim": 30,
}  # fmt: skip
T5 = {
    "model_type": "t5", "vocab_size": 67, "d_model": 30, "d_kv": 7, "d_ff": 37, "num_layers": 2, "num_heads": 3,
    "feed_forward_proj": "gated-gelu", "decoder_start_token_id": 0, "tie_word_embeddings": False,
}  # fmt: skip
BART = {
    "model_type": "bart", "vocab_size": 89, "d_model": 24, "encoder_layers": 2, "decoder_layers": 3,
    "encoder_attention_heads": 3, "decoder_attention_heads": 4, "encoder_ffn_dim": 37, "decoder_ffn_dim": 41,
    "max_position_embeddings": 97, "bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2,
}  # fmt: skip
BERT = {
    "vocab_size": 61, "hidden_size": 21, "intermediate_size": 41, "num_hidden_layers": 2, "num_attention_heads": 7,
    "max_position_embeddings": 31, "bos_token_id": 58, "sep_token_id": 59, "pad_token_id": 0, "eos_token_id": 2,
}  # fmt: skip
VIT: dict[str, Any] = {  # 35 px in patches of 7: 25, and [CLS] where there is one
    "hidden_size": 28, "intermediate_size": 37, "num_hidden_layers": 3, "num_attention_heads": 7, "image_size": 35,
    "patch_size": 7,
}  # fmt: skip
CLIP = {"model_type": "clip_vision_model", **VIT}
SIGLIP = {"model_type": "siglip_vision_model", **VIT, "vision_use_head": False}
PALIGEMMA = {"vision_config": SIGLIP, "image_token_index": IMAGE, "projection_dim": 24, "hidden_size": 24}
ANSWERED = {
    "token_type_ids": [[0] * 29 + [1] * 3, [0] * 26 + [1] * 6]
}  # the prompt sees itself whole, the answer its past
QFORMER = {
    "vocab_size": 61, "hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 3, "intermediate_size": 41,
    "max_position_embeddings": 31, "cross_attention_frequency": 2,
}  # fmt: skip
BLIP2 = {"vision_config": VIT, "text_config": OPT, "qformer_config": QFORMER, "num_query_tokens": 5}
NAMED = {**BLIP2, "image_token_index": IMAGE}
QUESTION = {"qformer_input_ids": [[7, 9, 31], [8, 5, 40]], "qformer_attention_mask": [[1, 1, 1], [1, 1, 0]]}
BEGUN = {"decoder_input_ids": [[2, 7, 9], [2, 31, 5]]}
TEXT_OF_COCA = {"context_length": 7, "vocab_size": 61, "width": 24, "heads": 3, "layers": 2}

FAMILIES = (
    Family(
        name="LLaVA", module="vlm.llava", official="llava-hf/llava-1.5-7b-hf",
        theirs=("LlavaConfig", "LlavaForConditionalGeneration"),
        config={"vision_config": CLIP, "text_config": LLAMA, "image_token_index": IMAGE}, visual=(25, 25), before=(4,),
    ),
    Family(
        name="LLaVA-NeXT", module="vlm.llava_next", official="llava-hf/llava-v1.6-mistral-7b-hf",
        theirs=("LlavaNextConfig", "LlavaNextForConditionalGeneration"),
        config={
            "vision_config": CLIP, "text_config": MISTRAL, "image_token_index": IMAGE,
            "image_grid_pinpoints": [[70, 35], [35, 70]],
        },
        pictures={"pixel_values": (2, 3, 3, 35, 35), "image_sizes": [[70, 35], [31, 90]]},
        visual=(25 + 10 * 6, 25 + 3 * 11), before=(4,),
    ),
    Family(
        name="Pixtral", module="vlm.pixtral", official="mistral-community/pixtral-12b",
        theirs=("LlavaConfig", "LlavaForConditionalGeneration"),
        config={
            "vision_config": {**VIT, "model_type": "pixtral", "hidden_size": 36, "num_attention_heads": 3},
            "text_config": MISTRAL, "image_token_index": IMAGE, "vision_feature_layer": -1,
            "vision_feature_select_strategy": "full",
        },
        pictures={"pixel_values": (2, 3, 21, 35), "image_sizes": [[21, 35], [14, 28]]}, visual=(15, 8), before=(4,),
    ),
    Family(
        name="Qwen2-VL", module="vlm.qwen2_vl", official="Qwen/Qwen2-VL-7B-Instruct",
        theirs=("Qwen2VLConfig", "Qwen2VLForConditionalGeneration"),
        config={
            "text_config": {
                **QWEN2, "model_type": "qwen2_vl_text", "hidden_size": 32, "num_attention_heads": 4,
                "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [1, 1, 2]},
            },
            "vision_config": {
                "depth": 2, "embed_dim": 24, "hidden_size": 32, "num_heads": 3, "mlp_ratio": 2, "patch_size": 7,
            },
            "image_token_id": IMAGE, "video_token_id": 62, "vision_start_token_id": 61, "vision_end_token_id": 60,
        },
        pictures={"pixel_values": (40, 3 * 2 * 7 * 7), "image_grid_thw": [[1, 4, 6], [1, 2, 8]]},
        visual=(6, 4), before=(4, 61), after=(60,), places="mm_token_type_ids",
    ),
    Family(
        name="InternVL", module="vlm.internvl", official="OpenGVLab/InternVL3-8B-hf",
        theirs=("InternVLConfig", "InternVLForConditionalGeneration"),
        config={
            "vision_config": {**VIT, "image_size": [42, 42], "patch_size": [7, 7], "attention_bias": True},
            "text_config": QWEN2, "image_token_id": IMAGE,
        },
        pictures={"pixel_values": (2, 3, 42, 42)}, visual=(9, 9), before=(4,),
    ),
    Family(
        name="IDEFICS (Flamingo)", module="vlm.idefics", official="HuggingFaceM4/idefics-9b",
        theirs=("IdeficsConfig", "IdeficsForVisionText2Text"),
        config={
            "vocab_size": 57, "additional_vocab_size": 10, "hidden_size": 24, "intermediate_size": 37,
            "num_hidden_layers": 4, "num_attention_heads": 6, "max_position_embeddings": 211, "cross_layer_interval": 2,
            "qk_layer_norms": True, "use_resampler": True,
            "vision_config": {
                "embed_dim": 28, "intermediate_size": 37, "num_hidden_layers": 3, "num_attention_heads": 7,
                "image_size": 35, "patch_size": 7,
            },
            "perceiver_config": {
                "resampler_n_latents": 5, "resampler_depth": 2, "resampler_n_heads": 3, "resampler_head_dim": 11,
                "qk_layer_norms_perceiver": True,
            },
        },
        pictures={
            "pixel_values": (2, 2, 3, 35, 35),  # the second text has one picture
            "image_attention_mask": [[[0, 0], *[[1, 0]] * 4, *[[0, 1]] * 4], [[0, 0], *[[1, 0]] * 8]],
        },
        visual=(1, 1), before=(4,),
    ),
    Family(
        name="Molmo 2", module="vlm.molmo2", official="allenai/Molmo2-8B",
        theirs=("Molmo2Config", "Molmo2ForConditionalGeneration"),
        config={
            "vision_config": {**VIT, "image_size": [35, 35], "num_key_value_heads": 7, "head_dim": 4},
            "adapter_config": {
                "vision_feature_layer": [2, 0], "hidden_size": 28, "num_attention_heads": 6, "num_key_value_heads": 3,
                "head_dim": 5, "intermediate_size": 41, "text_hidden_size": 24,
            },
            "text_config": {
                **LLAMA, "model_type": "molmo2_text", "additional_vocab_size": 7, "head_dim": 10,
                "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
            },
            "image_patch_id": IMAGE,
        },
        pictures={
            "pixel_values": (3, 25, 147), "image_grids": [[2, 2, 1, 2], [3, 1, 0, 0]], "image_num_crops": [2, 1],
            "image_token_pooling": [
                [0, 1, 5, 6], [2, -1, -1, 7], [24, 4, -1, -1], [-1, -1, 13, -1], [25, 49, 31, 26], [40, 41, -1, 44],
                [50, 74, -1, -1], [55, 56, 60, 61], [-1, 68, 63, 59],
            ],
        },
        visual=(6, 3), before=(4,), places="mm_token_type_ids",
    ),
    Family(
        name="Idefics2", module="vlm.idefics2", official="HuggingFaceM4/idefics2-8b",
        theirs=("Idefics2Config", "Idefics2ForConditionalGeneration"),
        config={
            "vision_config": VIT, "text_config": MISTRAL, "image_token_id": IMAGE,
            "perceiver_config": {
                "hidden_size": 24, "resampler_n_latents": 5, "resampler_depth": 2, "resampler_n_heads": 6,
                "resampler_head_dim": 5, "num_key_value_heads": 2,
            },
        },
        pictures={
            "pixel_values": (2, 1, 3, 23, 41),
            "pixel_attention_mask": [[[[1] * 41] * 23], [[[1] * 30 + [0] * 11] * 23]],
        },
        visual=(5, 5), before=(4,),
    ),
    Family(
        name="PaliGemma", module="vlm.paligemma", official="google/paligemma-3b-pt-224",
        theirs=("PaliGemmaConfig", "PaliGemmaForConditionalGeneration"), config={**PALIGEMMA, "text_config": GEMMA},
        visual=(25, 25), given=ANSWERED,
    ),
    Family(
        name="PaliGemma 2", module="vlm.paligemma", official="google/paligemma2-3b-pt-224",
        theirs=("PaliGemmaConfig", "PaliGemmaForConditionalGeneration"),
        config={**PALIGEMMA, "text_config": {**GEMMA, "model_type": "gemma2", "sliding_window": 11}},
        visual=(25, 25), given=ANSWERED,
    ),
    Family(
        name="Kosmos-2", module="vlm.kosmos2", official="microsoft/kosmos-2-patch14-224",
        theirs=("Kosmos2Config", "Kosmos2ForConditionalGeneration"),
        config={
            "text_config": {
                "vocab_size": 67, "embed_dim": 24, "layers": 3, "ffn_dim": 37, "attention_heads": 3,
                "max_position_embeddings": 97, "dropout": 0.0, "attention_dropout": 0.0,
            },
            "vision_config": VIT, "latent_query_num": 5,
        },
        visual=(5, 5), before=(0, 60), after=(61,), places="image_embeds_position_mask", told=True,
    ),
    Family(
        name="Florence-2", module="vlm.florence2", official="florence-community/Florence-2-base",
        theirs=("Florence2Config", "Florence2ForConditionalGeneration"),
        config={
            "vision_config": {
                "depths": [1, 1, 2, 1], "embed_dim": [12, 20, 28, 44], "num_heads": [3, 2, 7, 4],
                "num_groups": [2, 5, 4, 11], "window_size": 5, "projection_dim": 24, "drop_path_rate": 0.0,
                "max_position_embeddings": 13, "max_temporal_embeddings": 7,
            },
            "text_config": BART, "image_token_id": IMAGE,
        },
        pictures={"pixel_values": (2, 3, 64, 96)}, visual=(1 + 2 * 3, 1 + 2 * 3), given=BEGUN,
    ),
    Family(
        name="BLIP", module="vlm.blip", official="Salesforce/blip-image-captioning-base",
        theirs=("BlipConfig", "BlipForConditionalGeneration"),
        config={"vision_config": VIT, "text_config": BERT, "image_text_hidden_size": 13},
    ),
    Family(
        name="BLIP (matching)", module="vlm.blip", official="Salesforce/blip-itm-base-coco",
        theirs=("BlipConfig", "BlipForImageTextRetrieval"),
        config={"vision_config": VIT, "text_config": BERT, "image_text_hidden_size": 13},
        compared=("itm_score", "logits_per_image"),
    ),
    Family(
        name="BLIP-2 (OPT)", module="vlm.blip2", official="Salesforce/blip2-opt-2.7b",
        theirs=("Blip2Config", "Blip2ForConditionalGeneration"), config=NAMED, visual=(5, 5),
    ),
    Family(
        name="BLIP-2 (Flan-T5)", module="vlm.blip2", official="Salesforce/blip2-flan-t5-xl",
        theirs=("Blip2Config", "Blip2ForConditionalGeneration"), config={**NAMED, "text_config": T5}, visual=(5, 5),
        given=BEGUN,
    ),
    Family(
        name="BLIP-2 (matching)", module="vlm.blip2_matching", official="Salesforce/blip2-itm-vit-g",
        theirs=("Blip2Config", "Blip2ForImageTextRetrieval"),
        config={
            **BLIP2, "image_text_hidden_size": 13, "qformer_config": {**QFORMER, "use_qformer_text_input": True},
        },
        compared=("logits_per_image", "logits_per_image"),
    ),
    Family(
        name="InstructBLIP", module="vlm.instructblip", official="Salesforce/instructblip-vicuna-7b",
        theirs=("InstructBlipConfig", "InstructBlipForConditionalGeneration"), config={**NAMED, "text_config": LLAMA},
        visual=(5, 5), given=QUESTION,
    ),
    Family(
        name="CoCa", module="contrastive.coca", official="coca_ViT-B-32", library="open_clip", theirs=("", "CoCa"),
        config={
            "embed_dim": 24, "text_cfg": {**TEXT_OF_COCA, "embed_cls": True, "output_tokens": True},
            "vision_cfg": {
                "image_size": 35, "layers": 2, "width": 28, "patch_size": 7, "head_width": 4, "attentional_pool": True,
                "attn_pooler_heads": 3, "attn_pooler_queries": 7, "output_tokens": True,
            },
            "multimodal_cfg": {**TEXT_OF_COCA, "layers": 3, "attn_pooler_heads": 3},
        },
    ),
)  # fmt: skip

"""From a checkpoint folder to the class that reads it: one literal table. No code is taken from a checkpoint."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from sightline.errors import ConfigError
from sightline.hub import Model, read_json, resolve
from sightline.models.loading import read_processor
from sightline.runtime import place

ZOO = {  # (model_type, architecture or "" for any) → module under sightline.models, class
    ("clip", ""): ("contrastive.clip", "CLIP"),
    ("clip_vision_model", ""): ("vision.clip_vision", "CLIPVision"),
    ("clip_text_model", ""): ("language.clip_text", "CLIPText"),
    ("vit", "ViTForImageClassification"): ("vision.vit", "ViTClassifier"),
    ("vit", ""): ("vision.vit", "ViT"),
    ("resnet", "ResNetForImageClassification"): ("vision.resnet", "ResNetClassifier"),
    ("resnet", ""): ("vision.resnet", "ResNet"),
    ("detr", "DetrForSegmentation"): ("detection.panoptic", "PanopticDETR"),
    ("detr", ""): ("detection.detr", "DETR"),
    ("sightline_grid", ""): ("detection.grid", "Grid"),
    ("dinov2", "Dinov2ForImageClassification"): ("vision.dinov2", "Dinov2Classifier"),
    ("dinov2", "Dinov2Backbone"): ("vision.dinov2", "Dinov2Backbone"),
    ("dinov2", ""): ("vision.dinov2", "Dinov2"),
    ("dinov2_with_registers", "Dinov2WithRegistersForImageClassification"): (
        "vision.dinov2",
        "Dinov2WithRegistersClassifier",
    ),
    ("dinov2_with_registers", "Dinov2WithRegistersBackbone"): ("vision.dinov2", "Dinov2WithRegistersBackbone"),
    ("dinov2_with_registers", ""): ("vision.dinov2", "Dinov2WithRegisters"),
    ("depth_anything", ""): ("depth.depth_anything", "DepthAnything"),
    ("siglip", ""): ("contrastive.siglip", "SigLIP"),
    ("siglip_vision_model", ""): ("vision.siglip_vision", "SigLIPVision"),
    ("siglip_text_model", ""): ("language.siglip_text", "SigLIPText"),
    ("siglip2", ""): ("contrastive.siglip2", "SigLIP2"),
    ("siglip2_vision_model", ""): ("vision.siglip2_vision", "SigLIP2Vision"),
    ("siglip2_text_model", ""): ("contrastive.siglip2", "SigLIP2Text"),
    ("llama", ""): ("language.llama", "Llama"),
    ("mistral", ""): ("language.llama", "Mistral"),
    ("qwen2", ""): ("language.qwen2", "Qwen2"),
    ("qwen3", ""): ("language.qwen3", "Qwen3"),
    ("phi", ""): ("language.phi", "Phi"),
    ("gemma", ""): ("language.gemma", "Gemma"),
    ("gemma2", ""): ("language.gemma", "Gemma2"),
    ("opt", ""): ("language.opt", "OPT"),
    ("t5", "T5EncoderModel"): ("language.t5", "T5Encoder"),
    ("t5", ""): ("language.t5", "T5"),
    ("bart", ""): ("language.bart", "Bart"),
    ("bert", ""): ("language.bert", "Bert"),
    ("bert", "BertLMHeadModel"): ("language.bert", "BertLM"),
    ("bert", "BertForMaskedLM"): ("language.bert", "BertLM"),
    ("bert", "BertForPreTraining"): ("language.bert", "BertLM"),
    ("llava", ""): ("vlm.llava", "Llava"),
    ("llava", "pixtral"): ("vlm.pixtral", "Pixtral"),  # known by its tower
    ("pixtral", ""): ("vision.pixtral_vit", "PixtralVision"),
    ("sightline_looking_llava", ""): ("vlm.looking_llava", "LookingLlava"),
    ("llava_next", ""): ("vlm.llava_next", "LlavaNext"),
    ("internvl", ""): ("vlm.internvl", "InternVL"),
    ("internvl_vision", ""): ("vision.intern_vit", "InternViT"),
    ("internvl_chat", ""): ("vlm.internvl", "InternVL"),  # of custom code; the error names the layout to take
    ("idefics", ""): ("vlm.idefics", "Idefics"),
    ("idefics2", ""): ("vlm.idefics2", "Idefics2"),
    ("idefics2_vision", ""): ("vision.idefics2_vision", "Idefics2Vision"),
    ("interns1", ""): ("vlm.internvl", "InternS1"),
    ("florence2", ""): ("vlm.florence2", "Florence2"),
    ("paligemma", ""): ("vlm.paligemma", "PaliGemma"),  # and PaliGemma 2
    ("llava", "LlavaLlamaForCausalLM"): ("vlm.llava_original", "OriginalLlava"),
    ("llava_llama", ""): ("vlm.llava_original", "OriginalLlava"),
    ("kosmos-2", ""): ("vlm.kosmos2", "Kosmos2"),
    ("qwen2_vl", ""): ("vlm.qwen2_vl", "Qwen2VL"),
    ("molmo2", ""): ("vlm.molmo2", "Molmo2"),
    ("blip", "BlipForConditionalGeneration"): ("vlm.blip", "BlipCaptioner"),
    ("blip", "BlipForQuestionAnswering"): ("vlm.blip", "BlipAnswerer"),
    ("blip", "BlipForImageTextRetrieval"): ("vlm.blip", "BlipMatcher"),
    ("blip_vision_model", ""): ("vision.blip_vision", "BlipVision"),
    ("blip_2_vision_model", ""): ("vision.eva_vit", "EvaViT"),
    ("instructblip", ""): ("vlm.instructblip", "InstructBlip"),
    ("instructblip_vision_model", ""): ("vision.eva_vit", "InstructEvaViT"),
    ("blip-2", ""): ("vlm.blip2", "Blip2"),
    ("blip-2", "Blip2ForImageTextRetrieval"): ("vlm.blip2_matching", "Blip2Matching"),
    ("open_clip", ""): ("contrastive.open_clip", "OpenCLIP"),
    ("open_clip", "CoCa"): ("contrastive.coca", "CoCa"),
}


def load(ref: str | Path, device: str = "auto", dtype: str = "auto", revision: str | None = None) -> Model[Any]:
    """Load a model with its processor.

    ref: a folder, a Hugging Face id, or `sightline:NAME`. dtype "auto": the fastest the device runs natively within
    the documented tolerance (runtime.place). Raises WeightsError or ConfigError in one sentence.
    """
    folder = resolve(ref, revision)
    where = place(device, dtype)
    model = model_class(folder).from_folder(folder, dtype=where.dtype, device=where.device)
    model.processor = read_processor(folder, model)
    return model


def model_class(folder: Path) -> type[Model[Any]]:
    """The class for a checkpoint folder, from config.json alone."""
    if not (folder / "config.json").is_file() and (folder / "open_clip_config.json").is_file():
        kind, architecture = "open_clip", open_clip_layout(read_json(folder / "open_clip_config.json"))
    else:
        data = read_json(folder / "config.json")
        listed = data.get("architectures")
        kind, architecture = (
            str(data.get("model_type", "")),
            str(listed[0]) if isinstance(listed, list) and listed else "",
        )
        if kind == "llava" and sees_with(data) == "pixtral":
            architecture = "pixtral"
    found = ZOO.get((kind, architecture)) or ZOO.get((kind, ""))
    if found is None:
        known = ", ".join(sorted({name for name, _ in ZOO}))
        raise ConfigError(f'{folder} is of model_type "{kind}", which Sightline does not know; it knows {known}.')
    module, name = found
    return getattr(importlib.import_module(f"sightline.models.{module}"), name)  # type: ignore[no-any-return]


def sees_with(data: dict[str, Any]) -> str:
    """The model_type of the vision tower that a config.json describes; "" where it does not say."""
    tower = data.get("vision_config")
    return str(tower.get("model_type", "")) if isinstance(tower, dict) else ""


def open_clip_layout(data: dict[str, Any]) -> str:
    """Which network an open_clip_config.json describes: CoCa, or CLIP (whatever its towers)."""
    config = data.get("model_cfg")
    return "CoCa" if isinstance(config, dict) and config.get("multimodal_cfg") else "CLIP"

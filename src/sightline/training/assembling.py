"""A LLaVA from parts: any vision tower, any bridge, any language model, each named by a folder.

tower's folder ─ vision + picture processor ┐
"mlp2x_gelu" ─ bridge, first weights        ├→ Llava in the official format, with `<image>` among its tokens
language model's folder ─ decoder + tokens  ┘
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch

from sightline.errors import ConfigError, UsageError
from sightline.hub import Model, resolve
from sightline.models.bridges import BridgeConfig
from sightline.models.language.chat import ChatTemplate
from sightline.models.language.decoder import Decoder
from sightline.models.language.tokenizers import Tokenizer, token_name
from sightline.models.language.words import grow_words
from sightline.models.vlm.llava import Llava, LlavaConfig
from sightline.models.vlm.looking_llava import LookingLlava, LookingLlavaConfig, LookingProcessor
from sightline.models.vlm.processor import VLMProcessor, placeholders
from sightline.models.vlm.square import SquarePictures
from sightline.models.vlm.vicuna import llava_template
from sightline.models.zoo import load
from sightline.nn import GridPositions
from sightline.training.conversations import IMAGE

GATED = "gated_cross_attention"


def assemble(
    vision: str | Path | Model[Any], language: str | Path | Model[Any], *,
    bridge: str | BridgeConfig = "mlp2x_gelu",
    layer: tuple[int, ...] = (-2,), select: str = "default", pad_square: bool = False,
    template: ChatTemplate | None = None, image_size: int | None = None, seed: int = 0,
) -> Llava:  # fmt: skip
    """Load the parts and join them; the bridge has random weights from `seed`.

    vision: a CLIP or SigLIP, whole or its tower alone. language: a decoder with its tokenizer. layer, select: which
    tokens of the tower go on, those of several layers side by side (see LlavaConfig). pad_square: pictures are padded to
    squares, not cropped.
    bridge: a kind, or all its numbers; GATED puts no bridge before the language model but gated blocks between its layers
    (then the numbers are those of the resampler that they look at).
    template: the chat template; by default LLaVA-1.5's. image_size: pixels per side that the tower reads from now on.
    Raises UsageError for parts of the wrong kind.
    """
    tower, looks = vision_part(vision)
    if image_size is not None:
        looks = read_at(tower, looks, image_size)
    decoder = load(language, dtype="float32") if isinstance(language, (str, Path)) else language
    if not isinstance(decoder, Decoder) or decoder.processor is None or decoder.processor.tokenizer is None:
        raise UsageError(f"{language} is no language model with a tokenizer; name a folder of Llama, Qwen2, Phi, ….")
    own = ChatTemplate.from_folder(resolve(language)) if isinstance(language, (str, Path)) else None
    tokenizer: Tokenizer = decoder.processor.tokenizer
    number = tokenizer.add_tokens([IMAGE], special=True)[0]
    grow_words(decoder, tokenizer.size)
    if select == "default" and not hasattr(tower, "class_token"):
        select = "full"  # there is no [CLS] to drop
    chosen = bridge if isinstance(bridge, BridgeConfig) else BridgeConfig(kind=bridge)
    looks_between = chosen.kind == GATED
    config = (LookingLlavaConfig if looks_between else LlavaConfig)(
        vision_config=tower.config, text_config=decoder.config, image_token_index=number,
        vision_feature_layer=layer[0] if len(layer) == 1 else layer,
        vision_feature_select_strategy=select, tie_word_embeddings=decoder.config.tie_word_embeddings,
        bridge_config=_named(chosen),
    )  # fmt: skip
    torch.manual_seed(seed)
    model: Llava
    if isinstance(config, LookingLlavaConfig):
        model = looking = LookingLlava(config)
        looking.speak_as(decoder)
    else:
        model = Llava(config)
        model.language = decoder
    model.vision = tower
    tower.processor = decoder.processor = None  # theirs are parts of the model's now
    eos = token_name(tokenizer.extra, "eos_token", "</s>")
    chat = template or (own if own is not None and _takes_pictures(own) else llava_template(eos=eos))
    model.processor = (LookingProcessor if looks_between else VLMProcessor)(
        SquarePictures(looks) if pad_square else looks, tokenizer, placeholders(None, model), chat
    )
    return model.eval()


def _named(bridge: BridgeConfig) -> BridgeConfig | None:
    """As a config has it: nothing for LLaVA-1.5's own, the resampler for gated blocks."""
    if bridge == BridgeConfig(kind="mlp2x_gelu"):
        return None
    return bridge.replace(kind="perceiver") if bridge.kind == GATED else bridge


def vision_part(ref: str | Path | Model[Any]) -> tuple[Model[Any], Any]:
    """The vision tower of a checkpoint, and how its pictures are made."""
    model = load(ref, dtype="float32") if isinstance(ref, (str, Path)) else ref
    looks = model.processor.pictures if model.processor is not None else None
    tower = getattr(model, "vision", model)
    if looks is None or not hasattr(tower.config, "patch_size") or not hasattr(tower, "encoder"):
        raise UsageError(f"{ref} is no vision tower with a preprocessor_config.json; name a folder of CLIP or SigLIP.")
    side = tower.config.image_size
    if getattr(looks, "output_size", None) != (side, side):
        raise ConfigError(
            f"the picture processor of {ref} gives {getattr(looks, 'output_size', None)} pixels and its tower reads "
            f"{side}×{side}; a LLaVA needs pictures of one size."
        )
    return tower, looks


@torch.no_grad()
def read_at(tower: Model[Any], looks: Any, side: int) -> Any:
    """Make the tower one for pictures of side×side, its positions resampled for good; returns how those are made.

    More pixels and more patches for the same things, as LLaVA-1.5 went from 224 to 336. Raises UsageError for a side
    that is no multiple of the patch.
    """
    config: Any = tower.config
    old, patch = config.image_size, config.patch_size
    if side == old:
        return looks
    if side < patch or side % patch:
        raise UsageError(f"image_size={side} is no multiple of the tower's patch of {patch} pixels.")
    cells = (side // patch, side // patch)
    before: Any = tower.positions
    after = GridPositions(cells, before.table.shape[1], prefix=before.prefix, resample=before.resample)
    after.table.copy_(before(cells))
    tower.positions, tower.config = after, config.replace(image_size=side)
    cropped = {"height": side, "width": side} if looks.crop_size else None
    return dataclasses.replace(looks, size=dict.fromkeys(looks.size, side), crop_size=cropped)


def _takes_pictures(template: ChatTemplate) -> bool:
    """Whether a language model's own template writes `<image>` where a message holds a picture."""
    message = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]}
    try:
        return template.render([message], add_generation_prompt=True).count(IMAGE) == 1
    except (ConfigError, UsageError):
        return False

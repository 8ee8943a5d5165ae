"""LLaVA as its authors saved it (haotian-liu/LLaVA, `LlavaLlamaForCausalLM`): a Llama's folder with a bridge in it.

config.json         Llama's numbers, and mm_*: the id of the vision tower, which of its layers, the kind of bridge
model.layers.*, …   the language model              model.mm_projector.*   the bridge
the tower           elsewhere, under its own id, unless it was trained too (model.vision_tower.vision_tower.*)

What is read is an ordinary `Llava`: `save` writes it in the official format of transformers, tower and all.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sightline.errors import ConfigError, SightlineError, TokenizerError, WeightsError
from sightline.hub import Config, read_json, read_weights, resolve, weight_files
from sightline.media import PictureProcessor
from sightline.models.bridges import BridgeConfig
from sightline.models.language.llama import LlamaConfig
from sightline.models.language.tokenizers import Tokenizer
from sightline.models.language.words import grown, grown_size
from sightline.models.loading import read_picture_side
from sightline.models.processor import Processor
from sightline.models.vlm.llava import Llava, LlavaConfig
from sightline.models.vlm.parts import TOWERS, part_config
from sightline.models.vlm.processor import VLMProcessor, placeholders
from sightline.models.vlm.square import SquarePictures
from sightline.models.vlm.vicuna import vicuna_template

IMAGE = "<image>"  # their code writes -200 for a picture; a tokenizer needs a name for it
TOWER = "model.vision_tower.vision_tower."
STRATEGIES = {"patch": "default", "cls_patch": "full"}
BRIDGE = re.compile(r"linear|mlp[1-9]\d?x_gelu")


class OriginalLlava(Llava):
    """A `Llava` that was read from the authors' own folder."""

    tower: Path  # the folder of its vision tower

    @classmethod
    def read_config(cls, folder: Path) -> LlavaConfig:
        """Raises WeightsError when the tower that config.json names cannot be had."""
        data = read_json(folder / "config.json")
        return llava_config(data, tower_folder(data, folder))

    @classmethod
    def from_folder(
        cls, folder: Path, *, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
    ) -> Any:
        """The folder's own weights and, unless it has them, those of its tower; strict on both."""
        data = read_json(folder / "config.json")
        tower = tower_folder(data, folder)
        config = llava_config(data, tower)
        tensors = {renamed(name): tensor for name, tensor in read_weights(folder).items()}
        if not any(name.startswith("vision_tower.") for name in tensors):
            tensors |= tower_weights(tower)
        for name in ("language_model.model.embed_tokens.weight", "language_model.lm_head.weight"):
            if name in tensors and len(tensors[name]) < config.text_config.vocab_size:
                tensors[name] = grown(tensors[name], config.text_config.vocab_size)
        model = cls.shaped(config)
        model.take(tensors, dtype=dtype, device=device)
        model.folder, model.tower = folder, tower
        return model.eval()

    def weight_files(self) -> list[Path]:
        return super().weight_files() + ([] if self.folder is None else weight_files(self.tower))

    def read_processor(self, folder: Path) -> Processor | None:
        """The tower's picture processor (padding to squares if config.json asks for it), the folder's tokenizer with
        `<image>` added, and Vicuna's prompt; a chat template in such a folder is the language model's, without pictures.
        """
        tower = tower_folder(read_json(folder / "config.json"), folder)
        looks = read_picture_side(tower)
        if not isinstance(looks, PictureProcessor):
            raise ConfigError(f"the vision tower {tower} has no preprocessor_config.json of CLIP or SigLIP; add it.")
        pictures = SquarePictures(looks) if self.config.others.get("image_aspect_ratio") == "pad" else looks
        if not Tokenizer.present(folder):
            return Processor(pictures, None)
        tokenizer = Tokenizer.from_folder(folder, context_length=self.context_length, model_type="llama")
        number = tokenizer.add_tokens([IMAGE], special=True)[0]
        if number >= self.language.vocab_size:
            raise TokenizerError(
                f"the tokenizer in {folder} has {number} tokens and the model knows {self.language.vocab_size}; "
                "use the tokenizer that belongs to the model."
            )
        self.config = self.config.replace(image_token_index=number)
        apart = tokenizer.encode([f"{IMAGE}\n", f"{IMAGE} \n"], special=False)
        image = f"{IMAGE} \n" if apart[0] != apart[1] else f"{IMAGE}\n"  # theirs always puts a ▁ behind a picture
        return VLMProcessor(pictures, tokenizer, placeholders(None, self), vicuna_template(tokenizer, image=image))


def tower_folder(data: Mapping[str, Any], folder: Path) -> Path:
    """The folder of the tower that config.json names: an id, a folder, or a folder inside the checkpoint's own."""
    name = data.get("mm_vision_tower")
    if not isinstance(name, str) or not name:
        raise ConfigError(f'{folder / "config.json"} names no vision tower; it needs "mm_vision_tower".')
    inside = folder / name
    if inside.is_dir():
        return inside
    try:
        return resolve(name)
    except SightlineError as error:
        raise WeightsError(
            f'{folder} keeps its vision tower elsewhere ("mm_vision_tower": "{name}"), and it cannot be had: {error}'
        ) from None


def llava_config(data: Mapping[str, Any], tower: Path) -> LlavaConfig:
    """The official config. The word table gets a row for `<image>` and is rounded up, as in the official conversion.

    Raises ConfigError for an option that changes the network or the prompt and is not built here.
    """
    for name, usual in (
        ("mm_resampler_type", (None,)), ("mm_use_im_start_end", (None, False)), ("s2", (None, False)),
        ("mm_patch_merge_type", (None, "flat")), ("image_aspect_ratio", (None, "pad", "square")),
        ("mm_vision_select_feature", (None, *STRATEGIES)),
    ):  # fmt: skip
        if data.get(name) not in usual:
            hint = " (LLaVA-NeXT)" if name in ("mm_patch_merge_type", "image_aspect_ratio") else ""
            raise ConfigError(f'config.json asks for "{name}": {data[name]!r}{hint}, which is not built here.')
    kind = data.get("mm_projector_type", "linear")
    if not isinstance(kind, str) or not BRIDGE.fullmatch(kind):
        raise ConfigError(f'config.json says "mm_projector_type": {kind!r}; expected linear or mlp2x_gelu.')
    vision = vision_config(tower)
    width = data.get("mm_hidden_size", vision.hidden_size)
    if width != vision.hidden_size:
        raise ConfigError(
            f'config.json says "mm_hidden_size": {width} and its vision tower, {tower}, has the width '
            f"{vision.hidden_size}; name the tower that it was trained with."
        )
    known = {field.name for field in dataclasses.fields(LlamaConfig)} - {"others"}
    text = LlamaConfig.from_dict({k: v for k, v in data.items() if k in known})
    strategy = STRATEGIES[data.get("mm_vision_select_feature") or "patch"]
    return LlavaConfig(
        vision_config=vision,
        text_config=text.replace(vocab_size=grown_size(text.vocab_size + 1)),
        image_token_index=text.vocab_size,
        vision_feature_layer=data.get("mm_vision_select_layer", -2),
        vision_feature_select_strategy=strategy if vision.model_type == "clip_vision_model" else "full",  # no [CLS]
        bridge_config=None if kind == "mlp2x_gelu" else BridgeConfig(kind=kind),
        others={k: data[k] for k in ("image_aspect_ratio",) if k in data},
    )


def vision_config(tower: Path) -> Any:
    """The config of a tower's folder, whether it holds the tower alone or all of CLIP or SigLIP."""
    data = read_json(tower / "config.json")
    whole = data.get("vision_config")
    kinds = {"clip": "clip_vision_model", "siglip": "siglip_vision_model"}
    kind = kinds.get(str(data.get("model_type")), "")
    if kind and isinstance(whole, Mapping):
        data = {**whole, "model_type": kind}
    config: Config = part_config(TOWERS, data, "mm_vision_tower", "")
    return config


def tower_weights(tower: Path) -> dict[str, Tensor]:
    """A tower's tensors under the names that they have in a LLaVA; of a whole CLIP, its picture side alone."""
    tensors = read_weights(tower)
    inside = {k.removeprefix("vision_model."): v for k, v in tensors.items() if k.startswith("vision_model.")}
    return {f"vision_tower.{name}": tensor for name, tensor in (inside or tensors).items()}


def renamed(name: str) -> str:
    """Their name of a weight → the official one."""
    if name.startswith(TOWER):
        return "vision_tower." + name.removeprefix(TOWER).removeprefix("vision_model.")
    if name.startswith("model.mm_projector."):
        *number, rest = name.removeprefix("model.mm_projector.").split(".")
        layer = int(number[0]) // 2 + 1 if len(number) == 1 and number[0].isdecimal() else 1  # GELUs are counted, too
        return f"multi_modal_projector.linear_{layer}.{rest}"
    return f"language_model.{name}"

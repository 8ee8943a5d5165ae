"""Checkpoints in open_clip's own layout: CLIP with ViT or modified ResNet towers (Cherti et al. 2022, 2212.07143).

`open_clip_config.json` + `open_clip_model.safetensors`. The networks are CLIP's; only the names of weights and of
config fields differ. Unless the config says quick_gelu, the activation is the plain GELU.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sightline.errors import ConfigError
from sightline.hub import Config, KeyTable, Turned, read_json, write_json
from sightline.models.contrastive.dual import DualEncoder
from sightline.models.language.cbow_text import CBOWText
from sightline.models.language.clip_text import CLIPText, CLIPTextConfig
from sightline.models.outputs import EncoderOutput
from sightline.models.vision.clip_resnet import CLIPResNet
from sightline.models.vision.clip_vision import CLIPVision, CLIPVisionConfig

FILE = "open_clip_config.json"


@dataclass(frozen=True, kw_only=True)
class OpenCLIPVisionConfig(Config):
    """`vision_cfg`. A list of four numbers as `layers` means the modified ResNet."""

    layers: int | tuple[int, ...] = 12
    width: int = 768
    head_width: int = 64
    mlp_ratio: float = 4.0
    patch_size: int | None = 16
    image_size: int = 224
    attentional_pool: bool = False
    attn_pooler_queries: int = 256
    attn_pooler_heads: int = 8


@dataclass(frozen=True, kw_only=True)
class OpenCLIPTextConfig(Config):
    """`text_cfg`. `encoder`: "transformer", or "cbow" (ours; open_clip has no such tower)."""

    context_length: int = 77
    vocab_size: int = 49408
    width: int = 512
    heads: int = 8
    layers: int = 12
    mlp_ratio: float = 4.0
    embed_cls: bool = False
    correct_cls_mask: bool = False
    pad_id: int = 0
    encoder: str = "transformer"


@dataclass(frozen=True, kw_only=True)
class OpenCLIPConfig(Config):
    """`model_cfg` of open_clip_config.json."""

    model_type: ClassVar[str] = "open_clip"
    embed_dim: int = 512
    vision_cfg: OpenCLIPVisionConfig = field(default_factory=OpenCLIPVisionConfig)
    text_cfg: OpenCLIPTextConfig = field(default_factory=OpenCLIPTextConfig)
    quick_gelu: bool = False
    custom_text: bool = False
    init_logit_bias: float | None = None

    @property
    def act(self) -> str:
        return "quick_gelu" if self.quick_gelu else "gelu"


class OpenCLIPLayout(DualEncoder[OpenCLIPConfig]):
    """Reads and writes the folder; the networks are below and in coca.py."""

    Config = OpenCLIPConfig
    WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "model.safetensors")

    @classmethod
    def read_config(cls, folder: Path) -> Any:
        data = read_json(folder / FILE).get("model_cfg")
        if not isinstance(data, dict):
            raise ConfigError(f'{folder / FILE} has no "model_cfg"; fetch the file again.')
        return cls.Config.from_dict(data)

    def write_config(self, folder: Path) -> None:
        model = {k: v for k, v in stripped(self.config.to_dict()).items() if v is not None}
        pictures = None if self.processor is None or self.processor.pictures is None else self.processor.pictures
        preprocess = {} if pictures is None else preprocess_cfg(pictures.to_dict())
        write_json(folder / FILE, {"model_cfg": model, "preprocess_cfg": preprocess})

    @property
    def embedding_dim(self) -> int:
        return self.config.embed_dim


class OpenCLIP(OpenCLIPLayout):
    """CLIP under open_clip's names."""

    ARCHITECTURE = "CLIP"

    def __init__(self, config: OpenCLIPConfig) -> None:
        super().__init__(config)
        require_known(config)
        vision, text = config.vision_cfg, config.text_cfg
        self.visual_projection: nn.Linear | None = None
        if isinstance(vision.layers, tuple):
            heads = vision.width * 32 // vision.head_width
            self.vision: nn.Module = CLIPResNet(vision.layers, vision.width, heads, vision.image_size, config.embed_dim)
        else:
            self.vision = CLIPVision(vit_config(config))
            self.visual_projection = nn.Linear(vision.width, config.embed_dim, bias=False)
        self.text = CBOWText(text.vocab_size, text.width) if text.encoder == "cbow" else CLIPText(text_config(config))
        self.text_projection = nn.Linear(text.width, config.embed_dim, bias=False)
        self.logit_scale = nn.Parameter(torch.tensor(2.6592))
        if config.init_logit_bias is not None:
            self.logit_bias = nn.Parameter(torch.tensor(config.init_logit_bias))

    def encode_image(self, pixel_values: Tensor, **wanted: Any) -> tuple[Tensor, EncoderOutput]:
        out = self.vision(pixel_values, **wanted)
        pooled = out.pooler_output
        return pooled if self.visual_projection is None else self.visual_projection(pooled), out

    def encode_text(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, **wanted: Any
    ) -> tuple[Tensor, EncoderOutput]:
        out = self.text(input_ids, attention_mask, **wanted)
        return self.text_projection(out.pooler_output), out

    def patch_features(self, out: EncoderOutput) -> Float[Tensor, "batch patches dim"]:
        """As in CLIP; for the ResNet, what the pooling would read from one place alone (not normalised)."""
        if isinstance(self.vision, CLIPResNet):
            return self.vision.alone(out.last_hidden_state)
        assert isinstance(self.vision, CLIPVision) and self.visual_projection is not None
        placed: Tensor = self.visual_projection(self.vision.norm(out.last_hidden_state[:, 1:]))
        return placed

    def describe(self) -> dict[str, Any]:
        resnet = isinstance(self.config.vision_cfg.layers, tuple)
        words = "mean of words" if self.config.text_cfg.encoder == "cbow" else "end of text"
        act = "relu" if resnet else self.config.act
        return {"activation": act, "eps": 1e-5, "pooling": f"{'mean query' if resnet else 'cls'}, {words}"}

    def keys(self) -> KeyTable:
        resnet, cbow = isinstance(self.config.vision_cfg.layers, tuple), self.config.text_cfg.encoder == "cbow"
        before = "text." if self.config.custom_text else ""
        vision = CLIPResNet.KEYS.under("visual.", "vision.") if resnet else VISION.under("visual.", "vision.")
        text = CBOWText.KEYS if cbow else TEXT
        return vision | text.under(before, "text.") | KeyTable({
            "visual.proj": Turned("visual_projection.weight"),
            f"{before}text_projection": Turned("text_projection.weight"),
            "logit_scale": "logit_scale",
            "logit_bias": "logit_bias",
            f"{before}attn_mask": None,  # a buffer of old files
        })  # fmt: skip


BLOCKS = KeyTable(
    {
        "transformer.resblocks.{i}.attn.in_proj_*": "encoder.blocks.{i}.attention.qkv.*",
        "transformer.resblocks.{i}.attn.out_proj.*": "encoder.blocks.{i}.attention.output.*",
        "transformer.resblocks.{i}.ln_1.*": "encoder.blocks.{i}.norm_attention.*",
        "transformer.resblocks.{i}.ln_2.*": "encoder.blocks.{i}.norm_mlp.*",
        "transformer.resblocks.{i}.mlp.c_fc.*": "encoder.blocks.{i}.mlp.up.*",
        "transformer.resblocks.{i}.mlp.c_proj.*": "encoder.blocks.{i}.mlp.down.*",
    }
)
STEM = KeyTable(
    {
        "class_embedding": "class_token",
        "positional_embedding": "positions.table",
        "conv1.weight": "patches.weight",
        "ln_pre.*": "norm_in.*",
    }
)
VISION = STEM | BLOCKS | KeyTable({"ln_post.*": "norm.*"})
WORDS = KeyTable({"token_embedding.weight": "words.weight", "positional_embedding": "positions.weight"})
TEXT = WORDS | BLOCKS | KeyTable({"ln_final.*": "norm.*"})


def vit_config(config: OpenCLIPConfig) -> CLIPVisionConfig:
    """The same tower in CLIP's words."""
    v = config.vision_cfg
    if not isinstance(v.layers, int) or v.patch_size is None:
        raise ConfigError("open_clip_config.json: a ViT needs a number of layers and a patch_size.")
    return CLIPVisionConfig(
        hidden_size=v.width,
        intermediate_size=int(v.width * v.mlp_ratio),
        num_hidden_layers=v.layers,
        num_attention_heads=v.width // v.head_width,
        image_size=v.image_size,
        patch_size=v.patch_size,
        hidden_act=config.act,
    )


def text_config(config: OpenCLIPConfig) -> CLIPTextConfig:
    """The same tower in CLIP's words; open_clip reads each text at its highest id, which is the end of text."""
    t = config.text_cfg
    return CLIPTextConfig(
        vocab_size=t.vocab_size,
        hidden_size=t.width,
        intermediate_size=int(t.width * t.mlp_ratio),
        num_hidden_layers=t.layers,
        num_attention_heads=t.heads,
        max_position_embeddings=t.context_length,
        hidden_act=config.act,
        eos_token_id=2,
    )


HARMLESS = {  # fields that change no result of a checkpoint, and the values of others that mean "as usual"
    "vision_cfg": {
        "patch_dropout", "output_tokens", "timm_drop", "timm_drop_path", "timm_model_pretrained", "timm_pool",
        "timm_proj", "timm_proj_bias", "pos_embed_type",
    },
    "text_cfg": {
        "hf_tokenizer_name", "hf_model_pretrained", "hf_proj_type", "hf_pooler_type", "tokenizer_kwargs",
        "tokenizer_mode", "eos_id", "output_tokens", "proj_bias",
    },
    "model_cfg": {"nonscalar_logit_scale", "cast_dtype", "init_logit_scale", "multimodal_cfg", "output_dict"},
}  # fmt: skip
USUAL = {"pool_type": ("tok", "argmax"), "proj_type": ("linear",), "block_type": ("default",)}


def require_known(config: OpenCLIPConfig, *, pooled: bool = False) -> None:
    """ConfigError for an option that would change the network and is not built here."""
    for part, values in (("vision_cfg", config.vision_cfg), ("text_cfg", config.text_cfg), ("model_cfg", config)):
        for name, value in values.others.items():
            if name in HARMLESS[part] and not (name == "proj_bias" and value):
                continue
            if value and value not in USUAL.get(name, ()):
                raise ConfigError(
                    f'open_clip_config.json asks for "{name}": {value!r} in {part}, which Sightline does not build; '
                    "load the checkpoint with open_clip, or take one in the Hugging Face layout."
                )
    if config.vision_cfg.attentional_pool != pooled or config.text_cfg.embed_cls != pooled:
        raise ConfigError("open_clip_config.json: attentional_pool and embed_cls belong to CoCa, and both together.")
    if config.text_cfg.encoder not in ("transformer", "cbow"):
        raise ConfigError(f'text_cfg says "encoder": "{config.text_cfg.encoder}"; known are transformer and cbow.')


def stripped(data: Mapping[str, Any]) -> dict[str, Any]:
    """Without the model_type that our nested configs carry; open_clip refuses fields it does not know."""
    kept = {k: stripped(v) if isinstance(v, Mapping) else v for k, v in data.items()}
    drop = {"model_type": None, "encoder": "transformer", "correct_cls_mask": False}
    return {k: v for k, v in kept.items() if k not in drop or (k != "model_type" and v != drop[k])}


def preprocess_cfg(record: Mapping[str, Any]) -> dict[str, Any]:
    """open_clip's words for a preprocessor_config.json."""
    size, crop = record.get("size") or {}, record.get("crop_size") or {}
    height = crop.get("height") or size.get("height") or size.get("shortest_edge")
    width = crop.get("width") or size.get("width") or size.get("shortest_edge")
    return {
        "size": [height, width],
        "mode": "RGB",
        "mean": list(record["image_mean"]),
        "std": list(record["image_std"]),
        "interpolation": "bilinear" if record.get("resample") == 2 else "bicubic",
        "resize_mode": "shortest" if "shortest_edge" in size else "squash",
    }

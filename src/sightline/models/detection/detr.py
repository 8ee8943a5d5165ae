"""DETR: a picture's objects as a set, guessed all at once (Carion et al. 2020, arXiv:2005.12872).

pixels [B, 3, H, W] → ResNet, frozen norms → map /32 → 1×1 convolution → encoder → memory
100 learned queries → decoder, which looks at the memory → per query: a class or "no object", and a box

No anchors and no suppression of duplicates: the queries see one another and agree on who takes what.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from sightline.errors import ConfigError, UsageError
from sightline.hub import Config, KeyTable, Model
from sightline.media.boxes import Boxes
from sightline.media.pixels import PictureLike
from sightline.models.detection.detecting import detect
from sightline.models.detection.overlap import corners
from sightline.models.detection.processor import DetrProcessor
from sightline.models.detection.transformer import EPS, DecoderLayer, EncoderLayer, sine_positions
from sightline.models.loading import read_picture_record
from sightline.models.outputs import DetectionOutput
from sightline.models.processor import Processor
from sightline.models.vision.resnet import SIZES, TORCHVISION, TRUNK, FrozenBatchNorm, Norm, ResNetConfig, ResNetTrunk
from sightline.nn import LayerNorm, attention_bias

WHOLE = (  # the reference wants these as whole numbers
    *("class_cost", "bbox_cost", "giou_cost", "bbox_loss_coefficient", "giou_loss_coefficient"),
    *("mask_loss_coefficient", "dice_loss_coefficient"),
)


@dataclass(frozen=True, kw_only=True)
class DetrConfig(Config):
    """Field names and defaults are those of the official config.json.

    backbone_config: a ResNet's, or that of a timm ResNet by name; without it `backbone` names one of timm's, which
    decides how the weights are called in the file. dilation: DC5, only with timm's names.
    """

    model_type: ClassVar[str] = "detr"
    backbone_config: dict[str, Any] | None = None
    backbone: str | None = None
    num_queries: int = 100
    d_model: int = 256
    encoder_layers: int = 6
    encoder_attention_heads: int = 8
    encoder_ffn_dim: int = 2048
    decoder_layers: int = 6
    decoder_attention_heads: int = 8
    decoder_ffn_dim: int = 2048
    activation_function: str = "relu"
    dropout: float = 0.1
    auxiliary_loss: bool = False
    position_embedding_type: str = "sine"
    dilation: bool = False
    num_channels: int = 3
    class_cost: float = 1
    bbox_cost: float = 5
    giou_cost: float = 2
    bbox_loss_coefficient: float = 5
    giou_loss_coefficient: float = 2
    mask_loss_coefficient: float = 1
    dice_loss_coefficient: float = 1
    eos_coefficient: float = 0.1
    id2label: dict[str, str] | None = None

    def __post_init__(self) -> None:
        if self.position_embedding_type != "sine":
            raise ConfigError(
                f'config.json asks for "{self.position_embedding_type}" positions; DETR is read with sine positions.'
            )
        if self.d_model % 4:
            raise ConfigError(f"config.json says d_model {self.d_model}; sine positions need a multiple of 4.")

    @property
    def timm(self) -> bool:
        """Whether the file calls the backbone's weights as timm and torchvision do."""
        return self.backbone_config is None or self.backbone_config.get("model_type") == "timm_backbone"

    @property
    def resnet(self) -> ResNetConfig:
        """The backbone. ConfigError for one that is no plain ResNet."""
        record = self.backbone_config or {}
        if not self.timm:
            if record.get("model_type") != "resnet":
                raise ConfigError(f'config.json gives DETR a backbone "{record.get("model_type")}"; ResNet is known.')
            return ResNetConfig.from_dict(record)
        name = str(record.get("backbone") or self.backbone or "resnet50").partition(".")[0]
        if name not in SIZES:
            raise ConfigError(f'config.json names the backbone "{name}"; known are {", ".join(SIZES)}.')
        return ResNetConfig.from_dict({**SIZES[name], "num_channels": self.num_channels})

    @property
    def labels(self) -> list[str]:
        """Class names by index; the official default is two classes."""
        names = {str(k): str(v) for k, v in (self.id2label or {"0": "LABEL_0", "1": "LABEL_1"}).items()}
        return [names.get(str(i), f"LABEL_{i}") for i in range(len(names))]

    def to_dict(self) -> dict[str, Any]:
        record = super().to_dict()
        record |= {k: int(record[k]) for k in WHOLE if record[k] == int(record[k])}
        return {k: v for k, v in record.items() if v is not None or k == "backbone_config"}


@dataclass
class Looked:
    """What the backbone makes of a batch: all maps, the last one projected, where its cells lie, and the bias that hides
    those that are padding (None: there is none)."""

    maps: list[Tensor]
    projected: Float[Tensor, "batch hidden rows columns"]
    places: Float[Tensor, "#batch cells hidden"]
    bias: Float[Tensor, "batch 1 1 cells"] | None


class DETR(Model[DetrConfig]):
    """`model(pixel_values, pixel_mask)` → logits and pred_boxes; `model.boxes(output, sizes)` → Boxes in pixels."""

    Config = DetrConfig
    ARCHITECTURE = "DetrForObjectDetection"

    def __init__(self, config: DetrConfig, norm: Norm = FrozenBatchNorm) -> None:
        """norm: of the backbone. One trained from scratch needs nn.BatchNorm2d; it is saved as a frozen one."""
        super().__init__(config)
        c, resnet = config, config.resnet
        self.backbone = ResNetTrunk(resnet, norm, dilated=c.timm and c.dilation)
        self.projection = nn.Conv2d(resnet.hidden_sizes[-1], c.d_model, 1)
        self.encoder = nn.ModuleList(
            EncoderLayer(c.d_model, c.encoder_attention_heads, c.encoder_ffn_dim, c.activation_function, c.dropout)
            for _ in range(c.encoder_layers)
        )
        self.queries = nn.Parameter(torch.randn(c.num_queries, c.d_model))
        self.decoder = nn.ModuleList(
            DecoderLayer(c.d_model, c.decoder_attention_heads, c.decoder_ffn_dim, c.activation_function, c.dropout)
            for _ in range(c.decoder_layers)
        )
        self.norm = LayerNorm(c.d_model, EPS)
        self.classifier = nn.Linear(c.d_model, len(c.labels) + 1)
        self.box = nn.ModuleList(nn.Linear(c.d_model, out) for out in (c.d_model, c.d_model, 4))

    def forward(
        self,
        pixel_values: Float[Tensor, "batch channels height width"],
        pixel_mask: Int[Tensor, "batch height width"] | Bool[Tensor, "batch height width"] | None = None,
        *,
        auxiliary: bool = False,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
    ) -> DetectionOutput:
        """pixel_mask: 1 where there is picture, 0 where the batch is padded (None: all is picture).

        auxiliary: also the guesses after each decoder layer but the last, from a normed copy of its output (§3.2).
        With auxiliary_loss in its config the reference hands the normed output itself to the next layer; such a
        checkpoint is computed the same way here.
        """
        return self.decide(
            self.look(pixel_values, pixel_mask),
            auxiliary=auxiliary,
            states=output_hidden_states,
            attentions=output_attentions,
        )

    def look(self, pixel_values: Tensor, pixel_mask: Tensor | None) -> Looked:
        """The backbone, and where each cell of its last map lies; a cell is picture if the pixel at its corner is."""
        maps = self.backbone(pixel_values)
        projected = self.projection(maps[-1])
        rows, columns = projected.shape[2:]
        if pixel_mask is None:
            mask, bias = torch.ones(1, rows, columns, dtype=torch.bool, device=projected.device), None
        else:
            mask = F.interpolate(pixel_mask[None].float(), size=(rows, columns))[0].bool()
            bias = attention_bias(1, rows * columns, like=projected, padding=mask.flatten(1))
        return Looked(maps, projected, sine_positions(mask, self.config.d_model).to(projected.dtype), bias)

    def decide(self, looked: Looked, *, auxiliary: bool, states: bool, attentions: bool) -> DetectionOutput:
        """Encoder, decoder, heads."""
        memory = looked.projected.flatten(2).transpose(1, 2)
        encoded, encoder_seen = [memory], []
        for encoder in self.encoder:
            memory, seen = encoder(memory, looked.places, bias=looked.bias, weights=attentions)
            encoded.append(memory)
            encoder_seen.append(seen)
        places = self.queries.expand(len(memory), -1, -1)
        tokens = torch.zeros_like(places)
        decoded, decoder_seen, crossed = [tokens], [], []
        early: list[DetectionOutput] = []
        for decoder in self.decoder:
            tokens, seen, cross = decoder(tokens, places, memory, looked.places, bias=looked.bias, weights=attentions)
            decoded.append(tokens)
            decoder_seen.append(seen)
            crossed.append(cross)
            if auxiliary:
                early.append(DetectionOutput(*self.guess(self.norm(tokens))))
            if self.config.auxiliary_loss:
                tokens = self.norm(tokens)
        tokens = self.norm(tokens)
        logits, boxes = self.guess(tokens)
        return DetectionOutput(
            logits,
            boxes,
            tokens,
            memory,
            tuple(encoded) if states else None,
            tuple(encoder_seen) if attentions else None,
            (*decoded[:-1], tokens) if states else None,
            tuple(decoder_seen) if attentions else None,
            tuple(crossed) if attentions else None,
            tuple(early[:-1]) if auxiliary else None,
        )

    def guess(self, tokens: Float[Tensor, "batch queries hidden"]) -> tuple[Tensor, Tensor]:
        """Class logits, and boxes (cx, cy, w, h) in 0…1."""
        first, second, last = self.box
        return self.classifier(tokens), last(F.relu(second(F.relu(first(tokens))))).sigmoid()

    def detect(
        self, pictures: PictureLike | Iterable[PictureLike], threshold: float = 0.5, *, batch_size: int = 8
    ) -> list[Boxes]:
        """Pictures → boxes in pixels of each original, as `boxes`; labels index `config.labels`.

        What else is in the list changes nothing: only pictures that need no padding are computed together.
        """
        return detect(self, pictures, threshold, batch_size)

    @torch.no_grad()
    def boxes(self, output: DetectionOutput, sizes: Sequence[tuple[int, int]], threshold: float = 0.5) -> list[Boxes]:
        """Per picture the queries whose best class has more than `threshold`, in the order of the queries.

        sizes: (width, height) of each original upright picture (`Picture.original_size`). Scores are probabilities
        among the classes and "no object"; boxes may reach a little outside. UsageError for another count of sizes.
        """
        if len(sizes) != len(output.logits):
            raise UsageError(
                f"{len(output.logits)} pictures were looked at and {len(sizes)} sizes given; give one each."
            )
        best, classes = output.logits.float().softmax(-1)[..., :-1].max(-1)
        shares = corners(output.pred_boxes.float())
        phrases, found = tuple(self.config.labels), []
        for score, label, box, (width, height) in zip(best, classes, shares, sizes, strict=True):
            kept = score > threshold
            pixels = box[kept] * box.new_tensor([width, height, width, height])
            xyxy, labels, scores = (x.cpu().numpy() for x in (pixels, label[kept], score[kept]))
            found.append(Boxes(xyxy, labels, scores, phrases, width, height))
        return found

    # ---- files

    def keys(self) -> KeyTable:
        return names(self.config.timm)

    def official_state(self) -> dict[str, Tensor]:
        """Without the counters of norms that learn."""
        return {k: v for k, v in super().official_state().items() if not k.endswith(".num_batches_tracked")}

    @classmethod
    def adapt(cls, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Names as transformers 5 holds them in memory become those it writes."""
        return {official(name): tensor for name, tensor in tensors.items()}

    def read_processor(self, folder: Path) -> Processor | None:
        record = read_picture_record(folder)
        return None if record is None else Processor(DetrProcessor.from_dict(record), None)


def names(timm: bool) -> KeyTable:
    """Official names of DETR's weights; timm: how those of the backbone are called."""
    backbone = (TORCHVISION if timm else TRUNK).under("model.backbone.conv_encoder.model.", "backbone.")
    layers = {
        f"model.{side}.layers.{{i}}.{theirs}": f"{side}.{{i}}.{ours}"
        for side in ("encoder", "decoder")
        for theirs, ours in LAYER.items()
    }
    return KeyTable(
        backbone.rows
        | {k[:-1] + "num_batches_tracked": None for k, v in backbone.rows.items() if str(v).endswith("norm.*")}
        | layers
        | {
            "model.input_projection.*": "projection.*",
            "model.query_position_embeddings.weight": "queries",
            "model.decoder.layernorm.*": "norm.*",
            "class_labels_classifier.*": "classifier.*",
            "bbox_predictor.layers.{i}.*": "box.{i}.*",
        }
    )


LAYER = {
    "self_attn.q_proj.*": "attention.query.*",
    "self_attn.k_proj.*": "attention.key.*",
    "self_attn.v_proj.*": "attention.value.*",
    "self_attn.out_proj.*": "attention.output.*",
    "self_attn_layer_norm.*": "norm_attention.*",
    "encoder_attn.q_proj.*": "cross.query.*",
    "encoder_attn.k_proj.*": "cross.key.*",
    "encoder_attn.v_proj.*": "cross.value.*",
    "encoder_attn.out_proj.*": "cross.output.*",
    "encoder_attn_layer_norm.*": "norm_cross.*",
    "fc1.*": "mlp.up.*",
    "fc2.*": "mlp.down.*",
    "final_layer_norm.*": "norm_mlp.*",
}


def official(name: str) -> str:
    """transformers 5's name in memory → the name in files; a name of files stays."""
    name = name.replace("model.backbone.model.", "model.backbone.conv_encoder.model.")
    name = re.sub(r"(layers\.\d+\.)mlp\.(fc[12])", r"\1\2", name)
    return re.sub(r"(attn\.)o_proj", r"\1out_proj", name)


VARIANTS = {  # id → parameters, the frozen norms' numbers not counted (they are buffers)
    "facebook/detr-resnet-50": 41_524_768,
}

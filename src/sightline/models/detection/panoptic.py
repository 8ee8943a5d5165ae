"""DETR's panoptic head: a mask for every query (Carion et al. 2020, arXiv:2005.12872, §4.4, figure 8).

each query's box attention over the memory [heads, H/32, W/32], beside the projected map → 5 convolutions, each
fused with a finer map of the backbone → one mask logit per place, /4
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int32
from torch import Tensor, nn
from torch.nn import functional as F

from sightline.errors import ConfigError, UsageError
from sightline.hub import KeyTable, Model
from sightline.media.boxes import Boxes
from sightline.models.detection.detr import DETR, DetrConfig, names, official
from sightline.models.outputs import DetectionOutput
from sightline.models.processor import Processor
from sightline.nn import activation


class BoxAttention(nn.Module):
    """Where each query looks, per head, without a value: softmax over all heads and places at once."""

    def __init__(self, hidden: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key = nn.Linear(hidden, hidden), nn.Linear(hidden, hidden)

    def forward(
        self,
        queries: Float[Tensor, "batch queries hidden"],
        memory: Float[Tensor, "batch cells hidden"],
        bias: Float[Tensor, "batch 1 1 cells"] | None,
    ) -> Float[Tensor, "batch queries heads cells"]:
        query, key = (
            torch.unflatten(x, -1, (self.heads, -1)).transpose(1, 2) for x in (self.query(queries), self.key(memory))
        )
        scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)
        if bias is not None:
            scores = scores + bias
        scores = scores.transpose(1, 2)
        looks: Tensor = scores.flatten(2).softmax(-1).view_as(scores)
        return looks


class ConvBlock(nn.Module):
    """3×3 convolution, group norm, activation."""

    def __init__(self, channels: int, out: int, act: str) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(channels, out, 3, padding=1), nn.GroupNorm(min(8, out), out)
        self.act = activation(act)

    def forward(self, x: Float[Tensor, "n channels rows columns"]) -> Float[Tensor, "n out rows columns"]:
        return self.act(self.norm(self.conv(x)))


class MaskHead(nn.Module):
    """From the coarse map up to a quarter of the picture's size; every query is a picture of its own here."""

    def __init__(self, hidden: int, heads: int, finer: Sequence[int], act: str) -> None:
        super().__init__()
        if (hidden + heads) % 8 or hidden % 16:
            raise ConfigError(
                f"the mask head works in groups of 8 channels, so d_model {hidden} must be a multiple of 16 and "
                f"encoder_attention_heads {heads} one of 8; check config.json."
            )
        widths = [hidden // 2, hidden // 4, hidden // 8, hidden // 16]
        self.first = ConvBlock(hidden + heads, hidden + heads, act)
        self.blocks = nn.ModuleList(
            ConvBlock(channels, out, act) for channels, out in zip([hidden + heads, *widths], widths, strict=False)
        )
        self.adapters = nn.ModuleList(nn.Conv2d(c, out, 1) for c, out in zip(finer, widths, strict=False))
        self.output = nn.Conv2d(widths[-1], 1, 3, padding=1)

    def forward(
        self,
        features: Float[Tensor, "batch hidden rows columns"],
        looks: Float[Tensor, "batch queries heads rows columns"],
        finer: Sequence[Tensor],
    ) -> Float[Tensor, "batch queries height width"]:
        """finer: maps of the backbone from /16 to /4."""
        batch, queries = looks.shape[:2]
        features = features[:, None].expand(-1, queries, -1, -1, -1)
        x = self.blocks[0](self.first(torch.cat([features, looks], dim=2).flatten(0, 1)))
        for adapt, block, picture in zip(self.adapters, list(self.blocks)[1:], finer, strict=True):
            wide = torch.unflatten(F.interpolate(x, size=picture.shape[2:], mode="nearest"), 0, (batch, queries))
            x = block((wide + adapt(picture)[:, None]).flatten(0, 1))
        return torch.unflatten(self.output(x)[:, 0], 0, (batch, queries))


@dataclass(frozen=True, eq=False)
class Segments:
    """One picture cut into things and stuff. map int32 [height, width]: 0 where nothing is seen, else 1 + the row of
    the segment in labels (indices into phrases) and scores."""

    map: Int32[np.ndarray, "height width"]
    labels: tuple[int, ...]
    scores: tuple[float, ...]
    phrases: tuple[str, ...]


class PanopticDETR(Model[DetrConfig]):
    """`model(pixel_values, pixel_mask)` → DetectionOutput with pred_masks."""

    Config = DetrConfig
    ARCHITECTURE = "DetrForSegmentation"

    def __init__(self, config: DetrConfig) -> None:
        super().__init__(config)
        heads, finer = config.encoder_attention_heads, config.resnet.hidden_sizes
        if len(finer) != 4:
            raise ConfigError(f"the mask head needs a ResNet of 4 stages, and config.json describes {len(finer)}.")
        self.detr = DETR(config)
        self.look_at = BoxAttention(config.d_model, heads)
        self.head = MaskHead(config.d_model, heads, finer[2::-1], config.activation_function)

    def forward(
        self,
        pixel_values: Float[Tensor, "batch channels height width"],
        pixel_mask: Tensor | None = None,
        *,
        auxiliary: bool = False,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
    ) -> DetectionOutput:
        """As DETR's; pred_masks are logits, a quarter of the padded batch's height and width."""
        looked = self.detr.look(pixel_values, pixel_mask)
        output = self.detr.decide(
            looked, auxiliary=auxiliary, states=output_hidden_states, attentions=output_attentions
        )
        assert output.last_hidden_state is not None and output.encoder_last_hidden_state is not None
        looks = self.look_at(output.last_hidden_state, output.encoder_last_hidden_state, looked.bias)
        looks = torch.unflatten(looks, -1, looked.projected.shape[2:])
        output.pred_masks = self.head(looked.projected, looks, looked.maps[-2:0:-1])
        return output

    def boxes(self, output: DetectionOutput, sizes: Sequence[tuple[int, int]], threshold: float = 0.5) -> list[Boxes]:
        """As DETR's."""
        return self.detr.boxes(output, sizes, threshold)

    @torch.no_grad()
    def segments(
        self,
        output: DetectionOutput,
        sizes: Sequence[tuple[int, int]],
        *,
        threshold: float = 0.5,
        mask_threshold: float = 0.5,
        least_visible: float = 0.8,
        fuse: Sequence[int] = (),
    ) -> list[Segments]:
        """Every pixel goes to the query that wants it most; a query keeps its pixels if it is sure enough.

        sizes: (width, height) per picture. threshold: of the class probability, "no object" among the classes.
        mask_threshold, least_visible: a query whose own mask is hidden by others to more than 1 − least_visible is
        dropped. fuse: labels of stuff (sky, grass), whose parts become one segment.
        The mask covers the padded picture and is stretched to each size, as the reference does; give padded batches
        only where all pictures have one shape.
        """
        if output.pred_masks is None or len(sizes) != len(output.logits):
            raise UsageError(f"segments needs an output with masks and one size for each of its {len(output.logits)}.")
        best, classes = output.logits.float().softmax(-1).max(-1)
        none, found = output.logits.shape[-1] - 1, []
        for score, label, mask, (width, height) in zip(best, classes, output.pred_masks.float(), sizes, strict=True):
            kept = (label != none) & (score > threshold)
            found.append(
                self._cut(score[kept], label[kept], mask[kept], (height, width), mask_threshold, least_visible, fuse)
            )
        return found

    def _cut(
        self,
        scores: Tensor,
        labels: Tensor,
        masks: Tensor,
        size: tuple[int, int],
        mask_threshold: float,
        least_visible: float,
        fuse: Sequence[int],
    ) -> Segments:
        area = np.zeros(size, np.int32)
        kept_labels: list[int] = []
        kept_scores: list[float] = []
        fused: dict[int, int] = {}
        if len(scores):
            shares = F.interpolate(masks.sigmoid()[None], size=size, mode="bilinear", align_corners=False)[0]
            shares = shares * scores[:, None, None]
            owner = shares.argmax(0)
            for number, (label, score) in enumerate(zip(labels.tolist(), scores.tolist(), strict=True)):
                mine, own = owner == number, int((shares[number] >= mask_threshold).sum())
                if own == 0 or int(mine.sum()) / own <= least_visible:
                    continue
                row = fused.get(label)
                if row is None:
                    kept_labels.append(label)
                    kept_scores.append(score)
                    row = len(kept_labels)
                    if label in fuse:
                        fused[label] = row
                area[mine.cpu().numpy()] = row
        return Segments(area, tuple(kept_labels), tuple(kept_scores), tuple(self.config.labels))

    # ---- files

    def keys(self) -> KeyTable:
        return names(self.config.timm).under("detr.", "detr.") | HEAD

    @classmethod
    def adapt(cls, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Names as transformers 5 holds them in memory become those it writes."""
        return {_official_head(official(name)): tensor for name, tensor in tensors.items()}

    def read_processor(self, folder: Path) -> Processor | None:
        return self.detr.read_processor(folder)


HEAD = KeyTable(
    {
        "bbox_attention.q_linear.*": "look_at.query.*",
        "bbox_attention.k_linear.*": "look_at.key.*",
        "mask_head.lay1.*": "head.first.conv.*",
        "mask_head.gn1.*": "head.first.norm.*",
        "mask_head.out_lay.*": "head.output.*",
    }
    | {f"mask_head.lay{n + 2}.*": f"head.blocks.{n}.conv.*" for n in range(4)}
    | {f"mask_head.gn{n + 2}.*": f"head.blocks.{n}.norm.*" for n in range(4)}
    | {f"mask_head.adapter{n + 1}.*": f"head.adapters.{n}.*" for n in range(3)}
)


def _official_head(name: str) -> str:
    """transformers 5's name in memory → the name in files."""
    return re.sub(r"^(bbox_attention|mask_head)\.(.*)\.(weight|bias)$", lambda m: _head_part(m[1], m[2], m[3]), name)


def _head_part(module: str, part: str, kind: str) -> str:
    return f"{module}.{IN_MEMORY.get(part, part)}.{kind}"


IN_MEMORY = {"q_proj": "q_linear", "k_proj": "k_linear", "output_conv": "out_lay"}
IN_MEMORY |= {f"conv{n}.{part}": f"{short}{n}" for n in (1, 2) for part, short in (("conv", "lay"), ("norm", "gn"))}
IN_MEMORY |= {f"fpn_stages.{n}.fpn_adapter": f"adapter{n + 1}" for n in range(3)}
IN_MEMORY |= {
    f"fpn_stages.{n}.refine.{part}": f"{short}{n + 3}"
    for n in range(3)
    for part, short in (("conv", "lay"), ("norm", "gn"))
}

"""A one-stage detector: every cell of the map guesses a few boxes at once (Redmon et al. 2016, arXiv:1506.02640).

pixels [B, 3, H, W] → ResNet, frozen norms → 3×3 convolution → per cell and anchor: a thing? which? where?

The contrast to DETR on the same backbone: it needs anchors (typical widths and heights, from the data) and, because
neighbouring cells see the same thing, non-maximum suppression afterwards; it learns faster and has no transformer.
Anchors: YOLO9000, arXiv:1612.08242, §2. The bounded offsets are those of YOLOv4 and later.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
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
from sightline.models.detection.suppression import suppress
from sightline.models.loading import read_picture_record
from sightline.models.outputs import GridOutput
from sightline.models.processor import Processor
from sightline.models.vision.resnet import TRUNK, ConvNorm, FrozenBatchNorm, Norm, ResNetConfig, ResNetTrunk

MOST = 300  # candidates of one picture that suppression compares
PRIOR = 0.02  # how sure an untrained cell is that it sees a thing (Lin et al. 2017, arXiv:1708.02002, §4.1)


@dataclass(frozen=True, kw_only=True)
class GridConfig(Config):
    """Our own format: no official library has this model.

    anchors: widths and heights in pixels of the network's input. overlap: IoU above which suppression takes two boxes
    of one label for the same thing. backbone_config: a ResNet's.
    """

    model_type: ClassVar[str] = "sightline_grid"
    backbone_config: dict[str, Any]
    anchors: tuple[tuple[float, float], ...] = ((16.0, 16.0), (32.0, 32.0), (64.0, 64.0))
    hidden_size: int = 128
    overlap: float = 0.5
    id2label: dict[str, str] | None = None

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Any:
        pairs = data.get("anchors")
        if isinstance(pairs, (list, tuple)):
            data = {**data, "anchors": tuple(tuple(p) if isinstance(p, (list, tuple)) else p for p in pairs)}
        return super().from_dict(data)

    def __post_init__(self) -> None:
        pairs = [tuple(pair) if isinstance(pair, (list, tuple)) else () for pair in self.anchors]
        if not pairs or any(
            len(pair) != 2 or any(not isinstance(v, (int, float)) or not 0 < v < math.inf for v in pair)
            for pair in pairs
        ):
            raise ConfigError("config.json: anchors must be pairs of a width and a height in pixels, all above 0.")
        if not 0 <= self.overlap <= 1:
            raise ConfigError(f"config.json says overlap {self.overlap}; it is an IoU, 0 to 1.")
        object.__setattr__(self, "anchors", tuple((float(pair[0]), float(pair[1])) for pair in pairs))

    @property
    def resnet(self) -> ResNetConfig:
        """The backbone. ConfigError for one that is no ResNet."""
        if self.backbone_config.get("model_type", "resnet") != "resnet":
            raise ConfigError(f'config.json names the backbone "{self.backbone_config["model_type"]}", not a ResNet.')
        return ResNetConfig.from_dict(self.backbone_config)

    @property
    def stride(self) -> int:
        """Pixels from cell to cell: the stem and its maximum make 4, each later stage halves the map."""
        resnet = self.resnet
        return int(4 * 2 ** (len(resnet.depths) - 1 + resnet.downsample_in_first_stage))

    @property
    def labels(self) -> list[str]:
        """Class names by index."""
        names = {str(k): str(v) for k, v in (self.id2label or {"0": "LABEL_0"}).items()}
        return [names.get(str(i), f"LABEL_{i}") for i in range(len(names))]

    def to_dict(self) -> dict[str, Any]:
        return {**super().to_dict(), "anchors": [list(pair) for pair in self.anchors]}


class Grid(Model[GridConfig]):
    """`model(pixel_values, pixel_mask)` → guesses of every cell and anchor; `model.boxes(output, sizes)` → Boxes."""

    Config = GridConfig
    ARCHITECTURE = "SightlineGridForObjectDetection"
    KEYS = TRUNK.under("backbone.", "backbone.") | KeyTable(
        {"neck.convolution.*": "neck.conv.*", "neck.normalization.*": "neck.norm.*", "head.*": "head.*"}
    )

    def __init__(self, config: GridConfig, norm: Norm = FrozenBatchNorm) -> None:
        """norm: of the backbone. One trained from scratch needs nn.BatchNorm2d; it is saved as a frozen one."""
        super().__init__(config)
        resnet = config.resnet
        self.backbone = ResNetTrunk(resnet, norm)
        self.neck = ConvNorm(resnet.hidden_sizes[-1], config.hidden_size, 3, 1, norm)
        self.classes, self.anchors = len(config.labels), len(config.anchors)
        self.head = nn.Conv2d(config.hidden_size, self.anchors * (5 + self.classes), 1)

    def forward(
        self,
        pixel_values: Float[Tensor, "batch channels height width"],
        pixel_mask: Int[Tensor, "batch height width"] | Bool[Tensor, "batch height width"] | None = None,
    ) -> GridOutput:
        """pixel_mask: 1 where there is picture, 0 where the batch is padded; cells outside never see a thing.

        Guesses stand in the order rows, columns, anchors.
        """
        height, width = pixel_values.shape[-2:]
        raw = self.head(F.relu(self.neck(self.backbone(pixel_values)[-1]))).float()
        rows, columns = raw.shape[-2:]
        raw = raw.unflatten(1, (self.anchors, -1)).permute(0, 3, 4, 1, 2)  # [B, rows, columns, anchors, 5 + classes]
        cells, anchors = self._cells(rows, columns, raw.device)
        middle = (cells[:, :, None] + 2 * raw[..., :2].sigmoid() - 0.5) * self.config.stride
        sides = anchors * (2 * raw[..., 2:4].sigmoid()) ** 2
        objectness = raw[..., 4]
        size = raw.new_tensor([[width, height]])
        if pixel_mask is not None:
            mask = pixel_mask.float()
            size = torch.stack([mask.amax(1).sum(1), mask.amax(2).sum(1)], dim=1)
            inside = (cells * self.config.stride < size[:, None, None]).all(-1)
            objectness = objectness.masked_fill(~inside[..., None], -1e4)
        boxes = torch.cat([middle, sides], dim=-1) / size.repeat(1, 2)[:, None, None, None]
        return GridOutput(objectness.flatten(1), raw[..., 5:].flatten(1, 3), boxes.flatten(1, 3), (rows, columns))

    def _cells(self, rows: int, columns: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """(column, row) of each cell [rows, columns, 2], and the anchors [anchors, 2] in pixels."""
        down, right = torch.arange(rows, device=device), torch.arange(columns, device=device)
        cells = torch.stack([right.expand(rows, -1), down[:, None].expand(-1, columns)], dim=-1).float()
        return cells, torch.tensor(self.config.anchors, device=device)

    def detect(
        self, pictures: PictureLike | Iterable[PictureLike], threshold: float = 0.5, *, batch_size: int = 8
    ) -> list[Boxes]:
        """Pictures → boxes in pixels of each original, as `boxes`; labels index `config.labels`."""
        return detect(self, pictures, threshold, batch_size)

    @torch.no_grad()
    def boxes(
        self,
        output: GridOutput,
        sizes: Sequence[tuple[int, int]],
        threshold: float = 0.5,
        *,
        overlap: float | None = None,
    ) -> list[Boxes]:
        """Per picture the guesses with a score above `threshold` that suppression leaves, best first.

        sizes: (width, height) of each original upright picture. A score is the probability that there is a thing times
        that of its class. overlap: as in the config, which is the default; 1 suppresses nothing, to see what it is for.
        """
        if len(sizes) != len(output.objectness):
            raise UsageError(
                f"{len(output.objectness)} pictures were looked at and {len(sizes)} sizes given; give one each."
            )
        most = self.config.overlap if overlap is None else overlap
        best, classes = output.logits.float().softmax(-1).max(-1)
        scores = output.objectness.float().sigmoid() * best
        shares = corners(output.pred_boxes.float())
        phrases, found = tuple(self.config.labels), []
        for score, label, box, (width, height) in zip(scores, classes, shares, sizes, strict=True):
            kept = score.topk(min(MOST, len(score))).indices
            kept = kept[score[kept] > threshold]
            pixels = box[kept] * box.new_tensor([width, height, width, height])
            kept_here = suppress(pixels, score[kept], label[kept], most)
            xyxy, labels, sure = (
                x.cpu().numpy() for x in (pixels[kept_here], label[kept][kept_here], score[kept][kept_here])
            )
            found.append(Boxes(xyxy, labels, sure, phrases, width, height))
        return found

    # ---- files

    def official_state(self) -> dict[str, Tensor]:
        """Without the counters of norms that learn."""
        names = {k: v for k, v in self.state_dict().items() if not k.endswith(".num_batches_tracked")}
        return self.keys().to_theirs(names)

    def read_processor(self, folder: Path) -> Processor | None:
        record = read_picture_record(folder)
        return None if record is None else Processor(DetrProcessor.from_dict(record), None)

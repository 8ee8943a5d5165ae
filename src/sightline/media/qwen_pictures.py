"""Qwen2-VL's pictures: as they are, whatever their shape, in whole patches within a budget (Wang et al. 2024,
arXiv:2409.12191, §2.1, "naive dynamic resolution").

uint8 [H, W, 3] → sides to the nearest 28 px, area within two bounds → [patches, 3·2·14·14]

A patch is 14 × 14 px of two moments; a still picture is the same twice. Patches come in cells of 2 × 2, which the model
joins into one token, and cells row by row. Source: transformers 5.23 `qwen2_vl/image_processing_pil_qwen2_vl.py`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor

from sightline.errors import ConfigError, PictureError
from sightline.media.picture import Picture
from sightline.media.pixels import PictureLike, as_picture, as_pictures, channel_triple, digest_of, normaliser
from sightline.media.preprocess import OPENAI_MEAN, OPENAI_STD, processor_type
from sightline.media.resizing import RESAMPLE, Engine, resize

LONGEST_SHAPE = 200  # times the shorter side
Video = Sequence[PictureLike] | np.ndarray  # frames in order, or uint8 [frames, H, W, 3]


@dataclass(frozen=True, kw_only=True)
class QwenPictures:
    """Field names are those of preprocessor_config.json; `engine` as in PictureProcessor, not written to it.

    size: "shortest_edge" and "longest_edge" are, against their names, the least and the most pixels of a whole picture;
        `min_pixels` and `max_pixels` of older files say the same.
    """

    TYPE: ClassVar[str] = "Qwen2VLImageProcessor"

    do_convert_rgb: bool | None = True
    do_resize: bool = True
    size: Mapping[str, int] = field(default_factory=lambda: {"shortest_edge": 56 * 56, "longest_edge": 28 * 28 * 1280})
    resample: int = 3
    do_rescale: bool = True
    rescale_factor: float = 1 / 255
    do_normalize: bool = True
    image_mean: tuple[float, float, float] = OPENAI_MEAN
    image_std: tuple[float, float, float] = OPENAI_STD
    patch_size: int = 14
    temporal_patch_size: int = 2
    merge_size: int = 2
    engine: Engine = "exact"

    def __post_init__(self) -> None:
        object.__setattr__(self, "image_mean", channel_triple(self.image_mean, "image_mean"))
        object.__setattr__(self, "image_std", channel_triple(self.image_std, "image_std"))
        if self.resample not in range(len(RESAMPLE)):
            raise ConfigError(f"preprocessor_config.json: resample is {self.resample!r}, but it must be 0 to 5.")
        if not isinstance(self.rescale_factor, (int, float)) or not math.isfinite(self.rescale_factor):
            raise ConfigError(f"preprocessor_config.json: rescale_factor is {self.rescale_factor!r}, not a number.")
        for name, limit in (("patch_size", 256), ("temporal_patch_size", 16), ("merge_size", 16)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= limit:
                raise ConfigError(f"preprocessor_config.json: {name} is {value!r}, but it must be 1 to {limit}.")
        least, most = (self.size.get(name) for name in ("shortest_edge", "longest_edge"))
        if not isinstance(least, int) or not isinstance(most, int) or not 1 <= least <= most:
            raise ConfigError(
                f"preprocessor_config.json: size is {dict(self.size)}, but it must say shortest_edge and longest_edge, "
                "the least and the most pixels of a picture."
            )

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Any:
        """A preprocessor_config.json. Raises ConfigError for a step that changes pixels and is not known here."""
        if processor_type(record) not in (cls.TYPE, "CLIPImageProcessor", QwenPictures.TYPE):  # CLIP: nothing is named
            raise ConfigError(
                f"preprocessor_config.json names the image processor {processor_type(record)!r}; this family has {cls.TYPE}."
            )
        known = {f.name for f in fields(cls)} - {"engine"}
        unknown = sorted(k for k, v in record.items() if k.startswith("do_") and v and k not in known)
        if unknown:
            raise ConfigError(
                f"preprocessor_config.json asks for {', '.join(unknown)}, which {cls.TYPE} does not have."
            )
        values = {k: v for k, v in record.items() if k in known and v is not None}
        given = values.get("size", cls().size)
        if not isinstance(given, Mapping):
            raise ConfigError(f"preprocessor_config.json: size is {given!r}, but it must be an object.")
        size = dict(given)
        for new, old in (("shortest_edge", "min_pixels"), ("longest_edge", "max_pixels")):
            said = size.pop(old, None)
            size[new] = record.get(old) or said or size.get(new, 0)
        for name in {"image_mean", "image_std"} & set(values):
            values[name] = channel_triple(values[name], name)
        return cls(**{**values, "size": size})

    def to_dict(self) -> dict[str, Any]:
        """What transformers reads back."""
        record = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items() if v is not None}
        del record["engine"]
        return {**record, "image_processor_type": self.TYPE}

    @property
    def factor(self) -> int:
        """Pixels per side of what becomes one token."""
        return self.patch_size * self.merge_size

    @cached_property
    def digest(self) -> str:
        """Short hex name of everything that shapes the pixels, the engine included."""
        return digest_of({**self.to_dict(), "engine": self.engine})

    @property
    def target_shortest(self) -> int | None:
        """`shortest=` for read_picture: no picture keeps a longer short side than a square of the budget."""
        return math.isqrt(self.size["longest_edge"]) if self.do_resize else None

    def fast(self) -> QwenPictures:
        """The same with the fast engine."""
        return replace(self, engine="fast")

    def target(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) in px that a picture of this size is brought to. PictureError for one that is too long."""
        if not self.do_resize:
            return height, width
        return smart_size(height, width, self.factor, self.size["shortest_edge"], self.size["longest_edge"])

    def tokens(self, height: int, width: int) -> int:
        """How many tokens a language model reads of a picture of this size. 300×500 → 198."""
        rows, columns = (side // self.factor for side in self.target(height, width))
        return rows * columns

    def prepare(self, picture: Picture) -> Picture:
        """Resized to whole cells, still uint8. Does nothing the second time."""
        if picture.prepared == self.digest:
            return picture
        if picture.prepared:
            raise PictureError(f"{picture.source} was prepared for another model; read it again.")
        pixels = picture.pixels
        if self.do_resize:
            width, height = picture.original_size
            try:
                size = self.target(height, width)
            except PictureError as error:
                raise PictureError(f"{picture.source}: {error}") from None
            pixels = resize(pixels, size, RESAMPLE[self.resample], engine=self.engine)
        return replace(picture, pixels=pixels, prepared=self.digest)

    def __call__(self, pictures: PictureLike | Iterable[PictureLike]) -> dict[str, Tensor]:
        """`pixel_values` float32 [patches of all, channels·time·patch·patch]; `image_grid_thw` int64 [pictures, 3]:
        moments (1), rows and columns of patches of each."""
        parts, grids = [], []
        for picture in as_pictures(pictures):
            frame = self.normalised(self.prepare(picture))
            parts.append(self.patches(np.broadcast_to(frame, (self.temporal_patch_size, *frame.shape))))
            grids.append([1, *(side // self.patch_size for side in frame.shape[1:])])
        return {
            "pixel_values": torch.from_numpy(np.concatenate(parts)),
            "image_grid_thw": torch.tensor(grids, dtype=torch.int64),
        }

    def normalised(self, picture: Picture) -> Float32[np.ndarray, "3 height width"]:
        """The pixels of a prepared picture as the model sees them."""
        height, width = picture.pixels.shape[:2]
        if height % self.factor or width % self.factor:
            raise PictureError(
                f"{picture.source} is {width}×{height} px, which are no whole cells of {self.factor}; leave do_resize on."
            )
        table = normaliser(
            self.rescale_factor if self.do_rescale else None,
            self.image_mean if self.do_normalize else None,
            self.image_std if self.do_normalize else None,
        )
        planes = np.empty((3, height, width), table.dtype)
        table.into(planes, picture.pixels)
        return planes.astype(np.float32, copy=False)

    def patches(self, frames: Float32[np.ndarray, "frames 3 height width"]) -> Float32[np.ndarray, "patches values"]:
        """Moments, cells row by row, patches inside a cell row by row; values: channel, time, row, column."""
        count, _, height, width = frames.shape
        p, m, t = self.patch_size, self.merge_size, self.temporal_patch_size
        cut = frames.reshape(count // t, t, 3, height // (p * m), m, p, width // (p * m), m, p)
        return cut.transpose(0, 3, 6, 4, 7, 2, 1, 5, 8).reshape(-1, 3 * t * p * p)


@dataclass(frozen=True, kw_only=True)
class QwenVideos(QwenPictures):
    """The same for videos: two frames at a time are one moment. Fields of video_preprocessor_config.json.

    cap_pixels_per_frame: frames of long videos share a budget of 90 % of `max_video_tokens` (qwen-vl-utils).
    Frames are resized with Pillow's kernels like pictures; the official class uses torchvision's, at most 1/255 away
    (`fast()` takes those).
    """

    TYPE: ClassVar[str] = "Qwen2VLVideoProcessor"

    size: Mapping[str, int] = field(
        default_factory=lambda: {"shortest_edge": 128 * 28 * 28, "longest_edge": 28 * 28 * 768}
    )
    cap_pixels_per_frame: bool | None = None
    max_video_tokens: int = 128_000
    do_sample_frames: bool = False

    def to_dict(self) -> dict[str, Any]:
        record = super().to_dict()
        return {**record, "video_processor_type": record.pop("image_processor_type")}

    def videos(self, videos: Iterable[Video]) -> dict[str, Tensor]:
        """`pixel_values_videos` [patches of all, values] and `video_grid_thw` [videos, 3].

        An odd number of frames: the last counts twice. Raises PictureError for frames of unequal size or none at all,
        ConfigError where the checkpoint wants frames drawn by the second.
        """
        if self.do_sample_frames:
            raise ConfigError(
                "video_preprocessor_config.json asks for do_sample_frames, which is not known here; set it to false and "
                "choose the frames yourself."
            )
        parts, grids = [], []
        for number, video in enumerate(videos):
            frames = self._frames(video, f"video {number}")
            parts.append(self.patches(frames))
            _, _, height, width = frames.shape
            moments = len(frames) // self.temporal_patch_size
            grids.append([moments, height // self.patch_size, width // self.patch_size])
        if not parts:
            raise PictureError("There is no video in the list; give at least one.")
        return {
            "pixel_values_videos": torch.from_numpy(np.concatenate(parts)),
            "video_grid_thw": torch.tensor(grids, dtype=torch.int64),
        }

    def _frames(self, video: Video, name: str) -> Float32[np.ndarray, "frames 3 height width"]:
        if isinstance(video, (str, bytes)) or not hasattr(video, "__len__") or getattr(video, "ndim", 4) != 4:
            raise PictureError(f"{name} is neither a list of pictures nor an array [frames, height, width, 3].")
        pictures = [as_picture(frame, f"frame {i} of {name}") for i, frame in enumerate(video)]
        sizes = {picture.original_size for picture in pictures}
        if len(sizes) != 1:
            raise PictureError(f"{name} has frames of {len(sizes)} sizes; give one or more, all of one size.")
        side = self._sharing(len(pictures))
        shown = [side.normalised(side.prepare(picture)) for picture in pictures]
        return np.stack(shown + shown[-1:] * (-len(shown) % self.temporal_patch_size))

    def _sharing(self, frames: int) -> QwenVideos:
        """These numbers, with each frame's share of the budget as its most pixels."""
        if not self.cap_pixels_per_frame:
            return self
        least, most = self.size["shortest_edge"], self.size["longest_edge"]
        budget = int(self.max_video_tokens * self.factor**2 * 0.9)
        most = max(min(most, budget * self.temporal_patch_size // frames), int(least * 1.05))
        return replace(self, size={"shortest_edge": least, "longest_edge": most}, cap_pixels_per_frame=None)


def smart_size(height: int, width: int, factor: int, least: int, most: int) -> tuple[int, int]:
    """(height, width): each side the nearest multiple of `factor`; where the area leaves least … most pixels, both
    scaled alike and rounded inwards. Halves go to the even multiple. PictureError for sides more than 1 : 200."""
    if max(height, width) > LONGEST_SHAPE * min(height, width):
        raise PictureError(
            f"a picture of {width}×{height} px is more than {LONGEST_SHAPE} times as long as wide, which this model was "
            "not made for; cut it into parts."
        )
    rows, columns = round(height / factor), round(width / factor)
    if rows * columns * factor**2 > most:
        scale = math.sqrt(height * width / most)
        rows, columns = (max(1, math.floor(side / scale / factor)) for side in (height, width))
    elif rows * columns * factor**2 < least:
        scale = math.sqrt(least / (height * width))
        rows, columns = (math.ceil(side * scale / factor) for side in (height, width))
    return rows * factor, columns * factor

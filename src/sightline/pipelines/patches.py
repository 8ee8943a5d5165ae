"""What a vision model sees in each patch of a picture: features on a grid, their PCA as a picture, and those of a box."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float32, UInt8

from sightline.errors import UsageError
from sightline.hub import Model
from sightline.media import Picture, PictureProcessor
from sightline.models.contrastive.dual import DualEncoder


@dataclass(frozen=True, eq=False)
class PatchFeatures:
    """grid: one vector per patch as the model gives it (not normalised), row by row from the top left; together they
    cover the whole picture of width × height."""

    grid: Float32[np.ndarray, "rows columns dim"]
    width: int
    height: int

    def of(
        self, box: tuple[float, float, float, float], mask: Bool[np.ndarray, "height width"] | None = None
    ) -> Float32[np.ndarray, " dim"]:
        """The unit mean of the patches under a box (pixels), weighted by how much of each it covers; under a mask, by
        how much of the mask lies in each. Zeros for a box outside the picture."""
        rows, columns, _ = self.grid.shape
        if mask is not None and mask.any():
            y, x = np.nonzero(mask)
            at = (y * rows // mask.shape[0]) * columns + x * columns // mask.shape[1]
            weights = np.bincount(at, minlength=rows * columns).reshape(rows, columns).astype(np.float64)
        else:
            left, top, right, bottom = box
            across = _overlap(left * columns / self.width, right * columns / self.width, columns)
            down = _overlap(top * rows / self.height, bottom * rows / self.height, rows)
            weights = down[:, None] * across
        mean = np.einsum("rc,rcd->d", weights, self.grid)
        length = float(np.linalg.norm(mean))
        return np.asarray(mean / length if length > 0 else mean, np.float32)

    @property
    def pca(self) -> UInt8[np.ndarray, "rows columns 3"]:
        """The first three principal components of the unit vectors as red, green and blue.

        Each from its 2nd to its 98th percentile, with the sign that makes its largest weight positive: patches that are
        alike have like colours. Equal patches everywhere are grey.
        """
        rows, columns, dim = self.grid.shape
        flat = self.grid.reshape(-1, dim).astype(np.float64)
        flat = flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-12)
        flat = flat - flat.mean(axis=0)
        directions = np.linalg.svd(flat, full_matrices=False)[2][:3]
        largest = directions[np.arange(len(directions)), np.abs(directions).argmax(axis=1)]
        parts = flat @ (directions * np.where(largest < 0, -1.0, 1.0)[:, None]).T
        low, high = np.percentile(parts, (2, 98), axis=0)
        flatness = high - low < 1e-9
        shown = np.where(flatness, 0.5, (parts - low) / np.where(flatness, 1.0, high - low))
        picture = np.full((rows * columns, 3), 0.5)
        picture[:, : shown.shape[1]] = np.clip(shown, 0, 1)
        return np.asarray(np.rint(255 * picture), np.uint8).reshape(rows, columns, 3)


def patch_features(model: Model[Any], picture: Picture) -> PatchFeatures:
    """Patch features of a vision model (DINOv2, ViT) or of the picture tower of a contrastive one, there in its space.

    Nothing is cropped: the picture is resized to about as many patches as the model was made for, its shape kept to a
    patch; positions are resampled as the model does it. Raises UsageError for a model without patches or processor.
    """
    look = getattr(model.processor, "pictures", None)
    config = getattr(model.config, "vision_config", model.config)
    patch, side = getattr(config, "patch_size", None), getattr(config, "image_size", None)
    if not isinstance(look, PictureProcessor) or not isinstance(patch, int) or not isinstance(side, int):
        raise UsageError(f"{type(model).__name__} gives no patch features here; name a DINOv2, ViT or CLIP checkpoint.")
    width, height = picture.original_size
    shape = math.sqrt(height / width)
    rows, columns = (max(1, round(side * part / patch)) for part in (shape, 1 / shape))
    fitted = replace(
        look, do_resize=True, do_center_crop=False, size={"height": rows * patch, "width": columns * patch}
    )
    pixels = fitted([picture])["pixel_values"].to(model.device, model.dtype)
    with torch.inference_mode():
        if isinstance(model, DualEncoder):
            tokens = model.patch_features(model.encode_image(pixel_values=pixels)[1])
        else:
            tokens = model(pixel_values=pixels).last_hidden_state
        if tokens.ndim != 3 or tokens.shape[1] < rows * columns:
            raise UsageError(f"{type(model).__name__} gives no patch features; name a DINOv2, ViT or CLIP checkpoint.")
        grid = tokens[0, -rows * columns :].float().reshape(rows, columns, -1)  # [CLS] and registers stand first
    return PatchFeatures(grid.cpu().numpy(), width, height)


def _overlap(low: float, high: float, count: int) -> np.ndarray:
    """How much of each unit cell 0…1, 1…2, … lies between low and high."""
    cells = np.arange(count)
    return np.asarray(np.clip(np.minimum(cells + 1, high) - np.maximum(cells, low), 0, 1))

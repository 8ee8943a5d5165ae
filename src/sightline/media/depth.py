"""A depth map that knows its unit and its sign, and never turns relative depth into metres by itself."""

from __future__ import annotations

import io
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float32, Float64
from PIL import Image, PngImagePlugin

from sightline.errors import GeometryError, PictureError
from sightline.media.camera import Camera, Frame
from sightline.media.files import read_bytes, shown
from sightline.media.limits import Limits
from sightline.media.numeric import Real
from sightline.media.read import open_header

Unit = Literal["metre", "relative"]
Kind = Literal["depth", "inverse depth"]
MILLIMETRES = 1000.0  # steps per metre: what nearly all RGB-D data sets store


@dataclass(frozen=True, eq=False)
class DepthMap:
    """One number per pixel along the optical axis (z), not along the ray.

    values: float32 [height, width]; NaN where nothing is known.
    unit: "metre", or "relative" when scale (and shift) are unknown.
    kind: "depth" grows with distance; "inverse depth" (disparity) shrinks with it.
    camera: whose picture this is; needed for points.
    """

    values: Float32[np.ndarray, "height width"]
    unit: Unit
    kind: Kind = "depth"
    camera: Camera | None = None

    def __post_init__(self) -> None:
        values = np.asarray(self.values, np.float32)
        if values.ndim != 2 or values.size == 0:
            raise GeometryError(f"A depth map must be [height, width], not of shape {list(values.shape)}.")
        if self.unit not in ("metre", "relative"):
            raise GeometryError(f'The unit of a depth map is {self.unit!r}, but it must be "metre" or "relative".')
        if self.kind not in ("depth", "inverse depth"):
            raise GeometryError(f'The kind of a depth map is {self.kind!r}, but it must be "depth" or "inverse depth".')
        if self.camera is not None and (self.camera.height, self.camera.width) != values.shape:
            raise GeometryError(
                f"The depth map is {values.shape[1]}×{values.shape[0]}, "
                f"its camera {self.camera.width}×{self.camera.height}; "
                f"use camera.resized({values.shape[1]}, {values.shape[0]})."
            )
        object.__setattr__(self, "values", values)

    @property
    def width(self) -> int:
        return int(self.values.shape[1])

    @property
    def height(self) -> int:
        return int(self.values.shape[0])

    @property
    def known(self) -> Bool[np.ndarray, "height width"]:
        """Where there is a finite value above 0."""
        with np.errstate(invalid="ignore"):
            return np.asarray(np.isfinite(self.values) & (self.values > 0))

    def metres(self) -> Float32[np.ndarray, "height width"]:
        """Metres along z; NaN where unknown. Raises GeometryError for relative depth."""
        if self.unit != "metre":
            raise GeometryError("This depth is relative, so it has no metres; state a scale with in_metres(scale=…).")
        with np.errstate(divide="ignore", invalid="ignore"):
            distance = self.values if self.kind == "depth" else 1 / self.values
        return np.where(self.known, distance, np.float32(np.nan)).astype(np.float32)

    def in_metres(self, scale: Real, shift: Real = 0.0) -> DepthMap:
        """Relative → metric with a scale that you state: scale · value + shift is metres, or 1/metres when inverse.

        Pixels for which that is not above 0 become NaN. Raises GeometryError when the depth is metric already.
        """
        if self.unit == "metre":
            raise GeometryError("This depth is in metres already; a second scale would spoil it.")
        if not (math.isfinite(scale) and scale > 0 and math.isfinite(shift)):
            raise GeometryError(f"The scale is {scale} and the shift {shift}; both must be finite, the scale above 0.")
        scaled = self.values.astype(np.float64) * scale + shift
        with np.errstate(divide="ignore", invalid="ignore"):
            metres = np.where(scaled > 0, scaled if self.kind == "depth" else 1 / scaled, np.nan)
        return DepthMap(metres.astype(np.float32), "metre", "depth", self.camera)

    def points(self, frame: Frame = "world") -> Float64[np.ndarray, "n 3"]:
        """x, y, z in metres of every known pixel, row by row. Raises GeometryError without metres or a camera."""
        metres = self.metres()
        if self.camera is None:
            raise GeometryError("This depth map has no camera, so its pixels have no place; give it one.")
        known = np.isfinite(metres)
        return self.camera.lift(self.camera.pixel_grid()[known], metres[known], frame)

    def write_png(self, path: str | Path, scale: Real | None = None) -> None:
        """16-bit PNG: round(value · scale), 0 where unknown; unit, kind and scale are written beside it as text.

        scale: steps per unit; default 1000 for metric depth (millimetres). Relative values need one stated.
        Raises GeometryError when a value would not fit into 1…65535.
        """
        if scale is None:
            if self.unit != "metre" or self.kind != "depth":
                raise GeometryError("Say how many steps make one unit (scale=…): only metric depth has a usual scale.")
            scale = MILLIMETRES
        if not (math.isfinite(scale) and scale > 0):
            raise GeometryError(f"The scale is {scale}, but it must be finite and above 0.")
        known = self.known
        steps = np.round(np.where(known, self.values, 0).astype(np.float64) * scale)
        if known.any() and (steps[known].max() > 65535 or steps[known].min() < 1):
            low, high = float(self.values[known].min()), float(self.values[known].max())
            raise GeometryError(
                f"Depths from {low:g} to {high:g} do not fit into 16 bits at {scale:g} steps per unit; "
                f"choose another scale."
            )
        text = PngImagePlugin.PngInfo()
        for key, value in (("unit", self.unit), ("kind", self.kind), ("scale", repr(float(scale)))):
            text.add_text(f"sightline:{key}", value)
        coded = io.BytesIO()
        Image.fromarray(steps.astype(np.uint16)).save(coded, "PNG", pnginfo=text)
        partial = f"{os.fspath(path)}.part"
        with open(partial, "wb") as file:
            file.write(coded.getvalue())
        os.replace(partial, path)

    @classmethod
    def read_png(
        cls, path: str | Path, scale: Real | None = None, camera: Camera | None = None, limits: Limits | None = None
    ) -> DepthMap:
        """A 16-bit PNG: value / scale; 0 and 65535 (a common mark for "no depth") become NaN.

        A file without text of ours is metric depth, and 1000 steps a metre unless `scale` says otherwise.
        Raises PictureError when it is no 16-bit grey PNG, GeometryError when `scale` contradicts the file.
        """
        limits, name = limits or Limits(), shown(path)
        image, kind, _ = open_header(read_bytes(path, limits), name, limits)
        if kind != "PNG" or not image.mode.startswith("I"):
            raise PictureError(f"{name} is {kind} in mode {image.mode}, but a depth map is a 16-bit grey PNG.")
        try:
            steps = np.asarray(image).astype(np.float64)
            stated = {
                k: str(image.info[f"sightline:{k}"])
                for k in ("unit", "kind", "scale")
                if f"sightline:{k}" in image.info
            }
            own = float(stated["scale"]) if "scale" in stated else None
        except Exception:  # a decoder's own words stay inside
            raise PictureError(f"{name} is damaged and cannot be decoded; get a whole copy.") from None
        if own is not None and scale is not None and own != scale:
            raise GeometryError(
                f"{name} was written with {own:g} steps per unit, but you say {scale:g}; leave scale out."
            )
        per_unit = own or scale or MILLIMETRES
        if not (math.isfinite(per_unit) and per_unit > 0):
            raise GeometryError(f"{name}: the scale is {per_unit}, but it must be finite and above 0.")
        missing = (steps <= 0) | ((steps >= 65535) if own is None else False)
        values = np.where(missing, np.nan, steps / per_unit).astype(np.float32)
        return cls(values, stated.get("unit", "metre"), stated.get("kind", "depth"), camera)  # type: ignore[arg-type]

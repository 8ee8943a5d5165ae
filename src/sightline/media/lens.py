"""A camera from what a photograph says about its lens (EXIF). Nothing here is calibrated, and the object says so.

Three rules in this order; f is in pixels of the picture at hand, d its diagonal in pixels:
1. FocalLengthIn35mmFilm F:  f = F · d / 43.27 mm, the diagonal of 36 × 24 mm (CIPA DCG-001; a width-based maker is off
   by 4 % on 4:3 sensors).
2. FocalLength F and FocalPlaneXResolution r: f = F · r, r pixels per millimetre.
3. FocalLength F and a model whose sensor is in SENSORS, w × h mm: f = F · d / √(w² + h²).
The principal point is the middle, pixels are square, the lens does not distort.
Source of the tags: EXIF 2.32 (CIPA DC-008), §4.6.5.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sightline.errors import GeometryError
from sightline.media.camera import Camera
from sightline.media.files import read_bytes, shown
from sightline.media.limits import Limits
from sightline.media.read import ORIENTATION, open_header

EXIF_IFD = 0x8769
MODEL = 0x0110
FOCAL_LENGTH, FOCAL_35MM, DIGITAL_ZOOM = 0x920A, 0xA405, 0xA404
PLANE_X, PLANE_Y, PLANE_UNIT = 0xA20E, 0xA20F, 0xA210
PIXELS_ACROSS, PIXELS_DOWN = 0xA002, 0xA003
DIAGONAL_35MM = math.hypot(36, 24)
MILLIMETRES_PER_UNIT = {2: 25.4, 3: 10.0, 4: 1.0}  # inch, centimetre, millimetre (4 is an extension that makers use)

# model → sensor width, height in mm. Looked up on 2026-11-21, in stored copies of: Nikon's manuals (D40, D700), Wikipedia's
# table of DX cameras (D90), robgalbraith.com (400D = XTi, 50D), Canon's press release (5D Mark II), dsrlcamera.com (20D).
# Published sizes are rounded and differ from one another by up to 1 %.
SENSORS: dict[str, tuple[float, float]] = {
    "Canon EOS 5D Mark II": (36.0, 24.0),
    "Canon EOS 20D": (22.5, 15.0),
    "Canon EOS 400D DIGITAL": (22.2, 14.8),
    "Canon EOS DIGITAL REBEL XTi": (22.2, 14.8),
    "Canon EOS 50D": (22.3, 14.9),
    "NIKON D40": (23.7, 15.6),
    "NIKON D90": (23.6, 15.8),
    "NIKON D700": (36.0, 23.9),
}


def camera_from_exif(source: str | Path | bytes, limits: Limits | None = None, name: str | None = None) -> Camera:
    """The camera of a photograph, in pixels of its full upright picture; the pose is the identity.

    Raises PictureError when it cannot be read, GeometryError when its EXIF names no usable focal length, or when the
    picture was cropped since (its shape is not that of the stated original).
    """
    limits = limits or Limits()
    label = shown(name or ("the picture" if isinstance(source, bytes) else source))
    data = source if isinstance(source, bytes) else read_bytes(source, limits)
    image, _, _ = open_header(data, label, limits)
    try:
        exif = image.getexif()
        tags = {**dict(exif), **dict(exif.get_ifd(EXIF_IFD))}
    except Exception:  # a damaged side block is the same as none
        tags = {}
    return camera_from_tags(tags, *image.size, label)


def camera_from_tags(tags: Mapping[int, Any], width: int, height: int, name: str = "the picture") -> Camera:
    """EXIF tags by number, and the stored (not yet upright) size in pixels. Raises GeometryError as above."""
    scale = _rescaling(tags, width, height, name)
    focal, rule = _focal(tags, width, height, scale, name)
    if _positive(tags.get(ORIENTATION)) >= 5:
        width, height = height, width
    fov = math.degrees(2 * math.atan(width / 2 / focal))
    if not 1 <= fov <= 170:
        raise GeometryError(f"The EXIF of {name} means a field of view of {fov:.2g} degrees; state it with --fov.")
    K = np.array([[focal, 0, (width - 1) / 2], [0, focal, (height - 1) / 2], [0, 0, 1]])
    assumption = f"Assumed, not calibrated: {rule}; principal point in the middle, square pixels, no distortion."
    return Camera(K, width, height, assumption=assumption)


def _focal(tags: Mapping[int, Any], width: int, height: int, scale: float, name: str) -> tuple[float, str]:
    """(f in pixels, the rule in words)."""
    diagonal, millimetres = math.hypot(width, height), _positive(tags.get(FOCAL_LENGTH))
    film = _positive(tags.get(FOCAL_35MM))
    if film:
        return film * diagonal / DIAGONAL_35MM, f"focal length {film:g} mm as on 35 mm film, taken by the diagonal"
    zoom = _positive(tags.get(DIGITAL_ZOOM)) or 1.0
    unit = MILLIMETRES_PER_UNIT.get(int(_positive(tags.get(PLANE_UNIT)) or 2))
    across, down = _positive(tags.get(PLANE_X)), _positive(tags.get(PLANE_Y))
    if millimetres and across and unit and (not down or abs(across / down - 1) < 0.02):
        words = f"focal length {millimetres:g} mm and {across / unit:.4g} pixels per millimetre"
        return millimetres * across / unit * scale * zoom, words
    model = str(tags.get(MODEL, "")).strip().rstrip("\0")
    if millimetres and model in SENSORS:
        size = SENSORS[model]
        words = f"focal length {millimetres:g} mm on the {size[0]:g}×{size[1]:g} mm sensor of a {model}"
        return millimetres * diagonal / math.hypot(*size) * zoom, words
    raise GeometryError(
        f"{name} does not say how wide its lens sees (no usable EXIF focal length); state it with --fov."
    )


def _rescaling(tags: Mapping[int, Any], width: int, height: int, name: str) -> float:
    """Pixels at hand per pixel of the stated original; 1 when it states none."""
    across, down = _positive(tags.get(PIXELS_ACROSS)), _positive(tags.get(PIXELS_DOWN))
    if not across or not down:
        return 1.0
    if (across > down) != (width > height) and width != height:
        across, down = down, across  # turned upright by an editor that kept the tags
    if abs(width * down / (height * across) - 1) > 0.02:
        raise GeometryError(
            f"{name} was cropped after it was taken ({width}×{height} of {across:g}×{down:g} pixels), so its EXIF focal "
            f"length no longer tells its field of view; state it with --fov."
        )
    return width / across


def _positive(value: Any) -> float:
    """A finite number above 0, else 0.0: tags hold rationals, 0/0 and strings."""
    try:
        number = float(value)
    except (TypeError, ValueError, ZeroDivisionError, OverflowError):
        return 0.0
    return number if math.isfinite(number) and number > 0 else 0.0

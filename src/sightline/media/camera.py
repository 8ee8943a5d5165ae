"""A pinhole camera: where a point of the world lands in the picture, and where a pixel with a depth lies in the world.

world [.., 3] metres → pose⁻¹ → camera [.., 3] metres → K → pixels [.., 2]   (`project`; `lift` is the way back)

Frames. `camera`: x right, y down, z forward (OpenCV). `world`: right-handed, metres.
Pixels: (x, y); the centre of the top-left pixel is (0, 0), so the picture spans −0.5 … width − 0.5.
Source: Hartley & Zisserman, Multiple View Geometry, 2nd edition, eq. 6.1 and 6.8.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from jaxtyping import Float64

from sightline.errors import GeometryError
from sightline.media.numeric import Numbers, Real

Frame = Literal["world", "camera"]

ROTATION_TOLERANCE = 1e-3  # poses that were measured or written with few digits; 7-Scenes is off by 1.3e-4


def _identity() -> Float64[np.ndarray, "4 4"]:
    return np.eye(4)


@dataclass(frozen=True, eq=False)
class Camera:
    """K [3, 3] in pixels, the picture's size, and the pose camera→world [4, 4] (metres).

    K may have skew; its last row is 0 0 1 and both focal lengths are positive.
    assumption: one sentence on what was assumed where nothing was calibrated ("" for a calibrated camera); it travels
        with the camera and does not count when cameras are compared.
    Arrays are copied to float64 and made read-only.
    Raises GeometryError when K, the size or the pose is not what it should be.
    """

    K: Float64[np.ndarray, "3 3"]
    width: int
    height: int
    pose: Float64[np.ndarray, "4 4"] = field(default_factory=_identity)
    assumption: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "K", _checked_intrinsics(self.K))
        object.__setattr__(self, "pose", checked_pose(self.pose))
        for name in ("width", "height"):
            value = getattr(self, name)
            if isinstance(value, bool) or int(value) != value or value < 1:
                raise GeometryError(f"A camera's {name} is {value!r}, but it must be a whole number of pixels above 0.")
            object.__setattr__(self, name, int(value))

    # ---- making one

    @classmethod
    def from_fov(
        cls,
        width: int,
        height: int,
        fov_degrees: Real,
        pose: Numbers | None = None,
        axis: Literal["horizontal", "vertical"] = "horizontal",
        assumption: str = "",
    ) -> Camera:
        """Square pixels, principal point in the middle; `fov_degrees` spans the outer edges of the picture."""
        if not (math.isfinite(fov_degrees) and 0 < fov_degrees < 180):
            raise GeometryError(f"The field of view is {fov_degrees} degrees, but it must lie between 0 and 180.")
        extent = width if axis == "horizontal" else height
        focal = extent / 2 / math.tan(math.radians(fov_degrees) / 2)
        K = np.array([[focal, 0, (width - 1) / 2], [0, focal, (height - 1) / 2], [0, 0, 1]])
        return cls(K, width, height, _identity() if pose is None else np.asarray(pose, np.float64), assumption)

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Camera:
        try:
            K, pose = _matrix(record["K"], (3, 3), "K"), _matrix(record.get("pose", _identity()), (4, 4), "pose")
            return cls(K, record["width"], record["height"], pose, str(record.get("assumption", "")))
        except (KeyError, TypeError) as error:
            raise GeometryError(
                "A camera record needs K (3×3), width, height and, if it has one, pose (4×4)."
            ) from error

    def to_dict(self) -> dict[str, Any]:
        record = {"K": self.K.tolist(), "width": self.width, "height": self.height, "pose": self.pose.tolist()}
        return record | ({"assumption": self.assumption} if self.assumption else {})

    def resized(self, width: int, height: int) -> Camera:
        """The same view in a picture resized to width × height: edges stay edges, so centres move by half pixels."""
        across, down = width / self.width, height / self.height
        scale = np.array([[across, 0, across / 2 - 0.5], [0, down, down / 2 - 0.5], [0, 0, 1]])
        return Camera(scale @ self.K, width, height, self.pose, self.assumption)

    def with_pose(self, pose: Numbers) -> Camera:
        return Camera(self.K, self.width, self.height, np.asarray(pose, np.float64), self.assumption)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Camera):
            return NotImplemented
        same_size = (self.width, self.height) == (other.width, other.height)
        return same_size and np.array_equal(self.K, other.K) and np.array_equal(self.pose, other.pose)

    def __hash__(self) -> int:
        return hash((self.width, self.height, self.K.tobytes(), self.pose.tobytes()))

    # ---- frames

    @property
    def position(self) -> Float64[np.ndarray, "3"]:
        """The optical centre in the world, metres."""
        return self.pose[:3, 3]

    @property
    def fov_degrees(self) -> tuple[float, float]:
        """Horizontal and vertical field of view between the outer edges (exact for a centred principal point)."""
        across, down = (2 * math.atan(n / 2 / f) for n, f in ((self.width, self.K[0, 0]), (self.height, self.K[1, 1])))
        return math.degrees(across), math.degrees(down)

    def to_camera(self, points_world: Numbers) -> Float64[np.ndarray, "... 3"]:
        """World → camera frame, metres."""
        points = _triples(points_world, "points")
        return np.asarray((points - self.pose[:3, 3]) @ self.pose[:3, :3])  # Rᵀ(p − t), row-wise

    def to_world(self, points_camera: Numbers) -> Float64[np.ndarray, "... 3"]:
        """Camera → world frame, metres."""
        return np.asarray(_triples(points_camera, "points") @ self.pose[:3, :3].T + self.pose[:3, 3])

    # ---- the two ways

    def project(
        self, points_world: Numbers, frame: Frame = "world"
    ) -> tuple[Float64[np.ndarray, "... 2"], Float64[np.ndarray, "..."]]:
        """Points [.., 3] in metres → pixels [.., 2] (x, y) and depth [..] in metres along the optical axis (z).

        A point at or behind the optical centre has no pixel: its (x, y) is NaN, its depth is returned as it is.
        Pixels may lie outside the picture; `sees` tells.
        """
        points = self.to_camera(points_world) if _frame(frame) == "world" else _triples(points_world, "points")
        depth = points[..., 2]
        with np.errstate(divide="ignore", invalid="ignore"):
            pixels = (points @ self.K.T)[..., :2] / depth[..., None]
        return np.where((depth > 0)[..., None], pixels, np.nan), depth

    def lift(self, pixels: Numbers, depth: Numbers, frame: Frame = "world") -> Float64[np.ndarray, "... 3"]:
        """Back-project pixels to points.

        pixels: [.., 2] (x, y), centre of the top-left pixel at (0, 0).
        depth: [..] metres along the optical axis (z), not along the ray.
        Returns x, y, z in metres in the named frame.
        Raises GeometryError for depth that is not finite and positive; names the first such pixel.
        """
        at = np.asarray(pixels, np.float64)
        if at.ndim == 0 or at.shape[-1] != 2:
            raise GeometryError(f"Pixels have the shape {at.shape}, but their last axis must hold x and y.")
        z = np.asarray(depth, np.float64)
        if z.shape != at.shape[:-1]:
            raise GeometryError(
                f"There are depths of shape {z.shape} for pixels of shape {at.shape[:-1]}; give one each."
            )
        bad = ~(np.isfinite(z) & (z > 0))
        if bad.any():
            x, y = at[bad][0]
            raise GeometryError(
                f"The depth at pixel ({x:g}, {y:g}) is {z[bad][0]:g}, but it must be finite metres above 0; "
                f"leave such pixels out ({int(bad.sum())} of {bad.size})."
            )
        homogeneous = np.concatenate([at, np.ones_like(at[..., :1])], axis=-1)
        points = homogeneous @ np.linalg.inv(self.K).T * z[..., None]
        return self.to_world(points) if _frame(frame) == "world" else points

    def sees(self, pixels: Numbers) -> np.ndarray:
        """[.., 2] → bool [..]: inside the picture's outer edges (NaN is outside)."""
        at = np.asarray(pixels, np.float64)
        with np.errstate(invalid="ignore"):
            inside = (at >= -0.5) & (at < np.array([self.width, self.height]) - 0.5)
        return np.asarray(inside.all(axis=-1))

    def pixel_grid(self) -> Float64[np.ndarray, "height width 2"]:
        """(x, y) of every pixel centre."""
        x, y = np.meshgrid(np.arange(self.width, dtype=np.float64), np.arange(self.height, dtype=np.float64))
        return np.stack([x, y], axis=-1)

    def rays(self, frame: Frame = "world") -> tuple[Float64[np.ndarray, "3"], Float64[np.ndarray, "height width 3"]]:
        """Origin [3] and each pixel's direction, of camera-frame z 1: origin + z · direction lies at depth z."""
        grid = self.pixel_grid()
        at_one_metre = self.lift(grid, np.ones(grid.shape[:2]), frame="camera")
        if _frame(frame) == "camera":
            return np.zeros(3), at_one_metre
        return self.position, at_one_metre @ self.pose[:3, :3].T


def looking_at(eye: Numbers, target: Numbers, up: Numbers = (0.0, 0.0, 1.0)) -> Float64[np.ndarray, "4 4"]:
    """The pose camera→world [4, 4] of a camera at `eye` that looks at `target`, its top towards `up` (metres).

    Raises GeometryError when the view direction is zero or parallel to `up`.
    """
    position, aim, upwards = (np.asarray(v, np.float64) for v in (eye, target, up))
    forward = aim - position
    right = np.cross(forward, upwards)
    if not np.linalg.norm(right) > 1e-9 * max(1.0, float(np.linalg.norm(forward) * np.linalg.norm(upwards))):
        raise GeometryError("A camera cannot look along its own up direction; choose another `up` or another target.")
    z = forward / np.linalg.norm(forward)
    x = right / np.linalg.norm(right)
    pose = np.eye(4)
    pose[:3, :3] = np.stack([x, np.cross(z, x), z], axis=1)
    pose[:3, 3] = position
    return pose


def checked_pose(pose: Numbers) -> Float64[np.ndarray, "4 4"]:
    """A rigid motion [4, 4], float64 and read-only. Raises GeometryError when the left 3×3 is no rotation."""
    matrix = _matrix(pose, (4, 4), "pose")
    if not np.allclose(matrix[3], [0, 0, 0, 1], atol=1e-9):
        raise GeometryError("The last row of a pose must be 0 0 0 1; if yours is transposed, transpose it back.")
    rotation = matrix[:3, :3]
    if np.abs(rotation @ rotation.T - np.eye(3)).max() > ROTATION_TOLERANCE:
        raise GeometryError("The left 3×3 of a pose must be a rotation, but its columns are not orthonormal.")
    if np.linalg.det(rotation) < 0:
        raise GeometryError("The pose mirrors space (determinant −1); flip an axis so that its frame is right-handed.")
    matrix.setflags(write=False)
    return matrix


def _checked_intrinsics(K: Numbers) -> Float64[np.ndarray, "3 3"]:
    matrix = _matrix(K, (3, 3), "K")
    if not (matrix[0, 0] > 0 and matrix[1, 1] > 0):
        raise GeometryError("K must have positive focal lengths (pixels) at [0, 0] and [1, 1].")
    if matrix[1, 0] != 0 or not np.array_equal(matrix[2], [0, 0, 1]):
        raise GeometryError("K must be upper triangular with the last row 0 0 1.")
    matrix.setflags(write=False)
    return matrix


def _matrix(values: Numbers, shape: tuple[int, int], name: str) -> Float64[np.ndarray, "rows columns"]:
    try:
        matrix = np.array(values, np.float64)
    except (TypeError, ValueError):
        raise GeometryError(f"A camera's {name} must be {shape[0]}×{shape[1]} numbers.") from None
    if matrix.shape != shape:
        raise GeometryError(f"A camera's {name} must be {shape[0]}×{shape[1]} numbers, not of shape {matrix.shape}.")
    if not np.isfinite(matrix).all():
        raise GeometryError(f"A camera's {name} holds numbers that are not finite.")
    return matrix


def _triples(values: Numbers, name: str) -> Float64[np.ndarray, "... 3"]:
    array = np.asarray(values, np.float64)
    if array.ndim == 0 or array.shape[-1] != 3:
        raise GeometryError(f"The {name} have the shape {array.shape}, but their last axis must hold x, y and z.")
    return array


def _frame(name: str) -> str:
    if name not in ("world", "camera"):
        raise GeometryError(f'The frame is {name!r}, but it must be "world" or "camera".')
    return name

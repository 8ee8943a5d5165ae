"""Points and motions that know their frame: a point of one frame is never added to, or moved as, one of another.

Frames. `camera`: x right, y down, z forward (OpenCV). `world`: right-handed, metres. `base`: the robot's own, metres.

    grip = to_base @ Pose.of(camera).inverse() @ Points([[0.4, 0.1, 0.8]], "world")      # world → camera → base
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, overload

import numpy as np
from jaxtyping import Float64

from sightline.errors import GeometryError
from sightline.media.camera import Camera, checked_pose
from sightline.media.numeric import Numbers

FrameName = Literal["camera", "world", "base"]
FRAMES = ("camera", "world", "base")


def frame_name(name: str) -> str:
    """The name itself. Raises GeometryError when it is none of FRAMES."""
    if name not in FRAMES:
        raise GeometryError(f"There is no frame named {str(name)[:40]!r}; frames are camera, world and base.")
    return name


@dataclass(frozen=True, eq=False)
class Points:
    """xyz: float64 [.., 3], metres in `frame`; read-only. Raises GeometryError for other shapes or non-finite numbers."""

    xyz: Float64[np.ndarray, "... 3"]
    frame: str

    def __post_init__(self) -> None:
        try:
            xyz = np.array(self.xyz, np.float64)
        except (TypeError, ValueError):
            raise GeometryError("Points must be numbers: x, y and z in metres.") from None
        if xyz.ndim == 0 or xyz.shape[-1] != 3:
            raise GeometryError(f"Points have the shape {xyz.shape}, but their last axis must hold x, y and z.")
        if not np.isfinite(xyz).all():
            raise GeometryError("A point has a coordinate that is not finite; leave such points out.")
        xyz.setflags(write=False)
        object.__setattr__(self, "xyz", xyz)
        frame_name(self.frame)

    def __len__(self) -> int:
        return int(np.prod(self.xyz.shape[:-1]))

    def minus(self, other: Points) -> Float64[np.ndarray, "... 3"]:
        """The vectors from `other` to these, metres. Raises GeometryError when the frames differ."""
        if self.frame != other.frame:
            raise GeometryError(
                f"Points in the {self.frame} frame and in the {other.frame} frame cannot be compared; "
                f"move one set with a Pose first."
            )
        return np.asarray(self.xyz - other.xyz)

    def distance(self, other: Points) -> Float64[np.ndarray, "..."]:
        """Metres. Raises GeometryError when the frames differ."""
        return np.asarray(np.linalg.norm(self.minus(other), axis=-1))


@dataclass(frozen=True, eq=False)
class Pose:
    """The rigid motion that takes points of frame `source` to frame `target`: x_target = R · x_source + t (metres).

    matrix: [4, 4], float64, read-only.
    Raises GeometryError when the matrix is no rigid motion, or a frame has an unknown name.
    """

    matrix: Float64[np.ndarray, "4 4"]
    source: str
    target: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "matrix", checked_pose(self.matrix))
        frame_name(self.source)
        frame_name(self.target)

    @classmethod
    def of(cls, camera: Camera) -> Pose:
        """Where the camera stands: camera → world."""
        return cls(camera.pose, "camera", "world")

    @classmethod
    def from_quaternion(cls, xyzw: Numbers, position: Numbers, source: str = "camera", target: str = "world") -> Pose:
        """A unit quaternion (x, y, z, w; as TUM and ROS write it) and a position in metres.

        It is normalised; one that is off by more than 5 % raises GeometryError.
        """
        turn, place = np.asarray(xyzw, np.float64).reshape(-1), np.asarray(position, np.float64).reshape(-1)
        if turn.shape != (4,) or place.shape != (3,):
            raise GeometryError("A pose needs a quaternion of four numbers (x, y, z, w) and a position of three.")
        length = float(np.linalg.norm(turn))
        if not abs(length - 1) < 0.05:
            raise GeometryError(f"The quaternion has length {length:.3g}, so it is no rotation; its length must be 1.")
        x, y, z, w = turn / length
        matrix = np.eye(4)
        matrix[:3, :3] = [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
        matrix[:3, 3] = place
        return cls(matrix, source, target)

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Pose:
        try:
            return cls(np.asarray(record["matrix"], np.float64), str(record["source"]), str(record["target"]))
        except (KeyError, TypeError, ValueError):
            raise GeometryError("A pose record needs matrix (4×4 numbers), source and target.") from None

    def to_dict(self) -> dict[str, Any]:
        return {"matrix": self.matrix.tolist(), "source": self.source, "target": self.target}

    @property
    def rotation(self) -> Float64[np.ndarray, "3 3"]:
        return self.matrix[:3, :3]

    def inverse(self) -> Pose:
        """target → source."""
        # Measured rotations are orthonormal only to 1e-3; the true inverse keeps round trips exact all the same.
        back = np.linalg.inv(self.matrix)
        back[3] = (0, 0, 0, 1)
        return Pose(back, self.target, self.source)

    @overload
    def __matmul__(self, other: Pose) -> Pose: ...
    @overload
    def __matmul__(self, other: Points) -> Points: ...
    def __matmul__(self, other: Pose | Points) -> Pose | Points:
        """pose @ points moves them; pose @ pose does the right one first. Raises GeometryError when frames do not meet."""
        if isinstance(other, Points):
            self._meets(other.frame, "the points are")
            return Points(other.xyz @ self.rotation.T + self.matrix[:3, 3], self.target)
        if not isinstance(other, Pose):
            return NotImplemented
        self._meets(other.target, "the pose before it ends")
        matrix = self.matrix @ other.matrix
        matrix[3] = (0, 0, 0, 1)
        return Pose(matrix, other.source, self.target)

    def _meets(self, frame: str, who: str) -> None:
        if frame != self.source:
            raise GeometryError(
                f"This pose takes the {self.source} frame to the {self.target} frame, but {who} in the {frame} frame; "
                f"insert the pose {frame}→{self.source}."
            )

    def turn_covariance(self, covariance: Numbers) -> Float64[np.ndarray, "... 3 3"]:
        """Σ of a point in the source frame → R Σ Rᵀ in the target frame (the pose itself is taken as exact)."""
        return np.asarray(self.rotation @ np.asarray(covariance, np.float64) @ self.rotation.T)

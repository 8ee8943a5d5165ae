"""A pixel with a depth → a point with its uncertainty.

X = z K⁻¹ (u, v, 1)ᵀ, so to first order Σ_X = J diag(σ_u², σ_v², σ_z²) Jᵀ with the columns
J = [z K⁻¹e₁, z K⁻¹e₂, K⁻¹(u, v, 1)ᵀ]: a pixel's error grows with distance, a depth's error lies along the ray.
Source: Hartley & Zisserman, Multiple View Geometry, 2nd edition, eq. 6.1 and §5.2 (propagation of covariance).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

from sightline.errors import GeometryError
from sightline.media.camera import Camera, Frame
from sightline.media.frames import Points, Pose
from sightline.media.numeric import Numbers, Real

PIXEL_SIGMA = 0.5  # pixels: where inside a pixel the point lies, and a little more
LEAST_SIGMA = 1e-6  # metres: keeps covariances invertible


@dataclass(frozen=True, eq=False)
class UncertainPoint:
    """point: one point [3] in metres with its frame. covariance: [3, 3] in square metres, same frame."""

    point: Points
    covariance: Float64[np.ndarray, "3 3"]

    def __post_init__(self) -> None:
        covariance = np.array(self.covariance, np.float64)
        if self.point.xyz.shape != (3,) or covariance.shape != (3, 3):
            raise GeometryError("An uncertain point is one point [3] with one covariance [3, 3].")
        symmetric = np.allclose(covariance, covariance.T, rtol=1e-6, atol=1e-12)
        if not np.isfinite(covariance).all() or not symmetric or np.linalg.eigvalsh(covariance)[0] < -1e-12:
            raise GeometryError("A covariance must be finite, symmetric and have no negative direction.")
        covariance.setflags(write=False)
        object.__setattr__(self, "covariance", covariance)

    @property
    def frame(self) -> str:
        return self.point.frame

    @property
    def sigma(self) -> float:
        """Root of the mean square distance that is expected: √trace Σ, metres."""
        return math.sqrt(float(np.trace(self.covariance)))

    def moved(self, pose: Pose) -> UncertainPoint:
        return UncertainPoint(pose @ self.point, pose.turn_covariance(self.covariance))


def lift_points(camera: Camera, pixels: Numbers, depth: Numbers, frame: Frame = "camera") -> Points:
    """`Camera.lift` with a result that knows its frame. Raises GeometryError for depth not finite and above 0."""
    return Points(camera.lift(pixels, depth, frame), frame)


def project_points(camera: Camera, points: Points) -> tuple[Float64[np.ndarray, "... 2"], Float64[np.ndarray, "..."]]:
    """Pixels (x, y) and depth; NaN pixels behind the camera. Raises GeometryError for points of the base frame."""
    if points.frame == "base":
        raise GeometryError("Points in the base frame have no pixel; move them with a Pose base→camera first.")
    return camera.project(points.xyz, "world" if points.frame == "world" else "camera")


def lift_uncertain(
    camera: Camera,
    pixel: Numbers,
    depth: Real,
    depth_sigma: Real,
    pixel_sigma: Real | Numbers = PIXEL_SIGMA,
    frame: Frame = "camera",
) -> UncertainPoint:
    """One pixel (x, y) at `depth` metres along z, with standard deviations, to a point with its covariance.

    depth_sigma: metres. pixel_sigma: pixels, one number or (x, y).
    First order (see the top of this file): good while depth_sigma ≪ depth. K and the pose count as exact.
    Raises GeometryError for bad depth, or a sigma that is negative or not finite.
    """
    at = np.asarray(pixel, np.float64).reshape(-1)
    spread = np.broadcast_to(np.asarray(pixel_sigma, np.float64), (2,))
    sigmas = np.array([spread[0], spread[1], float(depth_sigma)])
    if not np.isfinite(sigmas).all() or (sigmas < 0).any():
        raise GeometryError(f"Standard deviations must be finite and not negative, not {sigmas.tolist()}.")
    point = Points(camera.lift(at, float(depth), "camera"), "camera")
    inverse = np.linalg.inv(camera.K)
    jacobian = np.stack([depth * inverse[:, 0], depth * inverse[:, 1], inverse @ [at[0], at[1], 1.0]], axis=1)
    covariance = jacobian @ np.diag(sigmas**2) @ jacobian.T + LEAST_SIGMA**2 * np.eye(3)
    lifted = UncertainPoint(point, covariance)
    return lifted.moved(Pose.of(camera)) if frame == "world" else lifted

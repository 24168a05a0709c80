"""Relative pose from matches, its errors, and the scores made of errors.

Angles are degrees. An estimate that failed has the error infinity and counts in every score.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import poselib

from raylg.evaluation.config import EvaluationConfig

FloatArray = npt.NDArray[np.float64]

MIN_MATCHES = 5
"""An essential matrix has five degrees of freedom."""


@dataclass(frozen=True, kw_only=True)
class PoseEstimate:
    """A relative pose up to the scale of its translation."""

    R: FloatArray
    """[3, 3], camera 0 to camera 1."""
    t: FloatArray
    """[3], unit length."""
    num_inliers: int
    """Matches within the threshold of the estimate."""


def estimator_version(config: EvaluationConfig) -> str:
    """Name and version of the estimator, as part of the scoring protocol."""
    return f"{config.estimator} {poselib.__version__}"


def estimate_relative_pose(
    points0: FloatArray, points1: FloatArray, camera0: FloatArray, camera1: FloatArray, config: EvaluationConfig
) -> PoseEstimate | None:
    """Estimate the pose from matched points by LO-RANSAC; a pure function of its arguments.

    Source: PoseLib (Larsson), five-point solver, refined with a Cauchy loss; defaults where `config` has no option.

    Args:
        points0: float64 [m, 2] px.
        points1: float64 [m, 2] px.
        camera0: [4], fx fy cx cy px.
        camera1: [4], likewise.
        config: threshold, iterations and seed.

    Returns:
        None when there are fewer than 5 matches, when a coordinate is not finite, and when the estimator found nothing.
    """
    if len(points0) < MIN_MATCHES or not (np.isfinite(points0).all() and np.isfinite(points1).all()):
        return None
    options = {
        "max_epipolar_error": config.ransac_threshold,
        "max_iterations": config.ransac_max_iterations,
        "seed": config.ransac_seed,
    }
    pose, info = poselib.estimate_relative_pose(points0, points1, _pinhole(camera0), _pinhole(camera1), options, {})
    num_inliers = int(info["num_inliers"])
    R, t = np.asarray(pose.R, dtype=np.float64), np.asarray(pose.t, dtype=np.float64)
    length = np.linalg.norm(t)
    # PoseLib answers a failure with the identity and no inliers.
    if num_inliers < MIN_MATCHES or not (np.isfinite(R).all() and np.isfinite(length) and length > 0):
        return None
    return PoseEstimate(R=R, t=t / length, num_inliers=num_inliers)


def _pinhole(camera: FloatArray) -> dict[str, object]:
    # Width and height play no part in the estimate.
    return {"model": "PINHOLE", "width": 0, "height": 0, "params": [float(x) for x in camera]}


def rotation_error(R: FloatArray, R_gt: FloatArray) -> FloatArray:
    """Angle of R^T R_gt in degrees; infinite where that is NaN.

    Args:
        R: [..., 3, 3].
        R_gt: [..., 3, 3].
    """
    relative = np.swapaxes(R, -1, -2) @ R_gt
    # atan2 of sine and cosine: the arc cosine of the trace alone loses half of the digits of a small angle.
    sine = np.sqrt(sum((relative[..., j, i] - relative[..., i, j]) ** 2 for i, j in ((0, 1), (0, 2), (1, 2))))
    cosine = np.trace(relative, axis1=-2, axis2=-1) - 1
    return _nan_to_infinity(np.degrees(np.arctan2(sine, cosine)))


def translation_error(t: FloatArray, t_gt: FloatArray) -> FloatArray:
    """Angle between the lines of two translations in degrees, 0 to 90, as the sign cannot be estimated.

    Infinite where a translation is zero or NaN: it has no direction.

    Args:
        t: [..., 3].
        t_gt: [..., 3].
    """
    sine = np.linalg.norm(np.cross(t, t_gt), axis=-1)
    cosine = np.abs((np.asarray(t) * t_gt).sum(-1))
    angle = np.degrees(np.arctan2(sine, cosine))
    return _nan_to_infinity(np.where((sine == 0) & (cosine == 0), np.nan, angle))


def _nan_to_infinity(angle: FloatArray) -> FloatArray:
    return np.asarray(np.where(np.isnan(angle), np.inf, angle), dtype=np.float64)


def auc(errors: FloatArray, thresholds: Sequence[float]) -> list[float]:
    """Area under the recall curve up to each threshold, 0 to 1, by the trapezoid rule of the published numbers.

    Source: SuperGlue (Sarlin et al. 2020), section 5; not rounded.

    Args:
        errors: [P] with P > 0; infinity or NaN is a failure.
        thresholds: in the unit of the errors.
    """
    assert len(errors) > 0, "the area under the curve of no error is not defined"
    ordered = np.sort(_nan_to_infinity(np.asarray(errors, dtype=np.float64)))
    recall = np.arange(len(ordered) + 1) / len(ordered)
    ordered = np.concatenate([[0.0], ordered])
    areas = []
    for threshold in thresholds:
        below = max(1, int(np.searchsorted(ordered, threshold)))
        curve = np.append(recall[:below], recall[below - 1])
        areas.append(float(np.trapezoid(curve, np.append(ordered[:below], threshold)) / threshold))
    return areas


def scores(errors: FloatArray, threshold: float) -> FloatArray:
    """max(0, 1 - error / threshold) of every pair; its mean is the AUC but for the trapezoids, and can be resampled."""
    errors = _nan_to_infinity(np.asarray(errors, dtype=np.float64))
    return np.maximum(0.0, 1.0 - errors / threshold)


def mean_score(errors: FloatArray, threshold: float) -> float:
    """Mean of `scores`, 0 to 1.

    Args:
        errors: [P] with P > 0.
        threshold: in the unit of the errors.
    """
    assert len(errors) > 0, "the mean score of no error is not defined"
    return float(scores(errors, threshold).mean())

"""Homography from matches, and its error at the corners of the image; errors are pixels.

An estimate that failed has the error infinity and counts in every score.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import poselib

from raylg.evaluation.config import EvaluationConfig
from raylg.evaluation.pose import FloatArray

MIN_MATCHES = 4
"""A homography has eight degrees of freedom, and a match fixes two."""


@dataclass(frozen=True, kw_only=True)
class HomographyEstimate:
    """A homography up to scale."""

    H: FloatArray
    """[3, 3], pixels of view 0 to pixels of view 1."""
    num_inliers: int
    """Matches within the threshold of the estimate."""


def estimate_homography(
    points0: FloatArray, points1: FloatArray, config: EvaluationConfig
) -> HomographyEstimate | None:
    """Estimate the homography from matched points by LO-RANSAC; a pure function of its arguments.

    Source: PoseLib (Larsson), four-point solver with refinement; defaults where `config` has no option.

    Args:
        points0: float64 [m, 2] px.
        points1: float64 [m, 2] px.
        config: threshold, iterations and seed.

    Returns:
        None when there are fewer than 4 matches, when a coordinate is not finite, and when the estimator found nothing.
    """
    if len(points0) < MIN_MATCHES or not (np.isfinite(points0).all() and np.isfinite(points1).all()):
        return None
    options = {
        "max_reproj_error": config.ransac_threshold,
        "max_iterations": config.ransac_max_iterations,
        "seed": config.ransac_seed,
    }
    H, info = poselib.estimate_homography(points0, points1, options, {})
    H, num_inliers = np.asarray(H, dtype=np.float64), int(info["num_inliers"])
    # After a failure PoseLib leaves chance in the matrix, and for collinear points in the number of inliers too; only
    # the ratio of inliers is then 0.
    if num_inliers < MIN_MATCHES or info["inlier_ratio"] == 0 or not np.isfinite(H).all():
        return None
    return HomographyEstimate(H=H, num_inliers=num_inliers)


def corner_error(H: FloatArray, H_gt: FloatArray, size: FloatArray) -> float:
    """Mean distance in pixels of view 1 of the four warped corners of view 0; infinite where one has no image.

    Source: HPatches protocol of SuperPoint (DeTone et al. 2018), section 7.3, as a mean distance.

    Args:
        H: [3, 3], estimated, up to scale.
        H_gt: [3, 3].
        size: [2], (width, height) of view 0.
    """
    width, height = size
    corners = np.array([[0, 0, 1], [width, 0, 1], [width, height, 1], [0, height, 1]], dtype=np.float64)
    estimated, true = corners @ np.asarray(H).T, corners @ np.asarray(H_gt).T
    with np.errstate(divide="ignore", invalid="ignore"):
        difference = estimated[:, :2] / estimated[:, 2:] - true[:, :2] / true[:, 2:]
        mean = float(np.linalg.norm(difference, axis=1).mean())
    return mean if np.isfinite(mean) else np.inf

"""Pose errors against OpenCV, scores against closed forms, and the estimator on exact and degenerate matches."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from raylg.evaluation.config import EvaluationConfig
from raylg.evaluation.pose import (
    auc,
    estimate_relative_pose,
    mean_score,
    rotation_error,
    scores,
    translation_error,
)

CAMERA0, CAMERA1 = np.array([500.0, 510, 320, 240]), np.array([450.0, 455, 300, 250])


def two_views(num: int, seed: int, outliers: float = 0.0) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Matched pixels of random points in front of two cameras, and R, t of the pair."""
    rng = np.random.default_rng(seed)
    R, _ = cv2.Rodrigues(rng.normal(size=3) * 0.2)
    t = rng.normal(size=3)
    points = rng.uniform([-2, -2, 4], [2, 2, 9], (num, 3))
    moved = points @ R.T + t * 0.5
    points0 = points[:, :2] / points[:, 2:] * CAMERA0[:2] + CAMERA0[2:]
    points1 = moved[:, :2] / moved[:, 2:] * CAMERA1[:2] + CAMERA1[2:]
    wrong = rng.random(num) < outliers
    points1[wrong] = rng.uniform(0, 480, (int(wrong.sum()), 2))
    return points0, points1, R, t


@pytest.mark.parametrize("angle", [1e-7, 1e-3, 1.0, 45.0, 179.0, 180.0])
def test_rotation_error_is_the_angle_of_rodrigues(angle: float) -> None:
    rng = np.random.default_rng(0)
    for _ in range(5):
        axis = rng.normal(size=3)
        R, _ = cv2.Rodrigues(rng.normal(size=3))
        delta, _ = cv2.Rodrigues(axis / np.linalg.norm(axis) * np.radians(angle))
        assert rotation_error(R @ delta, R) == pytest.approx(angle, rel=1e-6, abs=1e-12)


def test_rotation_error_of_a_batch() -> None:
    R = np.stack([np.eye(3), np.diag([1.0, -1, -1]), np.full((3, 3), np.nan)])
    assert rotation_error(R, np.eye(3)).tolist() == [0.0, 180.0, np.inf]


def test_translation_error_ignores_sign_and_length() -> None:
    t = np.array([1.0, 0, 0])
    angle = np.radians(30)
    rotated = np.array([np.cos(angle), np.sin(angle), 0])
    assert translation_error(3 * rotated, t) == pytest.approx(30)
    assert translation_error(-rotated, t) == pytest.approx(30)
    assert translation_error(np.array([0.0, 5, 0]), t) == pytest.approx(90)


def test_translation_without_direction_is_a_failure() -> None:
    t = np.array([[0.0, 0, 0], [np.nan, 0, 1], [0, 0, 2]])
    assert translation_error(t, np.array([0.0, 0, 1])).tolist() == [np.inf, np.inf, 0.0]


@pytest.mark.parametrize("outliers", [0.0, 0.5])
def test_estimate_of_exact_matches(outliers: float) -> None:
    points0, points1, R, t = two_views(200, 1, outliers)
    # Few random outliers lie within 0.1 px of their epipolar lines; those that do pull a little.
    config = EvaluationConfig(ransac_threshold=0.1)
    estimate = estimate_relative_pose(points0, points1, CAMERA0, CAMERA1, config)
    assert estimate is not None
    tolerance = 0.02 if outliers else 1e-5
    assert rotation_error(estimate.R, R) < tolerance
    assert translation_error(estimate.t, t) < tolerance
    assert np.linalg.norm(estimate.t) == pytest.approx(1)
    assert 200 * (1 - outliers) - 20 <= estimate.num_inliers <= 200


def test_estimate_agrees_with_opencv() -> None:
    points0, points1, R, _ = two_views(100, 2)
    rng = np.random.default_rng(0)
    points0, points1 = (points + rng.normal(size=points.shape) * 0.2 for points in (points0, points1))
    ours = estimate_relative_pose(points0, points1, CAMERA0, CAMERA1, EvaluationConfig())
    normal0, normal1 = (points0 - CAMERA0[2:]) / CAMERA0[:2], (points1 - CAMERA1[2:]) / CAMERA1[:2]
    E, _ = cv2.findEssentialMat(normal0, normal1, np.eye(3), method=cv2.RANSAC, prob=0.9999, threshold=2 / 500)
    _, R_cv, t_cv, _ = cv2.recoverPose(E, normal0, normal1)
    assert ours is not None
    assert rotation_error(ours.R, R_cv) < 2
    assert translation_error(ours.t, t_cv[:, 0]) < 10
    assert rotation_error(ours.R, R) <= rotation_error(R_cv, R) + 0.1


def test_estimate_is_a_function_of_matches_and_seed() -> None:
    points0, points1, _, _ = two_views(60, 3, outliers=0.7)
    first, again = (estimate_relative_pose(points0, points1, CAMERA0, CAMERA1, EvaluationConfig()) for _ in range(2))
    assert first is not None
    assert again is not None
    assert np.array_equal(first.R, again.R)
    assert np.array_equal(first.t, again.t)


def test_options_reach_the_estimator() -> None:
    points0, points1, _, _ = two_views(80, 4, outliers=0.6)
    noise = np.random.default_rng(0).normal(size=points1.shape)

    def estimate(**options: float) -> tuple[int, list[float]]:
        config = EvaluationConfig(**options)
        pose = estimate_relative_pose(points0, points1 + noise, CAMERA0, CAMERA1, config)
        return (0, []) if pose is None else (pose.num_inliers, pose.t.tolist())

    assert estimate(ransac_threshold=5.0)[0] > estimate(ransac_threshold=0.5)[0]
    assert estimate(ransac_max_iterations=1) != estimate()
    assert len({tuple(estimate(ransac_max_iterations=3, ransac_seed=seed)[1]) for seed in range(5)}) > 1


@pytest.mark.parametrize("num", [0, 1, 4])
def test_too_few_matches(num: int) -> None:
    points0, points1, _, _ = two_views(num, 0)
    assert estimate_relative_pose(points0, points1, CAMERA0, CAMERA1, EvaluationConfig()) is None


def test_no_pose_when_the_estimator_finds_nothing() -> None:
    rng = np.random.default_rng(0)
    points0, points1 = rng.uniform(0, 480, (20, 2))[:5], rng.uniform(0, 480, (20, 2))[:5]
    config = EvaluationConfig(ransac_threshold=0.5, ransac_max_iterations=500)
    assert estimate_relative_pose(points0, points1, np.array([500.0, 500, 320, 240]), CAMERA1, config) is None


def test_no_pose_from_a_coordinate_that_is_not_finite() -> None:
    points0, points1, _, _ = two_views(20, 0)
    assert estimate_relative_pose(points0, points1, CAMERA0, CAMERA1, EvaluationConfig()) is not None
    points1[3, 0] = np.nan
    assert estimate_relative_pose(points0, points1, CAMERA0, CAMERA1, EvaluationConfig()) is None


def test_area_under_the_curve_in_closed_form() -> None:
    # One error e below t: recall rises linearly from (0, 0) to (e, 1) and stays.
    assert auc(np.array([2.0]), [5.0, 10.0]) == pytest.approx([1 - 2 / 10, 1 - 2 / 20])
    assert auc(np.array([7.0]), [5.0]) == [0.0]
    assert auc(np.array([np.inf, np.nan, 2.0, 50.0]), [5.0]) == pytest.approx([(1 - 2 / 10) / 4])
    assert auc(np.zeros(3), [5.0]) == pytest.approx([1.0])
    assert auc(np.array([0.0, 0.0, np.inf]), [5.0]) == pytest.approx([2 / 3])


def test_area_under_the_curve_is_not_rounded() -> None:
    (area,) = auc(np.array([1 / 3]), [5.0])
    assert area == pytest.approx(1 - 1 / 30, abs=1e-14)


def test_mean_score_is_the_area_but_for_the_trapezoids() -> None:
    errors = np.random.default_rng(0).exponential(6.0, 1500)
    assert mean_score(errors, 10.0) == pytest.approx(auc(errors, [10.0])[0], abs=1e-3)


def test_scores() -> None:
    assert scores(np.array([0.0, 2.5, 5.0, 9.0, np.inf, np.nan]), 5.0).tolist() == [1, 0.5, 0, 0, 0, 0]
    assert mean_score(np.array([0.0, 2.5, 5.0, np.inf]), 5.0) == pytest.approx(1.5 / 4)

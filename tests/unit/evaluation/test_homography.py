"""Corner errors against closed forms, and the estimator on exact and degenerate matches."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from raylg.evaluation.config import EvaluationConfig
from raylg.evaluation.homography import corner_error, estimate_homography

SIZE = np.array([640.0, 480.0])
CONFIG = EvaluationConfig(ransac_max_iterations=1000)
H_GT = np.array([[1.1, 0.05, 30], [-0.02, 0.95, 10], [1e-4, -5e-5, 1]])


def matches(num: int, H: np.ndarray = H_GT, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Points of view 0 and where H takes them."""
    points0 = np.random.default_rng(seed).uniform((0, 0), SIZE, (num, 2))
    return points0, cv2.perspectiveTransform(points0[None], H)[0]


def test_corner_error_is_the_mean_distance_of_the_warped_corners() -> None:
    assert corner_error(H_GT, H_GT, SIZE) == 0
    shift = np.array([[1, 0, 3], [0, 1, 4], [0, 0, 1.0]])
    assert corner_error(shift @ H_GT, H_GT, SIZE) == pytest.approx(5)
    stretched = np.diag([1 + 2 / 640, 1, 1])  # moves the two corners on the right by 2 px
    assert corner_error(stretched, np.eye(3), SIZE) == pytest.approx(1)


def test_corner_error_agrees_with_opencv() -> None:
    H = H_GT + np.array([[0.01, 0, 1], [0, -0.02, 2], [1e-5, 0, 0]])
    corners = np.array([[[0, 0], [640, 0], [640, 480], [0, 480]]], np.float64)
    distance = cv2.perspectiveTransform(corners, H) - cv2.perspectiveTransform(corners, H_GT)
    assert corner_error(H, H_GT, SIZE) == pytest.approx(np.linalg.norm(distance, axis=-1).mean(), rel=1e-9)


@pytest.mark.parametrize("scale", [-1.0, 1e-3, 50.0])
def test_corner_error_ignores_scale_and_sign(scale: float) -> None:
    assert corner_error(scale * H_GT, H_GT, SIZE) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("H", [np.zeros((3, 3)), np.full((3, 3), np.nan), np.diag([1.0, 1, 0])])
def test_a_corner_without_image_is_a_failure(H: np.ndarray) -> None:
    assert corner_error(H, np.eye(3), SIZE) == np.inf


@pytest.mark.parametrize("num", [4, 5, 60])
def test_exact_matches_give_the_homography(num: int) -> None:
    estimate = estimate_homography(*matches(num), CONFIG)
    assert estimate is not None
    assert estimate.num_inliers == num
    assert corner_error(estimate.H, H_GT, SIZE) < 1e-3


def test_outliers_are_told_apart() -> None:
    points0, points1 = matches(100)
    points1[::3] = np.random.default_rng(1).uniform((0, 0), SIZE, (34, 2))
    estimate = estimate_homography(points0, points1, CONFIG)
    assert estimate is not None
    assert 66 <= estimate.num_inliers < 72
    assert corner_error(estimate.H, H_GT, SIZE) < 0.1


def test_estimate_is_a_pure_function_and_obeys_its_options() -> None:
    points0, points1 = matches(40)
    points1 += np.random.default_rng(2).normal(0, 1.5, points1.shape)
    first = estimate_homography(points0, points1, CONFIG)
    again = estimate_homography(points0, points1, CONFIG)
    strict = estimate_homography(points0, points1, EvaluationConfig(ransac_threshold=0.3, ransac_max_iterations=1000))
    assert first is not None and again is not None and strict is not None
    np.testing.assert_array_equal(first.H, again.H)
    assert strict.num_inliers < first.num_inliers


@pytest.mark.parametrize("num", [0, 1, 3])
def test_too_few_matches(num: int) -> None:
    points0, points1 = matches(4)
    assert estimate_homography(points0[:num], points1[:num], CONFIG) is None


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_coordinates_that_are_not_finite(value: float) -> None:
    points0, points1 = matches(10)
    points1[3, 1] = value
    assert estimate_homography(points0, points1, CONFIG) is None


def test_points_that_fix_no_homography() -> None:
    line = np.stack([np.arange(10.0), np.arange(10.0)], axis=1)
    assert estimate_homography(line, line + 3, CONFIG) is None
    assert estimate_homography(np.full((10, 2), 5.0), np.full((10, 2), 7.0), CONFIG) is None

"""Homographies of views: what is drawn, and that a warp puts every pixel where the homography says."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from raylg.data import homographies
from raylg.data.config import ImagesConfig
from raylg.data.homographies import (
    UNIT_SQUARE,
    convexity,
    homography_of_quad,
    sample_pair,
    sample_quad,
    seen_share,
    spans,
    warp_views,
)
from tests.unit.data.registration import SHIFT, apply, displacements, half_pixel_mistake

OPTIONS = ImagesConfig()
SIZE = (OPTIONS.width, OPTIONS.height)
CORNERS = UNIT_SQUARE * SIZE


def textured(width: int, height: int, seed: int = 0) -> torch.Tensor:
    """uint8 [H, W, 3] with structure at several scales, and no preferred place."""
    rng = np.random.default_rng(seed)
    layers = [cv2.GaussianBlur(rng.standard_normal((height, width, 3)), (0, 0), sigma) for sigma in (1.5, 3, 8)]
    image = sum(layer / layer.std() for layer in layers)
    return torch.from_numpy(np.clip(128 + 30 * np.asarray(image), 0, 255).astype(np.uint8))


def grey(view: torch.Tensor) -> np.ndarray:
    """What is left of a view [3, H, W] after rounding to 8 bits, float64 [H, W]."""
    return view.round().mean(dim=0).double().numpy()


def test_a_pair_is_a_function_of_the_generator() -> None:
    first, again = (sample_pair(np.random.default_rng(3), (900, 600), OPTIONS) for _ in range(2))
    other = sample_pair(np.random.default_rng(4), (900, 600), OPTIONS)
    np.testing.assert_array_equal(first.H_0to1, again.H_0to1)
    assert first.overlap == again.overlap
    assert np.abs(first.H_0to1 - other.H_0to1).max() > 1e-3


def test_the_views_of_a_pair_fit_together() -> None:
    for seed in range(50):
        pair = sample_pair(np.random.default_rng(seed), (640, 427), OPTIONS)
        points = np.random.default_rng(seed).uniform(0, 1, (20, 2)) * SIZE
        in_photograph = apply(np.linalg.inv(pair.H0), points)
        expected = apply(pair.H1, in_photograph)
        np.testing.assert_allclose(apply(pair.H_0to1, points), expected, rtol=1e-6, atol=1e-6)
        # Single precision is what training gets.
        seen = ((expected > 0) & (expected < SIZE)).all(axis=1)
        rounded = apply(pair.H_0to1.astype(np.float32).astype(np.float64), points)
        np.testing.assert_allclose(rounded[seen], expected[seen], atol=1e-3)


@pytest.mark.parametrize("image_size", [(640, 480), (427, 640), (3000, 500), (64, 64), (1, 1)])
@pytest.mark.parametrize("difficulty", [0.0, 0.7, 1.0])
def test_views_show_nothing_but_photograph(image_size: tuple[int, int], difficulty: float) -> None:
    options = ImagesConfig(difficulty=difficulty)
    for seed in range(40):
        pair = sample_pair(np.random.default_rng(seed), image_size, options)
        for H in (pair.H0, pair.H1):
            corners = apply(np.linalg.inv(H), CORNERS)
            tolerance = 1e-6 * max(image_size)
            assert (corners >= -tolerance).all() and (corners <= np.array(image_size) + tolerance).all()
            assert convexity(corners) > 0
            assert (np.column_stack([corners, np.ones(4)]) @ H[2] > 0).all()
        assert 0 <= pair.overlap <= 1


def test_without_difficulty_both_views_are_the_frame_undistorted() -> None:
    pair = sample_pair(np.random.default_rng(0), (300, 900), ImagesConfig(difficulty=0))
    H = pair.H0 / pair.H0[2, 2]
    scale = 640 / 300
    np.testing.assert_allclose(H[:, :2], [[scale, 0], [0, scale], [0, 0]], atol=1e-9)
    np.testing.assert_allclose(pair.H_0to1 / pair.H_0to1[2, 2], np.eye(3), atol=1e-9)
    assert pair.overlap == 1


def test_where_the_frame_is_differs_between_pairs() -> None:
    options = ImagesConfig(difficulty=0)
    tops = [
        apply(np.linalg.inv(sample_pair(np.random.default_rng(seed), (300, 900), options).H0), CORNERS)[0, 1]
        for seed in range(200)
    ]
    assert 0 <= min(tops) < 40 and 900 - 225 - 40 < max(tops) <= 900 - 225


def test_statistics_are_those_of_the_recipe() -> None:
    """The published recipe has overlaps of 0.74 on average, 0.55 and 0.92 at 10 and 90 %, and never none."""
    pairs = [sample_pair(np.random.default_rng(seed), (640, 480), OPTIONS) for seed in range(600)]
    overlap = np.array([pair.overlap for pair in pairs])
    assert 0.68 < overlap.mean() < 0.78 and overlap.min() > 0
    low, high = np.percentile(overlap, [10, 90])
    assert 0.46 < low < 0.6 and 0.88 < high < 0.95


@pytest.mark.parametrize("max_angle", [0.0, 45.0, 180.0])
def test_rotation_is_bounded(max_angle: float) -> None:
    options = ImagesConfig(max_angle=max_angle, difficulty=0.5)
    rng, frame, angles = np.random.default_rng(0), np.array([640.0, 480.0]), []
    for _ in range(300):
        quad = sample_quad(rng, frame, options)
        across = (quad[1] - quad[0] + quad[2] - quad[3]) / 2
        angles.append(np.degrees(np.arctan2(across[1], across[0])))
    # A moved corner tilts the middle line by itself, at this difficulty by less than 24 degrees.
    assert np.abs(angles).max() <= min(max_angle * 0.5 + 24, 180)
    assert max_angle == 0 or (max(angles) > 0.2 * max_angle and min(angles) < -0.2 * max_angle)


def test_draws_end_even_if_nothing_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(homographies, "MIN_CONVEXITY", 2.0)
    frame = np.array([640.0, 480.0])
    np.testing.assert_allclose(sample_quad(np.random.default_rng(0), frame, OPTIONS), UNIT_SQUARE * frame, atol=1e-9)


def test_quads_map_to_corners() -> None:
    rng = np.random.default_rng(0)
    for _ in range(100):
        quad = 50 + sample_quad(rng, np.array([3000.0, 1000.0]), ImagesConfig(difficulty=1))
        np.testing.assert_allclose(apply(homography_of_quad(quad, np.array(SIZE)), quad), CORNERS, atol=1e-6)


def test_overlap_is_the_area_that_both_show() -> None:
    for seed in range(60):
        pair = sample_pair(np.random.default_rng(seed), (640, 480), OPTIONS)
        quads = [apply(np.linalg.inv(H), CORNERS).astype(np.float32) for H in (pair.H0, pair.H1)]
        _, common = cv2.intersectConvexConvex(*quads)
        in_view0 = apply(pair.H0, common[:, 0].astype(np.float64)).astype(np.float32)
        assert pair.overlap == pytest.approx(cv2.contourArea(in_view0) / np.prod(SIZE), abs=0.01)
    half = np.array([[1, 0, 320], [0, 1, 0], [0, 0, 1.0]])
    assert seen_share(half, np.array(SIZE)) == 0.5
    assert seen_share(np.array([[1, 0, 5000], [0, 1, 0], [0, 0, 1.0]]), np.array(SIZE)) == 0


def test_exact_warps_are_exact() -> None:
    image = textured(96, 64)
    planes = image.permute(2, 0, 1).float()
    identity, half, turned = warp_views(
        image, [np.eye(3), np.diag([0.5, 0.5, 1]), np.array([[0, -1, 64], [1, 0, 0], [0, 0, 1.0]])], (96, 64)
    )
    torch.testing.assert_close(identity, planes, atol=2e-3, rtol=0)
    torch.testing.assert_close(half[:, :32, :48], F.avg_pool2d(planes, 2), atol=2e-3, rtol=0)
    torch.testing.assert_close(turned[:, :, :64], planes.rot90(-1, (1, 2))[:, :64], atol=2e-3, rtol=0)


@pytest.mark.parametrize("factor", [4, 8])
def test_what_shrinks_much_is_averaged(factor: int) -> None:
    image = textured(101, 75)  # odd at every level of the pyramid
    (view,) = warp_views(image, [np.diag([1 / factor, 1 / factor, 1])], (96 // factor, 72 // factor))
    planes = image.permute(2, 0, 1).float()[:, :72, :96]
    torch.testing.assert_close(view, F.avg_pool2d(planes, factor), atol=2e-2, rtol=0)
    constant = torch.full((75, 101, 3), 200, dtype=torch.uint8)
    (view,) = warp_views(constant, [np.diag([1 / factor, 1 / factor, 1])], (101 // factor, 75 // factor))
    torch.testing.assert_close(view, torch.full_like(view, 200))


@pytest.mark.parametrize("factor", [1.6, 3.3, 10])
def test_fine_patterns_do_not_alias(factor: float) -> None:
    stripes = torch.zeros(200, 600, 3, dtype=torch.uint8)
    stripes[:, ::2] = 255
    H = np.diag([1 / factor, 1 / factor, 1])
    size = (int(500 / factor), int(150 / factor))
    (view,) = warp_views(stripes, [H], size)
    naive = cv2.warpPerspective(stripes.numpy(), SHIFT @ H @ np.linalg.inv(SHIFT), size)
    contrast = float(view[:, :, 2:-2].std())
    assert contrast < 26 and contrast < 0.6 * naive[:, 2:-2].std()


def test_levels_follow_the_perspective() -> None:
    H = homography_of_quad(np.array([[200.0, 100], [240, 100], [600, 400], [0, 400]]), np.array([64.0, 64]))
    to_image = np.linalg.inv(H)
    least, most = spans(to_image / to_image[2, 2], (64, 64))
    assert least == pytest.approx(40 / 64, rel=0.05) and most > 10


def biases(
    images: list[torch.Tensor], seeds: range, size: tuple[int, int], mistake: np.ndarray | None = None
) -> tuple[np.ndarray, float]:
    """Mean displacement (x, y) in pixels, and how much of the half-pixel mistake it holds (0: none, 1: all)."""
    options = ImagesConfig(width=size[0], height=size[1])
    shifts, mistakes = [], []
    for image in images:
        for seed in seeds:
            pair = sample_pair(np.random.default_rng(seed), (image.shape[1], image.shape[0]), options)
            view0, view1 = (grey(view) for view in warp_views(image, (pair.H0, pair.H1), size))
            H = pair.H_0to1.astype(np.float32).astype(np.float64)  # as in a batch
            if mistake is not None:
                H = np.linalg.inv(mistake) @ H @ mistake
            found = displacements(view0, view1, H)
            shifts.append(found.shift)
            mistakes.append(half_pixel_mistake(H, found.at))
    shift, expected = np.concatenate(shifts), np.concatenate(mistakes)
    assert len(shift) > 150
    return shift.mean(axis=0), float((shift * expected).sum() / (expected**2).sum())


def photographs(photo_dir: Path) -> list[torch.Tensor]:
    paths = [next(iter(sorted((photo_dir / scene / "images").glob("*.jpg")))) for scene in ("fountain11", "statue9")]
    return [torch.from_numpy(cv2.imread(str(path))) for path in paths]


def test_warped_photographs_are_where_the_homography_says(photo_dir: Path) -> None:
    """The bias of the reprojection stays below a hundredth of a pixel."""
    mean, share = biases(photographs(photo_dir), range(4), SIZE)
    assert np.abs(mean).max() < 0.01
    assert abs(share) < 0.02


def test_the_measurement_notices_half_a_pixel(photo_dir: Path) -> None:
    mean, share = biases(photographs(photo_dir), range(4), SIZE, mistake=SHIFT)
    assert np.abs(mean).max() > 0.05
    assert share > 0.8


def test_shrunk_views_are_where_the_homography_says() -> None:
    """Through the levels of the pyramid."""
    mean, share = biases([textured(1401, 1051)], range(12), (200, 150))
    assert np.abs(mean).max() < 0.01
    assert abs(share) < 0.02

"""Depth at keypoints in the corner convention, and keypoints moved by it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from raylg.geometry.camera import Camera, Pose
from raylg.geometry.depth import sample_depth, warp

RAMP = (np.arange(5, dtype=np.float32)[:, None] * 10 + np.arange(7, dtype=np.float32) + 1).astype(np.float32)


def test_pixel_centres_are_at_half() -> None:
    """Row r, column c is the centre of the pixel at (c + 0.5, r + 0.5), and between centres depth is linear."""
    keypoints = np.array([[0.5, 0.5], [6.5, 4.5], [3.5, 2.5], [3.0, 2.0], [1.25, 0.5]])
    assert sample_depth(RAMP, keypoints).tolist() == [1, 47, 24, 18.5, 1.75]


def test_inside_it_is_grid_sample() -> None:
    rng = np.random.default_rng(0)
    depth = rng.uniform(1, 9, (12, 16)).astype(np.float32)
    keypoints = rng.uniform([0.5, 0.5], [15.5, 11.5], (50, 2)).astype(np.float32)
    grid = torch.from_numpy(keypoints / [16, 12] * 2 - 1).float()[None, None]
    expected = F.grid_sample(torch.from_numpy(depth)[None, None], grid, align_corners=False)[0, 0, 0]
    ours = sample_depth(depth, keypoints)
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, expected.numpy(), rtol=1e-5)


def test_the_border_is_extended() -> None:
    keypoints = np.array([[0.0, 0.0], [7.0, 5.0], [7.0, 0.5], [3.5, 5.0]])
    assert sample_depth(RAMP, keypoints).tolist() == [1, 47, 7, 44]


def test_outside_there_is_none() -> None:
    keypoints = np.array([[-0.01, 1.0], [7.01, 1.0], [1.0, -0.01], [1.0, 5.01], [np.nan, 1.0]])
    assert np.isnan(sample_depth(RAMP, keypoints)).all()


@pytest.mark.parametrize("hole", [0.0, -1.0, np.nan])
def test_beside_a_hole_the_nearest_pixel_counts(hole: float) -> None:
    depth = RAMP.copy()
    depth[2, 3] = hole
    # In the hole; beside it to the left, above right, and on the centre to the right; away from it.
    keypoints = np.array([[3.5, 2.5], [3.2, 2.6], [2.9, 2.5], [4.2, 1.8], [4.5, 2.5], [5.25, 2.5]])
    values = sample_depth(depth, keypoints)
    assert np.isnan(values[:2]).all()
    assert values[2:].tolist() == [depth[2, 2], depth[1, 4], depth[2, 4], 25.75]
    assert np.isnan(sample_depth(np.full((3, 3), hole, dtype=np.float32), np.array([[1.0, 1.0]]))).all()


def test_no_keypoints_and_no_pixels() -> None:
    assert sample_depth(RAMP, np.zeros((0, 2))).shape == (0,)
    assert np.isnan(sample_depth(np.zeros((0, 0), dtype=np.float32), np.zeros((2, 2)))).all()


def cameras() -> tuple[Camera, Camera]:
    return (
        Camera.from_params(torch.tensor([[100.0, 110, 50, 40]])),
        Camera.from_params(torch.tensor([[90.0, 95, 45, 42]])),
    )


def test_warp_there_and_back() -> None:
    camera0, camera1 = cameras()
    angle = torch.tensor(0.1)
    R = torch.eye(3)
    R[0, 0], R[0, 2], R[2, 0], R[2, 2] = angle.cos(), angle.sin(), -angle.sin(), angle.cos()
    T_0to1 = Pose(R[None], torch.tensor([[0.1, -0.1, 0.2]]))
    keypoints = torch.rand(1, 20, 2, generator=torch.Generator().manual_seed(0)) * 60 + 10
    depth = torch.rand(1, 20, generator=torch.Generator().manual_seed(1)) + 2
    size = torch.tensor([[100.0, 80.0]])
    points, visible = warp(keypoints, depth, camera0, camera1, T_0to1, size)
    in1 = T_0to1.transform(camera0.unproject(keypoints) * depth[..., None])
    back, _ = warp(points, in1[..., 2], camera1, camera0, T_0to1.inv(), size)
    torch.testing.assert_close(back, keypoints, atol=1e-3, rtol=1e-4)
    assert torch.equal(visible, ((points >= 0) & (points <= size)).all(-1))
    assert visible.any()


def test_unknown_depth_and_points_behind_are_not_visible() -> None:
    camera, _ = cameras()
    T_0to1 = Pose(torch.eye(3)[None], torch.tensor([[0.0, 0.0, -2.0]]))
    keypoints = torch.tensor([[[50.0, 40.0]] * 3])
    depth = torch.tensor([[torch.nan, 1.0, 3.0]])
    points, visible = warp(keypoints, depth, camera, camera, T_0to1, torch.tensor([[100.0, 80.0]]))
    assert points[0, 0].isnan().all()
    assert points[0, 1].isinf().all()
    assert points[0, 2].tolist() == [50.0, 40.0]
    assert visible.tolist() == [[False, False, True]]


def test_the_border_of_the_image_is_inside() -> None:
    camera, _ = cameras()
    still = Pose(torch.eye(3)[None], torch.zeros(1, 3))
    keypoints = torch.tensor([[[0.0, 0.0], [100.0, 80.0], [100.5, 40.0], [50.0, -0.5]]])
    camera = Camera(torch.full((1, 2), 100.0), torch.zeros(1, 2))
    _, visible = warp(keypoints, torch.ones(1, 4), camera, camera, still, torch.tensor([[100.0, 80.0]]))
    assert visible.tolist() == [[True, True, False, False]]


def test_warp_of_nothing() -> None:
    camera0, camera1 = cameras()
    still = Pose(torch.eye(3)[None], torch.zeros(1, 3))
    points, visible = warp(torch.zeros(1, 0, 2), torch.zeros(1, 0), camera0, camera1, still, torch.ones(1, 2))
    assert points.shape == (1, 0, 2)
    assert visible.shape == (1, 0)

"""Points through homographies."""

from __future__ import annotations

import cv2
import numpy as np
import torch

from raylg.geometry.homography import symmetric_reprojection_error, warp_points


def test_points_go_where_opencv_puts_them() -> None:
    rng = np.random.default_rng(0)
    H = np.eye(3) + rng.normal(size=(3, 3)) * [[0.1, 0.1, 20], [0.1, 0.1, 20], [1e-4, 1e-4, 0]]
    points = rng.uniform(0, 500, (1, 30, 2))
    ours = warp_points(torch.from_numpy(points), torch.from_numpy(H))
    np.testing.assert_allclose(ours.numpy(), cv2.perspectiveTransform(points, H))


def test_round_trip_of_a_batch() -> None:
    H = torch.tensor([[[1.0, 0.1, 5], [0, 0.9, -3], [1e-4, 0, 1]], [[0.5, 0, 0], [0, 0.5, 0], [0, 0, 1]]]).double()
    points = torch.rand(2, 6, 2, dtype=torch.float64) * 100
    torch.testing.assert_close(warp_points(warp_points(points, H), torch.linalg.inv(H)), points)
    torch.testing.assert_close(warp_points(points, H)[1], points[1] / 2)


def test_no_points() -> None:
    assert warp_points(torch.zeros(2, 0, 2), torch.eye(3).expand(2, 3, 3)).shape == (2, 0, 2)


def test_reprojection_error_is_the_mean_of_both_directions() -> None:
    H = torch.diag(torch.tensor([2.0, 2, 1], dtype=torch.float64))
    points0 = torch.tensor([[10.0, 10], [3, 4]], dtype=torch.float64)
    points1 = torch.tensor([[20.0, 20], [6, 12]], dtype=torch.float64)  # the second is 4 px off there, 2 px here
    assert symmetric_reprojection_error(points0, points1, H).tolist() == [0, 3]
    assert symmetric_reprojection_error(points0[:0], points1[:0], H).shape == (0,)

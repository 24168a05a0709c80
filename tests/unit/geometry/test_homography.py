"""Points through homographies."""

from __future__ import annotations

import cv2
import numpy as np
import torch

from raylg.geometry.homography import warp_points


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

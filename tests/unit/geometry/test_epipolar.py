"""Epipolar geometry of points whose correspondence is known."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch

from raylg.geometry.camera import Camera, Pose
from raylg.geometry.epipolar import (
    essential_matrix,
    fundamental_matrix,
    symmetric_epipolar_distance,
    symmetric_epipolar_distance_matches,
)


def two_views(pairs: int = 2, number: int = 9) -> tuple[Camera, Camera, Pose, torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(0)
    R = np.array([cv2.Rodrigues(rng.normal(size=3) * 0.2)[0] for _ in range(pairs)])
    T_0to1 = Pose(torch.from_numpy(R), torch.from_numpy(rng.normal(size=(pairs, 3))))
    camera0 = Camera.from_params(torch.tensor([[500.0, 520, 320, 250]] * pairs, dtype=torch.float64))
    camera1 = Camera.from_params(torch.tensor([[430.0, 410, 300, 230]] * pairs, dtype=torch.float64))
    points = torch.from_numpy(rng.uniform([-2, -2, 4], [2, 2, 9], (pairs, number, 3)))
    return camera0, camera1, T_0to1, camera0.project(points), camera1.project(T_0to1.transform(points))


def test_correspondences_lie_on_their_lines() -> None:
    camera0, camera1, T_0to1, points0, points1 = two_views()
    F = fundamental_matrix(camera0, camera1, T_0to1)
    assert symmetric_epipolar_distance_matches(points0, points1, F).max() < 1e-8
    assert symmetric_epipolar_distance(points0, points1, F).diagonal(dim1=1, dim2=2).max() < 1e-8
    assert symmetric_epipolar_distance(points0, points1, F).median() > 10


def test_fundamental_matrix_of_inverse_matrices() -> None:
    camera0, camera1, T_0to1, _, _ = two_views()
    E = essential_matrix(T_0to1)
    expected = torch.linalg.inv(camera1.K).transpose(1, 2) @ E @ torch.linalg.inv(camera0.K)
    torch.testing.assert_close(fundamental_matrix(camera0, camera1, T_0to1), expected)


def test_essential_matrix_gives_its_pose_back() -> None:
    camera0, camera1, T_0to1, points0, points1 = two_views(pairs=1, number=30)
    E = essential_matrix(T_0to1)[0].numpy()
    rays0, rays1 = camera0.unproject(points0)[0, :, :2].numpy(), camera1.unproject(points1)[0, :, :2].numpy()
    _, R, t, _ = cv2.recoverPose(E, rays0, rays1)
    np.testing.assert_allclose(R, T_0to1.R[0].numpy(), atol=1e-9)
    np.testing.assert_allclose(t[:, 0], (T_0to1.t[0] / T_0to1.t[0].norm()).numpy(), atol=1e-9)


def test_distance_is_that_of_opencv_lines() -> None:
    camera0, camera1, T_0to1, points0, points1 = two_views(pairs=1)
    points1 = points1 + torch.tensor([3.0, -5.0])
    F = fundamental_matrix(camera0, camera1, T_0to1)
    lines1 = cv2.computeCorrespondEpilines(points0[0].numpy(), 1, F[0].numpy())[:, 0]
    lines0 = cv2.computeCorrespondEpilines(points1[0].numpy(), 2, F[0].numpy())[:, 0]
    in1 = np.abs((lines1[:, :2] * points1[0].numpy()).sum(1) + lines1[:, 2])
    in0 = np.abs((lines0[:, :2] * points0[0].numpy()).sum(1) + lines0[:, 2])
    ours = symmetric_epipolar_distance_matches(points0, points1, F)[0].numpy()
    np.testing.assert_allclose(ours, (in0 + in1) / 2, rtol=1e-6)


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_unit_of_the_scene_does_not_matter(scale: float) -> None:
    camera0, camera1, T_0to1, points0, points1 = two_views()
    points1 = points1 + 4
    single = [Camera(c.f.float(), c.c.float()) for c in (camera0, camera1)]
    scaled = Pose(T_0to1.R.float(), T_0to1.t.float() * scale)
    F = fundamental_matrix(single[0], single[1], scaled)
    distance = symmetric_epipolar_distance_matches(points0.float(), points1.float(), F)
    expected = symmetric_epipolar_distance_matches(points0, points1, fundamental_matrix(camera0, camera1, T_0to1))
    torch.testing.assert_close(distance.double(), expected, atol=0.01, rtol=0.01)


def test_no_baseline_constrains_nothing() -> None:
    camera0, camera1, T_0to1, points0, points1 = two_views()
    still = Pose(T_0to1.R, torch.zeros_like(T_0to1.t))
    F = fundamental_matrix(camera0, camera1, still)
    assert (symmetric_epipolar_distance(points0, points1, F) == 0).all()


def test_no_points() -> None:
    camera0, camera1, T_0to1, points0, points1 = two_views()
    F = fundamental_matrix(camera0, camera1, T_0to1)
    assert symmetric_epipolar_distance(points0[:, :0], points1, F).shape == (2, 0, 9)
    assert symmetric_epipolar_distance(points0, points1[:, :0], F).shape == (2, 9, 0)
    assert symmetric_epipolar_distance_matches(points0[:, :0], points1[:, :0], F).shape == (2, 0)

"""The pixel convention, and cameras and poses against matrices."""

from __future__ import annotations

import pytest
import torch

from raylg.geometry.camera import Camera, Pose


def random_pose(seed: int, *batch: int) -> Pose:
    generator = torch.Generator().manual_seed(seed)
    R, _ = torch.linalg.qr(torch.randn(*batch, 3, 3, generator=generator, dtype=torch.float64))
    R = R * torch.linalg.det(R)[..., None, None]
    return Pose(R, torch.randn(*batch, 3, generator=generator, dtype=torch.float64))


def random_camera(seed: int, *batch: int) -> Camera:
    generator = torch.Generator().manual_seed(seed)
    return Camera.from_params(100 + 300 * torch.rand(*batch, 4, generator=generator, dtype=torch.float64))


def random_points(seed: int, *shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(*shape, generator=generator, dtype=torch.float64) + 0.5


@pytest.mark.parametrize("batch", [(), (3,), (2, 3)])
def test_project_and_unproject_are_a_round_trip(batch: tuple[int, ...]) -> None:
    camera, points = random_camera(0, *batch), random_points(1, *batch, 7, 3)
    rays = camera.unproject(camera.project(points))
    torch.testing.assert_close(rays * points[..., 2:], points)


def test_project_is_the_calibration_matrix() -> None:
    camera, points = random_camera(0, 3), random_points(1, 3, 7, 3)
    homogeneous = points @ camera.K.transpose(1, 2)
    torch.testing.assert_close(camera.project(points), homogeneous[..., :2] / homogeneous[..., 2:])
    again = Camera.from_K(camera.K)
    assert torch.equal(again.f, camera.f)
    assert torch.equal(again.c, camera.c)


def test_resizing_an_image_scales_its_pixels_about_the_corner() -> None:
    """The centre of the top-left pixel is (0.5, 0.5): after halving the size, (1, 1) is where (2, 2) was."""
    camera, points = random_camera(0), random_points(1, 5, 3)
    scale = torch.tensor([0.5, 0.25], dtype=torch.float64)
    torch.testing.assert_close(camera.scaled(scale).project(points), camera.project(points) * scale)
    # Averaging 2 x 2 pixels: the centre of the new pixel (0, 0) is the middle of the four old centres.
    old_centres = torch.tensor([[0.5, 0.5], [1.5, 0.5], [0.5, 1.5], [1.5, 1.5]])
    assert (old_centres.mean(0) * 0.5).tolist() == [0.5, 0.5]


@pytest.mark.parametrize("batch", [(), (3,), (2, 3)])
def test_poses_are_their_matrices(batch: tuple[int, ...]) -> None:
    a, b, points = random_pose(0, *batch), random_pose(1, *batch), random_points(2, *batch, 5, 3)
    torch.testing.assert_close((a @ b).matrix, a.matrix @ b.matrix)
    torch.testing.assert_close(a.inv().matrix, torch.linalg.inv(a.matrix))
    homogeneous = torch.cat([points, torch.ones_like(points[..., :1])], dim=-1)
    expected = (homogeneous @ a.matrix.transpose(-1, -2))[..., :3]
    torch.testing.assert_close(a.transform(points), expected)
    torch.testing.assert_close(Pose.from_matrix(a.matrix).transform(points), expected)


def test_no_points() -> None:
    camera, pose, none = random_camera(0, 2), random_pose(0, 2), random_points(0, 2, 0, 3)
    assert camera.project(pose.transform(none)).shape == (2, 0, 2)
    assert camera.unproject(none[..., :2]).shape == (2, 0, 3)


def test_rows_of_a_batch() -> None:
    camera, pose = random_camera(0, 4), random_pose(0, 4)
    assert torch.equal(camera[1:3].K, camera.K[1:3])
    assert torch.equal(pose[2].matrix, pose.matrix[2])

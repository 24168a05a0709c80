"""Essential and fundamental matrices and the distance of points to epipolar lines.

Legend: M points in image 0, N points in image 1; leading dimensions are a batch. Products of 3x3 matrices are written
element by element, since a matrix multiplication in TF32 (which a trainer may allow) is wrong by about half a pixel.
Source: Hartley and Zisserman, Multiple View Geometry, 9.6 and 11.4.3.
"""

from __future__ import annotations

import torch
from torch import Tensor

from raylg.geometry.camera import Camera, Pose

_TINY = 1e-12


def essential_matrix(pose: Pose) -> Tensor:
    """Essential matrix [..., 3, 3] = [t]x R of a unit translation, so that its scale does not depend on the scene's.

    A zero translation has no epipolar geometry and gives the zero matrix.
    """
    t = pose.t / torch.linalg.vector_norm(pose.t, dim=-1, keepdim=True).clamp_min(_TINY)
    E: Tensor = torch.linalg.cross(t[..., :, None].expand_as(pose.R), pose.R, dim=-2)
    return E


def fundamental_matrix(camera0: Camera, camera1: Camera, T_0to1: Pose) -> Tensor:
    """Fundamental matrix [..., 3, 3] = K1^-T E K0^-1: ``x1' F x0 = 0`` for homogeneous pixels of the same point."""
    F = _times_inverse_K(essential_matrix(T_0to1), camera0)
    return _times_inverse_K(F.transpose(-1, -2), camera1).transpose(-1, -2)


def _times_inverse_K(A: Tensor, camera: Camera) -> Tensor:
    """A K^-1 for matrices [..., 3, 3]."""
    xy = A[..., :2] / camera.f[..., None, :]
    z = A[..., 2] - (xy * camera.c[..., None, :]).sum(-1)
    return torch.cat([xy, z[..., None]], dim=-1)


def epipolar_lines(points: Tensor, F: Tensor) -> Tensor:
    """Lines [..., N, 3] = F x in the other image, scaled to a unit normal: line . (x, y, 1) is a distance in pixels.

    Args:
        points: [..., N, 2] px.
        F: [..., 3, 3]; pass the transpose for points of image 1.
    """
    x, y = points[..., 0, None], points[..., 1, None]
    F = F[..., None, :, :]
    lines = F[..., 0] * x + F[..., 1] * y + F[..., 2]
    normal: Tensor = torch.linalg.vector_norm(lines[..., :2], dim=-1, keepdim=True)
    return lines / normal.clamp_min(_TINY)


def symmetric_epipolar_distance(points0: Tensor, points1: Tensor, F: Tensor) -> Tensor:
    """Mean of the two point-to-line distances of every pair of points, [..., M, N] px.

    Args:
        points0: [..., M, 2] px.
        points1: [..., N, 2] px.
        F: [..., 3, 3].
    """
    lines1 = epipolar_lines(points0, F)  # of points 0, in image 1
    lines0 = epipolar_lines(points1, F.transpose(-1, -2))
    return distance_to_lines(points0, points1, lines0, lines1)


def distance_to_lines(points0: Tensor, points1: Tensor, lines0: Tensor, lines1: Tensor) -> Tensor:
    """Symmetric distance [..., M, N] px of points to the epipolar lines of each other.

    Args:
        points0: [..., M, 2] px.
        points1: [..., N, 2] px.
        lines0: [..., N, 3], lines of points 1 in image 0, with unit normals.
        lines1: [..., M, 3], lines of points 0 in image 1, with unit normals.
    """
    a, b, c = lines1[..., :, None, :].unbind(-1)
    in1 = (a * points1[..., None, :, 0] + b * points1[..., None, :, 1] + c).abs_()
    a, b, c = lines0[..., None, :, :].unbind(-1)
    in0 = (a * points0[..., :, None, 0] + b * points0[..., :, None, 1] + c).abs_()
    return in1.add_(in0).mul_(0.5)


def symmetric_epipolar_distance_matches(points0: Tensor, points1: Tensor, F: Tensor) -> Tensor:
    """Mean of the two point-to-line distances of matched points, [..., M] px.

    Args:
        points0: [..., M, 2] px.
        points1: [..., M, 2] px.
        F: [..., 3, 3].
    """
    lines1 = epipolar_lines(points0, F)
    lines0 = epipolar_lines(points1, F.transpose(-1, -2))
    in1 = (lines1[..., :2] * points1).sum(-1) + lines1[..., 2]
    in0 = (lines0[..., :2] * points0).sum(-1) + lines0[..., 2]
    return (in0.abs() + in1.abs()) / 2

"""Homographies between images, in the pixel convention of `raylg.geometry.camera`."""

from __future__ import annotations

import torch
from torch import Tensor


def warp_points(points: Tensor, H: Tensor) -> Tensor:
    """Pixels [..., N, 2] of points [..., N, 2] seen through homographies [..., 3, 3].

    Not a matrix multiplication, which TF32 would round to about half a pixel.
    """
    H = H[..., None, :, :]
    x, y = points[..., 0, None], points[..., 1, None]
    homogeneous = H[..., 0] * x + H[..., 1] * y + H[..., 2]
    return homogeneous[..., :2] / homogeneous[..., 2:]


def symmetric_reprojection_error(points0: Tensor, points1: Tensor, H: Tensor) -> Tensor:
    """Mean over both directions of the distance between a match and its warped partner, [..., M] px.

    Args:
        points0: [..., M, 2] px, matched with `points1`.
        points1: [..., M, 2] px.
        H: [..., 3, 3], pixels of view 0 to pixels of view 1; float64, or its inverse loses digits.
    """
    in1: Tensor = torch.linalg.vector_norm(warp_points(points0, H) - points1, dim=-1)
    in0: Tensor = torch.linalg.vector_norm(warp_points(points1, torch.linalg.inv(H)) - points0, dim=-1)
    return (in0 + in1) / 2

"""Pinhole cameras and rigid poses, batched over leading dimensions.

Pixel convention (COLMAP's, everywhere in raylg): the centre of the top-left pixel is (0.5, 0.5), so an image
covers [0, width] x [0, height] and resizing by s maps x to s * x exactly. Image sizes are (width, height).
`T_w2c` maps world to camera coordinates, `T_0to1` camera 0 to camera 1. The camera looks along +z.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Camera:
    """A pinhole camera with no distortion; leading dimensions are a batch."""

    f: Tensor
    """[..., 2] focal lengths (fx, fy) in pixels."""
    c: Tensor
    """[..., 2] principal point (cx, cy) in pixels."""

    @staticmethod
    def from_params(params: Tensor) -> Camera:
        """Build from [..., 4] (fx, fy, cx, cy), the order of a COLMAP PINHOLE camera."""
        return Camera(params[..., :2], params[..., 2:])

    @staticmethod
    def from_K(K: Tensor) -> Camera:
        """Build from calibration matrices [..., 3, 3]; skew is ignored."""
        return Camera(K[..., (0, 1), (0, 1)], K[..., :2, 2])

    @property
    def K(self) -> Tensor:
        """Calibration matrices [..., 3, 3]."""
        K = self.f.new_zeros(*self.f.shape[:-1], 3, 3)
        K[..., 0, 0], K[..., 1, 1] = self.f[..., 0], self.f[..., 1]
        K[..., :2, 2] = self.c
        K[..., 2, 2] = 1
        return K

    def scaled(self, scale: Tensor) -> Camera:
        """The camera of an image resized by `scale` [..., 2] (x, y)."""
        return Camera(self.f * scale, self.c * scale)

    def project(self, points: Tensor) -> Tensor:
        """Pixels [..., N, 2] of camera-frame points [..., N, 3]; the caller guards z > 0."""
        return points[..., :2] / points[..., 2:] * self.f[..., None, :] + self.c[..., None, :]

    def unproject(self, pixels: Tensor) -> Tensor:
        """Rays [..., N, 3] with z = 1 through pixels [..., N, 2]."""
        xy = (pixels - self.c[..., None, :]) / self.f[..., None, :]
        return torch.cat([xy, torch.ones_like(xy[..., :1])], dim=-1)

    def to(self, device: torch.device | str) -> Camera:
        """Copy to `device`."""
        return Camera(self.f.to(device), self.c.to(device))

    def __getitem__(self, rows: slice | int) -> Camera:
        return Camera(self.f[rows], self.c[rows])


@dataclass(frozen=True)
class Pose:
    """A rigid transform x -> R x + t; leading dimensions are a batch."""

    R: Tensor
    """[..., 3, 3] rotation."""
    t: Tensor
    """[..., 3] translation, in the units of the source."""

    @staticmethod
    def from_matrix(T: Tensor) -> Pose:
        """Build from [..., 4, 4] (or [..., 3, 4])."""
        return Pose(T[..., :3, :3], T[..., :3, 3])

    @property
    def matrix(self) -> Tensor:
        """[..., 4, 4]."""
        T = self.R.new_zeros(*self.R.shape[:-2], 4, 4)
        T[..., :3, :3], T[..., :3, 3], T[..., 3, 3] = self.R, self.t, 1
        return T

    def inv(self) -> Pose:
        """The inverse transform."""
        Rt = self.R.transpose(-1, -2)
        return Pose(Rt, -(Rt * self.t[..., None, :]).sum(-1))

    def __matmul__(self, other: Pose) -> Pose:
        """Compose: (self @ other)(x) = self(other(x))."""
        return Pose(self.R @ other.R, (self.R @ other.t[..., None])[..., 0] + self.t)

    def transform(self, points: Tensor) -> Tensor:
        """Apply to points [..., N, 3].

        Not a matrix multiplication, which would be wrong by about half a pixel where a trainer allows TF32.
        """
        return (self.R[..., None, :, :] * points[..., None, :]).sum(-1) + self.t[..., None, :]

    def to(self, device: torch.device | str) -> Pose:
        """Copy to `device`."""
        return Pose(self.R.to(device), self.t.to(device))

    def __getitem__(self, rows: slice | int) -> Pose:
        return Pose(self.R[rows], self.t[rows])

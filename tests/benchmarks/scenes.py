"""Random pairs with everything that labels depend on: matches, outliers, occluded points, missing depth, padding."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from raylg.batch import PairBatch, View
from raylg.geometry.camera import Camera, Pose

WIDTH, HEIGHT = 640.0, 480.0
SHARED = 0.5
"""Share of the keypoints of the smaller view that both views see, before noise and missing depth."""


def random_pairs(
    num_pairs: int, num0: int, num1: int, *, seed: int, dim: int = 8, without_depth: float = 0.3
) -> PairBatch:
    """Points in a box seen by two cameras that are turned by up to 15 degrees; no padding.

    Args:
        num_pairs: B.
        num0: keypoints of view 0.
        num1: keypoints of view 1.
        seed: of all that is random.
        dim: size of the descriptors.
        without_depth: share of the keypoints whose depth is unknown.
    """
    rng = torch.Generator().manual_seed(seed)
    camera0, camera1 = _camera(num_pairs, rng), _camera(num_pairs, rng)
    T_0to1 = _pose(num_pairs, rng)
    keypoints0 = torch.rand(num_pairs, num0, 2, generator=rng) * torch.tensor([WIDTH, HEIGHT])
    depth0 = 2 + 4 * torch.rand(num_pairs, num0, generator=rng)
    keypoints1 = torch.rand(num_pairs, num1, 2, generator=rng) * torch.tensor([WIDTH, HEIGHT])
    depth1 = 2 + 4 * torch.rand(num_pairs, num1, generator=rng)
    shared = int(SHARED * min(num0, num1))
    in1 = T_0to1.transform(camera0.unproject(keypoints0) * depth0[..., None])[:, :shared]
    seen = camera1.project(in1) + 1.5 * torch.randn(num_pairs, shared, 2, generator=rng)
    order = torch.randperm(num1, generator=rng)[:shared]
    keypoints1[:, order], depth1[:, order] = seen, in1[..., 2]
    descriptors0 = torch.randn(num_pairs, num0, dim, generator=rng)
    descriptors1 = torch.randn(num_pairs, num1, dim, generator=rng)
    descriptors1[:, order] = descriptors0[:, :shared] + 0.5 * descriptors1[:, order]
    for depth in (depth0, depth1):
        depth[torch.rand(depth.shape, generator=rng) < without_depth] = torch.nan
    return PairBatch(
        view0=_view(keypoints0, descriptors0, depth0, camera0),
        view1=_view(keypoints1, descriptors1, depth1, camera1),
        T_0to1=T_0to1,
        overlap=torch.full((num_pairs,), SHARED),
        names=tuple(("scene", f"{b}", f"{b}'") for b in range(num_pairs)),
    )


def padded(batch: PairBatch, lengths0: Tensor, lengths1: Tensor) -> PairBatch:
    """The same pairs with only the first keypoints of each view; the others become padding.

    Args:
        batch: without padding.
        lengths0: int64 [B], real keypoints of view 0.
        lengths1: int64 [B], of view 1.
    """
    return replace(batch, view0=_cut(batch.view0, lengths0), view1=_cut(batch.view1, lengths1))


def _cut(view: View, lengths: Tensor) -> View:
    mask = torch.arange(view.mask.shape[1]) < lengths[:, None]
    return replace(
        view,
        keypoints=view.keypoints.masked_fill(~mask[..., None], 0),
        descriptors=view.descriptors.masked_fill(~mask[..., None], 0),
        depth_keypoints=view.depth_keypoints.masked_fill(~mask, torch.nan),
        mask=mask,
    )


def _view(keypoints: Tensor, descriptors: Tensor, depth: Tensor, camera: Camera) -> View:
    return View(
        keypoints=keypoints,
        descriptors=torch.nn.functional.normalize(descriptors, dim=-1),
        mask=torch.ones(keypoints.shape[:2], dtype=torch.bool),
        image_size=torch.tensor([WIDTH, HEIGHT]).expand(len(keypoints), 2),
        camera=camera,
        depth_keypoints=depth,
    )


def _camera(num_pairs: int, rng: torch.Generator) -> Camera:
    f = 500 + 100 * torch.rand(num_pairs, 2, generator=rng)
    c = torch.tensor([WIDTH, HEIGHT]) / 2 + 20 * torch.randn(num_pairs, 2, generator=rng)
    return Camera(f, c)


def _pose(num_pairs: int, rng: torch.Generator) -> Pose:
    """Rotations about any axis by up to 15 degrees, translations of 0.5 on average."""
    axis = torch.nn.functional.normalize(torch.randn(num_pairs, 3, generator=rng), dim=-1)
    angle = torch.rand(num_pairs, 1, generator=rng) * torch.pi / 12
    cross = torch.zeros(num_pairs, 3, 3)
    x, y, z = (axis * angle).unbind(-1)
    cross[:, 0, 1], cross[:, 0, 2], cross[:, 1, 2] = -z, y, -x
    R = torch.linalg.matrix_exp(cross - cross.transpose(1, 2))
    return Pose(R, 0.3 * torch.randn(num_pairs, 3, generator=rng))

"""Pairs of a made-up scene whose keypoints belong together: what labels and estimators do with them is no accident."""

from __future__ import annotations

from dataclasses import replace

import torch

from raylg.batch import PairBatch
from raylg.evaluation.measures import Kind
from raylg.geometry.depth import warp
from raylg.training.config import RunConfig
from raylg.training.micro_batch import synthetic_batch

NOISE = 3.0
"""px, mean distance of a keypoint from where it should be: labels then differ between any two thresholds."""
_WITHOUT_DEPTH = 0.3
_NOISE_DESCRIPTORS = 0.7


def corresponding_batch(config: RunConfig, num_pairs: int, num_keypoints: int, kind: Kind = "pose") -> PairBatch:
    """Pairs on the CPU in which keypoint i of view 0 and keypoint i of view 1 see the same point, all but exactly.

    Distances are exponential with mean `NOISE`; three in ten keypoints have no depth; descriptors of a point are alike
    but for noise. Draws from a generator of its own, so that it is the same at each call.

    Args:
        config: extractor, which decides size and detail of the features.
        num_pairs: B.
        num_keypoints: per view; the last one is padding.
        kind: homography: the scene is a plane, and the batch knows nothing but its homography.
    """
    generator = torch.Generator().manual_seed(0)
    batch = synthetic_batch(config, num_pairs, num_keypoints, torch.device("cpu"))
    view0, view1 = batch.view0, batch.view1
    shape = view0.keypoints.shape[:2]
    is_plane = kind == "homography"
    depth = 3 + 3 * torch.rand(shape, generator=generator) * (not is_plane)
    points, visible = warp(view0.keypoints, depth, view0.camera, view1.camera, batch.T_0to1, view1.image_size)
    points = torch.where(visible[..., None], points, view1.keypoints)
    angle = 2 * torch.pi * torch.rand(shape, generator=generator)
    distance = -NOISE * torch.log1p(-torch.rand(shape, generator=generator))
    noise = distance[..., None] * torch.stack([angle.cos(), angle.sin()], dim=-1)
    descriptors = view0.descriptors + _NOISE_DESCRIPTORS * view1.descriptors
    # The camera moves sideways only, so that a point has the same depth in both views.
    known = [torch.rand(shape, generator=generator) >= _WITHOUT_DEPTH for _ in range(2)]
    H = torch.eye(3).repeat(num_pairs, 1, 1)
    H[:, 0, 2] = view0.camera.f[:, 0] * batch.T_0to1.t[:, 0] / depth[:, 0]
    return replace(
        batch,
        H_0to1=H if is_plane else None,
        view0=replace(view0, depth_keypoints=torch.where(known[0] & view0.mask, depth, torch.nan)),
        view1=replace(
            view1,
            keypoints=points + noise,
            descriptors=torch.nn.functional.normalize(descriptors, dim=-1),
            depth_keypoints=torch.where(known[1] & view1.mask, depth, torch.nan),
        ),
    )

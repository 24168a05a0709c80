"""Labels of keypoints from geometry: which match, which have none, and which nobody can tell.

Legend: B pairs, M keypoints in view 0, N in view 1. Distances are squared pixels until a threshold is met. Rows are
processed in chunks with running minima, so nothing of size M x N outlives a chunk.
Source: glue-factory's definition of positives and negatives, with the true image size (it takes twice the principal
point) and with `th_epipolar` as the threshold of the epipolar test (it takes th_negative).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from raylg.batch import IGNORE, UNMATCHED, GroundTruth, PairBatch, View
from raylg.geometry.depth import warp
from raylg.geometry.epipolar import distance_to_lines, epipolar_lines, fundamental_matrix
from raylg.geometry.homography import warp_points
from raylg.supervision.config import GroundTruthConfig

CHUNK_ROWS = 256


@dataclass(frozen=True, kw_only=True)
class _Side:
    """Keypoints of one view and where they are in the other one."""

    keypoints: Tensor
    """[B, M, 2] px."""
    warped: Tensor
    """[B, M, 2] px in the other view; NaN or infinite where there is none."""
    known: Tensor
    """bool [B, M]: a real keypoint whose place in the other view follows from depth."""
    visible: Tensor
    """bool [B, M]: known, and inside the other image."""
    mask: Tensor
    """bool [B, M], False on padding."""


@dataclass(kw_only=True)
class _Nearest:
    """Best candidates of the keypoints of one view."""

    index: Tensor
    """int64 [B, M], candidate with the smallest symmetric distance."""
    symmetric: Tensor
    """[B, M], its squared distance, the larger of both directions; inf where neither is visible."""
    one_way: Tensor
    """[B, M], smallest squared distance of the warped keypoint to any keypoint there; NaN where unknown."""


@torch.no_grad()
def ground_truth_matches(batch: PairBatch, config: GroundTruthConfig) -> GroundTruth:
    """Label every keypoint by warping it into the other view: with its depth and the pose, or by the homography.

    A match is a pair of mutual nearest neighbours, each visible in the other view, with both reprojection errors below
    `th_positive`. A keypoint with depth is unmatched when nothing lies within `th_negative` of where it should be; one
    without depth when no undecided keypoint lies within `th_epipolar` of its epipolar line. The rest is ignored.
    """
    view0, view1 = batch.view0, batch.view1
    if batch.H_0to1 is not None:
        return ground_truth_from_homography(view0, view1, batch.H_0to1, config)
    with torch.autocast(view0.keypoints.device.type, enabled=False):
        T_0to1 = batch.T_0to1
        to1 = warp(view0.keypoints, view0.depth_keypoints, view0.camera, view1.camera, T_0to1, view1.image_size)
        to0 = warp(view1.keypoints, view1.depth_keypoints, view1.camera, view0.camera, T_0to1.inv(), view0.image_size)
        side0, side1 = _side_from_depth(view0, *to1), _side_from_depth(view1, *to0)
        gt0, gt1 = _labels(side0, side1, config)
        if config.th_epipolar is not None:
            F = fundamental_matrix(view0.camera, view1.camera, T_0to1)
            gt0, gt1 = _exclude_by_epipolar_lines(side0, side1, gt0, gt1, F, config.th_epipolar)
    return GroundTruth(gt_matches0=gt0, gt_matches1=gt1)


@torch.no_grad()
def ground_truth_from_homography(view0: View, view1: View, H_0to1: Tensor, config: GroundTruthConfig) -> GroundTruth:
    """Label every keypoint by a homography; depth, cameras and `th_epipolar` play no part.

    Args:
        view0: keypoints and mask are used.
        view1: likewise.
        H_0to1: [B, 3, 3] in the pixel convention of the keypoints.
        config: thresholds.
    """
    with torch.autocast(view0.keypoints.device.type, enabled=False):
        warped0 = warp_points(view0.keypoints, H_0to1)
        warped1 = warp_points(view1.keypoints, torch.linalg.inv(H_0to1))
        side0, side1 = _side_from_warp(view0, warped0), _side_from_warp(view1, warped1)
        gt0, gt1 = _labels(side0, side1, config)
    return GroundTruth(gt_matches0=gt0, gt_matches1=gt1)


def _side_from_depth(view: View, warped: Tensor, visible: Tensor) -> _Side:
    has_depth = view.depth_keypoints > 0  # false for NaN
    return _Side(
        keypoints=view.keypoints,
        warped=warped,
        known=view.mask & has_depth,
        visible=view.mask & has_depth & visible,
        mask=view.mask,
    )


def _side_from_warp(view: View, warped: Tensor) -> _Side:
    return _Side(keypoints=view.keypoints, warped=warped, known=view.mask, visible=view.mask, mask=view.mask)


def _labels(side0: _Side, side1: _Side, config: GroundTruthConfig) -> tuple[Tensor, Tensor]:
    nearest0, nearest1 = _nearest(side0, side1)
    return _label(side0, nearest0, nearest1, config), _label(side1, nearest1, nearest0, config)


def _nearest(side0: _Side, side1: _Side) -> tuple[_Nearest, _Nearest]:
    nearest0, nearest1 = _no_candidates(side0), _no_candidates(side1)
    if 0 in (side0.mask.shape[1], side1.mask.shape[1]):
        return nearest0, nearest1
    for start in range(0, side0.mask.shape[1], CHUNK_ROWS):
        rows = slice(start, start + CHUNK_ROWS)
        d0 = _squared_distances(side0.warped[:, rows], side1.keypoints)  # [B, rows, N]
        d1 = _squared_distances(side0.keypoints[:, rows], side1.warped)
        invisible = ~(side0.visible[:, rows, None] & side1.visible[:, None])
        symmetric = torch.maximum(d0, d1).masked_fill_(invisible, torch.inf)
        nearest0.symmetric[:, rows], nearest0.index[:, rows] = symmetric.min(dim=2)
        nearest0.one_way[:, rows] = d0.masked_fill_(~side1.mask[:, None], torch.inf).amin(dim=2)

        column, index = symmetric.min(dim=1)
        nearest1.index = torch.where(column < nearest1.symmetric, index + start, nearest1.index)
        nearest1.symmetric = torch.minimum(column, nearest1.symmetric)
        one_way = d1.masked_fill_(~side0.mask[:, rows, None], torch.inf).amin(dim=1)
        nearest1.one_way = torch.minimum(one_way, nearest1.one_way)
    return nearest0, nearest1


def _no_candidates(side: _Side) -> _Nearest:
    infinite = torch.full_like(side.keypoints[..., 0], torch.inf)
    return _Nearest(index=torch.zeros_like(side.mask, dtype=torch.int64), symmetric=infinite, one_way=infinite.clone())


def _squared_distances(points0: Tensor, points1: Tensor) -> Tensor:
    """[B, M, N] from [B, M, 2] and [B, N, 2]; by differences, since |a|^2 - 2ab + |b|^2 loses whole pixels."""
    dx = points0[:, :, None, 0] - points1[:, None, :, 0]
    dy = points0[:, :, None, 1] - points1[:, None, :, 1]
    return dx.square_().add_(dy.square_())


def _label(side: _Side, own: _Nearest, other: _Nearest, config: GroundTruthConfig) -> Tensor:
    labels = torch.full_like(own.index, IGNORE)
    if other.index.shape[1] > 0:
        here = torch.arange(own.index.shape[1], device=own.index.device)
        mutual = other.index.gather(1, own.index) == here
        labels = torch.where(mutual & (own.symmetric < config.th_positive**2), own.index, labels)
    unmatched = side.known & (own.one_way > config.th_negative**2)
    return labels.masked_fill(unmatched, UNMATCHED)


def _exclude_by_epipolar_lines(
    side0: _Side, side1: _Side, gt0: Tensor, gt1: Tensor, F: Tensor, threshold: float
) -> tuple[Tensor, Tensor]:
    """Turn ignored keypoints without depth into unmatched ones where no ignored candidate is near their line."""
    index0, real0 = _gather_first((gt0 == IGNORE) & side0.mask)
    index1, real1 = _gather_first((gt1 == IGNORE) & side1.mask)
    points0, points1 = _take(side0.keypoints, index0), _take(side1.keypoints, index1)
    lines1, lines0 = epipolar_lines(points0, F), epipolar_lines(points1, F.transpose(-1, -2))
    nearest0 = torch.full_like(points0[..., 0], torch.inf)
    nearest1 = torch.full_like(points1[..., 0], torch.inf)
    for start in range(0, index0.shape[1] if index1.shape[1] else 0, CHUNK_ROWS):
        rows = slice(start, start + CHUNK_ROWS)
        distance = distance_to_lines(points0[:, rows], points1, lines0, lines1[:, rows])
        distance.masked_fill_(~(real0[:, rows, None] & real1[:, None]), torch.inf)
        nearest0[:, rows] = distance.amin(dim=2)
        nearest1 = torch.minimum(nearest1, distance.amin(dim=1))
    gt0 = _exclude(gt0, index0, real0 & (nearest0 > threshold) & ~side0.known.gather(1, index0))
    gt1 = _exclude(gt1, index1, real1 & (nearest1 > threshold) & ~side1.known.gather(1, index1))
    return gt0, gt1


def _gather_first(mask: Tensor) -> tuple[Tensor, Tensor]:
    """Indices [B, K] of the True entries of [B, M] first, K the largest count, and which of them are real."""
    count = int(mask.sum(dim=1).max()) if mask.numel() else 0
    index = mask.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :count]
    return index, mask.gather(1, index)


def _take(points: Tensor, index: Tensor) -> Tensor:
    return points.gather(1, index[..., None].expand(-1, -1, points.shape[-1]))


def _exclude(labels: Tensor, index: Tensor, excluded: Tensor) -> Tensor:
    return labels.scatter(1, index, labels.gather(1, index).masked_fill(excluded, UNMATCHED))

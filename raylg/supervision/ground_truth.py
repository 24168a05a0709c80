"""Labels of keypoints from geometry: which match, which have none, and which nobody can tell.

Legend: B pairs, M keypoints in view 0, N in view 1. Distances are squared pixels until a threshold is met. Rows are
processed in chunks with running minima, so nothing of size M x N outlives a chunk. The buffers of a chunk are used
again and are small enough for the cache of a processor: on a CPU that is most of the speed.
Source: glue-factory's definition of positives and negatives, with the true image size (it takes twice the principal
point) and with `th_epipolar` as the threshold of the epipolar test (it takes th_negative).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from raylg.batch import IGNORE, UNMATCHED, GroundTruth, PairBatch, View
from raylg.geometry.depth import warp
from raylg.geometry.epipolar import epipolar_lines, fundamental_matrix
from raylg.geometry.homography import warp_points
from raylg.supervision.config import GroundTruthConfig

CHUNK_ELEMENTS = {"cpu": 1 << 17}
"""Entries of a distance matrix per chunk and type of device: half a megabyte, three of which fit a second-level cache
of 2 MB. Labels of 2 pairs of 2048 keypoints take 45 ms with it, 67 ms with 2^15 and 55 ms with 2^20."""
CHUNK_ELEMENTS_ELSEWHERE = 1 << 24
"""256 rows of 32 pairs with 2048 keypoints, so that a kernel of a GPU has work."""
_FAR = 1e15
"""px. Its square is finite in float32, so that no distance is NaN; padding is on the other side (`-_FAR`) of points
without a place, or both would meet."""


@dataclass(frozen=True, kw_only=True)
class _Side:
    """Keypoints of one view and where they are in the other one."""

    points: Tensor
    """[2, B, M] px, x before y, contiguous; far away on padding."""
    warped: Tensor
    """[2, B, M] px in the other view, likewise; far away where there is none."""
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
    """[B, M], its squared distance, the larger of both directions; inf where none is visible."""
    one_way: Tensor
    """[B, M], smallest squared distance of the warped keypoint to any keypoint there; has no meaning where unknown."""


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
            undecided0 = _Undecided.of(view0, side0, gt0, F)
            undecided1 = _Undecided.of(view1, side1, gt1, F.transpose(-1, -2))
            gt0, gt1 = _exclude_by_epipolar_lines(undecided0, undecided1, gt0, gt1, config.th_epipolar)
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
    known = view.mask & (view.depth_keypoints > 0)  # false for NaN
    return _side(view, warped, known, known & visible)


def _side_from_warp(view: View, warped: Tensor) -> _Side:
    return _side(view, warped, view.mask, view.mask)


def _side(view: View, warped: Tensor, known: Tensor, visible: Tensor) -> _Side:
    points = view.keypoints.masked_fill(~view.mask[..., None], -_FAR)
    defined = ~warped.isnan().any(-1)
    warped = torch.where(warped.isfinite(), warped, _FAR)
    # Coordinates apart: what broadcasts against them then reads memory in order.
    return _Side(
        points=points.movedim(-1, 0).contiguous(),
        warped=warped.movedim(-1, 0).contiguous(),
        known=known & defined,
        visible=visible & defined,
        mask=view.mask,
    )


def _labels(side0: _Side, side1: _Side, config: GroundTruthConfig) -> tuple[Tensor, Tensor]:
    nearest0, nearest1 = _nearest(side0, side1)
    return _label(side0, nearest0, nearest1, config), _label(side1, nearest1, nearest0, config)


def _nearest(side0: _Side, side1: _Side) -> tuple[_Nearest, _Nearest]:
    nearest0, nearest1 = _no_candidates(side0), _no_candidates(side1)
    hidden0, hidden1 = _infinite_unless(side0.visible, side0.points), _infinite_unless(side1.visible, side1.points)
    for rows, (d0, d1, scratch) in _chunks(side0.mask, side1.mask, hidden0.dtype):
        _squared_distances(side0.warped[:, :, rows], side1.points, d0, scratch)
        _squared_distances(side0.points[:, :, rows], side1.warped, d1, scratch)
        nearest0.one_way[:, rows] = d0.amin(dim=2)
        nearest1.one_way = torch.minimum(d1.amin(dim=1), nearest1.one_way)

        symmetric = torch.maximum(d0, d1, out=d0)
        torch.maximum(symmetric, hidden0[:, rows, None], out=symmetric)
        torch.maximum(symmetric, hidden1[:, None], out=symmetric)
        nearest0.symmetric[:, rows], nearest0.index[:, rows] = symmetric.min(dim=2)
        column, index = symmetric.min(dim=1)
        nearest1.index = torch.where(column < nearest1.symmetric, index + rows.start, nearest1.index)
        nearest1.symmetric = torch.minimum(column, nearest1.symmetric)
    return nearest0, nearest1


def _no_candidates(side: _Side) -> _Nearest:
    infinite = torch.full_like(side.points[0], torch.inf)
    return _Nearest(index=torch.zeros_like(side.mask, dtype=torch.int64), symmetric=infinite, one_way=infinite.clone())


def _infinite_unless(allowed: Tensor, like: Tensor) -> Tensor:
    """0 where allowed: the larger of this and a distance is the distance, or infinite."""
    return torch.zeros_like(allowed, dtype=like.dtype).masked_fill_(~allowed, torch.inf)


def _chunks(mask0: Tensor, mask1: Tensor, dtype: torch.dtype) -> Iterator[tuple[slice, tuple[Tensor, ...]]]:
    """Rows of [B, M, N], and three buffers [B, rows, N] that the next chunk uses again; none if M or N is 0."""
    pairs, num0, num1 = *mask0.shape, mask1.shape[1]
    if pairs * num0 * num1 == 0:
        return
    budget = CHUNK_ELEMENTS.get(mask0.device.type, CHUNK_ELEMENTS_ELSEWHERE)
    num_rows = min(num0, max(1, budget // (pairs * num1)))
    buffers = torch.empty(3, pairs, num_rows, num1, dtype=dtype, device=mask0.device)
    for start in range(0, num0, num_rows):
        rows = slice(start, min(start + num_rows, num0))
        yield rows, buffers[:, :, : rows.stop - start].unbind(0)


def _squared_distances(points0: Tensor, points1: Tensor, out: Tensor, scratch: Tensor) -> None:
    """[B, M, N] from [2, B, M] and [2, B, N]; by differences, since |a|^2 - 2ab + |b|^2 loses whole pixels."""
    torch.sub(points0[0, :, :, None], points1[0, :, None], out=out).square_()
    torch.sub(points0[1, :, :, None], points1[1, :, None], out=scratch).square_()
    out.add_(scratch)


def _label(side: _Side, own: _Nearest, other: _Nearest, config: GroundTruthConfig) -> Tensor:
    labels = torch.full_like(own.index, IGNORE)
    if other.index.shape[1] > 0:
        here = torch.arange(own.index.shape[1], device=own.index.device)
        mutual = other.index.gather(1, own.index) == here
        labels = torch.where(mutual & (own.symmetric < config.th_positive**2), own.index, labels)
    unmatched = side.known & (own.one_way > config.th_negative**2)
    return labels.masked_fill(unmatched, UNMATCHED)


@dataclass(frozen=True, kw_only=True)
class _Undecided:
    """Ignored keypoints of one view, K of them in the pair that has most."""

    index: Tensor
    """int64 [B, K], positions in the view."""
    real: Tensor
    """bool [B, K], False beyond the number of this pair."""
    known: Tensor
    """bool [B, K]: has depth."""
    points: Tensor
    """[2, B, K] px, x before y, contiguous."""
    lines: Tensor
    """[3, B, K], their epipolar lines in the other view, with unit normals, contiguous."""

    @staticmethod
    def of(view: View, side: _Side, labels: Tensor, F: Tensor) -> _Undecided:
        """Choose them by their labels; F maps points of this view to lines."""
        ignored = (labels == IGNORE) & view.mask
        count = int(ignored.sum(dim=1).max()) if ignored.numel() else 0
        index = ignored.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :count]
        points = view.keypoints.gather(1, index[..., None].expand(-1, -1, 2))
        return _Undecided(
            index=index,
            real=ignored.gather(1, index),
            known=side.known.gather(1, index),
            points=points.movedim(-1, 0).contiguous(),
            lines=epipolar_lines(points, F).movedim(-1, 0).contiguous(),
        )


def _exclude_by_epipolar_lines(
    undecided0: _Undecided, undecided1: _Undecided, gt0: Tensor, gt1: Tensor, threshold: float
) -> tuple[Tensor, Tensor]:
    """Turn ignored keypoints without depth into unmatched ones where no ignored candidate is near their line."""
    nearest0 = torch.full_like(undecided0.points[0], torch.inf)
    nearest1 = torch.full_like(undecided1.points[0], torch.inf)
    absent0, absent1 = _infinite_unless(undecided0.real, nearest0), _infinite_unless(undecided1.real, nearest1)
    for rows, (distance, in0, scratch) in _chunks(undecided0.real, undecided1.real, nearest0.dtype):
        _distances_to_lines(undecided0.lines[:, :, rows, None], undecided1.points[:, :, None], distance, scratch)
        _distances_to_lines(undecided1.lines[:, :, None], undecided0.points[:, :, rows, None], in0, scratch)
        distance.add_(in0).mul_(0.5)
        torch.maximum(distance, absent0[:, rows, None], out=distance)
        torch.maximum(distance, absent1[:, None], out=distance)
        nearest0[:, rows] = distance.amin(dim=2)
        nearest1 = torch.minimum(nearest1, distance.amin(dim=1))
    return _exclude(gt0, undecided0, nearest0 > threshold), _exclude(gt1, undecided1, nearest1 > threshold)


def _distances_to_lines(lines: Tensor, points: Tensor, out: Tensor, scratch: Tensor) -> None:
    """``|a x + b y + c|`` [B, M, N] of lines [3, B, M, N] and points [2, B, M, N] that broadcast."""
    torch.mul(lines[0], points[0], out=out)
    torch.mul(lines[1], points[1], out=scratch)
    out.add_(scratch).add_(lines[2]).abs_()


def _exclude(labels: Tensor, undecided: _Undecided, alone: Tensor) -> Tensor:
    excluded = undecided.real & ~undecided.known & alone
    return labels.scatter(1, undecided.index, labels.gather(1, undecided.index).masked_fill(excluded, UNMATCHED))

"""What flows from shards to the matcher: features of one image, padded batches of image pairs.

Legend: B pairs, N keypoints (M in view 0, N in view 1), D descriptor size. Views carry the suffix 0/1.
Pixel convention and poses: `raylg.geometry.camera`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from raylg.geometry.camera import Camera, Pose

UNMATCHED = -1
IGNORE = -2


@dataclass(frozen=True, kw_only=True)
class Features:
    """Local features of one image on the CPU, sorted by descending score."""

    keypoints: np.ndarray
    """float32 [N, 2], pixels (x, y) at extraction resolution."""
    keypoint_scores: np.ndarray
    """float32 [N], descending."""
    descriptors: np.ndarray
    """float16 [N, D], unit L2 norm."""
    scales: np.ndarray | None = None
    """float32 [N], pixels; only for detectors that have one (SIFT)."""
    oris: np.ndarray | None = None
    """float32 [N], radians; only for detectors that have one (SIFT)."""

    def __len__(self) -> int:
        return len(self.keypoints)


@dataclass(frozen=True, kw_only=True)
class View:
    """One side of a batch of pairs, padded to a common number of keypoints."""

    keypoints: Tensor
    """float32 [B, N, 2] px; padding is 0."""
    descriptors: Tensor
    """float32 [B, N, D]; padding is 0."""
    mask: Tensor
    """bool [B, N], False on padding."""
    image_size: Tensor
    """float32 [B, 2], (width, height)."""
    camera: Camera
    depth_keypoints: Tensor
    """float32 [B, N], depth along the optical axis; NaN where unknown and on padding."""
    scales: Tensor | None = None
    """float32 [B, N] px, padding 0."""
    oris: Tensor | None = None
    """float32 [B, N] radians, padding 0."""
    original_size: Tensor | None = None
    """float32 [B, 2], (width, height) before images were resized for extraction; None where that is not known."""

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> View:
        """Copy every tensor to `device`."""

        def move(x: Tensor) -> Tensor:
            return x.to(device, non_blocking=non_blocking)

        return View(
            keypoints=move(self.keypoints),
            descriptors=move(self.descriptors),
            mask=move(self.mask),
            image_size=move(self.image_size),
            camera=self.camera.to(device),
            depth_keypoints=move(self.depth_keypoints),
            scales=None if self.scales is None else move(self.scales),
            oris=None if self.oris is None else move(self.oris),
            original_size=None if self.original_size is None else move(self.original_size),
        )

    def __getitem__(self, rows: slice) -> View:
        """Take some pairs of the batch."""
        return View(
            keypoints=self.keypoints[rows],
            descriptors=self.descriptors[rows],
            mask=self.mask[rows],
            image_size=self.image_size[rows],
            camera=self.camera[rows],
            depth_keypoints=self.depth_keypoints[rows],
            scales=None if self.scales is None else self.scales[rows],
            oris=None if self.oris is None else self.oris[rows],
            original_size=None if self.original_size is None else self.original_size[rows],
        )


@dataclass(frozen=True, kw_only=True)
class PairBatch:
    """A batch of B image pairs with everything that supervision and scoring need."""

    view0: View
    view1: View
    T_0to1: Pose
    """Camera-0 to camera-1 coordinates, batched [B]."""
    overlap: Tensor
    """float32 [B], 0 to 1; NaN where the source does not know it."""
    names: tuple[tuple[str, str, str], ...]
    """(scene, image 0, image 1) of each pair."""
    H_0to1: Tensor | None = None
    """float32 [B, 3, 3], pixels of view 0 to pixels of view 1. Where given it is the geometry of every pair of the
    batch, and cameras, depths and `T_0to1` are NaN."""

    def __len__(self) -> int:
        return len(self.names)

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> PairBatch:
        """Copy every tensor to `device`."""
        return replace(
            self,
            view0=self.view0.to(device, non_blocking=non_blocking),
            view1=self.view1.to(device, non_blocking=non_blocking),
            T_0to1=self.T_0to1.to(device),
            overlap=self.overlap.to(device, non_blocking=non_blocking),
            H_0to1=None if self.H_0to1 is None else self.H_0to1.to(device, non_blocking=non_blocking),
        )

    def __getitem__(self, rows: slice) -> PairBatch:
        """Take some pairs, as micro-batches do."""
        return PairBatch(
            view0=self.view0[rows],
            view1=self.view1[rows],
            T_0to1=self.T_0to1[rows],
            overlap=self.overlap[rows],
            names=self.names[rows],
            H_0to1=None if self.H_0to1 is None else self.H_0to1[rows],
        )


@dataclass(frozen=True, kw_only=True)
class LayerPrediction:
    """What one layer of a matcher says about a batch; the assignment matrix follows from it but is not formed.

    The similarity of keypoints i and j is ``projected0[b, i] @ projected1[b, j]``.
    """

    projected0: Tensor
    """[B, M, D]."""
    projected1: Tensor
    """[B, N, D]."""
    matchability0: Tensor
    """[B, M] logits."""
    matchability1: Tensor
    """[B, N] logits."""
    confidence0: Tensor | None
    """[B, M] logits of the token confidence, from detached descriptors; None for the last layer."""
    confidence1: Tensor | None
    """[B, N], likewise."""

    def __getitem__(self, rows: slice) -> LayerPrediction:
        """Take some pairs of the batch."""
        return LayerPrediction(
            projected0=self.projected0[rows],
            projected1=self.projected1[rows],
            matchability0=self.matchability0[rows],
            matchability1=self.matchability1[rows],
            confidence0=None if self.confidence0 is None else self.confidence0[rows],
            confidence1=None if self.confidence1 is None else self.confidence1[rows],
        )


@dataclass(frozen=True, kw_only=True)
class Matches:
    """Matches of a batch of pairs, after mutual argmax and filter."""

    matches0: Tensor
    """int64 [B, M], index into view 1 or -1."""
    matches1: Tensor
    """int64 [B, N], index into view 0 or -1."""
    matching_scores0: Tensor
    """float32 [B, M]; probability of the mutual best candidate, also below the filter threshold, else 0."""
    matching_scores1: Tensor
    """float32 [B, N]."""
    num_layers_used: Tensor
    """int64 [B]; fewer than the depth of the network after an early exit."""


@dataclass(frozen=True, kw_only=True)
class GroundTruth:
    """Labels of a batch: index of the match, `UNMATCHED` or `IGNORE`. Padding is `IGNORE`."""

    gt_matches0: Tensor
    """int64 [B, M]."""
    gt_matches1: Tensor
    """int64 [B, N]."""

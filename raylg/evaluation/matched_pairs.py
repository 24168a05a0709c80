"""One matched pair: how far it is from what is known of it, by the robust estimate and by its matches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from raylg.batch import PairBatch, View
from raylg.errors import ConfigError
from raylg.evaluation.config import EvaluationConfig
from raylg.evaluation.homography import corner_error, estimate_homography
from raylg.evaluation.measures import Kind
from raylg.evaluation.pair_scores import IntArray
from raylg.evaluation.pose import FloatArray, estimate_relative_pose, rotation_error, translation_error
from raylg.geometry.camera import Camera, Pose
from raylg.geometry.epipolar import fundamental_matrix, symmetric_epipolar_distance_matches
from raylg.geometry.homography import symmetric_reprojection_error


@dataclass(frozen=True, kw_only=True)
class _PoseTruth:
    camera0: Camera
    camera1: Camera
    T_0to1: Pose


@dataclass(frozen=True, kw_only=True)
class _HomographyTruth:
    H_0to1: Tensor
    """[3, 3] px."""
    size0: Tensor
    """[2], (width, height)."""


@dataclass(frozen=True, kw_only=True)
class Pair:
    """What is kept of a pair besides its score."""

    index: IntArray
    """int64 [2], (shard, pair)."""
    kind: Kind
    names: tuple[str, str, str]
    """(scene, image 0, image 1)."""
    num_matches: int
    num_keypoints: tuple[int, int]
    overlap: float


@dataclass(frozen=True, kw_only=True)
class MatchedPair:
    """One pair on the CPU, in float64, in `EvaluationConfig.pixels`."""

    pair: Pair
    points0: Tensor
    """[m, 2] px, matched with `points1`."""
    points1: Tensor
    truth: _PoseTruth | _HomographyTruth


@dataclass(frozen=True, kw_only=True)
class PairScore:
    """The score of a pair; errors are infinite where nothing was found or where they are of the other kind."""

    pair: Pair
    precision: float
    """Share of the matches within `EvaluationConfig.precision_threshold`; 0 without matches."""
    num_inliers: int = 0
    rotation_error: float = np.inf
    """Degrees."""
    translation_error: float = np.inf
    """Degrees."""
    corner_error: float = np.inf
    """In `EvaluationConfig.pixels`."""


def matched_pairs(
    batch: PairBatch, matches0: Tensor, indices: IntArray, config: EvaluationConfig
) -> Iterator[MatchedPair]:
    """Take a batch apart.

    Args:
        batch: B pairs, wherever they were made.
        matches0: int64 [B, M] on the CPU, see `Matches`.
        indices: int64 [B, 2], (shard, pair) of each.
        config: `pixels`.

    Raises:
        ConfigError: see `pixel_scale`.
    """
    batch = batch.to("cpu")  # pairs that are made on a GPU come from there
    scale0, scale1 = pixel_scale(batch.view0, config), pixel_scale(batch.view1, config)
    for b, index in enumerate(indices):
        here = (matches0[b] >= 0).nonzero()[:, 0]
        pair = Pair(
            index=index,
            kind="pose" if batch.H_0to1 is None else "homography",
            names=batch.names[b],
            num_matches=len(here),
            num_keypoints=(int(batch.view0.mask[b].sum()), int(batch.view1.mask[b].sum())),
            overlap=float(batch.overlap[b]),
        )
        yield MatchedPair(
            pair=pair,
            points0=batch.view0.keypoints[b, here].double() * scale0[b],
            points1=batch.view1.keypoints[b, matches0[b, here]].double() * scale1[b],
            truth=_truth(batch, b, scale0[b], scale1[b]),
        )


def pixel_scale(view: View, config: EvaluationConfig) -> Tensor:
    """float64 [B, 2], from pixels at extraction resolution to `config.pixels`.

    Raises:
        ConfigError: `config.pixels` is original and the data set does not know the sizes of its images.
    """
    if config.pixels == "extraction":
        return torch.ones_like(view.image_size, dtype=torch.float64)
    if view.original_size is None:
        raise ConfigError(
            "evaluation.pixels = 'original': the data set does not know the sizes that its images had before they were "
            "resized; prepare them again with this version, or set evaluation.pixels=extraction"
        )
    return view.original_size.double() / view.image_size.double()


def _truth(batch: PairBatch, b: int, scale0: Tensor, scale1: Tensor) -> _PoseTruth | _HomographyTruth:
    if batch.H_0to1 is not None:
        ones = scale0.new_ones(1)
        H = torch.cat([scale1, ones])[:, None] * batch.H_0to1[b].double() / torch.cat([scale0, ones])
        return _HomographyTruth(H_0to1=H, size0=batch.view0.image_size[b].double() * scale0)
    camera0, camera1 = batch.view0.camera, batch.view1.camera
    return _PoseTruth(
        camera0=Camera(camera0.f[b].double(), camera0.c[b].double()).scaled(scale0),
        camera1=Camera(camera1.f[b].double(), camera1.c[b].double()).scaled(scale1),
        T_0to1=Pose(batch.T_0to1.R[b].double(), batch.T_0to1.t[b].double()),
    )


def score_pair(pair: MatchedPair, config: EvaluationConfig) -> PairScore:
    """Estimate what the matches say and compare; a pure function of its arguments, fit for threads."""
    if isinstance(pair.truth, _PoseTruth):
        return _score_pose(pair, pair.truth, config)
    return _score_homography(pair, pair.truth, config)


def _score_pose(pair: MatchedPair, truth: _PoseTruth, config: EvaluationConfig) -> PairScore:
    estimate = estimate_relative_pose(
        pair.points0.numpy(), pair.points1.numpy(), _params(truth.camera0), _params(truth.camera1), config
    )
    F = fundamental_matrix(truth.camera0, truth.camera1, truth.T_0to1)
    precision = _share_within(symmetric_epipolar_distance_matches(pair.points0, pair.points1, F), config)
    if estimate is None:
        return PairScore(pair=pair.pair, precision=precision)
    return PairScore(
        pair=pair.pair,
        precision=precision,
        num_inliers=estimate.num_inliers,
        rotation_error=float(rotation_error(estimate.R, truth.T_0to1.R.numpy())),
        translation_error=float(translation_error(estimate.t, truth.T_0to1.t.numpy())),
    )


def _score_homography(pair: MatchedPair, truth: _HomographyTruth, config: EvaluationConfig) -> PairScore:
    estimate = estimate_homography(pair.points0.numpy(), pair.points1.numpy(), config)
    distance = symmetric_reprojection_error(pair.points0, pair.points1, truth.H_0to1)
    precision = _share_within(distance, config)
    if estimate is None:
        return PairScore(pair=pair.pair, precision=precision)
    return PairScore(
        pair=pair.pair,
        precision=precision,
        num_inliers=estimate.num_inliers,
        corner_error=corner_error(estimate.H, truth.H_0to1.numpy(), truth.size0.numpy()),
    )


def _share_within(distance: Tensor, config: EvaluationConfig) -> float:
    return int((distance < config.precision_threshold).sum()) / max(1, len(distance))


def _params(camera: Camera) -> FloatArray:
    return torch.cat([camera.f, camera.c]).numpy()

"""Score a matcher on the pairs of a data set by what follows from its matches: relative poses, or homographies.

Matching of a batch overlaps with the robust estimation of the batches before, which releases the GIL. Everything is
kept per pair (`raylg.evaluation.pair_scores`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from torch import Tensor

from raylg.batch import Matches, PairBatch, View
from raylg.errors import ConfigError
from raylg.evaluation.config import EvaluationConfig
from raylg.evaluation.homography import corner_error, estimate_homography
from raylg.evaluation.measures import Kind
from raylg.evaluation.pair_scores import IntArray, PairScores
from raylg.evaluation.pose import (
    FloatArray,
    estimate_relative_pose,
    estimator_version,
    rotation_error,
    translation_error,
)
from raylg.geometry.camera import Camera, Pose
from raylg.geometry.epipolar import fundamental_matrix, symmetric_epipolar_distance_matches
from raylg.geometry.homography import symmetric_reprojection_error
from raylg.models.config import LightGlueConfig
from raylg.schema import digest

if TYPE_CHECKING:
    from raylg.data.stream import PairData


class Matcher(Protocol):
    """Whatever matches two views."""

    def match(self, view0: View, view1: View) -> Matches:
        """Match a padded batch."""


def protocol_hash(
    config: EvaluationConfig,
    *,
    data_hash: str,
    indices: IntArray,
    matcher: LightGlueConfig,
    num_keypoints: int,
) -> str:
    """12 hex digits of all that decides a score except the weights; scores of different hashes are never compared.

    Args:
        config: estimator; `max_pairs` acts through `indices`, batch size and threads change no result.
        data_hash: of the shards, which covers extractor, resize and pairs.
        indices: [P, 2] pairs that are scored, in any order.
        matcher: its options at inference count, not its architecture.
        num_keypoints: largest number per image.
    """
    return digest(
        {
            "estimator": estimator_version(config),
            "ransac_threshold": config.ransac_threshold,
            "pixels": config.pixels,
            "ransac_max_iterations": config.ransac_max_iterations,
            "ransac_seed": config.ransac_seed,
            "precision_threshold": config.precision_threshold,
            "data": data_hash,
            "pairs": sorted(np.asarray(indices).tolist()),
            "filter_threshold": matcher.filter_threshold,
            "depth_confidence": matcher.depth_confidence,
            "width_confidence": matcher.width_confidence,
            "num_keypoints": num_keypoints,
        }
    )


def check_pixels(dataset: PairData, config: EvaluationConfig) -> None:
    """Look at one pair, so that it is known before time is spent whether pairs can be scored in `config.pixels`.

    Raises:
        ConfigError: `config.pixels` is original and the data set does not know the sizes of its images.
    """
    if config.pixels == "original" and dataset.num_pairs > 0:
        first = next(shard for shard, size in enumerate(dataset.shard_sizes) if size > 0)
        batch = dataset.batch(np.array([[first, 0]]))
        for view in (batch.view0, batch.view1):
            _scale(view, config)


def score_pairs(
    matcher: Matcher,
    dataset: PairData,
    config: EvaluationConfig,
    *,
    device: torch.device | str,
    indices: IntArray,
) -> PairScores:
    """Match pairs in batches and estimate their poses or homographies in threads.

    Args:
        matcher: on `device`.
        dataset: pairs of one kind.
        config: estimator, pixels, batch size and threads; `max_pairs` is the caller's, who chooses `indices`.
        device: where to match.
        indices: int64 [P, 2], the pairs to score.

    Raises:
        ConfigError: see `check_pixels`.
    """
    futures: list[Future[_PairScore]] = []
    threads = ThreadPoolExecutor(config.num_threads, thread_name_prefix="pose")
    try:
        for start in range(0, len(indices), config.batch_size):
            chunk = indices[start : start + config.batch_size]
            for pair in _matched_pairs(matcher, dataset.batch(chunk), chunk, device, config):
                futures.append(threads.submit(_score, pair, config))
        results = [future.result() for future in futures]
    finally:
        threads.shutdown(cancel_futures=True)  # after an error, what has not begun never does
    return _collect(results, config)


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
class _MatchedPair:
    """One pair on the CPU, in float64, in `EvaluationConfig.pixels`."""

    index: IntArray
    names: tuple[str, str, str]
    points0: Tensor
    """[m, 2] px, matched with `points1`."""
    points1: Tensor
    truth: _PoseTruth | _HomographyTruth
    num_keypoints: tuple[int, int]
    overlap: float


@dataclass(frozen=True, kw_only=True)
class _PairScore:
    pair: _MatchedPair
    precision: float
    num_inliers: int = 0
    rotation_error: float = np.inf
    translation_error: float = np.inf
    corner_error: float = np.inf


def _matched_pairs(
    matcher: Matcher, batch: PairBatch, indices: IntArray, device: torch.device | str, config: EvaluationConfig
) -> Iterator[_MatchedPair]:
    moved = batch.to(device)
    with torch.no_grad():
        matches0 = matcher.match(moved.view0, moved.view1).matches0.cpu()
    batch = batch.to("cpu")  # pairs that are made on a GPU come from there
    scale0, scale1 = _scale(batch.view0, config), _scale(batch.view1, config)
    for b, index in enumerate(indices):
        here = (matches0[b] >= 0).nonzero()[:, 0]
        yield _MatchedPair(
            index=index,
            names=batch.names[b],
            points0=batch.view0.keypoints[b, here].double() * scale0[b],
            points1=batch.view1.keypoints[b, matches0[b, here]].double() * scale1[b],
            truth=_truth(batch, b, scale0[b], scale1[b]),
            num_keypoints=(int(batch.view0.mask[b].sum()), int(batch.view1.mask[b].sum())),
            overlap=float(batch.overlap[b]),
        )


def _scale(view: View, config: EvaluationConfig) -> Tensor:
    """float64 [B, 2], from pixels at extraction resolution to `config.pixels`."""
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


def _score(pair: _MatchedPair, config: EvaluationConfig) -> _PairScore:
    if isinstance(pair.truth, _PoseTruth):
        return _score_pose(pair, pair.truth, config)
    return _score_homography(pair, pair.truth, config)


def _score_pose(pair: _MatchedPair, truth: _PoseTruth, config: EvaluationConfig) -> _PairScore:
    estimate = estimate_relative_pose(
        pair.points0.numpy(), pair.points1.numpy(), _params(truth.camera0), _params(truth.camera1), config
    )
    F = fundamental_matrix(truth.camera0, truth.camera1, truth.T_0to1)
    precision = _share_within(symmetric_epipolar_distance_matches(pair.points0, pair.points1, F), config)
    if estimate is None:
        return _PairScore(pair=pair, precision=precision)
    return _PairScore(
        pair=pair,
        precision=precision,
        num_inliers=estimate.num_inliers,
        rotation_error=float(rotation_error(estimate.R, truth.T_0to1.R.numpy())),
        translation_error=float(translation_error(estimate.t, truth.T_0to1.t.numpy())),
    )


def _score_homography(pair: _MatchedPair, truth: _HomographyTruth, config: EvaluationConfig) -> _PairScore:
    estimate = estimate_homography(pair.points0.numpy(), pair.points1.numpy(), config)
    distance = symmetric_reprojection_error(pair.points0, pair.points1, truth.H_0to1)
    precision = _share_within(distance, config)
    if estimate is None:
        return _PairScore(pair=pair, precision=precision)
    return _PairScore(
        pair=pair,
        precision=precision,
        num_inliers=estimate.num_inliers,
        corner_error=corner_error(estimate.H, truth.H_0to1.numpy(), truth.size0.numpy()),
    )


def _share_within(distance: Tensor, config: EvaluationConfig) -> float:
    return int((distance < config.precision_threshold).sum()) / max(1, len(distance))


def _params(camera: Camera) -> FloatArray:
    return torch.cat([camera.f, camera.c]).numpy()


def _collect(results: Sequence[_PairScore], config: EvaluationConfig) -> PairScores:
    def floats(values: Iterator[float]) -> FloatArray:
        return np.fromiter(values, dtype=np.float64)

    def integers(values: Iterator[int]) -> IntArray:
        return np.fromiter(values, dtype=np.int64)

    pairs = [result.pair for result in results]
    homographies = {isinstance(pair.truth, _HomographyTruth) for pair in pairs}
    assert len(homographies) <= 1, "pairs of both kinds cannot be scored together"
    kind: Kind = "homography" if True in homographies else "pose"
    scenes, names0, names1 = (np.array([pair.names[i] for pair in pairs], dtype=np.str_) for i in range(3))
    absent = np.full(len(pairs), np.nan)
    return PairScores(
        kind=kind,
        indices=np.array([pair.index for pair in pairs], dtype=np.int64).reshape(-1, 2),
        scenes=scenes,
        names0=names0,
        names1=names1,
        rotation_error=floats(r.rotation_error for r in results) if kind == "pose" else absent,
        translation_error=floats(r.translation_error for r in results) if kind == "pose" else absent,
        corner_error=floats(r.corner_error for r in results) if kind == "homography" else absent,
        num_matches=integers(len(pair.points0) for pair in pairs),
        num_inliers=integers(result.num_inliers for result in results),
        num_keypoints0=integers(pair.num_keypoints[0] for pair in pairs),
        num_keypoints1=integers(pair.num_keypoints[1] for pair in pairs),
        precision=floats(result.precision for result in results),
        overlap=floats(pair.overlap for pair in pairs),
        precision_threshold=config.precision_threshold,
    )

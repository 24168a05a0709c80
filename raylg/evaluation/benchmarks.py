"""Score a matcher on the pairs of a data set by the relative poses that follow from its matches.

Matching of a batch overlaps with the robust estimation of the batches before, which releases the GIL. Everything is
kept per pair, so that two matchers can be compared pair by pair (`raylg.evaluation.statistics`).
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt
import torch

from raylg.batch import Matches, PairBatch, View
from raylg.errors import ConfigError
from raylg.evaluation.config import EvaluationConfig
from raylg.evaluation.pose import (
    FloatArray,
    auc,
    estimate_relative_pose,
    estimator_version,
    mean_score,
    rotation_error,
    translation_error,
)
from raylg.geometry.camera import Camera, Pose
from raylg.geometry.epipolar import fundamental_matrix, symmetric_epipolar_distance_matches
from raylg.models.config import LightGlueConfig
from raylg.schema import digest

if TYPE_CHECKING:
    from raylg.data.stream import PairDataset

IntArray = npt.NDArray[np.int64]
StringArray = npt.NDArray[np.str_]

AUC_THRESHOLDS = (5.0, 10.0, 20.0)
"""Degrees, of the published numbers."""


class Matcher(Protocol):
    """Whatever matches two views."""

    def match(self, view0: View, view1: View) -> Matches:
        """Match a padded batch."""


@dataclass(frozen=True, kw_only=True)
class PairScores:
    """Scores of P pairs, in the order of the data set. Errors are degrees, infinite where no pose was found."""

    indices: IntArray
    """[P, 2] (shard, pair) in the data set."""
    scenes: StringArray
    """[P]."""
    names0: StringArray
    """[P], image name within the scene."""
    names1: StringArray
    """[P]."""
    rotation_error: FloatArray
    """[P]."""
    translation_error: FloatArray
    """[P], up to sign."""
    num_matches: IntArray
    """[P]."""
    num_inliers: IntArray
    """[P], 0 where no pose was found."""
    num_keypoints0: IntArray
    """[P]."""
    num_keypoints1: IntArray
    """[P]."""
    precision: FloatArray
    """[P], share of the matches within `precision_threshold` of the true epipolar geometry; 0 without matches."""
    overlap: FloatArray
    """[P], NaN where unknown."""
    precision_threshold: float
    """Pixels at extraction resolution."""

    def __post_init__(self) -> None:
        order = np.lexsort((self.indices[:, 1], self.indices[:, 0]))
        for name in _per_pair():
            values = getattr(self, name)
            assert len(values) == len(order), f"{name} has {len(values)} entries, not {len(order)}"
            object.__setattr__(self, name, values[order])

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def pose_error(self) -> FloatArray:
        """The larger of both angles, [P]."""
        return np.maximum(self.rotation_error, self.translation_error)

    def metrics(self, split: str) -> dict[str, float]:
        """Summaries under keys such as ``val/auc@5``; scores are shares in 0 to 1, counts are means over pairs.

        Raises:
            ConfigError: there is no pair.
        """
        if len(self) == 0:
            raise ConfigError(f"{split}: no pair was scored; give a split with pairs, or a larger evaluation.max_pairs")
        errors = self.pose_error
        areas = auc(errors, AUC_THRESHOLDS)
        metrics = {f"{split}/auc@{t:g}": area for t, area in zip(AUC_THRESHOLDS, areas, strict=True)}
        metrics[f"{split}/mean_auc"] = float(np.mean(areas))
        metrics |= {f"{split}/mean_score@{t:g}": mean_score(errors, t) for t in AUC_THRESHOLDS}
        metrics[f"{split}/precision@{self.precision_threshold:g}px"] = float(self.precision.mean())
        metrics[f"{split}/num_matches"] = float(self.num_matches.mean())
        metrics[f"{split}/num_inliers"] = float(self.num_inliers.mean())
        metrics[f"{split}/failures"] = float(np.isinf(errors).sum())
        return metrics

    def save(self, path: Path) -> None:
        """Write an ``.npz`` without pickles; whole or not at all."""
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **{field.name: getattr(self, field.name) for field in fields(self)})
        temporary = path.with_name(path.name + ".tmp")
        temporary.write_bytes(buffer.getvalue())
        temporary.replace(path)

    @staticmethod
    def load(path: Path) -> PairScores:
        """Read what `save` wrote.

        Raises:
            ConfigError: the file is missing, or is not one of these.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                values = {name: file[name] for name in _per_pair()}
                return PairScores(**values, precision_threshold=float(file["precision_threshold"]))
        except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
            raise ConfigError(f"{path}: not a file of pair scores ({error}); score the matcher again") from error


def _per_pair() -> list[str]:
    return [field.name for field in fields(PairScores) if field.name != "precision_threshold"]


def concatenate(parts: Sequence[PairScores]) -> PairScores:
    """Join the parts that several ranks scored; the order is that of the data set, whoever scored what."""
    assert parts, "nothing to join"
    thresholds = {part.precision_threshold for part in parts}
    assert len(thresholds) == 1, f"parts of different protocols: precision thresholds {sorted(thresholds)}"
    joined = {name: np.concatenate([getattr(part, name) for part in parts]) for name in _per_pair()}
    return PairScores(**joined, precision_threshold=thresholds.pop())


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


def score_pairs(
    matcher: Matcher,
    dataset: PairDataset,
    config: EvaluationConfig,
    *,
    device: torch.device | str,
    indices: IntArray,
) -> PairScores:
    """Match pairs in batches and estimate their poses in threads.

    Args:
        matcher: on `device`.
        dataset: feature shards.
        config: estimator, batch size and threads; `max_pairs` is the caller's, who chooses `indices`.
        device: where to match.
        indices: int64 [P, 2], the pairs to score.
    """
    futures: list[Future[_PairScore]] = []
    threads = ThreadPoolExecutor(config.num_threads, thread_name_prefix="pose")
    try:
        for start in range(0, len(indices), config.batch_size):
            chunk = indices[start : start + config.batch_size]
            for pair in _matched_pairs(matcher, dataset.batch(chunk), chunk, device):
                futures.append(threads.submit(_score, pair, config))
        results = [future.result() for future in futures]
    finally:
        threads.shutdown(cancel_futures=True)  # after an error, what has not begun never does
    return _collect(results, config)


@dataclass(frozen=True, kw_only=True)
class _MatchedPair:
    """One pair on the CPU, in float64."""

    index: IntArray
    names: tuple[str, str, str]
    points0: torch.Tensor
    """[m, 2] px, matched with `points1`."""
    points1: torch.Tensor
    camera0: Camera
    camera1: Camera
    T_0to1: Pose
    num_keypoints: tuple[int, int]
    overlap: float


@dataclass(frozen=True, kw_only=True)
class _PairScore:
    pair: _MatchedPair
    rotation_error: float
    translation_error: float
    num_inliers: int
    precision: float


def _matched_pairs(
    matcher: Matcher, batch: PairBatch, indices: IntArray, device: torch.device | str
) -> Iterator[_MatchedPair]:
    moved = batch.to(device)
    with torch.no_grad():
        matches0 = matcher.match(moved.view0, moved.view1).matches0.cpu()
    for b, index in enumerate(indices):
        here = (matches0[b] >= 0).nonzero()[:, 0]
        yield _MatchedPair(
            index=index,
            names=batch.names[b],
            points0=batch.view0.keypoints[b, here].double(),
            points1=batch.view1.keypoints[b, matches0[b, here]].double(),
            camera0=_double_camera(batch.view0.camera, b),
            camera1=_double_camera(batch.view1.camera, b),
            T_0to1=Pose(batch.T_0to1.R[b].double(), batch.T_0to1.t[b].double()),
            num_keypoints=(int(batch.view0.mask[b].sum()), int(batch.view1.mask[b].sum())),
            overlap=float(batch.overlap[b]),
        )


def _double_camera(camera: Camera, b: int) -> Camera:
    return Camera(camera.f[b].double(), camera.c[b].double())


def _score(pair: _MatchedPair, config: EvaluationConfig) -> _PairScore:
    estimate = estimate_relative_pose(
        pair.points0.numpy(), pair.points1.numpy(), _params(pair.camera0), _params(pair.camera1), config
    )
    F = fundamental_matrix(pair.camera0, pair.camera1, pair.T_0to1)
    distance = symmetric_epipolar_distance_matches(pair.points0, pair.points1, F)
    num_correct = int((distance < config.precision_threshold).sum())
    rotation, translation = np.inf, np.inf
    if estimate is not None:
        rotation = float(rotation_error(estimate.R, pair.T_0to1.R.numpy()))
        translation = float(translation_error(estimate.t, pair.T_0to1.t.numpy()))
    return _PairScore(
        pair=pair,
        rotation_error=rotation,
        translation_error=translation,
        num_inliers=0 if estimate is None else estimate.num_inliers,
        precision=num_correct / max(1, len(distance)),
    )


def _params(camera: Camera) -> FloatArray:
    return torch.cat([camera.f, camera.c]).numpy()


def _collect(results: Sequence[_PairScore], config: EvaluationConfig) -> PairScores:
    def floats(values: Iterator[float]) -> FloatArray:
        return np.fromiter(values, dtype=np.float64)

    def integers(values: Iterator[int]) -> IntArray:
        return np.fromiter(values, dtype=np.int64)

    pairs = [result.pair for result in results]
    scenes, names0, names1 = (np.array([pair.names[i] for pair in pairs], dtype=np.str_) for i in range(3))
    return PairScores(
        indices=np.array([pair.index for pair in pairs], dtype=np.int64).reshape(-1, 2),
        scenes=scenes,
        names0=names0,
        names1=names1,
        rotation_error=floats(result.rotation_error for result in results),
        translation_error=floats(result.translation_error for result in results),
        num_matches=integers(len(pair.points0) for pair in pairs),
        num_inliers=integers(result.num_inliers for result in results),
        num_keypoints0=integers(pair.num_keypoints[0] for pair in pairs),
        num_keypoints1=integers(pair.num_keypoints[1] for pair in pairs),
        precision=floats(result.precision for result in results),
        overlap=floats(pair.overlap for pair in pairs),
        precision_threshold=config.precision_threshold,
    )

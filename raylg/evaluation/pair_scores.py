"""Scores of pairs, one by one, so that two matchers can be compared pair by pair (`raylg.evaluation.statistics`)."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from raylg.errors import ConfigError
from raylg.evaluation.measures import MEASURES, Kind, Measure
from raylg.evaluation.pose import FloatArray, auc, mean_score

IntArray = npt.NDArray[np.int64]
StringArray = npt.NDArray[np.str_]


@dataclass(frozen=True, kw_only=True)
class PairScores:
    """Scores of P pairs of one kind, in the order of the data set. An error is infinite where nothing was found."""

    kind: Kind
    """What the pairs are scored by."""
    indices: IntArray
    """[P, 2] (shard, pair) in the data set."""
    scenes: StringArray
    """[P]."""
    names0: StringArray
    """[P], image name within the scene."""
    names1: StringArray
    """[P]."""
    rotation_error: FloatArray
    """[P], degrees; NaN for homographies."""
    translation_error: FloatArray
    """[P], degrees, up to sign; NaN for homographies."""
    corner_error: FloatArray
    """[P], mean distance of the warped corners of view 0 in `EvaluationConfig.pixels`; NaN for poses."""
    num_matches: IntArray
    """[P]."""
    num_inliers: IntArray
    """[P], 0 where nothing was found."""
    num_keypoints0: IntArray
    """[P]."""
    num_keypoints1: IntArray
    """[P]."""
    precision: FloatArray
    """[P], share of the matches within `precision_threshold` of the true geometry; 0 without matches."""
    overlap: FloatArray
    """[P], NaN where unknown."""
    precision_threshold: float
    """In `EvaluationConfig.pixels`."""

    def __post_init__(self) -> None:
        order = np.lexsort((self.indices[:, 1], self.indices[:, 0]))
        for name in _per_pair():
            values = getattr(self, name)
            assert len(values) == len(order), f"{name} has {len(values)} entries, not {len(order)}"
            object.__setattr__(self, name, values[order])

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def measure(self) -> Measure:
        """Unit and thresholds of `error`."""
        return MEASURES[self.kind]

    @property
    def pose_error(self) -> FloatArray:
        """The larger of both angles in degrees, [P]; NaN for homographies."""
        return np.maximum(self.rotation_error, self.translation_error)

    @property
    def error(self) -> FloatArray:
        """What is scored, [P], in the unit of `measure`."""
        return self.pose_error if self.kind == "pose" else self.corner_error

    def only(self, indices: IntArray) -> PairScores:
        """The scores of some of the pairs.

        Args:
            indices: int64 [n, 2], all of them among those of these scores.
        """
        wanted = set(map(tuple, indices.tolist()))
        rows = [row for row, index in enumerate(self.indices.tolist()) if tuple(index) in wanted]
        assert len(rows) == len(wanted), f"{len(wanted) - len(rows)} of {len(wanted)} pairs were not scored"
        return replace(self, **{name: getattr(self, name)[rows] for name in _per_pair()})

    def metrics(self, split: str) -> dict[str, float]:
        """Summaries under keys such as ``val/auc@5``; scores are shares in 0 to 1, counts are means over pairs.

        Raises:
            ConfigError: there is no pair.
        """
        if len(self) == 0:
            raise ConfigError(f"{split}: no pair was scored; give a split with pairs, or a larger evaluation.max_pairs")
        errors, measure = self.error, self.measure
        areas = auc(errors, measure.thresholds)
        metrics = dict(zip(measure.keys(split), areas, strict=True)) | {f"{split}/num_pairs": float(len(self))}
        metrics[f"{split}/mean_auc"] = float(np.mean(areas))
        metrics |= {f"{split}/{measure.prefix}mean_score@{t:g}": mean_score(errors, t) for t in measure.thresholds}
        metrics[f"{split}/precision@{self.precision_threshold:g}px"] = float(self.precision.mean())
        metrics[f"{split}/num_matches"] = float(self.num_matches.mean())
        metrics[f"{split}/num_inliers"] = float(self.num_inliers.mean())
        metrics[f"{split}/failures"] = float(np.isinf(errors).sum())
        return metrics

    def describe(self, row: int) -> str:
        """The error of one pair for people: ``pose error 1.2 deg``, or ``no pose``."""
        error = float(self.error[row])
        if not np.isfinite(error):
            return f"no {self.kind}"
        return f"{'pose' if self.kind == 'pose' else 'corner'} error {error:.1f} {self.measure.unit}"

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
                (kind,) = (known for known in MEASURES if known == str(file["kind"]))
                return PairScores(**values, kind=kind, precision_threshold=float(file["precision_threshold"]))
        except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
            raise ConfigError(f"{path}: not a file of pair scores ({error}); score the matcher again") from error


def _per_pair() -> list[str]:
    return [field.name for field in fields(PairScores) if field.name not in ("kind", "precision_threshold")]


def concatenate(parts: Sequence[PairScores]) -> PairScores:
    """Join the parts that several ranks scored; the order is that of the data set, whoever scored what."""
    assert parts, "nothing to join"
    protocols = {(part.kind, part.precision_threshold) for part in parts}
    assert len(protocols) == 1, f"parts of different protocols: {sorted(protocols)}"
    joined = {name: np.concatenate([getattr(part, name) for part in parts]) for name in _per_pair()}
    return PairScores(**joined, kind=parts[0].kind, precision_threshold=parts[0].precision_threshold)

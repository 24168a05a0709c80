"""What a trial costs before it has run: time from a few timed steps, memory from a few measured pairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy.optimize import nnls

from raylg.schema import build

_NOTHING = 1e-12
"""Seconds."""


@dataclass(frozen=True, kw_only=True)
class StepCost:
    """Seconds of a step of B pairs with k keypoints: t = fixed + linear B k + quadratic B k^2.

    Projections and feed-forward layers grow with k, attention and assignment with k^2; for a width of 256 both are
    equal near 1200 keypoints, so that neither alone describes a search over the number of keypoints.
    """

    fixed: float
    linear: float
    quadratic: float

    def seconds(self, num_pairs: float, num_keypoints: int) -> float:
        """Of one step."""
        return self.fixed + num_pairs * num_keypoints * (self.linear + num_keypoints * self.quadratic)

    @property
    def formula(self) -> str:
        """For people, without the terms that are next to nothing."""
        terms = {"": self.fixed, " B k": self.linear, " B k^2": self.quadratic}
        shown = [f"{value:.2g}{unit}" for unit, value in terms.items() if value > _NOTHING]
        return f"t = {' + '.join(shown)} s"


def fit_step_cost(steps: Sequence[tuple[int, int, float]]) -> StepCost:
    """Least squares of relative errors with coefficients of at least 0.

    Relative, because cells differ by orders of magnitude and the short ones say what the fixed part is; not negative,
    because a negative term would make some cell beyond the measured ones cost less than nothing.

    Args:
        steps: (pairs, keypoints, seconds) of at least one cell.
    """
    pairs, keypoints, seconds = np.array(steps, dtype=np.float64).T
    columns = np.stack([np.ones_like(pairs), pairs * keypoints, pairs * keypoints**2], axis=1)
    scale = columns.max(axis=0)  # of comparable size, or the solver stops too early
    coefficients, _ = nnls(columns / scale / seconds[:, None], np.ones_like(seconds))
    fixed, linear, quadratic = (coefficients / scale).tolist()
    return StepCost(fixed=fixed, linear=linear, quadratic=quadratic)


@dataclass(frozen=True, kw_only=True)
class CostModel:
    """Time and memory of the trials of a study on one kind of worker."""

    device: str
    step: StepCost
    num_workers: int
    """Of a trial; each takes an equal share of a batch."""
    pair_bytes: tuple[tuple[int, float], ...]
    """(keypoints, memory of a pair in a training step), ascending."""
    held_bytes: float
    """Of a worker whatever it trains on: weights, their average, gradients and moments."""
    weights_bytes: float
    memory_bytes: float
    """That a worker may use."""
    score_s: float
    """For each pair that is scored, by one worker."""
    num_scored: tuple[int, int]
    """Pairs scored at a report before the last, and at the last."""
    report_s: float
    """Of a report beside scoring."""
    start_s: float
    """Until the first step of a trial."""
    launch_s: float
    """Until the processes that trials run in have started, for the search and for each look of its confirmation."""
    architecture: tuple[int, int]
    """Layers and width of the matcher that was timed."""
    too_large: tuple[int, ...] = ()
    """Numbers of keypoints of which not a single pair fitted when it was tried."""

    def to_mapping(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    @staticmethod
    def from_mapping(mapping: Mapping[str, Any]) -> CostModel:
        """The inverse of `to_mapping`.

        Raises:
            ConfigError: written by another version.
        """
        return build(CostModel, mapping)

    def seconds(self, run: Any, pairs: int | None = None) -> float:
        """Wall time of a trial from its start to the report at or after `pairs` pairs; None is the full budget.

        Args:
            run: configuration of the trial.
            pairs: training pairs seen.
        """
        total, every, batch = run.train.num_pairs, run.train.report_every, run.data.batch_size
        seen = total if pairs is None else min(pairs, total)
        step = self._work(run) * self.step.seconds(batch / self.num_workers, run.data.num_keypoints)
        ends = seen >= total
        reports = -(-seen // every) - ends
        scored = reports * self.num_scored[0] + ends * self.num_scored[1]
        scoring = self._work(run) * scored * self.score_s / self.num_workers
        return float(self.start_s + -(-seen // batch) * step + scoring + (reports + ends) * self.report_s)

    def why_too_large(self, run: Any) -> str | None:
        """Why a worker cannot hold a single pair of a configuration; None where it can."""
        keypoints, tried = run.data.num_keypoints, min(self.too_large, default=None)
        if tried is not None and keypoints >= tried and self._work(run) >= 1:
            return f"a pair of {tried} keypoints did not fit the memory of a worker on {self.device}"
        needed = self.held_bytes + self._work(run) * self._pair_bytes(keypoints)
        if needed <= self.memory_bytes:
            return None
        return (
            f"a pair of {keypoints} keypoints takes {needed / 2**30:.1f} GiB, a worker on {self.device} may use "
            f"{self.memory_bytes / 2**30:.1f} GiB"
        )

    def _pair_bytes(self, num_keypoints: int) -> float:
        """Straight line through what was measured, and beyond it in proportion."""
        k, values = zip((0, 0.0), *self.pair_bytes, strict=True)
        if num_keypoints > k[-1]:
            return float(values[-1] * num_keypoints / k[-1])
        return float(np.interp(num_keypoints, k, values))

    def _work(self, run: Any) -> float:
        """Work and memory of a matcher relative to the one that was timed: layers times width."""
        layers, width = self.architecture
        matcher = run.model.matcher
        return float(matcher.num_layers * matcher.descriptor_dim / (layers * width))

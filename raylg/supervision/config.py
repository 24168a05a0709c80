"""Options of labels and loss; free of torch."""

from __future__ import annotations

from dataclasses import dataclass

from raylg.schema import check


@dataclass(frozen=True, kw_only=True)
class GroundTruthConfig:
    """Thresholds, in pixels at extraction resolution, that turn geometry into labels."""

    th_positive: float = 3.0
    """Largest symmetric reprojection error of a positive (glue-factory: 3)."""
    th_negative: float = 5.0
    """A keypoint with depth and nothing nearer than this in the other view is unmatched (glue-factory: 5)."""
    th_epipolar: float | None = 5.0
    """A keypoint without depth is unmatched when no candidate lies within this symmetric epipolar distance; null leaves
    it ignored. glue-factory calls it th_epi and then uses th_negative in its place; raylg uses it."""

    def __post_init__(self) -> None:
        check(self.th_positive > 0, "th_positive", self.th_positive, "above 0 px")
        check(
            self.th_negative >= self.th_positive,
            "th_negative",
            self.th_negative,
            f"at least th_positive = {self.th_positive} px",
        )
        check(self.th_epipolar is None or self.th_epipolar > 0, "th_epipolar", self.th_epipolar, "null or above 0 px")


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Deep-supervision NLL and token-confidence loss (LightGlue, eq. 10 and 11)."""

    nll_balancing: float = 0.5
    """Weight of the positives; the negatives get one minus it (glue-factory: 0.5)."""
    gamma: float = 1.0
    """Layer l of L weighs gamma^(L - 1 - l); 1 is a plain mean (glue-factory: 1)."""
    confidence_weight: float = 1.0
    """Weight of the token-confidence loss; descriptors are detached there (glue-factory: 1)."""

    def __post_init__(self) -> None:
        check(0 <= self.nll_balancing <= 1, "nll_balancing", self.nll_balancing, "in [0, 1]")
        check(0 < self.gamma <= 1, "gamma", self.gamma, "in (0, 1]")
        check(self.confidence_weight >= 0, "confidence_weight", self.confidence_weight, "at least 0")

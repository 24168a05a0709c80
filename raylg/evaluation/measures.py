"""What scores are called and counted in; free of torch, for configuration and tables."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Kind = Literal["pose", "homography"]
"""What is known of a pair: a relative pose, or the homography between its images."""

SPLITS = ("train", "val", "test")
"""Groups of metrics that are pairs of the data set; all others are benchmarks."""


@dataclass(frozen=True, kw_only=True)
class Measure:
    """How pairs of one kind are scored: areas under the recall curve of their errors."""

    kind: Kind
    unit: Literal["deg", "px"]
    """Of errors and thresholds."""
    thresholds: tuple[float, ...]
    """Of the published numbers."""
    headline: float
    """The one of `thresholds` by which two matchers are compared."""
    prefix: str
    """Of metric names, so that numbers in degrees and in pixels never share one."""
    title: str
    """For people."""

    def keys(self, group: str) -> tuple[str, ...]:
        """Metrics such as ``val/auc@5``, one per threshold."""
        return tuple(self.key(group, threshold) for threshold in self.thresholds)

    def key(self, group: str, threshold: float) -> str:
        """The metric of one threshold."""
        return f"{group}/{self.prefix}auc@{threshold:g}"


POSE = Measure(kind="pose", unit="deg", thresholds=(5.0, 10.0, 20.0), headline=5.0, prefix="", title="AUC")
"""Larger of the angles between rotations and between translations, as on MegaDepth-1500 (SuperGlue, section 5.2)."""

HOMOGRAPHY = Measure(
    kind="homography", unit="px", thresholds=(1.0, 3.0, 5.0), headline=3.0, prefix="corner_", title="corner AUC"
)
"""Mean distance of the four warped corners of view 0, as on HPatches (LightGlue, section 5.1)."""

MEASURES: Mapping[Kind, Measure] = {"pose": POSE, "homography": HOMOGRAPHY}


def objectives(group: str, *measures: Measure) -> tuple[str, ...]:
    """Metrics of `group` that a search may maximise."""
    return (*(key for measure in measures for key in measure.keys(group)), f"{group}/mean_auc")


@dataclass(frozen=True)
class ScoreColumns:
    """Which scores the tables of a run or a study show."""

    group: str = "val"
    """A split of the data set, or a benchmark."""
    measure: Measure = POSE

    @property
    def keys(self) -> tuple[str, ...]:
        """Metrics, one per column."""
        return self.measure.keys(self.group)

    @property
    def name(self) -> str:
        """``AUC``, or ``megadepth1500 AUC``."""
        return self.measure.title if self.group in SPLITS else f"{self.group} {self.measure.title}"

    @property
    def titles(self) -> tuple[str, ...]:
        """One per column."""
        first, *others = (f"@{threshold:g}" for threshold in self.measure.thresholds)
        return (self.name + first, *others)

    def text(self, metrics: Mapping[str, float], digits: int = 1) -> str:
        """Such as ``AUC@5/10/20 12.3/25.0/50.0``, in per cent; nan where a score is missing."""
        thresholds = "/".join(f"{threshold:g}" for threshold in self.measure.thresholds)
        values = "/".join(f"{100 * metrics.get(key, float('nan')):.{digits}f}" for key in self.keys)
        unit = " px" if self.measure.unit == "px" else ""
        return f"{self.name}@{thresholds}{unit} {values}"

    @staticmethod
    def of(metrics: Mapping[str, float], group: str = "val") -> ScoreColumns:
        """The columns that `metrics` has values for; those of poses where it has none."""
        found = (m for m in MEASURES.values() if any(key in metrics for key in m.keys(group)))
        return ScoreColumns(group, next(found, POSE))

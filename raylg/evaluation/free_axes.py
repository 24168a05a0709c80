"""What may still be chosen after training: thresholds, keypoints and early exit, against accuracy and latency.

The best of many settings looks better than it is on the pairs that chose it. Its gain is therefore cross-fitted: chosen
on one half of the scenes, scored on the other. `raylg.evaluation.sweep` does the work.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True, order=True)
class Setting:
    """What is chosen after training."""

    num_keypoints: int
    """Strongest per image."""
    depth_confidence: float
    """Share of confident points at which a pair stops early; -1 never does."""
    filter_threshold: float
    """Smallest probability of a match."""
    ransac_threshold: float
    """Largest error of an inlier, in `EvaluationConfig.pixels`."""


@dataclass(frozen=True, kw_only=True)
class Point:
    """One setting, scored."""

    setting: Setting
    scores: tuple[float, ...]
    """Mean score at each of `FreeAxes.thresholds`, a share: 0.57."""
    match_seconds: float
    """Median over pairs, features at hand, one pair at a time."""
    estimate_seconds: float
    """Median over pairs, of one processor."""
    num_matches: float
    """Mean over pairs."""
    num_layers: float
    """Mean over pairs that the matcher used."""
    on_front: bool
    """No other setting is at least as good at the headline threshold and as fast."""

    @property
    def seconds(self) -> float:
        """Latency of a pair."""
        return self.match_seconds + self.estimate_seconds


@dataclass(frozen=True, kw_only=True)
class FreeAxes:
    """The settings of one matcher."""

    points: tuple[Point, ...]
    """Fastest first."""
    protocol: Setting
    """What the trials were scored with."""
    best: Setting
    """Highest score at the headline threshold."""
    gain: float
    """Of choosing the best instead of the protocol's, cross-fitted, a share."""
    gain_low: float
    """Lower end of its 95 % interval, for these weights."""
    gain_high: float
    thresholds: tuple[float, ...]
    """Of `Point.scores`, in `unit`."""
    headline: float
    unit: str
    num_pairs: int
    """Scored."""
    num_pairs_of: int
    """In the split; more than `num_pairs` where the time was used up."""
    device: str
    """On which it matched."""

    def point(self, setting: Setting) -> Point:
        """The scored point of a setting."""
        return next(point for point in self.points if point.setting == setting)

    @property
    def as_fast(self) -> Setting:
        """The best score of those that take at most a tenth longer than the protocol's."""
        column, limit = self.thresholds.index(self.headline), 1.1 * self.point(self.protocol).seconds
        fast = [point for point in self.points if point.seconds <= limit]
        return max(fast, key=lambda point: (point.scores[column], point.setting == self.protocol)).setting

    @property
    def sentence(self) -> str:
        """What choosing brings, for people."""
        column = self.thresholds.index(self.headline)
        here, best = self.point(self.protocol), self.point(self.best)
        enough = self.gain_low > 0
        fast = self.as_fast
        other = f"; as fast as that {described(fast)}, {100 * self.point(fast).scores[column]:.1f}"
        of = f"{self.num_pairs} of {self.num_pairs_of} " if self.num_pairs < self.num_pairs_of else f"{self.num_pairs} "
        gain = f"{100 * self.gain:+.1f} [{100 * self.gain_low:+.1f}, {100 * self.gain_high:+.1f}]"
        return (
            f"{described(self.best)} scores {100 * best.scores[column]:.1f} at {self.headline:g} "
            f"{self.unit}, the protocol's {described(self.protocol)} {100 * here.scores[column]:.1f}"
            f"{other if fast not in (self.best, self.protocol) else ''}; cross-fitted "
            f"gain {gain} on {of}validation pairs"
            f"{'' if enough else ': no reason to change it'}"
        )

    def to_mapping(self) -> dict[str, Any]:
        """Plain mapping for JSON."""
        mapping: dict[str, Any] = json.loads(json.dumps({**asdict(self), "sentence": self.sentence}))
        return mapping

    @staticmethod
    def from_mapping(mapping: Mapping[str, Any]) -> FreeAxes:
        """The inverse of `to_mapping`.

        Raises:
            KeyError, TypeError: it is not one of those.
        """
        values = {key: value for key, value in mapping.items() if key != "sentence"}
        for key in ("protocol", "best"):
            values[key] = Setting(**values[key])
        values["thresholds"] = tuple(values["thresholds"])
        values["points"] = tuple(
            Point(**{**point, "setting": Setting(**point["setting"]), "scores": tuple(point["scores"])})
            for point in values["points"]
        )
        return FreeAxes(**values)


def described(setting: Setting) -> str:
    """Such as ``512 keypoints, filter 0.1, RANSAC 2 px``."""
    early = f", early exit {setting.depth_confidence:g}" if setting.depth_confidence > 0 else ""
    return (
        f"{setting.num_keypoints} keypoints{early}, filter {setting.filter_threshold:g}, "
        f"RANSAC {setting.ransac_threshold:g} px"
    )

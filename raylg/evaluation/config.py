"""Options of scoring; free of torch. Together with the pair list they make the protocol hash."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from raylg.schema import check

BenchmarkName = Literal["megadepth1500"]
BENCHMARKS: tuple[BenchmarkName, ...] = ("megadepth1500",)
Pixels = Literal["extraction", "original"]


@dataclass(frozen=True, kw_only=True)
class MegaDepth1500Config:
    """The MegaDepth-1500 benchmark; its estimator settings are fixed, so that numbers compare with published ones."""

    path: str | None = None
    """Folder with the images and the index, or folder or s3:// with the shards that `prepare` made of them."""
    resize: int = 1600
    """Long side before extraction, of smaller images too (glue-factory: 1600)."""
    num_keypoints: int = 2048
    """Strongest keypoints per image (glue-factory: 2048)."""
    max_pairs: int | None = None
    """At most this many of the 1500 pairs, evenly spaced; null takes all. Fewer is another protocol."""
    rung_pairs: int | None = None
    """At most this many of them at reports before the last, see `EvaluationConfig.rung_pairs`."""

    def __post_init__(self) -> None:
        check(self.resize >= 32, "resize", self.resize, "at least 32 px")
        check(self.num_keypoints >= 1, "num_keypoints", self.num_keypoints, "at least 1")
        check(self.max_pairs is None or self.max_pairs >= 1, "max_pairs", self.max_pairs, "null or at least 1")
        _check_rung_pairs(self.rung_pairs, self.max_pairs)


@dataclass(frozen=True, kw_only=True)
class BenchmarksConfig:
    """Public benchmarks, each beside the data it needs."""

    megadepth1500: MegaDepth1500Config = field(default_factory=MegaDepth1500Config)

    def named(self, name: BenchmarkName) -> MegaDepth1500Config:
        """The options of one of them."""
        options: MegaDepth1500Config = getattr(self, name)
        return options


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """How matches become a relative pose, or a homography, and a score."""

    estimator: Literal["poselib"] = "poselib"
    """Robust estimator: PoseLib's LO-RANSAC with bundle adjustment (MegaDepth-1500's best-known protocol)."""
    ransac_threshold: float = 2.0
    """Largest error of an inlier, in `pixels` (LightGlue README: 2)."""
    pixels: Pixels = "extraction"
    """Resolution that thresholds count in: of extraction, or of the images before they were resized."""
    ransac_max_iterations: int = 10_000
    """Upper bound of RANSAC iterations; PoseLib's default is 100 000, which a hopeless pair spends in vain."""
    ransac_seed: int = 0
    """Seed of the sampler; the estimate is a pure function of matches and seed."""
    precision_threshold: float = 3.0
    """A match is correct within this symmetric epipolar distance (homographies: reprojection error), in `pixels`."""
    num_keypoints: int = 512
    """Strongest keypoints used per image when scoring; its own option, so that trials which train with different
    `data.num_keypoints` are scored alike."""
    max_pairs: int | None = None
    """At most this many pairs of a split, evenly spaced; null takes all."""
    rung_pairs: int | None = None
    """At most this many of them, evenly spaced and always the same, at reports before the last one, such as the rungs
    of a search; null takes all. Scores of these reports are compared with each other only."""
    batch_size: int = 8
    """Pairs matched at a time."""
    benchmarks: tuple[BenchmarkName, ...] = ()
    """Benchmarks scored at each report beside the validation pairs; `tune` adds the one that its objective names."""
    num_threads: int = 2
    """Threads of the robust estimator (it releases the GIL)."""

    def __post_init__(self) -> None:
        check(self.ransac_threshold > 0, "ransac_threshold", self.ransac_threshold, "above 0 px")
        check(self.ransac_max_iterations >= 1, "ransac_max_iterations", self.ransac_max_iterations, "at least 1")
        check(self.precision_threshold > 0, "precision_threshold", self.precision_threshold, "above 0 px")
        check(self.num_keypoints >= 1, "num_keypoints", self.num_keypoints, "at least 1")
        check(self.max_pairs is None or self.max_pairs >= 1, "max_pairs", self.max_pairs, "null or at least 1")
        check(self.batch_size >= 1, "batch_size", self.batch_size, "at least 1")
        check(self.num_threads >= 1, "num_threads", self.num_threads, "at least 1")
        _check_rung_pairs(self.rung_pairs, self.max_pairs)


def _check_rung_pairs(rung_pairs: int | None, max_pairs: int | None) -> None:
    largest = rung_pairs if max_pairs is None else max_pairs
    fits = rung_pairs is None or (largest is not None and 1 <= rung_pairs <= largest)
    check(fits, "rung_pairs", rung_pairs, f"null or at least 1 and at most max_pairs = {max_pairs}")

"""Intervals on simulated scores whose truth is known."""

from __future__ import annotations

import numpy as np
import pytest

from raylg.errors import ConfigError
from raylg.evaluation.pair_scores import PairScores
from raylg.evaluation.statistics import PairedDifference, paired_difference

THRESHOLD = 10.0


def make_scores(values: np.ndarray, images: np.ndarray, scenes: np.ndarray | None = None) -> PairScores:
    """Pairs whose score at `THRESHOLD` is `values`."""
    number = len(values)
    errors = (1 - values) * THRESHOLD
    counts = np.zeros(number, dtype=np.int64)
    return PairScores(
        kind="pose",
        indices=np.stack([counts, np.arange(number)], axis=1),
        scenes=np.array(["scene"] * number, dtype=np.str_) if scenes is None else scenes,
        names0=images[:, 0].astype(np.str_),
        names1=images[:, 1].astype(np.str_),
        rotation_error=errors,
        translation_error=errors,
        corner_error=np.full(number, np.nan),
        num_matches=counts,
        num_inliers=counts,
        num_keypoints0=counts,
        num_keypoints1=counts,
        precision=np.zeros(number),
        overlap=np.zeros(number),
        precision_threshold=3.0,
    )


def random_images(rng: np.random.Generator, num_images: int, num_pairs: int) -> np.ndarray:
    first = rng.integers(num_images, size=num_pairs)
    return np.stack([first, (first + rng.integers(1, num_images, size=num_pairs)) % num_images], axis=1)


def simulate(rng: np.random.Generator, shared: float, shift: float, num_resamples: int = 300) -> PairedDifference:
    """A comparison whose true difference is `shift`; `shared` is how much of the noise comes from the images."""
    images = random_images(rng, 80, 200)
    of_image = rng.normal(size=80) * shared
    noise = (of_image[images[:, 0]] + of_image[images[:, 1]] + rng.normal(size=200)) * 0.05
    base = np.full(200, 0.5)
    a, b = make_scores(base + noise + shift, images), make_scores(base, images)
    return paired_difference(a, b, THRESHOLD, num_resamples=num_resamples)


@pytest.mark.parametrize("shared", [0.0, 0.3, 0.7])
def test_interval_covers_the_truth_about_as_often_as_it_says(shared: float) -> None:
    rng = np.random.default_rng(0)
    results = [simulate(rng, shared, shift=0.01) for _ in range(150)]
    coverage = np.mean([result.low <= 0.01 <= result.high for result in results])
    # 150 simulations have a standard error of 1.8 %; intervals for unrelated pairs cover 86 % and 66 % at 0.3 and 0.7.
    assert 0.89 <= coverage <= 0.985


def test_share_above_zero_is_a_calibrated_verdict() -> None:
    rng = np.random.default_rng(1)
    shares = np.array([simulate(rng, 0.3, shift=0.0).share_above_zero for _ in range(150)])
    assert 0.4 < shares.mean() < 0.6
    assert np.mean((shares < 0.025) | (shares > 0.975)) < 0.11
    assert simulate(rng, 0.3, shift=0.05).share_above_zero > 0.99
    assert simulate(rng, 0.3, shift=-0.05).share_above_zero < 0.01


def test_identical_scores_differ_by_exactly_nothing() -> None:
    rng = np.random.default_rng(0)
    a = make_scores(rng.random(50), random_images(rng, 12, 50))
    result = paired_difference(a, a, THRESHOLD)
    assert (result.difference, result.low, result.high, result.share_above_zero) == (0, 0, 0, 0.5)
    assert result.per_scene == {"scene": 0}
    assert result.num_pairs == 50
    assert result.num_images == 12


def test_swapping_the_sides_mirrors_the_difference() -> None:
    rng = np.random.default_rng(0)
    images = random_images(rng, 20, 60)
    a, b = make_scores(rng.random(60), images), make_scores(rng.random(60), images)
    there, back = paired_difference(a, b, THRESHOLD), paired_difference(b, a, THRESHOLD)
    assert there.difference == pytest.approx(-back.difference)
    assert there.low == pytest.approx(-back.high)
    assert there.share_above_zero == pytest.approx(1 - back.share_above_zero)
    assert there.low < there.difference < there.high
    assert paired_difference(a, b, THRESHOLD) == there


def test_options() -> None:
    rng = np.random.default_rng(0)
    images = random_images(rng, 20, 60)
    a, b = make_scores(rng.random(60), images), make_scores(rng.random(60), images)
    wide, narrow = (paired_difference(a, b, THRESHOLD, confidence=c) for c in (0.99, 0.5))
    assert wide.low < narrow.low < narrow.high < wide.high
    other_seed = paired_difference(a, b, THRESHOLD, seed=1)
    assert other_seed.low != paired_difference(a, b, THRESHOLD).low
    assert other_seed.low == pytest.approx(paired_difference(a, b, THRESHOLD).low, abs=0.01)
    # An odd number of resamples that is no multiple of a chunk.
    assert paired_difference(a, b, THRESHOLD, num_resamples=701).low == pytest.approx(other_seed.low, abs=0.02)


def test_several_thresholds_are_averaged() -> None:
    rng = np.random.default_rng(0)
    images = random_images(rng, 20, 60)
    a, b = make_scores(rng.random(60), images), make_scores(rng.random(60), images)
    single = [paired_difference(a, b, threshold).difference for threshold in (5.0, 10.0, 20.0)]
    assert paired_difference(a, b, (5.0, 10.0, 20.0)).difference == pytest.approx(np.mean(single))


def test_scenes_are_told_apart() -> None:
    """The same image name in two scenes is two images."""
    images = np.array([[0, 1], [1, 2], [0, 1], [1, 2]])
    scenes = np.array(["x", "x", "y", "y"])
    a = make_scores(np.array([0.6, 0.8, 0.5, 0.3]), images, scenes)
    b = make_scores(np.full(4, 0.5), images, scenes)
    result = paired_difference(a, b, THRESHOLD)
    assert result.per_scene == {"x": pytest.approx(0.2), "y": pytest.approx(-0.1)}
    assert result.num_images == 6


def test_failures_score_zero() -> None:
    images = np.array([[0, 1], [1, 2], [2, 3]])
    a = make_scores(np.array([-np.inf, 0.5, 1.0]), images)
    b = make_scores(np.array([-np.inf, -np.inf, 1.0]), images)
    assert paired_difference(a, b, THRESHOLD).difference == pytest.approx(0.5 / 3)


def test_a_single_pair_decides_nothing() -> None:
    images = np.array([[0, 1]])
    result = paired_difference(make_scores(np.array([0.9]), images), make_scores(np.array([0.1]), images), THRESHOLD)
    assert (result.low, result.high, result.share_above_zero) == (-1, 1, 0.5)
    assert result.difference == pytest.approx(0.8)


def test_only_the_same_pairs_are_compared() -> None:
    images = np.array([[0, 1], [1, 2]])
    values = np.array([0.5, 0.6])
    a = make_scores(values, images)
    with pytest.raises(ConfigError, match="different pairs"):
        paired_difference(a, make_scores(values, images + 1), THRESHOLD)
    with pytest.raises(ConfigError, match="2 and 1"):
        paired_difference(a, make_scores(values[:1], images[:1]), THRESHOLD)
    empty = make_scores(values[:0], images[:0])
    with pytest.raises(ConfigError, match="no pair"):
        paired_difference(empty, empty, THRESHOLD)


def test_pairs_of_one_photograph_each_are_unrelated() -> None:
    """Both views of a homography pair are of one image: the interval is that of independent values."""
    rng = np.random.default_rng(0)
    number = 400
    images = np.stack([np.arange(number)] * 2, axis=1)
    deltas = rng.normal(size=number) * 0.1
    a, b = make_scores(0.5 + deltas, images), make_scores(np.full(number, 0.5), images)
    result = paired_difference(a, b, THRESHOLD)
    half = 1.96 * deltas.std() / np.sqrt(number)
    assert result.num_images == number
    assert (result.high - result.low) / 2 == pytest.approx(half, rel=0.05)

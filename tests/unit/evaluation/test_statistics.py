"""Intervals on simulated scores whose truth is known."""

from __future__ import annotations

import numpy as np
import pytest

from raylg.errors import ConfigError
from raylg.evaluation.pair_scores import PairScores
from raylg.evaluation.statistics import (
    PairedDifference,
    SeededDifference,
    difference_and_error,
    paired_difference,
    seeded_differences,
)

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


def test_views_of_a_single_photograph_decide_nothing() -> None:
    images = np.zeros((3, 2), dtype=np.int64)
    a, b = make_scores(np.array([0.9, 0.8, 0.7]), images), make_scores(np.array([0.3, 0.1, 0.2]), images)
    result = paired_difference(a, b, THRESHOLD)
    assert (result.low, result.high, result.share_above_zero) == (-1, 1, 0.5)
    assert difference_and_error(a, b, THRESHOLD)[1] == np.inf
    (found,) = seeded_differences([[a, a]], [b, b], THRESHOLD)
    assert (found.low, found.high, found.pair_error) == (-1, 1, None)


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


def simulate_seeds(
    rng: np.random.Generator, truths: list[float], num_seeds: int, seed_noise: float, confidence: float = 0.95
) -> tuple[SeededDifference, ...]:
    """Configurations against a baseline: noise of images, of pairs, and of the training seed of each run."""
    images = random_images(rng, 60, 120)

    def runs(truth: float, own_pairs: np.ndarray) -> list[PairScores]:
        means = 0.5 + truth + own_pairs
        return [
            make_scores(means + rng.normal() * seed_noise + rng.normal(size=120) * 0.02, images)
            for _ in range(num_seeds)
        ]

    def taste() -> np.ndarray:
        """Which pairs a configuration happens to suit; pairs with a common image alike."""
        of_image = rng.normal(size=60) * 0.3
        return (of_image[images[:, 0]] + of_image[images[:, 1]] + rng.normal(size=120)) * 0.05

    return seeded_differences(
        [runs(truth, taste()) for truth in truths], runs(0.0, taste()), THRESHOLD, confidence=confidence
    )


@pytest.mark.parametrize(("num_seeds", "seed_noise"), [(2, 0.02), (3, 0.01), (3, 0.05)])
def test_intervals_of_all_configurations_cover_the_truth_together(num_seeds: int, seed_noise: float) -> None:
    rng = np.random.default_rng(0)
    truths = [0.0, 0.02, -0.03]
    covered = [
        all(found.low <= truth <= found.high for found, truth in zip(results, truths, strict=True))
        for results in (simulate_seeds(rng, truths, num_seeds, seed_noise) for _ in range(120))
    ]
    assert np.mean(covered) >= 0.9  # 120 simulations of 95 % have a standard error of 2 %


def test_noise_of_seeds_is_in_the_interval() -> None:
    """A bootstrap over pairs alone would call one of two equal configurations better again and again."""
    rng = np.random.default_rng(1)
    found = [simulate_seeds(rng, [0.0], 3, 0.05)[0] for _ in range(120)]
    assert np.mean([each.low > 0 or each.high < 0 for each in found]) <= 0.1
    blind = [abs(each.difference) > 1.96 * (each.pair_error or 0) for each in found]
    assert np.mean(blind) > 0.4
    seed_error = np.sqrt(np.mean([(each.seed_error or 0) ** 2 for each in found]))
    assert seed_error == pytest.approx(0.05 * np.sqrt(2 / 3), rel=0.1)


def test_large_differences_are_seen() -> None:
    rng = np.random.default_rng(2)
    better, worse = zip(*(simulate_seeds(rng, [0.08, -0.08], 3, 0.005) for _ in range(30)), strict=True)
    assert np.mean([each.low > 0 for each in better]) > 0.9
    assert np.mean([each.high < 0 for each in worse]) > 0.9
    assert all(len(each.per_seed) == 3 and np.mean(each.per_seed) == pytest.approx(each.difference) for each in better)


def test_more_configurations_make_wider_intervals_but_equal_ones_do_not() -> None:
    rng = np.random.default_rng(3)
    images = random_images(rng, 60, 120)

    def runs(level: float) -> list[PairScores]:
        return [make_scores(level + rng.normal(size=120) * 0.05, images) for _ in range(4)]

    first, others, baseline = runs(0.5), [runs(0.5) for _ in range(4)], runs(0.5)

    def width(candidates: list[list[PairScores]]) -> float:
        found = seeded_differences(candidates, baseline, THRESHOLD)[0]
        return found.high - found.low

    alone, same, among_others = width([first]), width([first] * 5), width([first, *others])
    assert alone < same < among_others  # of equal ones, the seeds are taken to correlate by 1/2 all the same
    assert among_others < 1.9 * alone


def test_one_seed_or_one_pair_does_not_tell() -> None:
    rng = np.random.default_rng(0)
    images = random_images(rng, 20, 60)
    a, b = make_scores(rng.random(60), images), make_scores(rng.random(60), images)
    (found,) = seeded_differences([[a]], [b], THRESHOLD)
    assert (found.low, found.high, found.seed_error) == (-1, 1, None)
    assert found.pair_error == pytest.approx(difference_and_error(a, b, THRESHOLD)[1])
    single = [make_scores(np.array([value]), np.array([[0, 1]])) for value in (0.9, 0.8, 0.1, 0.2)]
    (found,) = seeded_differences([single[:2]], single[2:], THRESHOLD)
    assert (found.low, found.high, found.pair_error) == (-1, 1, None)
    assert difference_and_error(single[0], single[2], THRESHOLD) == (pytest.approx(0.8), np.inf)
    assert seeded_differences([], [a], THRESHOLD) == ()


def test_configuration_with_fewer_seeds_is_compared_on_its_own() -> None:
    rng = np.random.default_rng(0)
    images = random_images(rng, 20, 60)
    runs = [make_scores(rng.random(60), images) for _ in range(6)]
    short, long = seeded_differences([runs[:2], runs[:3]], runs[3:], THRESHOLD)
    assert len(short.per_seed) == 2 and len(long.per_seed) == 3
    assert short.per_seed == long.per_seed[:2]
    assert short.high - short.low > long.high - long.low


def test_equal_runs_differ_by_exactly_nothing() -> None:
    rng = np.random.default_rng(0)
    images = random_images(rng, 20, 60)
    runs = [make_scores(rng.random(60), images) for _ in range(3)]
    for found in seeded_differences([runs, runs], runs, THRESHOLD):
        assert (found.difference, found.low, found.high) == (0, 0, 0)


def test_difference_and_error_of_unrelated_pairs() -> None:
    rng = np.random.default_rng(0)
    images = np.stack([np.arange(400), 400 + np.arange(400)], axis=1)
    deltas = rng.normal(size=400) * 0.1
    difference, error = difference_and_error(
        make_scores(0.5 + deltas, images), make_scores(np.full(400, 0.5), images), THRESHOLD
    )
    assert difference == pytest.approx(deltas.mean())
    assert error == pytest.approx(deltas.std() / 20, rel=0.01)

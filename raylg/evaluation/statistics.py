"""Whether one matcher is better than another on the same pairs, given that pairs share images.

The score of a pair is max(0, 1 - error / threshold), whose mean is the AUC but for the trapezoids. `paired_difference`
speaks of two sets of weights: the noise of training with another seed is not in it. `seeded_differences` speaks of
configurations, each trained with several seeds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from raylg.errors import ConfigError
from raylg.evaluation.pair_scores import IntArray, PairScores
from raylg.evaluation.pose import FloatArray, scores

_CHUNK = 500  # resamples at a time: weights of 500 x 1500 pairs are 6 MB
_NUM_DRAWS = 20_000
_UNDECIDED = (-1.0, 1.0)
"""All that a difference of shares can be: what is known when the noise is not."""


@dataclass(frozen=True, kw_only=True)
class PairedDifference:
    """Mean score of `a` minus that of `b`, as a share: 0.01 is one point of AUC."""

    difference: float
    low: float
    """Lower end of the confidence interval."""
    high: float
    """Upper end."""
    share_above_zero: float
    """Share of the resamples in which `a` is the better one, ties half: 0.5 is undecided, 0.975 is a two-sided 5 %."""
    per_scene: Mapping[str, float]
    """Difference within each scene."""
    num_pairs: int
    num_images: int


def paired_difference(
    a: PairScores,
    b: PairScores,
    threshold: float | Sequence[float],
    *,
    num_resamples: int = 10_000,
    confidence: float = 0.95,
    seed: int = 0,
) -> PairedDifference:
    """Compare two matchers by a bootstrap over images; a pure function of its arguments.

    Images are drawn with replacement, and a pair weighs the product of the multiplicities of its two images. Each
    pair's own noise then counts three times (Owen 2007, The pigeonhole bootstrap), which makes intervals 1.5 times too
    wide where images share little. So the deviations of the resamples are scaled to the variance that allows any
    dependence among pairs with a common image (Aronow, Samii and Assenova 2015, arXiv:1312.3398), at least that of
    unrelated pairs.

    Args:
        a: scores of one matcher.
        b: scores of the other on the same pairs.
        threshold: in the unit of the errors; of several, the mean of the scores is compared.
        num_resamples: draws of the bootstrap.
        confidence: of the interval, 0 to 1.
        seed: of the draws.

    Raises:
        ConfigError: no pairs, or not the same ones.
    """
    deltas = _deltas(a, b, threshold)
    images, num_images = _image_pairs(a)
    difference = float(deltas.mean())
    if min(len(deltas), num_images) == 1 and deltas.any():  # that does not tell how pairs vary
        (low, high), share = _UNDECIDED, 0.5
    else:
        resampled = _resample(deltas, images, num_images, num_resamples, np.random.default_rng(seed))
        spread = float(resampled.std())
        scale = _standard_error(deltas, images, num_images) / spread if spread > 0 else 0.0
        resampled = difference + (resampled - resampled.mean()) * scale
        low, high = np.quantile(resampled, [(1 - confidence) / 2, (1 + confidence) / 2])
        share = float((resampled > 0).mean() + (resampled == 0).mean() / 2)
    return PairedDifference(
        difference=difference,
        low=float(low),
        high=float(high),
        share_above_zero=share,
        per_scene={str(scene): float(deltas[a.scenes == scene].mean()) for scene in np.unique(a.scenes)},
        num_pairs=len(deltas),
        num_images=num_images,
    )


@dataclass(frozen=True, kw_only=True)
class SeededDifference:
    """Mean score of one configuration minus that of another over the training seeds of both, as a share."""

    difference: float
    low: float
    """Lower end of the confidence interval, which holds for all differences of a call together."""
    high: float
    """Upper end."""
    per_seed: tuple[float, ...]
    """Difference with each seed."""
    seed_error: float | None
    """Part of the standard error that comes from seeds; None where one has a single seed, which does not tell."""
    pair_error: float | None
    """Part that comes from the choice of pairs and images; None with one pair or one image."""


def difference_and_error(a: PairScores, b: PairScores, threshold: float | Sequence[float]) -> tuple[float, float]:
    """Mean score of `a` minus that of `b` on the same pairs, and its standard error, as shares.

    Any dependence of pairs with a common image is allowed; the error is infinite for a single pair or image.

    Args:
        a: scores of one matcher.
        b: scores of the other.
        threshold: see `paired_difference`.

    Raises:
        ConfigError: no pairs, or not the same ones.
    """
    deltas = _deltas(a, b, threshold)
    images, num_images = _image_pairs(a)
    several_pairs = min(len(deltas), num_images) > 1
    return float(deltas.mean()), _standard_error(deltas, images, num_images) if several_pairs else float("inf")


def seeded_differences(
    candidates: Sequence[Sequence[PairScores]],
    baseline: Sequence[PairScores],
    threshold: float | Sequence[float],
    *,
    confidence: float = 0.95,
) -> tuple[SeededDifference, ...]:
    """Compare configurations with a baseline over shared training seeds; a pure function of its arguments.

    The difference of a configuration is the mean of its paired differences over S seeds. Its variance is that of these
    differences between seeds over S, with S - 1 degrees of freedom, plus that of their mean over pairs with common
    images. The half widths of both parts, each with its own t quantile, add up in squares (Zou and Donner 2008,
    doi:10.1002/sim.3095). Welch's and Satterthwaite's degrees of freedom would be narrower, but cover 88 % instead of
    95 % with two seeds that happen to agree; these cover 95 to 99 %.

    The intervals hold together (max-T): the level of each is that at which Gaussians of the same correlation all stay
    within theirs with probability `confidence`. Differences between seeds are taken to correlate by 1/2, because they
    share the baseline and S of them cannot tell (Dunnett 1955).

    Args:
        candidates: [C] configurations x [S] seeds; one may have fewer seeds than the baseline, its first ones.
        baseline: [S], on the same pairs with the same seeds.
        threshold: in the unit of the errors; of several, the mean of the scores is compared.
        confidence: of all intervals together, 0 to 1.

    Raises:
        ConfigError: no pairs, or not the same ones.
    """
    if not candidates:
        return ()
    deltas = [
        np.stack([_deltas(a, b, threshold) for a, b in zip(seeds, baseline, strict=False)]) for seeds in candidates
    ]
    images, num_images = _image_pairs(baseline[0])
    means = np.stack([each.mean(axis=0) for each in deltas])
    per_seed = [each.mean(axis=1) for each in deltas]
    several_pairs, several_seeds = min(means.shape[1], num_images) > 1, all(len(each) > 1 for each in per_seed)
    of_pairs = np.array([_standard_error(each, images, num_images) if several_pairs else np.nan for each in means])
    of_seeds = np.array([each.std(ddof=1) / np.sqrt(len(each)) if several_seeds else np.nan for each in per_seed])
    known = several_pairs and several_seeds
    alpha = _level(_correlation(means, of_pairs, of_seeds), 1 - confidence) if known else 0.0
    results = []
    for seeds, pair_error, seed_error in zip(per_seed, of_pairs, of_seeds, strict=True):
        difference = float(seeds.mean())
        low, high = _UNDECIDED
        if known:
            between, within = stats.t.ppf(1 - alpha / 2, [len(seeds) - 1, num_images - 1]) * [seed_error, pair_error]
            half = float(np.hypot(between, within))
            low, high = max(low, difference - half), min(high, difference + half)
        results.append(
            SeededDifference(
                difference=difference,
                low=low,
                high=high,
                per_seed=tuple(float(value) for value in seeds),
                seed_error=float(seed_error) if several_seeds else None,
                pair_error=float(pair_error) if several_pairs else None,
            )
        )
    return tuple(results)


def _correlation(means: FloatArray, of_pairs: FloatArray, of_seeds: FloatArray) -> FloatArray:
    """Of the differences of C configurations, [C, C].

    Args:
        means: [C, P], difference on each pair, mean over seeds.
        of_pairs: [C], standard errors.
        of_seeds: [C], likewise.
    """
    residuals = means - means.mean(axis=1, keepdims=True)
    length = np.linalg.norm(residuals, axis=1)
    directions = residuals / np.where(length > 0, length, 1)[:, None]
    between_seeds = (np.eye(len(means)) + 1) / 2
    covariance = directions @ directions.T * np.outer(of_pairs, of_pairs) + between_seeds * np.outer(of_seeds, of_seeds)
    deviation = np.sqrt(np.diag(covariance))
    scale = np.where(deviation > 0, deviation, 1)
    correlation: FloatArray = covariance / np.outer(scale, scale)
    np.fill_diagonal(correlation, 1.0)
    return correlation


def _level(correlation: FloatArray, alpha: float) -> float:
    """The two-sided level of each of C Gaussians at which any of them is beyond it with probability `alpha`."""
    count = len(correlation)
    unrelated = 1 - (1 - alpha) ** (1 / count)  # Sidak 1967: no correlation asks for less
    if count == 1:
        return alpha
    draws = np.random.default_rng(0).multivariate_normal(np.zeros(count), correlation, _NUM_DRAWS, method="eigh")
    smallest = 2 * stats.norm.sf(np.abs(draws).max(axis=1))
    return float(max(unrelated, np.quantile(smallest, alpha)))


def _deltas(a: PairScores, b: PairScores, threshold: float | Sequence[float]) -> FloatArray:
    """Difference of the scores of each pair, [P]."""
    _check_same_pairs(a, b)
    thresholds = [threshold] if isinstance(threshold, int | float) else list(threshold)
    deltas: FloatArray = np.mean([scores(a.error, t) - scores(b.error, t) for t in thresholds], axis=0)
    return deltas


def _check_same_pairs(a: PairScores, b: PairScores) -> None:
    if len(a) == 0:
        raise ConfigError("no pair was scored, so there is nothing to compare; score a split that has pairs")
    if a.kind != b.kind:
        raise ConfigError(f"scores of {a.kind} and {b.kind} pairs cannot be compared; score both on the same pair list")
    same = len(a) == len(b) and all(
        np.array_equal(getattr(a, name), getattr(b, name)) for name in ("scenes", "names0", "names1")
    )
    if not same:
        raise ConfigError(
            f"scores of different pairs ({len(a)} and {len(b)}) cannot be compared; score both on the same pair list"
        )


def _image_pairs(pairs: PairScores) -> tuple[IntArray, int]:
    """Images of each pair as numbers [P, 2], and how many there are; a name counts within its scene."""
    names = [*zip(pairs.scenes, pairs.names0, strict=True), *zip(pairs.scenes, pairs.names1, strict=True)]
    numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
    flat = np.array([numbers[name] for name in names], dtype=np.int64)
    return flat.reshape(2, -1).T, len(numbers)


def _resample(
    deltas: FloatArray, images: IntArray, num_images: int, num_resamples: int, rng: np.random.Generator
) -> FloatArray:
    """Weighted means of the resamples, without the few that drew no pair at all."""
    means = []
    for start in range(0, num_resamples, _CHUNK):
        size = min(_CHUNK, num_resamples - start)
        multiplicity = rng.multinomial(num_images, np.full(num_images, 1 / num_images), size=size)
        # Both views of a homography pair may be of one photograph, which then counts once.
        second = np.where(images[:, 0] == images[:, 1], 1, multiplicity[:, images[:, 1]])
        weights = (multiplicity[:, images[:, 0]] * second).astype(np.float64)
        total = weights.sum(axis=1)
        means.append((weights @ deltas)[total > 0] / total[total > 0])
    return np.concatenate(means)


def _standard_error(deltas: FloatArray, images: IntArray, num_images: int) -> float:
    """Of the mean, when pairs with a common image depend on each other."""
    residuals = deltas - deltas.mean()
    of_two = images[:, 0] != images[:, 1]
    per_image = np.bincount(images[:, 0], residuals, num_images)
    per_image += np.bincount(images[of_two, 1], residuals[of_two], num_images)
    unrelated = float((residuals**2).sum())
    # A pair of two images is in the sums of both, so its own square is there once too often.
    dependent = float(np.sum(per_image**2)) - float((residuals[of_two] ** 2).sum())
    return float(np.sqrt(max(dependent, unrelated) * num_images / (num_images - 1))) / len(deltas)

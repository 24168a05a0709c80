"""Whether one matcher is better than another on the same pairs, given that pairs share images.

The score of a pair is max(0, 1 - error / threshold), whose mean is the AUC but for the trapezoids. What is said here is
about these two sets of weights: the noise of training with another seed is not in it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from raylg.errors import ConfigError
from raylg.evaluation.pair_scores import IntArray, PairScores
from raylg.evaluation.pose import FloatArray, scores

_CHUNK = 500  # resamples at a time: weights of 500 x 1500 pairs are 6 MB


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
    _check_same_pairs(a, b)
    thresholds = [threshold] if isinstance(threshold, int | float) else list(threshold)
    deltas = np.mean([scores(a.error, t) - scores(b.error, t) for t in thresholds], axis=0)
    images, num_images = _image_pairs(a)
    difference = float(deltas.mean())
    if len(deltas) == 1 and difference != 0:  # one pair does not tell how pairs vary
        low, high, share = -1.0, 1.0, 0.5
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

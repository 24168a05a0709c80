"""A made-up LightGlue: what a configuration scores, how noisily, and what it costs, without any training.

Everything here was fixed before any search was run on it. Sizes follow what is known of the real thing: AUC@5 between
40 % and 60 %, ten times the best learning rate costs ten points, and the difference of two equal configurations has a
standard deviation of two points, 1.2 from seeds and 1.5 from 300 pairs.

Quality is a number q that lowers the logarithm of all pose errors: error = 2 degrees * exp(-q - what is hard about the
pair - noise), score = max(0, 1 - error / 5 degrees), so that 0.1 in q is about 2.5 points of AUC@5.

- learning rate: q falls by 0.4 per squared decade from the optimum 2e-4 * sqrt(batch / 16).
- batch: q falls by 0.03 per squared doubling from 16.
- keypoints: q rises by 0.35 * (1 - exp(-(keypoints - 256) / 500)).
- curves: at a share s of the budget q is lower by 0.4 * (1 + 0.15 per doubling of the batch from 16 + 0.1 per doubling
  of the keypoints from 512) * (s^-0.3 - 1), and the best learning rate is lower by 0.3 (1 - s) decades: early on, small
  batches, few keypoints and small learning rates look better than they are, and curves cross.
- infeasible: more than 40 000 keypoints in a batch run out of memory at once; learning rates above ten times the
  optimum diverge within the first report.
- noise: of the seed (a part shared by all configurations, a part of each, the latter larger early on), of images and
  pairs (their difficulty; what a configuration does to them under any seed; what one trained model does to them). A
  pair shares an image with eight others on average. Each study has photographs of its own.
- seconds of a pair: 0.02 / batch + 1e-5 keypoints + 1e-8 keypoints^2, and 20 seconds to start.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from raylg.evaluation.pair_scores import PairScores
from raylg.evaluation.pose import FloatArray, mean_score

LR, BATCH, KEYPOINTS = "optim.lr", "data.batch_size", "data.num_keypoints"
Values = Mapping[str, Any]

SPACE: dict[str, Any] = {
    "parameters": {
        LR: {"type": "float", "low": 2e-5, "high": 3e-3, "log": True},
        BATCH: {"type": "choice", "values": [4, 8, 16, 32, 64]},
        KEYPOINTS: {"type": "choice", "values": [256, 512, 1024, 2048]},
    },
    "baseline": {LR: 1e-4, BATCH: 32, KEYPOINTS: 512},
}
OPTIMUM = {LR: 2e-4, BATCH: 16, KEYPOINTS: 2048}

NUM_PAIRS = 270_000
"""Full budget of a trial."""
REPORT_EVERY = 10_000
THRESHOLD = 5.0
"""Degrees."""

_NUM_SCENES, _IMAGES_PER_SCENE, _PAIRS_PER_SCENE = 3, 40, 100
_MEDIAN_ERROR = 2.0
_SEED_SHARED, _SEED_OWN = 0.02, 0.03
_DIFFICULTY = (0.35, 0.8)
"""Standard deviations of what each of both images and the pair itself add to the logarithm of the error."""
_OF_CONFIG = (0.07, 0.15)
_OF_MODEL = (0.10, 0.45)


@dataclass(frozen=True)
class Surface:
    """One study's photographs and luck; the truth is the same for all."""

    seed: int
    flat: bool = False
    """All feasible configurations are equally good, at any share of the budget."""

    @cached_property
    def _images(self) -> np.ndarray:
        """Images of the pairs, [P, 2]."""
        rng = np.random.default_rng([self.seed, 1])
        found = []
        for scene in range(_NUM_SCENES):
            first, second = np.triu_indices(_IMAGES_PER_SCENE, 1)
            chosen = np.sort(rng.choice(len(first), _PAIRS_PER_SCENE, replace=False))
            found.append(np.stack([first[chosen], second[chosen]], 1) + scene * _IMAGES_PER_SCENE)
        return np.concatenate(found)

    @cached_property
    def _difficulty(self) -> FloatArray:
        return self._effects(np.random.default_rng([self.seed, 2]), _DIFFICULTY)

    def _effects(self, rng: np.random.Generator, sizes: tuple[float, float]) -> FloatArray:
        """Of images and pairs, [P]."""
        of_image = sizes[0] * rng.standard_normal(_NUM_SCENES * _IMAGES_PER_SCENE)
        return of_image[self._images].sum(axis=1) + sizes[1] * rng.standard_normal(len(self._images))

    def quality(self, values: Values, share: float = 1.0) -> float:
        """The q of a configuration after a share of the budget, without noise."""
        if self.flat:
            return -0.4 * (share**-0.3 - 1)
        decades = math.log10(values[LR] / best_lr(values[BATCH])) + 0.3 * (1 - share)
        doublings = math.log2(values[BATCH] / 16)
        q = -0.4 * decades**2 - 0.03 * doublings**2 + 0.35 * (1 - math.exp(-(values[KEYPOINTS] - 256) / 500))
        slowness = max(0.2, 1 + 0.15 * doublings + 0.1 * math.log2(values[KEYPOINTS] / 512))
        return q - 0.4 * slowness * (share**-0.3 - 1)

    def true_value(self, values: Values) -> float:
        """Expected score at full budget over all seeds and all photographs."""
        images = 2 * sum(sizes[0] ** 2 for sizes in (_DIFFICULTY, _OF_CONFIG, _OF_MODEL))
        pairs = sum(sizes[1] ** 2 for sizes in (_DIFFICULTY, _OF_CONFIG, _OF_MODEL))
        spread = math.sqrt(images + pairs + _SEED_SHARED**2 + _SEED_OWN**2)
        nodes = np.linspace(-8, 8, 2001)
        weights = np.exp(-(nodes**2) / 2)
        errors = _MEDIAN_ERROR * np.exp(-self.quality(values) - spread * nodes)
        return float(np.sum(weights * np.maximum(0, 1 - errors / THRESHOLD)) / np.sum(weights))

    def errors(self, values: Values, seed: int, pairs_seen: int) -> FloatArray:
        """Pose errors in degrees of a model trained on some pairs with some seed, [P]."""
        share = min(1.0, pairs_seen / NUM_PAIRS)
        key = zlib.crc32(repr(sorted(values.items())).encode())
        of_config = np.random.default_rng([self.seed, 3, key])
        of_run = np.random.default_rng([self.seed, 4, key, seed])
        of_report = np.random.default_rng([self.seed, 5, key, seed, pairs_seen])
        luck = _SEED_SHARED * np.random.default_rng([self.seed, 6, seed]).standard_normal()
        luck += _SEED_OWN * math.sqrt(0.5) * of_run.standard_normal()
        luck += _SEED_OWN * math.sqrt(0.5) * (2 - share) * of_report.standard_normal()
        exponent = self.quality(values, share) + luck + self._difficulty
        exponent = exponent + self._effects(of_config, _OF_CONFIG) + self._effects(of_report, _OF_MODEL)
        return np.asarray(_MEDIAN_ERROR * np.exp(-exponent))

    def score(self, values: Values, seed: int, pairs_seen: int) -> float:
        """What a report says."""
        return mean_score(self.errors(values, seed, pairs_seen), THRESHOLD)

    def pair_scores(self, values: Values, seed: int) -> PairScores:
        """What the last report of a run leaves behind."""
        errors = self.errors(values, seed, NUM_PAIRS)
        scenes = self._images[:, 0] // _IMAGES_PER_SCENE
        count = np.full(len(errors), 100, dtype=np.int64)
        return PairScores(
            kind="pose",
            indices=np.stack([scenes, np.arange(len(errors))], 1),
            scenes=scenes.astype(np.str_),
            names0=self._images[:, 0].astype(np.str_),
            names1=self._images[:, 1].astype(np.str_),
            rotation_error=errors,
            translation_error=errors,
            corner_error=np.full(len(errors), np.nan),
            num_matches=count,
            num_inliers=count,
            num_keypoints0=count,
            num_keypoints1=count,
            precision=np.ones(len(errors)),
            overlap=np.full(len(errors), np.nan),
            precision_threshold=3.0,
        )


class CliffSurface(Surface):
    """One that no quadratic fits, to see whether what works on the other one works because that one is quadratic.

    Beyond the best learning rate q falls off a cliff, below it slowly; the best batch size depends on the keypoints.
    """

    def quality(self, values: Values, share: float = 1.0) -> float:
        decades = math.log10(values[LR] / best_lr(values[BATCH])) + 0.3 * (1 - share)
        batches, counts = math.log2(values[BATCH] / 16), math.log2(values[KEYPOINTS] / 512)
        q = -1.2 * max(0.0, decades - 0.1) ** 1.5 - 0.25 * max(0.0, -decades - 0.2)
        q += -0.05 * abs(batches + 0.5 * counts - 0.5) - 0.15 * max(0.0, decades) * counts
        q += 0.35 * (1 - math.exp(-(values[KEYPOINTS] - 256) / 500))
        return q - 0.4 * max(0.2, 1 + 0.15 * batches + 0.1 * counts) * (share**-0.3 - 1)


def best_lr(batch_size: int) -> float:
    """At full budget."""
    return 2e-4 * math.sqrt(batch_size / 16)


def why_infeasible(values: Values, pairs_seen: int) -> str:
    """Why training cannot come to that many pairs; empty where it can."""
    if values[BATCH] * values[KEYPOINTS] > 40_000:
        return f"out_of_memory: batch of {values[BATCH]} pairs"
    if pairs_seen > 0 and values[LR] > 10 * best_lr(values[BATCH]):
        return f"diverged: loss is not finite after {pairs_seen} pairs"
    return ""


def seconds_per_pair(values: Values) -> float:
    """Training time."""
    return 0.02 / values[BATCH] + 1e-5 * values[KEYPOINTS] + 1e-8 * values[KEYPOINTS] ** 2

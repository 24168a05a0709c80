"""Sweeps over what needs no training: thresholds, keypoints, early exit (results: `raylg.evaluation.free_axes`).

Each pair is matched once for each number of keypoints and each early exit, without a filter; its matches are kept with
their scores, so that filter and RANSAC thresholds cost an estimate on the CPU each and no forward pass. Pairs come in a
fixed random order and every setting is scored on the same ones, so the sweep may end after any of them: it ends when
its time is used up.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch

from raylg.batch import PairBatch, View
from raylg.data.stream import evaluation_indices
from raylg.evaluation.benchmarks import collect
from raylg.evaluation.config import EvaluationConfig
from raylg.evaluation.free_axes import FreeAxes, Point, Setting
from raylg.evaluation.matched_pairs import MatchedPair, PairScore, matched_pairs, score_pair
from raylg.evaluation.pair_scores import IntArray, PairScores, concatenate
from raylg.evaluation.pose import mean_score
from raylg.evaluation.statistics import paired_difference
from raylg.models.lightglue import LightGlue

if TYPE_CHECKING:
    from raylg.data.stream import PairData

FILTER_THRESHOLDS = (0.05, 0.1, 0.2, 0.3)
"""Without any filter RANSAC takes six times as long, and scores no better."""
RANSAC_THRESHOLDS = (0.5, 1.0, 2.0, 3.0)
"""In `EvaluationConfig.pixels`."""
DEPTH_CONFIDENCES = (-1.0, 0.95)
"""No early exit, and LightGlue's own."""
_SEED = 0


def settings(matcher: LightGlue, config: EvaluationConfig, max_num_keypoints: int) -> list[Setting]:
    """What is swept: every forward pass with every filter, and the protocol's own with every RANSAC threshold.

    Args:
        matcher: whose options are the protocol's.
        config: of the protocol.
        max_num_keypoints: that the data set has; up to twice the protocol's number are tried.
    """
    own, count = matcher.config, config.num_keypoints
    counts = [k for k in (count // 2, count, 2 * count) if 0 < k <= max(count, max_num_keypoints)]
    exits = sorted({*(DEPTH_CONFIDENCES if own.num_layers > 2 else ()), own.depth_confidence})
    filters = sorted({*FILTER_THRESHOLDS, own.filter_threshold})
    found = {(k, d, f, config.ransac_threshold) for k in counts for d in exits for f in filters}
    found |= {
        (count, own.depth_confidence, f, r) for f in filters for r in {*RANSAC_THRESHOLDS, config.ransac_threshold}
    }
    return [
        Setting(num_keypoints=k, depth_confidence=d, filter_threshold=f, ransac_threshold=r)
        for k, d, f, r in sorted(found)
    ]


def sweep(
    matcher: LightGlue,
    dataset: PairData,
    config: EvaluationConfig,
    *,
    max_num_keypoints: int,
    max_seconds: float,
    progress: Callable[[int, int], None],
) -> FreeAxes:
    """Score all `settings` on as many pairs as time allows.

    Args:
        matcher: in evaluation mode, on its device.
        dataset: validation pairs, never those of a test, with `max_num_keypoints` per image.
        config: the protocol that trials were scored with.
        max_num_keypoints: that `dataset` gives.
        max_seconds: no pairs are begun that would take longer; the first few are always scored.
        progress: told of pairs done and in all.

    Raises:
        ConfigError: see `check_pixels`.
    """
    wanted = settings(matcher, config, max_num_keypoints)
    device = next(matcher.parameters()).device
    indices = evaluation_indices(dataset, config.max_pairs)
    results: dict[Setting, list[_Result]] = {setting: [] for setting in wanted}
    started, longest = time.monotonic(), 0.0
    with torch.no_grad(), ThreadPoolExecutor(config.num_threads, thread_name_prefix="pose") as threads:
        for number, chunk in enumerate(_chunks(indices, config.batch_size)):
            begun = time.monotonic()
            if number and begun + longest > started + max_seconds:
                break
            matched: list[_Matched] = []
            for index in chunk:
                batch = dataset.batch(index[None]).to(device)
                if not number and not matched:  # the first pass of each shape sets up kernels, which is not timed
                    list(_match(matcher, batch, index, wanted, config))
                matched.extend(_match(matcher, batch, index, wanted, config))
            for result in threads.map(_estimate, matched):
                results[result.setting].append(result)
            progress(len(results[wanted[0]]), len(indices))
            longest = max(longest, time.monotonic() - begun)
    return _summary(results, _own(matcher, config), config, num_pairs_of=len(indices), device=str(device))


def _own(matcher: LightGlue, config: EvaluationConfig) -> Setting:
    return Setting(
        num_keypoints=config.num_keypoints,
        depth_confidence=matcher.config.depth_confidence,
        filter_threshold=matcher.config.filter_threshold,
        ransac_threshold=config.ransac_threshold,
    )


def _chunks(indices: IntArray, size: int) -> Iterator[IntArray]:
    """Pairs in a fixed random order, so that the first ones stand for all; in a chunk in the order of the shards."""
    order = np.random.default_rng(_SEED).permutation(len(indices))
    for start in range(0, len(order), size):
        yield indices[np.sort(order[start : start + size])]


@dataclass(frozen=True, kw_only=True)
class _Matched:
    setting: Setting
    pair: MatchedPair
    config: EvaluationConfig
    seconds: float
    num_layers: int


@dataclass(frozen=True, kw_only=True)
class _Result:
    setting: Setting
    score: PairScore
    match_seconds: float
    estimate_seconds: float
    num_layers: int


def _match(
    matcher: LightGlue, batch: PairBatch, index: IntArray, wanted: Sequence[Setting], config: EvaluationConfig
) -> Iterator[_Matched]:
    """The matches of one pair at every setting, a forward pass for each number of keypoints and early exit."""
    by_pass: dict[tuple[int, float], list[Setting]] = {}
    for setting in wanted:
        by_pass.setdefault((setting.num_keypoints, setting.depth_confidence), []).append(setting)
    for (num_keypoints, depth_confidence), members in by_pass.items():
        trimmed = replace(
            batch, view0=strongest(batch.view0, num_keypoints), view1=strongest(batch.view1, num_keypoints)
        )
        with _options(matcher, depth_confidence):
            started = _now(batch)
            matches = matcher.match(trimmed.view0, trimmed.view1)
            seconds = _now(batch) - started
        scores0, matches0 = matches.matching_scores0.cpu(), matches.matches0.cpu()
        for setting in members:
            kept = matches0.where(scores0 > setting.filter_threshold, -1)
            for pair in matched_pairs(trimmed, kept, index[None], config):
                yield _Matched(
                    setting=setting,
                    pair=pair,
                    config=replace(config, ransac_threshold=setting.ransac_threshold),
                    seconds=seconds,
                    num_layers=int(matches.num_layers_used[0]),
                )


@contextmanager
def _options(matcher: LightGlue, depth_confidence: float) -> Iterator[None]:
    """All mutual candidates with their scores: filtering comes later."""
    own = matcher.config
    matcher.config = replace(own, filter_threshold=0.0, depth_confidence=depth_confidence)
    try:
        yield
    finally:
        matcher.config = own


def strongest(view: View, num_keypoints: int) -> View:
    """The first keypoints of each image; they are stored in the order of their scores."""

    def first(values: torch.Tensor) -> torch.Tensor:
        return values[:, :num_keypoints]

    return replace(
        view,
        keypoints=first(view.keypoints),
        descriptors=first(view.descriptors),
        mask=first(view.mask),
        depth_keypoints=first(view.depth_keypoints),
        scales=None if view.scales is None else first(view.scales),
        oris=None if view.oris is None else first(view.oris),
    )


def _now(batch: PairBatch) -> float:
    """Seconds, once the device has done what it was told."""
    if batch.view0.keypoints.is_cuda:
        torch.cuda.synchronize(batch.view0.keypoints.device)
    return time.perf_counter()


def _estimate(matched: _Matched) -> _Result:
    started = time.thread_time()  # other threads estimate meanwhile
    score = score_pair(matched.pair, matched.config)
    return _Result(
        setting=matched.setting,
        score=score,
        match_seconds=matched.seconds,
        estimate_seconds=time.thread_time() - started,
        num_layers=matched.num_layers,
    )


def _summary(
    results: dict[Setting, list[_Result]],
    protocol: Setting,
    config: EvaluationConfig,
    *,
    num_pairs_of: int,
    device: str,
) -> FreeAxes:
    scores = {setting: collect([result.score for result in found], config) for setting, found in results.items()}
    measure = scores[protocol].measure
    column = measure.thresholds.index(measure.headline)
    points = [
        Point(
            setting=setting,
            scores=tuple(mean_score(scores[setting].error, threshold) for threshold in measure.thresholds),
            match_seconds=float(np.median([result.match_seconds for result in found])),
            estimate_seconds=float(np.median([result.estimate_seconds for result in found])),
            num_matches=float(scores[setting].num_matches.mean()),
            num_layers=float(np.mean([result.num_layers for result in found])),
            on_front=False,
        )
        for setting, found in results.items()
    ]
    points.sort(key=lambda point: (point.seconds, -point.scores[column]))
    highest = [-1.0, *itertools.accumulate((point.scores[column] for point in points), max)]
    points = [
        replace(point, on_front=point.scores[column] > before) for point, before in zip(points, highest, strict=False)
    ]
    best = max(points, key=lambda point: (point.scores[column], point.setting == protocol))
    gain = paired_difference(_cross_fitted(scores, measure.headline, protocol), scores[protocol], measure.headline)
    return FreeAxes(
        points=tuple(points),
        protocol=protocol,
        best=best.setting,
        gain=gain.difference,
        gain_low=gain.low,
        gain_high=gain.high,
        thresholds=measure.thresholds,
        headline=measure.headline,
        unit=measure.unit,
        num_pairs=len(scores[protocol]),
        num_pairs_of=num_pairs_of,
        device=device,
    )


def _cross_fitted(scores: Mapping[Setting, PairScores], threshold: float, protocol: Setting) -> PairScores:
    """Each half of the pairs at the setting that is the best on the other half; a single pair at the protocol's."""
    in_first = _first_half(scores[protocol])
    if in_first.all():
        return scores[protocol]
    parts = []
    for half in (in_first, ~in_first):
        means = {setting: mean_score(found.error[~half], threshold) for setting, found in scores.items()}
        chosen = scores[max(means, key=lambda setting: means[setting])]
        parts.append(chosen.only(chosen.indices[half]))
    return concatenate(parts)


def _first_half(pairs: PairScores) -> npt.NDArray[np.bool_]:
    """Every other scene as bool [P], since pairs of a scene share images; of a single scene every other pair."""
    scenes, number = np.unique(pairs.scenes, return_inverse=True)
    return np.asarray((number if len(scenes) > 1 else np.arange(len(pairs))) % 2 == 0)

"""Score a matcher on the pairs of a data set by what follows from its matches: relative poses, or homographies.

Three things happen at the same time: the next batch is read, this one is matched, and poses of the batches before are
estimated in threads, since the estimator releases the GIL. Everything is kept per pair
(`raylg.evaluation.pair_scores`).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import closing
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch

from raylg.batch import Matches, PairBatch, View
from raylg.evaluation.config import EvaluationConfig
from raylg.evaluation.matched_pairs import PairScore, matched_pairs, pixel_scale, score_pair
from raylg.evaluation.measures import Kind
from raylg.evaluation.pair_scores import IntArray, PairScores
from raylg.evaluation.pose import FloatArray, estimator_version
from raylg.models.config import LightGlueConfig
from raylg.schema import digest

if TYPE_CHECKING:
    from raylg.data.stream import PairData

PAIRS_WAITING = 256
"""Matched pairs that may wait for the estimator before matching waits for it: 17 MB at 2048 matches a pair. Enough that
a few hopeless pairs, which take a hundred times longer than others, do not stop matching."""


class Matcher(Protocol):
    """Whatever matches two views."""

    def match(self, view0: View, view1: View) -> Matches:
        """Match a padded batch."""


def protocol_hash(
    config: EvaluationConfig,
    *,
    data_hash: str,
    indices: IntArray,
    matcher: LightGlueConfig,
    num_keypoints: int,
) -> str:
    """12 hex digits of all that decides a score except the weights; scores of different hashes are never compared.

    Args:
        config: estimator; `max_pairs` acts through `indices`, batch size and threads change no result.
        data_hash: of the shards, which covers extractor, resize and pairs.
        indices: [P, 2] pairs that are scored, in any order.
        matcher: its options at inference count, not its architecture.
        num_keypoints: largest number per image.
    """
    return digest(
        {
            "estimator": estimator_version(config),
            "ransac_threshold": config.ransac_threshold,
            "pixels": config.pixels,
            "ransac_max_iterations": config.ransac_max_iterations,
            "ransac_seed": config.ransac_seed,
            "precision_threshold": config.precision_threshold,
            "data": data_hash,
            "pairs": sorted(np.asarray(indices).tolist()),
            "filter_threshold": matcher.filter_threshold,
            "depth_confidence": matcher.depth_confidence,
            "width_confidence": matcher.width_confidence,
            "num_keypoints": num_keypoints,
        }
    )


def check_pixels(dataset: PairData, config: EvaluationConfig) -> None:
    """Look at one pair, so that it is known before time is spent whether pairs can be scored in `config.pixels`.

    Raises:
        ConfigError: `config.pixels` is original and the data set does not know the sizes of its images.
    """
    if config.pixels == "original" and dataset.num_pairs > 0:
        first = next(shard for shard, size in enumerate(dataset.shard_sizes) if size > 0)
        batch = dataset.batch(np.array([[first, 0]]))
        for view in (batch.view0, batch.view1):
            pixel_scale(view, config)


def rung_indices(indices: IntArray, rung_pairs: int | None) -> IntArray:
    """At most `rung_pairs` of the pairs that are scored, evenly spaced, always the same; None takes all."""
    count = len(indices) if rung_pairs is None else min(rung_pairs, len(indices))
    return indices[np.arange(count) * len(indices) // max(count, 1)]


def score_pairs(
    matcher: Matcher,
    dataset: PairData,
    config: EvaluationConfig,
    *,
    device: torch.device | str,
    indices: IntArray,
) -> PairScores:
    """Match pairs in batches and estimate their poses or homographies; see `score_batches`.

    Args:
        matcher: on `device`.
        dataset: pairs of one kind.
        config: estimator, pixels, batch size and threads; `max_pairs` is the caller's, who chooses `indices`.
        device: where to match.
        indices: int64 [P, 2], the pairs to score.

    Raises:
        ConfigError: see `check_pixels`.
    """

    def match(batch: PairBatch) -> Matches:
        return matcher.match(batch.view0, batch.view1)

    return score_batches(match, dataset, config, device=device, indices=indices)


def score_batches(
    match: Callable[[PairBatch], Matches],
    dataset: PairData,
    config: EvaluationConfig,
    *,
    device: torch.device | str,
    indices: IntArray,
) -> PairScores:
    """Score pairs, each of which is read once and matched once.

    Two batches and `PAIRS_WAITING` pairs are in memory at most, besides the shards that the data set keeps open and the
    few numbers that are kept of each pair.

    Args:
        match: called from this thread, without gradients, once for each batch on `device`, in the order of `indices`.
        dataset: pairs of one kind.
        config: as for `score_pairs`.
        device: where `match` wants its batches.
        indices: int64 [P, 2], the pairs to score.

    Raises:
        ConfigError: see `check_pixels`.
    """
    scores: list[Future[PairScore]] = []
    waiting: set[Future[PairScore]] = set()
    threads = ThreadPoolExecutor(config.num_threads, thread_name_prefix="pose")
    try:
        with torch.no_grad(), closing(_read_ahead(dataset, indices, config.batch_size)) as batches:
            for chunk, batch in batches:
                matches0 = match(batch.to(device)).matches0.cpu()
                for pair in matched_pairs(batch, matches0, chunk, config):
                    future = threads.submit(score_pair, pair, config)
                    scores.append(future)
                    waiting.add(future)
                while len(waiting) > PAIRS_WAITING:
                    done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                    for future in done:
                        future.result()  # an error of the estimator ends the scoring here
        return collect([future.result() for future in scores], config)
    finally:
        threads.shutdown(cancel_futures=True)  # after an error, what has not begun never does


def _read_ahead(
    dataset: PairData, indices: IntArray, batch_size: int
) -> Generator[tuple[IntArray, PairBatch], None, None]:
    """Batches with their indices; while one is used, a thread reads the next, and another fetches the next shard."""
    chunks = [indices[start : start + batch_size] for start in range(0, len(indices), batch_size)]
    shards = dict.fromkeys(indices[:, 0].tolist())
    after = dict(itertools.pairwise(shards))
    with (
        ThreadPoolExecutor(1, thread_name_prefix="fetch-shards") as fetcher,
        ThreadPoolExecutor(1, thread_name_prefix="read-pairs") as reader,
    ):

        def read(chunk: IntArray) -> Future[PairBatch]:
            following = after.pop(int(chunk[-1, 0]), None)
            if following is not None:
                fetcher.submit(dataset.fetch, following)  # what goes wrong here does so again where it is read
            return reader.submit(dataset.batch, chunk)

        coming = [read(chunk) for chunk in chunks[:1]]
        for number, chunk in enumerate(chunks):
            batch = coming.pop().result()
            coming = [read(following) for following in chunks[number + 1 : number + 2]]
            yield chunk, batch


def collect(results: Sequence[PairScore], config: EvaluationConfig) -> PairScores:
    """Scores of pairs of one kind, one by one, as arrays.

    Args:
        results: a score per pair.
        config: that they were scored with.
    """

    def floats(values: Iterator[float]) -> FloatArray:
        return np.fromiter(values, dtype=np.float64)

    def integers(values: Iterator[int]) -> IntArray:
        return np.fromiter(values, dtype=np.int64)

    pairs = [result.pair for result in results]
    kinds = {pair.kind for pair in pairs}
    assert len(kinds) <= 1, "pairs of both kinds cannot be scored together"
    kind: Kind = kinds.pop() if kinds else "pose"
    scenes, names0, names1 = (np.array([pair.names[i] for pair in pairs], dtype=np.str_) for i in range(3))
    absent = np.full(len(pairs), np.nan)
    return PairScores(
        kind=kind,
        indices=np.array([pair.index for pair in pairs], dtype=np.int64).reshape(-1, 2),
        scenes=scenes,
        names0=names0,
        names1=names1,
        rotation_error=floats(r.rotation_error for r in results) if kind == "pose" else absent,
        translation_error=floats(r.translation_error for r in results) if kind == "pose" else absent,
        corner_error=floats(r.corner_error for r in results) if kind == "homography" else absent,
        num_matches=integers(pair.num_matches for pair in pairs),
        num_inliers=integers(result.num_inliers for result in results),
        num_keypoints0=integers(pair.num_keypoints[0] for pair in pairs),
        num_keypoints1=integers(pair.num_keypoints[1] for pair in pairs),
        precision=floats(result.precision for result in results),
        overlap=floats(pair.overlap for pair in pairs),
        precision_threshold=config.precision_threshold,
    )

"""Scores of validation pairs and benchmarks, the same for any number of ranks.

Validation pairs are also scored by how well their matches agree with the labels, while the batch is at hand: each pair
is read once and matched once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from raylg.batch import Matches, PairBatch
from raylg.data.stream import PairData, evaluation_indices
from raylg.evaluation.benchmarks import rung_indices, score_batches
from raylg.evaluation.config import EvaluationConfig
from raylg.evaluation.pair_scores import PairScores, concatenate
from raylg.models.lightglue import LightGlue
from raylg.supervision.assignment_loss import matching_loss
from raylg.supervision.ground_truth import ground_truth_matches
from raylg.supervision.match_metrics import match_metrics
from raylg.training.config import RunConfig
from raylg.training.distributed import World
from raylg.training.visualise import Side, match_figure

SPLIT = "val"
SUPERVISED = ("loss", "match_recall", "match_precision", "average_precision")
SCORE, RUNG_SCORE = f"{SPLIT}/mean_auc", f"{SPLIT}/rung_mean_auc"


def validate(
    matcher: LightGlue, dataset: PairData, config: RunConfig, world: World, *, final: bool = True
) -> tuple[PairScores, dict[str, float]]:
    """Score the validation pairs in float32, each once.

    Every rank takes a run of neighbouring pairs, which lie in few shards, and gets the results of all ranks.

    Args:
        matcher: the bare module, on the device of `world`; never the wrapper of DDP.
        dataset: validation pairs.
        config: of the run.
        world: this process among the workers; all of them must call.
        final: whether this is the last report, which scores all pairs; others score `evaluation.rung_pairs`.

    Returns:
        scores: per pair.
        metrics: ``val/...``; ``val/loss`` is the NLL of the last layer. Where `evaluation.rung_pairs` is set there is
            also ``val/rung_mean_auc``, of the same pairs at every report (`comparable_score`).
    """
    protocol = config.evaluation
    supervised = _Supervised(matcher, config)
    scores = _score(matcher, supervised, dataset, protocol, world, _indices(dataset, protocol, final=final))
    rows = np.concatenate(world.gather(supervised.rows()))
    known = np.isfinite(rows)  # a pair without a labelled match has no recall
    means = np.where(known, rows, 0).sum(axis=0) / np.maximum(known.sum(axis=0), 1)
    metrics = scores.metrics(SPLIT)
    metrics |= {f"{SPLIT}/{name}": float(value) for name, value in zip(SUPERVISED, means, strict=True)}
    if protocol.rung_pairs is not None:
        metrics[RUNG_SCORE] = scores.only(_indices(dataset, protocol, final=False)).metrics(SPLIT)[SCORE]
    return scores, metrics


def comparable_score(metrics: Mapping[str, float]) -> float:
    """The score by which reports of one run may be compared: the mean AUC of pairs that every report has scored."""
    return metrics.get(RUNG_SCORE, metrics[SCORE])


def score_benchmark(
    matcher: LightGlue, dataset: PairData, protocol: EvaluationConfig, world: World, *, final: bool = True
) -> PairScores:
    """Score the pairs of a benchmark in float32, each once and on one rank; every rank gets the scores of all.

    Arguments as of `validate`.
    """

    def match(batch: PairBatch) -> Matches:
        return matcher.match(batch.view0, batch.view1)

    return _score(matcher, match, dataset, protocol, world, _indices(dataset, protocol, final=final))


def _indices(dataset: PairData, protocol: EvaluationConfig, *, final: bool) -> np.ndarray:
    """int64 [n, 2], the pairs of a report."""
    indices = evaluation_indices(dataset, protocol.max_pairs)
    return indices if final else rung_indices(indices, protocol.rung_pairs)


def _score(
    matcher: LightGlue,
    match: Callable[[PairBatch], Matches],
    dataset: PairData,
    protocol: EvaluationConfig,
    world: World,
    indices: np.ndarray,
) -> PairScores:
    """Score this rank's share of the pairs by what `match` finds with `matcher`, and join those of all ranks."""
    mine = _share(indices, protocol.batch_size, world)
    scores = None
    if len(mine):
        with _evaluating(matcher):
            scores = score_batches(match, dataset, protocol, device=world.device, indices=mine)
    return concatenate([part for part in world.gather(scores) if part is not None])


def _share(indices: np.ndarray, batch_size: int, world: World) -> np.ndarray:
    """This rank's run of neighbouring pairs: whole batches, as one rank alone would make them.

    A pair then stands beside the same others, and is padded alike, for any number of ranks: scores agree bit for bit.
    """
    starts = np.array_split(np.arange(0, len(indices), batch_size), world.size)[world.rank]
    return indices[starts[0] : starts[-1] + batch_size] if len(starts) else indices[:0]


@contextmanager
def _evaluating(matcher: LightGlue) -> Iterator[None]:
    was_training = matcher.training
    matcher.eval()
    try:
        yield
    finally:
        matcher.train(was_training)


class _Supervised:
    """Matches batches, and notes how well the matches agree with the labels."""

    def __init__(self, matcher: LightGlue, config: RunConfig) -> None:
        self._matcher, self._config = matcher, config
        self._rows: list[Tensor] = []

    def __call__(self, batch: PairBatch) -> Matches:
        """Match a batch on the device of the matcher, without gradients."""
        view0, view1 = batch.view0, batch.view1
        ground_truth = ground_truth_matches(batch, self._config.ground_truth)
        last, matches = self._matcher.predict_and_match(view0, view1)
        loss = matching_loss([last], ground_truth, self._config.loss, view0.mask, view1.mask).last
        metrics = match_metrics(matches, ground_truth)
        columns = [loss, *(metrics[name] for name in SUPERVISED[1:])]
        self._rows.append(torch.stack([column.double() for column in columns], dim=1))
        return matches

    def rows(self) -> np.ndarray:
        """float64 [n, 4], a row per pair, one column per entry of `SUPERVISED`; NaN where a pair has none."""
        none = torch.zeros(0, len(SUPERVISED), dtype=torch.float64)
        return torch.cat([none, *(rows.cpu() for rows in self._rows)]).numpy()


def figures(
    matcher: LightGlue, dataset: PairData, config: RunConfig, scores: PairScores, device: torch.device
) -> Iterator[tuple[str, np.ndarray]]:
    """Name and picture, uint8 [H, W, 3], of `train.num_figures` validation pairs, evenly spaced and always the same.

    Args:
        matcher: the bare module.
        dataset: validation pairs.
        config: of the run.
        scores: of the same validation.
        device: where the matcher is.
    """
    count = min(config.train.num_figures, len(scores))
    for row in np.linspace(0, len(scores) - 1, count).round().astype(int).tolist():
        yield pair_figure(matcher, dataset, config, (scores, row), device)


@torch.no_grad()
def pair_figure(
    matcher: LightGlue, dataset: PairData, config: RunConfig, of: tuple[PairScores, int], device: torch.device
) -> tuple[str, np.ndarray]:
    """Name and picture, uint8 [H, W, 3], of one pair; arguments as of `figures`, `of` a row of the scores."""
    scores, row = of
    index = scores.indices[row : row + 1]
    batch = dataset.batch(index).to(device)
    matches = matcher.match(batch.view0, batch.view1).matches0[0].cpu().numpy()
    ground_truth = ground_truth_matches(batch, config.ground_truth).gt_matches0[0].cpu().numpy()
    sides = [
        Side(image, view.keypoints[0].cpu().numpy(), tuple(view.image_size[0].tolist()))
        for image, view in zip(dataset.thumbnails(index)[0], (batch.view0, batch.view1), strict=True)
    ]
    return " - ".join(batch.names[0]), match_figure(sides[0], sides[1], matches, ground_truth, scores.describe(row))

"""Scores of validation pairs and benchmarks, the same for any number of ranks.

Validation pairs are also scored by how well their matches agree with the labels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from raylg.batch import Matches, View
from raylg.data.stream import PairData, evaluation_indices
from raylg.evaluation.benchmarks import Matcher, score_pairs
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


def validate(
    matcher: LightGlue, dataset: PairData, config: RunConfig, world: World
) -> tuple[PairScores, dict[str, float]]:
    """Score the validation pairs in float32, each once.

    Every rank takes a run of neighbouring pairs, which lie in few shards, and gets the results of all ranks.

    Returns:
        scores: per pair.
        metrics: ``val/...``; ``val/loss`` is the NLL of the last layer.
    """
    indices = evaluation_indices(dataset, config.evaluation.max_pairs)
    mine = np.array_split(indices, world.size)[world.rank]
    was_training = matcher.training
    matcher.eval()
    matches, supervised = _supervised(matcher, dataset, config, world, mine)
    matcher.train(was_training)
    gathered = _score(_Recorded(matches), dataset, config.evaluation, world, mine)
    rows = np.concatenate(world.gather(supervised))
    known = np.isfinite(rows)  # a pair without a labelled match has no recall
    means = np.where(known, rows, 0).sum(axis=0) / np.maximum(known.sum(axis=0), 1)
    return gathered, gathered.metrics(SPLIT) | {
        f"{SPLIT}/{name}": float(value) for name, value in zip(SUPERVISED, means, strict=True)
    }


def score_benchmark(matcher: LightGlue, dataset: PairData, protocol: EvaluationConfig, world: World) -> PairScores:
    """Score the pairs of a benchmark in float32, each once and on one rank; every rank gets the scores of all."""
    indices = evaluation_indices(dataset, protocol.max_pairs)
    was_training = matcher.training
    matcher.eval()
    scores = _score(matcher, dataset, protocol, world, np.array_split(indices, world.size)[world.rank])
    matcher.train(was_training)
    return scores


def _score(
    matcher: Matcher, dataset: PairData, evaluation: EvaluationConfig, world: World, mine: np.ndarray
) -> PairScores:
    """Score this rank's pairs and join those of all ranks."""
    scores = None
    if len(mine):
        scores = score_pairs(matcher, dataset, evaluation, device=world.device, indices=mine)
    return concatenate([part for part in world.gather(scores) if part is not None])


@torch.no_grad()
def _supervised(
    matcher: LightGlue, dataset: PairData, config: RunConfig, world: World, indices: np.ndarray
) -> tuple[list[Matches], np.ndarray]:
    """Matches of each batch, and float64 [n, 4], one column per entry of `SUPERVISED`; NaN where a pair has none."""
    recorded: list[Matches] = []
    rows = [np.zeros((0, len(SUPERVISED)))]
    for start in range(0, len(indices), config.evaluation.batch_size):
        batch = dataset.batch(indices[start : start + config.evaluation.batch_size]).to(world.device)
        view0, view1 = batch.view0, batch.view1
        ground_truth = ground_truth_matches(batch, config.ground_truth)
        layers, matches = matcher.forward_and_match(view0, view1)
        loss = matching_loss(layers[-1:], ground_truth, config.loss, view0.mask, view1.mask).last
        recorded.append(matches)
        metrics = match_metrics(matches, ground_truth)
        columns = [loss, *(metrics[name] for name in SUPERVISED[1:])]
        rows.append(torch.stack([column.double() for column in columns], dim=1).cpu().numpy())
    return recorded, np.concatenate(rows)


class _Recorded:
    """A matcher that repeats the matches of the same batches in the same order, so that each is matched once."""

    def __init__(self, matches: Sequence[Matches]) -> None:
        self._matches = iter(matches)

    def match(self, view0: View, view1: View) -> Matches:
        """See `Matcher.match`."""
        return next(self._matches)


@torch.no_grad()
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
    for row in np.linspace(0, len(scores) - 1, count).round().astype(int):
        index = scores.indices[row : row + 1]
        batch = dataset.batch(index).to(device)
        matches = matcher.match(batch.view0, batch.view1).matches0[0].cpu().numpy()
        ground_truth = ground_truth_matches(batch, config.ground_truth).gt_matches0[0].cpu().numpy()
        sides = [
            Side(image, view.keypoints[0].cpu().numpy(), tuple(view.image_size[0].tolist()))
            for image, view in zip(dataset.thumbnails(index)[0], (batch.view0, batch.view1), strict=True)
        ]
        yield (
            " - ".join(batch.names[0]),
            match_figure(sides[0], sides[1], matches, ground_truth, scores.describe(row)),
        )

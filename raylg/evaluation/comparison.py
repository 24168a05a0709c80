"""Several matchers on the same pairs, each beside the baselines that need no training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from raylg.evaluation.benchmarks import Matcher, PairScores, score_pairs
from raylg.evaluation.config import EvaluationConfig
from raylg.models.nearest_neighbor import NearestNeighbor

if TYPE_CHECKING:
    from raylg.data.stream import PairDataset

RATIO = 0.85
"""Ratio test of the second baseline; the usual setting for RootSIFT."""


def baselines() -> dict[str, Matcher]:
    """Mutual nearest neighbours, without and with a ratio test."""
    return {
        "mutual nearest neighbours": NearestNeighbor(),
        f"mutual nearest neighbours, ratio {RATIO}": NearestNeighbor(ratio=RATIO),
    }


def compare(
    matchers: Mapping[str, Matcher], dataset: PairDataset, config: EvaluationConfig, device: str = "cpu"
) -> dict[str, PairScores]:
    """Score every matcher on the same pairs of a data set (at most `config.max_pairs`)."""
    from raylg.data.stream import evaluation_indices

    indices = evaluation_indices(dataset, config.max_pairs)
    return {
        name: score_pairs(matcher, dataset, config, device=device, indices=indices)
        for name, matcher in matchers.items()
    }

"""Several matchers on the same pairs, each beside the baselines that need no training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch

from raylg.evaluation.benchmarks import Matcher, score_pairs
from raylg.evaluation.config import EvaluationConfig
from raylg.evaluation.pair_scores import PairScores
from raylg.models.nearest_neighbor import NearestNeighbor

if TYPE_CHECKING:
    from raylg.data.stream import PairData

RATIO = 0.85
"""Ratio test of the second baseline; the usual setting for RootSIFT."""


def baselines() -> dict[str, Matcher]:
    """Mutual nearest neighbours, without and with a ratio test."""
    return {
        "mutual nearest neighbours": NearestNeighbor(),
        f"mutual nearest neighbours, ratio {RATIO}": NearestNeighbor(ratio=RATIO),
    }


def scoring_device() -> str:
    """The GPU where there is one."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def compare(matchers: Mapping[str, Matcher], dataset: PairData, config: EvaluationConfig) -> dict[str, PairScores]:
    """Score every matcher on the same pairs (at most `config.max_pairs`) on `scoring_device`."""
    from raylg.data.stream import evaluation_indices

    indices = evaluation_indices(dataset, config.max_pairs)
    device = scoring_device()
    for matcher in matchers.values():
        if isinstance(matcher, torch.nn.Module):
            matcher.to(device)
    return {
        name: score_pairs(matcher, dataset, config, device=device, indices=indices)
        for name, matcher in matchers.items()
    }

"""Adaptive inference of LightGlue: the points of one pair that are still in play (paper, section 3.3)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from raylg.batch import Matches

PRUNING_MIN_KEYPOINTS = {"cuda": 1536}
"""Point pruning gathers and so only pays above this number of keypoints (official value with fused attention); on other
devices it always pays."""


def confidence_threshold(layer: int, num_layers: int) -> float:
    """Smallest confidence after `layer` at which a point counts as final (paper, appendix A; 0.9 down to 0.8)."""
    return 0.8 + 0.1 * math.exp(-4 * layer / num_layers)


def pruning_min_keypoints(device: torch.device) -> int:
    """Pruning runs on views with more keypoints than this."""
    return PRUNING_MIN_KEYPOINTS.get(device.type, -1)


@dataclass
class Points:
    """Keypoints of one view of one pair that were neither padding nor pruned; K are left."""

    x: Tensor
    """State [1, K, D]."""
    encoding: Tensor
    """Rotary encoding [2, 1, 1, K, D/H]."""
    index: Tensor
    """int64 [K], positions in the view."""
    num_keypoints: int
    """Length N of the padded view."""

    def __len__(self) -> int:
        return len(self.index)

    def keep(self, mask: Tensor) -> None:
        """Drop the points where `mask` [K] is False."""
        kept = mask.nonzero()[:, 0]
        self.x, self.encoding, self.index = self.x[:, kept], self.encoding[:, :, :, kept], self.index[kept]


def scatter_matches(kept: Matches, points0: Points, points1: Points) -> Matches:
    """Matches between the remaining points as matches of the whole views; pruned points have none."""
    return Matches(
        matches0=_scatter_indices(kept.matches0, points0, points1),
        matches1=_scatter_indices(kept.matches1, points1, points0),
        matching_scores0=_scatter_scores(kept.matching_scores0, points0),
        matching_scores1=_scatter_scores(kept.matching_scores1, points1),
        num_layers_used=kept.num_layers_used,
    )


def concatenate(matches: Sequence[Matches]) -> Matches:
    """One batch of pairs that were matched one by one."""
    return Matches(**{field.name: torch.cat([getattr(m, field.name) for m in matches]) for field in fields(Matches)})


def _scatter_indices(matches: Tensor, here: Points, there: Points) -> Tensor:
    result = matches.new_full((1, here.num_keypoints), -1)
    matched = matches[0] >= 0
    result[0, here.index[matched]] = there.index[matches[0, matched]]
    return result


def _scatter_scores(scores: Tensor, points: Points) -> Tensor:
    result = scores.new_zeros(1, points.num_keypoints)
    result[0, points.index] = scores[0]
    return result

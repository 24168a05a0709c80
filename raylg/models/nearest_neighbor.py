"""Mutual nearest neighbours of descriptors: the baseline that needs no training."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from raylg.batch import Matches, View


@dataclass(frozen=True)
class NearestNeighbor:
    """Mutual nearest neighbours with an optional ratio test (Lowe, IJCV 2004) in both directions.

    Attributes:
        ratio: largest distance to the nearest neighbour over that to the second nearest; None for no test. A view
            with a single keypoint has no second neighbour and passes.
    """

    ratio: float | None = None

    @torch.no_grad()
    def match(self, view0: View, view1: View) -> Matches:
        """Match unit descriptors; the score of a match is its cosine similarity, clipped at 0."""
        similarity = (view0.descriptors @ view1.descriptors.transpose(1, 2)).float()  # [B, M, N]
        pair = view0.mask[:, :, None] & view1.mask[:, None, :]
        similarity = similarity.masked_fill(~pair, -torch.inf)
        nearest0, good0 = self._nearest(similarity)
        nearest1, good1 = self._nearest(similarity.transpose(1, 2))
        mutual0, mutual1 = _mutual(nearest0, nearest1), _mutual(nearest1, nearest0)
        match0 = mutual0 & good0 & _at(good1, nearest0)
        match1 = mutual1 & good1 & _at(good0, nearest1)
        return Matches(
            matches0=torch.where(match0, nearest0, -1),
            matches1=torch.where(match1, nearest1, -1),
            matching_scores0=_scores(similarity, nearest0, mutual0),
            matching_scores1=_scores(similarity.transpose(1, 2), nearest1, mutual1),
            num_layers_used=nearest0.new_zeros(len(nearest0)),
        )

    def _nearest(self, similarity: Tensor) -> tuple[Tensor, Tensor]:
        """Index of the nearest neighbour of every row and whether it exists and passes the ratio test."""
        num_columns = similarity.shape[2]
        if num_columns == 0:
            nearest = similarity.new_zeros(similarity.shape[:2], dtype=torch.int64)
            return nearest, torch.zeros_like(nearest, dtype=torch.bool)
        best = similarity.topk(min(2, num_columns), dim=2)
        nearest, good = best.indices[..., 0], best.values[..., 0].isfinite()
        if self.ratio is not None and num_columns > 1:
            # |a - b|^2 = 2 - 2 a.b; a second neighbour at -inf (padding) is infinitely far.
            squared = (2 - 2 * best.values).clamp(min=0)
            good = good & (squared[..., 0] <= self.ratio**2 * squared[..., 1])
        return nearest, good


def _at(values: Tensor, index: Tensor) -> Tensor:
    """values[b, index[b, i]]; False where there is nothing to take."""
    if values.shape[1] == 0:
        return torch.zeros_like(index, dtype=values.dtype)
    return values.gather(1, index)


def _mutual(nearest: Tensor, back: Tensor) -> Tensor:
    return _at(back, nearest) == torch.arange(nearest.shape[1], device=nearest.device)


def _scores(similarity: Tensor, nearest: Tensor, mutual: Tensor) -> Tensor:
    if similarity.shape[2] == 0:
        return similarity.new_zeros(nearest.shape)
    return similarity.gather(2, nearest[..., None])[..., 0].clamp(min=0) * mutual

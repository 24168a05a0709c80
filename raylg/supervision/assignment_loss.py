"""Negative log-likelihood of the true assignment, of every layer, and the token-confidence loss.

Legend: B pairs, M/N keypoints in view 0/1, L layers. The log assignment of LightGlue (Lindenberger et al. 2023, eq. 6
and 8) is ``la[i, j] = 2 s[i, j] - lse_j s[i, :] - lse_i s[:, j] + log sigmoid(z0[i]) + log sigmoid(z1[j])``, with
dustbins ``log sigmoid(-z)``. The loss (eq. 10 and 11) needs only its entries at the positives, so the M x N matrices
are formed in chunks of rows, and again in the backward pass: nothing of that size is kept for any layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from raylg.batch import UNMATCHED, GroundTruth, LayerPrediction
from raylg.supervision.config import LossConfig

CHUNK_ROWS = 256
_PADDING = -1e9  # similarity of padding: no weight in any softmax, yet finite, so that a fully padded row has no NaN


@dataclass(frozen=True, kw_only=True)
class LossTerms:
    """Losses of every pair, float32 [B]; the likelihoods of the last layer are what validation watches."""

    total: Tensor
    """What training minimises: weighted mean of `nll` over layers plus the weighted confidence loss."""
    last: Tensor
    """Balanced negative log-likelihood of the last layer."""
    nll_pos: Tensor
    """Of the last layer, mean over the positives."""
    nll_neg: Tensor
    """Of the last layer, mean over the unmatched keypoints of both views."""
    confidence: Tensor
    """Binary cross-entropy of the token confidences, mean over the layers that have one."""


@dataclass(frozen=True, kw_only=True)
class _Targets:
    """Ground truth as masks, the same for every layer."""

    index: Tensor
    """int64 [B, M], the match in view 1, or 0 where there is none."""
    positive: Tensor
    """bool [B, M]."""
    unmatched0: Tensor
    """bool [B, M]."""
    unmatched1: Tensor
    """bool [B, N]."""
    mask0: Tensor
    """bool [B, M], False on padding."""
    mask1: Tensor
    """bool [B, N], False on padding."""


@dataclass(frozen=True, kw_only=True)
class _LayerTerms:
    """What the loss needs of one layer, small."""

    nll_pos: Tensor
    """[B]."""
    nll_neg: Tensor
    """[B]."""
    row_lse: Tensor
    """[B, M], detached."""
    column_lse: Tensor
    """[B, N], detached."""


def matching_loss(
    layers: Sequence[LayerPrediction], ground_truth: GroundTruth, config: LossConfig, mask0: Tensor, mask1: Tensor
) -> LossTerms:
    """Loss of a batch, in float32 even under autocast (float64 stays float64).

    Args:
        layers: predictions, first layer first; matches are taken from the last one.
        ground_truth: labels of the batch.
        config: weights.
        mask0: bool [B, M], False on padding, which counts in no sum, mean or softmax.
        mask1: bool [B, N].
    """
    assert layers, "a matcher has at least one layer"
    targets = _Targets(
        index=ground_truth.gt_matches0.clamp_min(0),
        positive=(ground_truth.gt_matches0 >= 0) & mask0,
        unmatched0=(ground_truth.gt_matches0 == UNMATCHED) & mask0,
        unmatched1=(ground_truth.gt_matches1 == UNMATCHED) & mask1,
        mask0=mask0,
        mask1=mask1,
    )
    with torch.autocast(mask0.device.type, enabled=False):
        layers = [_at_least_float32(layer) for layer in layers]
        terms = [_layer_terms(layer, targets) for layer in layers]
        balanced = [config.nll_balancing * t.nll_pos + (1 - config.nll_balancing) * t.nll_neg for t in terms]
        weights = [config.gamma ** (len(layers) - 1 - depth) for depth in range(len(layers))]
        nll = torch.stack([w * x for w, x in zip(weights, balanced, strict=True)]).sum(0) / sum(weights)
        confidence = _confidence_loss(layers, terms, targets) if len(layers) > 1 else torch.zeros_like(nll)
    return LossTerms(
        total=nll + config.confidence_weight * confidence,
        last=balanced[-1],
        nll_pos=terms[-1].nll_pos,
        nll_neg=terms[-1].nll_neg,
        confidence=confidence,
    )


def _at_least_float32(layer: LayerPrediction) -> LayerPrediction:
    def widen(x: Tensor) -> Tensor:
        return x.to(torch.promote_types(x.dtype, torch.float32))

    return LayerPrediction(
        projected0=widen(layer.projected0),
        projected1=widen(layer.projected1),
        matchability0=widen(layer.matchability0),
        matchability1=widen(layer.matchability1),
        confidence0=None if layer.confidence0 is None else widen(layer.confidence0),
        confidence1=None if layer.confidence1 is None else widen(layer.confidence1),
    )


def _layer_terms(layer: LayerPrediction, targets: _Targets) -> _LayerTerms:
    row_lse, column_lse, similarity = similarity_terms(
        layer.projected0, layer.projected1, targets.mask0, targets.mask1, targets.index
    )
    z0, z1 = layer.matchability0, layer.matchability1
    if z1.shape[1] > 0:
        log_p = 2 * similarity - row_lse - column_lse.gather(1, targets.index)
        log_p = log_p + F.logsigmoid(z0) + F.logsigmoid(z1).gather(1, targets.index)
        nll_pos = -_masked_sum(log_p, targets.positive) / _count(targets.positive)
    else:  # nothing to match; the zero keeps every parameter in the graph, as DistributedDataParallel demands
        nll_pos = similarity.sum(1) * 0
    unmatched = _masked_sum(F.logsigmoid(-z0), targets.unmatched0) + _masked_sum(F.logsigmoid(-z1), targets.unmatched1)
    nll_neg = -unmatched / (_count(targets.unmatched0) + _count(targets.unmatched1))
    return _LayerTerms(nll_pos=nll_pos, nll_neg=nll_neg, row_lse=row_lse.detach(), column_lse=column_lse.detach())


def _masked_sum(values: Tensor, mask: Tensor) -> Tensor:
    return torch.where(mask, values, 0).sum(1)


def _count(mask: Tensor) -> Tensor:
    return mask.sum(1).clamp_min(1)


def similarity_terms(
    projected0: Tensor, projected1: Tensor, mask0: Tensor, mask1: Tensor, index: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Parts of the double softmax over ``s = projected0 @ projected1.T``, differentiable, without keeping s.

    Args:
        projected0: [B, M, D].
        projected1: [B, N, D].
        mask0: bool [B, M], False on padding.
        mask1: bool [B, N].
        index: int64 [B, M], a column for every row.

    Returns:
        log-sum-exp of the rows [B, M], of the columns [B, N], and ``s[b, i, index[b, i]]`` [B, M]. Where every
        candidate is padding they are finite and mean nothing; with N = 0 the first and last are zero.
    """
    outputs: tuple[Tensor, Tensor, Tensor] = _SimilarityTerms.apply(  # type: ignore[no-untyped-call]
        projected0, projected1, mask0, mask1, index
    )
    return outputs


def _similarity(projected0: Tensor, projected1: Tensor, mask0: Tensor, mask1: Tensor) -> Tensor:
    """[B, M, N], `_PADDING` where a keypoint is padding."""
    similarity = projected0 @ projected1.transpose(1, 2)
    return similarity.masked_fill_(~(mask0[:, :, None] & mask1[:, None]), _PADDING)


class _SimilarityTerms(torch.autograd.Function):
    """Chunks of rows forward; the backward pass forms them again, as d lse / ds is the softmax ``exp(s - lse)``."""

    @staticmethod
    def forward(
        ctx: Any, projected0: Tensor, projected1: Tensor, mask0: Tensor, mask1: Tensor, index: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        row_lse = projected0.new_zeros(mask0.shape)
        positive = projected0.new_zeros(mask0.shape)
        column_lse = projected0.new_full(mask1.shape, _PADDING)
        for rows in _chunks(mask0, mask1):
            similarity = _similarity(projected0[:, rows], projected1, mask0[:, rows], mask1)
            row_lse[:, rows] = similarity.logsumexp(2)
            positive[:, rows] = similarity.gather(2, index[:, rows, None])[..., 0]
            column_lse = torch.logaddexp(column_lse, similarity.logsumexp(1))
        ctx.save_for_backward(projected0, projected1, mask0, mask1, index, row_lse, column_lse)
        return row_lse, column_lse, positive

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(
        ctx: Any, grad_row: Tensor, grad_column: Tensor, grad_positive: Tensor
    ) -> tuple[Tensor, Tensor, None, None, None]:
        projected0, projected1, mask0, mask1, index, row_lse, column_lse = ctx.saved_tensors
        grad0, grad1 = torch.zeros_like(projected0), torch.zeros_like(projected1)
        with torch.autocast(mask0.device.type, enabled=False):
            for rows in _chunks(mask0, mask1):
                similarity = _similarity(projected0[:, rows], projected1, mask0[:, rows], mask1)
                grad = (similarity - row_lse[:, rows, None]).exp_().mul_(grad_row[:, rows, None])
                grad += similarity.sub_(column_lse[:, None]).exp_().mul_(grad_column[:, None])
                grad.scatter_add_(2, index[:, rows, None], grad_positive[:, rows, None])
                grad0[:, rows] = grad @ projected1
                grad1 += grad.transpose(1, 2) @ projected0[:, rows]
        return grad0, grad1, None, None, None


def _chunks(mask0: Tensor, mask1: Tensor) -> list[slice]:
    """Slices of the rows; none where there is no column."""
    rows = mask0.shape[1] if mask1.shape[1] > 0 else 0
    return [slice(start, start + CHUNK_ROWS) for start in range(0, rows, CHUNK_ROWS)]


def _confidence_loss(layers: Sequence[LayerPrediction], terms: Sequence[_LayerTerms], targets: _Targets) -> Tensor:
    """How well each layer but the last foretells whether the last one will choose as it does (eq. 11)."""
    final0, final1 = _choices(layers[-1], terms[-1], targets)
    losses = []
    for layer, layer_terms in zip(layers[:-1], terms[:-1], strict=True):
        assert layer.confidence0 is not None and layer.confidence1 is not None, "only the last layer has none"
        choices0, choices1 = _choices(layer, layer_terms, targets)
        in0 = _mean_cross_entropy(layer.confidence0, choices0 == final0, targets.mask0)
        in1 = _mean_cross_entropy(layer.confidence1, choices1 == final1, targets.mask1)
        losses.append((in0 + in1) / 2)
    return torch.stack(losses).mean(0)


def _mean_cross_entropy(logits: Tensor, agrees: Tensor, mask: Tensor) -> Tensor:
    losses = F.binary_cross_entropy_with_logits(logits, agrees.to(logits.dtype), reduction="none")
    return _masked_sum(losses, mask) / _count(mask)


@torch.no_grad()
def _choices(layer: LayerPrediction, terms: _LayerTerms, targets: _Targets) -> tuple[Tensor, Tensor]:
    """Most likely candidate of every keypoint, int64 [B, M] in 0..N and [B, N] in 0..M; N and M are the dustbins."""
    num0, num1 = targets.mask0.shape[1], targets.mask1.shape[1]
    in0, in1 = F.logsigmoid(layer.matchability0) - terms.row_lse, F.logsigmoid(layer.matchability1) - terms.column_lse
    out0, out1 = F.logsigmoid(-layer.matchability0), F.logsigmoid(-layer.matchability1)
    choices0 = torch.full_like(targets.index, num1)
    choices1 = torch.full_like(out1, num0, dtype=torch.int64)
    best1 = torch.full_like(out1, -torch.inf)
    for rows in _chunks(targets.mask0, targets.mask1):
        similarity = _similarity(layer.projected0[:, rows], layer.projected1, targets.mask0[:, rows], targets.mask1)
        log_assignment = similarity.mul_(2).add_(in0[:, rows, None]).add_(in1[:, None])
        best0, index0 = log_assignment.max(2)
        choices0[:, rows] = torch.where(best0 >= out0[:, rows], index0, num1)
        best, index1 = log_assignment.max(1)
        choices1 = torch.where(best > best1, index1 + rows.start, choices1)
        best1 = torch.maximum(best, best1)
    return choices0, torch.where(best1 >= out1, choices1, num0)

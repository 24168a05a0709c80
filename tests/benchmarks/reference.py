"""Labels, LightGlue and its loss the plain way: every matrix between the keypoints of two views is formed and kept.

This is what benchmarks compare with, and the readable twin of `raylg.supervision`: the formulas of LightGlue
(Lindenberger et al., ICCV 2023) written down one after the other, for batches that fit. It is not more wasteful than
the reference implementation: self attention is fused, layers are not stacked into one tensor, and no assignment is
formed for the sake of a statistic.

Legend: B pairs, M/N keypoints in view 0/1, D width, L layers, H heads. Padding is masked as in raylg.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from raylg.batch import IGNORE, UNMATCHED, GroundTruth, PairBatch
from raylg.geometry.depth import warp
from raylg.geometry.epipolar import fundamental_matrix, symmetric_epipolar_distance
from raylg.geometry.homography import warp_points
from raylg.models.attention import CrossBlock, TransformerLayer, key_mask
from raylg.models.lightglue import LightGlue
from raylg.supervision.config import GroundTruthConfig, LossConfig

States = list[tuple[Tensor, Tensor]]
"""Descriptors [B, M, D] and [B, N, D] after each layer."""


@dataclass(frozen=True)
class DenseTruth:
    """Labels, and the matches as a matrix."""

    labels: GroundTruth
    assignment: Tensor
    """bool [B, M, N]."""


# Labels


@torch.no_grad()
def dense_ground_truth(batch: PairBatch, config: GroundTruthConfig) -> DenseTruth:
    """Labels of `raylg.supervision.ground_truth.ground_truth_matches`, from [B, M, N, 2] differences."""
    view0, view1 = batch.view0, batch.view1
    if batch.H_0to1 is not None:
        warped0 = warp_points(view0.keypoints, batch.H_0to1)
        warped1 = warp_points(view1.keypoints, torch.linalg.inv(batch.H_0to1))
        known0, known1 = view0.mask, view1.mask
        visible0, visible1 = known0, known1
    else:
        T_0to1 = batch.T_0to1
        warped0, inside0 = warp(
            view0.keypoints, view0.depth_keypoints, view0.camera, view1.camera, T_0to1, view1.image_size
        )
        warped1, inside1 = warp(
            view1.keypoints, view1.depth_keypoints, view1.camera, view0.camera, T_0to1.inv(), view0.image_size
        )
        known0, known1 = view0.mask & (view0.depth_keypoints > 0), view1.mask & (view1.depth_keypoints > 0)
        visible0, visible1 = known0 & inside0, known1 & inside1

    # Squared distances in image 1 and in image 0.
    d0 = (warped0[:, :, None] - view1.keypoints[:, None]).square().sum(-1)
    d1 = (view0.keypoints[:, :, None] - warped1[:, None]).square().sum(-1)
    both = torch.where(visible0[:, :, None] & visible1[:, None], torch.maximum(d0, d1), torch.inf)
    assignment = _mutual_nearest(both) & (both < config.th_positive**2)

    real = view0.mask[:, :, None] & view1.mask[:, None]
    far0 = known0 & (_least(torch.where(real, d0, torch.inf), 2) > config.th_negative**2)
    far1 = known1 & (_least(torch.where(real, d1, torch.inf), 1) > config.th_negative**2)
    gt0, gt1 = _as_labels(assignment, far0, far1)
    if batch.H_0to1 is None and config.th_epipolar is not None:
        matrix = fundamental_matrix(view0.camera, view1.camera, batch.T_0to1)
        distance = symmetric_epipolar_distance(view0.keypoints, view1.keypoints, matrix)
        undecided = real & (gt0 == IGNORE)[:, :, None] & (gt1 == IGNORE)[:, None]
        distance = torch.where(undecided, distance, torch.inf)
        alone0, alone1 = _least(distance, 2) > config.th_epipolar, _least(distance, 1) > config.th_epipolar
        gt0, gt1 = (
            gt.masked_fill((gt == IGNORE) & view.mask & ~known & alone, UNMATCHED)
            for gt, view, known, alone in ((gt0, view0, known0, alone0), (gt1, view1, known1, alone1))
        )
    return DenseTruth(GroundTruth(gt_matches0=gt0, gt_matches1=gt1), assignment)


def _least(distances: Tensor, dim: int) -> Tensor:
    """Smallest along a dimension; infinite where there is nothing."""
    if distances.shape[dim] == 0:
        return distances.new_full([n for d, n in enumerate(distances.shape) if d != dim], torch.inf)
    return distances.amin(dim)


def _mutual_nearest(distances: Tensor) -> Tensor:
    """Whether a pair [B, M, N] is the smallest of its row and of its column."""
    if distances.numel() == 0:
        return torch.zeros_like(distances, dtype=torch.bool)
    in_row, in_column = torch.zeros_like(distances, dtype=torch.bool), torch.zeros_like(distances, dtype=torch.bool)
    in_row.scatter_(2, distances.argmin(2, keepdim=True), True)
    in_column.scatter_(1, distances.argmin(1, keepdim=True), True)
    return in_row & in_column


def _as_labels(assignment: Tensor, far0: Tensor, far1: Tensor) -> tuple[Tensor, Tensor]:
    """Index of the match; where nothing is near `UNMATCHED`, even if there is a match; else `IGNORE`."""
    labels = []
    for matrix, far in ((assignment, far0), (assignment.transpose(1, 2), far1)):
        label = torch.full_like(far, IGNORE, dtype=torch.int64)
        if matrix.shape[2] > 0:
            label = torch.where(matrix.any(2), matrix.to(torch.uint8).argmax(2), label)
        labels.append(label.masked_fill(far, UNMATCHED))
    return labels[0], labels[1]


# Network


def dense_states(model: LightGlue, batch: PairBatch, *, checkpointed: bool = False) -> States:
    """Descriptors after each layer of `model`, with cross attention as one explicit matrix a head."""
    (x0, encoding0, mask0), (x1, encoding1, mask1) = model._encode(batch.view0), model._encode(batch.view1)
    sides = Side(encoding0, mask0), Side(encoding1, mask1)
    states: States = []
    for layer in model.transformers:
        if checkpointed:
            x0, x1 = checkpoint(_dense_layer, layer, x0, x1, sides, use_reentrant=False)
        else:
            x0, x1 = _dense_layer(layer, x0, x1, sides)
        states.append((x0, x1))
    return states


class Side(NamedTuple):
    """What stays the same through the layers."""

    encoding: Tensor
    """[2, B, 1, N, D/H]."""
    mask: Tensor
    """bool [B, N], False on padding."""

    @property
    def masked(self) -> bool:
        """Whether there is padding."""
        return not bool(self.mask.all())


def _dense_layer(layer: TransformerLayer, x0: Tensor, x1: Tensor, sides: tuple[Side, Side]) -> tuple[Tensor, Tensor]:
    x0, x1 = (layer.self_attn(x, side.encoding, key_mask(side.mask)) for x, side in zip((x0, x1), sides, strict=True))
    return _dense_cross(layer.cross_attn, x0, x1, sides)


def _dense_cross(block: CrossBlock, x0: Tensor, x1: Tensor, sides: tuple[Side, Side]) -> tuple[Tensor, Tensor]:
    """Both directions share one similarity [B, H, M, N] (paper, equation 4)."""
    qk0, qk1, v0, v1 = (
        linear(x).unflatten(-1, (block.num_heads, -1)).transpose(1, 2)
        for linear in (block.to_qk, block.to_v)
        for x in (x0, x1)
    )
    similarity = torch.einsum("bhid,bhjd->bhij", qk0, qk1) / qk0.shape[-1] ** 0.5
    to0 = _softmax(similarity, sides[1])
    to1 = _softmax(similarity.transpose(-2, -1).contiguous(), sides[0])
    message0 = torch.einsum("bhij,bhjd->bhid", to0, v1)
    message1 = torch.einsum("bhji,bhid->bhjd", to1, v0)
    return _update(block, x0, message0), _update(block, x1, message1)


def _softmax(similarity: Tensor, keys: Side) -> Tensor:
    """Over the real keypoints; zero where there is none."""
    if not keys.masked:
        return similarity.softmax(-1)
    allowed = keys.mask[:, None, None]
    return similarity.masked_fill(~allowed, -1e9).softmax(-1) * allowed


def _update(block: CrossBlock, x: Tensor, heads: Tensor) -> Tensor:
    message = block.to_out(heads.transpose(1, 2).flatten(-2))
    return x + block.ffn(torch.cat([x, message], dim=-1))


# Loss


def dense_loss(
    model: LightGlue, states: States, truth: DenseTruth, config: LossConfig, masks: tuple[Tensor, Tensor]
) -> Tensor:
    """Loss [B] of `raylg.supervision.assignment_loss.matching_loss`, from the log assignments of all layers.

    Args:
        model: its heads are used.
        states: descriptors after each layer.
        truth: labels.
        config: weights.
        masks: bool [B, M] and [B, N], False on padding.
    """
    pair = None if all(bool(mask.all()) for mask in masks) else masks[0][:, :, None] & masks[1][:, None]
    scores = [dense_log_assignment(model, layer, state, pair) for layer, state in enumerate(states)]
    positive = truth.assignment & (truth.labels.gt_matches0 >= 0)[:, :, None]
    unmatched0 = (truth.labels.gt_matches0 == UNMATCHED) & masks[0]
    unmatched1 = (truth.labels.gt_matches1 == UNMATCHED) & masks[1]
    target = F.pad(positive.float(), (0, 1, 0, 1))
    target[:, :-1, -1], target[:, -1, :-1] = unmatched0.float(), unmatched1.float()
    num_positive = positive.sum((1, 2)).clamp_min(1)
    num_unmatched = unmatched0.sum(1).clamp_min(1) + unmatched1.sum(1).clamp_min(1)
    balanced = []
    for log_assignment in scores:
        weighted = log_assignment * target
        nll_pos = -weighted[:, :-1, :-1].sum((1, 2)) / num_positive
        nll_neg = -(weighted[:, :-1, -1].sum(1) + weighted[:, -1, :-1].sum(1)) / num_unmatched
        balanced.append(config.nll_balancing * nll_pos + (1 - config.nll_balancing) * nll_neg)
    weights = [config.gamma ** (len(states) - 1 - depth) for depth in range(len(states))]
    total = sum(w * x for w, x in zip(weights, balanced, strict=True)) / sum(weights)
    assert isinstance(total, Tensor)
    return total + config.confidence_weight * _dense_confidence(model, states, scores, masks)


def dense_log_assignment(model: LightGlue, layer: int, state: tuple[Tensor, Tensor], pair: Tensor | None) -> Tensor:
    """Log assignment [B, M + 1, N + 1] with dustbins (paper, equations 6 to 8)."""
    (projected0, z0), (projected1, z1) = (model.log_assignment[layer](x) for x in state)
    similarity = torch.einsum("bmd,bnd->bmn", projected0, projected1)
    if pair is not None:
        similarity = similarity.masked_fill(~pair, -1e9)
    over1 = similarity.log_softmax(2)
    over0 = similarity.transpose(1, 2).contiguous().log_softmax(2).transpose(1, 2)
    result = similarity.new_zeros(len(z0), z0.shape[1] + 1, z1.shape[1] + 1)
    result[:, :-1, :-1] = over1 + over0 + F.logsigmoid(z0)[:, :, None] + F.logsigmoid(z1)[:, None]
    result[:, :-1, -1] = F.logsigmoid(-z0)
    result[:, -1, :-1] = F.logsigmoid(-z1)
    return result


def _dense_confidence(model: LightGlue, states: States, scores: list[Tensor], masks: tuple[Tensor, Tensor]) -> Tensor:
    """Mean over layers and views of the cross-entropy against "chooses as the last layer does", [B]."""
    chosen = [_choices(score) for score in scores]
    losses = []
    for layer, state in enumerate(states[:-1]):
        for side, x in enumerate(state):
            logits = model.token_confidence[layer](x)
            agrees = (chosen[layer][side] == chosen[-1][side]).float()
            loss = F.binary_cross_entropy_with_logits(logits, agrees, reduction="none") * masks[side]
            losses.append(loss.sum(1) / masks[side].sum(1).clamp_min(1))
    return torch.stack(losses).mean(0) if losses else scores[0].new_zeros(len(scores[0]))


@torch.no_grad()
def _choices(score: Tensor) -> tuple[Tensor, Tensor]:
    """Most likely candidate of each keypoint, dustbins included."""
    return score[:, :-1].argmax(2), score[:, :, :-1].argmax(1)


# Training


def dense_step(
    model: LightGlue, batch: PairBatch, configs: tuple[GroundTruthConfig, LossConfig], *, checkpointed: bool = False
) -> Tensor:
    """Loss [B] of a batch, labels included: what one step of training differentiates."""
    truth = dense_ground_truth(batch, configs[0])
    states = dense_states(model, batch, checkpointed=checkpointed)
    return dense_loss(model, states, truth, configs[1], (batch.view0.mask, batch.view1.mask))

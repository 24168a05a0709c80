"""Loss against a readable twin that forms every assignment matrix, pair by pair without padding."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from raylg.batch import IGNORE, UNMATCHED, GroundTruth, LayerPrediction
from raylg.supervision import assignment_loss as module
from raylg.supervision.assignment_loss import LossTerms, matching_loss, similarity_terms
from raylg.supervision.config import LossConfig

DIM = 8


def make_layers(
    num_layers: int, sizes: tuple[int, int, int], dtype: torch.dtype, seed: int = 0
) -> list[LayerPrediction]:
    """Random predictions; sizes are (B, M, N)."""
    generator = torch.Generator().manual_seed(seed)
    pairs, num0, num1 = sizes

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=dtype).requires_grad_()

    return [
        LayerPrediction(
            projected0=normal(pairs, num0, DIM),
            projected1=normal(pairs, num1, DIM),
            matchability0=normal(pairs, num0),
            matchability1=normal(pairs, num1),
            confidence0=None if layer == num_layers - 1 else normal(pairs, num0),
            confidence1=None if layer == num_layers - 1 else normal(pairs, num1),
        )
        for layer in range(num_layers)
    ]


def make_labels(lengths: list[tuple[int, int]], num0: int, num1: int) -> tuple[GroundTruth, Tensor, Tensor]:
    """One-to-one labels among the real keypoints, and both masks."""
    generator = torch.Generator().manual_seed(7)
    gt0, gt1 = torch.full((len(lengths), num0), IGNORE), torch.full((len(lengths), num1), IGNORE)
    mask0, mask1 = torch.zeros_like(gt0, dtype=torch.bool), torch.zeros_like(gt1, dtype=torch.bool)
    for b, (real0, real1) in enumerate(lengths):
        mask0[b, :real0], mask1[b, :real1] = True, True
        order0, order1 = torch.randperm(real0, generator=generator), torch.randperm(real1, generator=generator)
        matched = min(real0, real1) // 2
        gt0[b, order0[:matched]], gt1[b, order1[:matched]] = order1[:matched], order0[:matched]
        gt0[b, order0[matched : matched + 2]] = UNMATCHED
        gt1[b, order1[matched : matched + 3]] = UNMATCHED
    return GroundTruth(gt_matches0=gt0, gt_matches1=gt1), mask0, mask1


def log_assignment(layer: LayerPrediction, b: int, real0: int, real1: int) -> Tensor:
    """[M + 1, N + 1] of one pair."""
    s = layer.projected0[b, :real0] @ layer.projected1[b, :real1].T
    z0, z1 = layer.matchability0[b, :real0], layer.matchability1[b, :real1]
    inner = s.log_softmax(0) + s.log_softmax(1) + F.logsigmoid(z0)[:, None] + F.logsigmoid(z1)[None]
    top = torch.cat([inner, F.logsigmoid(-z0)[:, None]], dim=1)
    return torch.cat([top, torch.cat([F.logsigmoid(-z1), z1.new_zeros(1)])[None]])


def dense_loss(
    layers: list[LayerPrediction], labels: GroundTruth, config: LossConfig, lengths: list[tuple[int, int]]
) -> LossTerms:
    rows = []
    for b, (real0, real1) in enumerate(lengths):
        gt0, gt1 = labels.gt_matches0[b, :real0], labels.gt_matches1[b, :real1]
        matrices = [log_assignment(layer, b, real0, real1) for layer in layers]
        nlls = []
        for la in matrices:
            positive = [-la[i, j] for i, j in enumerate(gt0.tolist()) if j >= 0]
            negative0 = [-la[i, real1] for i, j in enumerate(gt0.tolist()) if j == UNMATCHED]
            negative1 = [-la[real0, j] for j, i in enumerate(gt1.tolist()) if i == UNMATCHED]
            nll_pos = sum(positive, la.new_zeros(())) / max(1, len(positive))
            count = max(1, len(negative0)) + max(1, len(negative1))
            nll_neg = sum(negative0 + negative1, la.new_zeros(())) / count
            nlls.append((config.nll_balancing * nll_pos + (1 - config.nll_balancing) * nll_neg, nll_pos, nll_neg))
        weights = [config.gamma ** (len(layers) - 1 - depth) for depth in range(len(layers))]
        total = sum(w * nll for w, (nll, _, _) in zip(weights, nlls, strict=True)) / sum(weights)
        confidence = total.new_zeros(())
        for layer, la in zip(layers[:-1], matrices[:-1], strict=True):
            agrees0 = (la[:-1].argmax(1) == matrices[-1][:-1].argmax(1)).to(la.dtype)
            agrees1 = (la[:, :-1].argmax(0) == matrices[-1][:, :-1].argmax(0)).to(la.dtype)
            in0 = F.binary_cross_entropy_with_logits(layer.confidence0[b, :real0], agrees0)
            in1 = F.binary_cross_entropy_with_logits(layer.confidence1[b, :real1], agrees1)
            confidence = confidence + (in0 + in1) / 2 / (len(layers) - 1)
        rows.append([total + config.confidence_weight * confidence, *nlls[-1], confidence])
    total, last, nll_pos, nll_neg, confidence = (torch.stack(column) for column in zip(*rows, strict=True))
    return LossTerms(total=total, last=last, nll_pos=nll_pos, nll_neg=nll_neg, confidence=confidence)


def leaves(layers: list[LayerPrediction]) -> list[Tensor]:
    return [value for layer in layers for value in vars(layer).values() if value is not None]


@pytest.mark.parametrize("chunk_rows", [5, 256])
@pytest.mark.parametrize(
    "config", [LossConfig(), LossConfig(nll_balancing=0.3, gamma=0.7, confidence_weight=2.0)], ids=["default", "other"]
)
def test_padded_batch_equals_the_dense_twin(
    monkeypatch: pytest.MonkeyPatch, chunk_rows: int, config: LossConfig
) -> None:
    monkeypatch.setattr(module, "CHUNK_ROWS", chunk_rows)
    lengths = [(13, 11), (6, 9), (1, 1)]
    labels, mask0, mask1 = make_labels(lengths, 14, 12)
    layers = make_layers(3, (3, 14, 12), torch.float64)
    ours = matching_loss(layers, labels, config, mask0, mask1)
    dense = dense_loss(layers, labels, config, lengths)
    for name, expected in vars(dense).items():
        torch.testing.assert_close(getattr(ours, name), expected, msg=name)
    gradients = torch.autograd.grad(ours.total.sum(), leaves(layers))
    expected_gradients = torch.autograd.grad(dense.total.sum(), leaves(layers))
    for gradient, expected in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(gradient, expected)


def test_gradient_of_the_recomputed_terms() -> None:
    generator = torch.Generator().manual_seed(1)
    x0 = torch.randn(2, 4, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    x1 = torch.randn(2, 5, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    mask0, mask1 = torch.ones(2, 4, dtype=torch.bool), torch.ones(2, 5, dtype=torch.bool)
    index = torch.randint(5, (2, 4), generator=generator)
    assert torch.autograd.gradcheck(lambda a, b: similarity_terms(a, b, mask0, mask1, index), (x0, x1))


def test_values_on_padding_have_no_influence() -> None:
    lengths = [(5, 4), (3, 6)]
    labels, mask0, mask1 = make_labels(lengths, 7, 6)
    layers = make_layers(2, (2, 7, 6), torch.float32)
    changed = [
        replace(
            layer,
            projected0=layer.projected0.detach().masked_fill(~mask0[..., None], 50.0),
            matchability0=layer.matchability0.detach().masked_fill(~mask0, -50.0),
            confidence0=None if layer.confidence0 is None else layer.confidence0.detach().masked_fill(~mask0, 9.0),
        )
        for layer in layers
    ]
    before = matching_loss(layers, labels, LossConfig(), mask0, mask1)
    after = matching_loss(changed, labels, LossConfig(), mask0, mask1)
    torch.testing.assert_close(after.total, before.total.detach(), rtol=1e-6, atol=1e-6)
    gradient = torch.autograd.grad(before.total.sum(), layers[0].projected0)[0]
    assert gradient[~mask0].abs().max() == 0
    assert gradient[mask0].abs().min() > 0


@pytest.mark.parametrize(("num0", "num1"), [(0, 4), (4, 0), (0, 0), (3, 4)])
def test_nothing_to_match_is_finite_and_reaches_every_input(num0: int, num1: int) -> None:
    """Empty views, and (3, 4): views of padding only."""
    layers = make_layers(2, (1, num0, num1), torch.float32)
    gt0, gt1 = torch.full((1, num0), IGNORE), torch.full((1, num1), IGNORE)
    mask0, mask1 = torch.zeros_like(gt0, dtype=torch.bool), torch.zeros_like(gt1, dtype=torch.bool)
    labels = GroundTruth(gt_matches0=gt0, gt_matches1=gt1)
    terms = matching_loss(layers, labels, LossConfig(), mask0, mask1)
    assert terms.total.tolist() == [0.0]
    gradients = torch.autograd.grad(terms.total.sum(), leaves(layers))  # raises where an input is not in the graph
    assert all((gradient == 0).all() for gradient in gradients)


def test_a_single_layer_has_no_confidence_loss() -> None:
    lengths = [(6, 6)]
    labels, mask0, mask1 = make_labels(lengths, 6, 6)
    terms = matching_loss(make_layers(1, (1, 6, 6), torch.float32), labels, LossConfig(), mask0, mask1)
    assert terms.confidence.tolist() == [0.0]
    assert torch.equal(terms.total, terms.last)


def test_half_precision_under_autocast_is_computed_in_float32() -> None:
    lengths = [(9, 8)]
    labels, mask0, mask1 = make_labels(lengths, 9, 8)
    half = [
        LayerPrediction(**{k: v if v is None else v.detach().bfloat16() for k, v in vars(layer).items()})
        for layer in make_layers(2, (1, 9, 8), torch.float32)
    ]
    single = [LayerPrediction(**{k: v if v is None else v.float() for k, v in vars(layer).items()}) for layer in half]
    expected = matching_loss(single, labels, LossConfig(), mask0, mask1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        terms = matching_loss(half, labels, LossConfig(), mask0, mask1)
    assert terms.total.dtype == torch.float32
    assert torch.equal(terms.total, expected.total)


def test_confidence_targets_move_no_descriptor() -> None:
    lengths = [(9, 8)]
    labels, mask0, mask1 = make_labels(lengths, 9, 8)
    layers = make_layers(2, (1, 9, 8), torch.float32)
    terms = matching_loss(layers, labels, LossConfig(), mask0, mask1)
    assert layers[0].confidence0 is not None
    into_head, into_descriptors = torch.autograd.grad(
        terms.confidence.sum(), [layers[0].confidence0, layers[0].projected0], allow_unused=True
    )
    assert into_head.abs().max() > 0
    assert into_descriptors is None


def test_choices_of_different_chunks_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """The only keypoint of view 1 chooses row 0 in the first layer and row 5 in the last: the first of two chunks."""
    monkeypatch.setattr(module, "CHUNK_ROWS", 5)
    layers = []
    for row, confidence in ((0, 3.0), (5, None)):
        projected0 = torch.full((1, 10, 1), -9.0)
        projected0[0, row] = 9.0
        layers.append(
            LayerPrediction(
                projected0=projected0,
                projected1=torch.ones(1, 1, 1),
                matchability0=torch.full((1, 10), 4.0),
                matchability1=torch.full((1, 1), 4.0),
                confidence0=None if confidence is None else torch.full((1, 10), confidence),
                confidence1=None if confidence is None else torch.full((1, 1), confidence),
            )
        )
    labels, mask0, mask1 = make_labels([(10, 1)], 10, 1)
    terms = matching_loss(layers, labels, LossConfig(), mask0, mask1)
    dense = dense_loss(layers, labels, LossConfig(), [(10, 1)])
    torch.testing.assert_close(terms.confidence, dense.confidence)
    # View 1 disagrees; in view 0 so do the two rows in question, if at all.
    assert terms.confidence.item() > F.softplus(torch.tensor(3.0)).item() / 2

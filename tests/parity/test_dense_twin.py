"""raylg's chunked labels, loss and attention against the plain formulas that benchmarks compare with."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import torch

from raylg.batch import IGNORE, UNMATCHED
from raylg.models.config import LightGlueConfig
from raylg.models.lightglue import LightGlue
from raylg.supervision.assignment_loss import matching_loss
from raylg.supervision.config import GroundTruthConfig, LossConfig
from raylg.supervision.ground_truth import ground_truth_matches
from tests.benchmarks.ground_truth import compare, scenes
from tests.benchmarks.reference import dense_ground_truth, dense_step
from tests.benchmarks.scenes import padded, random_pairs

DIM = 32
SMALL = LightGlueConfig(descriptor_dim=DIM, num_layers=3, num_heads=2)


def test_labels_of_a_thousand_random_scenes_are_identical() -> None:
    """Of any length, with padding, with all, some or no depth, under three sets of thresholds."""
    seen: Counter[int] = Counter()
    empty = 0
    for batch, config in scenes(1000, most=90):
        assert compare(batch, config)[1] == 0
        labels = ground_truth_matches(batch, config)
        seen.update(torch.cat([labels.gt_matches0, labels.gt_matches1], dim=1).clamp_max(0).flatten().tolist())
        empty += sum(int((~view.mask).all(1).sum()) for view in (batch.view0, batch.view1))
    assert seen.total() > 50_000 and min(seen[label] for label in (0, UNMATCHED, IGNORE)) > 2_000
    assert empty > 10


def test_labels_of_homographies_are_identical() -> None:
    for seed in range(20):
        rng = torch.Generator().manual_seed(seed)
        scale = torch.tensor([[0.1, 0.1, 20.0], [0.1, 0.1, 20.0], [1e-4, 1e-4, 0.0]])
        H = torch.eye(3) + scale * torch.randn(3, 3, 3, generator=rng)
        batch = replace(random_pairs(3, 70, 80, seed=seed), H_0to1=H)
        assert compare(batch, GroundTruthConfig(th_positive=20.0, th_negative=30.0)) == (450, 0)


@pytest.mark.parametrize(("num0", "num1"), [(0, 0), (0, 7), (7, 0)])
def test_labels_of_empty_views_are_identical(num0: int, num1: int) -> None:
    total, different = compare(random_pairs(2, num0, num1, seed=0), GroundTruthConfig())
    assert (total, different) == (2 * (num0 + num1), 0)


@pytest.mark.parametrize("config", [LossConfig(), LossConfig(nll_balancing=0.3, gamma=0.7, confidence_weight=2.0)])
@pytest.mark.parametrize("lengths", [([60, 60], [50, 50]), ([41, 60], [50, 7]), ([0, 3], [50, 0])])
def test_loss_and_gradients_of_the_whole_network(lengths: tuple[list[int], list[int]], config: LossConfig) -> None:
    """Without padding, with it, and with views that hold nothing else."""
    torch.manual_seed(0)
    model = LightGlue(SMALL, input_dim=DIM, add_scale_ori=False)
    batch = padded(random_pairs(2, 60, 50, seed=0, dim=DIM), *(torch.tensor(side) for side in lengths))
    masks = batch.view0.mask, batch.view1.mask
    labels = ground_truth_matches(batch, GroundTruthConfig())
    ours = matching_loss(model(batch.view0, batch.view1), labels, config, *masks).total
    dense = dense_step(model, batch, (GroundTruthConfig(), config))
    torch.testing.assert_close(ours, dense, rtol=1e-5, atol=1e-6)
    parameters = list(model.parameters())
    gradients, expected = (
        torch.cat([gradient.flatten() for gradient in torch.autograd.grad(loss.sum(), parameters)])
        for loss in (ours, dense)
    )
    assert float((gradients - expected).norm()) < 1e-5 * float(expected.norm().clamp_min(1e-9))


def test_recomputed_layers_give_the_same_gradients() -> None:
    """The plain formulas with activation checkpointing, which the table of training steps measures."""
    torch.manual_seed(0)
    model = LightGlue(SMALL, input_dim=DIM, add_scale_ori=False)
    batch = random_pairs(2, 30, 20, seed=0, dim=DIM)
    gradients = []
    for checkpointed in (False, True):
        model.zero_grad()
        dense_step(model, batch, (GroundTruthConfig(), LossConfig()), checkpointed=checkpointed).mean().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    torch.testing.assert_close(gradients[0], gradients[1])


def test_the_dense_assignment_agrees_with_its_labels() -> None:
    truth = dense_ground_truth(random_pairs(2, 60, 50, seed=0), GroundTruthConfig(th_negative=3.0))
    b, i = (truth.labels.gt_matches0 >= 0).nonzero().unbind(1)
    assert len(b) > 10 and truth.assignment[b, i, truth.labels.gt_matches0[b, i]].all()
    assert truth.assignment.sum(1).max() == truth.assignment.sum(2).max() == 1

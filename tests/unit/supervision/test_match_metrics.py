"""Recall, precision and average precision by hand and against a loop."""

from __future__ import annotations

import math

import pytest
import torch

from raylg.batch import IGNORE, UNMATCHED, GroundTruth, Matches
from raylg.supervision.match_metrics import match_metrics


def score(matches: list[int], labels: list[int], scores: list[float]) -> dict[str, float]:
    predicted = Matches(
        matches0=torch.tensor([matches], dtype=torch.int64),
        matches1=torch.zeros(1, 0, dtype=torch.int64),
        matching_scores0=torch.tensor([scores]),
        matching_scores1=torch.zeros(1, 0),
        num_layers_used=torch.ones(1, dtype=torch.int64),
    )
    truth = GroundTruth(
        gt_matches0=torch.tensor([labels], dtype=torch.int64), gt_matches1=torch.zeros(1, 0, dtype=torch.int64)
    )
    return {name: value.item() for name, value in match_metrics(predicted, truth).items()}


def test_by_hand() -> None:
    """Ranking: right, wrong, (ignored), right; one true match was not found."""
    metrics = score([4, 1, 7, 2, -1], [4, UNMATCHED, IGNORE, 2, 0], [0.9, 0.8, 0.7, 0.6, 0.5])
    assert metrics["match_recall"] == pytest.approx(2 / 3)
    assert metrics["match_precision"] == pytest.approx(2 / 3)
    # Gains of recall of 1/3 at a precision of 1 and of 2/3.
    assert metrics["average_precision"] == pytest.approx((1 + 2 / 3) / 3)


def test_average_precision_against_a_loop() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(-2, 6, (40,), generator=generator).tolist()
    guesses = torch.randint(-1, 6, (40,), generator=generator).tolist()
    matches = [y if k % 2 and y >= 0 else guess for k, (guess, y) in enumerate(zip(guesses, labels, strict=True))]
    scores = torch.rand(40, generator=generator).tolist()
    ranked = sorted(range(40), key=lambda k: -scores[k])
    found = right = 0
    expected = 0.0
    for k in ranked:
        if matches[k] >= 0 and labels[k] != IGNORE:
            found += 1
            if matches[k] == labels[k]:
                right += 1
                expected += right / found / sum(y >= 0 for y in labels)
    assert score(matches, labels, scores)["average_precision"] == pytest.approx(expected)


def test_a_perfect_ranking_scores_one_and_its_reverse_less() -> None:
    labels = [0, 1, UNMATCHED, UNMATCHED]
    assert score([0, 1, 2, 3], labels, [0.9, 0.8, 0.2, 0.1])["average_precision"] == 1.0
    assert score([0, 1, 2, 3], labels, [0.1, 0.2, 0.8, 0.9])["average_precision"] == pytest.approx((1 / 3 + 2 / 4) / 2)


@pytest.mark.parametrize("labels", [[], [IGNORE, UNMATCHED]])
def test_nothing_to_find(labels: list[int]) -> None:
    metrics = score([-1] * len(labels), labels, [0.0] * len(labels))
    assert metrics["match_precision"] == 0
    assert math.isnan(metrics["match_recall"])
    assert math.isnan(metrics["average_precision"])

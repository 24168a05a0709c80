"""What benchmarks conclude from: exact memory, the largest batch, the first time that a score is reached."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from tests.benchmarks.learning import first_at
from tests.benchmarks.memory import cost
from tests.benchmarks.train_step import largest_batch

MEGABYTES = 40


def hold_and_drop(megabytes: int) -> Callable[[], None]:
    """A call that holds memory for a moment, beside as much that is there before it."""
    before = torch.ones(megabytes, 1000, 1000, dtype=torch.uint8)

    def call() -> None:
        first = before.clone()
        second = first[: megabytes // 2].clone()
        del first, second
        before[:1].clone()

    return call


def test_memory_is_the_growth_of_the_peak() -> None:
    measured = cost(hold_and_drop, MEGABYTES, repeats=2)
    assert measured.megabytes == pytest.approx(1.5 * MEGABYTES, abs=1.5)
    assert 0 < measured.seconds < 1


@pytest.mark.parametrize(("limit", "found"), [(0, 0), (1, 1), (37, 36), (64, 64), (1000, 960), (10**9, 1 << 14)])
def test_largest_batch(limit: int, found: int) -> None:
    def attempt(size: int) -> None:
        if size > limit:
            raise torch.cuda.OutOfMemoryError

    assert largest_batch(attempt) == found


def test_first_pairs_that_reach_a_score() -> None:
    curve = {pairs: {"val/mean_auc": score} for pairs, score in ((256, 0.2), (0, 0.1), (512, 0.4), (768, 0.3))}
    assert first_at(curve, 0.4) == "after 512"
    assert first_at(curve, 0.15) == "after 256"
    assert first_at(curve, 0.5) == "never"

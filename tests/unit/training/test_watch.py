"""What counts as unstable."""

from __future__ import annotations

import json
import math
import random

import pytest

from raylg.errors import TrainingDiverged
from raylg.schema import override
from raylg.training.config import RunConfig
from raylg.training.watch import MIN_HISTORY, WINDOW, InstabilityWatch

BATCH_SIZE = 4


def feed(watch, losses, start=0):
    for i, loss in enumerate(losses):
        watch.see(loss, finite_loss=True, finite_gradients=True, pairs_seen=start + (i + 1) * BATCH_SIZE)


def noisy(count, middle=2.0, deviation=0.1, seed=0):
    generator = random.Random(seed)
    return [generator.gauss(middle, deviation) for _ in range(count)]


def test_losses_far_above_those_before_are_counted():
    watch = InstabilityWatch(RunConfig())
    feed(watch, [*noisy(WINDOW), 3.2, *noisy(10, seed=1), 50.0])
    assert watch.counts["loss_spikes"] == 2
    assert watch.counts["skipped_steps"] == 0


def test_noise_and_a_steep_start_are_no_spikes():
    watch = InstabilityWatch(RunConfig())
    feed(watch, [20 * math.exp(-i / 20) + x for i, x in enumerate(noisy(1000))])
    feed(watch, [2.0] * WINDOW + [2.01])
    assert watch.counts["loss_spikes"] == 0


def test_spikes_do_not_hide_later_ones():
    watch = InstabilityWatch(RunConfig())
    feed(watch, [9.0 if i % 4 == 3 and i > MIN_HISTORY else x for i, x in enumerate(noisy(200))])
    assert watch.counts["loss_spikes"] == sum(i % 4 == 3 and i > MIN_HISTORY for i in range(200))


def test_a_higher_level_is_no_spike_for_long():
    watch = InstabilityWatch(RunConfig())
    feed(watch, noisy(WINDOW))
    feed(watch, noisy(3 * WINDOW, middle=4.0, seed=1))
    assert WINDOW // 4 < watch.counts["loss_spikes"] < WINDOW


def test_few_losses_and_warm_up_are_not_judged():
    watch = InstabilityWatch(RunConfig())
    feed(watch, [*noisy(MIN_HISTORY - 1), 50.0])
    assert watch.counts["loss_spikes"] == 0
    warming = InstabilityWatch(override(RunConfig(), {"optim.warmup_pairs": 10**6}))
    feed(warming, [*noisy(WINDOW), 50.0])
    assert warming.counts["loss_spikes"] == 0


@pytest.mark.parametrize(
    ("precision", "finite_loss", "counter"),
    [
        ("float32", False, "nonfinite_losses"),
        ("bfloat16", True, "nonfinite_gradients"),
        ("float16", True, "float16_overflows"),
        ("float16", False, "nonfinite_losses"),
    ],
)
def test_steps_that_are_not_finite_are_counted_by_cause(precision, finite_loss, counter):
    watch = InstabilityWatch(override(RunConfig(), {"train.precision": precision}))
    feed(watch, noisy(WINDOW))
    watch.see(math.nan, finite_loss=finite_loss, finite_gradients=False, pairs_seen=1)
    expected = {counter, "skipped_steps"}
    assert {name for name, count in watch.counts.items() if count} == expected
    feed(watch, noisy(WINDOW))
    assert watch.counts["loss_spikes"] == 0  # the NaN is not among the losses of the past


def test_only_steps_in_a_row_are_divergence():
    watch = InstabilityWatch(override(RunConfig(), {"train.max_skipped_steps": 2}))
    for _ in range(3):
        for _ in range(2):
            watch.see(math.nan, finite_loss=False, finite_gradients=False, pairs_seen=8)
        feed(watch, [1.0])
    for _ in range(2):
        watch.see(math.nan, finite_loss=False, finite_gradients=False, pairs_seen=8)
    with pytest.raises(TrainingDiverged, match=r"3 steps in a row .* after 8 pairs with optim.lr = 0.0001; lower"):
        watch.see(math.nan, finite_loss=False, finite_gradients=False, pairs_seen=8)


def test_state_continues_exactly():
    losses = [*noisy(200), 3.0, *noisy(40, seed=2), 9.0]
    whole = InstabilityWatch(RunConfig())
    feed(whole, losses)
    for cut in (1, 100, 201):
        first, second = InstabilityWatch(RunConfig()), InstabilityWatch(RunConfig())
        feed(first, losses[:cut])
        first.see(math.nan, finite_loss=False, finite_gradients=False, pairs_seen=1)
        second.load_state_dict(json.loads(json.dumps(first.state_dict())))
        feed(second, losses[cut:])
        assert second.counts == whole.counts | {"skipped_steps": 1, "nonfinite_losses": 1}
        assert second.state_dict()["losses"] == whole.state_dict()["losses"]

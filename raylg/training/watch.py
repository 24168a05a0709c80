"""Watches a run for instability: steps that were not finite, and losses far above those before."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from statistics import median
from typing import Any

from raylg.errors import TrainingDiverged
from raylg.training.config import RunConfig

WINDOW = 128
"""Losses of the past that a new one is compared with."""
MIN_HISTORY = 32
"""Below this many, nothing is called a spike."""
SPIKE = 8.0
"""Robust standard deviations above the median that make a spike."""
SMALLEST_DEVIATION = 0.01
"""Least deviation, relative to the median, so that the ripple on a flat curve is no spike."""

_CONSISTENT = 1.4826  # MAD of a normal distribution to its standard deviation
COUNTERS = ("skipped_steps", "loss_spikes", "nonfinite_losses", "nonfinite_gradients", "float16_overflows")


class InstabilityWatch:
    """Counts, since the start of a run, what tells that training is unstable, and ends a run that has diverged.

    A step whose loss or gradients are not finite is skipped. It counts once more by its cause: the loss; the
    gradients alone; or, in float16, gradients that left the range of numbers, after which the scaler lowers the scale
    of the loss, which is how that scale is found.
    A spike is a finite loss more than `SPIKE` robust standard deviations (median and MAD, which spikes do not move)
    above the median of the last `WINDOW` losses. It is counted and not skipped. Losses fall steeply at the start, which
    only moves the median up, so early spikes may be missed but none is invented; warm-up of the learning rate is not
    judged at all.

    Attributes:
        counts: of each of the `COUNTERS`.
    """

    def __init__(self, config: RunConfig) -> None:
        self._config = config
        self.counts = dict.fromkeys(COUNTERS, 0)
        self._consecutive = 0
        self._losses: deque[float] = deque(maxlen=WINDOW)

    def see(self, loss: float, *, finite_loss: bool, finite_gradients: bool, pairs_seen: int) -> None:
        """Take in a step; the same on every rank.

        Args:
            loss: of the step.
            finite_loss: whether every term of the loss was finite, on every rank.
            finite_gradients: likewise.
            pairs_seen: with this step.

        Raises:
            TrainingDiverged: more than `train.max_skipped_steps` steps in a row were not finite.
        """
        if finite_loss and finite_gradients:
            self._consecutive = 0
            self.counts["loss_spikes"] += pairs_seen > self._config.optim.warmup_pairs and self._is_spike(loss)
            self._losses.append(loss)
            return
        in_float16 = self._config.train.precision == "float16"
        cause = "nonfinite_gradients" if not in_float16 else "float16_overflows"
        self.counts["nonfinite_losses" if not finite_loss else cause] += 1
        self.counts["skipped_steps"] += 1
        self._consecutive += 1
        allowed = self._config.train.max_skipped_steps
        if self._consecutive > allowed:
            raise TrainingDiverged(
                f"loss or gradients were not finite in {self._consecutive} steps in a row (train.max_skipped_steps = "
                f"{allowed}) after {pairs_seen} pairs with optim.lr = {self._config.optim.lr:g}; lower optim.lr, or "
                f"set optim.warmup_pairs or train.precision=float32 (now {self._config.train.precision})"
            )

    def _is_spike(self, loss: float) -> bool:
        if len(self._losses) < MIN_HISTORY:
            return False
        middle = median(self._losses)
        deviation = _CONSISTENT * median(abs(x - middle) for x in self._losses)
        return loss > middle + SPIKE * max(deviation, SMALLEST_DEVIATION * abs(middle))

    def state_dict(self) -> dict[str, Any]:
        """All state, for a checkpoint."""
        return {"counts": dict(self.counts), "consecutive": self._consecutive, "losses": list(self._losses)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` gave."""
        self.counts = dict(state["counts"])
        self._consecutive = state["consecutive"]
        self._losses = deque(state["losses"], maxlen=WINDOW)

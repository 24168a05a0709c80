"""Optimiser, learning-rate schedule, gradient clipping and weight averaging; every horizon is in training pairs."""

from __future__ import annotations

import copy
import math
from typing import Any, cast

import torch
from torch import Tensor, nn

from raylg.training.config import OptimConfig


def lr_factor(pairs: float, config: OptimConfig, num_pairs: int) -> float:
    """Learning rate after `pairs` training pairs, relative to its peak.

    The product of a linear warm-up and of a decay from 1 at `decay_start` to `final_lr_ratio` at `num_pairs`.

    Args:
        pairs: pairs seen. The trainer passes the middle of a batch, so that runs that differ only in batch size
            integrate the same schedule.
        config: shape of the schedule.
        num_pairs: training budget, at which the decay ends.
    """
    warmup = min(1.0, pairs / config.warmup_pairs) if config.warmup_pairs else 1.0
    start = config.decay_start * num_pairs
    if config.decay == "none" or pairs <= start:
        return warmup
    progress = min(1.0, (pairs - start) / (num_pairs - start)) if start < num_pairs else 1.0
    final = config.final_lr_ratio
    decay = {
        "cosine": final + (1 - final) * 0.5 * (1 + math.cos(math.pi * progress)),
        "linear": 1 - (1 - final) * progress,
        "exp": math.pow(final, progress),
    }[config.decay]
    return warmup * decay


def same_schedule(config: OptimConfig, pairs_seen: int, num_pairs: int, other_num_pairs: int) -> bool:
    """Whether two budgets gave the same learning rates over the first `pairs_seen` pairs."""
    if num_pairs == other_num_pairs or config.decay == "none":
        return True
    return pairs_seen <= config.decay_start * min(num_pairs, other_num_pairs)


def build_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    """Adam, or AdamW that decays matrices and leaves biases and norms alone; frozen parameters are left out."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    if config.name == "adam":
        return torch.optim.Adam(parameters, lr=config.lr)
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.lr)


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give every parameter group the learning rate `lr`."""
    for group in optimizer.param_groups:
        group["lr"] = lr


def clip_gradients(model: nn.Module, max_norm: float | None) -> Tensor:
    """Scale all gradients down to a joint L2 norm of `max_norm`; returns the norm before that (a scalar tensor)."""
    parameters = [p for p in model.parameters() if p.grad is not None]
    norm = torch.nn.utils.get_total_norm([cast(Tensor, p.grad) for p in parameters])
    if max_norm is not None:
        torch.nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)
    return norm


class WeightAverage:
    """Exponential moving average of the weights with the bias of its start removed, as Adam does for its moments.

    After n updates of b pairs each, the weights of update k count with exp(-(n - k) b / ema_pairs), normalised to 1:
    early averages are of the few updates made so far and never of the initialisation.

    Attributes:
        module: a copy of the model that holds the average, in eval mode.
    """

    def __init__(self, model: nn.Module, ema_pairs: float) -> None:
        assert ema_pairs > 0, ema_pairs
        self.module = copy.deepcopy(model).requires_grad_(False).eval()
        self._ema_pairs = ema_pairs
        self._weight = 0.0

    @torch.no_grad()
    def update(self, model: nn.Module, num_pairs: int) -> None:
        """Take in the weights after a step of `num_pairs` pairs."""
        decay = math.exp(-num_pairs / self._ema_pairs)
        self._weight = decay * self._weight + (1 - decay)
        share = (1 - decay) / self._weight
        for average, value in zip(self.module.parameters(), model.parameters(), strict=True):
            if value.requires_grad:  # what is frozen is equal already
                average.lerp_(value, share)

    def state_dict(self) -> dict[str, Any]:
        """All state, for a checkpoint."""
        return {"module": self.module.state_dict(), "weight": self._weight}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` gave."""
        self.module.load_state_dict(state["module"])
        self._weight = float(state["weight"])

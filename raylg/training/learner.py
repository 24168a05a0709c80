"""One optimiser step on a global batch: forward, loss, gradients over micro-batches and ranks, update.

The loss is the mean over the global batch of per-pair losses, however the batch is divided over ranks and
micro-batches, so gradients are the same to rounding.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from raylg.batch import PairBatch
from raylg.errors import TrainingDiverged
from raylg.models.lightglue import LightGlue
from raylg.supervision.assignment_loss import LossTerms, matching_loss
from raylg.supervision.ground_truth import ground_truth_matches
from raylg.training.checkpoint import build_matcher
from raylg.training.config import RunConfig
from raylg.training.distributed import World
from raylg.training.optim import WeightAverage, build_optimizer, clip_gradients, lr_factor, set_lr

TERMS = ("loss", "nll_pos", "nll_neg", "nll_last", "confidence")
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """One step, the same on every rank."""

    terms: Mapping[str, float]
    """Means over the global batch of the `TERMS`."""
    grad_norm: float
    """Before clipping."""
    lr: float
    skipped: bool
    """Loss or gradients were not finite, so that no weight changed."""


class Learner:
    """Model, optimiser and what belongs to them.

    Seeds torch's global generator, so that all ranks start alike and a run is a function of its configuration.

    Attributes:
        model: the matcher that is trained, without any wrapper.
        skipped_steps: steps skipped since the start of the run.
    """

    def __init__(self, config: RunConfig, world: World) -> None:
        torch.manual_seed(config.seed)
        self._config, self._world = config, world
        self.model = build_matcher(config).to(world.device).train()
        if config.loss.confidence_weight == 0:  # no gradient would reach them, and DDP waits for every gradient
            self.model.token_confidence.requires_grad_(False)
        self._network = _distribute(self.model, world)
        self._optimizer = build_optimizer(self.model, config.optim)
        self._scaler = torch.amp.GradScaler(world.device.type, enabled=config.train.precision == "float16")
        self._average = WeightAverage(self.model, config.optim.ema_pairs) if config.optim.ema_pairs else None
        self.skipped_steps = 0
        self._consecutive = 0

    @property
    def validated(self) -> LightGlue:
        """The matcher to validate and export: the average where it is on, else the model; never the DDP wrapper."""
        if self._average is None:
            return self.model
        assert isinstance(self._average.module, LightGlue)
        return self._average.module

    def step(self, batch: PairBatch, pairs_seen: int) -> StepResult:
        """Take one step.

        Args:
            batch: this rank's share of the global batch, on the device.
            pairs_seen: pairs before this batch.

        Raises:
            TrainingDiverged: more than `max_skipped_steps` steps in a row were not finite; on every rank.
        """
        config, batch_size = self._config, self._config.data.batch_size
        lr = config.optim.lr * lr_factor(pairs_seen + batch_size / 2, config.optim, config.train.num_pairs)
        set_lr(self._optimizer, lr)
        sums = self._accumulate(batch)
        self._scaler.unscale_(self._optimizer)
        norm = clip_gradients(self.model, config.optim.clip_grad_norm)
        # One reduction serves the metrics and the vote: what is not finite on one rank is so in the sum on all.
        # 0 * inf = NaN: a gradient that is not finite on this rank joins the vote without changing the sums.
        sums = self._world.sum(sums + 0 * norm.double())
        finite = bool(torch.isfinite(sums).all())
        if finite:
            self._scaler.step(self._optimizer)
            if self._average is not None:
                self._average.update(self.model, batch_size)
        self._scaler.update()
        self._optimizer.zero_grad(set_to_none=True)
        self._count(finite, lr, pairs_seen + batch_size)
        means = (sums / batch_size).tolist()
        terms = dict(zip(TERMS, means, strict=True))
        return StepResult(terms=terms, grad_norm=float(norm), lr=lr, skipped=not finite)

    def _accumulate(self, batch: PairBatch) -> Tensor:
        """Gradients of the mean loss over the global batch; returns float64 sums of `TERMS` over this rank's pairs."""
        share = len(batch)
        micro_batch_size = self._config.train.micro_batch_size or share
        sums = torch.zeros(len(TERMS), dtype=torch.float64, device=self._world.device)
        for start in range(0, share, micro_batch_size):
            is_last = start + micro_batch_size >= share
            with nullcontext() if is_last else self._without_reduction():
                terms = self._terms(batch[start : start + micro_batch_size])
                # DDP averages over ranks, and all ranks have equal shares: pairs weigh 1 / batch_size in the end.
                self._scaler.scale(terms.total.sum() / share).backward()
            values = (terms.total, terms.nll_pos, terms.nll_neg, terms.last, terms.confidence)
            sums += torch.stack([value.detach().double().sum() for value in values])
        return sums

    def _terms(self, batch: PairBatch) -> LossTerms:
        precision = self._config.train.precision
        with torch.autocast(self._world.device.type, PRECISIONS[precision], enabled=precision != "float32"):
            layers = self._network(batch.view0, batch.view1)
        ground_truth = ground_truth_matches(batch, self._config.ground_truth)
        return matching_loss(layers, ground_truth, self._config.loss, batch.view0.mask, batch.view1.mask)

    def _without_reduction(self) -> Any:
        network = self._network
        return network.no_sync() if isinstance(network, DistributedDataParallel) else nullcontext()

    def _count(self, finite: bool, lr: float, pairs_seen: int) -> None:
        self.skipped_steps += not finite
        self._consecutive = 0 if finite else self._consecutive + 1
        allowed = self._config.train.max_skipped_steps
        if self._consecutive > allowed:
            raise TrainingDiverged(
                f"loss or gradients were not finite in {self._consecutive} steps in a row (train.max_skipped_steps = "
                f"{allowed}) after {pairs_seen} pairs at learning rate {lr:g}; lower optim.lr, or set "
                f"optim.warmup_pairs or train.precision=float32 (now {self._config.train.precision})"
            )

    def state_dict(self) -> dict[str, Any]:
        """All state, for a checkpoint; the same on every rank."""
        device = self._world.device
        return {
            "model": self.model.state_dict(),
            "average": None if self._average is None else self._average.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "scaler": self._scaler.state_dict(),
            "skipped_steps": self.skipped_steps,
            "consecutive_skipped_steps": self._consecutive,
            "rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` gave."""
        self.model.load_state_dict(state["model"])
        if self._average is not None:
            self._average.load_state_dict(state["average"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._scaler.load_state_dict(state["scaler"])
        self.skipped_steps = state["skipped_steps"]
        self._consecutive = state["consecutive_skipped_steps"]
        torch.set_rng_state(state["rng"])
        if state["cuda_rng"] is not None and self._world.device.type == "cuda":
            torch.cuda.set_rng_state(state["cuda_rng"], self._world.device)


def _distribute(model: LightGlue, world: World) -> torch.nn.Module:
    if world.size == 1:
        return model
    devices = [world.device] if world.device.type == "cuda" else None
    # Ranks validate the bare model, so a broadcast of buffers in forward would wait for calls that never come.
    return DistributedDataParallel(model, device_ids=devices, broadcast_buffers=False, gradient_as_bucket_view=True)

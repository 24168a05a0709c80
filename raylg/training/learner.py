"""One optimiser step on a global batch: forward, loss, gradients over micro-batches and ranks, update.

The loss is the mean over the global batch of per-pair losses, however the batch is divided over ranks and
micro-batches, so gradients are the same to rounding.

Ranks reduce gradients once per step, when all are computed, and not during the backward pass as
DistributedDataParallel does: a rank that ran out of memory must be able to say so while no other waits for a gradient
of it. Then all ranks halve their micro-batches and compute the step again.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from raylg.batch import PairBatch
from raylg.errors import OutOfMemory
from raylg.models.lightglue import LightGlue
from raylg.supervision.assignment_loss import LossTerms, matching_loss
from raylg.supervision.ground_truth import ground_truth_matches
from raylg.training.checkpoint import build_matcher
from raylg.training.compilation import compile_for_training
from raylg.training.config import RunConfig
from raylg.training.distributed import World
from raylg.training.micro_batch import find_micro_batch_size, no_room, parts, synthetic_batch
from raylg.training.optim import WeightAverage, build_optimizer, clip_gradients, lr_factor, set_lr
from raylg.training.profile import Phases
from raylg.training.watch import InstabilityWatch

logger = logging.getLogger(__name__)

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
        model: the matcher that is trained.
        micro_batch_size: pairs per forward pass.
        phase: the phases of a step, for profiles.
    """

    def __init__(self, config: RunConfig, world: World, *, resumes: bool = False) -> None:
        """Build all parts and find the size of micro-batches.

        Args:
            config: of the run.
            world: this process among the workers.
            resumes: `load_state_dict` comes next, see `build_matcher`.

        Raises:
            OutOfMemory: see `find_micro_batch_size`.
            EnvironmentUnfitError: see `compile_for_training`.
        """
        torch.manual_seed(config.seed)
        self._config, self._world = config, world
        self.model = build_matcher(config, resumes=resumes).to(world.device).train()
        _freeze(self.model, config)
        self._optimizer = build_optimizer(self.model, config.optim)
        self._scaler = torch.amp.GradScaler(world.device.type, enabled=config.train.precision == "float16")
        self._average = WeightAverage(self.model, config.optim.ema_pairs) if config.optim.ema_pairs else None
        self._watch = InstabilityWatch(config)
        self.phase = Phases(world.device)
        probe = _Probe(self)
        self.micro_batch_size = find_micro_batch_size(config, world, probe)
        if config.train.compile:
            compile_for_training(self.model, probe.step)

    @property
    def validated(self) -> LightGlue:
        """The matcher to validate and export: the average where it is on, else the model."""
        if self._average is None:
            return self.model
        assert isinstance(self._average.module, LightGlue)
        return self._average.module

    @property
    def skipped_steps(self) -> int:
        """Steps skipped since the start of the run."""
        return self._watch.counts["skipped_steps"]

    def metrics(self) -> dict[str, float]:
        """What tells of instability, counted since the start of the run, and the size of micro-batches."""
        return {name: float(count) for name, count in self._watch.counts.items()} | {
            "micro_batch_size": float(self.micro_batch_size)
        }

    def step(self, batch: PairBatch, pairs_seen: int) -> StepResult:
        """Take one step.

        Args:
            batch: this rank's share of the global batch, on the device.
            pairs_seen: pairs before this batch.

        Raises:
            TrainingDiverged: more than `max_skipped_steps` steps in a row were not finite; on every rank.
            OutOfMemory: not even a single pair fits; on every rank.
        """
        config, batch_size = self._config, self._config.data.batch_size
        lr = config.optim.lr * lr_factor(pairs_seen + batch_size / 2, config.optim, config.train.num_pairs)
        set_lr(self._optimizer, lr)
        sums = self._backward(batch)
        with self.phase("optimiser"):
            self._scaler.unscale_(self._optimizer)
            gradients = clip_gradients(self.model, config.optim.clip_grad_norm)
            *means, norm = torch.cat([sums / batch_size, gradients.double()[None]]).tolist()
            finite_loss, finite_gradients = all(map(math.isfinite, means)), math.isfinite(norm)
            finite = finite_loss and finite_gradients  # the same on every rank, as both were reduced before
            if finite:
                self._scaler.step(self._optimizer)
                if self._average is not None:
                    self._average.update(self.model, batch_size)
            self._scaler.update()
            self._optimizer.zero_grad(set_to_none=True)
        self._watch.see(
            means[0],
            finite_loss=finite_loss,
            finite_gradients=finite_gradients,
            pairs_seen=pairs_seen + batch_size,
        )
        terms = dict(zip(TERMS, means, strict=True))
        return StepResult(terms=terms, grad_norm=norm, lr=lr, skipped=not finite)

    def _backward(self, batch: PairBatch) -> Tensor:
        """Gradients of the mean loss over the global batch; returns float64 sums of `TERMS` over its pairs."""
        while True:
            # The last entry counts the ranks whose memory ran out.
            sums = torch.zeros(len(TERMS) + 1, dtype=torch.float64, device=self._world.device)
            fits = self._accumulate(batch, sums[:-1])
            sums[-1] = not fits
            if self._world.size > 1:
                with self.phase("backward"):
                    self._reduce_gradients()
                sums = self._world.sum(sums)
                fits = not bool(sums[-1])
            if fits:
                return sums[:-1]
            self._halve()

    def _halve(self) -> None:
        """Make micro-batches smaller after at least one rank ran out of memory; nothing was applied yet.

        Raises:
            OutOfMemory: they have a single pair already.
        """
        self._optimizer.zero_grad(set_to_none=True)
        share = self._config.data.batch_size // self._world.size
        largest = parts(share, self.micro_batch_size)[0].stop
        if largest == 1:
            raise OutOfMemory(no_room(self._config, str(self._world.device)))
        self.micro_batch_size = -(-largest // 2)
        if self._world.is_main:
            logger.warning("out of memory with micro-batches of %d pairs: %d now", largest, self.micro_batch_size)

    def _accumulate(self, batch: PairBatch, sums: Tensor) -> bool:
        """Add up this rank's gradients, and `TERMS` in `sums`, float64; False where memory ran out."""
        try:
            for rows in parts(len(batch), self.micro_batch_size):
                terms = self._terms(batch[rows])
                with self.phase("backward"):
                    self._scaler.scale(terms.total.sum() / len(batch)).backward()
                values = (terms.total, terms.nll_pos, terms.nll_neg, terms.last, terms.confidence)
                sums += torch.stack([value.detach().double().sum() for value in values])
        except torch.OutOfMemoryError:
            return False
        return True

    def _reduce_gradients(self) -> None:
        """Mean over ranks, whose shares are equal; a rank that has no gradients takes part with zeros."""
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        flat = self._world.sum(torch.cat([gradient.flatten() for gradient in gradients])) / self._world.size
        for parameter, mean in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
            parameter.grad = mean.view_as(parameter)

    def _terms(self, batch: PairBatch) -> LossTerms:
        precision = self._config.train.precision
        with (
            self.phase("forward"),
            torch.autocast(self._world.device.type, PRECISIONS[precision], enabled=precision != "float32"),
        ):
            layers = self.model(batch.view0, batch.view1)
        with self.phase("ground truth"):
            ground_truth = ground_truth_matches(batch, self._config.ground_truth)
        with self.phase("loss"):
            return matching_loss(layers, ground_truth, self._config.loss, batch.view0.mask, batch.view1.mask)

    def state_dict(self) -> dict[str, Any]:
        """All state, for a checkpoint; the same on every rank."""
        device = self._world.device
        return {
            "model": self.model.state_dict(),
            "average": None if self._average is None else self._average.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "scaler": self._scaler.state_dict(),
            "watch": self._watch.state_dict(),
            "micro_batch_size": self.micro_batch_size,
            "rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` gave.

        On CPU the size of micro-batches is kept where the present memory allows it, because a resumed run is to be the
        uninterrupted one bit for bit.
        """
        self.model.load_state_dict(state["model"])
        if self._average is not None:
            self._average.load_state_dict(state["average"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._scaler.load_state_dict(state["scaler"])
        self._watch.load_state_dict(state["watch"])
        if self._config.train.micro_batch_size is None and self._world.device.type == "cpu":
            self.micro_batch_size = min(self.micro_batch_size, state["micro_batch_size"])
        torch.set_rng_state(state["rng"])
        if state["cuda_rng"] is not None and self._world.device.type == "cuda":
            torch.cuda.set_rng_state(state["cuda_rng"], self._world.device)


class _Probe:
    """Tries a learner's work; see `raylg.training.micro_batch.Probe`."""

    def __init__(self, learner: Learner) -> None:
        self._learner = learner
        self.held = sum(moment.nbytes for moment in self._moments())

    def step(self, num_pairs: int) -> None:
        """See `Probe.step`."""
        learner = self._learner
        config, device = learner._config, learner._world.device
        moments = self._moments()
        try:
            learner._terms(synthetic_batch(config, num_pairs, config.data.num_keypoints, device)).total.sum().backward()
        finally:
            learner._optimizer.zero_grad(set_to_none=True)
            del moments

    def evaluate(self) -> None:
        """See `Probe.evaluate`."""
        matcher, options = self._learner.validated, self._learner._config.evaluation
        moments = self._moments()
        device = self._learner._world.device
        batch = synthetic_batch(self._learner._config, options.batch_size, options.num_keypoints, device)
        was_training = matcher.training
        matcher.eval()
        try:
            matcher.match(batch.view0, batch.view1)
        finally:
            matcher.train(was_training)
            del moments

    def _moments(self) -> list[Tensor]:
        """What Adam will keep from its first step on."""
        return [torch.empty_like(p) for p in self._learner.model.parameters() if p.requires_grad for _ in range(2)]


def _freeze(model: LightGlue, config: RunConfig) -> None:
    """Leave alone what this run does not train: autograd then keeps nothing for it, the optimiser neither."""
    if config.train.stage == "confidence":
        model.requires_grad_(False)
    # Without weight no gradient would reach the confidences.
    model.token_confidence.requires_grad_(config.loss.confidence_weight > 0)

"""The training loop: batches in, reports out; plain PyTorch that knows nothing of who started it.

Time is counted in pairs seen. Each time `train.report_every` more pairs were seen, at the next step boundary, and at
the end, the run validates, writes a checkpoint and reports, on every rank. A run continued from a checkpoint is, on
CPU and bit for bit, the run that was never interrupted.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import torch

from raylg.data.stream import stream_batches
from raylg.errors import CheckpointError, OutOfMemory
from raylg.evaluation.benchmarks import check_pixels
from raylg.evaluation.pair_scores import PairScores
from raylg.training import checkpoint as checkpoints
from raylg.training.benchmarks import benchmark_protocol, open_benchmark
from raylg.training.checkpoint import build_matcher
from raylg.training.config import RunConfig
from raylg.training.distributed import World
from raylg.training.features import open_split
from raylg.training.learner import TERMS, Learner, StepResult
from raylg.training.reporter import Reporter, RunDirectoryReporter
from raylg.training.validation import figures, score_benchmark, validate

__all__ = ["TIMES", "Trainer", "World", "build_matcher"]

BEST_METRIC = "val/mean_auc"
PAIRS_FILE = "pairs.npz"
TIMES = ("time_train_s", "time_validate_s", "time_to_first_step_s", "pairs_per_second", "data_wait")
"""Metrics that differ when the same run is repeated; all others are reproduced."""


class Trainer:
    """One training run.

    Args:
        config: everything that decides the result.
        world: this process among the workers of the run.
        reporter: told of every report, on every rank.
        workdir: run directory: checkpoints, ``metrics.jsonl``, TensorBoard events and the scores of single pairs at
            the last report, ``pairs.npz`` of the validation and ``pairs-<name>.npz`` of each benchmark. Only rank 0
            writes.
    """

    def __init__(self, config: RunConfig, world: World, reporter: Reporter, workdir: Path) -> None:
        self._config, self._world, self._reporter, self._workdir = config, world, reporter, workdir

    def fit(self, resume_from: Path | None = None) -> dict[str, float]:
        """Train until `train.num_pairs` pairs were seen and return the metrics of the last report.

        Args:
            resume_from: checkpoint to continue, readable on every rank; None starts anew. A finished run returns its
                metrics at once.

        Raises:
            TrainingDiverged: see `Learner.step`.
            OutOfMemory: a batch does not fit the GPU.
            CheckpointError: `resume_from` belongs to a run with another result.
            ShardError: the data cannot be read.
        """
        try:
            run = _Run(self._config, self._world, self._reporter, self._workdir)
            return run.train(resume_from)
        except torch.cuda.OutOfMemoryError as error:
            config = self._config
            share = config.data.batch_size // self._world.size
            micro = min(share, config.train.micro_batch_size or share)
            raise OutOfMemory(
                f"{self._world.device} has not enough memory for micro-batches of {micro} pairs (data.batch_size = "
                f"{config.data.batch_size} over {self._world.size} workers) with {config.data.num_keypoints} keypoints "
                f"an image: set train.micro_batch_size={max(1, micro // 2)} or train.checkpointed=true, neither of "
                "which changes the result"
            ) from error


class _Run:
    """State of `Trainer.fit`."""

    def __init__(self, config: RunConfig, world: World, reporter: Reporter, workdir: Path) -> None:
        self.started = time.monotonic()
        self.config, self.world, self.reporter, self.workdir = config, world, reporter, workdir
        if world.device.type == "cuda" and world.device.index is not None:  # plain "cuda" is the current device already
            torch.cuda.set_device(world.device)
        self.training_pairs = open_split(config, "train", str(world.device))
        self.validation_pairs = open_split(config, "val", str(world.device))
        check_pixels(self.validation_pairs, config.evaluation)
        self.benchmarks = {name: open_benchmark(config, name) for name in config.evaluation.benchmarks}
        self.learner = Learner(config, world)
        self.pairs_seen = 0
        self.metrics: dict[str, float] = {}
        self.best: dict[str, Any] = {"score": -1.0, "name": ""}
        self.time_train_s = 0.0
        self.time_to_first_step_s = 0.0
        self.since_curve, self.since_report = _Window(), _Window()
        self.record: RunDirectoryReporter | None = None

    def train(self, resume_from: Path | None) -> dict[str, float]:
        """See `Trainer.fit`."""
        if resume_from is not None:
            self.restore(resume_from)
        if self.world.is_main:
            self.record = RunDirectoryReporter(self.workdir, self.config, resume_from)
            # Later checkpoints are of a past that this run replaces; `latest` must not find them.
            current = () if resume_from is None else (resume_from.name, self.best["name"])
            checkpoints.prune(self.workdir, keep=current)
        try:
            self.loop()
        finally:
            if self.record is not None:
                self.record.close(self.metrics or None)
        return self.metrics

    def loop(self) -> None:
        """Take steps until the budget is spent."""
        config, world = self.config, self.world
        start = time.monotonic()
        stream = stream_batches(
            self.training_pairs, config.data, config.seed, world.rank, world.size, start_pairs=self.pairs_seen
        )
        with closing(stream):
            while self.pairs_seen < config.train.num_pairs:
                batch = next(stream)
                waited = time.monotonic() - start
                result = self.learner.step(batch.to(world.device, non_blocking=True), self.pairs_seen)
                before, self.pairs_seen = self.pairs_seen, self.pairs_seen + config.data.batch_size
                now = time.monotonic()
                self.time_to_first_step_s = self.time_to_first_step_s or now - self.started
                for window in (self.since_curve, self.since_report):
                    window.add(result, config.data.batch_size, now - start, waited)
                self.time_train_s += now - start
                reports = crosses(before, self.pairs_seen, config.train.report_every)
                reports = reports or self.pairs_seen >= config.train.num_pairs
                if reports or crosses(before, self.pairs_seen, config.train.log_every):
                    self.draw_curves()
                if reports:
                    self.report()
                start = time.monotonic()

    def draw_curves(self) -> None:
        """Write the means since the last call to TensorBoard."""
        if self.record is not None:
            self.record.curves(self.since_curve.means(), self.pairs_seen)
        self.since_curve = _Window()

    def report(self) -> None:
        """Validate, score benchmarks, write a checkpoint, report on every rank, delete older checkpoints."""
        start = time.monotonic()
        scores, validated = validate(self.learner.validated, self.validation_pairs, self.config, self.world)
        files = {PAIRS_FILE: scores}
        for name, pairs in self.benchmarks.items():
            protocol = benchmark_protocol(self.config, name)
            scored = score_benchmark(self.learner.validated, pairs, protocol, self.world)
            validated |= scored.metrics(name)
            files[f"pairs-{name}.npz"] = scored
        metrics = {
            "pairs_seen": float(self.pairs_seen),
            "epoch": self.pairs_seen / self.training_pairs.num_pairs,
            **self.since_report.means(),
            **validated,
            "skipped_steps": float(self.learner.skipped_steps),
            "time_train_s": self.time_train_s,
            "time_validate_s": time.monotonic() - start,
            "time_to_first_step_s": self.time_to_first_step_s,
            **self.since_report.speed(),
        }
        self.since_report = _Window()
        self.metrics = self.world.gather(metrics)[0]  # clocks differ between ranks
        checkpoint = self.write(files)
        if checkpoint is not None:
            checkpoints.prune(self.workdir, keep=(checkpoint.name, self.best["name"]))
        self.reporter.report(self.metrics, checkpoint)  # last: a search may end the run here

    def write(self, scores: Mapping[str, PairScores]) -> Path | None:
        """Write checkpoint and records on rank 0; the directory of the checkpoint there, None elsewhere.

        Args:
            scores: file name to scores; those of the validation pairs are `PAIRS_FILE`.
        """
        name = checkpoints.name(self.pairs_seen)
        if self.metrics[BEST_METRIC] > self.best["score"]:
            self.best = {"score": self.metrics[BEST_METRIC], "name": name}
        if self.record is None:
            return None
        state = {
            "pairs_seen": self.pairs_seen,
            "metrics": self.metrics,
            "best": self.best,
            "time_train_s": self.time_train_s,
            "data_hash": self.training_pairs.data_hash,
            "learner": self.learner.state_dict(),
        }
        for file, pairs in scores.items():  # before the checkpoint, which says that all before it is done
            pairs.save(self.workdir / file)
        checkpoint = checkpoints.save(self.workdir, state, self.learner.validated, self.config)
        self.record.report(self.metrics, checkpoint)
        validated = scores[PAIRS_FILE]
        pictures = figures(
            self.learner.validated, self.validation_pairs, self.config, scores=validated, device=self.world.device
        )
        for title, image in pictures:
            self.record.figure(f"val/{title}", image, self.pairs_seen)
        return checkpoint

    def restore(self, path: Path) -> None:
        """Take over all state of a checkpoint.

        Raises:
            CheckpointError: it belongs to a run with another result.
        """
        state = checkpoints.load(path, self.config)
        now = self.training_pairs.data_hash
        if state["data_hash"] != now:
            raise CheckpointError(
                f"{path}: the run was trained on data with hash {state['data_hash']}, these have {now}; give the "
                f"same feature shards again, or start from its weights with train.init_from={path}"
            )
        self.learner.load_state_dict(state["learner"])
        self.pairs_seen, self.metrics, self.best = state["pairs_seen"], state["metrics"], state["best"]
        self.time_train_s = state["time_train_s"]


class _Window:
    """Running means over steps; empty at every checkpoint, so that a checkpoint need not hold them."""

    def __init__(self) -> None:
        self._sums: dict[str, float] = defaultdict(float)
        self._num_steps, self._num_pairs = 0, 0
        self._seconds, self._waited = 0.0, 0.0
        self._lr = 0.0

    def add(self, result: StepResult, num_pairs: int, seconds: float, waited: float) -> None:
        """Take in one step that took `seconds`, of which it `waited` for data."""
        self._lr = result.lr
        self._num_pairs += num_pairs
        self._seconds += seconds
        self._waited += waited
        if not result.skipped:
            self._num_steps += 1
            for key, value in {**result.terms, "grad_norm": result.grad_norm}.items():
                self._sums[key] += value

    def means(self) -> dict[str, float]:
        """``train/...``: means over the steps that were not skipped (NaN without any), and the last learning rate."""
        count = self._num_steps or math.nan
        return {f"train/{key}": self._sums[key] / count for key in (*TERMS, "grad_norm")} | {"train/lr": self._lr}

    def speed(self) -> dict[str, float]:
        """Pairs per second of training, and the share of that time spent waiting for data."""
        return {"pairs_per_second": self._num_pairs / self._seconds, "data_wait": self._waited / self._seconds}


def crosses(before: int, after: int, every: int) -> bool:
    """Whether a multiple of `every` lies in (before, after]."""
    return before // every < after // every

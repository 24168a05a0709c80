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

import torch

from raylg.data.stream import stream_batches
from raylg.errors import CheckpointError, OutOfMemory
from raylg.evaluation.benchmarks import check_pixels
from raylg.evaluation.pair_scores import PairScores
from raylg.training import checkpoint as checkpoints
from raylg.training import run_directory
from raylg.training.benchmarks import benchmark_protocol, open_benchmark
from raylg.training.checkpoint import build_matcher
from raylg.training.checkpoint_writer import CheckpointWriter, explained
from raylg.training.config import RunConfig
from raylg.training.distributed import World
from raylg.training.features import open_split
from raylg.training.learner import TERMS, Learner, StepResult
from raylg.training.micro_batch import no_room_beside, no_room_to_match
from raylg.training.mirror import Mirror, storage_of
from raylg.training.profile import DATA_WAIT, Profile
from raylg.training.reporter import Reporter, RunDirectoryReporter
from raylg.training.run_directory import Best
from raylg.training.validation import comparable_score, figures, score_benchmark, validate

__all__ = ["TIMES", "Trainer", "World", "build_matcher"]

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
            OutOfMemory: a batch does not fit the GPU, of training or of pairs that are scored.
            CheckpointError: `resume_from` belongs to a run with another result.
            ShardError: the data cannot be read.
            EnvironmentUnfitError: a checkpoint cannot be written: the disk is full, or `train.checkpoint_storage`
                refuses.
        """
        run = None
        try:
            run = _Run(self._config, self._world, self._reporter, self._workdir, resumes=resume_from is not None)
            return run.train(resume_from)
        except torch.OutOfMemoryError as error:  # neither a step nor pairs that are scored
            share = self._config.data.batch_size // self._world.size
            micro = min(share, self._config.train.micro_batch_size or share)
            size = micro if run is None else run.learner.micro_batch_size
            raise OutOfMemory(no_room_beside(self._config, str(self._world.device), size)) from error


class _Run:
    """State of `Trainer.fit`."""

    def __init__(self, config: RunConfig, world: World, reporter: Reporter, workdir: Path, *, resumes: bool) -> None:
        self.started = time.monotonic()
        self.config, self.world, self.reporter, self.workdir = config, world, reporter, workdir
        if world.device.type == "cuda" and world.device.index is not None:  # plain "cuda" is the current device already
            torch.cuda.set_device(world.device)
        self.training_pairs = open_split(config, "train", str(world.device))
        self.validation_pairs = open_split(config, "val", str(world.device))
        check_pixels(self.validation_pairs, config.evaluation)
        self.benchmarks = {name: open_benchmark(config, name) for name in config.evaluation.benchmarks}
        self.learner = Learner(config, world, resumes=resumes)
        self.pairs_seen = 0
        self.metrics: dict[str, float] = {}
        self.best = Best()
        self.time_train_s = 0.0
        self.time_to_first_step_s = 0.0
        self.since_curve, self.since_report = _Window(), _Window()
        self.profile = Profile(config, workdir, self.learner.phase, active=world.is_main)
        self.record: RunDirectoryReporter | None = None
        self.writer: CheckpointWriter | None = None
        self.mirror: Mirror | None = None

    def train(self, resume_from: Path | None) -> dict[str, float]:
        """See `Trainer.fit`."""
        if resume_from is not None:
            self.restore(resume_from)
        try:
            if self.world.is_main:
                self.open(resume_from)
            self.loop()
            if self.mirror is not None:
                self.mirror.wait()
        finally:
            self.close()
        return self.metrics

    def open(self, resume_from: Path | None) -> None:
        """Take possession of the run directory, on rank 0."""
        # Later checkpoints are of a past that this run replaces; `latest` must not find them.
        last = None if resume_from is None else resume_from.name
        run_directory.prune(self.workdir, last, self.best.name, self.config.train.rungs)
        self.record = RunDirectoryReporter(self.workdir, self.config, resume_from)
        self.writer = CheckpointWriter(self.workdir, self.config)
        storage = storage_of(self.config, self.workdir)
        if storage is not None:
            self.mirror = Mirror(self.workdir, storage)
            if run_directory.latest(self.workdir) is not None:  # the interruption may have come before it was copied
                self.mirror.start()

    def close(self) -> None:
        """Let go of the run directory; nothing of this process writes there afterwards."""
        if self.writer is not None:
            self.writer.close()
        if self.mirror is not None:
            self.mirror.close()
        if self.record is not None:
            self.record.close(self.metrics or None)
        self.profile.close()

    def loop(self) -> None:
        """Take steps until the budget is spent."""
        config, world = self.config, self.world
        stream = stream_batches(
            self.training_pairs, config.data, config.seed, world.rank, world.size, start_pairs=self.pairs_seen
        )
        with closing(stream):
            while self.pairs_seen < config.train.num_pairs:
                self.profile.begin_step()
                start = time.monotonic()  # after the start of a trace, which is no wait for data
                with self.learner.phase(DATA_WAIT):
                    batch = next(stream)
                waited = time.monotonic() - start
                result = self.learner.step(batch.to(world.device, non_blocking=True), self.pairs_seen)
                before, self.pairs_seen = self.pairs_seen, self.pairs_seen + config.data.batch_size
                now = time.monotonic()
                self.time_to_first_step_s = self.time_to_first_step_s or now - self.started
                for window in (self.since_curve, self.since_report):
                    window.add(result, config.data.batch_size, now - start, waited)
                self.time_train_s += now - start
                self.profile.end_step(now - start)
                reports = crosses(before, self.pairs_seen, config.train.report_every)
                reports = reports or self.pairs_seen >= config.train.num_pairs
                if reports or crosses(before, self.pairs_seen, config.train.log_every):
                    self.draw_curves()
                if reports:
                    self.report()

    def draw_curves(self) -> None:
        """Write the means since the last call to TensorBoard."""
        if self.record is not None:
            self.record.curves(self.since_curve.means(), self.pairs_seen)
        self.since_curve = _Window()

    def report(self) -> None:
        """Validate, score benchmarks, write a checkpoint, report on every rank, delete older checkpoints."""
        self.profile.end_trace()
        start = time.monotonic()
        if self.writer is not None:
            self.writer.begin(self.state(), self.learner.validated)
        begun = time.monotonic()
        scores, validated = self.validate()
        validation_s = time.monotonic() - begun
        metrics = {
            "pairs_seen": float(self.pairs_seen),
            "epoch": self.pairs_seen / self.training_pairs.num_pairs,
            **self.since_report.means(),
            **validated,
            **self.learner.metrics(),
            "time_train_s": self.time_train_s,
            "time_validate_s": validation_s,
            "time_to_first_step_s": self.time_to_first_step_s,
            **self.since_report.speed(),
        }
        self.since_report = _Window()
        self.metrics = self.world.gather(metrics)[0]  # clocks differ between ranks
        score = comparable_score(self.metrics)
        if score > self.best.score:
            self.best = Best(score=score, name=run_directory.name(self.pairs_seen))
        checkpoint: Path | None = None
        if self.writer is not None:
            with explained(self.workdir):
                checkpoint = self.publish(scores, {"validation": validation_s, "checkpoint": begun - start})
        self.reporter.report(self.metrics, checkpoint)  # last: a search may end the run here

    def publish(self, scores: Mapping[str, PairScores], seconds: dict[str, float]) -> Path:
        """Finish the checkpoint, write the records and delete what they replace, on rank 0.

        Args:
            scores: file name to scores.
            seconds: spent on each phase of the report so far.

        Returns:
            The directory of the checkpoint.
        """
        assert self.writer is not None
        assert self.record is not None
        start = time.monotonic()
        if self.mirror is not None:
            self.mirror.settle()  # it reads what is replaced now; if it failed, the checkpoint comes first
        for file, pairs in scores.items():  # before the checkpoint, which says that all before it is done
            pairs.save(self.workdir / file)
        checkpoint = self.writer.finish(self.metrics, self.best)
        finished = time.monotonic()
        self.draw_figures(scores[PAIRS_FILE])
        seconds["checkpoint"] += finished - start
        self.record.report(self.metrics, checkpoint)
        run_directory.prune(self.workdir, checkpoint.name, self.best.name, self.config.train.rungs)
        self.profile.report(seconds | {"records": time.monotonic() - finished})
        if self.mirror is not None:
            self.mirror.start()
        return checkpoint

    def validate(self) -> tuple[dict[str, PairScores], dict[str, float]]:
        """Score the validation pairs and the benchmarks: file name to scores, and the metrics."""
        learner, final = self.learner, self.pairs_seen >= self.config.train.num_pairs
        device = str(self.world.device)
        try:
            scores, metrics = validate(learner.validated, self.validation_pairs, self.config, self.world, final=final)
        except torch.OutOfMemoryError as error:
            raise OutOfMemory(no_room_to_match(self.config.evaluation, device)) from error
        files = {PAIRS_FILE: scores}
        for name, pairs in self.benchmarks.items():
            protocol = benchmark_protocol(self.config, name)
            try:
                scored = score_benchmark(learner.validated, pairs, protocol, self.world, final=final)
            except torch.OutOfMemoryError as error:
                raise OutOfMemory(no_room_to_match(protocol, device, f"benchmarks.{name}", name)) from error
            metrics |= scored.metrics(name)
            files[f"pairs-{name}.npz"] = scored
        return files, metrics

    def state(self) -> dict[str, object]:
        """All that a checkpoint must hold to continue, but for what the report says."""
        return {
            "pairs_seen": self.pairs_seen,
            "time_train_s": self.time_train_s,
            "data_hash": self.training_pairs.data_hash,
            "learner": self.learner.state_dict(),
        }

    def draw_figures(self, scores: PairScores) -> None:
        """Show some of the validation pairs in TensorBoard."""
        assert self.record is not None
        device = self.world.device
        for title, image in figures(
            self.learner.validated, self.validation_pairs, self.config, scores=scores, device=device
        ):
            self.record.figure(f"val/{title}", image, self.pairs_seen)

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
        self.pairs_seen, self.time_train_s = state["pairs_seen"], state["time_train_s"]
        self.metrics, self.best = checkpoints.load_metrics(path), run_directory.read_best(path)


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

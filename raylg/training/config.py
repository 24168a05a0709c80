"""Options of one training run; free of torch. `RunConfig` is what a trial, a checkpoint and a worker share."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from raylg.data.config import DataConfig
from raylg.data.storage import Storage
from raylg.errors import ConfigError
from raylg.evaluation.config import BenchmarksConfig, EvaluationConfig
from raylg.models.config import ModelConfig
from raylg.schema import check
from raylg.supervision.config import GroundTruthConfig, LossConfig


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """Optimiser and schedule; every horizon is counted in training pairs seen."""

    name: Literal["adam", "adamw"] = "adamw"
    lr: float = 1e-4
    """Peak learning rate (glue-factory: 1e-4)."""
    weight_decay: float = 0.01
    """Decoupled decay of matrices; biases and norms have none. adamw only."""
    warmup_pairs: int = 0
    """Linear warm-up from 0 over this many pairs."""
    decay: Literal["none", "cosine", "linear", "exp"] = "cosine"
    """Shape of the decay after `decay_start`."""
    decay_start: float = 0.0
    """Share of `train.num_pairs` after which decay begins (glue-factory decays exponentially from 0.6)."""
    final_lr_ratio: float = 0.01
    """Learning rate at the end, relative to the peak (glue-factory: 0.01)."""
    clip_grad_norm: float | None = 1.0
    """Largest gradient norm over all workers; null does not clip (glue-factory: null)."""
    ema_pairs: float = 0.0
    """Time constant, in pairs, of the exponential moving average that is validated and exported; 0 turns it off."""

    def __post_init__(self) -> None:
        check(self.lr > 0, "lr", self.lr, "above 0")
        check(self.weight_decay >= 0, "weight_decay", self.weight_decay, "at least 0")
        check(self.warmup_pairs >= 0, "warmup_pairs", self.warmup_pairs, "at least 0 pairs")
        check(0 <= self.decay_start <= 1, "decay_start", self.decay_start, "in [0, 1]")
        check(0 < self.final_lr_ratio <= 1, "final_lr_ratio", self.final_lr_ratio, "in (0, 1]")
        clip = self.clip_grad_norm
        check(clip is None or clip > 0, "clip_grad_norm", clip, "null or above 0")
        check(self.ema_pairs >= 0, "ema_pairs", self.ema_pairs, "at least 0 pairs")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Budget and rhythm of a run."""

    num_pairs: int = 100_000
    """Training budget in pairs seen, rounded up to whole batches."""
    report_every: int = 10_000
    """Validate, checkpoint and report each time this many more pairs were seen (and at the end); a rung of the search
    is one such report."""
    micro_batch_size: int | None = None
    """Pairs per forward pass and worker; gradients accumulate to the global batch. null takes the most that fits the
    device, found by trying; either is halved where memory runs out after all."""
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    """Autocast type of the network; logits, loss and geometry stay float32."""
    checkpointed: bool = False
    """Recompute activations in the backward pass: less memory, more time."""
    compile: bool = False
    """Train with `torch.compile`, which needs a C++ compiler, and Triton on GPUs, and takes up to minutes at the start;
    evaluation is never compiled."""
    stage: Literal["all", "confidence"] = "all"
    """confidence: only the classifiers of the early exit learn, and the matches stay what they were with the weights to
    start from (second stage of the paper)."""
    max_skipped_steps: int = 20
    """Consecutive steps with non-finite loss or gradients before the run counts as diverged."""
    num_figures: int = 4
    """Match figures of validation pairs written to TensorBoard at each report."""
    log_every: int = 512
    """Write training curves each time this many more pairs were seen."""
    init_from: str | None = None
    """Run directory or checkpoint whose matcher weights are the start (two-stage training)."""
    rungs: tuple[int, ...] = ()
    """Pairs seen at which the weights are kept until the end, from the first report at or after each; a search adds
    those that its trials are compared at."""
    checkpoint_storage: str | None = None
    """Folder or s3:// URL that gets a copy of records and checkpoints after each report, in a folder named like the
    run; a machine without them continues from there. Options of a bucket: `data.storage`."""
    profile_steps: int = 0
    """Steps that are timed, and as many more that are traced; `train --profile` sets it, 0 does neither."""

    def __post_init__(self) -> None:
        for name in ("num_pairs", "report_every", "max_skipped_steps", "log_every"):
            check(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        micro = self.micro_batch_size
        check(micro is None or micro >= 1, "micro_batch_size", micro, "null or at least 1")
        check(self.num_figures >= 0, "num_figures", self.num_figures, "at least 0")
        check(all(rung >= 1 for rung in self.rungs), "rungs", self.rungs, "at least 1 pair each")
        check(self.profile_steps >= 0, "profile_steps", self.profile_steps, "at least 0")
        if self.checkpoint_storage is not None:
            _check_storage(self.checkpoint_storage)


@dataclass(frozen=True, kw_only=True)
class ScaleConfig:
    """How a run is spread over processes and machines."""

    num_workers: int = 1
    """Data-parallel training processes of one run."""
    executor: Literal["auto", "inline", "ray_train"] = "auto"
    """auto: Ray Train for two or more workers, inside the Tune trial for one (milliseconds to start)."""
    cpus_per_worker: int = 1
    """CPU cores (torch threads) of each worker."""
    gpus_per_worker: float | None = None
    """GPUs of each worker; null takes 1 where the cluster has GPUs and 0 elsewhere. A fraction is also the share of the
    GPU's memory that micro-batches are fitted to."""
    max_failures: int = 3
    """Times a run may lose a worker to a crash before it counts as failed."""
    address: str | None = None
    """Ray cluster to use: null starts Ray here unless RAY_ADDRESS is set; `auto` joins the running one."""

    def __post_init__(self) -> None:
        check(self.num_workers >= 1, "num_workers", self.num_workers, "at least 1")
        check(self.cpus_per_worker >= 1, "cpus_per_worker", self.cpus_per_worker, "at least 1")
        gpus = self.gpus_per_worker
        check(gpus is None or gpus >= 0, "gpus_per_worker", gpus, "null or at least 0")
        check(self.max_failures >= 0, "max_failures", self.max_failures, "at least 0")
        check(
            self.executor != "inline" or self.num_workers == 1,
            "executor",
            self.executor,
            f"auto or ray_train for num_workers = {self.num_workers}",
        )


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything that decides the result of one training run."""

    seed: int = 0
    """Seed of initialisation and of the order of pairs."""
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    ground_truth: GroundTruthConfig = field(default_factory=GroundTruthConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    benchmarks: BenchmarksConfig = field(default_factory=BenchmarksConfig)
    scale: ScaleConfig = field(default_factory=ScaleConfig)

    def __post_init__(self) -> None:
        problems = [f"seed = {self.seed}: must be at least 0"] if self.seed < 0 else []
        workers = self.scale.num_workers
        if self.data.batch_size % workers:
            problems.append(
                f"data.batch_size = {self.data.batch_size}: must be a multiple of scale.num_workers = {workers}, "
                "so that every worker has the same share"
            )
        stored = self.model.extractor.max_num_keypoints
        for group in ("data", "evaluation"):
            wanted = getattr(self, group).num_keypoints
            if self.data.source != "shards" and wanted > stored:
                problems.append(
                    f"{group}.num_keypoints = {wanted}: the shards keep only "
                    f"model.extractor.max_num_keypoints = {stored}; lower the first or raise the second"
                )
        if self.data.source == "images":
            problems += self._problems_of_views()
        weights, init_from = self.model.matcher.weights, self.train.init_from
        if weights is not None and init_from is not None:
            problems.append(
                f"train.init_from = {init_from!r} and model.matcher.weights = {weights!r}: both give the weights to "
                "start from; keep one"
            )
        if self.train.stage == "confidence":
            problems += self._problems_of_second_stage()
        for name in self.evaluation.benchmarks:
            if self.benchmarks.named(name).path is None:
                problems.append(f"benchmarks.{name}.path = null: give the folder of the benchmark {name}")
        if problems:
            raise ConfigError("\n".join(problems))

    def _problems_of_views(self) -> list[str]:
        problem = self.data.images.problem_of(self.model.extractor.resize)
        problems = [] if problem is None else [problem]
        if self.evaluation.pixels == "original":
            problems.append(
                "evaluation.pixels = 'original': views of photographs are drawn at the size that their features are "
                "extracted at, and have no other; set evaluation.pixels=extraction"
            )
        return problems

    def _problems_of_second_stage(self) -> list[str]:
        stage, problems = "train.stage = 'confidence'", []
        if self.train.init_from is None and self.model.matcher.weights is None:
            problems.append(
                f"{stage}: learns when a trained matcher may stop early, so it needs one; give its run as "
                "train.init_from, or a file as model.matcher.weights"
            )
        if self.loss.confidence_weight == 0:
            problems.append(f"{stage}: nothing would learn with loss.confidence_weight = 0; set it above 0")
        if self.model.matcher.num_layers == 1:
            problems.append(f"{stage}: model.matcher.num_layers = 1 leaves no layer to stop after; set train.stage=all")
        return problems


def _check_storage(url: str) -> None:
    try:
        Storage(url)
    except ConfigError as error:
        raise ConfigError(f"checkpoint_storage = {url!r}: {error}") from error

"""What steps, memory and scoring cost on this machine, from a few seconds of work on made-up pairs.

Reading of data is not part of it: a stream reads ahead of the steps.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from raylg.batch import PairBatch
from raylg.errors import OutOfMemory
from raylg.evaluation.matched_pairs import matched_pairs, score_pair
from raylg.evaluation.measures import Kind
from raylg.schema import override
from raylg.training.config import RunConfig
from raylg.training.distributed import World
from raylg.training.learner import Learner
from raylg.training.made_up import corresponding_batch
from raylg.training.memory import memory_of
from raylg.training.micro_batch import budget_of, synthetic_batch

_SHORT_S = 0.5
"""Steps are repeated until they have taken so long together, for clocks and caches."""
_LONG_S = 3.0
"""Batches are not tried when a step will probably take longer."""
_MATCHED = 3
"""One keypoint in so many is matched where poses are timed."""
_NUM_POSES = 8


@dataclass(frozen=True, kw_only=True)
class StepTime:
    """One cell of the grid of batch and keypoints."""

    num_pairs: int
    """Of one worker in one step."""
    num_keypoints: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Probed:
    """What was measured, on one worker."""

    device: str
    steps: tuple[StepTime, ...]
    pair_bytes: Mapping[int, float]
    """Number of keypoints to the memory of a training step for each pair in it."""
    held_bytes: int
    """Weights, gradients, moments and average."""
    weights_bytes: int
    """Of a checkpoint's weights alone."""
    memory_bytes: float
    """That a worker may use."""
    too_large: tuple[int, ...]
    """Numbers of keypoints of which not a single pair fitted."""
    match_s: float
    """Network, for each pair that is scored."""
    pose_s: float
    """Robust estimate, for each pair that is scored, in one of `evaluation.num_threads` threads."""
    start_s: float
    """Until a run could take its first step."""


@dataclass(frozen=True, kw_only=True)
class ProbeJob:
    """What is to be measured; plain values, so that it travels."""

    run: RunConfig
    batches: tuple[int, ...]
    """Pairs of one worker in one step, ascending."""
    keypoints: tuple[int, ...]
    """Numbers of keypoints, ascending."""
    kind: Kind
    """What pairs are scored by."""
    seconds: float
    """No cell is begun after so long, but for the first two."""
    uses_gpu: bool
    """Whether a worker holds one."""


def probe_here(job: ProbeJob) -> Probed:
    """Measure with the threads of a worker, on the GPU of this process where there is one; see `probe`."""
    torch.set_num_threads(job.run.scale.cpus_per_worker)
    return probe(job, torch.device("cuda" if job.uses_gpu and torch.cuda.is_available() else "cpu"))


def probe(job: ProbeJob, device: torch.device) -> Probed:
    """Measure.

    The seconds of a step are those of a run that has been going for a while; the fastest of a few, as everything that
    disturbs a measurement makes it longer.

    Raises:
        OutOfMemory: not even a pair with the fewest keypoints fits.
    """
    started = time.monotonic()
    run = override(
        job.run,
        {
            "data.batch_size": job.batches[-1],
            "train.micro_batch_size": job.batches[-1],
            "scale.num_workers": 1,
            "scale.executor": "auto",
            "train.compile": False,
            "model.matcher.weights": None,
            "train.init_from": None,
            "train.stage": "all",
        },
    )
    learner = Learner(run, World(device=device))
    learner.step(synthetic_batch(run, 1, job.keypoints[0], device), 0)  # libraries start, moments are made
    bench = _Bench(run, learner, device)
    start_s = time.monotonic() - started
    bench.measure_memory(job.keypoints[0])
    steps: list[StepTime] = []
    for num_keypoints in job.keypoints:
        if num_keypoints != job.keypoints[0] and not bench.fits(num_keypoints):
            continue
        for num_pairs in bench.short_batches(job.batches, num_keypoints):
            if time.monotonic() - started > job.seconds and len(steps) > 1:
                break
            seconds = bench.time_step(num_pairs, num_keypoints)
            if seconds is None:
                break
            steps.append(StepTime(num_pairs=num_pairs, num_keypoints=num_keypoints, seconds=seconds))
    if not steps:
        raise OutOfMemory(f"{bench.memory.name} has not enough memory for a pair of {job.keypoints[0]} keypoints")
    weights = sum(p.numel() * p.element_size() for p in learner.model.parameters())
    return Probed(
        device=bench.memory.name,
        steps=tuple(steps),
        pair_bytes=bench.pair_bytes,
        held_bytes=weights * (5 if run.optim.ema_pairs else 4),
        weights_bytes=weights,
        memory_bytes=bench.budget,
        too_large=tuple(bench.too_large),
        match_s=bench.time_match(),
        pose_s=_time_pose(run, job.kind),
        start_s=start_s,
    )


class _Bench:
    """A learner, a clock and a scale."""

    def __init__(self, run: RunConfig, learner: Learner, device: torch.device) -> None:
        self._run, self._learner, self._device = run, learner, device
        self.memory = memory_of(device)
        self.budget = budget_of(run, self.memory, now=False)
        self.pair_bytes: dict[int, float] = {}
        self.too_large: list[int] = []

    def measure_memory(self, num_keypoints: int) -> None:
        """Memory of one pair more in a step."""
        one, two = (
            self.memory.peak(functools.partial(self._step, synthetic_batch(self._run, n, num_keypoints, self._device)))
            for n in (1, 2)
        )
        self.pair_bytes[num_keypoints] = max(0, two - one)

    def fits(self, num_keypoints: int) -> bool:
        """Whether a pair fits at this moment, and if so what it takes.

        Where too much would kill this process, it is judged by what fewer keypoints took: memory grows with their
        number at least.
        """
        known = max(self.pair_bytes)
        needed = self.pair_bytes[known] * num_keypoints / known
        if not self.memory.raises and needed > self.budget:
            self.too_large.append(num_keypoints)
            return False
        if not self.memory.raises and 2 * needed > budget_of(self._run, self.memory):
            return False  # others use the memory at the moment; trials may find more of it
        try:
            self.measure_memory(num_keypoints)
        except (OutOfMemory, torch.OutOfMemoryError):  # of two pairs, maybe
            if self.time_step(1, num_keypoints) is None:
                self.too_large.append(num_keypoints)
            return False
        return True

    def short_batches(self, batches: Sequence[int], num_keypoints: int) -> Sequence[int]:
        """Those that take a few seconds at most; one and two pairs where none does."""
        pair = self.time_step(1, num_keypoints)
        if pair is None:
            return ()
        return [num_pairs for num_pairs in batches if num_pairs * pair <= _LONG_S] or (1, 2)

    def time_step(self, num_pairs: int, num_keypoints: int) -> float | None:
        """Seconds of a step; None where memory ran out."""
        try:
            return _fastest(
                functools.partial(self._step, synthetic_batch(self._run, num_pairs, num_keypoints, self._device)),
                self._device,
            )
        except (OutOfMemory, torch.OutOfMemoryError):
            return None  # of this many pairs; they would be trained in micro-batches

    def time_match(self) -> float:
        """Seconds to match a pair that is scored."""
        protocol, matcher = self._run.evaluation, self._learner.validated
        batch = synthetic_batch(self._run, protocol.batch_size, protocol.num_keypoints, self._device)
        was_training = matcher.training
        matcher.eval()
        try:
            with torch.no_grad():
                return _fastest(lambda: matcher.match(batch.view0, batch.view1), self._device) / protocol.batch_size
        finally:
            matcher.train(was_training)

    def _step(self, batch: PairBatch) -> None:
        self._learner.step(batch, 0)


def _fastest(work: Callable[[], object], device: torch.device) -> float:
    """Seconds of the fastest of a few repetitions after a first one, which is not counted unless it is long."""
    seconds: list[float] = []
    while sum(seconds) < _SHORT_S or len(seconds) < 2:
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - start)
        if seconds[0] > _SHORT_S * 4:
            break
    return min(seconds)


def _time_pose(run: RunConfig, kind: Kind) -> float:
    """Seconds to estimate the pose or homography of a pair, from as many wrong matches as right ones."""
    protocol = replace(run.evaluation, pixels="extraction")
    num_keypoints = max(16, protocol.num_keypoints)
    batch = corresponding_batch(run, _NUM_POSES, num_keypoints, kind)
    matches0 = torch.arange(num_keypoints).expand(_NUM_POSES, -1).clone()
    matches0[:, num_keypoints // _MATCHED :] = -1
    indices = np.stack([np.zeros(_NUM_POSES, dtype=np.int64), np.arange(_NUM_POSES)], axis=1)
    pairs = list(matched_pairs(batch, matches0, indices, protocol))
    start = time.perf_counter()
    for pair in pairs:
        score_pair(pair, protocol)
    return (time.perf_counter() - start) / len(pairs)


def cells(shares: Sequence[int], keypoints: Sequence[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """A grid that spans what a space holds: (batches, keypoints), ascending, at most three of each.

    Args:
        shares: pairs of one worker in one step.
        keypoints: numbers of keypoints.
    """
    batches = set(_spread(shares))
    if len(batches) == 1:
        batches.add(max(1, min(batches) // 4))  # a line needs two points
    return tuple(sorted(batches)), _spread(keypoints)


def _spread(values: Sequence[int]) -> tuple[int, ...]:
    ordered = sorted(set(values))
    return tuple(sorted({ordered[0], ordered[len(ordered) // 2], ordered[-1]}))

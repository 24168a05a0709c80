"""How many pairs a worker holds at a time: found by trying on made-up pairs, remembered for each kind of device.

The loss is a mean over pairs, so the size changes results by rounding only.
"""

from __future__ import annotations

import functools
import json
import logging
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch

from raylg.batch import PairBatch, View
from raylg.data.storage import write_atomically
from raylg.errors import OutOfMemory
from raylg.evaluation.config import EvaluationConfig
from raylg.geometry.camera import Camera, Pose
from raylg.schema import digest, to_mapping
from raylg.training.config import RunConfig
from raylg.training.distributed import World
from raylg.training.memory import Memory, memory_of

logger = logging.getLogger(__name__)

HEADROOM = 0.1
"""Share of the free memory that is left alone: batches differ, and freed blocks do not always join."""
NEGLIGIBLE = 0.02
"""A worker's share that surely needs less of the budget than this is not measured."""
FOLDER = "micro-batches"


class Probe(Protocol):
    """Work of a worker on made-up pairs, which leaves nothing behind."""

    held: int
    """Bytes of what the optimiser will keep, part of each step."""

    def step(self, num_pairs: int) -> None:
        """Forward and backward pass of `num_pairs` pairs beside what is held.

        Raises:
            torch.OutOfMemoryError: too many pairs.
        """

    def evaluate(self) -> None:
        """Match one batch of validation pairs.

        Raises:
            torch.OutOfMemoryError: too many pairs.
        """


@dataclass(frozen=True, kw_only=True)
class Footprint:
    """Bound on the memory of a step, in bytes beside weights.

    At each moment of a step memory is linear in the number of pairs; the peak, the largest of these lines, is below the
    line from what is held to the peak of a few pairs, for all that are more.
    """

    held: int
    """Whatever the number of pairs."""
    pair: int
    """For each pair."""
    verified: int = 0
    """Most pairs that were tried as computed from this, with a batch of validation pairs."""

    def pairs_within(self, budget: float) -> int:
        """Most pairs that need at most `budget` bytes; at least 1."""
        return max(1, int((budget - self.held) // max(self.pair, 1)))


def find_micro_batch_size(config: RunConfig, world: World, probe: Probe) -> int:
    """Pairs per forward pass, the same on every rank: `train.micro_batch_size`, or the most that will fit.

    Raises:
        OutOfMemory: a single pair does not fit, or a batch of validation pairs; on every rank.
    """
    share = config.data.batch_size // world.size
    if config.train.micro_batch_size is not None:
        return min(share, config.train.micro_batch_size)
    memory = memory_of(world.device)
    size, evaluates = _find(config, share, memory, probe)
    sizes, evaluate = zip(*world.gather((size, evaluates)), strict=True)
    if not all(evaluate):
        raise OutOfMemory(no_room_to_match(config.evaluation, memory.name))
    if min(sizes) == 0:
        raise OutOfMemory(no_room(config, memory.name))
    return int(min(sizes))


def budget_of(config: RunConfig, memory: Memory, *, now: bool = True) -> float:
    """Bytes of tensors that a worker may hold on a device.

    Args:
        config: of the run.
        memory: of the device.
        now: beside what others hold at this moment; else when it has all of its share.
    """
    share = _claim(config, memory) * memory.total
    return (1 - HEADROOM) * (min(memory.free(), share) if now else share) / memory.growth


def no_room(config: RunConfig, device: str) -> str:
    """What to say where a single pair does not fit."""
    advice = "set data.num_keypoints lower" if config.train.checkpointed else "set train.checkpointed=true"
    return (
        f"{device} has not enough memory for a single pair with {config.data.num_keypoints} keypoints an image "
        f"(data.num_keypoints): {advice}"
    )


def no_room_to_match(protocol: EvaluationConfig, device: str, group: str = "evaluation", pairs: str = "val") -> str:
    """What to say where a batch of pairs that are scored does not fit.

    Args:
        protocol: how they are scored.
        device: name.
        group: of the configuration, which has the number of keypoints.
        pairs: their group of metrics.
    """
    option, lower = f"{group}.num_keypoints", "lower evaluation.batch_size, which does not change the result"
    if protocol.batch_size == 1:
        lower = f"lower {option}; the scores are then not comparable with those before"
    return (
        f"{device} has not enough memory to match {protocol.batch_size} {pairs} pairs at a time "
        f"(evaluation.batch_size) with {protocol.num_keypoints} keypoints an image ({option}): {lower}"
    )


def no_room_beside(config: RunConfig, device: str, micro_batch_size: int) -> str:
    """What to say where something else than a step does not fit beside what steps of that size take."""
    if micro_batch_size == 1:
        return no_room(config, device)
    return (
        f"{device} has not enough memory for micro-batches of {micro_batch_size} pairs (data.batch_size = "
        f"{config.data.batch_size} over {config.scale.num_workers} workers) with {config.data.num_keypoints} keypoints "
        f"an image: set train.micro_batch_size={micro_batch_size // 2} or train.checkpointed=true, neither of which "
        "changes the result"
    )


def parts(num_pairs: int, micro_batch_size: int) -> list[slice]:
    """A batch in as few parts as the size allows, as equal as possible, larger ones first."""
    count = -(-num_pairs // micro_batch_size)
    ends = [-(-num_pairs * (i + 1) // count) for i in range(count)]
    return [slice(start, end) for start, end in zip([0, *ends[:-1]], ends, strict=True)]


def synthetic_batch(config: RunConfig, num_pairs: int, num_keypoints: int, device: torch.device) -> PairBatch:
    """Made-up pairs that cost what real ones do: depth everywhere, one keypoint of padding, so that there are masks.

    Draws from a generator of its own.
    """
    generator = torch.Generator().manual_seed(0)
    extractor = config.model.extractor
    height, width = 480.0, 640.0

    def view() -> View:
        shape = (num_pairs, num_keypoints)
        mask = torch.ones(shape, dtype=torch.bool)
        mask[:, -1] = num_keypoints == 1
        detail = torch.ones(shape) if extractor.has_scale_and_orientation else None
        return View(
            keypoints=torch.rand(*shape, 2, generator=generator) * torch.tensor([width, height]),
            descriptors=torch.nn.functional.normalize(
                torch.randn(*shape, extractor.descriptor_dim, generator=generator), dim=-1
            ),
            mask=mask,
            image_size=torch.tensor([width, height]).expand(num_pairs, 2),
            camera=Camera(torch.full((num_pairs, 2), width), torch.tensor([width, height]).expand(num_pairs, 2) / 2),
            depth_keypoints=torch.where(mask, 4.0, torch.nan),
            scales=detail,
            oris=detail,
        )

    batch = PairBatch(
        view0=view(),
        view1=view(),
        T_0to1=Pose(torch.eye(3).expand(num_pairs, 3, 3), torch.tensor([0.2, 0.0, 0.0]).expand(num_pairs, 3)),
        overlap=torch.ones(num_pairs),
        names=(("made-up", "0", "1"),) * num_pairs,
    )
    return batch.to(device)


def _find(config: RunConfig, share: int, memory: Memory, probe: Probe) -> tuple[int, bool]:
    """(pairs that fit on this rank, 0 if not even one; whether a batch of validation pairs does)."""
    budget = budget_of(config, memory)
    if share == 1 or _surely_below(config) * share < NEGLIGIBLE * budget:
        return share, True
    file = _file(config, memory)
    footprint = _read(file)
    if footprint is None:
        footprint = _measure(memory, probe)
    if footprint is None:
        return int(_fits(probe, 1)), True
    size = _largest_part(share, footprint.pairs_within(budget))
    evaluates = True
    if memory.raises and size > footprint.verified:
        while size > 0 and not _fits(probe, size):
            size = _largest_part(share, -(-size // 2)) if size > 1 else 0
        evaluates = size == 0 or _evaluates(probe)
        footprint = replace(footprint, verified=size if evaluates else 0)
    _write(file, footprint)
    return size, evaluates


def _largest_part(share: int, micro_batch_size: int) -> int:
    """Pairs of the first part: those beyond it would be room for nothing."""
    return -(-share // len(parts(share, micro_batch_size)))


def _measure(memory: Memory, probe: Probe) -> Footprint | None:
    """Try two pairs; None where they do not fit."""
    try:
        if memory.raises:
            probe.step(1)  # libraries take work space with their first call and keep it
        peak = memory.peak(functools.partial(probe.step, 2))
    except torch.OutOfMemoryError:
        return None
    return Footprint(held=probe.held, pair=(peak - probe.held) // 2)


def _fits(probe: Probe, num_pairs: int) -> bool:
    try:
        probe.step(num_pairs)
    except torch.OutOfMemoryError:
        return False
    return True


def _evaluates(probe: Probe) -> bool:
    try:
        probe.evaluate()
    except torch.OutOfMemoryError:
        return False
    return True


def _claim(config: RunConfig, memory: Memory) -> float:
    """Share of the device that is this worker's; others may be about to take theirs."""
    if memory.raises:
        gpus = config.scale.gpus_per_worker
        return 1.0 if not gpus else min(1.0, gpus)
    return min(1.0, config.scale.cpus_per_worker / (os.cpu_count() or 1))


def _surely_below(config: RunConfig) -> float:
    """Bytes that a pair needs at the most with all that is held, about twice what was measured."""
    matcher, input_dim = config.model.matcher, config.model.extractor.descriptor_dim
    width = matcher.descriptor_dim
    weights = matcher.num_layers * 16 * width**2 + width * input_dim
    activations = 2 * config.data.num_keypoints * (64 * matcher.num_layers * width + 16 * input_dim)
    return 4.0 * (4 * weights + activations)


def _file(config: RunConfig, memory: Memory) -> Path:
    matcher = to_mapping(replace(config.model.matcher, weights=None))
    kind: dict[str, Any] = {
        "device": memory.name,
        "memory": memory.total,
        "torch": torch.__version__,
        "matcher": matcher,
        "extractor": config.model.extractor.name,
        "num_keypoints": config.data.num_keypoints,
        "evaluation": [config.evaluation.num_keypoints, config.evaluation.batch_size],
        "epipolar": config.ground_truth.th_epipolar is not None,
        **{name: getattr(config.train, name) for name in ("precision", "checkpointed", "stage")},
    }
    return Path(config.data.cache_dir).expanduser() / FOLDER / f"{digest(kind)}.json"


def _read(file: Path) -> Footprint | None:
    try:
        values: Mapping[str, int] = json.loads(file.read_text())
        return Footprint(**values)
    except (OSError, ValueError, TypeError):  # absent, not readable, or of another version: measured anew
        return None


def _write(file: Path, footprint: Footprint) -> None:
    """Remember a measurement; ranks and trials may do so at the same time."""
    if _read(file) == footprint:
        return
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, json.dumps(asdict(footprint)).encode())
    except OSError as error:
        logger.warning("%s: memory of a step is measured at each start, as it cannot be kept: %s", file, error)

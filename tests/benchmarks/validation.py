"""Validation in one pass against two: time on the clock, and of the processor, for the same numbers.

python tests/benchmarks/validation.py [--pairs 32] [--keypoints 512]

Two passes: every batch is read and matched for the labels, with the predictions of all layers; then every batch is read
again and poses are estimated, in threads, but with nothing to overlap with. One pass is `raylg.training.validation`.
Both must give the same scores. Matching has one thread, the estimator `--threads`. The clock sees the overlap, but only
where processors are free for it; processor time sees only the work that is saved.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from raylg.batch import Matches, PairBatch
from raylg.data.config import DataConfig
from raylg.data.dataset import PairDataset
from raylg.data.manifest import CreatedBy, ExtractorInfo, Manifest, SplitCounts, write_manifest
from raylg.data.reader import ShardReader
from raylg.data.shard import Shard, entry_of, shard_bytes
from raylg.data.storage import Storage
from raylg.data.stream import evaluation_indices
from raylg.evaluation.matched_pairs import PairScore, matched_pairs, score_pair
from raylg.models.lightglue import LightGlue, filter_matches, log_assignment
from raylg.schema import override
from raylg.supervision.assignment_loss import matching_loss
from raylg.supervision.ground_truth import ground_truth_matches
from raylg.supervision.match_metrics import match_metrics
from raylg.training.checkpoint import build_matcher
from raylg.training.config import RunConfig
from raylg.training.distributed import World
from raylg.training.validation import validate

T = TypeVar("T")

REPEATS = 3
PAIRS_PER_SHARD = 16
WIDTH, HEIGHT, FOCAL = 640, 480, 500.0
SIZES = {
    "small, 2 layers of 128": {"descriptor_dim": 128, "num_layers": 2, "num_heads": 2},
    "published, 9 layers of 256": {},
}


def scene(number: int, keypoints: int) -> Shard:
    """Pairs of views; both see half of their keypoints, the others are clutter. One match in a few is right."""
    rng = np.random.default_rng(number)
    images = 2 * PAIRS_PER_SHARD
    shared = keypoints // 2
    positions, descriptors, depths, poses = [], [], [], []
    for _ in range(PAIRS_PER_SHARD):
        points = rng.uniform((-1.5, -1, 4), (1.5, 1, 8), (shared, 3))
        looks = rng.normal(size=(shared, 128))
        noise = rng.uniform(0.5, 2.5)  # hard pairs and easy ones
        for side in range(2):
            T = np.eye(4)
            angle = 0.2 * side
            T[:3, :3] = [[math.cos(angle), 0, math.sin(angle)], [0, 1, 0], [-math.sin(angle), 0, math.cos(angle)]]
            T[:3, 3] = side * rng.uniform(-1, 1, 3)
            seen = points @ T[:3, :3].T + T[:3, 3]
            pixels = seen[:, :2] / seen[:, 2:] * FOCAL + (WIDTH / 2, HEIGHT / 2) + rng.normal(size=(shared, 2))
            clutter = rng.uniform((0, 0), (WIDTH, HEIGHT), (keypoints - shared, 2))
            found = np.concatenate([looks + noise * rng.normal(size=looks.shape), rng.normal(size=(len(clutter), 128))])
            positions.append(np.concatenate([pixels, clutter]))
            descriptors.append(found / np.linalg.norm(found, axis=1, keepdims=True))
            depths.append(np.concatenate([seen[:, 2], np.full(len(clutter), np.nan)]))
            poses.append(T)
    return Shard(
        keypoints=np.concatenate(positions).astype(np.float32),
        keypoint_scores=np.ones(images * keypoints, np.float32),
        descriptors=np.concatenate(descriptors).astype(np.float16),
        depth_keypoints=np.concatenate(depths).astype(np.float32),
        scales=np.full(images * keypoints, 2, np.float32),
        oris=np.zeros(images * keypoints, np.float32),
        offsets=np.arange(images + 1, dtype=np.int64) * keypoints,
        camera=np.tile([FOCAL, FOCAL, WIDTH / 2, HEIGHT / 2], (images, 1)).astype(np.float64),
        T_w2c=np.stack(poses),
        image_size=np.tile([WIDTH, HEIGHT], (images, 1)).astype(np.int32),
        original_size=None,
        names=tuple(f"{k}.png" for k in range(images)),
        thumbnails=(b"",) * images,
        pairs=np.arange(images, dtype=np.int32).reshape(-1, 2),
        overlap=np.full(PAIRS_PER_SHARD, 0.5, np.float32),
        scene=f"scene-{number}",
        split="val",
    )


def make_dataset(folder: Path, pairs: int, keypoints: int) -> PairDataset:
    """Shards on disk, opened like those of a run."""
    storage, entries = Storage(folder), []
    for number in range(-(-pairs // PAIRS_PER_SHARD)):
        shard = scene(number, keypoints)
        data = shard_bytes(shard)
        storage.write(f"{number}.h5", data)
        entries.append(entry_of(f"{number}.h5", shard, data))
    counts = SplitCounts(num_images=sum(e.num_images for e in entries), num_pairs=sum(e.num_pairs for e in entries))
    write_manifest(
        storage,
        Manifest(
            name="benchmark",
            created_by=CreatedBy(version="0", git_sha=None, command="benchmark", config={}, fingerprint=""),
            extractor=ExtractorInfo(
                name="sift", weights_sha256=None, settings={"max_num_keypoints": keypoints}, descriptor_dim=128
            ),
            splits={"val": counts},
            shards=tuple(entries),
        ),
    )
    return PairDataset(ShardReader.open(folder, DataConfig()), "val", keypoints, 2)


@dataclass
class Seconds:
    """Where the time of two passes goes."""

    read: float = 0.0
    match: float = 0.0
    estimate: float = 0.0
    scores: list[PairScore] = field(default_factory=list)


@torch.no_grad()
def two_passes(matcher: LightGlue, dataset: PairDataset, config: RunConfig, device: torch.device) -> Seconds:
    """Label all batches, then read all again and estimate."""
    protocol, spent = config.evaluation, Seconds()
    indices = evaluation_indices(dataset, protocol.max_pairs)
    chunks = [indices[start : start + protocol.batch_size] for start in range(0, len(indices), protocol.batch_size)]

    def read(chunk: np.ndarray) -> PairBatch:
        start = time.perf_counter()
        batch = dataset.batch(chunk)
        spent.read += time.perf_counter() - start
        return batch

    found = []
    for chunk in chunks:
        batch = read(chunk).to(device)
        start = time.perf_counter()
        found.append(label(matcher, batch, config))
        spent.match += time.perf_counter() - start
    with ThreadPoolExecutor(protocol.num_threads) as threads:
        futures = []
        for chunk, matches0 in zip(chunks, found, strict=True):
            batch = read(chunk)
            start = time.perf_counter()
            futures += [
                threads.submit(score_pair, p, protocol) for p in matched_pairs(batch, matches0, chunk, protocol)
            ]
            spent.estimate += time.perf_counter() - start
        start = time.perf_counter()
        spent.scores = [future.result() for future in futures]
        spent.estimate += time.perf_counter() - start
    return spent


def label(matcher: LightGlue, batch: PairBatch, config: RunConfig) -> torch.Tensor:
    """Matches [B, M] of a batch, after all that validation asks of them."""
    view0, view1 = batch.view0, batch.view1
    ground_truth = ground_truth_matches(batch, config.ground_truth)
    layers = matcher(view0, view1)
    loss = matching_loss(layers[-1:], ground_truth, config.loss, view0.mask, view1.mask).last
    log_scores = log_assignment(layers[-1], view0.mask, view1.mask)
    matches0, matches1, scores0, scores1 = filter_matches(log_scores, matcher.config.filter_threshold)
    used = torch.ones(len(batch), dtype=torch.int64)
    matches = Matches(
        matches0=matches0, matches1=matches1, matching_scores0=scores0, matching_scores1=scores1, num_layers_used=used
    )
    rows = [loss, *match_metrics(matches, ground_truth).values()]
    assert all(len(row.cpu()) == len(batch) for row in rows)
    return matches0.cpu()


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=32)
    parser.add_argument("--keypoints", type=int, default=512)
    parser.add_argument("--threads", type=int, default=2, help="of the estimator")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with tempfile.TemporaryDirectory() as folder:
        dataset = make_dataset(Path(folder), arguments.pairs, arguments.keypoints)
        print(
            f"{date.today()}, {device}: {arguments.pairs} pairs of {arguments.keypoints} keypoints, "
            f"{arguments.threads} threads of the estimator, least of {REPEATS}\n"
        )
        print("| LightGlue | read, s | match, s | estimate, s | two passes, s | one pass, s | ratio | of CPU time |")
        print("|---|--:|--:|--:|--:|--:|--:|--:|")
        for name, size in SIZES.items():
            row(name, size, dataset, arguments, device)


def row(
    name: str, size: dict[str, int], dataset: PairDataset, arguments: argparse.Namespace, device: torch.device
) -> None:
    """Measure one network."""
    config = override(
        RunConfig(),
        {
            "evaluation.num_threads": arguments.threads,
            "evaluation.max_pairs": arguments.pairs,
            "model.matcher.init": "identity",
            **{f"model.matcher.{key}": value for key, value in size.items()},
        },
    )
    torch.manual_seed(0)
    matcher = build_matcher(config).to(device).eval()
    before: list[tuple[Seconds, Cost]] = []
    now: list[Cost] = []
    for _ in range(REPEATS):
        before.append(timed(lambda: two_passes(matcher, dataset, config, device)))
        (scores, _), cost = timed(lambda: validate(matcher, dataset, config, World(device=device)))
        now.append(cost)
        expected = before[-1][0].scores
        np.testing.assert_array_equal(scores.rotation_error, [score.rotation_error for score in expected])
        np.testing.assert_array_equal(scores.num_inliers, [score.num_inliers for score in expected])
    least, _ = min(before, key=lambda result: result[1].clock)
    clocks = [min(cost.clock for cost in costs) for costs in ([cost for _, cost in before], now)]
    processors = [min(cost.processor for cost in costs) for costs in ([cost for _, cost in before], now)]
    ratios = (clocks[1] / clocks[0], processors[1] / processors[0])
    columns = (least.read, least.match, least.estimate, *clocks, *ratios)
    print(f"| {name} | {' | '.join(f'{column:.2f}' for column in columns)} |", flush=True)


class Cost(NamedTuple):
    """Seconds of a call, of all its threads."""

    clock: float
    processor: float


def timed(call: Callable[[], T]) -> tuple[T, Cost]:
    """The result and its cost."""
    start, spent = time.perf_counter(), time.process_time()
    result = call()
    return result, Cost(time.perf_counter() - start, time.process_time() - spent)


if __name__ == "__main__":
    main()

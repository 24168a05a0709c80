"""Labels from pose and depth: raylg against [B, M, N, 2] differences and full matrices.

python tests/benchmarks/ground_truth.py [--scenes 1000]

B = 2 pairs, float32, one thread. Three keypoints in ten have no depth, half of the others are seen by both views.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from raylg.batch import PairBatch
from raylg.supervision.config import GroundTruthConfig
from raylg.supervision.ground_truth import ground_truth_matches
from tests.benchmarks.memory import cost
from tests.benchmarks.reference import dense_ground_truth
from tests.benchmarks.scenes import padded, random_pairs

BATCH = 2
COUNTS = (512, 1024, 2048)
GOALS = {1024: "memory 1/7, time 1/4", 2048: "memory 1/16, time 1/9"}
NUM_REPEATS = 7
THRESHOLDS = (
    GroundTruthConfig(),
    GroundTruthConfig(th_positive=1.0, th_negative=8.0, th_epipolar=1.0),
    GroundTruthConfig(th_positive=5.0, th_negative=5.0, th_epipolar=None),
)


def main() -> None:
    """Print the table and the number of labels that differ."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scenes", type=int, default=1000, help="random scenes of which labels are compared")
    num_scenes = parser.parse_args().scenes
    print(f"{date.today()}: B = {BATCH}, CPU, one thread, best of {NUM_REPEATS}\n")
    print("| keypoints | dense MB | raylg MB | share | dense ms | raylg ms | share | goal |")
    print("|--:|--:|--:|--:|--:|--:|--:|---|")
    for count in COUNTS:
        dense, ours = (cost(prepare, name, count, repeats=NUM_REPEATS) for name in ("dense", "raylg"))
        print(
            f"| {count} | {dense.megabytes:.1f} | {ours.megabytes:.1f} | 1/{dense.megabytes / ours.megabytes:.1f} | "
            f"{1e3 * dense.seconds:.0f} | {1e3 * ours.seconds:.1f} | 1/{dense.seconds / ours.seconds:.1f} | "
            f"{GOALS.get(count, '')} |",
            flush=True,
        )
    compared = [compare(batch, config) for batch, config in scenes(num_scenes)]
    labels, different = (sum(column) for column in zip(*compared, strict=True))
    print(f"\n{num_scenes} random scenes: {different} of {labels} labels differ.")


def prepare(name: str, count: int) -> Callable[[], object]:
    """A call that labels a batch."""
    batch = random_pairs(BATCH, count, count, seed=0)
    label = {"dense": dense_ground_truth, "raylg": ground_truth_matches}[name]
    return lambda: label(batch, GroundTruthConfig())


def scenes(number: int, most: int = 300) -> Iterator[tuple[PairBatch, GroundTruthConfig]]:
    """Random scenes, four in a padded batch; views of any length from nothing to `most` keypoints.

    Args:
        number: of scenes, a multiple of 4.
        most: keypoints of a view.
    """
    for seed in range(number // 4):
        rng = torch.Generator().manual_seed(seed)
        num0, num1 = torch.randint(0, most + 1, (2,), generator=rng).tolist()
        batch = random_pairs(4, num0, num1, seed=seed, without_depth=(0.0, 0.3, 1.0)[seed % 3])
        lengths = (torch.randint(0, number + 1, (4,), generator=rng) for number in (num0, num1))
        yield padded(batch, *lengths), THRESHOLDS[seed // 3 % len(THRESHOLDS)]


def compare(batch: PairBatch, config: GroundTruthConfig) -> tuple[int, int]:
    """Labels of the batch, and how many of them differ."""
    ours, dense = ground_truth_matches(batch, config), dense_ground_truth(batch, config).labels
    sides = ((ours.gt_matches0, dense.gt_matches0), (ours.gt_matches1, dense.gt_matches1))
    return sum(a.numel() for a, _ in sides), sum(int((a != b).sum()) for a, b in sides)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()

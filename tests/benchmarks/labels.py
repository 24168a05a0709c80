"""What the labels cost: their share of a training step, and how much of it a cache of candidates could save.

python tests/benchmarks/labels.py

The shards hold what the ground truth needs and no threshold changes: the depth at each keypoint, cameras and poses.
The next thing that no threshold changes is the nearest candidate of each keypoint; it depends on the number of
keypoints, so a cache would hold one copy for each. The last column is the most that such a cache could save.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from raylg.batch import GroundTruth, PairBatch, View
from raylg.geometry.camera import Camera, Pose
from raylg.models.config import LightGlueConfig
from raylg.models.lightglue import LightGlue
from raylg.supervision.assignment_loss import matching_loss
from raylg.supervision.config import GroundTruthConfig, LossConfig
from raylg.supervision.ground_truth import ground_truth_matches

BATCH = 2
SIZES = {
    "small, 2 layers of 128": LightGlueConfig(descriptor_dim=128, num_layers=2, num_heads=2),
    "published, 9 layers of 256": LightGlueConfig(),
}


def main() -> None:
    """Print a table."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_num_threads(1)
    print(f"{date.today()}, {device}: batches of {BATCH} pairs, least of 3\n")
    print("| LightGlue | keypoints | labels, ms | of it candidates, ms | step, ms | candidates' share of both |")
    print("|---|--:|--:|--:|--:|--:|")
    for name, config in SIZES.items():
        for num_keypoints in (512, 1024, 2048):
            batch = random_batch(num_keypoints, config.descriptor_dim).to(device)
            matcher = LightGlue(config, input_dim=config.descriptor_dim, add_scale_ori=False).to(device)
            labels = least(lambda batch=batch: ground_truth_matches(batch, GroundTruthConfig()))
            candidates = least(lambda batch=batch: ground_truth_matches(batch, GroundTruthConfig(th_epipolar=None)))
            step = least(lambda batch=batch, matcher=matcher: train(matcher, batch))
            share = candidates / (labels + step)
            print(
                f"| {name} | {num_keypoints} | {1000 * labels:.1f} | {1000 * candidates:.1f} | {1000 * step:.0f} | "
                f"{100 * share:.1f} % |",
                flush=True,
            )


def train(matcher: LightGlue, batch: PairBatch) -> None:
    """Forward, loss and backward, without the labels."""
    layers = matcher(batch.view0, batch.view1)
    same = torch.arange(batch.view0.mask.shape[1], device=batch.view0.mask.device).expand(BATCH, -1)
    ground_truth = GroundTruth(gt_matches0=same, gt_matches1=same)
    loss = matching_loss(layers, ground_truth, LossConfig(), batch.view0.mask, batch.view1.mask)
    loss.total.mean().backward()


def random_batch(num_keypoints: int, dim: int) -> PairBatch:
    """Two cameras side by side; three keypoints of five have a depth."""

    def view() -> View:
        depth = 3 + 5 * torch.rand(BATCH, num_keypoints)
        depth[torch.rand(BATCH, num_keypoints) < 0.4] = torch.nan
        return View(
            keypoints=torch.rand(BATCH, num_keypoints, 2) * torch.tensor([640.0, 480.0]),
            descriptors=torch.nn.functional.normalize(torch.randn(BATCH, num_keypoints, dim), dim=-1),
            mask=torch.ones(BATCH, num_keypoints, dtype=torch.bool),
            image_size=torch.tensor([640.0, 480.0]).expand(BATCH, -1),
            camera=Camera.from_params(torch.tensor([500.0, 500.0, 320.0, 240.0]).expand(BATCH, -1)),
            depth_keypoints=depth,
        )

    return PairBatch(
        view0=view(),
        view1=view(),
        T_0to1=Pose(torch.eye(3).expand(BATCH, -1, -1), torch.tensor([0.3, 0.0, 0.0]).expand(BATCH, -1)),
        overlap=torch.ones(BATCH),
        names=(("scene", "0", "1"),) * BATCH,
    )


def least(call: Callable[[], object]) -> float:
    """Shortest of three calls after a first one, in seconds."""
    times = []
    for _ in range(4):
        start = time.perf_counter()
        call()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return min(times[1:])


if __name__ == "__main__":
    main()

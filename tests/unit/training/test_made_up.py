from __future__ import annotations

import pytest
import torch

from raylg.batch import IGNORE, UNMATCHED
from raylg.supervision.ground_truth import ground_truth_matches
from raylg.training.config import RunConfig
from raylg.training.made_up import NOISE, corresponding_batch


@pytest.mark.parametrize("kind", ["pose", "homography"])
def test_labels_of_all_kinds(kind):
    config = RunConfig()
    batch = corresponding_batch(config, 4, 128, kind)
    labels = ground_truth_matches(batch, config.ground_truth).gt_matches0
    matched = labels >= 0
    assert (labels[matched] == torch.arange(128).expand(4, -1)[matched]).float().mean() > 0.9
    assert 0.1 < matched.float().mean() < 0.8
    assert (labels == UNMATCHED).any() and (labels == IGNORE).any()
    assert (batch.H_0to1 is None) == (kind == "pose")


def test_distances_are_as_said():
    batch = corresponding_batch(RunConfig(), 8, 256, "homography")
    moved = batch.view0.keypoints + batch.H_0to1[:, None, :2, 2]
    inside = (moved <= batch.view1.image_size[:, None]).all(-1)
    distance = (batch.view1.keypoints - moved).norm(dim=-1)[inside]
    assert distance.mean().item() == pytest.approx(NOISE, rel=0.1)


def test_the_same_at_each_call():
    first, second = (corresponding_batch(RunConfig(), 2, 64) for _ in range(2))
    assert torch.equal(first.view1.keypoints, second.view1.keypoints)
    assert torch.equal(first.view0.depth_keypoints.isnan(), second.view0.depth_keypoints.isnan())

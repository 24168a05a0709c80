"""Labels against glue-factory's (2d17e3b)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from raylg.batch import GroundTruth, PairBatch, View
from raylg.geometry.camera import Camera, Pose
from raylg.supervision.config import GroundTruthConfig
from raylg.supervision.ground_truth import ground_truth_from_homography, ground_truth_matches


def load(path: Path) -> dict[str, torch.Tensor]:
    with np.load(path) as file:
        return {name: torch.from_numpy(file[name]) for name in file.files}


def view(data: dict[str, torch.Tensor], side: int) -> View:
    keypoints = data[f"keypoints{side}"]
    pairs, number = keypoints.shape[:2]
    K = data.get(f"K{side}", torch.eye(3).expand(pairs, 3, 3))
    return View(
        keypoints=keypoints,
        descriptors=torch.zeros(pairs, number, 1),
        mask=torch.ones(pairs, number, dtype=torch.bool),
        image_size=data.get(f"image_size{side}", torch.ones(2)).float().expand(pairs, 2),
        camera=Camera.from_K(K),
        depth_keypoints=data.get(f"depth_keypoints{side}", torch.full((pairs, number), torch.nan)),
    )


def assert_labels(ours: GroundTruth, data: dict[str, torch.Tensor], name: str) -> None:
    assert torch.equal(ours.gt_matches0, data[f"matches0_{name}"])
    assert torch.equal(ours.gt_matches1, data[f"matches1_{name}"])


@pytest.mark.parametrize(("th_positive", "th_negative", "epipolar"), [(3, 5, 0), (3, 5, 1), (1, 3, 0), (5, 10, 1)])
def test_labels_from_depth_are_identical(parity_dir: Path, th_positive: int, th_negative: int, epipolar: int) -> None:
    data = load(parity_dir / "ground_truth_depth.npz")
    T_0to1 = Pose(data["R_0to1"], data["t_0to1"])
    names = (("scene", "0", "1"),) * 3
    batch = PairBatch(view0=view(data, 0), view1=view(data, 1), T_0to1=T_0to1, overlap=torch.zeros(3), names=names)
    # The reference takes th_negative as the threshold of its epipolar test.
    th_epipolar = float(th_negative) if epipolar else None
    config = GroundTruthConfig(th_positive=float(th_positive), th_negative=float(th_negative), th_epipolar=th_epipolar)
    labels = ground_truth_matches(batch, config)
    assert_labels(labels, data, f"pos{th_positive}_neg{th_negative}_epi{epipolar}")


@pytest.mark.parametrize(("th_positive", "th_negative"), [(3, 3), (3, 6), (1, 3)])
def test_labels_from_a_homography_are_identical(parity_dir: Path, th_positive: int, th_negative: int) -> None:
    data = load(parity_dir / "ground_truth_homography.npz")
    config = GroundTruthConfig(th_positive=float(th_positive), th_negative=float(th_negative))
    labels = ground_truth_from_homography(view(data, 0), view(data, 1), data["H_0to1"], config)
    assert_labels(labels, data, f"pos{th_positive}_neg{th_negative}")

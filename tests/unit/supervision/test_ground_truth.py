"""Labels against a double loop over keypoints, and where padding and empty views come in."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from raylg.batch import IGNORE, UNMATCHED, PairBatch, View
from raylg.geometry.camera import Camera, Pose
from raylg.supervision import ground_truth as module
from raylg.supervision.config import GroundTruthConfig
from raylg.supervision.ground_truth import ground_truth_from_homography, ground_truth_matches

WIDTH, HEIGHT = 320.0, 240.0
CONFIG = GroundTruthConfig(th_positive=3.0, th_negative=5.0, th_epipolar=2.0)


def rotation(axis: np.ndarray, degrees: float) -> np.ndarray:
    x, y, z = axis / np.linalg.norm(axis)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    angle = np.radians(degrees)
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


def make_view(keypoints: np.ndarray, depth: np.ndarray, params: np.ndarray) -> View:
    return View(
        keypoints=torch.from_numpy(keypoints).float()[None],
        descriptors=torch.zeros(1, len(keypoints), 1),
        mask=torch.ones(1, len(keypoints), dtype=torch.bool),
        image_size=torch.tensor([[WIDTH, HEIGHT]]),
        camera=Camera.from_params(torch.from_numpy(params).float()[None]),
        depth_keypoints=torch.from_numpy(depth).float()[None],
    )


def make_pair(seed: int, num0: int = 60, num1: int = 50) -> PairBatch:
    """Random points seen by two cameras, some by one of them only, a third without depth."""
    rng = np.random.default_rng(seed)
    params0, params1 = np.array([300.0, 310, 150, 125]), np.array([280.0, 290, 170, 115])
    R, t = rotation(rng.normal(size=3), 8.0), rng.normal(size=3) * 0.3
    depth0 = rng.uniform(1, 4, num0)
    keypoints0 = rng.uniform([0, 0], [WIDTH, HEIGHT], (num0, 2))
    in0 = np.c_[(keypoints0 - params0[2:]) / params0[:2], np.ones(num0)] * depth0[:, None]
    in1 = in0 @ R.T + t
    projected = in1[:, :2] / in1[:, 2:] * params1[:2] + params1[2:]
    keypoints1 = rng.uniform([0, 0], [WIDTH, HEIGHT], (num1, 2))
    depth1 = rng.uniform(1, 4, num1)
    shared = min(num0, num1) * 2 // 3
    keypoints1[:shared] = projected[:shared] + rng.normal(size=(shared, 2)) * 2
    depth1[:shared] = in1[:shared, 2]
    depth0[rng.random(num0) < 0.3] = np.nan
    depth1[rng.random(num1) < 0.3] = np.nan
    T_0to1 = Pose(torch.from_numpy(R).float()[None], torch.from_numpy(t).float()[None])
    views = make_view(keypoints0, depth0, params0), make_view(keypoints1, depth1, params1)
    return PairBatch(
        view0=views[0], view1=views[1], T_0to1=T_0to1, overlap=torch.zeros(1), names=(("scene", "0", "1"),)
    )


def slow_warp(pair: PairBatch, source: int) -> np.ndarray:
    """Keypoints in the other view, NaN without depth, in float64."""
    views = (pair.view0, pair.view1)
    view, other = views[source], views[1 - source]
    T = (pair.T_0to1 if source == 0 else pair.T_0to1.inv())[0]
    K, K_other = view.camera.K[0].double().numpy(), other.camera.K[0].double().numpy()
    homogeneous = np.c_[view.keypoints[0].double().numpy(), np.ones(view.keypoints.shape[1])]
    points = (np.linalg.inv(K) @ homogeneous.T) * view.depth_keypoints[0].double().numpy()
    points = K_other @ (T.R.double().numpy() @ points + T.t.double().numpy()[:, None])
    return (points[:2] / points[2:]).T


def slow_labels(pair: PairBatch, config: GroundTruthConfig) -> tuple[list[int], list[int]]:
    """The definition, one pair of keypoints at a time, on a batch of one without padding."""
    keypoints = [view.keypoints[0].double().numpy() for view in (pair.view0, pair.view1)]
    warped = [slow_warp(pair, 0), slow_warp(pair, 1)]
    known = [~np.isnan(points[:, 0]) for points in warped]
    forward = slow_distances(warped[0], keypoints[1])
    backward = slow_distances(warped[1], keypoints[0]).T
    visible = [((points >= 0) & (points <= [WIDTH, HEIGHT])).all(1) for points in warped]
    both = np.where(visible[0][:, None] & visible[1][None], np.maximum(forward, backward), np.inf)
    labels = [[IGNORE] * len(keypoints[0]), [IGNORE] * len(keypoints[1])]
    for i, row in enumerate(both):
        j = int(row.argmin())
        if row[j] < config.th_positive and both[:, j].argmin() == i:
            labels[0][i], labels[1][j] = j, i
    for side, distances in enumerate((forward, backward.T)):
        for k, row in enumerate(distances):
            if known[side][k] and row.min() > config.th_negative:
                labels[side][k] = UNMATCHED
    if config.th_epipolar is not None:
        epipolar = slow_epipolar_distance(pair, keypoints)
        undecided = [[k for k, label in enumerate(side) if label == IGNORE] for side in labels]
        for side, distances in enumerate((epipolar, epipolar.T)):
            for k in undecided[side]:
                if not known[side][k] and all(
                    distances[k, other] > config.th_epipolar for other in undecided[1 - side]
                ):
                    labels[side][k] = UNMATCHED
    return labels[0], labels[1]


def slow_distances(warped: np.ndarray, keypoints: np.ndarray) -> np.ndarray:
    """[M, N] px; infinite without depth."""
    distances = np.full((len(warped), len(keypoints)), np.inf)
    for i, point in enumerate(warped):
        if not np.isnan(point[0]):
            distances[i] = [np.linalg.norm(point - keypoint) for keypoint in keypoints]
    return distances


def slow_epipolar_distance(pair: PairBatch, keypoints: list[np.ndarray]) -> np.ndarray:
    x, y, z = pair.T_0to1.t[0].double().numpy()
    E = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]]) @ pair.T_0to1.R[0].double().numpy()
    K0, K1 = pair.view0.camera.K[0].double().numpy(), pair.view1.camera.K[0].double().numpy()
    F = np.linalg.inv(K1).T @ E @ np.linalg.inv(K0)
    distance = np.empty((len(keypoints[0]), len(keypoints[1])))
    for i, p0 in enumerate(keypoints[0]):
        for j, p1 in enumerate(keypoints[1]):
            line1, line0 = F @ [*p0, 1], F.T @ [*p1, 1]
            residual = abs(np.array([*p1, 1]) @ line1)
            distance[i, j] = residual * (1 / np.linalg.norm(line1[:2]) + 1 / np.linalg.norm(line0[:2])) / 2
    return distance


def padded(view: View, number: int) -> View:
    """The view with keypoints of padding at the end, as the data loader makes them."""
    extra = number - view.keypoints.shape[1]

    def pad(values: torch.Tensor, fill: float | bool) -> torch.Tensor:
        return torch.cat([values, values.new_full((1, extra, *values.shape[2:]), fill)], dim=1)

    return replace(
        view,
        keypoints=pad(view.keypoints, 0.0),
        descriptors=pad(view.descriptors, 0.0),
        mask=pad(view.mask, False),
        depth_keypoints=pad(view.depth_keypoints, torch.nan),
    )


def stack(views: list[View], number: int) -> View:
    views = [padded(view, number) for view in views]

    def join(name: str) -> torch.Tensor:
        return torch.cat([getattr(view, name) for view in views])

    return View(
        keypoints=join("keypoints"),
        descriptors=join("descriptors"),
        mask=join("mask"),
        image_size=join("image_size"),
        depth_keypoints=join("depth_keypoints"),
        camera=Camera(torch.cat([v.camera.f for v in views]), torch.cat([v.camera.c for v in views])),
    )


def collate(pairs: list[PairBatch], num0: int, num1: int) -> PairBatch:
    return PairBatch(
        view0=stack([pair.view0 for pair in pairs], num0),
        view1=stack([pair.view1 for pair in pairs], num1),
        T_0to1=Pose(torch.cat([pair.T_0to1.R for pair in pairs]), torch.cat([pair.T_0to1.t for pair in pairs])),
        overlap=torch.zeros(len(pairs)),
        names=tuple(pair.names[0] for pair in pairs),
    )


@pytest.mark.parametrize("chunk_rows", [7, 256])
@pytest.mark.parametrize("th_epipolar", [None, 2.0, 20.0])
def test_padded_batch_equals_the_double_loop(
    monkeypatch: pytest.MonkeyPatch, chunk_rows: int, th_epipolar: float | None
) -> None:
    monkeypatch.setitem(module.CHUNK_ELEMENTS, "cpu", chunk_rows * 3 * 57)
    config = replace(CONFIG, th_epipolar=th_epipolar)
    sizes = [(60, 50), (31, 55), (1, 12)]
    pairs = [make_pair(seed, *size) for seed, size in enumerate(sizes)]
    labels = ground_truth_matches(collate(pairs, 64, 57), config)
    seen = set()
    for b, (pair, (num0, num1)) in enumerate(zip(pairs, sizes, strict=True)):
        expected0, expected1 = slow_labels(pair, config)
        assert labels.gt_matches0[b].tolist() == expected0 + [IGNORE] * (64 - num0)
        assert labels.gt_matches1[b].tolist() == expected1 + [IGNORE] * (57 - num1)
        seen |= {min(label, 0) for label in expected0}
    assert seen == {0, UNMATCHED, IGNORE}


def test_padding_attracts_nothing() -> None:
    """Padding is at (0, 0), exactly where this keypoint projects to, and on its epipolar line."""
    params = np.array([100.0, 100, 0, 0])
    alone = make_view(np.array([[0.0, 0.0]]), np.array([1.0]), params)
    undecided = make_view(np.array([[0.0, 0.0]]), np.array([np.nan]), params)
    other = make_view(np.array([[200.0, 200.0]]), np.array([np.nan]), params)
    T_0to1 = Pose(torch.eye(3)[None], torch.tensor([[0.0, 0.0, 0.1]]))
    pair = PairBatch(view0=alone, view1=other, T_0to1=T_0to1, overlap=torch.zeros(1), names=(("s", "0", "1"),))
    for view0 in (alone, undecided):
        sideways = Pose(torch.eye(3)[None], torch.tensor([[0.1, 0.0, 0.0]]))
        batch = replace(pair, view0=view0, T_0to1=T_0to1 if view0 is alone else sideways)
        batch = collate([batch], 3, 4)
        labels = ground_truth_matches(batch, CONFIG)
        assert labels.gt_matches0.tolist() == [[UNMATCHED, IGNORE, IGNORE]]


@pytest.mark.parametrize(("num0", "num1"), [(0, 5), (5, 0), (0, 0)])
def test_empty_views(num0: int, num1: int) -> None:
    pair = make_pair(0, 6, 6)
    views = replace_size(pair.view0, num0), replace_size(pair.view1, num1)
    labels = ground_truth_matches(replace(pair, view0=views[0], view1=views[1]), CONFIG)
    # Where there is no candidate, none can be near.
    assert labels.gt_matches0.tolist() == [[UNMATCHED] * num0]
    assert labels.gt_matches1.tolist() == [[UNMATCHED] * num1]
    labels = ground_truth_from_homography(*views, torch.eye(3)[None], CONFIG)
    assert labels.gt_matches0.tolist() == [[UNMATCHED] * num0]
    assert labels.gt_matches1.tolist() == [[UNMATCHED] * num1]


def replace_size(view: View, number: int) -> View:
    return replace(
        view,
        keypoints=view.keypoints[:, :number],
        descriptors=view.descriptors[:, :number],
        mask=view.mask[:, :number],
        depth_keypoints=view.depth_keypoints[:, :number],
    )


def test_true_image_size_decides_what_is_visible() -> None:
    """A principal point off the centre does not shrink the image."""
    params = np.array([100.0, 100, 40, 120])
    view = make_view(np.array([[300.0, 100.0]]), np.array([2.0]), params)
    T_0to1 = Pose(torch.eye(3)[None], torch.zeros(1, 3))
    pair = PairBatch(view0=view, view1=view, T_0to1=T_0to1, overlap=torch.zeros(1), names=(("s", "0", "1"),))
    assert ground_truth_matches(pair, CONFIG).gt_matches0.item() == 0
    small = replace(view, image_size=torch.tensor([[299.0, HEIGHT]]))
    assert ground_truth_matches(replace(pair, view1=small), CONFIG).gt_matches0.item() == IGNORE


def test_behind_the_camera_is_unmatched() -> None:
    params = np.array([100.0, 100, 160, 120])
    view = make_view(np.array([[160.0, 120.0]]), np.array([1.0]), params)
    T_0to1 = Pose(torch.eye(3)[None], torch.tensor([[0.0, 0.0, -2.0]]))
    pair = PairBatch(view0=view, view1=view, T_0to1=T_0to1, overlap=torch.zeros(1), names=(("s", "0", "1"),))
    assert ground_truth_matches(pair, CONFIG).gt_matches0.item() == UNMATCHED
    assert ground_truth_matches(collate([pair], 2, 3), CONFIG).gt_matches0.tolist() == [[UNMATCHED, IGNORE]]


def test_autocast_changes_no_label() -> None:
    pair = make_pair(3)
    expected = ground_truth_matches(pair, CONFIG)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        labels = ground_truth_matches(pair, CONFIG)
    assert torch.equal(labels.gt_matches0, expected.gt_matches0)
    assert torch.equal(labels.gt_matches1, expected.gt_matches1)


def test_homography_labels_ignore_padding() -> None:
    pair = make_pair(5)
    H = torch.tensor([[[1.0, 0.02, 3.0], [-0.02, 1.0, 1.0], [1e-5, 0, 1.0]]])
    alone = ground_truth_from_homography(pair.view0, pair.view1, H, CONFIG)
    batch = collate([pair], 70, 66)
    labels = ground_truth_from_homography(batch.view0, batch.view1, H, CONFIG)
    assert labels.gt_matches0[0].tolist() == alone.gt_matches0[0].tolist() + [IGNORE] * 10
    assert labels.gt_matches1[0].tolist() == alone.gt_matches1[0].tolist() + [IGNORE] * 16


def test_a_batch_with_homographies_is_labelled_by_them() -> None:
    pair = make_pair(3)
    H = torch.tensor([[[1.02, 0.01, 3.0], [0.0, 0.98, -4.0], [1e-5, 0.0, 1.0]]])
    unknown = Camera.from_params(torch.full((1, 4), torch.nan))
    views = [
        replace(view, camera=unknown, depth_keypoints=torch.full_like(view.depth_keypoints, torch.nan))
        for view in (pair.view0, pair.view1)
    ]
    nothing = Pose(torch.full((1, 3, 3), torch.nan), torch.full((1, 3), torch.nan))
    labels = ground_truth_matches(replace(pair, view0=views[0], view1=views[1], T_0to1=nothing, H_0to1=H), CONFIG)
    expected = ground_truth_from_homography(pair.view0, pair.view1, H, CONFIG)
    assert torch.equal(labels.gt_matches0, expected.gt_matches0)
    assert torch.equal(labels.gt_matches1, expected.gt_matches1)
    assert (labels.gt_matches0 >= 0).any()

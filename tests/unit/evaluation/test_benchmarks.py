"""Scores of known matches, whoever scored them in whatever order."""

from __future__ import annotations

import threading
from dataclasses import fields, replace

import numpy as np
import pytest
import torch

from raylg.batch import Matches, PairBatch, View
from raylg.errors import ConfigError
from raylg.evaluation import matched_pairs
from raylg.evaluation.benchmarks import check_pixels, protocol_hash, score_pairs
from raylg.evaluation.config import EvaluationConfig
from raylg.evaluation.pair_scores import PairScores, concatenate
from raylg.geometry.camera import Camera, Pose
from raylg.geometry.homography import warp_points
from raylg.models.config import LightGlueConfig

PARAMS = np.array([500.0, 500, 320, 240])
CONFIG = EvaluationConfig(batch_size=3, num_threads=2, ransac_max_iterations=500)
INDICES = np.array([[shard, pair] for shard in range(2) for pair in range(4)])


def exact_pair(index: tuple[int, int], num: int = 40) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Pixels of the same points in both views, R and t; a pure function of the index."""
    rng = np.random.default_rng(index)
    angle = rng.uniform(0.05, 0.3)
    R = np.array([[np.cos(angle), 0, np.sin(angle)], [0, 1, 0], [-np.sin(angle), 0, np.cos(angle)]])
    t = rng.normal(size=3) * 0.5
    points = rng.uniform([-1, -1, 4], [1, 1, 8], (num, 3))
    moved = points @ R.T + t
    points0, points1 = (p[:, :2] / p[:, 2:] * PARAMS[:2] + PARAMS[2:] for p in (points, moved))
    return points0, points1, R, t


class FakeDataset:
    """Pairs of exact correspondences: keypoint k of view 0 is keypoint k of view 1; one column of padding."""

    num = 40

    def fetch(self, shard: int) -> None:
        """Nothing is ever far."""

    def batch(self, indices: np.ndarray) -> PairBatch:
        """Pairs at (shard, pair)."""
        pairs = [exact_pair((int(s), int(p)), self.num) for s, p in indices]

        def view(side: int) -> View:
            keypoints = np.array([np.concatenate([pair[side], np.zeros((1, 2))]) for pair in pairs])
            mask = torch.ones(len(pairs), self.num + 1, dtype=torch.bool)
            mask[:, -1] = False
            return View(
                keypoints=torch.from_numpy(keypoints).float(),
                descriptors=torch.zeros(len(pairs), self.num + 1, 1),
                mask=mask,
                image_size=torch.tensor([[640.0, 480.0]]).expand(len(pairs), 2),
                camera=Camera.from_params(torch.from_numpy(PARAMS).float().expand(len(pairs), 4)),
                depth_keypoints=torch.full((len(pairs), self.num + 1), torch.nan),
            )

        R, t = (torch.from_numpy(np.array([pair[k] for pair in pairs])).float() for k in (2, 3))
        names = tuple((f"scene-{s}", f"{p}/left.jpg", f"{p}/right.jpg") for s, p in indices)
        overlap = torch.tensor([0.1 * (p + 1) for _, p in indices])
        return PairBatch(view0=view(0), view1=view(1), T_0to1=Pose(R, t), overlap=overlap, names=names)


class HomographyDataset(FakeDataset):
    """Pairs of exact correspondences under a homography."""

    def homography(self, index: tuple[int, int]) -> np.ndarray:
        rng = np.random.default_rng(index)
        return np.eye(3) + rng.normal(size=(3, 3)) * [[0.1, 0.1, 20], [0.1, 0.1, 20], [1e-4, 1e-4, 0]]

    def batch(self, indices: np.ndarray) -> PairBatch:
        """Pairs at (shard, pair); nothing is known but the homography."""
        batch = super().batch(indices)
        H = torch.from_numpy(np.stack([self.homography((int(s), int(p))) for s, p in indices])).float()
        unknown = Camera.from_params(torch.full((len(indices), 4), torch.nan))
        warped = warp_points(batch.view0.keypoints, H)
        return replace(
            batch,
            view0=replace(batch.view0, camera=unknown),
            view1=replace(batch.view1, camera=unknown, keypoints=warped),
            T_0to1=Pose(torch.full((len(indices), 3, 3), torch.nan), torch.full((len(indices), 3), torch.nan)),
            H_0to1=H,
        )


class Resized:
    """Another data set after its images were resized: view 0 by 1/2 in both axes, view 1 by 1/3 and 1/4."""

    factors = (torch.tensor([2.0, 2.0]), torch.tensor([3.0, 4.0]))

    def __init__(self, dataset: FakeDataset) -> None:
        self.dataset = dataset

    def fetch(self, shard: int) -> None:
        """Nothing is ever far."""

    def batch(self, indices: np.ndarray) -> PairBatch:
        """Pairs at (shard, pair)."""
        batch = self.dataset.batch(indices)
        views = [
            replace(
                view,
                keypoints=view.keypoints / factor,
                image_size=view.image_size / factor,
                original_size=view.image_size,
                camera=view.camera.scaled(1 / factor),
            )
            for view, factor in zip((batch.view0, batch.view1), self.factors, strict=True)
        ]
        H = batch.H_0to1
        if H is not None:
            S0, S1 = (torch.diag(torch.cat([factor, torch.ones(1)])) for factor in self.factors)
            H = torch.linalg.inv(S1) @ H @ S0
        return replace(batch, view0=views[0], view1=views[1], H_0to1=H)


class Identity:
    """Matches keypoint k to keypoint k, the first `num` of them; the rest not at all."""

    def __init__(self, num: int) -> None:
        self.num = num

    def match(self, view0: View, view1: View) -> Matches:
        """Match a batch."""
        pairs, number = view0.mask.shape
        matches0 = torch.arange(number).expand(pairs, number).clone()
        matches0[:, self.num :] = -1
        scores = (matches0 >= 0).float()
        used = torch.ones(pairs, dtype=torch.int64)
        return Matches(
            matches0=matches0, matches1=matches0, matching_scores0=scores, matching_scores1=scores, num_layers_used=used
        )


class Shifted(Identity):
    """Matches keypoint k to keypoint k + 1: all wrong."""

    def match(self, view0: View, view1: View) -> Matches:
        """Match a batch."""
        matches = super().match(view0, view1)
        return replace(matches, matches0=torch.where(matches.matches0 >= 0, (matches.matches0 + 1) % self.num, -1))


def score(
    matcher: Identity,
    config: EvaluationConfig = CONFIG,
    indices: np.ndarray = INDICES,
    dataset: FakeDataset | Resized | None = None,
) -> PairScores:
    return score_pairs(matcher, dataset or FakeDataset(), config, device="cpu", indices=indices)  # type: ignore[arg-type]


def assert_same(a: PairScores, b: PairScores) -> None:
    for field in fields(PairScores):
        np.testing.assert_array_equal(getattr(a, field.name), getattr(b, field.name), field.name)


@pytest.fixture(scope="module")
def exact() -> PairScores:
    return score(Identity(40))


def test_exact_matches_give_the_true_pose(exact: PairScores) -> None:
    assert len(exact) == len(INDICES)
    assert exact.pose_error.max() < 0.01
    assert exact.indices.tolist() == INDICES.tolist()
    assert exact.scenes.tolist() == ["scene-0"] * 4 + ["scene-1"] * 4
    assert exact.names0.tolist() == [f"{pair}/left.jpg" for pair in range(4)] * 2
    assert exact.names1.tolist() == [f"{pair}/right.jpg" for pair in range(4)] * 2
    assert (exact.num_matches == 40).all()
    assert (exact.num_inliers == 40).all()
    assert (exact.num_keypoints0 == 40).all()
    assert (exact.num_keypoints1 == 40).all()
    assert (exact.precision == 1).all()
    np.testing.assert_allclose(exact.overlap, [0.1, 0.2, 0.3, 0.4] * 2, rtol=1e-6)


def test_metrics(exact: PairScores) -> None:
    metrics = exact.metrics("val")
    assert metrics["val/auc@5"] == pytest.approx(1, abs=0.01)
    assert metrics["val/mean_auc"] == pytest.approx(np.mean([metrics[f"val/auc@{t}"] for t in (5, 10, 20)]))
    assert metrics["val/mean_score@20"] == pytest.approx(1 - exact.pose_error.mean() / 20)
    assert metrics["val/precision@3px"] == 1
    assert metrics["val/num_matches"] == 40
    assert metrics["val/num_inliers"] == 40
    assert metrics["val/failures"] == 0


def test_homographies_are_scored_at_their_corners() -> None:
    exact = score(Identity(40), dataset=HomographyDataset())
    assert (exact.kind, len(exact)) == ("homography", 8)
    assert exact.corner_error.max() < 0.01
    np.testing.assert_array_equal(exact.error, exact.corner_error)
    assert np.isnan([exact.rotation_error, exact.translation_error]).all()
    assert (exact.precision == 1).all()
    assert (exact.num_inliers == 40).all()
    metrics = exact.metrics("val")
    assert metrics["val/corner_auc@1"] == pytest.approx(1, abs=0.01)
    assert metrics["val/mean_auc"] == pytest.approx(np.mean([metrics[f"val/corner_auc@{t}"] for t in (1, 3, 5)]))
    assert metrics["val/corner_mean_score@5"] == pytest.approx(1 - exact.corner_error.mean() / 5)
    assert metrics["val/precision@3px"] == 1
    assert not [key for key in metrics if key.startswith("val/auc")]
    wrong = score(Shifted(40), dataset=HomographyDataset())
    assert wrong.precision.mean() < 0.2
    assert wrong.metrics("val")["val/corner_auc@5"] < 0.1


@pytest.mark.parametrize("num", [0, 3])
def test_homographies_with_too_few_matches_are_failures_that_count(num: int) -> None:
    few = score(Identity(num), dataset=HomographyDataset())
    assert np.isinf(few.corner_error).all()
    assert few.metrics("val")["val/failures"] == 8
    assert few.metrics("val")["val/mean_auc"] == 0


@pytest.mark.parametrize("dataset", [FakeDataset(), HomographyDataset()], ids=["pose", "homography"])
def test_original_pixels_give_the_scores_of_the_images_before_they_were_resized(dataset: FakeDataset) -> None:
    class Noisy(FakeDataset):
        def batch(self, indices: np.ndarray) -> PairBatch:
            batch = dataset.batch(indices)
            noise = torch.from_numpy(np.random.default_rng(indices.tolist()[0]).normal(size=(40, 2))).float()
            keypoints = batch.view1.keypoints.clone()
            keypoints[:, :40] += 2 * noise
            return replace(batch, view1=replace(batch.view1, keypoints=keypoints))

    one = replace(CONFIG, batch_size=1)
    truth = score(Identity(40), one, dataset=Noisy())
    original = score(Identity(40), replace(one, pixels="original"), dataset=Resized(Noisy()))
    np.testing.assert_allclose(original.error, truth.error, rtol=1e-2)
    np.testing.assert_array_equal(original.num_inliers, truth.num_inliers)
    np.testing.assert_array_equal(original.precision, truth.precision)
    resized = score(Identity(40), one, dataset=Resized(Noisy()))  # where the thresholds are worth more pixels
    assert resized.num_inliers.mean() > truth.num_inliers.mean() + 3
    assert resized.precision.mean() > truth.precision.mean() + 0.1


def test_original_pixels_need_the_original_sizes() -> None:
    with pytest.raises(ConfigError, match=r"evaluation\.pixels = 'original'.*prepare them again"):
        score(Identity(40), replace(CONFIG, pixels="original"))


def test_original_sizes_are_looked_for_before_time_is_spent() -> None:
    class Sized(FakeDataset):
        num_pairs, shard_sizes = 8, (0, 8)

    unknown, known = Sized(), Resized(Sized())
    known.num_pairs, known.shard_sizes = 8, (0, 8)  # type: ignore[attr-defined]
    original = replace(CONFIG, pixels="original")
    check_pixels(unknown, CONFIG)  # type: ignore[arg-type]
    check_pixels(known, original)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="original"):
        check_pixels(unknown, original)  # type: ignore[arg-type]


def test_wrong_matches_have_no_precision() -> None:
    wrong = score(Shifted(40))
    assert wrong.precision.mean() < 0.3
    assert wrong.metrics("val")["val/auc@5"] < 0.5


def test_precision_obeys_its_threshold() -> None:
    strict = score(Shifted(40), replace(CONFIG, precision_threshold=0.1))
    lax = score(Shifted(40), replace(CONFIG, precision_threshold=100.0))
    assert strict.precision.mean() < lax.precision.mean()
    assert "test/precision@0.1px" in strict.metrics("test")


@pytest.mark.parametrize("num", [0, 4])
def test_pairs_with_too_few_matches_are_failures_that_count(num: int) -> None:
    few = score(Identity(num))
    assert np.isinf(few.rotation_error).all()
    assert np.isinf(few.translation_error).all()
    assert (few.num_matches == num).all()
    assert (few.num_inliers == 0).all()
    assert (few.precision == (0 if num == 0 else 1)).all()
    metrics = few.metrics("val")
    assert metrics["val/failures"] == 8
    assert metrics["val/auc@20"] == 0


def test_parts_of_ranks_join_in_the_order_of_the_data_set(exact: PairScores) -> None:
    parts = [score(Identity(40), indices=INDICES[rank::3]) for rank in (2, 0, 1)]
    assert_same(concatenate(parts), exact)


def test_batch_size_and_threads_change_nothing(exact: PairScores) -> None:
    assert_same(score(Identity(40), replace(CONFIG, batch_size=8, num_threads=1)), exact)


def test_no_pairs() -> None:
    none = score(Identity(40), indices=np.zeros((0, 2), dtype=np.int64))
    assert len(none) == 0
    with pytest.raises(ConfigError, match="val: no pair was scored"):
        none.metrics("val")


def test_an_error_of_the_estimator_stops_scoring(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(matched_pairs, "estimate_relative_pose", broken)
    with pytest.raises(ZeroDivisionError):
        score(Identity(40))
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("pose")]


def test_poses_are_estimated_while_later_batches_are_matched(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first estimate waits for the second batch: without overlap it would wait in vain."""
    second_batch = threading.Event()
    real = matched_pairs.estimate_relative_pose

    def wait(*arguments: object) -> object:
        assert second_batch.wait(timeout=20), "matching waits for the estimator"
        return real(*arguments)  # type: ignore[arg-type]

    class Watched(Identity):
        calls = 0

        def match(self, view0: View, view1: View) -> Matches:
            self.calls += 1
            if self.calls == 2:
                second_batch.set()
            return super().match(view0, view1)

    monkeypatch.setattr(matched_pairs, "estimate_relative_pose", wait)
    assert len(score(Watched(40))) == 8


def hashed(config: EvaluationConfig = CONFIG, **changes: object) -> str:
    arguments = {"data_hash": "d", "indices": INDICES, "matcher": LightGlueConfig(), "num_keypoints": 512} | changes
    return protocol_hash(config, **arguments)  # type: ignore[arg-type]


def test_protocol_hash_changes_with_everything_that_changes_a_score() -> None:
    hashes = [
        hashed(),
        hashed(data_hash="e"),
        hashed(indices=INDICES[1:]),
        hashed(matcher=LightGlueConfig(filter_threshold=0.2)),
        hashed(matcher=LightGlueConfig(depth_confidence=0.9)),
        hashed(matcher=LightGlueConfig(width_confidence=0.9)),
        hashed(num_keypoints=1024),
        hashed(replace(CONFIG, ransac_threshold=1.0)),
        hashed(replace(CONFIG, ransac_max_iterations=501)),
        hashed(replace(CONFIG, ransac_seed=1)),
        hashed(replace(CONFIG, precision_threshold=1.0)),
        hashed(replace(CONFIG, pixels="original")),
    ]
    assert len(set(hashes)) == len(hashes)
    assert all(len(value) == 12 and int(value, 16) >= 0 for value in hashes)


def test_protocol_hash_changes_with_nothing_else() -> None:
    assert hashed(matcher=LightGlueConfig(num_layers=3)) == hashed()
    assert hashed(replace(CONFIG, batch_size=1, num_threads=7)) == hashed()
    assert hashed(indices=INDICES[::-1]) == hashed()

"""Scores of single pairs: kept, joined, described, whatever they measure."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raylg.errors import ConfigError
from raylg.evaluation.measures import HOMOGRAPHY, POSE
from raylg.evaluation.pair_scores import PairScores, concatenate
from raylg.evaluation.statistics import paired_difference


def pair_scores(errors: list[float], **changes: Any) -> PairScores:
    """A pair per error, in pixels at the corners or, for poses, in degrees of rotation."""
    number = len(errors)
    order = np.arange(number)
    kind = changes.get("kind", "homography")
    absent = np.full(number, np.nan)
    values: dict[str, Any] = {
        "kind": kind,
        "indices": np.stack([np.zeros_like(order), order], axis=1),
        "scenes": np.array(["scene"] * number, dtype=np.str_),
        "names0": order.astype(np.str_),
        "names1": (order + 1).astype(np.str_),
        "rotation_error": np.array(errors) if kind == "pose" else absent,
        "translation_error": np.zeros(number) if kind == "pose" else absent,
        "corner_error": absent if kind == "pose" else np.array(errors),
        "num_matches": order,
        "num_inliers": order,
        "num_keypoints0": order,
        "num_keypoints1": order,
        "precision": np.full(number, 0.5),
        "overlap": absent,
        "precision_threshold": 3.0,
    }
    return PairScores(**values | changes)


def assert_same(a: PairScores, b: PairScores) -> None:
    for field in fields(PairScores):
        np.testing.assert_array_equal(getattr(a, field.name), getattr(b, field.name), field.name)


@pytest.mark.parametrize("kind", ["pose", "homography"])
def test_save_and_load(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "pairs.npz"
    for errors in ([1.0, np.inf, 0.2], []):
        scores = pair_scores(errors, kind=kind)
        scores.save(path)
        assert_same(PairScores.load(path), scores)
    assert [file.name for file in tmp_path.iterdir()] == ["pairs.npz"]


def test_load_names_what_it_cannot_read(tmp_path: Path) -> None:
    (tmp_path / "text.npz").write_text("not an archive")
    np.savez(tmp_path / "other.npz", a=np.zeros(3))
    pair_scores([1.0]).save(tmp_path / "good.npz")
    with np.load(tmp_path / "good.npz") as good:
        np.savez(tmp_path / "kind.npz", **{**good, "kind": "affine"})
    for name in ("missing.npz", "text.npz", "other.npz", "kind.npz"):
        with pytest.raises(ConfigError, match=name):
            PairScores.load(tmp_path / name)


def test_kinds_differ_in_unit_and_error() -> None:
    pose, homography = pair_scores([2.0], kind="pose"), pair_scores([2.0])
    assert (pose.measure, homography.measure) == (POSE, HOMOGRAPHY)
    assert pose.error.tolist() == homography.error.tolist() == [2.0]
    assert np.isnan(homography.pose_error).all()
    assert {"a/auc@20", "a/mean_auc"} < pose.metrics("a").keys()
    assert {"a/corner_auc@1", "a/mean_auc"} < homography.metrics("a").keys()
    with pytest.raises(AssertionError, match="different protocols"):
        concatenate([pose, homography])


def test_errors_for_people() -> None:
    assert pair_scores([1.26], kind="pose").describe(0) == "pose error 1.3 deg"
    assert pair_scores([1.26]).describe(0) == "corner error 1.3 px"
    assert pair_scores([np.inf], kind="pose").describe(0) == "no pose"
    assert pair_scores([np.inf]).describe(0) == "no homography"


def test_homographies_are_compared_in_pixels() -> None:
    better, worse = pair_scores([0.0] * 8), pair_scores([1.5] * 8)
    found = paired_difference(better, worse, threshold=3.0)
    assert (found.difference, found.low, found.high) == pytest.approx((0.5, 0.5, 0.5))
    with pytest.raises(ConfigError, match="homography and pose pairs cannot be compared"):
        paired_difference(better, pair_scores([1.0] * 8, kind="pose"), threshold=3.0)

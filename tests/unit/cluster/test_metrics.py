"""Gauges, with Ray's own class for names and a record of what is set; no cluster is started."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from ray.util.metrics import Gauge

from raylg.cluster import metrics as gauges
from raylg.evaluation.config import BENCHMARKS
from raylg.evaluation.pair_scores import PairScores

Shown = dict[str, tuple[float, dict[str, str]]]


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> Iterator[Shown]:
    """Name to value and tags."""
    values: Shown = {}

    class Recorded(Gauge):
        def set(self, value: float, tags: dict[str, str] | None = None) -> None:
            assert tags is not None and set(tags) == set(self.info["tag_keys"])
            values[self.info["name"]] = (value, tags)

    monkeypatch.setattr(gauges, "Gauge", Recorded)
    gauges._gauge.cache_clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # Ray only warns of a name that Prometheus refuses
        yield values
    gauges._gauge.cache_clear()


def reported(group: str, **changes: Any) -> dict[str, float]:
    """What a run reports of one pair."""
    names, values, counts = np.array(["a"]), np.array([0.5]), np.array([9])
    scores = dict.fromkeys(("scenes", "names0", "names1"), names)
    scores |= dict.fromkeys(("rotation_error", "translation_error", "corner_error", "precision", "overlap"), values)
    scores |= dict.fromkeys(("num_matches", "num_inliers", "num_keypoints0", "num_keypoints1"), counts)
    more: Any = scores | {"kind": "pose", "indices": np.zeros((1, 2), np.int64), "precision_threshold": 3.0} | changes
    return PairScores(**more).metrics(group)


@pytest.mark.parametrize(
    ("group", "kind", "names"),
    [
        ("val", "pose", ["raylg_val_auc_5", "raylg_val_auc_10", "raylg_val_auc_20"]),
        ("val", "homography", ["raylg_val_corner_auc_1", "raylg_val_corner_auc_3", "raylg_val_corner_auc_5"]),
        *((name, "pose", [f"raylg_{name}_auc_{angle}" for angle in (5, 10, 20)]) for name in BENCHMARKS),
    ],
)
def test_scores_that_a_run_reports_are_shown(shown: Shown, group: str, kind: str, names: list[str]) -> None:
    metrics = reported(group, kind=kind)
    gauges.publish("lr", 7, metrics)
    gauges.publish("lr", 7, metrics)
    assert list(shown) == names
    values = [value for key, value in metrics.items() if "auc@" in key]
    assert [value for value, _ in shown.values()] == values and min(values) > 0
    assert {tuple(tags.items()) for _, tags in shown.values()} == {(("study", "lr"), ("trial", "0007"))}


def test_what_has_no_gauge_or_no_value_is_left_out(shown: Shown) -> None:
    gauges.publish("lr", 0, {"pairs_seen": 8.0, "train/loss": math.nan, "val/loss": math.inf, "epoch": 1.0})
    assert [(name, value) for name, (value, _) in shown.items()] == [("raylg_pairs_seen", 8.0)]


def test_every_gauge_has_a_name_of_its_own(shown: Shown) -> None:
    gauges.publish("lr", 0, dict.fromkeys(gauges.descriptions(), 1.0))
    assert len(shown) == len(gauges.descriptions())

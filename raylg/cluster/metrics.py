"""Gauges that the Ray dashboard and Prometheus show for every trial."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Mapping

from ray.util.metrics import Gauge

from raylg.evaluation.config import BENCHMARKS
from raylg.evaluation.measures import HOMOGRAPHY, POSE, Measure

_TAGS = ("study", "trial")
_MEASURES: Mapping[str, tuple[Measure, ...]] = {"val": (POSE, HOMOGRAPHY), **{name: (POSE,) for name in BENCHMARKS}}
_OTHERS = {
    "objective": "Score that the study maximises",
    "pairs_seen": "Training pairs seen",
    "pairs_per_second": "Training pairs per second",
    "train/loss": "Training loss",
    "val/loss": "Validation loss",
}


def publish(study: str, trial: int, metrics: Mapping[str, float]) -> None:
    """Show the metrics of a report; those without a gauge and those that are not finite are left out."""
    for key, value in metrics.items():
        if key in descriptions() and math.isfinite(value):
            _gauge(key).set(value, tags={"study": study, "trial": f"{trial:04d}"})


@functools.cache
def descriptions() -> Mapping[str, str]:
    """Metrics that have a gauge, and what they are."""
    return _OTHERS | {
        measure.key(group, bound): f"AUC of the {measure.kind} at {bound:g} {measure.unit} on the pairs of {group}"
        for group, measures in _MEASURES.items()
        for measure in measures
        for bound in measure.thresholds
    }


@functools.cache
def _gauge(key: str) -> Gauge:
    """One gauge per process: Ray wants each name registered once, and drops those that Prometheus does not allow."""
    return Gauge("raylg_" + re.sub(r"\W", "_", key), description=descriptions()[key], tag_keys=_TAGS)

"""Gauges that the Ray dashboard and Prometheus show for every trial."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping

from ray.util.metrics import Gauge

_TAGS = ("study", "trial")
_GAUGES = {
    "objective": ("raylg_objective", "Score that the study maximises"),
    "pairs_seen": ("raylg_pairs_seen", "Training pairs seen"),
    "pairs_per_second": ("raylg_pairs_per_second", "Training pairs per second"),
    "train/loss": ("raylg_train_loss", "Training loss"),
    "val/loss": ("raylg_val_loss", "Validation loss"),
    "val/auc@5": ("raylg_val_auc_5", "Relative-pose AUC at 5 degrees on the validation pairs"),
    "val/auc@10": ("raylg_val_auc_10", "Relative-pose AUC at 10 degrees on the validation pairs"),
    "val/auc@20": ("raylg_val_auc_20", "Relative-pose AUC at 20 degrees on the validation pairs"),
}


def publish(study: str, trial: int, metrics: Mapping[str, float]) -> None:
    """Show the metrics of a report; those without a gauge and those that are not finite are left out."""
    for key, value in metrics.items():
        if key in _GAUGES and math.isfinite(value):
            _gauge(key).set(value, tags={"study": study, "trial": f"{trial:04d}"})


@functools.cache
def _gauge(key: str) -> Gauge:
    """One gauge per process: Ray wants each name registered once."""
    name, description = _GAUGES[key]
    return Gauge(name, description=description, tag_keys=_TAGS)

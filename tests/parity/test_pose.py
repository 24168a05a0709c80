"""Pose errors and AUC against glue-factory's (2d17e3b)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from raylg.evaluation.pose import auc, rotation_error, translation_error


def test_errors(parity_dir: Path) -> None:
    with np.load(parity_dir / "pose_errors.npz") as data:
        rotation = rotation_error(data["R_est"], data["R_gt"])
        translation = translation_error(data["t_est"], data["t_gt"])
        np.testing.assert_allclose(rotation, data["r_error_deg"], rtol=1e-6, atol=1e-5)
        np.testing.assert_allclose(translation, data["t_error_deg"], rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("case", range(4))
def test_area_under_the_curve(parity_dir: Path, case: int) -> None:
    with np.load(parity_dir / "auc.npz") as data:
        ours = auc(data[f"errors_{case}"], (5.0, 10.0, 20.0))
        np.testing.assert_allclose(np.round(ours, 4), data[f"auc_5_10_20_{case}"], rtol=0, atol=1e-12)

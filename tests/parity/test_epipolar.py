"""Symmetric epipolar distance against glue-factory's (2d17e3b)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from raylg.geometry.epipolar import symmetric_epipolar_distance, symmetric_epipolar_distance_matches


def test_distances_of_all_pairs_and_of_matches(parity_dir: Path) -> None:
    with np.load(parity_dir / "epipolar.npz") as data:
        points0, points1, F = (torch.from_numpy(data[name]).double() for name in ("points0", "points1", "F"))
        expected = torch.from_numpy(data["symmetric_distance_px"]).double()
    distance = symmetric_epipolar_distance(points0, points1, F)
    torch.testing.assert_close(distance, expected, rtol=1e-4, atol=1e-3)
    matched = symmetric_epipolar_distance_matches(points0, points1, F)
    torch.testing.assert_close(matched, expected.diagonal(dim1=1, dim2=2), rtol=1e-4, atol=1e-3)

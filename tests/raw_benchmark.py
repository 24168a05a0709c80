"""A public benchmark before its features are extracted."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np


def write_raw_benchmark(root: Path) -> Path:
    """MegaDepth-1500 in glue-factory's layout: three images of noise, two pairs."""
    (root / "images" / "0015").mkdir(parents=True)
    views = []
    for k in range(3):
        pixels = np.random.default_rng(k).integers(0, 256, (12, 16, 3), np.uint8)
        assert cv2.imwrite(str(root / f"images/0015/{k}.png"), pixels.repeat(10, 0).repeat(10, 1))
        views.append(f"0015/{k}.png 1 0 0 0 1 0 0 0 1 {k} 0 0 PINHOLE 160 120 150 150 80 60")
    (root / "views.txt").write_text("\n".join(views) + "\n")
    (root / "pairs.txt").write_text("0015/0.png 0015/1.png\n0015/1.png 0015/2.png\n")
    return root

"""The smallest source of scenes, and weights of a network."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from raylg.data.scene import PosedView, SceneRef
from raylg.models.superpoint import OpenNetwork


class OneScene:
    """A source, and its only scene: two views of noise."""

    views = tuple(
        PosedView(name=name, image_size=(128, 96), camera=np.array([100.0, 100, 64, 48]), T_w2c=np.eye(4))
        for name in ("a", "b")
    )
    pairs = np.array([[0, 1]], np.int32)
    overlap = np.array([0.5], np.float32)

    def scenes(self):
        return [SceneRef(name="noise", split="train")]

    def load(self, scene):
        return self

    def image(self, index):
        return np.random.default_rng(index).integers(0, 255, (12, 16, 3), np.uint8).repeat(8, 0).repeat(8, 1)

    def depth(self, index):
        return None


def write_superpoint(path: Path, seed: int) -> str:
    """A file of random weights."""
    torch.manual_seed(seed)
    torch.save(OpenNetwork().state_dict(), path)
    return str(path)

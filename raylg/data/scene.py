"""The one protocol between images with poses and everything after them.

A source lists its scenes cheaply and loads one at a time; it must be picklable, because `prepare` loads scenes in
several processes. Poses, cameras and pixels follow `raylg.geometry.camera`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

Split = Literal["train", "val", "test"]


@dataclass(frozen=True, kw_only=True)
class SceneRef:
    """Name of a scene and the split that all of its pairs belong to."""

    name: str
    split: Split


@dataclass(frozen=True, kw_only=True)
class PosedView:
    """One posed image of a scene, without its pixels."""

    name: str
    """Unique within the scene; may contain '/'."""
    image_size: tuple[int, int]
    """(width, height)."""
    camera: np.ndarray
    """float64 [4], fx fy cx cy in pixels; no distortion."""
    T_w2c: np.ndarray
    """float64 [4, 4]."""


class Scene(Protocol):
    """A loaded scene: views, the pairs among them, and pixels on demand."""

    @property
    def views(self) -> Sequence[PosedView]:
        """All images."""

    @property
    def pairs(self) -> np.ndarray:
        """int32 [P, 2], indices into `views`."""

    @property
    def overlap(self) -> np.ndarray:
        """float32 [P], 0 to 1."""

    def image(self, index: int) -> np.ndarray:
        """uint8 [H, W, 3] RGB of view `index`."""

    def depth(self, index: int) -> np.ndarray | None:
        """float32 [H', W'] depth along the optical axis of view `index`, 0 where unknown; None without depth.

        It covers the whole image, possibly at another resolution.
        """


class SceneSource(Protocol):
    """Where scenes come from. A class with these two methods is all that a data set of one's own needs."""

    def scenes(self) -> Sequence[SceneRef]:
        """All scenes, cheaply (no pixels are read)."""

    def load(self, scene: SceneRef) -> Scene:
        """Load one of them."""

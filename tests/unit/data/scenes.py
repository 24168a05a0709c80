"""A scene source and an extractor made of arithmetic, for tests of export and stream."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from raylg.batch import Features
from raylg.data.export import ExportOptions
from raylg.data.manifest import CreatedBy, ExtractorInfo
from raylg.data.scene import PosedView, SceneRef, Split

DIM = 8


@dataclass
class FakeScene:
    """Images of noise, 64 x 48; depth is 1 + x / 64, unknown in the left quarter."""

    views: Sequence[PosedView]
    pairs: np.ndarray
    overlap: np.ndarray
    seed: int
    log: Path | None

    def image(self, index: int) -> np.ndarray:
        if self.log is not None:
            with self.log.open("a") as file:
                file.write(f"{self.seed}/{index}\n")
        return np.random.default_rng((self.seed, index)).integers(0, 256, (48, 64, 3), dtype=np.uint8)

    def depth(self, index: int) -> np.ndarray | None:
        if index == 0:
            return None
        depth = np.broadcast_to(1 + (np.arange(64, dtype=np.float32) + 0.5) / 64, (48, 64)).copy()
        depth[:, :16] = 0
        return depth


@dataclass(frozen=True)
class FakeSource:
    """Scenes with `num_views` images each and all pairs among neighbours."""

    names: tuple[tuple[str, Split], ...] = (("one", "train"), ("two", "train"), ("three", "val"))
    num_views: int = 6
    reach: int = 2
    broken: str | None = None
    """This scene cannot be loaded."""
    log: Path | None = field(default=None)
    """File that gets a line per image that is read."""

    def scenes(self) -> Sequence[SceneRef]:
        return [SceneRef(name=name, split=split) for name, split in self.names]

    def load(self, scene: SceneRef) -> FakeScene:
        if scene.name == self.broken:
            raise ValueError("no such thing")
        seed = sum(map(ord, scene.name))
        rng = np.random.default_rng(seed)
        views = [self._view(f"{i:02d}.jpg", rng) for i in range(self.num_views)]
        steps = [(i, i + d) for i in range(self.num_views) for d in range(1, self.reach + 1) if i + d < self.num_views]
        pairs = np.array(steps, dtype=np.int32).reshape(-1, 2)
        overlap = rng.uniform(0.1, 0.7, len(pairs)).astype(np.float32)
        return FakeScene(views=views, pairs=pairs, overlap=overlap, seed=seed, log=self.log)

    @staticmethod
    def _view(name: str, rng: np.random.Generator) -> PosedView:
        T_w2c = np.eye(4)
        T_w2c[:3, :3] = np.linalg.qr(rng.normal(size=(3, 3)))[0]
        T_w2c[:3, :3] *= np.linalg.det(T_w2c[:3, :3])
        T_w2c[:3, 3] = 1000 + rng.normal(size=3)
        return PosedView(name=name, image_size=(64, 48), camera=np.array([60.0, 61.0, 31.0, 25.0]), T_w2c=T_w2c)


@dataclass(frozen=True)
class FakeExtractor:
    """Keypoints that depend on the image, between none and `max_num_keypoints`, with scale and orientation or not."""

    max_num_keypoints: int = 20
    scale_ori: bool = True

    def __call__(self, image: np.ndarray) -> Features:
        height, width = image.shape[:2]
        rng = np.random.default_rng(int(image[0, 0, 0]))
        count = int(rng.integers(0, self.max_num_keypoints + 1))
        descriptors = rng.normal(size=(count, DIM))
        return Features(
            keypoints=(rng.uniform(size=(count, 2)) * (width, height)).astype(np.float32),
            keypoint_scores=np.sort(rng.uniform(size=count).astype(np.float32))[::-1].copy(),
            descriptors=(descriptors / np.linalg.norm(descriptors, axis=1, keepdims=True)).astype(np.float16),
            scales=rng.uniform(1, 5, count).astype(np.float32) if self.scale_ori else None,
            oris=rng.uniform(-3, 3, count).astype(np.float32) if self.scale_ori else None,
        )


def export_options(
    *, images_per_shard: int = 64, resize: int | None = None, num_processes: int = 1, fingerprint: str = "abc"
) -> ExportOptions:
    """Options with the provenance filled in."""
    return ExportOptions(
        name="fake",
        extractor=ExtractorInfo(
            name="fake", weights_sha256=None, settings={"max_num_keypoints": 20}, descriptor_dim=DIM
        ),
        created_by=CreatedBy(version="0", git_sha=None, command="test", config={}, fingerprint=fingerprint),
        images_per_shard=images_per_shard,
        resize=resize,
        num_processes=num_processes,
    )

"""Options of data; free of torch and h5py."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from raylg.schema import check

SourceName = Literal["mini", "colmap", "shards"]


@dataclass(frozen=True, kw_only=True)
class SyntheticConfig:
    """The built-in procedural scenes (`data=mini`); train, validation and test scenes are different scenes."""

    num_train_scenes: int = 20
    num_val_scenes: int = 4
    num_test_scenes: int = 6
    views_per_scene: int = 12
    width: int = 640
    height: int = 480
    seed: int = 0
    """Another seed gives other scenes."""

    def __post_init__(self) -> None:
        for name in ("num_train_scenes", "num_val_scenes", "num_test_scenes"):
            check(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        check(self.views_per_scene >= 2, "views_per_scene", self.views_per_scene, "at least 2")
        check(self.width >= 64, "width", self.width, "at least 64 px")
        check(self.height >= 64, "height", self.height, "at least 64 px")


@dataclass(frozen=True, kw_only=True)
class SplitConfig:
    """How a source without splits of its own (`data=colmap`) is divided."""

    by: Literal["scene", "image"] = "scene"
    """scene: whole workspaces; image: images of every workspace (pairs across the cut are dropped)."""
    val: tuple[str, ...] = ()
    """Names of the validation workspaces when split by scene."""
    test: tuple[str, ...] = ()
    """Names of the test workspaces when split by scene."""
    val_fraction: float = 0.2
    """Share of the images for validation when split by image, and of the workspaces when `val` is empty."""
    test_fraction: float = 0.0
    """Share for testing, likewise."""

    def __post_init__(self) -> None:
        check(0 <= self.val_fraction < 1, "val_fraction", self.val_fraction, "in [0, 1)")
        check(0 <= self.test_fraction < 1, "test_fraction", self.test_fraction, "in [0, 1)")
        check(
            self.val_fraction + self.test_fraction < 1,
            "test_fraction",
            self.test_fraction,
            f"below 1 - val_fraction = {1 - self.val_fraction:g}, or no training data is left",
        )


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which images, which pairs, and how they are streamed."""

    source: SourceName = "mini"
    """mini: built-in scenes; colmap: COLMAP workspaces; shards: feature shards that `prepare` wrote."""
    path: tuple[str, ...] = ()
    """colmap: workspaces, or folders that hold workspaces; shards: one folder with a manifest.json."""
    cache_dir: str = "~/.cache/raylg"
    """Where renders and feature shards of `mini` and `colmap` are kept."""
    mini: SyntheticConfig = field(default_factory=SyntheticConfig)
    split: SplitConfig = field(default_factory=SplitConfig)
    min_overlap: float = 0.1
    """Smallest covisibility of a pair (share of common points or pixels; glue-factory: 0.1)."""
    max_overlap: float = 0.7
    """Largest covisibility of a pair (glue-factory: 0.7)."""
    max_pairs_per_scene: int = 300
    """Pairs drawn per scene, evenly over three overlap bins (glue-factory: 300)."""
    images_per_shard: int = 64
    """Largest number of images in one shard."""
    batch_size: int = 32
    """Pairs per optimiser step, over all workers (the global batch)."""
    num_keypoints: int = 512
    """Strongest keypoints used per image in training; `evaluation.num_keypoints` is the number for scoring."""
    open_shards: int = 8
    """Shards that are mixed at a time; more gives a better shuffle and takes more memory."""
    prefetch_batches: int = 2
    """Batches read ahead of the training step, by one thread."""

    def __post_init__(self) -> None:
        check(
            0 <= self.min_overlap < self.max_overlap <= 1,
            "min_overlap",
            self.min_overlap,
            f"at least 0 and below max_overlap = {self.max_overlap}, which is at most 1",
        )
        for name in ("max_pairs_per_scene", "batch_size", "num_keypoints", "open_shards", "prefetch_batches"):
            check(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        check(self.images_per_shard >= 2, "images_per_shard", self.images_per_shard, "at least 2")
        check(
            self.source == "mini" or bool(self.path),
            "path",
            list(self.path),
            f"given for data.source={self.source}: data.path=FOLDER",
        )
        check(self.source != "shards" or len(self.path) == 1, "path", list(self.path), "one folder for shards")

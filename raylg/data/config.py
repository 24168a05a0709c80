"""Options of data; free of torch and h5py."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from raylg.schema import check, nearest

SOURCES = ("mini", "colmap", "megadepth", "images", "shards")
"""Built-in values of `data.source`; `module:Class` names a class of the user's."""
WITHOUT_PATH = ("mini",)
STORED = ("long_side", "val_fraction", "test_fraction")
"""Options of `images` that decide what is stored of photographs; all others decide how views are drawn of them."""


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
class ImagesConfig:
    """Homography pairs from plain photographs (`data=images`), drawn anew in each epoch (glue-factory's recipe)."""

    width: int = 640
    """Width of a warped view in pixels (glue-factory: 640)."""
    height: int = 480
    """Height of a warped view in pixels (glue-factory: 480)."""
    long_side: int = 1024
    """Photographs are stored with at most this long side, as JPEG."""
    difficulty: float = 0.7
    """Share of the way to the centre of a view by which its corners may move, per axis (glue-factory: 0.7)."""
    max_angle: float = 45.0
    """Largest in-plane rotation of a view in degrees, scaled by `difficulty` (glue-factory: 45)."""
    photometric: float = 1.0
    """Strength of the changes of light and sharpness; 0 turns them off, 1 is LightGlue's recipe."""
    val_fraction: float = 0.05
    """Share of the photographs for validation, by a hash of their names."""
    test_fraction: float = 0.0
    """Share for testing, likewise."""

    def __post_init__(self) -> None:
        check(self.width >= 64, "width", self.width, "at least 64 px")
        check(self.height >= 64, "height", self.height, "at least 64 px")
        check(self.long_side >= 64, "long_side", self.long_side, "at least 64 px")
        check(0 <= self.difficulty <= 1, "difficulty", self.difficulty, "in [0, 1]")
        check(0 <= self.max_angle <= 180, "max_angle", self.max_angle, "in [0, 180] degrees")
        check(0 <= self.photometric <= 1, "photometric", self.photometric, "in [0, 1]")
        check(0 < self.val_fraction < 1, "val_fraction", self.val_fraction, "in (0, 1)")
        largest = 1 - self.val_fraction
        test = self.test_fraction
        check(0 <= test < largest, "test_fraction", test, f"at least 0 and below 1 - val_fraction = {largest:g}")

    def problem_of(self, resize: int | None) -> str | None:
        """Why an extractor cannot take the views at their size, which it must, with `resize` before detection."""
        longest = max(self.width, self.height)
        if resize is None or resize >= longest:
            return None
        return (
            f"model.extractor.resize = {resize}: views have {longest} px (data.images.width and height), the size that "
            "their features are extracted at; set model.extractor.resize=null, or smaller views"
        )


@dataclass(frozen=True, kw_only=True)
class StorageConfig:
    """How object storage is read and written. Credentials come from the environment or the instance role only."""

    endpoint_url: str | None = None
    """S3-compatible server, such as http://minio:9000; null takes AWS_ENDPOINT_URL, else AWS."""
    timeout_s: float = 20.0
    """A request that moves no byte for this long is given up and sent again."""
    deadline_s: float = 300.0
    """Reading or writing one file ends after this long, repeats included, with an error."""
    parallel_reads: int = 4
    """Requests at a time per process; a large file is read in as many ranges."""
    cache_gb: float = 100.0
    """Largest size in GB of `data.cache_dir`/shards, which all runs on a machine share; 0 keeps nothing."""

    def __post_init__(self) -> None:
        url = self.endpoint_url
        check(
            url is None or url.startswith(("http://", "https://")),
            "endpoint_url",
            url,
            "null, http://... or https://...",
        )
        check(url is None or "@" not in url, "endpoint_url", "(hidden)", "without credentials: set AWS_ACCESS_KEY_ID")
        check(self.timeout_s > 0, "timeout_s", self.timeout_s, "above 0 s")
        check(
            self.deadline_s >= self.timeout_s,
            "deadline_s",
            self.deadline_s,
            f"at least timeout_s = {self.timeout_s:g} s",
        )
        check(self.parallel_reads >= 1, "parallel_reads", self.parallel_reads, "at least 1")
        check(self.cache_gb >= 0, "cache_gb", self.cache_gb, "at least 0 GB")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which images, which pairs, and how they are streamed."""

    source: str = "mini"
    """mini: built-in scenes; colmap: COLMAP workspaces; megadepth: MegaDepth as D2-Net or LoFTR publish it; images:
    plain photographs, for homography pairs; shards: what `prepare` wrote; module:Class: a scene source of your own."""
    path: tuple[str, ...] = ()
    """colmap: workspaces, or folders that hold workspaces; megadepth: its root; images: a folder or s3:// of
    photographs; shards: one folder or s3:// with a manifest.json."""
    cache_dir: str = "~/.cache/raylg"
    """Where renders, features of sources, and shards from object storage are kept; for the latter, a folder on a local
    disk. In one that several machines share, they verify each other's shards again and hold each other's locks."""
    storage: StorageConfig = field(default_factory=StorageConfig)
    mini: SyntheticConfig = field(default_factory=SyntheticConfig)
    images: ImagesConfig = field(default_factory=ImagesConfig)
    split: SplitConfig = field(default_factory=SplitConfig)
    min_overlap: float = 0.1
    """Smallest covisibility of a pair (share of common points or pixels; glue-factory: 0.1)."""
    max_overlap: float = 0.7
    """Largest covisibility of a pair (glue-factory: 0.7)."""
    max_pairs_per_scene: int = 300
    """Pairs drawn per scene, evenly over three overlap bins, once: every epoch sees the same. (glue-factory draws 300
    anew in each epoch; for as many different ones, multiply by the number of epochs.)"""
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
        module, colon, name = self.source.partition(":")
        check(
            self.source in SOURCES or bool(module and colon and name.isidentifier()),
            "source",
            self.source,
            f"one of {', '.join(SOURCES)}, or module:Class{nearest(self.source, SOURCES)}",
        )
        check(
            self.source in WITHOUT_PATH or bool(colon) or bool(self.path),
            "path",
            list(self.path),
            f"given for data.source={self.source}: data.path=FOLDER",
        )
        single = self.source in ("shards", "megadepth", "images")
        check(not single or len(self.path) == 1, "path", list(self.path), f"one folder for {self.source}")

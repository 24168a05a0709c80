"""One scene to feature shards: extract each image once, group pairs into shards, note what is finished."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np

from raylg.batch import Features
from raylg.data.manifest import CreatedBy, ExtractorInfo, ShardEntry, parse_entry, write_text_atomically
from raylg.data.pairs import group_pairs
from raylg.data.resize import encode_thumbnail, shrink
from raylg.data.scene import PosedView, Scene, SceneRef
from raylg.data.shard import Shard, write_shard
from raylg.errors import ShardError
from raylg.geometry.depth import sample_depth

PROGRESS_FOLDER = ".progress"


class Extractor(Protocol):
    """Finds local features; models.extractor makes one."""

    def __call__(self, image: np.ndarray) -> Features:
        """Features of uint8 [H, W, 3] RGB, in pixels of that image, strongest first."""


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """What goes into the shards besides the scenes, and how the work is shared."""

    name: str
    """Name of the data set, for people."""
    extractor: ExtractorInfo
    created_by: CreatedBy
    images_per_shard: int
    """Largest number of images in a shard, at least 2; a larger scene repeats images in several shards."""
    resize: int | None
    """Long side in pixels before extraction; images are never enlarged. None keeps their size."""
    num_processes: int | None = None
    """Processes, at most one per scene; None takes one per processor, 1 works in the calling process."""


@dataclass(frozen=True, kw_only=True)
class SceneRecord:
    """Shards of a scene that are finished."""

    scene: SceneRef
    fingerprint: str
    """Of the export that wrote them."""
    num_images: int
    """Images of the scene that are in a pair."""
    complete: bool
    shards: tuple[ShardEntry, ...]


@dataclass(frozen=True)
class ImageFeatures:
    """An image as a shard holds it."""

    features: Features
    depth_keypoints: np.ndarray
    """float32 [N]."""
    camera: np.ndarray
    """float64 [4], of the resized image."""
    image_size: tuple[int, int]
    """(width, height) of the resized image."""
    thumbnail: bytes


@dataclass(frozen=True)
class SceneExporter:
    """Writes the shards of one scene into `out`, after those that an interrupted call has written.

    Memory: the features of one shard and of the images that later shards of the scene need again, and one image.
    """

    out: Path
    options: ExportOptions
    extractor: Extractor
    tell: Callable[[SceneRef, int, int], None] = field(compare=False)
    """Told of the scene, its images done and its images in all."""

    def export(self, ref: SceneRef, load: Callable[[SceneRef], Scene]) -> SceneRecord:
        """Export a scene unless that is done.

        Raises:
            ShardError: the scene or the extractor breaks its contract.
        """
        record = self._finished(ref)
        if not record.complete:
            record = self._continue(record, load(ref))
        self.tell(ref, record.num_images, record.num_images)
        return record

    def _finished(self, ref: SceneRef) -> SceneRecord:
        """What an earlier call has finished and is still there; an empty record otherwise."""
        fingerprint, path = self.options.created_by.fingerprint, record_path(self.out, ref.name)
        if path.is_file():
            record = read_record(path)
            files = [(self.out / entry.file, entry.bytes) for entry in record.shards]
            whole = all(file.is_file() and file.stat().st_size == size for file, size in files)
            if whole and (record.scene, record.fingerprint) == (ref, fingerprint):
                return record
        return SceneRecord(scene=ref, fingerprint=fingerprint, num_images=0, complete=False, shards=())

    def _continue(self, record: SceneRecord, scene: Scene) -> SceneRecord:
        _check_scene(scene)
        ref, num_images = record.scene, len(np.unique(scene.pairs))
        groups = group_pairs(scene.pairs, self.options.images_per_shard)
        last_use = {int(image): k for k, group in enumerate(groups) for image in scene.pairs[group].ravel()}
        done: dict[int, ImageFeatures] = {}
        num_done = sum(1 for k in last_use.values() if k < len(record.shards))
        self.tell(ref, num_done, num_images)
        path, record = record_path(self.out, ref.name), dataclasses.replace(record, num_images=num_images)
        for k, group in list(enumerate(groups))[len(record.shards) :]:
            images = np.unique(scene.pairs[group]).tolist()
            for image in images:
                if image not in done:
                    done[image] = self._extract(scene, image)
                    num_done += 1
                    self.tell(ref, min(num_done, num_images), num_images)
            shard = pack_shard(ref, scene, group, {image: done[image] for image in images})
            entry = write_shard(self.out / f"{file_stem(ref.name)}-{k:03d}.h5", shard)
            record = dataclasses.replace(record, shards=(*record.shards, entry))
            write_record(path, record)
            done = {image: features for image, features in done.items() if last_use[image] > k}
        record = dataclasses.replace(record, complete=True)
        write_record(path, record)
        return record

    def _extract(self, scene: Scene, index: int) -> ImageFeatures:
        view, image = scene.views[index], scene.image(index)
        if image.dtype != np.uint8 or image.shape != (view.image_size[1], view.image_size[0], 3):
            expected = f"uint8 [{view.image_size[1]}, {view.image_size[0]}, 3]"
            raise ShardError(f"image {view.name}: pixels are {image.dtype} {list(image.shape)}, expected {expected}")
        resized = shrink(image, self.options.resize)
        height, width = resized.shape[:2]
        features = self.extractor(resized)
        _check_features(features, self.options.extractor.descriptor_dim, view.name)
        depth = scene.depth(index)
        if depth is None:
            depth_keypoints = np.full(len(features), np.nan, dtype=np.float32)
        else:  # the depth map keeps its own resolution: resampling it would invent depth at edges
            scale = np.array([depth.shape[1] / width, depth.shape[0] / height])
            depth_keypoints = sample_depth(depth, features.keypoints * scale)
        scale_x, scale_y = width / view.image_size[0], height / view.image_size[1]
        return ImageFeatures(
            features=features,
            depth_keypoints=depth_keypoints,
            camera=view.camera * np.array([scale_x, scale_y, scale_x, scale_y]),
            image_size=(width, height),
            thumbnail=encode_thumbnail(image),
        )


def pack_shard(ref: SceneRef, scene: Scene, group: np.ndarray, images: dict[int, ImageFeatures]) -> Shard:
    """Concatenate the features of `images` (index in the scene, ascending) and the pairs `group` among them."""
    each = [image.features for image in images.values()]
    views: list[PosedView] = [scene.views[index] for index in images]
    scales = [f.scales for f in each if f.scales is not None]
    oris = [f.oris for f in each if f.oris is not None]
    if len(scales) not in (0, len(each)) or len(oris) != len(scales):
        raise ShardError(f"scene {ref.name}: the extractor gives scale and orientation for some images only")
    return Shard(
        keypoints=np.concatenate([f.keypoints for f in each]),
        keypoint_scores=np.concatenate([f.keypoint_scores for f in each]),
        descriptors=np.concatenate([f.descriptors for f in each]),
        depth_keypoints=np.concatenate([image.depth_keypoints for image in images.values()]),
        scales=np.concatenate(scales) if scales else None,
        oris=np.concatenate(oris) if oris else None,
        offsets=np.cumsum([0, *map(len, each)], dtype=np.int64),
        camera=np.stack([image.camera for image in images.values()]),
        T_w2c=np.stack([view.T_w2c for view in views]).astype(np.float64),
        image_size=np.array([image.image_size for image in images.values()], dtype=np.int32),
        names=tuple(view.name for view in views),
        thumbnails=tuple(image.thumbnail for image in images.values()),
        pairs=np.searchsorted(np.array(list(images)), scene.pairs[group]).astype(np.int32),
        overlap=scene.overlap[group].astype(np.float32),
        scene=ref.name,
        split=ref.split,
    )


def file_stem(scene: str) -> str:
    """The name of a scene as a file name; different scenes never share one."""
    safe = re.sub(r"[^A-Za-z0-9._-]", "-", scene).lstrip(".")
    return safe if safe == scene else f"{safe}-{hashlib.sha256(scene.encode()).hexdigest()[:8]}"


def record_path(out: Path, scene: str) -> Path:
    """Where the progress of a scene is noted until the manifest is written."""
    return out / PROGRESS_FOLDER / f"{file_stem(scene)}.json"


def read_record(path: Path) -> SceneRecord:
    """Read what `write_record` wrote."""
    values = json.loads(path.read_text(encoding="utf-8"))
    shards = tuple(parse_entry(entry) for entry in values.pop("shards"))
    return SceneRecord(**values | {"scene": SceneRef(**values["scene"]), "shards": shards})


def write_record(path: Path, record: SceneRecord) -> None:
    """Note what is finished, atomically."""
    path.parent.mkdir(exist_ok=True)
    write_text_atomically(path, json.dumps(dataclasses.asdict(record)))


def _check_scene(scene: Scene) -> None:
    names = [view.name for view in scene.views]
    if len(set(names)) != len(names):
        repeated = sorted({name for name in names if names.count(name) > 1})
        raise ShardError(f"image names must be unique within the scene, repeated: {', '.join(repeated[:5])}")
    if len(scene.overlap) != len(scene.pairs):
        raise ShardError(f"{len(scene.pairs)} pairs, but overlap of {len(scene.overlap)}")
    if len(scene.pairs) and not 0 <= scene.pairs.min() <= scene.pairs.max() < len(names):
        raise ShardError(f"pairs index images up to {scene.pairs.max()}, but there are {len(names)} images")


def _check_features(features: Features, descriptor_dim: int, name: str) -> None:
    count = len(features)
    if features.descriptors.shape != (count, descriptor_dim):
        found = list(features.descriptors.shape)
        raise ShardError(f"image {name}: descriptors are {found}, expected {[count, descriptor_dim]}")
    if not (np.isfinite(features.keypoints).all() and np.isfinite(features.descriptors).all()):
        raise ShardError(f"image {name}: the extractor gave keypoints or descriptors that are not finite")
    if (np.diff(features.keypoint_scores) > 0).any():
        raise ShardError(f"image {name}: keypoints are not sorted by descending score")

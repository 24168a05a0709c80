"""Part of a scene to feature shards: extract images, group pairs into shards, note what is finished."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol

import numpy as np

from raylg.batch import Features
from raylg.data.export_contract import check_depth, check_features, check_scene
from raylg.data.export_notes import ShardNote, scene_notes, scene_shard_name, write_note
from raylg.data.manifest import CreatedBy, ExtractorInfo
from raylg.data.pairs import group_pairs
from raylg.data.resize import encode_thumbnail, fit, shrink
from raylg.data.scene import PosedView, Scene, SceneRef, SceneSource
from raylg.data.shard import Shard, entry_of, shard_bytes
from raylg.data.storage import Storage
from raylg.errors import ShardError
from raylg.geometry.depth import sample_depth

KEPT_SHARDS = 8
"""Images whose features are in memory at a time, in shards: one that is made, the others for later ones."""


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
    """Largest long side in pixels before extraction. None keeps the size of the images."""
    enlarge: bool = False
    """Whether smaller images are enlarged to `resize`."""
    num_processes: int | None = None
    """Processes of this machine; None takes one per processor, 1 works in the calling process."""


@dataclass(frozen=True, kw_only=True)
class ExportJob:
    """What every process of an export needs; picklable."""

    source: SceneSource
    make_extractor: Callable[[], Extractor]
    """Called once per process."""
    out: Storage
    options: ExportOptions
    token: str
    """Of this call; tells whether a process sees the folder that the caller sees."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """A contiguous run of the shards of a scene, the unit of work."""

    scene: SceneRef
    index: int = 0
    count: int = 1
    """Parts of the scene."""

    def shards(self, num_shards: int) -> range:
        """Which of the shards of the scene; the first part has some if there are any."""
        start, stop = (-(-i * num_shards // self.count) for i in (self.index, self.index + 1))
        return range(start, stop)


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a part is."""

    part: Part
    num_done: int
    """Images that are done; one that several parts need counts for the first of them."""
    num_images: int
    """Images of the scene that are in a pair."""
    num_shards: int
    """Of the scene."""


@dataclass(frozen=True)
class ImageFeatures:
    """An image as a shard holds it."""

    features: Features
    depth_keypoints: np.ndarray
    """float32 [N]."""
    has_depth: bool
    """Whether there is a depth map, of which no keypoint may have any."""
    camera: np.ndarray
    """float64 [4], of the resized image."""
    image_size: tuple[int, int]
    """(width, height) of the resized image."""
    original_size: tuple[int, int]
    """(width, height) before resizing."""
    thumbnail: bytes


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """A loaded scene and its shards, which do not depend on the number of parts."""

    ref: SceneRef
    scene: Scene
    groups: Sequence[np.ndarray]
    """Pairs of each shard, int64 [P_k]."""
    images: Sequence[Sequence[int]]
    """Images of each shard, ascending."""

    def digest(self, index: int, with_depth: Iterable[bool]) -> str:
        """Of all that the scene gives for a shard, but for pixels and values of depth.

        Args:
            index: of the shard.
            with_depth: whether each of its images has a depth map.
        """
        views = [self.scene.views[image] for image in self.images[index]]
        return _digest(
            np.array(index),
            np.array(list(with_depth)),
            self.scene.overlap[self.groups[index]].astype(np.float32),
            np.stack([view.camera for view in views]).astype(np.float64),
            np.stack([view.T_w2c for view in views]).astype(np.float64),
            text=self.content,
        )

    @cached_property
    def content(self) -> str:
        """Digest of the names and sizes of the images that are in a pair, and of the pairs of each shard."""
        used, pairs = np.unique(self.scene.pairs, return_inverse=True)
        views = [self.scene.views[image] for image in used]
        return _digest(
            np.array([view.image_size for view in views]),
            np.array([len(group) for group in self.groups]),
            pairs.reshape(-1, 2)[np.concatenate(self.groups)],
            text="\0".join(view.name for view in views),
        )

    @cached_property
    def first_use(self) -> dict[int, int]:
        """The first shard that an image is in."""
        return {image: k for k, images in reversed(list(enumerate(self.images))) for image in images}


class PartExporter:
    """Writes the shards of one part after the other, with one extractor.

    An image that several shards of a part need is extracted once where memory allows, and again in other parts.

    Memory: the features of `KEPT_SHARDS` shards, one image, one scene without pixels, and one shard as it is written.
    """

    def __init__(self, job: ExportJob, tell: Callable[[Progress], None]) -> None:
        """`tell` hears of each image."""
        self.job, self.tell = job, tell
        self._loaded: _Plan | None = None

    def export(self, part: Part) -> tuple[ShardNote, ...]:
        """Write those shards of a part that are not there, or that the source would not give like this any more.

        Of shards that are there, depth maps are looked for again, but no pixels are read.

        Raises:
            ShardError: the scene or the extractor breaks its contract.
            EnvironmentUnfitError: the storage refuses.
        """
        plan = self._plan(part.scene)
        shards = part.shards(len(plan.groups))
        own = {image for image, k in plan.first_use.items() if k in shards}
        done: set[int] = set()
        num_images, num_shards = len(plan.first_use), len(plan.groups)

        def tell() -> None:
            self.tell(Progress(part=part, num_done=len(done), num_images=num_images, num_shards=num_shards))

        notes: dict[int, ShardNote] = {}
        for note in self._finished(plan, shards):
            notes.setdefault(note.index, note)
            done.update(image for image in plan.images[note.index] if plan.first_use[image] == note.index)
            tell()
        tell()
        kept: dict[int, ImageFeatures] = {}
        for k in (k for k in shards if k not in notes):
            for image in plan.images[k]:
                if image not in kept:
                    kept[image] = self._extract(plan.scene, image)
                    done |= {image} & own
                    tell()
            notes[k] = self._write(plan, k, {image: kept[image] for image in plan.images[k]})
            kept = self._needed_again(kept, [plan.images[j] for j in shards if j > k and j not in notes])
        return tuple(notes[k] for k in shards)

    @cached_property
    def _extractor(self) -> Extractor:
        return self.job.make_extractor()

    def _plan(self, ref: SceneRef) -> _Plan:
        if self._loaded is None or self._loaded.ref != ref:
            self._loaded = None  # two scenes are never in memory
            scene = self.job.source.load(ref)
            check_scene(scene)
            groups = group_pairs(scene.pairs, self.job.options.images_per_shard)
            images = [np.unique(scene.pairs[group]).tolist() for group in groups]
            self._loaded = _Plan(ref=ref, scene=scene, groups=groups, images=images)
        return self._loaded

    def _finished(self, plan: _Plan, shards: range) -> Iterator[ShardNote]:
        """Notes of shards that an earlier or a killed process has finished, that are there and as the scene is now."""
        has_depth: dict[int, bool] = {}
        for note in scene_notes(self.job.out, plan.ref.name, shards):
            if (note.scene, note.fingerprint) != (plan.ref, self.job.options.created_by.fingerprint):
                continue
            if self.job.out.size(note.entry.file) != note.entry.bytes:
                continue
            for image in plan.images[note.index]:
                if image not in has_depth:
                    has_depth[image] = plan.scene.depth(image) is not None
            if note.digest == plan.digest(note.index, (has_depth[image] for image in plan.images[note.index])):
                yield note

    def _write(self, plan: _Plan, index: int, images: dict[int, ImageFeatures]) -> ShardNote:
        """Write a shard, then the note that it is there."""
        shard = pack_shard(plan.ref, plan.scene, plan.groups[index], images)
        data = shard_bytes(shard)
        entry = entry_of("", shard, data)
        entry = replace(entry, file=scene_shard_name(plan.ref.name, index, entry.sha256))
        self.job.out.write(entry.file, data)
        note = ShardNote(
            scene=plan.ref,
            index=index,
            num_shards=len(plan.groups),
            num_images=len(plan.first_use),
            fingerprint=self.job.options.created_by.fingerprint,
            plan=plan.content,
            digest=plan.digest(index, (image.has_depth for image in images.values())),
            entry=entry,
        )
        write_note(self.job.out, note)
        return note

    def _needed_again(self, kept: dict[int, ImageFeatures], later: Sequence[Sequence[int]]) -> dict[int, ImageFeatures]:
        """Those of the images that the `later` shards need, soonest first, as many as may wait."""
        soonest = dict.fromkeys(image for images in later for image in images if image in kept)
        limit = (KEPT_SHARDS - 1) * self.job.options.images_per_shard
        return {image: kept[image] for image in list(soonest)[:limit]}

    def _extract(self, scene: Scene, index: int) -> ImageFeatures:
        options, view, image = self.job.options, scene.views[index], scene.image(index)
        if image.dtype != np.uint8 or image.shape != (view.image_size[1], view.image_size[0], 3):
            expected = f"uint8 [{view.image_size[1]}, {view.image_size[0]}, 3]"
            raise ShardError(f"image {view.name}: pixels are {image.dtype} {list(image.shape)}, expected {expected}")
        resized = fit(image, options.resize) if options.enlarge else shrink(image, options.resize)
        height, width = resized.shape[:2]
        features = self._extractor(resized)
        check_features(features, options.extractor, view, (width, height))
        depth = scene.depth(index)
        if depth is None:
            depth_keypoints = np.full(len(features), np.nan, dtype=np.float32)
        else:  # the depth map keeps its own resolution: resampling it would invent depth at edges
            check_depth(depth, view)
            scale = np.array([depth.shape[1] / width, depth.shape[0] / height])
            depth_keypoints = sample_depth(depth, features.keypoints * scale)
        scale_x, scale_y = width / view.image_size[0], height / view.image_size[1]
        return ImageFeatures(
            features=features,
            depth_keypoints=depth_keypoints,
            has_depth=depth is not None,
            camera=view.camera * np.array([scale_x, scale_y, scale_x, scale_y]),
            image_size=(width, height),
            original_size=view.image_size,
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
        original_size=np.array([image.original_size for image in images.values()], dtype=np.int32),
        names=tuple(view.name for view in views),
        thumbnails=tuple(image.thumbnail for image in images.values()),
        pairs=np.searchsorted(np.array(list(images)), scene.pairs[group]).astype(np.int32),
        overlap=scene.overlap[group].astype(np.float32),
        scene=ref.name,
        split=ref.split,
    )


def _digest(*arrays: np.ndarray, text: str) -> str:
    """16 hex digits that change with any value; integers count as 64 bits."""
    content = hashlib.sha256(text.encode())
    for array in arrays:
        content.update(str(array.shape).encode())
        content.update((array if array.dtype.kind == "f" else array.astype(np.int64)).tobytes())
    return content.hexdigest()[:16]

"""What a scene and an extractor promise, looked at before it goes into a shard."""

from __future__ import annotations

import numpy as np

from raylg.batch import Features
from raylg.data.manifest import ExtractorInfo
from raylg.data.pixels import same_aspect, size_text
from raylg.data.scene import PosedView, Scene
from raylg.errors import ShardError


def check_scene(scene: Scene) -> None:
    """Refuse a scene whose pairs and names do not fit.

    Raises:
        ShardError: names repeat, or pairs and their overlap do not fit the views.
    """
    names = [view.name for view in scene.views]
    if len(set(names)) != len(names):
        repeated = sorted({name for name in names if names.count(name) > 1})
        raise ShardError(f"image names must be unique within the scene, repeated: {', '.join(repeated[:5])}")
    if len(scene.overlap) != len(scene.pairs):
        raise ShardError(f"{len(scene.pairs)} pairs, but overlap of {len(scene.overlap)}")
    if len(scene.pairs) and not 0 <= scene.pairs.min() <= scene.pairs.max() < len(names):
        raise ShardError(f"pairs index images up to {scene.pairs.max()}, but there are {len(names)} images")


def check_depth(depth: np.ndarray, view: PosedView) -> None:
    """Refuse a depth map that does not cover its image.

    Args:
        depth: of the whole image, at any resolution.
        view: of the image.

    Raises:
        ShardError: of another shape or aspect, or with infinite values.
    """
    if depth.ndim != 2 or not depth.size:
        raise ShardError(f"image {view.name}: its depth map has the shape {list(depth.shape)}, expected [H, W]")
    size = (depth.shape[1], depth.shape[0])
    if not same_aspect(size, view.image_size):
        raise ShardError(
            f"image {view.name}: {size_text(view.image_size)} pixels, but its depth map has {size_text(size)}; a depth "
            "map covers the whole image, at any resolution"
        )
    if np.isinf(depth).any():
        raise ShardError(f"image {view.name}: its depth map has infinite values; give 0 where depth is unknown")


def check_features(features: Features, extractor: ExtractorInfo, view: PosedView, image_size: tuple[int, int]) -> None:
    """Refuse features that are not what an extractor promises.

    Args:
        features: of an image.
        extractor: what is known of the extractor.
        view: of the image, for messages.
        image_size: (width, height) of the image that they were extracted from.

    Raises:
        ShardError: arrays of other shapes, values that are not finite, keypoints that are too many, outside of the
            image, or not sorted.
    """
    problem = _shape_problem(features, extractor) or _value_problem(features, image_size)
    if problem is not None:
        raise ShardError(f"image {view.name}: the extractor gave {problem}")


def _arrays(features: Features) -> dict[str, np.ndarray]:
    names = ("keypoints", "keypoint_scores", "descriptors", "scales", "oris")
    return {name: array for name in names if (array := getattr(features, name)) is not None}


def _shape_problem(features: Features, extractor: ExtractorInfo) -> str | None:
    count, most = len(features), extractor.settings["max_num_keypoints"]
    columns = {"keypoints": (2,), "descriptors": (extractor.descriptor_dim,)}
    for name, array in _arrays(features).items():
        expected = (count, *columns.get(name, ()))
        if array.shape != expected:
            return f"{name} of shape {list(array.shape)}, expected {list(expected)}"
    return f"{count} keypoints, more than max_num_keypoints = {most}" if count > most else None


def _value_problem(features: Features, image_size: tuple[int, int]) -> str | None:
    infinite = [name for name, array in _arrays(features).items() if not np.isfinite(array).all()]
    if infinite:
        return f"{' and '.join(infinite)} that are not finite"
    if ((features.keypoints < 0) | (features.keypoints > image_size)).any():
        return f"keypoints outside of the {size_text(image_size)} pixels of the image"
    if (np.diff(features.keypoint_scores) > 0).any():
        return "keypoints that are not sorted by descending score"
    return None

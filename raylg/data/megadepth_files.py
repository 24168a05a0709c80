"""MegaDepth on disk: its index files, and where its publishers and their users keep images and depth maps.

Intrinsics and poses come from COLMAP, whose pixel convention is that of raylg (the centre of the first pixel is
(0.5, 0.5)), so they are taken as they are. Poses map world to camera.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from raylg.data.depth_maps import read_depth_map
from raylg.data.object_arrays import read_object_arrays
from raylg.data.pairs import listed
from raylg.data.pixels import read_image, read_image_size, same_aspect, size_text
from raylg.data.scene import PosedView
from raylg.errors import ConfigError, ShardError

UNDISTORTED = "Undistorted_SfM"
ORIGINAL = "phoenix/S6/zl548/MegaDepth_v1"
IMAGE_FOLDERS = (f"{UNDISTORTED}/{{}}/images", f"{ORIGINAL}/{{}}/dense0/imgs")
"""By scene. D2-Net's images first; as these are no longer offered, MegaDepth's own stand in for them (LoFTR's FAQ)."""
DEPTH_FOLDERS = ("depth_undistorted/{}", f"{ORIGINAL}/{{}}/dense0/depths", f"{UNDISTORTED}/{{}}/depths")
DATA_FOLDERS = (UNDISTORTED, "depth_undistorted", "phoenix", "images", "depths")
"""Of hundreds of thousands of files; no index is looked for in there."""
PAIR_INDEX = re.compile(r"(?P<scene>.+?)_\d*\.?\d+_\d*\.?\d+")
"""Stem of LoFTR's index files: scene, smallest and largest overlap, as in 0015_0.1_0.3."""
DEEPEST_INDEX = 3
"""LoFTR's root has its indices in index/scene_info_val_1500."""
LARGEST_ROUNDING = 1
"""Sizes in pixels that differ by no more are the same size, rounded."""


@dataclass(frozen=True, kw_only=True)
class IndexedImage:
    """An image as an index file describes it."""

    name: str
    """File name."""
    parameters: np.ndarray
    """float64 [4], fx fy cx cy in pixels of the image that the index was made of."""
    T_w2c: np.ndarray
    """float64 [4, 4]."""
    size: tuple[int, int] | None = None
    """(width, height) of that image; None where the index does not tell it."""


@dataclass(frozen=True, kw_only=True)
class SceneFolders:
    """Where the files of a scene lie."""

    images: Path
    depths: Path | None

    def depth(self, name: str) -> Path | None:
        """The depth map of an image, if there is one."""
        path = self.depths / PurePosixPath(name).with_suffix(".h5") if self.depths is not None else None
        return path if path is not None and path.is_file() else None


@dataclass(frozen=True, kw_only=True)
class FileScene:
    """Posed images in files, and pairs among them."""

    views: Sequence[PosedView]
    pairs: np.ndarray
    """int32 [P, 2]."""
    overlap: np.ndarray
    """float32 [P]; NaN where the publisher gives none."""
    folders: SceneFolders

    def image(self, index: int) -> np.ndarray:
        """Pixels, uint8 [H, W, 3] RGB."""
        return read_image(self.folders.images / self.views[index].name)

    def depth(self, index: int) -> np.ndarray | None:
        """Depth, float32 [H', W'], 0 where unknown; None without a depth map."""
        path = self.folders.depth(self.views[index].name)
        return None if path is None else read_depth_map(path)


def index_folders(root: Path) -> list[Path]:
    """`root` and the folders below it that may hold index files, in the order of their names."""
    return list(_walk(root, DEEPEST_INDEX))


def find_scene(root: Path, scene: str) -> SceneFolders | None:
    """Look for the images of a scene in `root` and in the folders in it (LoFTR's train/ and test/); None without."""
    roots = list(_walk(root, 1))
    images = _first_folder(roots, IMAGE_FOLDERS, scene)
    return None if images is None else SceneFolders(images=images, depths=_first_folder(roots, DEPTH_FOLDERS, scene))


def read_image_names(path: Path) -> list[str]:
    """File names of the images with depth in an index of D2-Net's kind; poses and overlaps are not read.

    Raises:
        ShardError: damaged, or of another kind.
    """
    arrays = read_object_arrays(path, ("image_paths", "depth_paths"))
    paths = zip(arrays["image_paths"], arrays["depth_paths"], strict=True)
    return [PurePosixPath(str(image)).name for image, depth in paths if image is not None and depth is not None]


def read_overlaps(path: Path) -> tuple[list[IndexedImage], np.ndarray]:
    """Read an index of D2-Net's kind.

    Returns:
        images: those that have image and depth map.
        overlap: float64 [N, N] among them, common points / points of the image of the row; negative where unset.

    Raises:
        ShardError: damaged, or of another kind.
    """
    arrays = read_object_arrays(path, ("image_paths", "depth_paths", "intrinsics", "poses", "overlap_matrix"))
    images = [
        None if depth is None else image
        for image, depth in zip(_indexed_images(path, arrays), arrays["depth_paths"], strict=True)
    ]
    overlap = np.asarray(arrays["overlap_matrix"])
    if overlap.shape != (len(images), len(images)) or not np.issubdtype(overlap.dtype, np.floating):
        raise ShardError(f"{path}: overlap_matrix is {overlap.dtype} {list(overlap.shape)} of {len(images)} images")
    rows = [i for i, image in enumerate(images) if image is not None]
    return [image for image in images if image is not None], overlap[np.ix_(rows, rows)].astype(np.float64)


def read_pairs(paths: Sequence[Path]) -> tuple[list[IndexedImage], np.ndarray, np.ndarray]:
    """Read the index files of LoFTR's kind of one scene.

    Returns:
        images: those of the pairs, in the order of their names.
        pairs: int32 [P, 2], in the order and direction of the files, repetitions included.
        overlap: float64 [P].

    Raises:
        ShardError: damaged, of another kind, or files that contradict each other.
    """
    images: dict[str, IndexedImage] = {}
    pairs: list[tuple[str, str]] = []
    overlap: list[float] = []
    for path in paths:
        arrays = read_object_arrays(path, ("image_paths", "intrinsics", "poses", "pair_infos"))
        rows = _indexed_images(path, arrays)
        for info in arrays["pair_infos"]:
            first, second, share = _pair(path, rows, info)
            for image in (first, second):
                if not _same_camera(images.setdefault(image.name, image), image):
                    raise ShardError(f"{path}: camera or pose of {image.name} differs from that in {paths[0]}")
            pairs.append((first.name, second.name))
            overlap.append(share)
    return number_pairs(images, pairs, overlap)


def number_pairs(
    images: Mapping[str, IndexedImage], pairs: Sequence[tuple[str, str]], overlap: Sequence[float]
) -> tuple[list[IndexedImage], np.ndarray, np.ndarray]:
    """Images of the pairs by name, pairs as their indices, int32 [P, 2], and overlap, float64 [P]."""
    names = sorted({name for pair in pairs for name in pair})
    position = {name: i for i, name in enumerate(names)}
    indices = np.array([[position[a], position[b]] for a, b in pairs], dtype=np.int32).reshape(-1, 2)
    return [images[name] for name in names], indices, np.array(overlap, dtype=np.float64)


def missing_files(folder: Path, names: Sequence[str]) -> list[str]:
    """Those of `names` that are not in `folder`, by listing it once."""
    present = set(os.listdir(folder)) if folder.is_dir() else set()
    return [name for name in names if name not in present]


def make_views(images: Sequence[IndexedImage], folder: Path) -> list[PosedView]:
    """Read the sizes of images on disk and fit the cameras to images that were shrunk since.

    Raises:
        ConfigError: images of another shape than their cameras; all of them in one message.
    """
    views, problems = [], []
    for image in images:
        size = read_image_size(folder / image.name)
        expected = image.size or _centred_size(image.parameters)
        camera = _fit_camera(image.parameters, expected, size)
        if camera is None:
            problems.append(f"{image.name} is {size_text(size)}, its camera {size_text(expected)}")
        else:
            views.append(PosedView(name=image.name, image_size=size, camera=camera, T_w2c=image.T_w2c))
    if problems:
        raise ConfigError(
            f"{folder}: {len(problems)} of {len(images)} images have not the shape of their cameras in pixels: "
            f"{listed(problems, '; ')}; give the undistorted images that the index was made of"
        )
    return views


def _walk(folder: Path, depth: int) -> Iterator[Path]:
    yield folder
    if depth > 0 and folder.is_dir():
        with os.scandir(folder) as entries:
            inside = sorted(entry.name for entry in entries if entry.is_dir() and entry.name not in DATA_FOLDERS)
        for name in inside:
            yield from _walk(folder / name, depth - 1)


def _first_folder(roots: Sequence[Path], templates: Sequence[str], scene: str) -> Path | None:
    folders = (root / template.format(scene) for template in templates for root in roots)
    return next((folder for folder in folders if folder.is_dir()), None)


def _indexed_images(path: Path, arrays: Mapping[str, Any]) -> list[IndexedImage | None]:
    """Rows of an index; None for those without path, camera or pose."""
    columns = (arrays["image_paths"], arrays["intrinsics"], arrays["poses"])
    if len({len(column) for column in columns}) != 1:
        raise ShardError(f"{path}: {', '.join(str(len(column)) for column in columns)} paths, intrinsics and poses")
    return [
        None if any(value is None for value in row) else _indexed_image(path, *row)
        for row in zip(*columns, strict=True)
    ]


def _indexed_image(path: Path, image_path: Any, K: Any, T_w2c: Any) -> IndexedImage:
    name = PurePosixPath(str(image_path)).name
    K, T_w2c = np.array(K, dtype=np.float64), np.array(T_w2c, dtype=np.float64)
    if K.shape != (3, 3) or not np.isfinite(K).all() or (K[[0, 1, 0, 1], [0, 1, 2, 2]] <= 0).any():
        raise ShardError(f"{path}: intrinsics of {name} are {K.tolist()}")
    if T_w2c.shape != (4, 4) or not np.isfinite(T_w2c).all():
        raise ShardError(f"{path}: pose of {name} is {T_w2c.tolist()}")
    return IndexedImage(name=name, parameters=K[[0, 1, 0, 1], [0, 1, 2, 2]], T_w2c=T_w2c)


def _pair(path: Path, rows: Sequence[IndexedImage | None], info: Any) -> tuple[IndexedImage, IndexedImage, float]:
    """An entry of pair_infos: rows of two images, overlap, and what is not needed here."""
    try:
        (i, j), share, *_ = info
        first, second, value = rows[int(i)], rows[int(j)], float(share)
    except (TypeError, ValueError, IndexError) as error:
        raise ShardError(f"{path}: pair_infos holds {info!r}, expected ((i, j), overlap, ...): {error}") from error
    if first is None or second is None:
        raise ShardError(f"{path}: pair ({i}, {j}) is of an image without path, camera or pose")
    return first, second, value


def _same_camera(image: IndexedImage, other: IndexedImage) -> bool:
    return image is other or (
        np.array_equal(image.parameters, other.parameters) and np.array_equal(image.T_w2c, other.T_w2c)
    )


def _centred_size(parameters: np.ndarray) -> tuple[int, int]:
    """Size of the image of a camera: index files do not tell it, but COLMAP's undistorted cameras are centred."""
    return round(2 * float(parameters[2])), round(2 * float(parameters[3]))


def _fit_camera(parameters: np.ndarray, expected: tuple[int, int], size: tuple[int, int]) -> np.ndarray | None:
    """The camera of an image of `size` on disk; None where that is no copy of an image of the `expected` size."""
    if all(abs(a - b) <= LARGEST_ROUNDING for a, b in zip(expected, size, strict=True)):
        return parameters
    if not same_aspect(expected, size):
        return None
    shrunk: np.ndarray = parameters * ([size[0] / expected[0], size[1] / expected[1]] * 2)
    return shrunk

"""MegaDepth-1500 (Sun et al. 2021, LoFTR): 1500 pairs of 806 images of two scenes of MegaDepth, for scoring only."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from raylg.data.megadepth_files import (
    PAIR_INDEX,
    FileScene,
    IndexedImage,
    SceneFolders,
    find_scene,
    index_folders,
    make_views,
    missing_files,
    number_pairs,
    read_pairs,
)
from raylg.data.pairs import listed
from raylg.data.scene import SceneRef
from raylg.data.workspace import pinhole_parameters
from raylg.errors import ConfigError, ShardError

NUM_PAIRS = 1500
VIEWS, PAIRS = "views.txt", "pairs.txt"
NUM_POSE_WORDS = 12
EXPECTED_TREE = """expected is one of (images: about 1.5 GB)
  as LoFTR publishes it (its test data, or its index beside the scenes 0015 and 0022 of MegaDepth):
    megadepth_test_1500_scene_info/0015_0.1_0.3.npz   and 0015_0.3_0.5, 0022_0.1_0.3, 0022_0.3_0.5, 0022_0.5_0.7
    Undistorted_SfM/0015/images/*.jpg                 and 0022
  as glue-factory publishes it (megadepth1500.zip):
    views.txt                                         name R (9) t (3) MODEL width height parameters
    pairs.txt                                         name name
    images/0015/*.jpg                                 and 0022; or all three in a folder for each scene"""


@dataclass(frozen=True, kw_only=True)
class BenchmarkScene:
    """A scene without the sizes of its images on disk."""

    images: tuple[IndexedImage, ...]
    pairs: np.ndarray
    """int32 [P, 2], in the order and direction of the publisher, repetitions included."""
    overlap: np.ndarray
    """float64 [P]; NaN in glue-factory's layout."""
    folders: SceneFolders


class MegaDepth1500Source:
    """The benchmark, a scene per scene of MegaDepth, all in the split ``test``.

    Pairs are exactly those of the index files that are there, in their order; the 12 of the 1500 that repeat an
    unordered pair are kept, as every published number counts them.
    """

    expected_num_pairs = NUM_PAIRS
    """Of the whole benchmark."""

    def __init__(self, path: str) -> None:
        """Read the index and look for the images of all its pairs; no image is opened.

        Raises:
            ConfigError: no such folder, none of the two layouts in it, images that are missing.
            ShardError: an index file is damaged.
        """
        if "://" in path:
            raise ConfigError(
                f"benchmarks.megadepth1500.path = {path!r}: images are read from a disk; copy them there, or give the "
                "shards that were prepared of them"
            )
        root = Path(path).expanduser()
        if not root.is_dir():
            raise ConfigError(
                f"benchmarks.megadepth1500.path: {root} is {'no folder' if root.exists() else 'missing'}; "
                f"{EXPECTED_TREE}"
            )
        posed = _find_posed(root)
        found = _read_posed(posed) if posed else _read_index(root, _find_index(root))
        if not found:
            raise ConfigError(f"benchmarks.megadepth1500.path: {root} holds no MegaDepth-1500; {EXPECTED_TREE}")
        _check_images(root, found)
        self._scenes = {SceneRef(name=name, split="test"): scene for name, scene in sorted(found.items())}

    def scenes(self) -> Sequence[SceneRef]:
        """0015 and 0022."""
        return list(self._scenes)

    def content(self) -> str:
        """Digest of all that is scored: names, pairs, cameras and poses of the index, and bytes of each image file."""
        digest = hashlib.sha256()
        for ref, scene in self._scenes.items():
            wanted = {image.name for image in scene.images}
            with os.scandir(scene.folders.images) as entries:
                sizes = sorted((entry.name, entry.stat().st_size) for entry in entries if entry.name in wanted)
            images = [(image.name, image.size) for image in scene.images]
            digest.update(repr((ref.name, images, sizes, scene.pairs.shape)).encode())
            for numbers in ([scene.pairs], *((image.parameters, image.T_w2c) for image in scene.images)):
                for array in numbers:
                    digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()

    def load(self, scene: SceneRef) -> FileScene:
        """Read the sizes of the images of a scene.

        Raises:
            ConfigError: images of another shape than their cameras.
        """
        found = self._scenes[scene]
        return FileScene(
            views=make_views(found.images, found.folders.images),
            pairs=found.pairs,
            overlap=found.overlap.astype(np.float32),
            folders=found.folders,
        )


def _find_index(root: Path) -> list[Path]:
    """LoFTR's index files: those in the folder with 1500 in its name, else in the only one that has such files."""
    by_folder = {folder: _parts(folder) for folder in index_folders(root)}
    by_folder = {folder: parts for folder, parts in by_folder.items() if parts}
    named = {folder: parts for folder, parts in by_folder.items() if str(NUM_PAIRS) in folder.name}
    chosen = named or by_folder
    if len(chosen) > 1:
        raise ConfigError(
            f"benchmarks.megadepth1500.path: {root} has index files in {', '.join(map(str, chosen))}; give a folder "
            "that has those of MegaDepth-1500 only"
        )
    return next(iter(chosen.values()), [])


def _parts(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.glob("*.npz")) if PAIR_INDEX.fullmatch(path.stem)]


def _find_posed(root: Path) -> list[Path]:
    return [folder for folder in index_folders(root) if (folder / VIEWS).is_file() and (folder / PAIRS).is_file()]


def _read_index(root: Path, paths: Sequence[Path]) -> dict[str, BenchmarkScene]:
    by_scene: dict[str, list[Path]] = {}
    for path in paths:
        match = PAIR_INDEX.fullmatch(path.stem)
        assert match is not None, path
        by_scene.setdefault(match["scene"], []).append(path)
    found, absent = {}, []
    for name, parts in by_scene.items():
        folders = find_scene(root, name)
        if folders is None:
            absent.append(name)
        else:
            images, pairs, overlap = read_pairs(parts)
            found[name] = BenchmarkScene(images=tuple(images), pairs=pairs, overlap=overlap, folders=folders)
    if absent:
        raise ConfigError(
            f"benchmarks.megadepth1500.path: {root} has {paths[0].parent.name} with pairs of {', '.join(absent)}, but "
            f"no images of {'it' if len(absent) == 1 else 'them'}; {EXPECTED_TREE}"
        )
    return found


def _read_posed(roots: Sequence[Path]) -> dict[str, BenchmarkScene]:
    """glue-factory's layout; the scene is the folder in the names of images, else that of the lists."""
    found: dict[str, BenchmarkScene] = {}
    for root in roots:
        views = _read_views(root / VIEWS)
        by_scene: dict[str, list[tuple[str, str]]] = {}
        for number, line in _lines(root / PAIRS):
            names = line.split()
            unknown = [name for name in names if name not in views]
            if len(names) != 2 or unknown:
                what = f"{unknown[0]} is not in {VIEWS}" if unknown else f"{len(names)} names, expected 2"
                raise ShardError(f"{root / PAIRS}, line {number}: {what}")
            by_scene.setdefault(str(PurePosixPath(names[0]).parent), []).append((names[0], names[1]))
        for folder, pairs in by_scene.items():
            name = root.name if folder == "." else folder
            images = {each: image for each, image in views.items() if str(PurePosixPath(each).parent) == folder}
            if any(each not in images for pair in pairs for each in pair) or name in found:
                raise ShardError(f"{root / PAIRS}: pairs across scenes, or scene {name} in two folders")
            indexed, indices, overlap = number_pairs(images, pairs, [np.nan] * len(pairs))
            folders = SceneFolders(images=root / "images" / folder, depths=root / "depths" / folder)
            found[name] = BenchmarkScene(images=tuple(indexed), pairs=indices, overlap=overlap, folders=folders)
    return found


def _read_views(path: Path) -> dict[str, IndexedImage]:
    """Lines ``name R (9, by rows) t (3) MODEL width height parameters``; R and t map world to camera."""
    views = {}
    for number, line in _lines(path):
        name, *words = line.split()
        try:
            numbers = [float(word) for word in words[:NUM_POSE_WORDS]]
            model, width, height = words[NUM_POSE_WORDS], int(words[NUM_POSE_WORDS + 1]), int(words[NUM_POSE_WORDS + 2])
            parameters = pinhole_parameters(model, [float(word) for word in words[NUM_POSE_WORDS + 3 :]])
            T_w2c = np.eye(4)
            T_w2c[:3, :3], T_w2c[:3, 3] = np.reshape(numbers[:9], (3, 3)), numbers[9:]
        except (ValueError, IndexError) as error:
            raise ShardError(f"{path}, line {number}: expected name R t MODEL width height ... ({error})") from error
        if parameters is None:
            raise ShardError(f"{path}, line {number}: camera {model} with distortion; a pinhole camera is needed")
        views[name] = IndexedImage(
            name=PurePosixPath(name).name, parameters=parameters, T_w2c=T_w2c, size=(width, height)
        )
    return views


def _lines(path: Path) -> list[tuple[int, str]]:
    lines = path.read_text(encoding="utf-8").splitlines()
    return [(i, line) for i, line in enumerate(lines, 1) if line.strip() and not line.startswith("#")]


def _check_images(root: Path, scenes: dict[str, BenchmarkScene]) -> None:
    missing = [
        f"{scene.folders.images / name}"
        for scene in scenes.values()
        for name in missing_files(scene.folders.images, [image.name for image in scene.images])
    ]
    if missing:
        total = sum(len(scene.images) for scene in scenes.values())
        raise ConfigError(
            f"benchmarks.megadepth1500.path: {len(missing)} of the {total} images of its pairs are missing in {root}: "
            f"{listed(missing)}; copy them there: a score on fewer pairs compares with nothing"
        )

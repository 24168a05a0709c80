"""MegaDepth (Li and Snavely 2018) as scenes, with the index files of D2-Net or of LoFTR."""

from __future__ import annotations

import logging
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from raylg.data.config import DataConfig, SplitConfig
from raylg.data.megadepth_files import (
    PAIR_INDEX,
    FileScene,
    IndexedImage,
    SceneFolders,
    find_scene,
    index_folders,
    make_views,
    missing_files,
    read_image_names,
    read_overlaps,
    read_pairs,
)
from raylg.data.pairs import leave_out, listed, select_pairs
from raylg.data.scene import SceneRef, Split
from raylg.data.scene_lists import megadepth1500_images, megadepth_scenes
from raylg.errors import ConfigError, ShardError
from raylg.schema import nearest

logger = logging.getLogger(__name__)

INDEX_FOLDER = "scene_info"
BENCHMARK_SCENES = ("0015", "0022")
"""All pairs of MegaDepth-1500 are from these."""
EXPECTED_TREE = """expected below data.path (or in a folder in it, such as LoFTR's train/ and index/):
  scene_info/0001.npz                               D2-Net's index, one file a scene; or LoFTR's:
  scene_info_0.1_0.7/0001_0.1_0.3.npz, ...          one file a scene and range of overlap
  Undistorted_SfM/0001/images/*.jpg                 or phoenix/S6/zl548/MegaDepth_v1/0001/dense0/imgs/*.jpg
  depth_undistorted/0001/*.h5                       or phoenix/S6/zl548/MegaDepth_v1/0001/dense0/depths/*.h5"""


@dataclass(frozen=True, kw_only=True)
class SceneFiles:
    """Where a scene comes from."""

    indices: tuple[Path, ...]
    """One of D2-Net's kind, or those of LoFTR's kind."""
    by_pairs: bool
    """Whether they are of LoFTR's kind."""
    folders: SceneFolders


class MegaDepthSource:
    """The scenes of MegaDepth that are on disk and in the lists that raylg ships.

    `config.split.val` and `config.split.test` take the place of the lists of validation and test scenes; training
    scenes are those of their list without these. Scenes of which nothing is on disk are left out, and so are, in
    training and validation scenes, photographs that MegaDepth-1500 has too. Where a scene has both kinds of index,
    D2-Net's counts, whose overlaps are complete; of LoFTR's the first folder by name.
    """

    def __init__(self, config: DataConfig) -> None:
        """Find the scenes. Names of images are compared with the folders where the index is of D2-Net's kind.

        LoFTR's indices of training take gigabytes as one piece each; their content is looked at by `load`.

        Raises:
            ConfigError: nothing usable in the folder, images or depth maps that are missing, splits that do not fit;
                all problems at once.
        """
        self.config = config
        root = Path(config.path[0]).expanduser()
        if not root.is_dir():
            raise ConfigError(f"data.path: {root} is {'no folder' if root.exists() else 'missing'}; {EXPECTED_TREE}")
        indices = _find_indices(root)
        found = {scene: folders for scene in indices if (folders := find_scene(root, scene)) is not None}
        if not found:
            raise ConfigError(
                f"data.path: {root} holds the index of {len(indices)} scenes and the images of none of them; "
                f"{EXPECTED_TREE}"
            )
        splits, problems = _splits(config.split, found)
        self._scenes: dict[SceneRef, SceneFiles] = {}
        for scene in sorted(splits.keys() & found.keys()):
            by_pairs = PAIR_INDEX.fullmatch(indices[scene][0].stem) is not None
            files = SceneFiles(indices=indices[scene], by_pairs=by_pairs, folders=found[scene])
            problems += _scene_problems(scene, files)
            self._scenes[SceneRef(name=scene, split=splits[scene])] = files
        if not problems and not any(ref.split == "train" for ref in self._scenes):
            problems = [
                f"data.path: {root} has {listed(sorted(found))}, but no training scene of the list; {EXPECTED_TREE}"
            ]
        if problems:
            raise ConfigError("\n".join(problems))
        _tell(root, splits, self._scenes)

    def scenes(self) -> Sequence[SceneRef]:
        """All scenes, by name."""
        return list(self._scenes)

    def load(self, scene: SceneRef) -> FileScene:
        """Read the index of a scene and choose its pairs; only images of pairs become views.

        Raises:
            ConfigError: images are missing or of another shape than their cameras.
            ShardError: the index cannot be read.
        """
        files = self._scenes[scene]
        images, overlap = _read_index(files)
        names = [image.name for image in images]
        for problem in _missing_images(scene.name, files, names):
            raise ConfigError(problem)
        leave_out(overlap, names, _without_depth(files, names), scene.name, "have no depth map")
        if scene.split != "test":
            benchmark = {PurePosixPath(image).name for image in megadepth1500_images()}
            leave_out(overlap, names, benchmark.intersection(names), scene.name, "are images of MegaDepth-1500")
        pairs, chosen = select_pairs(overlap, self.config, zlib.crc32(scene.name.encode()))
        used, indices = np.unique(pairs, return_inverse=True)
        return FileScene(
            views=make_views([images[i] for i in used], files.folders.images),
            pairs=indices.reshape(-1, 2).astype(np.int32),
            overlap=chosen,
            folders=files.folders,
        )


def _find_indices(root: Path) -> dict[str, tuple[Path, ...]]:
    """By scene: its file of D2-Net's kind, else those of LoFTR's kind in the first folder that has some."""
    whole: dict[str, tuple[Path, ...]] = {}
    parts: dict[str, tuple[Path, ...]] = {}
    for folder in index_folders(root):
        if not any(part.startswith(INDEX_FOLDER) for part in folder.relative_to(root).parts):
            continue
        here: dict[str, tuple[Path, ...]] = {}
        for path in sorted(folder.glob("*.npz")):
            match = PAIR_INDEX.fullmatch(path.stem)
            if match is None:
                whole.setdefault(path.stem, (path,))
            else:
                here[match["scene"]] = (*here.get(match["scene"], ()), path)
        parts = here | parts
    return parts | whole


def _splits(split: SplitConfig, found: Mapping[str, object]) -> tuple[dict[str, Split], list[str]]:
    """Split of every scene of the lists, or of the options in their stead, and what is wrong with the options."""
    problems = []
    if split.by != "scene":
        problems.append(f"data.split.by = {split.by!r}: MegaDepth is divided by scene; leave it out")
    for field, names in (("val", split.val), ("test", split.test)):
        problems += [
            f"data.split.{field}: there is no scene {name!r} with index and images; there are {listed(sorted(found))}"
            f"{nearest(name, found)}"
            for name in names
            if name not in found
        ]
    problems += [f"data.split: {name!r} is both in val and in test" for name in sorted({*split.val} & {*split.test})]
    problems += [
        f"data.split.val: {name!r} is a scene of MegaDepth-1500, and hyperparameters are chosen on validation scenes; "
        "score on it with data.split.test, or with benchmarks.megadepth1500"
        for name in sorted({*split.val} & {*BENCHMARK_SCENES})
    ]
    splits: dict[str, Split] = dict.fromkeys(megadepth_scenes("train"), "train")
    splits |= dict.fromkeys(split.val or megadepth_scenes("val"), "val")
    splits |= dict.fromkeys(split.test or megadepth_scenes("test"), "test")
    return splits, problems


def _scene_problems(scene: str, files: SceneFiles) -> list[str]:
    """What can be seen without poses and pixels."""
    if files.folders.depths is None:
        return [f"{scene}: images in {files.folders.images}, but no folder of depth maps; {EXPECTED_TREE}"]
    if files.by_pairs:
        return []
    try:
        names = read_image_names(files.indices[0])
    except ShardError as error:
        return [str(error)]
    problems = _missing_images(scene, files, names)
    if not problems and names and len(_without_depth(files, names)) == len(names):
        problems = [f"{scene}: {files.folders.depths} has the depth map of no image; expected {Path(names[0]).stem}.h5"]
    return problems


def _missing_images(scene: str, files: SceneFiles, names: Sequence[str]) -> list[str]:
    missing = missing_files(files.folders.images, names)
    if not missing:
        return []
    return [
        f"{scene}: {len(missing)} of {len(names)} images of {files.indices[0]} are missing in {files.folders.images}: "
        f"{listed(missing)}; copy them there, or move the scene away"
    ]


def _without_depth(files: SceneFiles, names: Sequence[str]) -> set[str]:
    depths = {name: Path(name).with_suffix(".h5").name for name in names}
    assert files.folders.depths is not None, "checked at construction"
    missing = set(missing_files(files.folders.depths, list(depths.values())))
    return {name for name, depth in depths.items() if depth in missing}


def _read_index(files: SceneFiles) -> tuple[list[IndexedImage], np.ndarray]:
    """Images and overlap, float64 [N, N], not above 0 or NaN where unknown."""
    if not files.by_pairs:
        return read_overlaps(files.indices[0])
    images, pairs, values = read_pairs(files.indices)
    overlap = np.full((len(images), len(images)), np.nan)
    overlap[pairs[:, 0], pairs[:, 1]] = values
    overlap[pairs[:, 1], pairs[:, 0]] = values
    return images, overlap


def _tell(root: Path, splits: Mapping[str, Split], scenes: Mapping[SceneRef, SceneFiles]) -> None:
    here, all_of = Counter(ref.split for ref in scenes), Counter(splits.values())
    text = ", ".join(f"{split} {here[split]} of {all_of[split]}" for split in all_of)
    logger.log(
        logging.INFO if here == all_of else logging.WARNING, "MegaDepth scenes of the lists in %s: %s", root, text
    )

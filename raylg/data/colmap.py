"""COLMAP workspaces as scenes: undistorted images, a sparse model and depth maps."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pycolmap

from raylg.data.config import DataConfig, SplitConfig
from raylg.data.depth_maps import find_depth_map, read_depth_map
from raylg.data.pairs import leave_out, listed, select_pairs
from raylg.data.pixels import read_image, read_image_size, same_aspect, size_text
from raylg.data.scene import PosedView, SceneRef, Split
from raylg.data.workspace import Workspace, find_workspaces, pinhole_parameters, undistort_command
from raylg.errors import ConfigError, ShardError
from raylg.schema import nearest


class ColmapSource:
    """The scenes of COLMAP workspaces, divided as `config.split` says.

    Split by scene, a scene is a workspace. Split by image, a workspace gives a scene per split, of successive images in
    the order of their names: neighbours of a sequence mostly stay together, so that few pairs cross the cut.
    """

    def __init__(self, config: DataConfig) -> None:
        """Find and check the workspaces; neither points nor pixels are read.

        Raises:
            ConfigError: folders, models or depth maps are missing, cameras are distorted, or `config.split` does not
                fit; all problems at once.
        """
        self.config = config
        workspaces = find_workspaces(config.path)
        by_image = config.split.by == "image"
        divide = _divide_by_image if by_image else _divide_by_scene
        self._workspaces: dict[SceneRef, Workspace] = divide(workspaces, config.split)

    def scenes(self) -> Sequence[SceneRef]:
        """All scenes."""
        return list(self._workspaces)

    def load(self, scene: SceneRef) -> ColmapScene:
        """Read the sparse model of a scene and choose its pairs.

        Raises:
            ConfigError: images are missing or of another size than their cameras.
            ShardError: the model cannot be read.
        """
        workspace = self._workspaces[scene]
        model = _read_model(workspace)
        images = sorted((image for image in model.images.values() if image.has_pose), key=lambda image: image.name)
        if self.config.split.by == "image":
            images = images[_block(len(images), scene.split, self.config.split)]
        _check_files(workspace, images)
        overlap = covisibility([_point_ids(image) for image in images])
        names = [image.name for image in images]
        without_depth = tuple(name for name in names if find_depth_map(workspace.root, name) is None)
        leave_out(overlap, names, without_depth, scene.name, "have no depth map")
        pairs, chosen = select_pairs(overlap, self.config, zlib.crc32(scene.name.encode()))
        return ColmapScene(
            workspace=workspace,
            views=[_view(workspace, model, image) for image in images],
            pairs=pairs,
            overlap=chosen,
            without_depth=without_depth,
        )


@dataclass(frozen=True, kw_only=True)
class ColmapScene:
    """Posed images of a workspace, all or those of one split."""

    workspace: Workspace
    views: Sequence[PosedView]
    pairs: np.ndarray
    """int32 [P, 2]."""
    overlap: np.ndarray
    """float32 [P], common points / points of the image that has fewer."""
    without_depth: tuple[str, ...]
    """Images that are in no pair because they have no depth map: nothing in them could be labelled a match."""

    def image(self, index: int) -> np.ndarray:
        """Pixels, uint8 [H, W, 3] RGB."""
        return read_image(self.workspace.images / self.views[index].name)

    def depth(self, index: int) -> np.ndarray | None:
        """Depth, float32 [H', W'], at the resolution it was computed at; 0 where unknown."""
        path = find_depth_map(self.workspace.root, self.views[index].name)
        return None if path is None else read_depth_map(path)


def covisibility(point_ids: Sequence[np.ndarray]) -> np.ndarray:
    """Share of common points: common / points of the image that has fewer.

    Args:
        point_ids: of each image, the 3D points that it sees; repetitions count once.

    Returns:
        float64 [N, N], symmetric; 0 for images without points.
    """
    num_images = len(point_ids)
    unique = [np.unique(ids) for ids in point_ids]
    points = np.concatenate([np.zeros(0, np.int64), *unique])
    image = np.repeat(np.arange(num_images), [len(ids) for ids in unique])
    order = np.argsort(points, kind="stable")  # images stay ascending within a point
    points, image = points[order], image[order]
    shared = np.zeros(num_images * num_images, dtype=np.int64)
    start, step = np.arange(len(points)), 1
    while len(start):  # pairs of observations of one point that are `step` apart
        start = start[start + step < len(points)]
        start = start[points[start] == points[start + step]]
        shared += np.bincount(image[start] * num_images + image[start + step], minlength=len(shared))
        step += 1
    common = shared.reshape(num_images, num_images)
    counts = np.array([len(ids) for ids in unique], dtype=np.int64)
    fewer = np.minimum(counts[:, None], counts[None, :])
    overlap = (common + common.T + np.diag(counts)) / np.maximum(fewer, 1)
    return overlap


def _divide_by_scene(workspaces: Sequence[Workspace], split: SplitConfig) -> dict[SceneRef, Workspace]:
    by_name = {workspace.name: workspace for workspace in workspaces}
    problems = [
        f"data.split.{field}: there is no workspace {name!r}; there are {', '.join(by_name)}{nearest(name, by_name)}"
        for field, names in (("val", split.val), ("test", split.test))
        for name in names
        if name not in by_name
    ]
    both = set(split.val) & set(split.test)
    problems += [f"data.split: {name!r} is both in val and in test" for name in sorted(both)]
    if problems:
        raise ConfigError("\n".join(problems))
    # By hash: independent of the order of names, and a new workspace seldom moves the others.
    rest = sorted(set(by_name) - {*split.val, *split.test}, key=lambda name: hashlib.sha256(name.encode()).hexdigest())
    num_val = 0 if split.val else _share(split.val_fraction, len(by_name), at_least=1)
    num_test = 0 if split.test else _share(split.test_fraction, len(by_name), at_least=1)
    if num_val + num_test > 0 and num_val + num_test >= len(rest):
        raise ConfigError(
            f"data.split.by=scene: {len(rest)} workspace(s) cannot give {num_val} for validation, {num_test} for "
            "testing and one for training; set data.split.by=image or data.split.val_fraction=0, or give more"
        )
    val = {*split.val, *rest[:num_val]}
    test = {*split.test, *rest[num_val : num_val + num_test]}
    refs = {}
    for name, workspace in by_name.items():
        of_split: Split = "val" if name in val else "test" if name in test else "train"
        refs[SceneRef(name=name, split=of_split)] = workspace
    return refs


def _divide_by_image(workspaces: Sequence[Workspace], split: SplitConfig) -> dict[SceneRef, Workspace]:
    if split.val or split.test:
        names = ", ".join((*split.val, *split.test))
        raise ConfigError(
            f"data.split.val and data.split.test name workspaces ({names}), but data.split.by=image; take them away, "
            "or set data.split.by=scene"
        )
    shares: dict[Split, float] = {"train": 1, "val": split.val_fraction, "test": split.test_fraction}
    return {
        SceneRef(name=f"{workspace.name}-{of_split}", split=of_split): workspace
        for workspace in workspaces
        for of_split, share in shares.items()
        if share > 0
    }


def _block(num_images: int, of_split: Split, split: SplitConfig) -> slice:
    """Which of the sorted images belong to a split: training first, then validation, then testing."""
    num_val = min(_share(split.val_fraction, num_images, at_least=2), num_images)
    num_test = min(_share(split.test_fraction, num_images, at_least=2), num_images - num_val)
    ends = np.cumsum([num_images - num_val - num_test, num_val, num_test])
    position = ("train", "val", "test").index(of_split)
    return slice(0 if position == 0 else int(ends[position - 1]), int(ends[position]))


def _share(fraction: float, total: int, *, at_least: int) -> int:
    return max(at_least, round(fraction * total)) if fraction > 0 else 0


def _read_model(workspace: Workspace) -> pycolmap.Reconstruction:
    try:
        return pycolmap.Reconstruction(workspace.model)
    except (ValueError, RuntimeError, IndexError) as error:
        raise ShardError(
            f"{workspace.model}: COLMAP cannot read this model ({error}); copy or make it again"
        ) from error


def _point_ids(image: pycolmap.Image) -> np.ndarray:
    return np.array([point.point3D_id for point in image.get_observation_points2D()], dtype=np.int64)


def _check_files(workspace: Workspace, images: Sequence[pycolmap.Image]) -> None:
    missing = [image.name for image in images if not (workspace.images / image.name).is_file()]
    if missing:
        raise ConfigError(
            f"{workspace.images}: {len(missing)} of {len(images)} images of the model are missing: {listed(missing)}; "
            "copy them there"
        )


def _view(workspace: Workspace, model: pycolmap.Reconstruction, image: pycolmap.Image) -> PosedView:
    camera = model.cameras[image.camera_id]
    parameters = pinhole_parameters(camera.model.name, list(camera.params))
    if parameters is None:  # checked before, but the files may have changed
        raise ConfigError(
            f"{workspace.model}: distorted camera; `{undistort_command(workspace.root, workspace.model)}`"
        )
    size = read_image_size(workspace.images / image.name)
    if not same_aspect(size, (camera.width, camera.height)):
        raise ConfigError(
            f"{workspace.images / image.name}: {size_text(size)} pixels, but its camera in {workspace.model} has "
            f"{size_text((camera.width, camera.height))}; give the images that the model was made of, or undistort "
            f"them: `{undistort_command(workspace.root, workspace.model)}`"
        )
    scale = np.array([size[0] / camera.width, size[1] / camera.height] * 2)  # images may have been shrunk since
    T_w2c = np.eye(4)
    T_w2c[:3] = image.cam_from_world().matrix()
    return PosedView(name=image.name, image_size=size, camera=parameters * scale, T_w2c=T_w2c)

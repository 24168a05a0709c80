"""COLMAP workspaces: where they are, and whether they can be used, found out without reading points or pixels."""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from raylg.data.depth_maps import has_depth_maps
from raylg.errors import ConfigError

MODEL_FILES = ("cameras", "images", "points3D")

# Models of COLMAP by their number in cameras.bin: name and number of parameters.
CAMERA_MODELS = {
    0: ("SIMPLE_PINHOLE", 3),
    1: ("PINHOLE", 4),
    2: ("SIMPLE_RADIAL", 4),
    3: ("RADIAL", 5),
    4: ("OPENCV", 8),
    5: ("OPENCV_FISHEYE", 8),
    6: ("FULL_OPENCV", 12),
    7: ("FOV", 5),
    8: ("SIMPLE_RADIAL_FISHEYE", 4),
    9: ("RADIAL_FISHEYE", 5),
    10: ("THIN_PRISM_FISHEYE", 12),
    11: ("RAD_TAN_THIN_PRISM_FISHEYE", 16),
}
ONE_FOCAL_LENGTH = ("SIMPLE_PINHOLE", "SIMPLE_RADIAL", "RADIAL")
TWO_FOCAL_LENGTHS = ("PINHOLE", "OPENCV", "FULL_OPENCV")


@dataclass(frozen=True, kw_only=True)
class Workspace:
    """A folder with images/, a sparse model and depth maps."""

    name: str
    """Unique among those that were found together."""
    root: Path
    model: Path
    """Folder of the sparse model."""

    @property
    def images(self) -> Path:
        """Folder of the images."""
        return self.root / "images"


def find_workspaces(paths: Sequence[str]) -> list[Workspace]:
    """Find workspaces and check them, in the order given, each once.

    Args:
        paths: workspaces, or folders that hold workspaces.

    Raises:
        ConfigError: all problems of all workspaces, each with what to do.
    """
    problems: list[str] = []
    roots = list(dict.fromkeys(root for path in paths for root in _roots(Path(path).expanduser(), problems)))
    names = _names(roots)
    workspaces = []
    for root in roots:
        model = _find_model(root)
        found = list(_problems(root, model))
        problems.extend(found)
        if model is not None and not found:
            workspaces.append(Workspace(name=names[root], root=root, model=model))
    if problems:
        raise ConfigError("\n".join(problems))
    return workspaces


def pinhole_parameters(model: str, parameters: Sequence[float]) -> np.ndarray | None:
    """Parameters fx fy cx cy, float64 [4], of a camera without distortion; None for others."""
    if model in ONE_FOCAL_LENGTH:
        f, cx, cy, *distortion = parameters
        fx = fy = f
    elif model in TWO_FOCAL_LENGTHS:
        fx, fy, cx, cy, *distortion = parameters
    else:
        return None
    return None if any(distortion) else np.array([fx, fy, cx, cy], dtype=np.float64)


def undistort_command(root: Path, model: Path) -> str:
    """The commands of COLMAP that make a usable workspace of one with distorted images."""
    out = root.with_name(f"{root.name}-undistorted")
    return (
        f"colmap image_undistorter --image_path {root / 'images'} --input_path {model} --output_path {out} "
        f"--output_type COLMAP && colmap patch_match_stereo --workspace_path {out}"
    )


def _roots(path: Path, problems: list[str]) -> list[Path]:
    if not path.is_dir():
        problems.append(f"data.path: {path} is {'no folder' if path.exists() else 'missing'}; give a COLMAP workspace")
        return []
    path = path.resolve()
    if (path / "sparse").is_dir():
        return [path]
    inside = sorted(child for child in path.iterdir() if (child / "sparse").is_dir())
    if not inside:
        problems.append(
            f"data.path: {path} has no sparse model: it is neither a COLMAP workspace (a folder with images/ and "
            "sparse/ or sparse/0/) nor a folder that holds workspaces"
        )
    return inside


def _names(roots: Sequence[Path]) -> dict[Path, str]:
    """Folder names; with that of the parent, or the whole path, where these repeat."""
    names = {root: root.name for root in roots}
    for longer in (lambda root: f"{root.parent.name}/{root.name}", str):
        counts = Counter(names.values())
        names = {root: name if counts[name] == 1 else longer(root) for root, name in names.items()}
    return names


def _find_model(root: Path) -> Path | None:
    for folder in (root / "sparse", root / "sparse" / "0"):
        for suffix in (".bin", ".txt"):
            if all((folder / f"{name}{suffix}").is_file() for name in MODEL_FILES):
                return folder
    return None


def _problems(root: Path, model: Path | None) -> Iterator[str]:
    if model is None:
        yield (
            f"{root}: no sparse model: cameras, images and points3D (.bin or .txt) are expected in {root / 'sparse'} "
            f"or {root / 'sparse' / '0'}; run `colmap mapper`"
        )
        return
    if not (root / "images").is_dir():
        yield f"{root}: no folder images/; put there the undistorted images of the model"
    try:
        cameras = read_cameras(model)
    except ConfigError as error:
        yield str(error)
        return
    for name, parameters in cameras:
        if pinhole_parameters(name, parameters) is None:
            yield (
                f"{root}: camera model {name} with distortion {[float(f'{x:.6g}') for x in parameters]}, but pinhole "
                f"cameras are needed; undistort the images: `{undistort_command(root, model)}`, then give that folder"
            )
            return  # the same command helps all cameras, and tells of missing depth maps
    if not has_depth_maps(root):
        yield (
            f"{root}: no depth map of any image, and matches are labelled by depth: neither "
            f"stereo/depth_maps/<image>.geometric.bin (run `colmap patch_match_stereo --workspace_path {root}`) nor "
            "depths/<image>.h5 with a data set `depth`"
        )


def read_cameras(model: Path) -> list[tuple[str, tuple[float, ...]]]:
    """Model name and parameters of each camera of a sparse model, without reading anything else.

    Raises:
        ConfigError: the file ends early; names it.
    """
    path = model / "cameras.bin"
    try:
        if path.is_file():
            return list(_binary_cameras(path.read_bytes()))
        path = model / "cameras.txt"
        lines = [line.split() for line in path.read_text().splitlines() if line and not line.startswith("#")]
        return [(line[1], tuple(map(float, line[4:]))) for line in lines]
    except (struct.error, ValueError, IndexError) as error:
        raise ConfigError(f"{path}: damaged ({error}); run `colmap mapper` or copy the model again") from error


def _binary_cameras(data: bytes) -> Iterator[tuple[str, tuple[float, ...]]]:
    (count,), start = struct.unpack_from("<Q", data), 8
    for _ in range(count):
        _, model, _, _ = struct.unpack_from("<iiQQ", data, start)
        name, num_parameters = CAMERA_MODELS.get(model, (f"number {model}", 0))
        yield name, struct.unpack_from(f"<{num_parameters}d", data, start + 24)
        if model not in CAMERA_MODELS:
            return  # of unknown length
        start += 24 + 8 * num_parameters

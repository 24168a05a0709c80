"""Depth maps of images: those of COLMAP's stereo, or HDF5 files as MegaDepth has them."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np

from raylg.errors import ShardError

STEREO_FOLDER = Path("stereo/depth_maps")
STEREO_SUFFIX = ".geometric.bin"
HDF5_FOLDER = Path("depths")
LONGEST_HEADER = 64


def has_depth_maps(workspace: Path) -> bool:
    """Whether a workspace has a depth map of any image."""
    stereo, hdf5 = workspace / STEREO_FOLDER, workspace / HDF5_FOLDER
    return any(stereo.rglob(f"*{STEREO_SUFFIX}")) or any(hdf5.rglob("*.h5"))


def find_depth_map(workspace: Path, image_name: str) -> Path | None:
    """`stereo/depth_maps/<image>.geometric.bin`, else `depths/<image without its ending>.h5`, else None."""
    stereo = workspace / STEREO_FOLDER / f"{image_name}{STEREO_SUFFIX}"
    hdf5 = workspace / HDF5_FOLDER / Path(image_name).with_suffix(".h5")
    return next((path for path in (stereo, hdf5) if path.is_file()), None)


def read_depth_map(path: Path) -> np.ndarray:
    """Depth along the optical axis, float32 [H, W], 0 where unknown.

    Raises:
        ShardError: truncated, or of another format.
    """
    depth = _read_hdf5(path) if path.suffix == ".h5" else _read_stereo(path)
    if depth.ndim != 2:
        raise ShardError(f"{path}: a depth map of shape {list(depth.shape)}, expected [H, W]")
    depth = depth.astype(np.float32)
    return np.where(np.isfinite(depth) & (depth > 0), depth, np.float32(0))


def _read_hdf5(path: Path) -> np.ndarray:
    try:
        with h5py.File(path, "r") as file:
            depth: np.ndarray = np.asarray(file["depth"])
    except (OSError, KeyError) as error:
        raise ShardError(f"{path}: no depth map (HDF5 with a data set `depth`): {error}") from error
    return depth


def _read_stereo(path: Path) -> np.ndarray:
    """COLMAP's format: text `width&height&channels&`, then float32 in rows, little endian."""
    data = path.read_bytes()
    *header, _ = (data[:LONGEST_HEADER].split(b"&", 3) + [b""] * 4)[:4]
    if not all(number.isdigit() for number in header):
        raise ShardError(f"{path}: not a depth map of COLMAP; run patch_match_stereo again")
    width, height, channels = (int(number) for number in header)
    start = sum(len(number) + 1 for number in header)
    expected = start + 4 * width * height * channels
    if len(data) != expected or channels != 1:
        raise ShardError(
            f"{path}: {len(data)} bytes for {width} x {height} pixels of {channels} channels, expected {expected} "
            "bytes of 1 channel; run patch_match_stereo again"
        )
    return np.frombuffer(data, dtype="<f4", offset=start).reshape(height, width)

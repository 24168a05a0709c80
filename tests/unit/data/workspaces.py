"""A small COLMAP workspace, written to disk: cameras on a line before a slanted plane, with exact depth."""

from __future__ import annotations

from pathlib import Path

import cv2
import h5py
import numpy as np
import pycolmap

SIZE = (64, 48)
FOCAL = 60.0


def plane_depth(width: int, height: int) -> np.ndarray:
    """Depth of the plane z = 4 + x / 2 seen by any camera at x = 0, float32 [H, W]."""
    x = (np.arange(width) + 0.5) * (SIZE[0] / width) - SIZE[0] / 2
    return np.broadcast_to(4 / (1 - 0.5 * x / FOCAL), (height, width)).astype(np.float32)


def write_workspace(
    root: Path,
    *,
    num_images: int = 6,
    camera_model: str = "PINHOLE",
    distortion: tuple[float, ...] = (),
    depth: str | None = "h5",
    text: bool = False,
    shrink: int = 1,
    seed: int = 0,
) -> None:
    """Write images/, sparse/0/ and depth maps.

    Neighbouring images share half of their points. Camera i sits at y = i / 2, all at x = z = 0.

    Args:
        root: the workspace.
        num_images: named 00.jpg, sub/01.jpg, 02.jpg, ... (odd ones lie in a folder).
        camera_model: of COLMAP.
        distortion: parameters after the pinhole's.
        depth: h5, stereo, or None.
        text: write the model as text.
        shrink: images on disk are smaller than their cameras by this.
        seed: of the points.
    """
    rng = np.random.default_rng(seed)
    model = pycolmap.Reconstruction()
    focal = [FOCAL] if camera_model.startswith(("SIMPLE", "RADIAL")) else [FOCAL, FOCAL]
    parameters = [*focal, SIZE[0] / 2, SIZE[1] / 2, *distortion]
    model.add_camera_with_trivial_rig(
        pycolmap.Camera(model=camera_model, width=SIZE[0], height=SIZE[1], params=parameters, camera_id=1)
    )
    names = [f"{'sub/' if i % 2 else ''}{i:02d}.jpg" for i in range(num_images)]
    seen = [list(range(20 * i, 20 * i + 40)) for i in range(num_images)]
    for i, name in enumerate(names):
        image = pycolmap.Image(name=name, camera_id=1, image_id=i + 1)
        image.points2D = pycolmap.Point2DList([pycolmap.Point2D(rng.uniform(0, 48, 2)) for _ in seen[i]])
        pose = pycolmap.Rigid3d(np.array([[1, 0, 0, 0], [0, 1, 0, -i / 2], [0, 0, 1, 0]], dtype=float))
        model.add_image_with_trivial_frame(image, pose)
    for point in range(20 * num_images + 20):
        track = [(i + 1, seen[i].index(point)) for i in range(num_images) if point in seen[i]]
        elements = [pycolmap.TrackElement(image_id, index) for image_id, index in track]
        model.add_point3D(rng.uniform(-1, 1, 3) + np.array([0, 0, 5]), pycolmap.Track(elements))
    (root / "sparse/0").mkdir(parents=True)
    (model.write_text if text else model.write_binary)(str(root / "sparse/0"))
    for name in names:
        path = root / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (SIZE[1] // shrink, SIZE[0] // shrink, 3), dtype=np.uint8)
        cv2.imwrite(str(path), pixels)
        if depth is not None:
            write_depth(root, name, depth)


def write_depth(root: Path, name: str, kind: str) -> None:
    """Write the depth map of an image; 32 x 24 as stereo, 64 x 48 as HDF5."""
    if kind == "h5":
        path = (root / "depths" / name).with_suffix(".h5")
        path.parent.mkdir(parents=True, exist_ok=True)
        with h5py.File(path, "w") as file:
            file["depth"] = plane_depth(64, 48).astype(np.float16)
    else:
        path = root / "stereo/depth_maps" / f"{name}.geometric.bin"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"32&24&1&" + plane_depth(32, 24).tobytes())

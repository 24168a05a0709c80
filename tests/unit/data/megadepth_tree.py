"""MegaDepth in miniature: a part of the real MegaDepth-1500 index with rendered images in its true layout.

The central match of every pair of the index, triangulated with the real cameras, tells where the real square stands.
There the cameras are shown a wall with boards before it: the nearest plane that the ray of a pixel meets, so that
images agree with the real poses exactly and are not one homography apart.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import h5py
import numpy as np

INDEX_FOLDER = "megadepth_test_1500_scene_info"
TEXTURE_SIZE = 4096
NUM_BOARDS = 12
NUM_SHEETS = 3000


@dataclass(frozen=True)
class Wall:
    """Parallel rectangles in space; the first is unbounded, the others stand before it."""

    origin: np.ndarray
    """float64 [3], a point of the wall."""
    axes: np.ndarray
    """float64 [3, 3], rows: two directions in the wall, and its normal, towards the cameras."""
    boards: np.ndarray
    """float64 [K, 5]: u0 v0 u1 v1 height, in units of the scene."""
    extent: float
    """The texture repeats after this length."""

    def meet(self, centre: np.ndarray, rays: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Multiples [N] of the world rays [N, 3] at which they meet the wall, inf for none, and (u, v) [N, 2] there."""
        start, rays = self.axes @ (centre - self.origin), rays @ self.axes.T
        best, position = np.full(len(rays), np.inf), np.zeros((len(rays), 2))
        for u0, v0, u1, v1, height in self.boards:
            with np.errstate(divide="ignore", invalid="ignore"):
                t = (height - start[2]) / rays[:, 2]
                uv = start[:2] + t[:, None] * rays[:, :2]
            hit = (t > 0) & (t < best) & (uv >= (u0, v0)).all(axis=1) & (uv <= (u1, v1)).all(axis=1)
            best[hit], position[hit] = t[hit], uv[hit]
        return best, position


def load_index(path: Path) -> dict[str, Any]:
    """A file of the real index."""
    return np.load(path, allow_pickle=True)


def write_loftr_tree(
    root: Path, index: Path, num_pairs: int = 20, long_side: int = 480, with_depth: bool = False
) -> None:
    """Write LoFTR's layout for a few pairs of the real index, as many of each scene as possible.

    Args:
        root: gets megadepth_test_1500_scene_info/ and Undistorted_SfM/.
        index: folder of the real index files.
        num_pairs: in all.
        long_side: of the images in pixels; smaller than their cameras, as images of many users are.
        with_depth: also write exact depth maps below phoenix/.
    """
    scenes = sorted({path.name.split("_")[0] for path in index.glob("*.npz")})
    for k, scene in enumerate(scenes):
        share = num_pairs // len(scenes) + (k < num_pairs % len(scenes))
        files = {path.name: load_index(path) for path in sorted(index.glob(f"{scene}_*.npz"))}
        wall = find_wall(files.values(), seed=k)
        chosen = choose_pairs(files, share)
        for name, infos in chosen.items():
            write_index(root / INDEX_FOLDER / name, files[name], infos)
        texture = make_texture(seed=k)
        info = next(iter(files.values()))
        for row in sorted({int(i) for infos in chosen.values() for info in infos for i in info[0]}):
            camera = Photographer(info["intrinsics"][row], info["poses"][row], long_side)
            path = root / info["image_paths"][row]
            path.parent.mkdir(parents=True, exist_ok=True)
            image, depth = render(wall, texture, camera)
            cv2.imwrite(str(path), image, [cv2.IMWRITE_JPEG_QUALITY, 95])
            if with_depth:
                write_depth(root / info["depth_paths"][row], depth)


def write_index(path: Path, info: dict[str, Any], pair_infos: Sequence[Any]) -> None:
    """Write an index file with only these pairs, as a plain pickle like the published ones."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps({**info, "pair_infos": list(pair_infos)}, protocol=4))


def write_posed_layout(root: Path, index: Path, write_image: Callable[[Path, np.ndarray], None]) -> None:
    """Write glue-factory's layout of the whole index, numbers with all digits, images by `write_image(path, K)`."""
    views: dict[str, str] = {}
    pairs: list[str] = []
    for path in sorted(index.glob("*.npz")):
        info = load_index(path)
        for rows, *_ in info["pair_infos"]:
            names = []
            for row in map(int, rows):
                scene, name = Path(info["image_paths"][row]).parts[1], Path(info["image_paths"][row]).name
                names.append(f"{scene}/{name}")
                K, T = info["intrinsics"][row], info["poses"][row]
                size = f"{round(2 * K[0, 2])} {round(2 * K[1, 2])}"
                numbers = [*T[:3, :3].ravel(), *T[:3, 3]]
                camera = [K[0, 0], K[1, 1], K[0, 2], K[1, 2]]
                views[names[-1]] = f"{text(numbers)} PINHOLE {size} {text(camera)}"
                if not (root / "images" / names[-1]).exists():
                    write_image(root / "images" / names[-1], K)
            pairs.append(" ".join(names))
    (root / "views.txt").write_text("".join(f"{name} {line}\n" for name, line in views.items()))
    (root / "pairs.txt").write_text("\n".join(pairs) + "\n")


def text(numbers: Iterable[float]) -> str:
    return " ".join(repr(float(number)) for number in numbers)


def choose_pairs(files: dict[str, dict[str, Any]], count: int) -> dict[str, list[Any]]:
    """`count` pairs, as evenly over the files as possible, preferring images that were chosen before."""
    chosen: dict[str, list[Any]] = {name: [] for name in files}
    used: set[int] = set()
    for k in range(count):
        name = list(files)[k % len(files)]
        taken = {tuple(map(int, info[0])) for info in chosen[name]}
        left = [info for info in files[name]["pair_infos"] if tuple(map(int, info[0])) not in taken]
        best = max(left, key=lambda info: sum(int(i) in used for i in info[0]))
        chosen[name].append(best)
        used |= {int(i) for i in best[0]}
    return chosen


def find_wall(files: Iterable[dict[str, Any]], seed: int) -> Wall:
    """The plane that most of the triangulated central matches lie near, with boards of random size before it."""
    rng = np.random.default_rng(seed)
    points, centres = [], []
    for info in files:
        for rows, _, match in info["pair_infos"]:
            cameras = [(info["intrinsics"][int(i)], info["poses"][int(i)]) for i in rows]
            point = triangulate(cameras, np.asarray(match, dtype=np.float64).reshape(2, 2))
            if all((T[:3, :3] @ point + T[:3, 3])[2] > 0 for _, T in cameras):
                points.append(point)
                centres += [-T[:3, :3].T @ T[:3, 3] for _, T in cameras]
    cloud, centre = np.array(points), np.mean(centres, axis=0)
    distance = float(np.median(np.linalg.norm(cloud - centre, axis=1)))
    best, normal, origin = -1, np.zeros(3), np.zeros(3)
    for _ in range(500):
        a, b, c = cloud[rng.choice(len(cloud), 3, replace=False)]
        n = np.cross(b - a, c - a)
        n /= np.linalg.norm(n)
        near = int((np.abs((cloud - a) @ n) < 0.02 * distance).sum())
        if near > best:
            best, normal, origin = near, n * np.sign((centre - a) @ n), a
    first = np.cross(normal, [0.0, 1.0, 0.0])
    first /= np.linalg.norm(first)
    axes = np.stack([first, np.cross(normal, first), normal])
    uv = (cloud - origin) @ axes[:2].T
    middle, spread = np.median(uv, axis=0), np.percentile(np.abs(uv - np.median(uv, axis=0)), 80)
    boards = [[-np.inf, -np.inf, np.inf, np.inf, 0.0]]
    for _ in range(NUM_BOARDS):
        corner, size = middle + rng.uniform(-1.5, 1.2, 2) * spread, rng.uniform(0.15, 0.5, 2) * spread
        boards.append([*corner, *(corner + size), rng.uniform(0.05, 0.2) * distance])
    return Wall(origin=origin, axes=axes, boards=np.array(boards), extent=float(8 * spread))


def triangulate(cameras: Sequence[tuple[np.ndarray, np.ndarray]], pixels: np.ndarray) -> np.ndarray:
    """The point seen at `pixels` [2, 2] by two cameras (K, T_w2c), by the linear method."""
    rows = []
    for (K, T), (x, y) in zip(cameras, pixels, strict=True):
        P = K @ T[:3]
        rows += [x * P[2] - P[0], y * P[2] - P[1]]
    X = np.linalg.svd(np.array(rows))[2][-1]
    return X[:3] / X[3]


def make_texture(seed: int) -> np.ndarray:
    """uint8 [S, S, 3]: sheets of paper of all sizes on each other, so that there are corners at every scale."""
    rng = np.random.default_rng(seed)
    texture = np.full((TEXTURE_SIZE, TEXTURE_SIZE, 3), 128, dtype=np.uint8)
    for size in np.geomspace(TEXTURE_SIZE / 10, TEXTURE_SIZE / 400, NUM_SHEETS):
        centre, angle = rng.uniform(0, TEXTURE_SIZE, 2), rng.uniform(0, 90)
        box = cv2.boxPoints((centre, (size * rng.uniform(0.5, 2), size), angle))
        colour = rng.integers(0, 256, 3).tolist()
        cv2.fillConvexPoly(texture, np.round(box).astype(np.int32), colour, cv2.LINE_AA)
    return texture


@dataclass(frozen=True)
class Photographer:
    """A camera of the index, and the size of the image on disk."""

    K: np.ndarray
    T_w2c: np.ndarray
    long_side: int

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) of the image on disk."""
        width, height = round(2 * self.K[0, 2]), round(2 * self.K[1, 2])
        scale = min(1.0, self.long_side / max(width, height))
        return round(width * scale), round(height * scale)

    def look(self, wall: Wall) -> tuple[np.ndarray, np.ndarray]:
        """Depth [H, W], inf beside the wall, and (u, v) [H, W, 2] on the wall, at the centres of the pixels."""
        width, height = self.size
        x, y = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
        scale = 2 * self.K[:2, 2] / self.size
        pixels = np.stack([x * scale[0], y * scale[1], np.ones_like(x)], axis=-1).reshape(-1, 3)
        R, t = self.T_w2c[:3, :3], self.T_w2c[:3, 3]
        rays = pixels @ np.linalg.inv(self.K).T  # z = 1, so a multiple of a ray is a depth
        depth, uv = wall.meet(-R.T @ t, rays @ R)
        return depth.reshape(x.shape), uv.reshape(*x.shape, 2)


def render(wall: Wall, texture: np.ndarray, camera: Photographer) -> tuple[np.ndarray, np.ndarray]:
    """What a camera sees of the wall, uint8 [H, W, 3], black beside it; and its depth, float32 [H, W], 0 there."""
    depth, uv = camera.look(wall)
    seen = np.isfinite(depth)
    ray = np.median(depth[seen]) / camera.K[0, 0] * 2 * camera.K[0, 2] / depth.shape[1] if seen.any() else 1.0
    level = texture  # of a pyramid: about one texel per ray
    for _ in range(int(np.clip(np.log2(max(ray * len(texture) / wall.extent, 1.0)), 0, 6))):
        level = cv2.pyrDown(level, borderType=cv2.BORDER_REFLECT_101)
    where = np.mod(uv / wall.extent * len(level) - 0.5, len(level)).astype(np.float32)
    image = cv2.remap(level, where[..., 0], where[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)
    image[~seen] = 0
    return image, np.where(seen, depth, 0).astype(np.float32)


def write_depth(path: Path, depth: np.ndarray) -> None:
    """Write a depth map as MegaDepth has it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file["depth"] = depth

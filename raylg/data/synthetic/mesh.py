"""A scene as flat arrays of textured parallelograms and triangles."""

from __future__ import annotations

from dataclasses import dataclass, field

import cv2
import numpy as np

MAX_SIDE = 6.0
"""Longest side of a polygon in metres; longer ones are divided, because each is drawn from one mip level."""


@dataclass(frozen=True)
class Surface:
    """How a polygon is seen."""

    solid: bool = False
    """Seen from one side only: the one from which u x v points away."""
    foliage: bool = False
    """Lit alike from all sides."""
    max_side: float = MAX_SIDE


TWO_SIDED = Surface()
SOLID = Surface(solid=True)
FOLIAGE = Surface(foliage=True)
WHOLE = Surface(max_side=np.inf)
"""Never divided: for narrow strips."""


@dataclass(frozen=True)
class Texture:
    """A mip chain: uint8 [h, w, 4] RGBA, each level half the size of the one before."""

    levels: tuple[np.ndarray, ...]
    opaque: bool
    """Whether every texel covers."""

    @staticmethod
    def create(albedo: np.ndarray, alpha: np.ndarray | None = None) -> Texture:
        """Quantise float32 [h, w, 3] in [0, 1] (and alpha float32 [h, w]) and build the chain."""
        rgba = np.empty((*albedo.shape[:2], 4), np.uint8)
        rgba[..., :3] = np.clip(albedo * 255 + 0.5, 0, 255)
        rgba[..., 3] = 255 if alpha is None else np.clip(alpha * 255 + 0.5, 0, 255)
        levels = [rgba]
        while min(levels[-1].shape[:2]) >= 8:
            height, width = levels[-1].shape[:2]
            levels.append(cv2.resize(levels[-1], (width // 2, height // 2), interpolation=cv2.INTER_AREA))
        return Texture(tuple(levels), alpha is None)


@dataclass(frozen=True)
class Mesh:
    """N polygons: point(a, b) = origin + a u + b v with a, b in [0, 1] (and a + b <= 1 for triangles)."""

    origin: np.ndarray
    """float64 [N, 3], metres; z is up."""
    u: np.ndarray
    """float64 [N, 3]."""
    v: np.ndarray
    """float64 [N, 3]."""
    window: np.ndarray
    """float64 [N, 4]: texture coordinates (s0, t0, s1, t1) in [0, 1] of a = b = 0 and a = b = 1."""
    texture: np.ndarray
    """int32 [N], index into `textures`."""
    triangle: np.ndarray
    """bool [N]."""
    foliage: np.ndarray
    """bool [N]: lit alike from all sides."""
    solid: np.ndarray
    """bool [N]: seen only where u x v points away."""
    textures: tuple[Texture, ...]

    def normals(self) -> np.ndarray:
        """Unit normals float64 [N, 3], of arbitrary side."""
        normal = np.cross(self.u, self.v)
        return np.asarray(normal / np.linalg.norm(normal, axis=1, keepdims=True))


@dataclass
class MeshBuilder:
    """Collects polygons and textures."""

    textures: list[Texture] = field(default_factory=list)
    _rows: list[np.ndarray] = field(default_factory=list)

    def add_texture(self, albedo: np.ndarray, alpha: np.ndarray | None = None) -> int:
        """Index of a new texture of albedo [h, w, 3] and coverage [h, w] in [0, 1]."""
        self.textures.append(Texture.create(albedo, alpha))
        return len(self.textures) - 1

    def quad(
        self,
        frame: np.ndarray,
        texture: int,
        window: tuple[float, float, float, float] = (0.0, 0.0, 1.0, 1.0),
        surface: Surface = TWO_SIDED,
    ) -> None:
        """Add a parallelogram: frame [3, 3] with rows origin, u, v; divided to sides of at most `surface.max_side`."""
        origin, u, v = np.asarray(frame, dtype=np.float64)
        na = max(1, int(np.ceil(np.linalg.norm(u) / surface.max_side - 1e-9)))
        nb = max(1, int(np.ceil(np.linalg.norm(v) / surface.max_side - 1e-9)))
        s0, t0, s1, t1 = window
        ds, dt = (s1 - s0) / na, (t1 - t0) / nb
        for i in range(na):
            for j in range(nb):
                corner = origin + u * (i / na) + v * (j / nb)
                part = (s0 + i * ds, t0 + j * dt, s0 + (i + 1) * ds, t0 + (j + 1) * dt)
                self._append(np.stack([corner, u / na, v / nb]), texture, part, surface)

    def triangle(self, frame: np.ndarray, texture: int, window: tuple[float, float, float, float]) -> None:
        """Add the triangle origin, origin + u, origin + v of a frame [3, 3]."""
        self._append(np.asarray(frame, dtype=np.float64), texture, window, TWO_SIDED, triangle=True)

    def box(self, frame: np.ndarray, height: float, texture: int, metres: float = 0.0) -> None:
        """Add the six sides of a box on the base parallelogram `frame` [3, 3] (origin, u, v).

        Args:
            frame: base; u and v horizontal.
            height: metres along z.
            texture: used on all sides.
            metres: side of the square that the texture covers, repeated over longer faces; 0 stretches it over each.
        """
        origin, u, v = np.asarray(frame, dtype=np.float64)
        if u[0] * v[1] < u[1] * v[0]:
            u, v = v, u
        up = np.array([0.0, 0.0, height])
        faces = [
            (origin + up, u, -up),
            (origin + up + u, v, -up),
            (origin + up + u + v, -u, -up),
            (origin + up + v, -v, -up),
            (origin + up + v, u, -v),
            (origin, u, v),
        ]
        for index, face in enumerate(faces):
            if metres > 0:
                self._tiled(np.stack(face), texture, metres, (0.37 * index, 0.23 * index))
            else:
                self.quad(np.stack(face), texture, (0.0, 0.0, 1.0, 1.0), SOLID)

    def _tiled(self, frame: np.ndarray, texture: int, metres: float, shift: tuple[float, float]) -> None:
        """A solid parallelogram in parts of at most `metres`, with another part of the texture for every `shift`."""
        origin, u, v = frame
        lengths = np.linalg.norm(u), np.linalg.norm(v)
        na, nb = (max(1, int(np.ceil(length / metres - 1e-9))) for length in lengths)
        size_a, size_b = lengths[0] / na / metres, lengths[1] / nb / metres
        for i in range(na):
            for j in range(nb):
                s0, t0 = (shift[0] + 0.29 * i) % (1.001 - size_a), (shift[1] + 0.41 * j) % (1.001 - size_b)
                window = (float(s0), float(t0), float(s0 + size_a), float(t0 + size_b))
                part = np.stack([origin + u * (i / na) + v * (j / nb), u / na, v / nb])
                self._append(part, texture, window, SOLID)

    def build(self) -> Mesh:
        """The arrays."""
        rows = np.stack(self._rows)
        return Mesh(
            origin=rows[:, 0:3],
            u=rows[:, 3:6],
            v=rows[:, 6:9],
            window=rows[:, 9:13],
            texture=rows[:, 13].astype(np.int32),
            triangle=rows[:, 14] > 0,
            foliage=rows[:, 15] > 0,
            solid=rows[:, 16] > 0,
            textures=tuple(self.textures),
        )

    def _append(
        self,
        frame: np.ndarray,
        texture: int,
        window: tuple[float, float, float, float],
        surface: Surface,
        *,
        triangle: bool = False,
    ) -> None:
        row = [*frame.ravel(), *window, texture, triangle, surface.foliage, surface.solid]
        self._rows.append(np.array(row, dtype=np.float64))

"""The built-in scenes as a scene source: rendered on first use, cached on disk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from raylg.data.config import DataConfig
from raylg.data.pairs import select_pairs
from raylg.data.scene import PosedView, SceneRef, Split
from raylg.data.synthetic.photographer import RENDERER_VERSION, render_scene
from raylg.data.synthetic.rendered import RenderedScene, read_rendered, write_rendered
from raylg.errors import ConfigError
from raylg.schema import digest

SPLITS: tuple[Split, ...] = ("train", "val", "test")


@dataclass(frozen=True, kw_only=True)
class MiniScene:
    """A rendered scene with its pairs; a `raylg.data.scene.Scene`."""

    views: Sequence[PosedView]
    pairs: np.ndarray
    """int32 [P, 2]."""
    overlap: np.ndarray
    """float32 [P]."""
    rendered: RenderedScene

    def image(self, index: int) -> np.ndarray:
        """Pixels uint8 [H, W, 3] RGB."""
        return self.rendered.image(index)

    def depth(self, index: int) -> np.ndarray | None:
        """Exact depth float32 [H, W] at the pixel centres; 0 for sky and passers-by."""
        return self.rendered.depth(index)


class MiniSource:
    """Procedural squares, streets, rooms and terrain (`data=mini`); a `raylg.data.scene.SceneSource`.

    A scene is decided by the seed, its split and its index alone. Renders are kept under `config.cache_dir`.
    """

    def __init__(self, config: DataConfig) -> None:
        self.config = config

    def scenes(self) -> list[SceneRef]:
        """All scenes; nothing is rendered."""
        mini = self.config.mini
        counts = (mini.num_train_scenes, mini.num_val_scenes, mini.num_test_scenes)
        return [
            SceneRef(name=f"mini-{split}-{index:03d}", split=split)
            for split, count in zip(SPLITS, counts, strict=True)
            for index in range(count)
        ]

    def load(self, scene: SceneRef) -> MiniScene:
        """Read a scene from the cache, or render it (about two seconds) and cache it.

        Raises:
            ConfigError: no scene of this source.
        """
        known = {ref.name: ref for ref in self.scenes()}
        if known.get(scene.name) != scene:
            raise ConfigError(
                f"scene = {scene.name!r} (split {scene.split}): no built-in scene of this configuration; expected one "
                f"of {next(iter(known))} to {list(known)[-1]}, see MiniSource.scenes()"
            )
        index = int(scene.name.rsplit("-", 1)[1])
        entropy = (self.config.mini.seed, SPLITS.index(scene.split), index)
        rendered = self._rendered(scene.name, entropy)
        mini = self.config.mini
        views = [
            PosedView(name=f"{i:03d}.jpg", image_size=(mini.width, mini.height), camera=camera, T_w2c=pose)
            for i, (camera, pose) in enumerate(zip(rendered.cameras, rendered.poses, strict=True))
        ]
        seed = int(np.random.SeedSequence(entropy).generate_state(1)[0])
        pairs, overlap = select_pairs(rendered.overlap, self.config, seed)
        return MiniScene(views=views, pairs=pairs, overlap=overlap, rendered=rendered)

    def _rendered(self, name: str, entropy: tuple[int, int, int]) -> RenderedScene:
        mini = self.config.mini
        key = digest(
            {
                "renderer": RENDERER_VERSION,
                "numpy": np.__version__,
                "opencv": cv2.__version__,
                "entropy": entropy,
                "views": mini.views_per_scene,
                "size": [mini.width, mini.height],
            }
        )
        path = Path(self.config.cache_dir).expanduser() / "mini" / f"{name}-{key}.npz"
        rendered = read_rendered(path)
        if rendered is None:
            rendered = render_scene(entropy, mini.views_per_scene, (mini.width, mini.height))
            write_rendered(path, rendered)
        return rendered

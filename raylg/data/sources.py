"""From `data.source` to scenes: the built-in sources, and classes of the user's own."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np

from raylg.data.config import STORED, DataConfig
from raylg.data.scene import PosedView, Scene, SceneRef, SceneSource, Split
from raylg.data.scene_lists import megadepth1500_images, megadepth_scenes
from raylg.errors import ConfigError
from raylg.schema import digest, nearest, to_mapping

PAIR_SELECTION = ("min_overlap", "max_overlap", "max_pairs_per_scene")
PROTOCOL = ("scenes", "load")
SCENE_PROTOCOL = ("views", "pairs", "overlap", "image", "depth")
LARGEST_ROTATION_ERROR = 1e-3
"""Largest entry of R R' - I of a pose; text files with four digits pass."""


def make_source(config: DataConfig) -> SceneSource:
    """The scenes that `config.source` names; plain photographs (`images`) and `shards` have none.

    Raises:
        ConfigError: nothing usable at `config.path`; no such module or class, or one that is no scene source.
    """
    if ":" in config.source:
        return UserSource(config, os.getcwd())
    if config.source == "mini":
        from raylg.data.synthetic import MiniSource

        return MiniSource(config)
    if config.source == "colmap":
        from raylg.data.colmap import ColmapSource

        return ColmapSource(config)
    if config.source == "megadepth":
        from raylg.data.megadepth import MegaDepthSource

        return MegaDepthSource(config)
    raise ConfigError(f"data.source = {config.source!r}: has no scenes; give mini, colmap, megadepth or module:Class")


def source_identity(config: DataConfig) -> dict[str, Any]:
    """All options that decide what a source gives, as plain values; looks at no data.

    For a class of the user's this includes a digest of the text of its module, but not of what that imports. For
    `images` they are the options that decide what is stored, not how homographies are drawn from it.

    Raises:
        ConfigError: `module:Class` names a module that cannot be found.
    """
    assert config.source != "shards", "shards are what a source is made into"
    mapping = to_mapping(config)
    identity: dict[str, Any] = {"source": config.source}
    if config.source == "images":
        stored = {key: mapping["images"][key] for key in STORED}
        return identity | stored | {"path": _absolute(config.path), "images_per_shard": config.images_per_shard}
    identity |= {key: mapping[key] for key in PAIR_SELECTION}
    if config.source == "mini":
        from raylg.data.synthetic.photographer import RENDERER_VERSION

        return identity | {"mini": {**mapping["mini"], "renderer": RENDERER_VERSION}}
    identity |= {"split": mapping["split"], "path": _absolute(config.path)}
    if config.source == "megadepth":
        lists = {split: megadepth_scenes(split) for split in get_args(Split)}
        identity["lists"] = digest(lists | {"benchmark": megadepth1500_images()})
    elif ":" in config.source:
        identity["module"] = hashlib.sha256(_module_text(config.source, os.getcwd())).hexdigest()
    return identity


class UserSource:
    """A scene source of the user's, checked.

    It travels to other processes as the name of the class and the configuration, and is made again there; so the
    user's module needs no place on the path, and his class need not be picklable.
    """

    def __init__(self, config: DataConfig, folder: str) -> None:
        """Import the module, with `folder` on the path, and make the class.

        Raises:
            ConfigError: no such module or class, or it is no scene source.
        """
        self._config, self._folder, self.name = config, folder, config.source
        self._source: SceneSource = _make(_find_class(config.source, folder), config)
        _check_refs(self._source.scenes(), self.name)

    def scenes(self) -> Sequence[SceneRef]:
        """All scenes."""
        return self._source.scenes()

    def load(self, scene: SceneRef) -> Scene:
        """Load a scene and check all but its pixels.

        Raises:
            ConfigError: what was loaded is no `Scene`; names scene and attribute.
        """
        loaded = self._source.load(scene)
        problems = _scene_problems(loaded)
        if problems:
            where = f"data.source = {self.name!r}, scene {scene.name!r}"
            raise ConfigError("\n".join(f"{where}: {problem}" for problem in problems))
        return loaded

    def __reduce__(self) -> tuple[Callable[..., UserSource], tuple[DataConfig, str]]:
        return UserSource, (self._config, self._folder)


def _absolute(paths: Sequence[str]) -> list[str]:
    """Paths from the root; URLs as they are."""
    return [path if "://" in path else os.path.abspath(os.path.expanduser(path)) for path in paths]


def _module_text(source: str, folder: str) -> bytes:
    module = source.partition(":")[0]
    _put_on_path(folder)
    try:
        spec = importlib.util.find_spec(module)
    except ModuleNotFoundError:  # its parent
        spec = None
    if spec is None or spec.origin is None or not Path(spec.origin).is_file():
        raise _no_module(source, module, folder)
    return Path(spec.origin).read_bytes()


def _find_class(source: str, folder: str) -> Any:
    module_name, _, name = source.partition(":")
    _put_on_path(folder)
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{module_name}.".startswith(f"{error.name}."):
            raise _no_module(source, module_name, folder) from error
        raise ConfigError(
            f"data.source = {source!r}: {module_name} imports {error.name!r}, which is not installed; install it here "
            "and on every machine that prepares data"
        ) from error
    if not hasattr(module, name):
        classes = [key for key, value in vars(module).items() if isinstance(value, type)]
        raise ConfigError(
            f"data.source = {source!r}: {module_name} ({module.__file__}) has no {name!r}; its classes are "
            f"{', '.join(classes) or 'none'}{nearest(name, classes)}"
        )
    return getattr(module, name)


def _put_on_path(folder: str) -> None:
    if folder not in sys.path:
        sys.path.insert(0, folder)
        importlib.invalidate_caches()


def _no_module(source: str, module: str, folder: str) -> ConfigError:
    return ConfigError(
        f"data.source = {source!r}: there is no module {module!r} in {folder} or on the path of Python; run from the "
        f"folder that holds {module.replace('.', '/')}.py, or install it"
    )


def _make(cls: Any, config: DataConfig) -> Any:
    if not callable(cls):
        raise ConfigError(f"data.source = {config.source!r}: is a {type(cls).__name__}, expected a class")
    missing = [name for name in PROTOCOL if not callable(getattr(cls, name, None))]
    if missing:
        raise ConfigError(
            f"data.source = {config.source!r}: has no method {' and no method '.join(missing)}; a scene source has "
            "scenes() and load(scene), see raylg.data.scene.SceneSource"
        )
    return cls(config)


def _check_refs(refs: Any, name: str) -> None:
    where = f"data.source = {name!r}: scenes()"
    if not isinstance(refs, Sequence) or not all(isinstance(ref, SceneRef) for ref in refs):
        raise ConfigError(f"{where} gives {_shown(refs)}, expected a list of raylg.data.scene.SceneRef")
    if not refs:
        raise ConfigError(f"{where} gives no scene; look at data.path")
    names = [ref.name for ref in refs]
    repeated = sorted({each for each in names if names.count(each) > 1})
    if repeated:
        raise ConfigError(f"{where} gives {', '.join(repeated[:5])} more than once; names of scenes must differ")
    splits = get_args(Split)
    wrong = [ref for ref in refs if ref.split not in splits]
    if wrong:
        raise ConfigError(f"{where}: scene {wrong[0].name!r} has split {wrong[0].split!r}, none of {', '.join(splits)}")


def _scene_problems(scene: Any) -> list[str]:
    missing = [name for name in SCENE_PROTOCOL if not hasattr(scene, name)]
    if missing:
        return [f"load() gives {_shown(scene)} without {', '.join(missing)}; see raylg.data.scene.Scene"]
    problems = [problem for view in scene.views for problem in _view_problems(view)]
    pairs, overlap, count = np.asarray(scene.pairs), np.asarray(scene.overlap), len(scene.views)
    if pairs.ndim != 2 or pairs.shape[1] != 2 or not np.issubdtype(pairs.dtype, np.integer):
        problems.append(f"pairs are {pairs.dtype} {list(pairs.shape)}, expected integers [P, 2]")
    elif len(pairs) and not 0 <= pairs.min() <= pairs.max() < count:
        problems.append(f"pairs index views {pairs.min()} to {pairs.max()}, but there are {count} views")
    elif (pairs[:, 0] == pairs[:, 1]).any():
        problems.append("a pair is of a view and itself")
    if overlap.shape != pairs.shape[:1]:
        problems.append(f"overlap is {list(overlap.shape)}, expected one number per pair, {list(pairs.shape[:1])}")
    return problems


def _view_problems(view: Any) -> list[str]:
    if not isinstance(view, PosedView):
        return [f"views hold {_shown(view)}, expected raylg.data.scene.PosedView"]
    problems = []
    camera, T_w2c = np.asarray(view.camera), np.asarray(view.T_w2c)
    if camera.shape != (4,) or not np.isfinite(camera).all() or (camera[:2] <= 0).any():
        problems.append(f"camera {camera.tolist()}, expected fx fy cx cy in pixels")
    if T_w2c.shape != (4, 4) or not np.isfinite(T_w2c).all():
        problems.append(f"T_w2c of shape {list(T_w2c.shape)}, expected a finite [4, 4]")
    else:
        R = T_w2c[:3, :3]
        error = np.abs(R @ R.T - np.eye(3)).max()
        if error > LARGEST_ROTATION_ERROR or np.linalg.det(R) < 0 or (T_w2c[3] != (0, 0, 0, 1)).any():
            problems.append(
                f"T_w2c is no rigid transform: R R' differs from the identity by {error:.3g}, det R = "
                f"{np.linalg.det(R):.3g}, last row {T_w2c[3].tolist()}"
            )
    return [f"view {view.name!r}: {problem}" for problem in problems]


def _shown(value: Any) -> str:
    return f"a {type(value).__name__}"

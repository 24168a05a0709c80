"""The door of all sources: built-in ones, classes of the user's, what identifies them, what is told about mistakes."""

from __future__ import annotations

import dataclasses
import hashlib
import multiprocessing
import pickle
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from raylg.data.colmap import ColmapSource
from raylg.data.config import DataConfig, ImagesConfig, SplitConfig, SyntheticConfig
from raylg.data.scene import SceneSource
from raylg.data.sources import make_source, source_identity
from raylg.data.synthetic import MiniSource
from raylg.errors import ConfigError
from tests.unit.data.workspaces import write_workspace

GOOD = """
import numpy as np
from raylg.data.scene import PosedView, SceneRef

class Source:
    def __init__(self, config):
        self.path = config.path
        self.handle = (n for n in range(3))  # cannot be pickled

    def scenes(self):
        return [SceneRef(name="one", split="train"), SceneRef(name="two", split="val")]

    def load(self, scene):
        return Scene()

class Scene:
    def __init__(self):
        pose = np.eye(4)
        self.views = [
            PosedView(name=n, image_size=(8, 6), camera=np.array([9.0, 9, 4, 3]), T_w2c=pose) for n in ("a", "b")
        ]
        self.pairs, self.overlap = np.array([[0, 1]]), np.array([0.5])

    def image(self, index):
        return np.zeros((6, 8, 3), np.uint8)

    def depth(self, index):
        return None
"""
Writes = Callable[..., DataConfig]


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Writes]:
    """Writes a module of the user's into the working directory and gives a configuration that names its class."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    names = []

    def write(text: str, module: str = "user_scenes", cls: str = "Source") -> DataConfig:
        names.append(module)
        sys.modules.pop(module, None)
        path = tmp_path / f"{module.replace('.', '/')}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        sys.path_importer_cache.clear()
        return DataConfig(source=f"{module}:{cls}", path=("x",))

    yield write
    for name in names:
        sys.modules.pop(name, None)


def test_built_in_sources(tmp_path: Path) -> None:
    assert isinstance(make_source(DataConfig(source="mini", cache_dir=str(tmp_path))), MiniSource)
    write_workspace(tmp_path / "w")
    config = DataConfig(source="colmap", path=(str(tmp_path / "w"),), split=SplitConfig(val_fraction=0))
    assert isinstance(make_source(config), ColmapSource)
    with pytest.raises(ConfigError, match=r"gone is missing; expected below data\.path"):
        make_source(DataConfig(source="megadepth", path=(str(tmp_path / "gone"),)))


@pytest.mark.parametrize("source", ["images", "shards"])
def test_what_has_no_scenes(source: str) -> None:
    with pytest.raises(ConfigError, match=f"data.source = '{source}': has no scenes"):
        make_source(DataConfig(source=source, path=("x",)))


@pytest.mark.parametrize("module", ["user_scenes", "user_package.scenes"])
def test_a_class_of_the_user(written: Writes, module: str) -> None:
    source = make_source(written(GOOD, module))
    assert [ref.name for ref in source.scenes()] == ["one", "two"]
    scene = source.load(source.scenes()[0])
    assert [view.name for view in scene.views] == ["a", "b"] and scene.image(0).shape == (6, 8, 3)


def load_elsewhere(source: SceneSource) -> list[str]:
    return [view.name for view in source.load(source.scenes()[1]).views]


def test_travels_to_another_process(written: Writes, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Pickled where the working directory is on the path, made again in a process that starts somewhere else."""
    source = make_source(written(GOOD))
    assert pickle.loads(pickle.dumps(source)).scenes() == source.scenes()
    folder = str(tmp_path)
    monkeypatch.chdir("/")
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path != folder])
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(load_elsewhere, (source,)) == ["a", "b"]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (
            "user_scenez:Source",
            r"there is no module 'user_scenez' in .* from the folder that holds user_scenez\.py",
        ),
        ("gone.scenes:Source", r"there is no module 'gone\.scenes' in .* holds gone/scenes\.py"),
        ("user_scenes:Sourc", r"user_scenes \(.*user_scenes\.py\) has no 'Sourc'.*did you mean 'Source'\?"),
        ("user_scenes:np", r"is a module, expected a class"),
        ("user_scenes:Scene", r"has no method scenes and no method load; a scene source has"),
        ("broken:Source", r"broken imports 'not_there', which is not installed"),
    ],
)
def test_no_such_source(written: Writes, source: str, expected: str) -> None:
    written(GOOD)
    written("import not_there\n", "broken")
    with pytest.raises(ConfigError, match=expected) as error:
        make_source(DataConfig(source=source, path=("x",)))
    assert str(error.value).startswith(f"data.source = {source!r}")


def test_errors_of_the_module_are_its_own(written: Writes) -> None:
    with pytest.raises(ZeroDivisionError):
        make_source(written("1 / 0\n"))


@pytest.mark.parametrize(
    ("was", "becomes", "expected"),
    [
        ('return [SceneRef(name="one"', 'return iter([SceneRef(name="one"', "never"),
        ('SceneRef(name="two", split="val")', '"two"', r"scenes\(\) gives a list, expected a list of .*SceneRef"),
        ('name="two"', 'name="one"', r"scenes\(\) gives one more than once"),
        ('split="val"', 'split="validation"', r"scene 'two' has split 'validation', none of train, val, test"),
        (
            '[SceneRef(name="one", split="train"), SceneRef(name="two", split="val")]',
            "[]",
            r"scenes\(\) gives no scene",
        ),
    ],
)
def test_wrong_lists_of_scenes(written: Writes, was: str, becomes: str, expected: str) -> None:
    text = GOOD.replace(was, becomes)
    if expected == "never":
        text, expected = text.replace('split="val")]', 'split="val")])'), r"gives a list_iterator, expected a list of"
    assert text != GOOD
    with pytest.raises(ConfigError, match=expected):
        make_source(written(text))


@pytest.mark.parametrize(
    ("was", "becomes", "expected"),
    [
        ("return Scene()", "return 5", r"load\(\) gives a int without views, pairs, overlap, image, depth"),
        ("def depth(", "def depths(", r"gives a Scene without depth"),
        ("PosedView(name=n,", "dict(name=n,", r"views hold a dict, expected raylg\.data\.scene\.PosedView"),
        ("[9.0, 9, 4, 3]", "[9.0, 9, 4]", r"view 'a': camera \[9\.0, 9\.0, 4\.0\], expected fx fy cx cy"),
        ("[9.0, 9, 4, 3]", "[9.0, -9, 4, 3]", r"expected fx fy cx cy in pixels"),
        ("np.eye(4)", "np.eye(3)", r"T_w2c of shape \[3, 3\], expected a finite \[4, 4\]"),
        ("np.eye(4)", "np.diag([2.0, 2, 2, 1])", r"T_w2c is no rigid transform: R R' differs from the identity by 3"),
        ("np.eye(4)", "np.diag([-1.0, 1, 1, 1])", r"det R = -1"),
        ("np.eye(4)", "np.eye(4) + np.eye(4)[:, ::-1] * [2, 0, 0, 0]", r"last row \[2\.0, 0\.0, 0\.0, 1\.0\]"),
        ("[[0, 1]]", "[[0, 2]]", r"pairs index views 0 to 2, but there are 2 views"),
        ("[[0, 1]]", "[[1, 1]]", r"a pair is of a view and itself"),
        ("[[0, 1]]", "[[0.0, 1]]", r"pairs are float64 \[1, 2\], expected integers \[P, 2\]"),
        ("[0.5]", "[0.5, 0.5]", r"overlap is \[2\], expected one number per pair, \[1\]"),
    ],
)
def test_wrong_scenes(written: Writes, was: str, becomes: str, expected: str) -> None:
    assert was in GOOD
    source = make_source(written(GOOD.replace(was, becomes)))
    with pytest.raises(ConfigError, match=rf"data\.source = 'user_scenes:Source', scene 'one'.*{expected}"):
        source.load(source.scenes()[0])


def test_no_pairs_is_no_mistake(written: Writes) -> None:
    text = GOOD.replace("[[0, 1]]", "np.zeros((0, 2), int)").replace("[0.5]", "[]")
    source = make_source(written(text))
    assert len(source.load(source.scenes()[0]).pairs) == 0


CHANGES: dict[str, list[dict[str, Any]]] = {
    "mini": [{"mini": SyntheticConfig(seed=1)}, {"min_overlap": 0.2}, {"max_pairs_per_scene": 5}],
    "colmap": [{"path": ("y",)}, {"split": SplitConfig(by="image")}, {"max_overlap": 0.8}],
    "megadepth": [{"path": ("y",)}, {"split": SplitConfig(val=("0001",))}, {"max_overlap": 0.8}],
    "images": [{"path": ("y",)}, {"images": ImagesConfig(long_side=512)}, {"images_per_shard": 8}],
}
SAME: dict[str, list[dict[str, Any]]] = {
    "mini": [{"batch_size": 8}, {"cache_dir": "z"}],
    "colmap": [{"mini": SyntheticConfig(seed=1)}, {"num_keypoints": 8}],
    "megadepth": [{"images": ImagesConfig(difficulty=0.1)}],
    "images": [{"images": ImagesConfig(difficulty=0.1)}, {"min_overlap": 0.2}, {"open_shards": 2}],
}


@pytest.mark.parametrize("source", list(CHANGES))
def test_identity_changes_with_what_decides(source: str) -> None:
    config = DataConfig(source=source, path=("x",))
    identity = source_identity(config)
    assert identity["source"] == source
    for change in CHANGES[source]:
        assert source_identity(dataclasses.replace(config, **change)) != identity, change
    for change in SAME[source]:
        assert source_identity(dataclasses.replace(config, **change)) == identity, change


def test_identity_of_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert source_identity(DataConfig(source="colmap", path=("x",)))["path"] == [str(tmp_path / "x")]
    assert source_identity(DataConfig(source="images", path=("s3://b/x",)))["path"] == ["s3://b/x"]


def test_identity_of_a_class_follows_its_text(written: Writes) -> None:
    config = written(GOOD)
    identity = source_identity(config)
    assert identity["module"] == hashlib.sha256(GOOD.encode()).hexdigest()
    assert source_identity(written(GOOD)) == identity
    assert source_identity(written(GOOD + "# changed\n")) != identity
    assert "user_scenes" not in sys.modules  # naming a folder runs nothing of the user's
    with pytest.raises(ConfigError, match=r"there is no module 'gone\.scenes'"):
        source_identity(dataclasses.replace(config, source="gone.scenes:Source"))

import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from raylg.data.config import DataConfig, SyntheticConfig
from raylg.data.scene import SceneRef
from raylg.data.synthetic import MiniScene, MiniSource
from raylg.errors import ConfigError

MINI = SyntheticConfig(
    num_train_scenes=4, num_val_scenes=1, num_test_scenes=1, views_per_scene=5, width=96, height=72, seed=3
)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> MiniSource:
    folder = tmp_path_factory.mktemp("cache")
    return MiniSource(DataConfig(cache_dir=str(folder), mini=MINI, min_overlap=0.05, max_overlap=0.95))


@pytest.fixture(scope="module")
def scenes(source: MiniSource) -> dict[str, MiniScene]:
    """One scene of every kind, and one of the other splits."""
    return {ref.name: source.load(ref) for ref in source.scenes() if ref.split != "test"}


def test_names_and_splits(source: MiniSource) -> None:
    assert [(ref.name, ref.split) for ref in source.scenes()] == [
        ("mini-train-000", "train"), ("mini-train-001", "train"), ("mini-train-002", "train"),
        ("mini-train-003", "train"), ("mini-val-000", "val"), ("mini-test-000", "test"),
    ]  # fmt: skip


def test_listing_renders_nothing(tmp_path: Path) -> None:
    MiniSource(DataConfig(cache_dir=str(tmp_path / "none"))).scenes()
    assert not (tmp_path / "none").exists()


def test_views_images_and_depths_have_the_sizes_asked_for(scenes: dict[str, MiniScene]) -> None:
    for scene in scenes.values():
        assert len(scene.views) == 5
        assert len({view.name for view in scene.views}) == 5
        for i, view in enumerate(scene.views):
            image, depth = scene.image(i), scene.depth(i)
            assert view.image_size == (96, 72)
            assert image.shape == (72, 96, 3) and image.dtype == np.uint8
            assert image.std() > 5  # not a blank wall
            assert depth is not None and depth.shape == (72, 96) and depth.dtype == np.float32
            assert np.isfinite(depth).all() and (depth >= 0).all()
            assert (depth > 0).mean() > 0.2


def test_poses_are_upright_rotations(scenes: dict[str, MiniScene]) -> None:
    for scene in scenes.values():
        for view in scene.views:
            R = view.T_w2c[:3, :3]
            np.testing.assert_allclose(R @ R.T, np.eye(3), atol=1e-12)
            np.testing.assert_allclose(np.linalg.det(R), 1)
            assert view.T_w2c[3].tolist() == [0, 0, 0, 1]
            assert R[1] @ [0, 0, 1] < -0.6  # the y axis of the camera points down
            roll = np.degrees(np.arctan2(R[0, 2], -R[1, 2]))
            assert abs(roll) < 8
            assert 0.75 * 96 <= view.camera[0] <= 1.7 * 96
            assert view.camera[2:].tolist() == [48, 36]


def test_pairs_are_in_range_and_unique(scenes: dict[str, MiniScene]) -> None:
    total = 0
    for scene in scenes.values():
        total += len(scene.pairs)
        assert scene.pairs.dtype == np.int32 and scene.overlap.dtype == np.float32
        assert len(scene.pairs) == len(scene.overlap) <= 10
        assert (scene.pairs[:, 0] < scene.pairs[:, 1]).all()
        assert ((scene.overlap > 0.05) & (scene.overlap <= 0.95)).all()
    assert total > 15


def test_depth_of_two_views_is_consistent(scenes: dict[str, MiniScene]) -> None:
    """Points of view i carried into view j lie on the surface seen there or behind it, never in front of it."""
    for scene in scenes.values():
        on, shown = 0, 0
        for i, j in scene.pairs:
            z, found, pixels = carried(scene, i, j)
            del pixels
            on += int((np.abs(found - z) < 0.02 * z).sum())
            shown += int((found > z * 1.1).sum())
        assert on > 10 * max(shown, 1)


def carried(scene: MiniScene, i: int, j: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    depth0, depth1, view0, view1 = scene.depth(i), scene.depth(j), scene.views[i], scene.views[j]
    assert depth0 is not None and depth1 is not None
    y, x = np.nonzero(depth0 > 0)
    z0 = depth0[y, x]
    rays = np.stack([(x + 0.5 - view0.camera[2]) / view0.camera[0], (y + 0.5 - view0.camera[3]) / view0.camera[1]], 1)
    points = np.concatenate([rays * z0[:, None], z0[:, None]], axis=1)
    T = view1.T_w2c @ np.linalg.inv(view0.T_w2c)
    local = points @ T[:3, :3].T + T[:3, 3]
    local = local[local[:, 2] > 0.1]
    pixels = local[:, :2] / local[:, 2:] * view1.camera[:2] + view1.camera[2:]
    inside = (pixels > 0).all(1) & (pixels < [96, 72]).all(1)
    pixels, z = pixels[inside], local[inside, 2]
    found = depth1[pixels[:, 1].astype(int), pixels[:, 0].astype(int)]
    return z[found > 0], found[found > 0], pixels


def test_splits_and_indices_are_different_scenes(scenes: dict[str, MiniScene]) -> None:
    images = {name: scene.image(0) for name, scene in scenes.items()}
    names = sorted(images)
    for k, first in enumerate(names):
        for second in names[k + 1 :]:
            assert np.abs(images[first].astype(int) - images[second]).mean() > 10, (first, second)


def test_another_seed_gives_other_scenes(source: MiniSource, scenes: dict[str, MiniScene]) -> None:
    other = MiniSource(replace(source.config, mini=replace(MINI, seed=4)))
    scene = other.load(other.scenes()[2])
    assert not np.array_equal(scene.views[0].T_w2c, scenes["mini-train-002"].views[0].T_w2c)


def test_scene_does_not_depend_on_process_or_order(
    source: MiniSource, scenes: dict[str, MiniScene], tmp_path: Path
) -> None:
    """A fresh interpreter that renders this scene first writes the same file, byte for byte."""
    fresh = replace(source.config, cache_dir=str(tmp_path))
    program = (
        "import pickle, sys; from raylg.data.synthetic import MiniSource; "
        "source = pickle.loads(sys.stdin.buffer.read()); source.load(source.scenes()[3])"
    )
    subprocess.run([sys.executable, "-c", program], input=pickle.dumps(MiniSource(fresh)), check=True, timeout=120)
    del scenes  # rendered there after three others
    theirs = next((tmp_path / "mini").glob("mini-train-003-*.npz"))
    ours = Path(source.config.cache_dir) / "mini" / theirs.name
    with np.load(ours) as a, np.load(theirs) as b:
        assert a.files == b.files
        for name in a.files:
            np.testing.assert_array_equal(a[name], b[name])


def test_cache_is_used_and_damage_is_repaired(source: MiniSource, scenes: dict[str, MiniScene]) -> None:
    before = scenes["mini-train-002"]
    ref = source.scenes()[2]
    path = next((Path(source.config.cache_dir) / "mini").glob("mini-train-002-*.npz"))
    stamp = path.stat().st_mtime_ns
    np.testing.assert_array_equal(source.load(ref).image(1), before.image(1))
    assert path.stat().st_mtime_ns == stamp
    content = path.read_bytes()
    flipped = bytearray(content)
    flipped[len(flipped) // 2] ^= 0xFF
    for damaged in (content[: len(content) // 2], b"", bytes(flipped)):
        path.write_bytes(damaged)
        np.testing.assert_array_equal(source.load(ref).image(1), before.image(1))
        assert path.stat().st_size == len(content)
    assert not list(path.parent.glob("*.tmp"))


def test_source_can_be_pickled(source: MiniSource, scenes: dict[str, MiniScene]) -> None:
    copy = pickle.loads(pickle.dumps(source))
    np.testing.assert_array_equal(copy.load(copy.scenes()[0]).image(0), scenes["mini-train-000"].image(0))


@pytest.mark.parametrize("name", ["mini-train-004", "mini-val-000"])
def test_foreign_scene_is_refused(source: MiniSource, name: str) -> None:
    with pytest.raises(ConfigError, match=r"no built-in scene.*mini-train-000 to mini-test-000"):
        source.load(SceneRef(name=name, split="train"))


def test_import_is_light() -> None:
    program = "import sys, raylg.data.synthetic; sys.exit('torch' in sys.modules or 'h5py' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)

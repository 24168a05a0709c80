"""COLMAP workspaces: poses, cameras, covisibility, splits, what is told before anything starts."""

from __future__ import annotations

import pickle
import time
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest

from raylg.data.colmap import ColmapSource, covisibility
from raylg.data.config import DataConfig, SplitConfig
from raylg.data.scene import SceneRef
from raylg.errors import ConfigError, ShardError
from tests.unit.data.workspaces import plane_depth, write_workspace

ALL = SplitConfig(val_fraction=0)


def colmap_config(*paths: Path, split: SplitConfig = ALL) -> DataConfig:
    return DataConfig(source="colmap", path=tuple(map(str, paths)), split=split)


@pytest.mark.parametrize("camera_model", ["PINHOLE", "SIMPLE_PINHOLE", "SIMPLE_RADIAL", "OPENCV"])
@pytest.mark.parametrize("text", [False, True])
def test_views_of_a_workspace(tmp_path: Path, camera_model: str, text: bool) -> None:
    distortion = {"SIMPLE_RADIAL": (0.0,), "OPENCV": (0.0,) * 4}.get(camera_model, ())
    write_workspace(tmp_path / "w", camera_model=camera_model, distortion=distortion, text=text)
    source = ColmapSource(colmap_config(tmp_path / "w"))
    assert source.scenes() == [SceneRef(name="w", split="train")]
    scene = source.load(source.scenes()[0])
    assert [view.name for view in scene.views] == sorted(view.name for view in scene.views)
    assert {view.name for view in scene.views} == {
        "00.jpg",
        "sub/01.jpg",
        "02.jpg",
        "sub/03.jpg",
        "04.jpg",
        "sub/05.jpg",
    }
    for view in scene.views:
        expected = np.eye(4)
        expected[1, 3] = -int(Path(view.name).stem) / 2
        np.testing.assert_allclose(view.T_w2c, expected, atol=1e-12)
        np.testing.assert_array_equal(view.camera, [60, 60, 32, 24])
        assert view.image_size == (64, 48)
    assert scene.image(0).shape == (48, 64, 3)
    np.testing.assert_allclose(scene.depth(0), plane_depth(64, 48), rtol=1e-3)
    named = {
        frozenset((scene.views[i].name, scene.views[j].name)): o
        for (i, j), o in zip(scene.pairs, scene.overlap, strict=True)
    }
    assert named == {
        frozenset(("00.jpg", "sub/01.jpg")): 0.5,
        frozenset(("sub/01.jpg", "02.jpg")): 0.5,
        frozenset(("02.jpg", "sub/03.jpg")): 0.5,
        frozenset(("sub/03.jpg", "04.jpg")): 0.5,
        frozenset(("04.jpg", "sub/05.jpg")): 0.5,
    }


def test_pixels_are_rgb_as_stored(tmp_path: Path) -> None:
    write_workspace(tmp_path / "w")
    bgr = np.zeros((48, 64, 3), np.uint8)
    bgr[..., 2] = 200
    cv2.imwrite(str(tmp_path / "w/images/00.jpg"), bgr)
    source = ColmapSource(colmap_config(tmp_path / "w"))
    scene = source.load(source.scenes()[0])
    red = scene.image([view.name for view in scene.views].index("00.jpg"))
    assert abs(int(red[20, 20, 0]) - 200) < 5 and red[20, 20, 2] < 5


def test_images_smaller_than_their_cameras(tmp_path: Path) -> None:
    write_workspace(tmp_path / "w", shrink=2, depth="stereo")
    source = ColmapSource(colmap_config(tmp_path / "w"))
    scene = source.load(source.scenes()[0])
    assert scene.views[0].image_size == (32, 24)
    np.testing.assert_array_equal(scene.views[0].camera, [30, 30, 16, 12])
    assert scene.image(0).shape == (24, 32, 3)
    np.testing.assert_array_equal(scene.depth(0), plane_depth(32, 24))


def test_other_images_than_the_model_was_made_of(tmp_path: Path) -> None:
    write_workspace(tmp_path / "w")
    cv2.imwrite(str(tmp_path / "w/images/00.jpg"), np.zeros((64, 48, 3), np.uint8))
    source = ColmapSource(colmap_config(tmp_path / "w"))
    with pytest.raises(ConfigError, match=r"00\.jpg: 48 x 64 pixels, but its camera .* has 64 x 48.*image_undistorter"):
        source.load(source.scenes()[0])


def test_missing_images_are_counted_and_named(tmp_path: Path) -> None:
    write_workspace(tmp_path / "w")
    (tmp_path / "w/images/sub/03.jpg").unlink()
    source = ColmapSource(colmap_config(tmp_path / "w"))
    with pytest.raises(ConfigError, match=r"1 of 6 images of the model are missing: sub/03\.jpg"):
        source.load(source.scenes()[0])


def test_images_without_depth_are_in_no_pair_and_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_workspace(tmp_path / "w")
    (tmp_path / "w/depths/02.h5").unlink()
    source = ColmapSource(colmap_config(tmp_path / "w"))
    scene = source.load(source.scenes()[0])
    assert scene.without_depth == ("02.jpg",)
    index = [view.name for view in scene.views].index("02.jpg")
    assert len(scene.views) == 6 and len(scene.pairs) == 3 and index not in scene.pairs
    assert scene.depth(index) is None
    assert "w: 1 of 6 images have no depth map and are in no pair: 02.jpg" in caplog.text


def test_damaged_model(tmp_path: Path) -> None:
    write_workspace(tmp_path / "w")
    path = tmp_path / "w/sparse/0/images.bin"
    source = ColmapSource(colmap_config(tmp_path / "w"))
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ShardError, match=r"sparse/0: COLMAP cannot read this model"):
        source.load(source.scenes()[0])


def test_pickles(tmp_path: Path) -> None:
    write_workspace(tmp_path / "w")
    source = ColmapSource(colmap_config(tmp_path / "w"))
    again = pickle.loads(pickle.dumps(source))
    np.testing.assert_array_equal(again.load(again.scenes()[0]).pairs, source.load(source.scenes()[0]).pairs)


def test_split_by_scene(tmp_path: Path) -> None:
    for name in "abcde":
        write_workspace(tmp_path / name, num_images=2)

    def splits(**options: object) -> dict[str, str]:
        scenes = ColmapSource(colmap_config(tmp_path, split=SplitConfig(**options))).scenes()
        return {scene.name: scene.split for scene in scenes}

    assert splits(val=("b",), test=("d", "e")) == {"a": "train", "b": "val", "c": "train", "d": "test", "e": "test"}
    counts = Counter(splits(val_fraction=0.2, test_fraction=0.4).values())
    assert counts == {"train": 2, "val": 1, "test": 2}
    assert splits(val_fraction=0.2) == splits(val_fraction=0.2)
    assert Counter(splits(val_fraction=0.01).values())["val"] == 1
    assert splits(val=("b",), test_fraction=0.2)["b"] == "val"
    with pytest.raises(
        ConfigError, match=r"data\.split\.val: there is no workspace 'B'; there are a, b, c, d, e"
    ) as error:
        splits(val=("B",), test=("a", "x"))
    assert "data.split.test: there is no workspace 'x'" in str(error.value)
    with pytest.raises(ConfigError, match="'a' is both in val and in test"):
        splits(val=("a",), test=("a",))


def test_one_workspace_cannot_be_split_by_scene(tmp_path: Path) -> None:
    write_workspace(tmp_path / "w")
    with pytest.raises(ConfigError, match=r"1 workspace\(s\) cannot give 1 for validation.*data\.split\.by=image"):
        ColmapSource(colmap_config(tmp_path / "w", split=SplitConfig()))


def test_split_by_image(tmp_path: Path) -> None:
    write_workspace(tmp_path / "w", num_images=12)
    split = SplitConfig(by="image", val_fraction=0.25, test_fraction=0.1)
    source = ColmapSource(colmap_config(tmp_path / "w", split=split))
    assert [(ref.name, ref.split) for ref in source.scenes()] == [
        ("w-train", "train"),
        ("w-val", "val"),
        ("w-test", "test"),
    ]
    names = [{view.name for view in source.load(ref).views} for ref in source.scenes()]
    assert [len(part) for part in names] == [7, 3, 2]
    assert len(set.union(*names)) == 12
    with pytest.raises(ConfigError, match=r"name workspaces \(w\), but data\.split\.by=image"):
        ColmapSource(colmap_config(tmp_path / "w", split=SplitConfig(by="image", val=("w",))))


def test_covisibility_against_sets() -> None:
    rng = np.random.default_rng(0)
    seen = [rng.integers(0, 60, rng.integers(1, 80)) for _ in range(9)] + [np.zeros(0, np.int64)]
    overlap = covisibility(seen)
    for i, a in enumerate(map(set, seen)):
        for j, b in enumerate(map(set, seen)):
            expected = len(a & b) / min(len(a), len(b)) if a and b else 0
            assert overlap[i, j] == pytest.approx(expected)


def test_covisibility_of_nothing() -> None:
    assert covisibility([]).shape == (0, 0)


def test_photographs(photo_dir: Path) -> None:
    started = time.perf_counter()
    source = ColmapSource(colmap_config(photo_dir, split=SplitConfig(val=("sacre_coeur10", "statue9"))))
    assert time.perf_counter() - started < 5
    assert {ref.name for ref in source.scenes() if ref.split == "val"} == {"sacre_coeur10", "statue9"}
    assert len(source.scenes()) == 7
    for ref in source.scenes():
        scene = source.load(ref)
        assert len(scene.views) == int(ref.name.lstrip("abcdefghijklmnopqrstuvwxyz_"))
        assert len(scene.pairs) > 10 and scene.without_depth == ()
        index = int(scene.pairs[0, 0])
        width, height = scene.views[index].image_size
        assert scene.image(index).shape == (height, width, 3)
        depth = scene.depth(index)
        assert depth is not None and 0.1 < np.mean(depth > 0) < 1


def test_photographs_reproject(photo_dir: Path) -> None:
    """Pixels with depth, moved by camera and pose to another view, have the depth that is stored there."""
    source = ColmapSource(colmap_config(photo_dir / "fountain11"))
    scene = source.load(source.scenes()[0])
    i, j = scene.pairs[np.argmax(scene.overlap)]
    view0, view1, depth0, depth1 = scene.views[i], scene.views[j], scene.depth(i), scene.depth(j)
    rows, columns = np.nonzero(depth0)
    fx, fy, cx, cy = view0.camera
    z = depth0[rows, columns]
    points = np.stack([(columns + 0.5 - cx) / fx * z, (rows + 0.5 - cy) / fy * z, z, np.ones_like(z)])
    x, y, z = (view1.T_w2c @ np.linalg.inv(view0.T_w2c) @ points)[:3]
    fx, fy, cx, cy = view1.camera
    u, v = np.floor(fx * x / z + cx).astype(int), np.floor(fy * y / z + cy).astype(int)
    inside = (u >= 0) & (u < depth1.shape[1]) & (v >= 0) & (v < depth1.shape[0])
    there = depth1[v[inside], u[inside]]
    error = np.abs(there / z[inside] - 1)[there > 0]
    assert len(error) > 10000 and np.median(error) < 0.005

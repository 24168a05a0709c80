"""MegaDepth-1500: both public layouts of the real index give the same pairs, cameras and poses, exactly."""

from __future__ import annotations

import pickle
import shutil
import struct
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from raylg.data.megadepth1500 import MegaDepth1500Source
from raylg.data.scene import SceneRef
from raylg.errors import ConfigError, ShardError
from tests.unit.data.megadepth_tree import INDEX_FOLDER, load_index, write_loftr_tree, write_posed_layout

SCENES = [SceneRef(name="0015", split="test"), SceneRef(name="0022", split="test")]


@pytest.fixture(scope="module")
def index(photo_dir: Path) -> Path:
    folder = photo_dir / "megadepth1500_index"
    if not folder.is_dir():
        pytest.skip("no MegaDepth-1500 index beside the photographs")
    return folder


def write_header(path: Path, K: np.ndarray) -> None:
    """The first bytes of a PNG, which tell its size; nothing here decodes it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    size = round(2 * K[0, 2]), round(2 * K[1, 2])
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + struct.pack(">I4sII", 13, b"IHDR", *size))


def write_index_layout(root: Path, index: Path) -> None:
    """The real index as LoFTR publishes it, with headers in place of images."""
    shutil.copytree(index, root / INDEX_FOLDER)
    for path in index.glob("*.npz"):
        info = load_index(path)
        rows = {int(i) for pair, *_ in info["pair_infos"] for i in pair}
        for row in rows:
            write_header(root / info["image_paths"][row], info["intrinsics"][row])


@pytest.fixture(scope="module")
def loftr(index: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("loftr")
    write_index_layout(root, index)
    return root


@pytest.fixture(scope="module")
def posed(index: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("posed")
    write_posed_layout(root, index, write_header)
    return root


def test_the_real_index_in_its_layout(loftr: Path, index: Path) -> None:
    source = MegaDepth1500Source(str(loftr))
    assert source.scenes() == SCENES
    scenes = {ref.name: source.load(ref) for ref in source.scenes()}
    assert {name: (len(scene.views), len(scene.pairs)) for name, scene in scenes.items()} == {
        "0015": (328, 600),
        "0022": (478, 900),
    }
    unordered = [(name, *sorted(pair)) for name, scene in scenes.items() for pair in scene.pairs.tolist()]
    assert len(unordered) - len(set(unordered)) == 12
    position: Counter[str] = Counter()
    for path in sorted(index.glob("*.npz")):
        info, name = load_index(path), path.name.split("_")[0]
        scene = scenes[name]
        for rows, overlap, _ in info["pair_infos"]:
            k = position[name]
            position[name] += 1
            assert scene.overlap[k] == np.float32(overlap)
            for column, row in enumerate(map(int, rows)):
                view, K = scene.views[scene.pairs[k, column]], info["intrinsics"][row]
                assert view.name == Path(info["image_paths"][row]).name
                np.testing.assert_array_equal(view.T_w2c, info["poses"][row])
                np.testing.assert_array_equal(view.camera, [K[0, 0], K[1, 1], K[0, 2], K[1, 2]])
                assert view.image_size == (2 * K[0, 2], 2 * K[1, 2])
    assert sum(position.values()) == 1500
    assert scenes["0015"].depth(0) is None


def pairs_by_name(source: MegaDepth1500Source, ref: SceneRef) -> list[tuple[str, str]]:
    scene = source.load(ref)
    return [(scene.views[i].name, scene.views[j].name) for i, j in scene.pairs]


def test_both_layouts_agree(loftr: Path, posed: Path) -> None:
    first, second = MegaDepth1500Source(str(loftr)), MegaDepth1500Source(str(posed))
    assert second.scenes() == SCENES
    for ref in SCENES:
        a, b = first.load(ref), second.load(ref)
        np.testing.assert_array_equal(a.pairs, b.pairs)
        assert np.isnan(b.overlap).all() and b.overlap.dtype == np.float32
        for view, other in zip(a.views, b.views, strict=True):
            assert (view.name, view.image_size) == (other.name, other.image_size)
            np.testing.assert_array_equal(view.camera, other.camera)
            np.testing.assert_array_equal(view.T_w2c, other.T_w2c)


def test_folders_per_scene(posed: Path, tmp_path: Path) -> None:
    for name in ("0015", "0022"):
        (tmp_path / name).mkdir()
        shutil.copytree(posed / "images" / name, tmp_path / name / "images")
        for file in ("views.txt", "pairs.txt"):
            lines = [line for line in (posed / file).read_text().splitlines() if line.startswith(name)]
            (tmp_path / name / file).write_text("# a comment\n" + "\n".join(lines).replace(f"{name}/", "") + "\n")
    source = MegaDepth1500Source(str(tmp_path))
    assert source.scenes() == SCENES
    for ref in SCENES:
        assert pairs_by_name(source, ref) == pairs_by_name(MegaDepth1500Source(str(posed)), ref)


def test_the_index_of_a_whole_megadepth(index: Path, tmp_path: Path) -> None:
    """LoFTR's training folder has a larger index of the same scenes beside that of the benchmark."""
    write_index_layout(tmp_path / "test", index)
    (tmp_path / "index").mkdir()
    shutil.move(tmp_path / "test" / INDEX_FOLDER, tmp_path / "index" / "scene_info_val_1500")
    other = tmp_path / "index/scene_info_0.1_0.7"
    other.mkdir()
    (other / "0015_0.1_0.3.npz").write_bytes(pickle.dumps({}))
    source = MegaDepth1500Source(str(tmp_path))
    assert sum(len(source.load(ref).pairs) for ref in source.scenes()) == 1500
    (tmp_path / "index/scene_info_val_1500").rename(tmp_path / "index/scene_info_val")
    with pytest.raises(
        ConfigError, match=r"has index files in .*scene_info_0\.1_0\.7, .*scene_info_val; give a folder"
    ):
        MegaDepth1500Source(str(tmp_path))


def test_content_is_told_apart(posed: Path, tmp_path: Path) -> None:
    """Index and images count, and not where they lie."""
    source = MegaDepth1500Source(str(posed))
    shutil.copytree(posed, tmp_path / "copy")
    assert MegaDepth1500Source(str(tmp_path / "copy")).content() == source.content() == source.content()
    found = {source.content()}
    for change in (
        lambda root: edit_lines(root / "pairs.txt", lambda lines: lines[:-1]),
        lambda root: edit_lines(root / "pairs.txt", lambda lines: [lines[1], lines[0], *lines[2:]]),
        lambda root: edit_lines(root / "views.txt", lambda lines: [*lines[:-1], lines[-1] + "5"]),
        lambda root: next((root / "images" / "0015").iterdir()).write_bytes(b"another photograph"),
    ):
        root = tmp_path / str(len(found))
        shutil.copytree(posed, root)
        change(root)
        found.add(MegaDepth1500Source(str(root)).content())
    assert len(found) == 5


def edit_lines(path: Path, change: Callable[[list[str]], list[str]]) -> None:
    path.write_text("\n".join(change(path.read_text().splitlines())) + "\n")


def test_rendered_tree(index: Path, tmp_path: Path) -> None:
    write_loftr_tree(tmp_path, index, num_pairs=5, long_side=320, with_depth=True)
    source = MegaDepth1500Source(str(tmp_path))
    scenes = [source.load(ref) for ref in source.scenes()]
    assert sum(len(scene.pairs) for scene in scenes) == 5
    for scene in scenes:
        errors = [reprojection_error(scene, i, j) for i, j in scene.pairs.tolist()]
        assert np.median(errors) < 1e-3
        for k, view in enumerate(scene.views):
            assert max(view.image_size) == 320 and scene.image(k).shape == (*view.image_size[::-1], 3)
            np.testing.assert_allclose(view.camera[2:], np.array(view.image_size) / 2)


def reprojection_error(scene: object, i: int, j: int) -> float:
    """Median relative error of depth where pixels of image i land in image j."""
    view0, view1, depth0, depth1 = scene.views[i], scene.views[j], scene.depth(i), scene.depth(j)
    rows, columns = np.nonzero(depth0)
    (fx, fy, cx, cy), z = view0.camera, depth0[rows, columns].astype(np.float64)
    points = np.stack([(columns + 0.5 - cx) / fx * z, (rows + 0.5 - cy) / fy * z, z, np.ones_like(z)])
    x, y, z = (view1.T_w2c @ np.linalg.inv(view0.T_w2c) @ points)[:3]
    fx, fy, cx, cy = view1.camera
    u, v = np.floor(fx * x / z + cx).astype(int), np.floor(fy * y / z + cy).astype(int)
    inside = (z > 0) & (u >= 0) & (u < depth1.shape[1]) & (v >= 0) & (v < depth1.shape[0])
    assert inside.sum() > 1000
    return float(np.median(np.abs(depth1[v[inside], u[inside]] / z[inside] - 1)))


def test_missing_images_are_counted_and_named(posed: Path, loftr: Path, tmp_path: Path) -> None:
    for layout in (posed, loftr):
        root = tmp_path / layout.name
        shutil.copytree(layout, root)
        gone = sorted(root.rglob("*_o.jpg"))[:7]
        for path in gone:
            path.unlink()
        with pytest.raises(
            ConfigError, match=r"7 of the 806 images of its pairs are missing in .*; copy them"
        ) as error:
            MegaDepth1500Source(str(root))
        assert sum(path.name in str(error.value) for path in gone) == 5


def test_no_benchmark_there(index: Path, tmp_path: Path) -> None:
    for path, expected in (
        (tmp_path / "gone", r"gone is missing; expected is one of \(images: about 1\.5 GB\)"),
        (tmp_path, r"holds no MegaDepth-1500; expected is one of"),
        (index, r"with pairs of 0015, 0022, but no images of them; expected is one of"),
    ):
        with pytest.raises(ConfigError, match=expected) as error:
            MegaDepth1500Source(str(path))
        assert all(name in str(error.value) for name in ("Undistorted_SfM/0015/images", "views.txt", "pairs.txt"))
    with pytest.raises(ConfigError, match=r"'s3://bucket/images': images are read from a disk"):
        MegaDepth1500Source("s3://bucket/images")


def small_posed(root: Path, views: str, pairs: str) -> Path:
    (root / "images").mkdir(parents=True)
    for name in ("a.jpg", "b.jpg"):
        cv2.imwrite(str(root / "images" / name), np.zeros((6, 8, 3), np.uint8))
    (root / "views.txt").write_text(views)
    (root / "pairs.txt").write_text(pairs)
    return root


VIEW = "1 0 0 0 1 0 0 0 1 0 0 0 {} 8 6 {}"
GOOD = f"a.jpg {VIEW.format('SIMPLE_PINHOLE', '9 4 3')}\nb.jpg {VIEW.format('PINHOLE', '9 9 3.5 3')}\n"


@pytest.mark.parametrize(
    ("views", "pairs", "expected"),
    [
        (GOOD, "a.jpg c.jpg\n", r"pairs\.txt, line 1: c\.jpg is not in views\.txt"),
        (GOOD, "a.jpg b.jpg\na.jpg b.jpg a.jpg\n", r"pairs\.txt, line 2: 3 names, expected 2"),
        (GOOD.replace(" 8 6", " eight 6"), "a.jpg b.jpg\n", r"views\.txt, line 1: expected name R t MODEL"),
        ("a.jpg 1 0 0\n", "a.jpg b.jpg\n", r"views\.txt, line 1: expected name R t MODEL"),
        (
            GOOD.replace("SIMPLE_PINHOLE 8 6 9 4 3", "SIMPLE_RADIAL 8 6 9 4 3 0.1"),
            "a.jpg b.jpg\n",
            "SIMPLE_RADIAL with",
        ),
    ],
)
def test_damaged_lists(tmp_path: Path, views: str, pairs: str, expected: str) -> None:
    with pytest.raises(ShardError, match=expected):
        MegaDepth1500Source(str(small_posed(tmp_path / "w", views, pairs)))


def test_cameras_that_are_not_centred_and_images_of_another_shape(tmp_path: Path) -> None:
    root = small_posed(tmp_path / "w", GOOD, "b.jpg a.jpg\n")
    source = MegaDepth1500Source(str(root))
    (ref,) = source.scenes()
    scene = source.load(ref)
    assert ref.name == "w" and scene.pairs.tolist() == [[1, 0]]
    np.testing.assert_array_equal(scene.views[1].camera, [9, 9, 3.5, 3])
    cv2.imwrite(str(root / "images/a.jpg"), np.zeros((12, 16, 3), np.uint8))
    np.testing.assert_array_equal(source.load(ref).views[0].camera, [18, 18, 8, 6])
    cv2.imwrite(str(root / "images/a.jpg"), np.zeros((80, 60, 3), np.uint8))
    with pytest.raises(ConfigError, match=r"1 of 2 images have not the shape .*: a\.jpg is 60 x 80, its camera 8 x 6;"):
        source.load(ref)


def test_pickles(posed: Path) -> None:
    source = MegaDepth1500Source(str(posed))
    again = pickle.loads(pickle.dumps(source))
    np.testing.assert_array_equal(again.load(SCENES[0]).pairs, source.load(SCENES[0]).pairs)

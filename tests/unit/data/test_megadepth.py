"""MegaDepth: both kinds of index, lists and their disjointness, what is told before anything starts."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import cv2
import h5py
import numpy as np
import pytest

from raylg.data.config import DataConfig, SplitConfig
from raylg.data.megadepth import MegaDepthSource
from raylg.data.megadepth_files import read_pairs
from raylg.data.scene import SceneRef
from raylg.data.scene_lists import megadepth1500_images, megadepth_scenes
from raylg.errors import ConfigError, ShardError

SIZE = (64, 48)
NUM_IMAGES = 6
WITHOUT = 2
"""Row of the index that has neither image nor depth."""
OVERLAP = np.full((NUM_IMAGES, NUM_IMAGES), -1.0)
OVERLAP[0, 1], OVERLAP[1, 0] = 0.5, 0.3
OVERLAP[1, 3], OVERLAP[3, 1] = 0.2, 0.6
OVERLAP[3, 4] = OVERLAP[4, 3] = 0.9
OVERLAP[4, 5] = OVERLAP[5, 4] = 0.4
OVERLAP[0, 5], OVERLAP[5, 0] = 0.05, 0.5
EXPECTED = {("1.jpg", "0.jpg"): 0.3, ("3.jpg", "1.jpg"): 0.2, ("5.jpg", "4.jpg"): 0.4}
"""Between 0.1 and 0.7, the smaller of both directions."""


def objects(values: list[Any]) -> np.ndarray:
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array


def columns(scene: str) -> dict[str, Any]:
    """The part that both kinds of index share."""
    K = np.array([[60.0, 0, SIZE[0] / 2], [0, 61, SIZE[1] / 2], [0, 0, 1]])
    rows = range(NUM_IMAGES)
    poses = [np.block([[np.eye(3), np.array([[0], [-i / 2], [0.0]])], [np.array([[0, 0, 0, 1.0]])]]) for i in rows]
    depths = f"phoenix/S6/zl548/MegaDepth_v1/{scene}/dense0/depths"
    return {
        "image_paths": objects([None if i == WITHOUT else f"Undistorted_SfM/{scene}/images/{i}.jpg" for i in rows]),
        "depth_paths": objects([None if i == WITHOUT else f"{depths}/{i}.h5" for i in rows]),
        "intrinsics": objects([None if i == WITHOUT else K for i in rows]),
        "poses": objects([None if i == WITHOUT else poses[i] for i in rows]),
    }


def write_files(
    root: Path,
    scene: str,
    images: str = "Undistorted_SfM/{}/images",
    depths: str = "depth_undistorted/{}",
    size: tuple[int, int] = SIZE,
) -> None:
    """Images whose grey value is their number, and depth of 2 with a hole."""
    for folder in (images, depths):
        (root / folder.format(scene)).mkdir(parents=True, exist_ok=True)
    for i in set(range(NUM_IMAGES)) - {WITHOUT}:
        pixels = np.full((size[1], size[0], 3), 40 * i, np.uint8)
        cv2.imwrite(str(root / images.format(scene) / f"{i}.jpg"), pixels)
        depth = np.full((SIZE[1], SIZE[0]), 2.0, np.float32)
        depth[0, 0] = -1
        with h5py.File(root / depths.format(scene) / f"{i}.h5", "w") as file:
            file["depth"] = depth


def write_d2net(root: Path, scene: str, **files: Any) -> None:
    (root / "scene_info").mkdir(parents=True, exist_ok=True)
    extra = {"scale_ratio_matrix": OVERLAP, "points3D_id_to_2D": objects([{1: [0.5, 2.0]}] * NUM_IMAGES)}
    np.savez(root / f"scene_info/{scene}.npz", overlap_matrix=OVERLAP, **columns(scene), **extra)
    write_files(root, scene, **files)


def write_loftr(root: Path, scene: str, folder: str = "scene_info_0.1_0.7", **files: Any) -> None:
    """The pairs of `EXPECTED` in two files, one of them in both."""
    infos = [((1, 0), 0.3, np.zeros(4)), ((np.int64(3), 1), np.float64(0.2), np.zeros(4)), ((5, 4), 0.4)]
    for name, part in (("0.1_0.3", infos[:2]), ("0.3_0.5", infos[1:])):
        path = root / folder / f"{scene}_{name}.npz"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(pickle.dumps({**columns(scene), "pair_infos": part}))
    write_files(root, scene, **files)


def config(root: Path, **options: Any) -> DataConfig:
    return DataConfig(source="megadepth", path=(str(root),), **options)


def named_pairs(scene: Any) -> dict[frozenset[str], float]:
    return {
        frozenset((scene.views[i].name, scene.views[j].name)): pytest.approx(float(overlap))
        for (i, j), overlap in zip(scene.pairs, scene.overlap, strict=True)
    }


@pytest.mark.parametrize("write", [write_d2net, write_loftr])
def test_a_scene_of_either_kind(tmp_path: Path, write: Any) -> None:
    write(tmp_path, "0001")
    source = MegaDepthSource(config(tmp_path))
    assert source.scenes() == [SceneRef(name="0001", split="train")]
    scene = source.load(source.scenes()[0])
    assert named_pairs(scene) == {frozenset(pair): overlap for pair, overlap in EXPECTED.items()}
    assert scene.pairs.dtype == np.int32 and scene.overlap.dtype == np.float32
    assert [view.name for view in scene.views] == ["0.jpg", "1.jpg", "3.jpg", "4.jpg", "5.jpg"]
    for k, view in enumerate(scene.views):
        i = int(view.name[0])
        np.testing.assert_array_equal(view.camera, [60, 61, 32, 24])
        np.testing.assert_array_equal(view.T_w2c[:3, 3], [0, -i / 2, 0])
        assert view.image_size == SIZE and abs(int(scene.image(k)[5, 5, 0]) - 40 * i) < 3
        depth = scene.depth(k)
        assert depth.shape == (48, 64) and depth[0, 0] == 0 and depth[5, 5] == 2


def test_pairs_are_chosen_by_the_options(tmp_path: Path) -> None:
    write_d2net(tmp_path, "0001")
    source = MegaDepthSource(config(tmp_path, min_overlap=0.25, max_overlap=1.0, max_pairs_per_scene=2))
    scene = source.load(source.scenes()[0])
    allowed = {frozenset(("0.jpg", "1.jpg")), frozenset(("3.jpg", "4.jpg")), frozenset(("4.jpg", "5.jpg"))}
    assert len(scene.pairs) == 2 and set(named_pairs(scene)) < allowed
    assert len(scene.views) == len(np.unique(scene.pairs))


@pytest.mark.parametrize(
    ("images", "depths"),
    [
        ("Undistorted_SfM/{}/images", "phoenix/S6/zl548/MegaDepth_v1/{}/dense0/depths"),
        ("phoenix/S6/zl548/MegaDepth_v1/{}/dense0/imgs", "phoenix/S6/zl548/MegaDepth_v1/{}/dense0/depths"),
        ("train/Undistorted_SfM/{}/images", "train/phoenix/S6/zl548/MegaDepth_v1/{}/dense0/depths"),
    ],
)
def test_where_users_keep_images_and_depth(tmp_path: Path, images: str, depths: str) -> None:
    write_loftr(tmp_path, "0001", "index/scene_info_0.1_0.7", images=images, depths=depths)
    source = MegaDepthSource(config(tmp_path))
    scene = source.load(source.scenes()[0])
    assert len(scene.pairs) == 3 and scene.image(0).shape == (48, 64, 3) and scene.depth(0) is not None


def test_the_complete_index_comes_first(tmp_path: Path) -> None:
    write_loftr(tmp_path, "0001")
    write_d2net(tmp_path, "0001")
    source = MegaDepthSource(config(tmp_path, max_overlap=1.0))
    assert len(source.load(source.scenes()[0]).pairs) == 4


def test_images_smaller_than_their_cameras(tmp_path: Path) -> None:
    write_d2net(tmp_path, "0001", size=(32, 24))
    source = MegaDepthSource(config(tmp_path))
    view = source.load(source.scenes()[0]).views[0]
    assert view.image_size == (32, 24)
    np.testing.assert_array_equal(view.camera, [30, 30.5, 16, 12])


def test_images_of_another_shape(tmp_path: Path) -> None:
    write_d2net(tmp_path, "0001", size=(48, 64))
    source = MegaDepthSource(config(tmp_path))
    with pytest.raises(ConfigError, match=r"5 of 5 images have not the shape .* 0\.jpg is 48 x 64, its camera 64"):
        source.load(source.scenes()[0])


def test_images_without_depth_are_in_no_pair_and_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_d2net(tmp_path, "0001")
    (tmp_path / "depth_undistorted/0001/1.h5").unlink()
    source = MegaDepthSource(config(tmp_path))
    assert set(named_pairs(source.load(source.scenes()[0]))) == {frozenset(("4.jpg", "5.jpg"))}
    assert "0001: 1 of 5 images have no depth map and are in no pair: 1.jpg" in caplog.text


def test_photographs_of_the_benchmark_are_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A photograph may be in the models of two scenes; the name on Flickr tells."""
    monkeypatch.setattr("raylg.data.megadepth.megadepth1500_images", lambda: ["0015/1.jpg"])
    write_d2net(tmp_path, "0001")
    write_d2net(tmp_path, "0015")
    source = MegaDepthSource(config(tmp_path, split=SplitConfig(test=("0015",))))
    train, test = (source.load(ref) for ref in source.scenes())
    assert set(named_pairs(train)) == {frozenset(("4.jpg", "5.jpg"))} and len(test.pairs) == 3
    assert "0001: 1 of 5 images are images of MegaDepth-1500 and are in no pair: 1.jpg" in caplog.text


def test_splits(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    val, test = megadepth_scenes("val")[0], megadepth_scenes("test")[0]
    for scene in ("0001", "0003", val, test, "9999", "0015"):
        write_d2net(tmp_path, scene)

    def splits(**options: Any) -> dict[str, str]:
        refs = MegaDepthSource(config(tmp_path, split=SplitConfig(**options))).scenes()
        return {ref.name: ref.split for ref in refs}

    assert splits() == {"0001": "train", "0003": "train", val: "val", test: "test"}
    assert f"in {tmp_path}: train 2 of 129, val 1 of 24, test 1 of 8" in caplog.text
    assert splits(val=("0003",), test=("0015",)) == {"0001": "train", "0003": "val", "0015": "test"}
    assert splits(val=("9999",)) == {"0001": "train", "0003": "train", "9999": "val", test: "test"}


def test_all_problems_at_once(tmp_path: Path) -> None:
    for scene in ("0001", "0003", "0004", "0005", "0015"):
        write_d2net(tmp_path, scene)
    (tmp_path / "Undistorted_SfM/0001/images/4.jpg").unlink()
    for i in range(NUM_IMAGES):
        (tmp_path / f"depth_undistorted/0003/{i}.h5").unlink(missing_ok=True)
    (tmp_path / "scene_info/0004.npz").write_bytes(b"PK\x03\x04 cut")
    split = SplitConfig(by="image", val=("0051", "0015"), test=("0005", "0015"))
    with pytest.raises(ConfigError) as error:
        MegaDepthSource(config(tmp_path, split=split))
    lines = str(error.value).splitlines()
    for expected in (
        "data.split.by = 'image': MegaDepth is divided by scene",
        "data.split.val: there is no scene '0051' with index and images; there are 0001, 0003, 0004, 0005, 0015",
        "data.split: '0015' is both in val and in test",
        "data.split.val: '0015' is a scene of MegaDepth-1500",
        "0001: 1 of 5 images of",
        "has the depth map of no image; expected 0.h5",
        "0004.npz: damaged",
    ):
        assert any(expected in line for line in lines), expected


def test_depth_folder_is_missing(tmp_path: Path) -> None:
    write_loftr(tmp_path, "0001", depths="elsewhere/{}")
    with pytest.raises(ConfigError, match=r"0001: images in .*, but no folder of depth maps; expected below"):
        MegaDepthSource(config(tmp_path))


def test_images_missing_of_an_index_of_pairs(tmp_path: Path) -> None:
    write_loftr(tmp_path, "0001")
    (tmp_path / "Undistorted_SfM/0001/images/4.jpg").unlink()
    source = MegaDepthSource(config(tmp_path))
    with pytest.raises(ConfigError, match=r"0001: 1 of 5 images of .*0001_0\.1_0\.3\.npz are missing in .*: 4\.jpg;"):
        source.load(source.scenes()[0])


def test_nothing_usable(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"gone is missing; expected below data\.path"):
        MegaDepthSource(config(tmp_path / "gone"))
    with pytest.raises(ConfigError, match=r"index of 0 scenes and the images of none of them; expected below") as error:
        MegaDepthSource(config(tmp_path))
    for part in ("scene_info/0001.npz", "0001_0.1_0.3.npz", "Undistorted_SfM/0001/images", "depth_undistorted/0001"):
        assert part in str(error.value)
    write_d2net(tmp_path, "0015")
    with pytest.raises(ConfigError, match=r"has 0015, but no training scene of the list"):
        MegaDepthSource(config(tmp_path))


@pytest.mark.parametrize(
    ("info", "expected"),
    [
        ((0, 1, 0.5), r"pair_infos holds \(0, 1, 0\.5\)"),
        (((0, WITHOUT), 0.5, None), r"pair \(0, 2\) is of an image without path"),
        (((0, 99), 0.5, None), r"pair_infos holds \(\(0, 99\)"),
    ],
)
def test_broken_index_of_pairs(tmp_path: Path, info: Any, expected: str) -> None:
    write_loftr(tmp_path, "0001")
    path = tmp_path / "scene_info_0.1_0.7/0001_0.1_0.3.npz"
    path.write_bytes(pickle.dumps({**columns("0001"), "pair_infos": [info]}))
    source = MegaDepthSource(config(tmp_path))
    with pytest.raises(ShardError, match=rf"0001_0\.1_0\.3\.npz: {expected}"):
        source.load(source.scenes()[0])


@pytest.mark.parametrize(
    ("column", "value", "expected"),
    [
        ("intrinsics", np.eye(4), r"intrinsics of 0\.jpg are"),
        ("intrinsics", np.eye(3) * np.nan, r"intrinsics of 0\.jpg are"),
        ("poses", np.eye(3), r"pose of 0\.jpg is"),
    ],
)
def test_broken_cameras(tmp_path: Path, column: str, value: np.ndarray, expected: str) -> None:
    write_d2net(tmp_path, "0001")
    content = columns("0001")
    content[column][0] = value
    np.savez(tmp_path / "scene_info/0001.npz", overlap_matrix=OVERLAP, **content)
    source = MegaDepthSource(config(tmp_path))
    with pytest.raises(ShardError, match=rf"0001\.npz: {expected}"):
        source.load(source.scenes()[0])


def test_files_that_contradict_each_other(tmp_path: Path) -> None:
    write_loftr(tmp_path, "0001")
    content = columns("0001")
    content["poses"][1] = np.diag([1.0, -1, -1, 1])
    path = tmp_path / "scene_info_0.1_0.7/0001_0.3_0.5.npz"
    path.write_bytes(pickle.dumps({**content, "pair_infos": [((1, 0), 0.4)]}))
    source = MegaDepthSource(config(tmp_path))
    with pytest.raises(ShardError, match=r"0001_0\.3_0\.5\.npz: camera or pose of 1\.jpg differs from that in"):
        source.load(source.scenes()[0])


def test_pickles(tmp_path: Path) -> None:
    write_d2net(tmp_path, "0001")
    source = MegaDepthSource(config(tmp_path))
    again = pickle.loads(pickle.dumps(source))
    first, second = source.load(source.scenes()[0]), again.load(again.scenes()[0])
    np.testing.assert_array_equal(first.pairs, second.pairs)
    assert pickle.loads(pickle.dumps(first.views[0].T_w2c)).shape == (4, 4)


def test_lists_are_disjoint() -> None:
    train, val, test = (megadepth_scenes(split) for split in ("train", "val", "test"))
    assert (len(train), len(val), len(test)) == (129, 24, 8)
    every = [*train, *val, *test]
    assert len(set(every)) == len(every)
    assert all(len(scene) == 4 and scene.isdigit() for scene in every)


def test_lists_are_disjoint_from_the_benchmark(photo_dir: Path) -> None:
    """Neither a scene of the lists nor an image in the folder of such a scene is in the real MegaDepth-1500."""
    files = sorted((photo_dir / "megadepth1500_index").glob("*.npz"))
    if not files:
        pytest.skip("no MegaDepth-1500 index beside the photographs")
    assert len(files) == 5
    listed = {scene for split in ("train", "val", "test") for scene in megadepth_scenes(split)}
    scenes = {path.name.split("_")[0] for path in files}
    assert scenes == {"0015", "0022"} and not scenes & listed
    of_pairs = {scene: {image.name for image in read_pairs(parts)[0]} for scene, parts in by_scene(files).items()}
    shipped = megadepth1500_images()
    assert {f"{scene}/{name}" for scene, names in of_pairs.items() for name in names} == set(shipped)
    assert len(shipped) == 806
    for path in files:
        info = np.load(path, allow_pickle=True)
        folders = {Path(image).parts[:3] for image in info["image_paths"] if image is not None}
        depths = {Path(depth).parts[4] for depth in info["depth_paths"] if depth is not None}
        assert folders == {("Undistorted_SfM", path.name.split("_")[0], "images")}
        assert not depths & listed and not {folder[1] for folder in folders} & listed
        names = {Path(image).name for image in info["image_paths"] if image is not None}
        assert of_pairs[path.name.split("_")[0]] <= names


def by_scene(files: list[Path]) -> dict[str, list[Path]]:
    return {scene: [p for p in files if p.name.startswith(scene)] for scene in {p.name.split("_")[0] for p in files}}

"""Workspaces: finding them, their names, and every problem told at once with what to do."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from raylg.data.workspace import CAMERA_MODELS, find_workspaces, pinhole_parameters, read_cameras
from raylg.errors import ConfigError
from tests.unit.data.workspaces import write_workspace


def test_found_alone_in_a_folder_and_once(tmp_path: Path) -> None:
    for name in ("b", "a"):
        write_workspace(tmp_path / name, num_images=2)
    (tmp_path / "notes").mkdir()
    (tmp_path / "README").write_text("")
    found = find_workspaces([str(tmp_path / "b"), str(tmp_path), str(tmp_path / "x" / ".." / "a")][:2])
    assert [(w.name, w.root) for w in found] == [("b", tmp_path / "b"), ("a", tmp_path / "a")]


def test_model_in_sparse_itself(tmp_path: Path) -> None:
    write_workspace(tmp_path / "w", num_images=2)
    for file in (tmp_path / "w/sparse/0").iterdir():
        shutil.move(file, tmp_path / "w/sparse")
    (workspace,) = find_workspaces([str(tmp_path / "w")])
    assert workspace.model == tmp_path / "w/sparse"


def test_names_that_repeat_get_that_of_the_parent(tmp_path: Path) -> None:
    for name in ("a/dense", "b/dense", "c/other"):
        write_workspace(tmp_path / name, num_images=2)
    found = find_workspaces([str(tmp_path / name) for name in "abc"])
    assert [workspace.name for workspace in found] == ["a/dense", "b/dense", "other"]


def test_all_problems_at_once(tmp_path: Path) -> None:
    write_workspace(tmp_path / "good", num_images=2)
    write_workspace(tmp_path / "distorted", num_images=2, camera_model="SIMPLE_RADIAL", distortion=(0.25,))
    write_workspace(tmp_path / "flat", num_images=2, depth=None)
    write_workspace(tmp_path / "no_images", num_images=2)
    shutil.rmtree(tmp_path / "no_images/images")
    (tmp_path / "no_model/sparse").mkdir(parents=True)
    write_workspace(tmp_path / "damaged", num_images=2)
    (tmp_path / "damaged/sparse/0/cameras.bin").write_bytes(b"\x02\0\0")
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    names = ["good", "distorted", "flat", "no_images", "no_model", "damaged", "file", "empty", "nowhere"]
    with pytest.raises(ConfigError) as error:
        find_workspaces([str(tmp_path / name) for name in names])
    message = str(error.value)
    assert str(tmp_path / "good") not in message
    lines = {name: [line for line in message.splitlines() if f"{tmp_path}/{name}" in line] for name in names[1:]}
    assert all(len(found) == 1 for found in lines.values()), message
    out = tmp_path / "distorted-undistorted"
    distorted = tmp_path / "distorted"
    assert (
        f"`colmap image_undistorter --image_path {distorted}/images --input_path {distorted}/sparse/0 "
        f"--output_path {out} --output_type COLMAP && colmap patch_match_stereo --workspace_path {out}`"
    ) in lines["distorted"][0]
    assert "SIMPLE_RADIAL with distortion [60.0, 32.0, 24.0, 0.25]" in lines["distorted"][0]
    assert f"`colmap patch_match_stereo --workspace_path {tmp_path}/flat`" in lines["flat"][0]
    assert "no folder images/" in lines["no_images"][0]
    assert "no sparse model" in lines["no_model"][0] and "colmap mapper" in lines["no_model"][0]
    assert "cameras.bin: damaged" in lines["damaged"][0]
    assert "is no folder" in lines["file"][0]
    assert "neither a COLMAP workspace" in lines["empty"][0]
    assert "is missing" in lines["nowhere"][0]


@pytest.mark.parametrize("text", [False, True])
@pytest.mark.parametrize("model", [name for name, _ in CAMERA_MODELS.values()])
def test_cameras_are_read_as_colmap_wrote_them(tmp_path: Path, model: str, text: bool) -> None:
    num_parameters = dict(CAMERA_MODELS.values())[model]
    num_pinhole = 3 if model.startswith(("SIMPLE", "RADIAL")) else 4
    distortion = tuple(0.01 * (k + 1) for k in range(num_parameters - num_pinhole))
    write_workspace(tmp_path, num_images=1, camera_model=model, distortion=distortion, text=text)
    focal = [60.0] * (num_pinhole - 2)
    assert read_cameras(tmp_path / "sparse/0") == [(model, pytest.approx((*focal, 32, 24, *distortion)))]


def test_pinhole_parameters() -> None:
    assert pinhole_parameters("SIMPLE_PINHOLE", (5, 1, 2)).tolist() == [5, 5, 1, 2]
    assert pinhole_parameters("PINHOLE", (5, 6, 1, 2)).tolist() == [5, 6, 1, 2]
    assert pinhole_parameters("RADIAL", (5, 1, 2, 0, 0)).tolist() == [5, 5, 1, 2]
    assert pinhole_parameters("RADIAL", (5, 1, 2, 0, 1e-9)) is None
    assert pinhole_parameters("OPENCV_FISHEYE", (5, 6, 1, 2, 0, 0, 0, 0)) is None  # not a pinhole without distortion

"""The example of a scene source that README shows: run as a user would, from images to labels of ground truth."""

from __future__ import annotations

import json
import pickle
import shutil
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from raylg import prepare
from raylg.data.config import DataConfig
from raylg.data.dataset import PairDataset
from raylg.data.reader import ShardReader
from raylg.data.sources import make_source
from raylg.supervision.config import GroundTruthConfig
from raylg.supervision.ground_truth import ground_truth_matches
from tests.unit.data.megadepth_tree import Photographer, Wall, make_texture, render

EXAMPLE = Path(__file__).with_name("example_source.py")
WALL = Wall(
    origin=np.array([0.0, 0.0, 6.0]),
    axes=np.array([[1.0, 0, 0], [0, 1, 0], [0, 0, -1]]),
    boards=np.array([[-np.inf, -np.inf, np.inf, np.inf, 0], [-1.5, -1, -0.2, 0.5, 1], [0.4, -0.3, 1.2, 1.0, 0.6]]),
    extent=12.0,
)
SHIFTS = {"train": (-1.0, 0.0, 0.8), "val": (-0.7, 0.5)}


def camera(shift: float) -> Photographer:
    """Looks at the wall from `shift` beside its middle."""
    angle = 0.12 * shift
    R = np.array([[np.cos(angle), 0, np.sin(angle)], [0, 1, 0], [-np.sin(angle), 0, np.cos(angle)]])
    T_w2c = np.eye(4)
    T_w2c[:3, :3], T_w2c[:3, 3] = R, -R @ (shift, 0.2 * shift, 0.3 * abs(shift))
    return Photographer(np.array([[300.0, 0, 160], [0, 300, 120], [0, 0, 1]]), T_w2c, 320)


@cache
def texture() -> np.ndarray:
    return make_texture(seed=3)


def write_scene(folder: Path, shifts: tuple[float, ...]) -> None:
    folder.mkdir(parents=True)
    views = []
    for k, shift in enumerate(shifts):
        view = camera(shift)
        image, depth = render(WALL, texture(), view)
        cv2.imwrite(str(folder / f"{k}.png"), image)
        np.save(folder / f"{k}.png.npy", depth)
        parameters = [300.0, 300.0, 160.0, 120.0]
        views.append({"name": f"{k}.png", "image_size": [320, 240], "camera": parameters, "T_w2c": view.T_w2c.tolist()})
    pairs = [[i, i + 1] for i in range(len(shifts) - 1)]
    content = {"views": views, "pairs": pairs, "overlap": [0.6] * len(pairs)}
    (folder / "cameras.json").write_text(json.dumps(content))


@pytest.fixture
def _workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A folder with the example as my_scenes.py and data for it; the path of Python as before afterwards."""
    shutil.copy(EXAMPLE, tmp_path / "my_scenes.py")
    for split, shifts in SHIFTS.items():
        write_scene(tmp_path / "scenes" / split / f"wall-{split}", shifts)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    sys.modules.pop("my_scenes", None)


def test_the_example_is_short() -> None:
    lines = [line for line in EXAMPLE.read_text().splitlines() if line.strip()]
    assert len(lines) <= 30


@pytest.mark.usefixtures("_workplace")
def test_from_the_example_to_labels(capfd: pytest.CaptureFixture[str]) -> None:
    words = ["data.source=my_scenes:MyScenes", "data.path=scenes", "out=features", "data.cache_dir=cache"]
    assert prepare.main([*words, "model.extractor.max_num_keypoints=512"]) == 0
    assert "train: 3 images, 2 pairs" in capfd.readouterr().out.replace("\n", " ")
    for split, num_pairs in (("train", 2), ("val", 1)):
        dataset = PairDataset(ShardReader.open("features", DataConfig()), split, num_keypoints=512, open_shards=1)
        assert dataset.num_pairs == num_pairs
        batch = dataset.batch(np.array([[0, pair] for pair in range(num_pairs)]))
        labels = ground_truth_matches(batch, GroundTruthConfig())
        for pair in range(num_pairs):
            shifts = SHIFTS[split][pair : pair + 2]
            matches0 = labels.gt_matches0[pair]
            check_labels(batch.view0.keypoints[pair], batch.view1.keypoints[pair], matches0, shifts)


def check_labels(
    keypoints0: torch.Tensor, keypoints1: torch.Tensor, matches0: torch.Tensor, shifts: tuple[float, ...]
) -> None:
    """Compare labels with where the wall itself says that keypoints of image 0 are in image 1."""
    first, second = (camera(shift) for shift in shifts)
    pixels = np.c_[keypoints0.numpy().astype(np.float64), np.ones(len(keypoints0))]
    rays = pixels @ np.linalg.inv(first.K).T
    R, t = first.T_w2c[:3, :3], first.T_w2c[:3, 3]
    depth, _ = WALL.meet(-R.T @ t, rays @ R)
    world = (rays * depth[:, None] - t) @ R
    seen = (world @ second.T_w2c[:3, :3].T + second.T_w2c[:3, 3]) @ second.K.T
    error = np.linalg.norm(seen[:, :2] / seen[:, 2:] - keypoints1.numpy()[matches0.clamp(min=0).numpy()], axis=1)
    matched = matches0.numpy() >= 0
    assert matched.sum() > 100
    assert np.median(error[matched]) < 1.0
    # th_positive is 3 px; beside the edge of a board, depth may be that of the other side
    assert np.mean(error[matched] < 3.0) > 0.97


@pytest.mark.usefixtures("_workplace")
def test_the_example_travels() -> None:
    source = make_source(DataConfig(source="my_scenes:MyScenes", path=("scenes",)))
    data = pickle.dumps(source)
    sys.modules.pop("my_scenes")
    again = pickle.loads(data)
    assert again.scenes() == source.scenes()
    assert [view.name for view in again.load(again.scenes()[0]).views] == ["0.png", "1.png", "2.png"]

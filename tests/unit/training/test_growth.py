"""Sources that have got more since their shards were finished: in the cache, in a folder of the user's, and gone."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
import pytest

from raylg import train
from raylg.console.terminal import INTERRUPTED
from raylg.data.check import check_data_set
from raylg.data.export_homes import ORIGIN_NAME
from raylg.data.manifest import Manifest
from raylg.data.scene import PosedView, SceneRef
from raylg.data.storage import Storage
from raylg.errors import ConfigError
from raylg.schema import override
from raylg.training import features
from raylg.training.config import RunConfig
from raylg.training.features import check_inputs, ensure_features, features_location
from raylg.training.reporter import ConsoleReporter, read_metrics


@dataclass
class Scenes:
    """A source whose scenes are two views of noise each."""

    names: list[str] = field(default_factory=lambda: ["a", "b"])
    is_there: bool = True
    read: list[str] = field(default_factory=list)
    """Scenes whose images were read."""

    def make(self, data: object) -> Scenes:
        if not self.is_there:
            raise ConfigError("data.path: missing")
        return self

    def scenes(self) -> Sequence[SceneRef]:
        return [SceneRef(name=name, split="train") for name in self.names]

    def load(self, scene: SceneRef) -> Noise:
        return Noise(scene.name, self.read)


@dataclass
class Noise:
    name: str
    read: list[str]
    pairs = np.array([[0, 1]], np.int32)
    overlap = np.array([0.5], np.float32)
    views = tuple(
        PosedView(name=name, image_size=(128, 96), camera=np.array([100.0, 100, 64, 48]), T_w2c=np.eye(4))
        for name in ("0.png", "1.png")
    )

    def image(self, index: int) -> np.ndarray:
        self.read.append(self.name)
        rng = np.random.default_rng((ord(self.name), index))
        return rng.integers(0, 255, (12, 16, 3), np.uint8).repeat(8, 0).repeat(8, 1)

    def depth(self, index: int) -> None:
        return None


@pytest.fixture
def scenes(monkeypatch: pytest.MonkeyPatch) -> Scenes:
    source = Scenes()
    monkeypatch.setattr(features, "make_source", source.make)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0})  # extracts in this process
    return source


def run(tmp_path: Path, **values: object) -> RunConfig:
    return override(RunConfig(), {"data.cache_dir": str(tmp_path / "cache"), **values})


def names_of(manifest: Manifest) -> list[str]:
    return [entry.scene for entry in manifest.shards]


def test_more_scenes_are_added_in_the_cache(scenes: Scenes, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    before = ensure_features(run(tmp_path))
    assert names_of(before) == ["a", "b"]
    scenes.names.insert(1, "c")
    scenes.read.clear()
    after = ensure_features(run(tmp_path))
    assert names_of(after) == ["a", "c", "b"] and set(before.shards) < set(after.shards)
    assert scenes.read == ["c", "c"]
    assert "its source has 1 more, or changed since: c; they are added now" in caplog.text
    scenes.read.clear()
    caplog.clear()
    assert ensure_features(run(tmp_path)) == after
    assert not scenes.read and not caplog.records


def test_more_scenes_are_refused_in_a_folder_of_the_users(scenes: Scenes, tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    before = ensure_features(run(tmp_path), out=out)
    check_inputs(run(tmp_path), out)
    scenes.names.append("c")
    for use in (lambda: check_inputs(run(tmp_path), out), lambda: ensure_features(run(tmp_path), out=out)):
        with pytest.raises(ConfigError, match=r"out = '.*out' holds .* has 1 more, .*: c; delete them .* another fold"):
            use()
    scenes.names.pop()
    assert ensure_features(run(tmp_path), out=out) == before


def test_repeating_clears_what_a_killed_command_left(scenes: Scenes, tmp_path: Path) -> None:
    out = tmp_path / "out"
    manifest = ensure_features(run(tmp_path), out=str(out))
    (out / ".progress").mkdir()
    (out / ".progress" / "a-000-00000000.json").write_text("{}")
    (out / "a-000-00000000.h5").write_bytes(b"")
    assert ensure_features(run(tmp_path), out=str(out)) == manifest
    assert not check_data_set(Storage(out)).problems


def test_scenes_that_are_gone_are_told_and_kept(
    scenes: Scenes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = ensure_features(run(tmp_path))
    scenes.names.remove("a")
    assert ensure_features(run(tmp_path)) == before
    assert "1 are gone from its source: a; delete it to go on without them" in caplog.text


def test_a_source_that_is_gone_is_not_needed(scenes: Scenes, tmp_path: Path) -> None:
    before = ensure_features(run(tmp_path))
    scenes.is_there = False
    assert ensure_features(run(tmp_path)) == before


def test_shards_that_were_copied_without_their_origin_are_used(scenes: Scenes, tmp_path: Path) -> None:
    before = ensure_features(run(tmp_path))
    (Path(features_location(run(tmp_path))) / ORIGIN_NAME).unlink()
    scenes.names.append("c")
    assert ensure_features(run(tmp_path)) == before


def write_photographs(folder: Path, seeds: range) -> None:
    folder.mkdir(exist_ok=True)
    for seed in seeds:
        pixels = np.random.default_rng(seed).integers(0, 255, (64, 64, 3), np.uint8)
        assert cv2.imwrite(str(folder / f"{seed}.jpg"), pixels)


def test_more_photographs(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    photos, out = tmp_path / "photos", str(tmp_path / "out")
    write_photographs(photos, range(9))
    images = {"data.source": "images", "data.path": [str(photos)], "data.images_per_shard": 2}
    config = run(tmp_path, **images)
    before = ensure_features(config)
    assert ensure_features(config, out=out).shards == before.shards
    write_photographs(photos, range(9, 10))
    with caplog.at_level(logging.WARNING):
        after = ensure_features(config)
    assert "its source has 1 more, or changed since: 9.jpg" in caplog.text
    assert sum(entry.num_images for entry in after.shards) == 10
    assert set(before.shards) & set(after.shards)
    with pytest.raises(ConfigError, match=r"9\.jpg"):
        ensure_features(config, out=out)
    with pytest.raises(ConfigError, match=r"9\.jpg"):
        check_inputs(config, out)
    files = {path.name for path in Path(features_location(config)).iterdir()}
    assert files == {"manifest.json", ORIGIN_NAME, *(entry.file for entry in after.shards)}


def test_a_run_is_continued_with_the_photographs_it_began_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    photos = tmp_path / "photos"
    write_photographs(photos, range(5))
    monkeypatch.chdir(tmp_path)
    options = {"data.images.width": 64, "data.images.height": 64, "data.num_keypoints": 32, "data.batch_size": 2}
    options |= {"evaluation.num_keypoints": 32, "model.matcher.descriptor_dim": 16, "model.matcher.num_layers": 1}
    options |= {"model.matcher.num_heads": 1, "train.num_pairs": 4, "train.report_every": 2, "train.num_figures": 0}
    words = ["data=images", "data.path=[photos]", "data.cache_dir=cache", *(f"{k}={v}" for k, v in options.items())]

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ConsoleReporter, "report", interrupt)
        assert train.main(words) == INTERRUPTED
    write_photographs(photos, range(5, 6))
    assert train.main(words) == 0
    assert [report["pairs_seen"] for report in read_metrics(tmp_path / "runs" / "train")] == [2, 4]
    assert "more" not in caplog.text
    assert train.main(["--name", "new", *words]) == 0
    assert "its source has 1 more" in caplog.text

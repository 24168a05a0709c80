import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from raylg.errors import ConfigError, EnvironmentUnfitError, ShardError
from raylg.schema import override
from raylg.training import features
from raylg.training.config import RunConfig
from raylg.training.features import (
    check_inputs,
    ensure_features,
    features_location,
    has_split,
    open_split,
)
from tests.unit.training.one_scene import OneScene


def test_shards_are_where_the_user_says():
    config = override(RunConfig(), {"data.source": "shards", "data.path": ["/somewhere/shards"]})
    assert features_location(config) == "/somewhere/shards"
    assert features_location(override(config, {"data.path": ["s3://bucket/shards"]})) == "s3://bucket/shards"


def test_folder_of_a_source_is_named_by_what_decides_its_shards():
    folder = Path(features_location(RunConfig()))
    assert folder.parent == Path("~/.cache/raylg/features").expanduser()
    assert folder.name.startswith("mini-")
    same = {"data.num_keypoints": 64, "data.batch_size": 4, "optim.lr": 1.0, "seed": 5, "data.split.val_fraction": 0.1}
    assert features_location(override(RunConfig(), same)) == str(folder)
    for other in (
        {"data.mini.seed": 1},
        {"data.max_overlap": 0.8},
        {"data.images_per_shard": 8},
        {"model.extractor.max_num_keypoints": 2048},
    ):
        assert features_location(override(RunConfig(), other)) != str(folder)


def test_folder_of_a_colmap_source_depends_on_paths_and_split(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = override(RunConfig(), {"data.source": "colmap", "data.path": ["scene"]})
    absolute = override(config, {"data.path": [str(tmp_path / "scene")]})
    assert features_location(absolute) == features_location(config)
    assert features_location(override(config, {"data.path": ["other"]})) != features_location(config)
    assert features_location(override(config, {"data.split.by": "image"})) != features_location(config)


def test_missing_shards_are_an_error_of_the_data_or_before_anything_started_of_the_user(tmp_path):
    config = override(RunConfig(), {"data.source": "shards", "data.path": [str(tmp_path)]})
    with pytest.raises(ShardError, match="manifest"):
        ensure_features(config)
    with pytest.raises(ConfigError, match=r"data\.path.*manifest"):
        check_inputs(config)


def test_features_are_extracted_once(tmp_path, monkeypatch):
    config = override(RunConfig(), {"data.cache_dir": str(tmp_path), "model.extractor.max_num_keypoints": 512})
    made = []

    def make_source(data):
        made.append(data)
        return OneScene()

    monkeypatch.setattr(features, "make_source", make_source)
    progress = []
    manifest = ensure_features(config, lambda done, total: progress.append((done, total)))
    num_told = len(progress)
    assert manifest == ensure_features(config, lambda done, total: progress.append((done, total)))
    assert len(made) == 2 and len(progress) == num_told  # the second time for its list of scenes
    assert progress[-1] == (2, 2)
    assert (manifest.extractor.name, manifest.extractor.descriptor_dim) == ("sift", 128)
    assert manifest.created_by.config["data"]["cache_dir"] == str(tmp_path)
    assert has_split(config, "train")
    assert not has_split(config, "test")
    elsewhere = ensure_features(config, out=str(tmp_path / "elsewhere"))
    assert [entry.sha256 for entry in elsewhere.shards] == [entry.sha256 for entry in manifest.shards]


class TestCheckInputs:
    def config(self, tmp_path, **values):
        return override(RunConfig(), {"data.cache_dir": str(tmp_path), **values})

    def test_out_of_other_options_is_refused(self, tmp_path, monkeypatch):
        monkeypatch.setattr(features, "make_source", lambda data: OneScene())
        out = str(tmp_path / "out")
        config = self.config(tmp_path)
        check_inputs(config, out)
        ensure_features(config, out=out)
        check_inputs(config, out)
        with pytest.raises(ConfigError, match=r"out = .* already holds 'out' .*give another folder"):
            check_inputs(override(config, {"data.max_overlap": 0.8}), out)

    def test_out_that_cannot_be_written(self, tmp_path):
        (tmp_path / "file").write_text("no folder")
        with pytest.raises(EnvironmentUnfitError, match=r"file.*cannot be written"):
            check_inputs(self.config(tmp_path), str(tmp_path / "file" / "out"))
        with pytest.raises(ConfigError, match="gs://"):
            check_inputs(self.config(tmp_path), "gs://bucket/out")

    def test_nothing_is_left_behind(self, tmp_path):
        check_inputs(self.config(tmp_path), str(tmp_path / "out"))
        assert list((tmp_path / "out").iterdir()) == []

    def test_shards_are_not_prepared(self, tmp_path):
        config = self.config(tmp_path, **{"data.source": "shards", "data.path": [str(tmp_path)]})
        with pytest.raises(ConfigError, match="are shards already"):
            check_inputs(config, str(tmp_path / "out"))

    def test_shards_of_another_extractor(self, tmp_path, monkeypatch):
        monkeypatch.setattr(features, "make_source", lambda data: OneScene())
        config = self.config(tmp_path)
        ensure_features(config)
        config = override(config, {"data.source": "shards", "data.path": [features_location(config)]})
        check_inputs(config)
        with pytest.raises(ConfigError, match=r"set model\.extractor\.name=sift"):
            check_inputs(override(config, {"model.extractor.name": "superpoint"}))

    def test_missing_photographs(self, tmp_path):
        config = self.config(tmp_path, **{"data.source": "images", "data.path": [str(tmp_path / "nowhere")]})
        with pytest.raises(ConfigError, match=r"nowhere.*no such folder"):
            check_inputs(config)


def photographs(folder):
    folder.mkdir()
    for i in range(6):
        image = np.random.default_rng(i).integers(0, 255, (12, 16, 3), np.uint8).repeat(20, 0).repeat(20, 1)
        cv2.imwrite(str(folder / f"{i}.jpg"), image)


def test_photographs_become_image_shards_and_homography_pairs(tmp_path):
    photographs(tmp_path / "photos")
    values = {
        "data.source": "images",
        "data.path": [str(tmp_path / "photos")],
        "data.cache_dir": str(tmp_path / "cache"),
        "data.images.width": 160,
        "data.images.height": 120,
        "data.num_keypoints": 32,
        "evaluation.num_keypoints": 32,
    }
    config = override(RunConfig(), values)
    check_inputs(config)
    manifest = ensure_features(config)
    assert manifest == ensure_features(config)
    assert manifest.content == "images" and has_split(config, "train") and not has_split(config, "test")
    same = override(config, {"data.images.difficulty": 0.2, "model.extractor.max_num_keypoints": 64})
    assert features_location(same) == features_location(config)
    for run in (config, override(config, {"data.source": "shards", "data.path": [features_location(config)]})):
        check_inputs(run)
        batch = open_split(run, "train").batch(np.array([[0, 0]]))
        assert batch.H_0to1 is not None and batch.H_0to1.shape == (1, 3, 3)
        with pytest.raises(ConfigError, match=r"no photographs in split 'test'; .*data\.images\.test_fraction"):
            open_split(run, "test")
    tested = override(config, {"data.images.test_fraction": 0.3})
    ensure_features(tested)
    assert has_split(tested, "test") and open_split(tested, "test").num_pairs > 0


def test_module_is_free_of_torch():
    code = "import sys, raylg.training.features; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

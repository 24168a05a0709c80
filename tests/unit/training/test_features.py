import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from raylg.data.scene import PosedView, SceneRef
from raylg.errors import ConfigError, ShardError
from raylg.schema import override
from raylg.training import features
from raylg.training.config import RunConfig
from raylg.training.features import check_inputs, ensure_features, features_dir, has_split


def test_shards_are_where_the_user_says():
    config = override(RunConfig(), {"data.source": "shards", "data.path": ["/somewhere/shards"]})
    assert features_dir(config) == Path("/somewhere/shards")


def test_folder_of_a_source_is_named_by_what_decides_its_shards():
    folder = features_dir(RunConfig())
    assert folder.parent == Path("~/.cache/raylg/features").expanduser()
    assert folder.name.startswith("mini-")
    same = {"data.num_keypoints": 64, "data.batch_size": 4, "optim.lr": 1.0, "seed": 5, "data.split.val_fraction": 0.1}
    assert features_dir(override(RunConfig(), same)) == folder
    for other in (
        {"data.mini.seed": 1},
        {"data.max_overlap": 0.8},
        {"data.images_per_shard": 8},
        {"model.extractor.max_num_keypoints": 2048},
    ):
        assert features_dir(override(RunConfig(), other)) != folder


def test_folder_of_a_colmap_source_depends_on_paths_and_split(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = override(RunConfig(), {"data.source": "colmap", "data.path": ["scene"]})
    absolute = override(config, {"data.path": [str(tmp_path / "scene")]})
    assert features_dir(absolute) == features_dir(config)
    assert features_dir(override(config, {"data.path": ["other"]})) != features_dir(config)
    assert features_dir(override(config, {"data.split.by": "image"})) != features_dir(config)


def test_missing_shards_are_an_error_of_the_data_or_before_anything_started_of_the_user(tmp_path):
    config = override(RunConfig(), {"data.source": "shards", "data.path": [str(tmp_path)]})
    with pytest.raises(ShardError, match="manifest"):
        ensure_features(config)
    with pytest.raises(ConfigError, match=r"data\.path.*manifest"):
        check_inputs(config)


class OneScene:
    """A source, and its only scene: two views of noise."""

    views = tuple(
        PosedView(name=name, image_size=(128, 96), camera=np.array([100.0, 100, 64, 48]), T_w2c=np.eye(4))
        for name in ("a", "b")
    )
    pairs = np.array([[0, 1]], np.int32)
    overlap = np.array([0.5], np.float32)

    def scenes(self):
        return [SceneRef(name="noise", split="train")]

    def load(self, scene):
        return self

    def image(self, index):
        return np.random.default_rng(index).integers(0, 255, (12, 16, 3), np.uint8).repeat(8, 0).repeat(8, 1)

    def depth(self, index):
        return None


def test_features_are_extracted_once(tmp_path, monkeypatch):
    config = override(RunConfig(), {"data.cache_dir": str(tmp_path), "model.extractor.max_num_keypoints": 512})
    made = []

    def make_source(data):
        made.append(data)
        return OneScene()

    monkeypatch.setattr(features, "make_source", make_source)
    progress = []
    manifest = ensure_features(config, lambda done, total: progress.append((done, total)))
    assert manifest == ensure_features(config)
    assert len(made) == 1
    assert progress[-1] == (2, 2)
    assert (manifest.extractor.name, manifest.extractor.descriptor_dim) == ("sift", 128)
    assert manifest.created_by.config["data"]["cache_dir"] == str(tmp_path)
    assert has_split(config, "train")
    assert not has_split(config, "test")
    elsewhere = ensure_features(config, out=tmp_path / "elsewhere")
    assert [entry.sha256 for entry in elsewhere.shards] == [entry.sha256 for entry in manifest.shards]


def test_module_is_free_of_torch():
    code = "import sys, raylg.training.features; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

import logging
import subprocess
import sys
from dataclasses import replace

import pytest

from raylg.data.export_homes import reopen
from raylg.data.shard import read_shard
from raylg.data.storage import Storage
from raylg.errors import ConfigError
from raylg.models.config import ExtractorConfig
from raylg.training.shard_job import ShardJob, ensure_shards
from tests.unit.training.one_scene import OneScene, write_superpoint


def job(extractor, **changes):
    values = {
        "make_source": OneScene,
        "extractor": extractor,
        "identity": {"benchmark": "noise"},
        "config": {"some": "configuration"},
    }
    return ShardJob(**(values | changes))


def hashes(manifest):
    return [entry.sha256 for entry in manifest.shards]


def test_shards_of_a_benchmark(tmp_path):
    made = []

    def make_source():
        made.append(OneScene())
        return made[-1]

    enlarged = job(ExtractorConfig(max_num_keypoints=64, resize=200), make_source=make_source, enlarge=True)
    out = Storage(tmp_path / "noise")
    manifest = ensure_shards(enlarged, out)
    assert ensure_shards(enlarged, out) == manifest and len(made) == 1
    assert manifest.created_by.config == {"some": "configuration"}
    assert manifest.created_by.source == {"benchmark": "noise"}
    assert manifest.extractor.settings["enlarge"] is True
    shard = read_shard(tmp_path / "noise" / manifest.shards[0].file)
    assert shard.image_size.tolist() == [[200, 150]] * 2
    assert shard.original_size.tolist() == [[128, 96]] * 2
    others = (replace(enlarged, enlarge=False), replace(enlarged, images_per_shard=8))
    assert all(other.decisive != enlarged.decisive for other in others)


def test_fingerprint_knows_the_content_of_weights(tmp_path):
    weights = write_superpoint(tmp_path / "weights.pth", seed=0)
    superpoint = job(ExtractorConfig(name="superpoint", weights=weights))
    before, decisive = superpoint.fingerprint, superpoint.decisive
    write_superpoint(tmp_path / "weights.pth", seed=1)
    assert superpoint.fingerprint != before and superpoint.decisive == decisive
    photographs = job(None)
    assert photographs.fingerprint == job(None).fingerprint != job(None, identity={"path": "x"}).fingerprint


def test_replaced_weights_are_noticed(tmp_path, caplog):
    """In the cache features are made anew, in the user's folder they are refused, and without the file they stay."""
    weights = write_superpoint(tmp_path / "weights.pth", seed=0)
    superpoint = job(ExtractorConfig(name="superpoint", weights=weights, max_num_keypoints=32))
    cache, mine = Storage(tmp_path / "cache"), Storage(tmp_path / "mine")
    first = ensure_shards(superpoint, cache, in_cache=True)
    ensure_shards(superpoint, mine)
    write_superpoint(tmp_path / "weights.pth", seed=1)
    assert not superpoint.is_made(cache)
    with caplog.at_level(logging.WARNING):
        second = ensure_shards(superpoint, cache, in_cache=True)
    assert "made with other weights" in caplog.text
    assert hashes(second) != hashes(first) and second.created_by.fingerprint == superpoint.fingerprint
    assert ensure_shards(superpoint, cache, in_cache=True) == second
    shards = {path.name for path in (tmp_path / "cache").glob("*.h5")}
    assert shards == {entry.file for entry in second.shards}
    with pytest.raises(ConfigError, match="already holds"):
        ensure_shards(superpoint, mine)
    (tmp_path / "weights.pth").unlink()
    assert ensure_shards(superpoint, cache, in_cache=True) == second


def test_unfinished_shards_of_replaced_weights_are_no_obstacle_in_the_cache(tmp_path):
    weights = write_superpoint(tmp_path / "weights.pth", seed=0)
    superpoint = job(ExtractorConfig(name="superpoint", weights=weights, max_num_keypoints=32))
    cache = Storage(tmp_path / "cache")
    finished = ensure_shards(superpoint, cache, in_cache=True)
    reopen(cache, superpoint.fingerprint)  # as if the last scene had not been finished
    write_superpoint(tmp_path / "weights.pth", seed=1)
    assert hashes(ensure_shards(superpoint, cache, in_cache=True)) != hashes(finished)


def test_module_is_free_of_torch():
    code = "import sys, raylg.training.shard_job; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

"""What a study maximises: chosen by the pairs and the configuration, refused where nothing gives it."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from raylg.data.manifest import read_manifest, write_manifest
from raylg.data.storage import Storage
from raylg.errors import ConfigError
from raylg.evaluation.measures import HOMOGRAPHY, ScoreColumns
from raylg.schema import override
from raylg.search.config import StudyConfig
from raylg.training.config import RunConfig
from raylg.training.objective import add_objective_benchmark, default_objective, kind_of_pairs, objective_columns
from tests.integration.tiny_shards import tiny_shard, write_features

NAME = "megadepth1500"


def shards_of(folder: Path, content: str) -> RunConfig:
    """A run on shards whose manifest says that they hold this."""
    write_features(folder, {"val": tiny_shard("val", "val", 2, 0)})
    manifest = read_manifest(Storage(folder))
    if content == "images":
        manifest = replace(manifest, content="images", extractor=None)
    write_manifest(Storage(folder), manifest)
    return override(RunConfig(), {"data.source": "shards", "data.path": [str(folder)]})


def test_default_suits_the_pairs(tmp_path: Path) -> None:
    photographs = override(RunConfig(), {"data.source": "images", "data.path": [str(tmp_path)]})
    posed, images = shards_of(tmp_path / "posed", "features"), shards_of(tmp_path / "images", "images")
    assert default_objective(RunConfig()) == default_objective(posed) == "val/auc@5"
    assert default_objective(photographs) == default_objective(images) == "val/corner_auc@3"
    for config in (RunConfig(), photographs, posed, images):
        assert StudyConfig(objective=default_objective(config)).objective is not None
        objective_columns(config, default_objective(config))


def test_default_is_the_benchmark_that_is_configured() -> None:
    config = override(RunConfig(), {"benchmarks.megadepth1500.path": "somewhere"})
    assert default_objective(config) == "megadepth1500/auc@5"
    assert StudyConfig().objective is None


def test_absent_shards_are_refused(tmp_path: Path) -> None:
    config = override(RunConfig(), {"data.source": "shards", "data.path": [str(tmp_path / "nowhere")]})
    with pytest.raises(ConfigError, match=r"data\.path: .*nowhere does not exist"):
        kind_of_pairs(config)


def test_objective_adds_its_benchmark() -> None:
    config = override(RunConfig(), {"benchmarks.megadepth1500.path": "somewhere"})
    added = add_objective_benchmark(config, "megadepth1500/auc@5")
    assert added.evaluation.benchmarks == (NAME,)
    assert add_objective_benchmark(added, "megadepth1500/auc@10") == added
    assert add_objective_benchmark(config, "val/auc@5") == config
    with pytest.raises(ConfigError, match=r"benchmarks\.megadepth1500\.path = null"):
        add_objective_benchmark(RunConfig(), "megadepth1500/auc@5")


def test_objectives_that_the_pairs_do_not_have_are_refused(tmp_path: Path) -> None:
    posed = RunConfig()
    photographs = override(RunConfig(), {"data.source": "images", "data.path": [str(tmp_path)]})
    assert objective_columns(posed, "val/auc@5") == objective_columns(posed, "val/mean_auc") == ScoreColumns()
    assert objective_columns(photographs, "val/corner_auc@3") == ScoreColumns("val", HOMOGRAPHY)
    assert objective_columns(photographs, "val/mean_auc") == ScoreColumns("val", HOMOGRAPHY)
    assert objective_columns(photographs, "megadepth1500/auc@5") == ScoreColumns(NAME)
    with pytest.raises(ConfigError, match=r"'val/auc@5': the pairs of data.source=images .*val/corner_auc@1"):
        objective_columns(photographs, "val/auc@5")
    with pytest.raises(ConfigError, match=r"'val/corner_auc@3': .*data.source=mini .* choose one of val/auc@5"):
        objective_columns(posed, "val/corner_auc@3")


def test_objectives_of_a_study() -> None:
    for objective in ("val/auc@20", "val/corner_auc@1", "val/mean_auc", "megadepth1500/mean_auc"):
        assert StudyConfig(objective=objective).objective == objective
    for objective in ("megadepth1500/corner_auc@1", "val/auc@3", "val/loss", "other/auc@5"):
        with pytest.raises(ConfigError, match=r"objective = .*must be null or one of val/auc@5"):
            StudyConfig(objective=objective)


def test_module_is_free_of_torch() -> None:
    code = "import sys, raylg.training.objective; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

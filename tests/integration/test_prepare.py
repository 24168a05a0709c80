"""What `prepare` prints can be typed next; benchmarks are extracted where everything is."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from raylg import prepare
from raylg.cluster import export
from raylg.console.tune_input import checked
from raylg.data.export_pool import ProcessPool
from raylg.training.features import open_split
from tests.raw_benchmark import write_raw_benchmark

ENDPOINT = "data.storage.endpoint_url=http://minio:9000"


@pytest.fixture(autouse=True)
def _workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


def printed(capsys: pytest.CaptureFixture[str], key: str) -> list[str]:
    """The words after ``key: python -m raylg.VERB`` in what was printed."""
    (line,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith(f"{key}: python -m raylg."))
    return line.split()[4:]


def test_next_line_of_photographs_starts_a_search(capsys: pytest.CaptureFixture[str]) -> None:
    """Scored by homographies, and drawn as they were when the photographs were prepared."""
    Path("photographs").mkdir()
    for k in range(6):
        pixels = np.random.default_rng(k).integers(0, 255, (6, 8, 3), np.uint8).repeat(20, 0).repeat(20, 1)
        assert cv2.imwrite(f"photographs/{k}.jpg", pixels)
    views = ["data.images.width=160", "data.images.height=120", "data.images.difficulty=0.3"]
    words = ["data=images", "data.path=photographs", *views, "data.images.val_fraction=0.2", "out=shards", ENDPOINT]
    assert prepare.main(words) == 0
    space, name, *words = printed(capsys, "next")
    assert (space, name, words) == ("--space", "lr_bs", ["data=shards", "data.path=shards", *views, ENDPOINT])
    arguments = argparse.Namespace(space="lr_bs", name=None, overrides=words, config=None, config_dir=None)
    loaded, _ = checked(arguments)
    assert loaded.study.objective == "val/corner_auc@3"
    assert open_split(loaded.run, "val").batch(np.array([[0, 0]])).view0.image_size.tolist() == [[160, 120]]


def test_check_line_names_the_storage(capsys: pytest.CaptureFixture[str]) -> None:
    small = ["data.mini.num_train_scenes=1", "data.mini.num_val_scenes=1", "data.mini.num_test_scenes=1"]
    small += ["data.mini.views_per_scene=3", "data.mini.width=160", "data.mini.height=120"]
    assert prepare.main([*small, "out=shards", ENDPOINT]) == 0
    assert printed(capsys, "check") == ["--check", "shards", ENDPOINT]
    assert prepare.main(["--check", "shards", ENDPOINT]) == 0


def test_benchmark_is_extracted_by_the_cluster(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    used = []

    @contextmanager
    def cluster_pool(*_: object, **options: Any) -> Iterator[ProcessPool]:
        used.append(options["network"])
        yield ProcessPool(1)

    monkeypatch.setattr(export, "cluster_pool", cluster_pool)
    path = write_raw_benchmark(tmp_path / "raw")
    words = ["benchmark=megadepth1500", f"benchmarks.megadepth1500.path={path}", "scale.address=auto", ENDPOINT]
    assert prepare.main([*words, "benchmarks.megadepth1500.resize=320", "out=shards"]) == 0
    assert used == [False]
    options = ["benchmarks.megadepth1500.path=shards", "benchmarks.megadepth1500.resize=320"]
    assert printed(capsys, "next") == ["CHECKPOINT", "benchmark=megadepth1500", *options, ENDPOINT]

"""Features extracted by a Ray cluster: the same bytes, lost workers, errors that name their scene, a bucket."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from raylg.batch import Features
from raylg.cluster import export
from raylg.cluster.export import RayPool
from raylg.cluster.session import RaySession
from raylg.data.check import check_data_set
from raylg.data.export import export_features
from raylg.data.export_notes import STARTED_NAME
from raylg.data.export_scene import ExportJob
from raylg.data.storage import Storage
from raylg.errors import EnvironmentUnfitError, RaylgError, ShardError
from raylg.training.config import ScaleConfig
from tests.system.s3_server import S3Server
from tests.unit.data.scenes import FakeExtractor, FakeSource, export_options

pytestmark = [pytest.mark.ray, pytest.mark.slow]

SOURCE = FakeSource(names=(("large", "train"), ("small", "val")), num_views=20, reach=3)
OPTIONS = export_options(images_per_shard=7)
MINI = [
    "data=mini",
    "data.mini.num_train_scenes=2",
    "data.mini.num_val_scenes=1",
    "data.mini.num_test_scenes=1",
    "data.mini.views_per_scene=5",
    "data.mini.width=320",
    "data.mini.height=240",
    "data.images_per_shard=3",
]


@contextmanager
def ray_session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RaySession]:
    """A Ray of two cores; its workers find raylg and the modules of these tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
        with RaySession(ScaleConfig(), tmp_path_factory.mktemp("ray") / "ray.log") as started:
            yield started


@pytest.fixture
def session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RaySession]:
    with ray_session(tmp_path_factory) as started:
        yield started


@pytest.fixture
def pool(session: RaySession) -> RayPool:
    return RayPool(session, ScaleConfig(max_failures=1), network=True)


def test_a_cluster_writes_the_same_bytes(pool: RayPool, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    here = export_features(SOURCE, FakeExtractor, Storage(tmp_path / "here"), OPTIONS)
    there = export_features(
        SOURCE, FakeExtractor, Storage(tmp_path / "there"), OPTIONS, lambda *p: told.append(p), pool
    )
    assert there == here
    assert len(there.shards) > 6
    assert {path.name: path.read_bytes() for path in (tmp_path / "there").iterdir()} == {
        path.name: path.read_bytes() for path in (tmp_path / "here").iterdir()
    }
    assert told[-1] == (40, 40)


@dataclass(frozen=True)
class DiesOnce:
    """Kills its process, as the kernel does for lack of memory, at its fifteenth image."""

    folder: Path

    def __call__(self, image: np.ndarray) -> Features:
        count = len(list(self.folder.iterdir()))
        (self.folder / f"{time.time_ns()}-{os.getpid()}").touch()
        if count == 15:
            os.kill(os.getpid(), signal.SIGKILL)
        return FakeExtractor()(image)


def test_a_killed_worker_is_replaced_and_goes_on(pool: RayPool, tmp_path: Path) -> None:
    (tmp_path / "seen").mkdir()
    make = partial(DiesOnce, tmp_path / "seen")
    lost = export_features(SOURCE, make, Storage(tmp_path / "out"), OPTIONS, pool=pool)
    assert lost == export_features(SOURCE, FakeExtractor, Storage(tmp_path / "expected"), OPTIONS)
    assert len({path.name.split("-")[1] for path in (tmp_path / "seen").iterdir()}) >= 2


@dataclass(frozen=True)
class DiesAlways:
    def __call__(self, image: np.ndarray) -> Features:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError


@dataclass(frozen=True)
class Refuses:
    def __call__(self, image: np.ndarray) -> Features:
        raise ShardError("image 3: not a photograph")


def test_failures_name_the_scene_and_keep_their_kind(pool: RayPool, tmp_path: Path) -> None:
    with pytest.raises(EnvironmentUnfitError, match=r"scene 'one': its task was lost 2 times.*repeat the command"):
        export_features(FakeSource(names=(("one", "train"),)), DiesAlways, Storage(tmp_path / "a"), OPTIONS, pool=pool)
    with pytest.raises(ShardError, match="scene 'one': image 3: not a photograph"):
        export_features(FakeSource(names=(("one", "train"),)), Refuses, Storage(tmp_path / "b"), OPTIONS, pool=pool)
    source = dataclasses.replace(FakeSource(), broken="three")
    with pytest.raises(RaylgError, match="scene 'three': ValueError: no such thing"):
        export_features(source, FakeExtractor, Storage(tmp_path / "c"), OPTIONS, pool=pool)
    export_features(FakeSource(), FakeExtractor, Storage(tmp_path / "c"), OPTIONS, pool=pool)


def prepare(folder: Path, *words: str) -> str:
    command = [sys.executable, "-m", "raylg.prepare", *MINI, f"data.cache_dir={folder / 'cache'}", *words]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


def test_a_folder_that_a_machine_does_not_share_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "_VISIBLE_SECONDS", 0.1)
    job = ExportJob(
        source=SOURCE, make_extractor=FakeExtractor, out=Storage(tmp_path), options=OPTIONS, token="of the caller"
    )
    for found in (None, "of an earlier call"):
        if found is not None:
            job.out.write(STARTED_NAME, found.encode())
        with pytest.raises(EnvironmentUnfitError, match=r"does not share the folder .*out=s3://"):
            export._check_folder(job)
    job.out.write(STARTED_NAME, b"of the caller")
    export._check_folder(job)


def test_tasks_write_to_a_bucket(
    tmp_path: Path, s3_server: S3Server, bucket: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with ray_session(tmp_path_factory) as session:  # started here, so that its workers have the credentials
        pool = RayPool(session, ScaleConfig(), network=True)
        out = Storage(f"s3://{bucket}/some/where")
        there = export_features(SOURCE, FakeExtractor, out, OPTIONS, pool=pool)
    assert there == export_features(SOURCE, FakeExtractor, Storage(tmp_path), OPTIONS)
    expected = {f"some/where/{path.name}": path.stat().st_size for path in tmp_path.iterdir()}
    assert s3_server.keys(bucket) == expected
    assert not check_data_set(out).problems


def test_the_command_joins_the_cluster(session: RaySession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    printed = prepare(tmp_path, "out=features")  # RAY_ADDRESS is set within the session
    assert "extracting on the Ray cluster" in printed
    assert "next: python -m raylg.tune --space lr_bs data=shards data.path=features" in printed
    monkeypatch.delenv("RAY_ADDRESS")
    assert "Ray" not in prepare(tmp_path, "out=alone")
    shards = [json.loads((tmp_path / name / "manifest.json").read_text())["shards"] for name in ("features", "alone")]
    assert shards[0] == shards[1]
    assert "all there and as written" in prepare(tmp_path, "--check", "features")

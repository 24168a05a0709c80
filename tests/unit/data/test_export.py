"""Many scenes: processes, progress, failures with names, what is done when it is called again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from raylg.batch import Features
from raylg.data.check import check_data_set
from raylg.data.export import PartRunner, export_features
from raylg.data.export_homes import ORIGIN_NAME
from raylg.data.export_notes import STARTED_NAME
from raylg.data.export_pool import Finished
from raylg.data.export_scene import ExportJob, Part, PartExporter, Progress
from raylg.data.manifest import Manifest, data_hash, read_manifest
from raylg.data.scene import SceneRef
from raylg.data.shard import read_shard
from raylg.data.storage import Storage
from raylg.errors import ConfigError, EnvironmentUnfitError, RaylgError, ShardError
from tests.unit.data.scenes import FakeExtractor, FakeScene, FakeSource, export_options

MANY = FakeSource(names=tuple((f"scene {i}", "val" if i == 3 else "train") for i in range(4)))


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def whole(manifest: Manifest) -> set[str]:
    """Files of a finished data set."""
    return {"manifest.json", ORIGIN_NAME, *(entry.file for entry in manifest.shards)}


def test_manifest_and_files(tmp_path: Path) -> None:
    out = tmp_path / "new" / "folder"
    manifest = export_features(FakeSource(), FakeExtractor, Storage(out), export_options(images_per_shard=4))
    assert read_manifest(Storage(out)) == manifest
    assert set(files(out)) == whole(manifest)
    assert all(entry.file.endswith(f"-{entry.sha256[:8]}.h5") for entry in manifest.shards)
    assert {split: (c.num_images, c.num_pairs) for split, c in manifest.splits.items()} == {
        "train": (12, 18),
        "val": (6, 9),
    }
    assert [entry.scene for entry in manifest.shards] == sorted(
        (entry.scene for entry in manifest.shards), key=["one", "two", "three"].index
    )


def test_processes_give_the_same_data(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    alone = export_features(MANY, FakeExtractor, Storage(tmp_path / "alone"), export_options())
    shared = export_features(
        MANY, FakeExtractor, Storage(tmp_path / "shared"), export_options(num_processes=2), lambda *p: told.append(p)
    )
    assert alone == shared
    assert told[-1] == (24, 24)
    assert [done for done, _ in told] == sorted(done for done, _ in told)


def test_finished_export_is_left_alone(tmp_path: Path) -> None:
    log = tmp_path / "log"
    source, out = replace(FakeSource(), log=log), tmp_path / "out"
    first = export_features(source, FakeExtractor, Storage(out), export_options())
    log.unlink()
    assert export_features(source, FakeExtractor, Storage(out), export_options()) == first
    assert not log.exists()
    with pytest.raises(ConfigError, match=r"already holds 'fake' \(fake features, made by `test`\)"):
        export_features(source, FakeExtractor, Storage(out), export_options(fingerprint="other"))


def test_failure_names_the_scene_and_what_is_done_is_kept(tmp_path: Path) -> None:
    log, out = tmp_path / "log", tmp_path / "out"
    with pytest.raises(RaylgError, match="scene 'three': ValueError: no such thing"):
        export_features(replace(FakeSource(log=log), broken="three"), FakeExtractor, Storage(out), export_options())
    assert not (out / "manifest.json").exists()
    log.unlink()
    manifest = export_features(FakeSource(log=log), FakeExtractor, Storage(out), export_options())
    assert len(log.read_text().split()) == 6
    assert manifest == export_features(FakeSource(), FakeExtractor, Storage(tmp_path / "again"), export_options())
    assert not (out / ".progress").exists()


@dataclass(frozen=True)
class Fails:
    error: Exception

    def __call__(self, image: np.ndarray) -> None:
        raise self.error


def raise_error(error: Exception) -> None:
    raise error


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (OSError(28, "No space left on device"), EnvironmentUnfitError),
        (ShardError("broken"), ShardError),
        (KeyError("x"), RaylgError),
    ],
)
@pytest.mark.parametrize("when", ["making", "calling"])
def test_kinds_of_failure(tmp_path: Path, error: Exception, kind: type[Exception], when: str) -> None:
    make = partial(raise_error, error) if when == "making" else partial(Fails, error)
    with pytest.raises(RaylgError, match="scene 'one'") as raised:
        export_features(FakeSource(), make, Storage(tmp_path), export_options())
    assert type(raised.value) is kind
    assert raised.value.__cause__ is error


@dataclass(frozen=True)
class Slow(FakeExtractor):
    def __call__(self, image: np.ndarray) -> Features:
        time.sleep(0.02)
        return super().__call__(image)


def test_interrupted_by_the_user(tmp_path: Path) -> None:
    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    log = tmp_path / "log"
    source = FakeSource(num_views=60, log=log)
    with pytest.raises(KeyboardInterrupt):
        export_features(source, Slow, Storage(tmp_path / "out"), export_options(images_per_shard=4), interrupt)
    read = len(log.read_text().split())
    assert read < 40
    assert list((tmp_path / "out").glob("one-*.h5"))
    export_features(source, FakeExtractor, Storage(tmp_path / "out"), export_options(images_per_shard=4))
    assert len(log.read_text().split()) < 180 + read


def kill_oneself() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_killed_process(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentUnfitError, match=r"was killed.*repeat the command"):
        export_features(MANY, kill_oneself, Storage(tmp_path), export_options(num_processes=2))


def interrupted(out: Path, source: FakeSource | None = None) -> None:
    """Leave all scenes but the last one."""
    with pytest.raises(RaylgError):
        export_features(
            replace(source or FakeSource(), broken="three"),
            FakeExtractor,
            Storage(out),
            export_options(images_per_shard=4),
        )


def test_what_other_options_left_unfinished_is_kept_and_told(tmp_path: Path) -> None:
    """A mistyped option must not cost hours of extraction."""
    interrupted(tmp_path)
    before = files(tmp_path)
    with pytest.raises(ConfigError, match=r"unfinished data set of another .*options; repeat the command that began"):
        export_features(FakeSource(), FakeExtractor, Storage(tmp_path), export_options(fingerprint="other"))
    assert files(tmp_path) == before
    manifest = export_features(FakeSource(), FakeExtractor, Storage(tmp_path), export_options(images_per_shard=4))
    assert set(files(tmp_path)) == whole(manifest)


def test_notes_of_another_version_are_deleted_with_their_shards(tmp_path: Path) -> None:
    (tmp_path / ".progress").mkdir()
    (tmp_path / ".progress" / "one-000.json").write_text('{"scene": {"name": "one", "split": "train"}, "index": 0}')
    (tmp_path / "one-000.h5").write_bytes(b"of an older version")
    manifest = export_features(FakeSource(), FakeExtractor, Storage(tmp_path), export_options())
    assert set(files(tmp_path)) == whole(manifest)


@pytest.mark.parametrize("num_processes", [1, 2])
def test_scenes_that_change_after_an_interruption_are_not_mixed(tmp_path: Path, num_processes: int) -> None:
    """Finished scenes get other pairs, as when missing depth maps are added; nothing stale stays."""
    interrupted(tmp_path / "out", FakeSource(reach=1))
    options = replace(export_options(images_per_shard=4), num_processes=num_processes)
    manifest = export_features(FakeSource(), FakeExtractor, Storage(tmp_path / "out"), options)
    assert manifest == export_features(FakeSource(), FakeExtractor, Storage(tmp_path / "whole"), options)
    assert set(files(tmp_path / "out")) == whole(manifest)
    assert not check_data_set(Storage(tmp_path / "out")).problems


def test_scene_that_changes_while_it_is_exported(tmp_path: Path) -> None:
    """Its parts are loaded one after the other."""

    @dataclass(frozen=True)
    class Changes(FakeSource):
        def load(self, scene: SceneRef) -> FakeScene:
            with (tmp_path / "loaded").open("a") as file:
                file.write(".")
            reach = 3 if (tmp_path / "loaded").stat().st_size > 1 else 2
            return replace(FakeSource(num_views=20), reach=reach).load(scene)

    options = export_options(images_per_shard=5)
    source = Changes(names=(("one", "train"),))
    with pytest.raises(ShardError, match="scene 'one': its images or pairs have changed while it was exported"):
        export_features(source, FakeExtractor, Storage(tmp_path / "out"), options, pool=EachAlone())
    manifest = export_features(source, FakeExtractor, Storage(tmp_path / "out"), options)
    assert set(files(tmp_path / "out")) == whole(manifest)
    assert not check_data_set(Storage(tmp_path / "out")).problems


class EachAlone:
    """Exports parts here, one after the other, and loads the scene for each."""

    slots = 2

    @contextmanager
    def start(self, job: ExportJob) -> Iterator[PartRunner]:
        self.job, self.parts = job, deque[Part]()
        yield self

    def submit(self, parts: Sequence[Part]) -> None:
        self.parts.extend(parts)

    def poll(self) -> tuple[Sequence[Progress], Sequence[Finished]]:
        told: list[Progress] = []
        part = self.parts.popleft()
        return told, [(part, PartExporter(self.job, told.append).export(part))]


def test_of_two_commands_at_the_same_place_the_later_one_goes_on(tmp_path: Path) -> None:
    """Their features differ, as those of other threads do; whatever happens, shards and manifest fit."""
    later: list[Manifest] = []

    def begin_another(done: int, total: int) -> None:
        if done > 8 and not later:
            later.append(export_features(FakeSource(), partial(FakeExtractor, 5), out, options))

    out, options = Storage(tmp_path), export_options(images_per_shard=4)
    with pytest.raises(EnvironmentUnfitError, match=r"another command has begun .* or has ended.*repeat this one"):
        export_features(FakeSource(), FakeExtractor, out, options, begin_another, EachAlone())
    assert read_manifest(out) == later[0]
    assert export_features(FakeSource(), FakeExtractor, out, options) == later[0]
    assert set(files(tmp_path)) == whole(later[0])
    assert not check_data_set(out).problems


def test_a_command_that_was_overtaken_at_its_end_takes_what_is_there(tmp_path: Path) -> None:
    class Overtaken(EachAlone):
        def poll(self) -> tuple[Sequence[Progress], Sequence[Finished]]:
            result = super().poll()
            if not self.parts and not finished:
                finished.append(export_features(FakeSource(), partial(FakeExtractor, 5), out, options))
                out.write(STARTED_NAME, self.job.token.encode())  # too late to be noticed
            return result

    finished: list[Manifest] = []
    out, options = Storage(tmp_path), export_options(images_per_shard=64)
    assert export_features(FakeSource(), FakeExtractor, out, options, pool=Overtaken()) == finished[0]
    assert set(files(tmp_path)) == whole(finished[0])
    assert not check_data_set(out).problems


@dataclass(frozen=True)
class TellsThreads(FakeExtractor):
    """Features that depend on the number of threads, as those of a network do."""

    def __call__(self, image: np.ndarray) -> Features:
        features = super().__call__(image)
        threads = torch.get_num_threads() + 100 * cv2.getNumThreads()
        return replace(features, keypoint_scores=np.full(len(features), threads, np.float32))


def test_bytes_do_not_depend_on_threads(tmp_path: Path) -> None:
    before = torch.get_num_threads(), cv2.getNumThreads()
    torch.set_num_threads(2)
    cv2.setNumThreads(2)
    try:
        alone = export_features(FakeSource(), TellsThreads, Storage(tmp_path / "alone"), export_options())
        with pytest.raises(RaylgError):
            export_features(FakeSource(broken="one"), TellsThreads, Storage(tmp_path / "broken"), export_options())
        assert (torch.get_num_threads(), cv2.getNumThreads()) == (2, 2)
    finally:
        torch.set_num_threads(before[0])
        cv2.setNumThreads(before[1])
    shared = export_features(FakeSource(), TellsThreads, Storage(tmp_path / "b"), export_options(num_processes=2))
    assert alone == shared
    scores = read_shard(tmp_path / "alone" / alone.shards[0].file).keypoint_scores
    assert (scores == 101).all()


def test_scenes_without_pairs_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    @dataclass(frozen=True)
    class OneEmpty(FakeSource):
        def load(self, scene: SceneRef) -> FakeScene:
            return replace(FakeSource(), reach=0 if scene.name == "two" else 2).load(scene)

    manifest = export_features(OneEmpty(), FakeExtractor, Storage(tmp_path / "some"), export_options())
    assert "1 of 3 scenes have no pair of images: two" in caplog.text
    assert {entry.scene for entry in manifest.shards} == {"one", "three"}
    with pytest.raises(ConfigError, match=r"none of the 3 scenes has a pair.*data\.min_overlap"):
        export_features(FakeSource(reach=0), FakeExtractor, Storage(tmp_path / "none"), export_options())


@pytest.mark.parametrize("names", [(), (("a", "train"), ("a", "val"))])
def test_names_of_scenes(tmp_path: Path, names: tuple[tuple[str, str], ...]) -> None:
    with pytest.raises(ConfigError, match="share a name: a" if names else "no scenes"):
        export_features(FakeSource(names=names), FakeExtractor, Storage(tmp_path), export_options())


def test_data_hash_follows_the_extractor(tmp_path: Path) -> None:
    first = export_features(FakeSource(), FakeExtractor, Storage(tmp_path / "a"), export_options())
    other = export_features(FakeSource(), partial(FakeExtractor, 5), Storage(tmp_path / "b"), export_options())
    assert data_hash(first) != data_hash(other)


def test_bytes_do_not_depend_on_processes_and_parts(tmp_path: Path) -> None:
    source = FakeSource(names=(("large", "train"), ("empty", "train")), num_views=40, reach=3)
    manifests = {}
    for num_processes in (1, 3):
        out, told = tmp_path / str(num_processes), []
        options = export_options(images_per_shard=6, num_processes=num_processes)
        manifests[num_processes] = export_features(
            source, FakeExtractor, Storage(out), options, lambda *p, told=told: told.append(p)
        )
        assert told[-1] == (80, 80)
        assert [done for done, _ in told] == sorted(done for done, _ in told)
        assert set(files(out)) == whole(manifests[num_processes])
    assert manifests[1] == manifests[3]
    assert len(manifests[1].shards) > 12


@dataclass(frozen=True)
class SaysWho:
    path: Path

    def __call__(self, image: np.ndarray) -> Features:
        with self.path.open("a") as file:
            file.write(f"{os.getpid()}\n")
        time.sleep(0.05)
        return FakeExtractor()(image)


def test_scene_that_is_alone_is_shared_by_processes(tmp_path: Path) -> None:
    log = tmp_path / "log"
    source = FakeSource(names=(("large", "train"),), num_views=40, reach=3, log=log)
    alone = export_features(source, FakeExtractor, Storage(tmp_path / "a"), export_options(images_per_shard=6))
    assert len(log.read_text().split()) == 40
    make = partial(SaysWho, tmp_path / "pids")
    shared = export_features(source, make, Storage(tmp_path / "b"), export_options(images_per_shard=6, num_processes=2))
    assert shared == alone
    assert len(set((tmp_path / "pids").read_text().split())) >= 2


PROGRAM = """
    import sys, time
    from raylg.data.export import export_features
    from raylg.data.storage import Storage
    from tests.unit.data.scenes import FakeExtractor, FakeSource, export_options

    class Slow(FakeExtractor):
        def __call__(self, image):
            time.sleep(0.05)
            return super().__call__(image)

    if __name__ == "__main__":
        options = export_options(images_per_shard=7, num_processes=2)
        source = FakeSource(names=(("a", "train"), ("b", "val")), num_views=60)
        export_features(source, Slow, Storage(sys.argv[1]), options)
"""


def test_killed_parent_leaves_no_process_and_its_work_is_continued(tmp_path: Path) -> None:
    out, script = tmp_path / "out", tmp_path / "program.py"
    script.write_text(textwrap.dedent(PROGRAM))
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    parent = subprocess.Popen([sys.executable, str(script), str(out)], env=environment, stderr=subprocess.DEVNULL)
    try:
        await_true(lambda: len(list(out.glob("*.h5"))) >= 2, 60)
        children = Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text().split()
        assert len(children) >= 2
    finally:
        parent.kill()
        parent.wait()
    await_true(lambda: not any(is_running(pid) for pid in children), 10)
    noted = {path.stem for path in (out / ".progress").glob("*.json")}
    kept = {path.name: path.stat().st_mtime_ns for path in out.glob("*.h5") if path.stem in noted}
    log = tmp_path / "log"
    source = FakeSource(names=(("a", "train"), ("b", "val")), num_views=60, log=log)
    options = export_options(images_per_shard=7)
    manifest = export_features(source, FakeExtractor, Storage(out), options)
    assert len(log.read_text().split()) < 120
    assert manifest == export_features(replace(source, log=None), FakeExtractor, Storage(tmp_path / "whole"), options)
    assert {name: (out / name).stat().st_mtime_ns for name in kept} == kept
    assert set(files(out)) == whole(manifest)


def await_true(condition: Callable[[], bool], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.02)


def is_running(pid: str) -> bool:
    status = Path(f"/proc/{pid}/status")
    return status.exists() and "\nState:\tZ" not in status.read_text()

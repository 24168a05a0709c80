from __future__ import annotations

import json
import shutil
import threading
from pathlib import Path

import pytest

from raylg.data.storage import Storage
from raylg.errors import CheckpointError, ConfigError, EnvironmentUnfitError
from raylg.schema import override
from raylg.training import run_directory
from raylg.training.config import RunConfig
from raylg.training.mirror import Mirror, restore, resume_point, storage_of


class Run:
    """A run directory whose reports are made by hand."""

    def __init__(self, workdir: Path) -> None:
        self.workdir = workdir

    def report(self, pairs: int, best: int, rungs: tuple[int, ...] = ()) -> None:
        path = self.workdir / "checkpoints" / run_directory.name(pairs)
        path.mkdir(parents=True)
        for file in ("state.pt", "lightglue.pth", "config.json", "metrics.json", "best.json"):
            (path / file).write_text(f"{file} of {pairs}")
        with (self.workdir / "metrics.jsonl").open("a") as file:
            file.write(f"{pairs}\n")
        (self.workdir / "pairs.npz").write_text(f"scores of {pairs}")
        (self.workdir / "events.1").write_text("curve" * pairs)
        (self.workdir / "log.txt").write_text("stays here")
        run_directory.prune(self.workdir, run_directory.name(pairs), run_directory.name(best), rungs)

    def files(self) -> dict[str, str]:
        """Name and content of all that a copy holds."""
        files = [path for path in self.workdir.rglob("*") if path.is_file() and path.name != "log.txt"]
        return {str(path.relative_to(self.workdir)): path.read_text() for path in files}


@pytest.fixture
def run(tmp_path):
    return Run(tmp_path / "here" / "run")


@pytest.fixture
def storage(tmp_path):
    return Storage(tmp_path / "copies" / "run")


@pytest.fixture
def mirror(run, storage):
    result = Mirror(run.workdir, storage)
    yield result
    result.close()


def copy(mirror: Mirror) -> None:
    mirror.start()
    mirror.wait()


def test_copy_is_the_run_directory_elsewhere(tmp_path, run, storage, mirror):
    for pairs, best in ((10, 10), (20, 20), (30, 20), (40, 20)):
        run.report(pairs, best, rungs=(5,))
        copy(mirror)
    there = Run(tmp_path / "there" / "run")
    assert restore(storage, there.workdir)
    assert there.files() == run.files()
    last = run_directory.latest(there.workdir)
    assert last.name == run_directory.name(40)
    assert (last / "state.pt").exists()
    assert len([name for name in storage.sizes() if name.endswith("state.pt")]) == 1
    folders = {name.split("/")[0] for name in storage.sizes()}
    assert folders == {"mirror.json", *(run_directory.name(pairs) for pairs in (10, 20, 40))}
    assert not restore(storage, there.workdir)  # nothing later there


def test_nothing_is_copied_twice(run, storage, mirror, monkeypatch):
    run.report(10, 10)
    copy(mirror)
    written = []
    write = Storage.write

    def note(self, name, data):
        written.append(name)
        write(self, name, data)

    monkeypatch.setattr(Storage, "write", note)
    run.report(20, 10)
    copy(mirror)
    assert all(name.startswith((run_directory.name(20), "mirror.json")) for name in written)
    assert written[-1] == "mirror.json"
    written.clear()
    copy(mirror)
    assert written == []


def test_copy_that_was_cut_short_leaves_the_one_before(tmp_path, run, storage, mirror, monkeypatch):
    run.report(10, 10)
    copy(mirror)
    before = run.files()
    run.report(20, 10)
    write = Storage.write

    def fail_last(self, name, data):
        if name == "mirror.json":
            raise EnvironmentUnfitError("the bucket does not answer")
        write(self, name, data)

    monkeypatch.setattr(Storage, "write", fail_last)
    mirror.start()
    mirror.settle()
    with pytest.raises(EnvironmentUnfitError, match="does not answer"):
        mirror.start()
    monkeypatch.undo()
    there = Run(tmp_path / "there" / "run")
    assert restore(storage, there.workdir)
    assert there.files() == before
    copy(mirror)  # put right
    assert restore(storage, there.workdir)
    run_directory.prune(there.workdir, run_directory.name(20), run_directory.name(10))  # as the run does when it starts
    assert there.files() == run.files()


def test_run_goes_on_while_it_is_copied(run, storage, mirror, monkeypatch):
    run.report(10, 10)
    event, write = threading.Event(), Storage.write

    def wait_and_write(self, name, data):
        assert event.wait(30)
        write(self, name, data)

    monkeypatch.setattr(Storage, "write", wait_and_write)
    mirror.start()
    assert storage.sizes() == {}
    event.set()
    mirror.wait()
    assert "mirror.json" in storage.sizes()


def test_restoring_that_was_cut_short_is_repeated(tmp_path, run, storage, mirror, monkeypatch):
    run.report(10, 10)
    run.report(20, 10)
    copy(mirror)
    read, there = Storage.read, Run(tmp_path / "there" / "run")

    def fail_late(self, name, size=None):
        if name.endswith("000020/state.pt"):
            raise EnvironmentUnfitError("the bucket does not answer")
        return read(self, name, size)

    monkeypatch.setattr(Storage, "read", fail_late)
    with pytest.raises(EnvironmentUnfitError):
        restore(storage, there.workdir)
    monkeypatch.undo()
    assert run_directory.latest(there.workdir).name == run_directory.name(10)  # which does not count: the copy is later
    assert restore(storage, there.workdir)
    assert there.files() == run.files()


def test_what_a_killed_process_left_is_not_taken_for_part_of_a_checkpoint(tmp_path, run, storage, mirror):
    run.report(10, 10)
    run.report(20, 10)
    copy(mirror)
    there = Run(tmp_path / "there" / "run")
    begun = there.workdir / "checkpoints" / f".{run_directory.name(10)}.partial"
    begun.mkdir(parents=True)
    (begun / "state.pt").write_text("half-writ")
    assert restore(storage, there.workdir)
    assert there.files() == run.files()


def test_copy_that_another_process_replaces_while_it_is_read(tmp_path, run, storage, mirror, monkeypatch):
    run.report(10, 10)
    copy(mirror)
    read = Storage.read

    def replace_first(self, name, size=None):
        monkeypatch.setattr(Storage, "read", read)
        run.report(20, 20)
        copy(mirror)
        return read(self, name, size)

    monkeypatch.setattr(Storage, "read", replace_first)
    assert restore(storage, tmp_path / "there")  # of two copies, either will do
    assert run_directory.latest(tmp_path / "there").name == run_directory.name(20)

    def delete_first(self, name, size=None):
        if name.endswith("lightglue.pth"):
            self.delete(name)
        return read(self, name, size)

    monkeypatch.setattr(Storage, "read", delete_first)
    with pytest.raises(CheckpointError, match=r"changed while it was read .*no such file.*; another process writes"):
        restore(storage, tmp_path / "elsewhere")
    assert run_directory.latest(tmp_path / "elsewhere") is None


def test_later_checkpoints_win(tmp_path, run, storage, mirror):
    run.report(10, 10)
    copy(mirror)
    run.report(20, 20)
    assert not restore(storage, run.workdir)
    assert run_directory.latest(run.workdir).name == run_directory.name(20)
    there = Run(tmp_path / "there" / "run")
    there.report(5, 5)
    assert restore(storage, there.workdir)
    assert run_directory.latest(there.workdir).name == run_directory.name(10)


def test_two_processes_that_write_to_one_place_are_noticed(tmp_path, run, storage, mirror):
    run.report(10, 10)
    copy(mirror)
    there = Run(tmp_path / "there" / "run")
    restore(storage, there.workdir)
    there.report(20, 10)
    other = Mirror(there.workdir, storage)
    copy(other)
    other.close()
    run.report(30, 10)
    with pytest.raises(CheckpointError, match="changed by another process since the last report"):
        copy(mirror)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: (folder / run_directory.name(10) / "state.pt").unlink(), "state.pt: missing or cut off"),
        (lambda folder: (folder / run_directory.name(10) / "state.pt").write_text("cut"), "missing or cut off"),
        (lambda folder: (folder / "mirror.json").write_text("{"), "mirror.json: damaged"),
        (lambda folder: (folder / "mirror.json").write_text(json.dumps({"format": 9})), "a copy of format 9"),
    ],
)
def test_damaged_copy_is_refused(tmp_path, run, storage, mirror, change, message):
    run.report(10, 10)
    copy(mirror)
    change(storage.local)
    with pytest.raises(CheckpointError, match=message):
        restore(storage, tmp_path / "there")
    assert run_directory.latest(tmp_path / "there") is None


def test_other_files_in_the_place_are_left_alone(run, storage, mirror):
    storage.write("notes/pairs-1.txt", b"mine")
    storage.write("pairs.npz", b"mine")
    run.report(10, 10)
    copy(mirror)
    run.report(20, 20)
    copy(mirror)
    assert {"notes/pairs-1.txt", "pairs.npz"} <= storage.sizes().keys()


def test_copy_is_in_a_folder_named_like_the_run(tmp_path):
    def place(url: str | None) -> Storage | None:
        return storage_of(override(RunConfig(), {"train.checkpoint_storage": url}), tmp_path / "runs" / "a")

    assert place(None) is None
    assert place("s3://bucket/x").url == "s3://bucket/x/a"
    assert place(str(tmp_path / "copies")).local == tmp_path / "copies" / "a"
    for within in ("runs", "runs/a"):
        with pytest.raises(ConfigError, match="would lie in it; give a folder elsewhere"):
            place(str(tmp_path / within))


def test_run_continues_from_its_directory_or_from_the_copy(tmp_path, run, storage, mirror):
    config = override(RunConfig(), {"train.checkpoint_storage": str(storage.local.parent)})
    assert resume_point(config, run.workdir) is None
    run.report(10, 10)
    copy(mirror)
    last = run_directory.latest(run.workdir)
    assert resume_point(config, run.workdir) == last
    shutil.rmtree(run.workdir)
    assert resume_point(override(config, {"train.checkpoint_storage": None}), run.workdir) is None
    assert resume_point(config, run.workdir) == last
    assert (last / "state.pt").read_text() == "state.pt of 10"

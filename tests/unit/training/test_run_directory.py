from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from raylg.errors import CheckpointError, ConfigError
from raylg.training import run_directory
from raylg.training.run_directory import Best


def checkpoint(workdir: Path, pairs: int, best: int | None = None) -> Path:
    """A checkpoint of empty files."""
    path = workdir / "checkpoints" / run_directory.name(pairs)
    path.mkdir(parents=True)
    for file in ("state.pt", "lightglue.pth", "config.json"):
        (path / file).touch()
    name = run_directory.name(pairs if best is None else best)
    (path / "best.json").write_text(run_directory.format_best(Best(score=0.5, name=name)))
    return path


def kept(workdir: Path) -> dict[int, bool]:
    """Pairs seen of each checkpoint, and whether it continues the run."""
    found = run_directory.checkpoints(workdir)
    return {run_directory.pairs_of(path.name): (path / "state.pt").exists() for path in found}


def test_last_is_kept_whole_best_and_rungs_for_their_weights(tmp_path):
    for pairs in (10, 20, 30, 40, 50):
        checkpoint(tmp_path, pairs)
        run_directory.prune(tmp_path, run_directory.name(pairs), run_directory.name(min(pairs, 40)), rungs=(15, 30, 90))
    assert kept(tmp_path) == {20: False, 30: False, 40: False, 50: True}
    assert run_directory.latest(tmp_path).name == run_directory.name(50)


def test_rung_that_was_not_kept_is_the_first_checkpoint_after_it(tmp_path):
    for pairs in (10, 40, 50):
        checkpoint(tmp_path, pairs)
    run_directory.prune(tmp_path, run_directory.name(50), rungs=(20, 30))
    assert kept(tmp_path) == {40: False, 50: True}


def test_later_checkpoints_and_halves_are_deleted_and_other_files_are_not(tmp_path):
    for pairs in (10, 20, 30):
        checkpoint(tmp_path, pairs)
    folder = tmp_path / "checkpoints"
    for half in (".pairs-000000000040.partial", ".pairs-000000000010.deleted"):
        (folder / half).mkdir()
        (folder / half / "state.pt").touch()
    (folder / "pairs-000000000020-copy").mkdir()  # of the user
    assert run_directory.latest(tmp_path).name == run_directory.name(30)
    run_directory.prune(tmp_path, run_directory.name(20), run_directory.name(20), rungs=(25,))
    assert sorted(path.name for path in folder.iterdir()) == [
        run_directory.name(20),
        "pairs-000000000020-copy",
    ]
    run_directory.prune(tmp_path, None)
    assert kept(tmp_path) == {}


def test_empty_directory_has_no_checkpoint(tmp_path):
    assert run_directory.latest(tmp_path) is None
    run_directory.prune(tmp_path, None)


@pytest.mark.parametrize(("which", "pairs"), [("last", 30), ("best", 20), ("pairs-000000000010", 10)])
def test_checkpoint_of_a_run_is_found_by_its_role_or_name(tmp_path, which, pairs):
    for each in (10, 20, 30):
        checkpoint(tmp_path, each, best=20)
    expected = tmp_path / "checkpoints" / run_directory.name(pairs) / "lightglue.pth"
    assert run_directory.find_weights(tmp_path, which) == expected
    assert run_directory.find_weights(expected) == expected
    assert run_directory.find_weights(expected.parent) == expected


def test_checkpoint_that_is_not_there_is_named(tmp_path):
    with pytest.raises(CheckpointError, match="no checkpoint in it"):
        run_directory.find_weights(tmp_path)
    with pytest.raises(CheckpointError, match="gone: no such checkpoint"):
        run_directory.find_weights(tmp_path / "gone")
    path = checkpoint(tmp_path, 10)
    with pytest.raises(CheckpointError, match="'pairs-7' is not kept; choose one of last, best, pairs-000000000010"):
        run_directory.find_weights(tmp_path, "pairs-7")
    with pytest.raises(CheckpointError, match="holds one set of weights; 'best'"):
        run_directory.find_weights(path, "best")
    (path / "best.json").unlink()
    with pytest.raises(CheckpointError, match="unknown which checkpoint is the best"):
        run_directory.find_weights(tmp_path, "best")


HOLD = """
import sys, time
from pathlib import Path
from raylg.training.run_directory import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_run_directory_is_held_until_its_process_ends_even_killed(tmp_path):
    root = str(Path(__file__).resolve().parents[3])
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "run")],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": root},
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        message = "another process is training this run; wait for it, or choose another"
        with pytest.raises(ConfigError, match=message), run_directory.locked(tmp_path / "run"):
            pytest.fail("two hold one directory")
        with run_directory.locked(tmp_path / "other"):
            pass
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    with run_directory.locked(tmp_path / "run"):
        pass
    with run_directory.locked(tmp_path / "run"):
        pass

"""What lies where in a run directory; free of torch, so that commands answer quickly.

    runs/posed/
        metrics.jsonl             one line per report
        pairs.npz, events.*       scores of single pairs at the last report, TensorBoard
        checkpoints/
            pairs-000000004096/   a rung or the best: weights, configuration and metrics
            pairs-000000012800/   the last: also all state of the trainer

A directory under its final name is complete: it is written under another name, flushed to disk and renamed.
"""

from __future__ import annotations

import fcntl
import json
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from raylg.errors import CheckpointError, ConfigError, EnvironmentUnfitError

FOLDER = "checkpoints"
STATE, CONFIG, METRICS, BEST = "state.pt", "config.json", "metrics.json", "best.json"
WEIGHTS = "lightglue.pth"
LOCK = ".lock"
_PREFIX = "pairs-"
_NAME = re.compile(rf"{_PREFIX}\d+")


@dataclass(frozen=True, kw_only=True)
class Best:
    """The best report of a run so far."""

    score: float = -1.0
    """Below every score where there was no report yet."""
    name: str = ""
    """Directory name of its checkpoint."""


def name(pairs_seen: int) -> str:
    """Directory name of a checkpoint; sorts by pairs seen."""
    return f"{_PREFIX}{pairs_seen:012d}"


def pairs_of(checkpoint: str) -> int:
    """Pairs seen, from the directory name of a checkpoint."""
    return int(checkpoint.removeprefix(_PREFIX))


def checkpoints(workdir: Path) -> list[Path]:
    """Complete checkpoints of a run directory, oldest first."""
    return sorted(path for path in (workdir / FOLDER).glob(f"{_PREFIX}*") if _NAME.fullmatch(path.name))


def latest(workdir: Path) -> Path | None:
    """The last complete checkpoint of a run directory, the one that continues it; None when there is none yet."""
    return max(checkpoints(workdir), default=None)


def read_best(checkpoint: Path) -> Best:
    """The best report up to and including that of a checkpoint.

    Raises:
        CheckpointError: the checkpoint does not say.
    """
    file = checkpoint / BEST
    if not file.is_file():
        raise CheckpointError(
            f"{file}: missing, so it is unknown which checkpoint is the best; name one of {checkpoint.parent}"
        )
    return Best(**json.loads(file.read_text()))


def format_best(best: Best) -> str:
    """The inverse of `read_best`: the text of the file."""
    return json.dumps(asdict(best)) + "\n"


def find_weights(path: Path, which: str = "last") -> Path:
    """The weights file that a path given by the user stands for.

    Args:
        path: a weights file, a checkpoint, or a run or trial directory.
        which: checkpoint of a run directory: ``last``, ``best``, or its directory name. The last one's metrics are the
            final metrics of the run.

    Raises:
        CheckpointError: nothing there; or `which` for something that is no run directory.
    """
    if not path.exists():
        raise CheckpointError(f"{path}: no such checkpoint, run directory or weights file")
    if path.is_file() or (path / WEIGHTS).is_file():
        if which != "last":
            raise CheckpointError(f"{path}: holds one set of weights; {which!r} is taken of a run directory only")
        return path if path.is_file() else path / WEIGHTS
    last = latest(path)
    if last is None:
        raise CheckpointError(f"{path}: no checkpoint in it; give a run or trial directory, or a LightGlue .pth file")
    if which == "last":
        return last / WEIGHTS
    file = last.with_name(read_best(last).name if which == "best" else which) / WEIGHTS
    if not file.is_file():
        kept = ", ".join(["last", "best", *(checkpoint.name for checkpoint in checkpoints(path))])
        raise CheckpointError(f"{path}: checkpoint {which!r} is not kept; choose one of {kept}")
    return file


def prune(workdir: Path, last: str | None, best: str = "", rungs: Iterable[int] = ()) -> None:
    """Keep of a run directory what continues it, and the weights of its best and of its rungs; delete the rest.

    Args:
        workdir: run directory.
        last: directory name of the checkpoint that continues the run, kept whole; None keeps nothing. Later ones are of
            a past that the run replaces.
        best: directory name of the best checkpoint.
        rungs: in pairs seen; each keeps the first checkpoint at or after it.
    """
    past = [path.name for path in checkpoints(workdir) if last is not None and path.name <= last]
    kept = set() if last is None else {last, best}
    for rung in rungs:
        kept.update(next(([each] for each in past if pairs_of(each) >= rung), []))
    for path in (workdir / FOLDER).glob(f".{_PREFIX}*"):  # half-written or half-deleted
        shutil.rmtree(path)
    for path in checkpoints(workdir):
        if path.name not in kept:
            shutil.rmtree(path.rename(path.with_name(f".{path.name}.deleted")))  # never seen in part
        elif path.name != last:
            (path / STATE).unlink(missing_ok=True)


@contextmanager
def locked(workdir: Path) -> Iterator[None]:
    """Hold a run directory against other processes for the length of a ``with`` block; the lock ends with the process.

    Raises:
        ConfigError: another process holds it.
        EnvironmentUnfitError: its file system has no locks.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    with (workdir / LOCK).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError(
                f"{workdir}: another process is training this run; wait for it, or choose another --name"
            ) from error
        except OSError as error:
            raise EnvironmentUnfitError(
                f"{workdir}: cannot be locked ({error.strerror}); train in a folder whose file system has locks"
            ) from error
        yield

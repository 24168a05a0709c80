"""A copy of a run directory in a folder or bucket, brought up to date after each report while the run goes on.

    <train.checkpoint_storage>/<name of the run directory>/
        mirror.json                   which files make up the copy, written last
        pairs-000000004096/           a checkpoint kept for its weights (best, rung)
        pairs-000000012800/           the last checkpoint
        pairs-000000012800/records/   metrics.jsonl, TensorBoard events and scores as they were at its report

No file that `mirror.json` names is ever written again, so that the copy is whole whenever the process is killed.
"""

from __future__ import annotations

import json
import logging
import re
import shutil
from collections.abc import Iterator, Mapping
from concurrent import futures
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from raylg.data.storage import Storage, write_atomically
from raylg.errors import CheckpointError, ConfigError, EnvironmentUnfitError, ShardError
from raylg.training.config import RunConfig
from raylg.training.run_directory import FOLDER, checkpoints, latest, pairs_of

FORMAT = 1
INDEX = "mirror.json"
RECORDS = "records"
RECORD_PATTERNS = ("metrics.jsonl", "pairs*.npz", "events.*")
_OURS = re.compile(r"pairs-\d+/")

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Index:
    """What `mirror.json` says."""

    last: str
    """Directory name of the checkpoint that continues the run."""
    files: Mapping[str, int]
    """Bytes of every file of the copy."""

    def encode(self) -> bytes:
        return json.dumps({"format": FORMAT, "last": self.last, "files": dict(self.files)}, indent=1).encode()


def storage_of(config: RunConfig, workdir: Path) -> Storage | None:
    """Where the copy of a run directory is; None without `train.checkpoint_storage`.

    Raises:
        ConfigError: it lies within the run directory, or is the run directory.
    """
    url = config.train.checkpoint_storage
    if url is None:
        return None
    storage = Storage(url, config.data.storage).join(workdir.resolve().name)
    if storage.local is not None and storage.local.resolve().is_relative_to(workdir.resolve()):
        raise ConfigError(
            f"train.checkpoint_storage = {url!r}: the copy of {workdir} would lie in it; give a folder elsewhere"
        )
    return storage


def resumes(config: RunConfig, workdir: Path) -> bool:
    """Whether a checkpoint continues a run, one of its directory or of the copy; brings nothing here.

    Raises:
        See `storage_of`; EnvironmentUnfitError: the storage refuses or does not answer.
    """
    storage = storage_of(config, workdir)
    return latest(workdir) is not None or (storage is not None and storage.exists(INDEX))


def resume_point(config: RunConfig, workdir: Path) -> Path | None:
    """The checkpoint that continues a run: the last of its directory, after a later copy was brought there.

    Raises:
        See `storage_of` and `restore`.
    """
    storage = storage_of(config, workdir)
    if storage is not None:
        restore(storage, workdir)
    return latest(workdir)


def restore(storage: Storage, workdir: Path) -> bool:
    """Bring the copy into a run directory that has no checkpoint, or none as late as the copy's last.

    Returns:
        Whether anything was copied.

    Raises:
        CheckpointError: the copy is of another format, files of it are missing, or another process writes there.
        EnvironmentUnfitError: the storage or the disk refuses, or the storage does not answer.
    """
    index = _read_index(storage)
    here = latest(workdir)
    if index is None or (here is not None and here.name >= index.last):
        return False
    found = storage.sizes("pairs-")
    missing = [name for name, size in index.files.items() if found.get(name) != size]
    if missing:
        raise CheckpointError(
            f"{storage.describe(missing[0])}: missing or cut off, so the run cannot be continued from there; bring it "
            f"back, or delete {storage.describe(INDEX)} to start the run anew"
        )
    _LOG.info("continuing from the copy in %s", storage.url)
    prefix = f"{index.last}/{RECORDS}/"
    try:
        for name in index.files:
            if name.startswith(prefix):
                _save(workdir / name.removeprefix(prefix), storage.read(name, index.files[name]))
        for checkpoint in sorted({name.partition("/")[0] for name in index.files}):  # the last one last
            _restore_checkpoint(storage, index, checkpoint, workdir / FOLDER)
    except ShardError as error:  # there a moment ago
        raise CheckpointError(
            f"{storage.url}: changed while it was read ({error}); another process writes there: end it, or choose "
            "another --name"
        ) from error
    except OSError as error:
        raise EnvironmentUnfitError(
            f"{workdir}: the copy in {storage.url} cannot be written here ({error.strerror}); free some space or check "
            "the folder's permissions, then repeat the command"
        ) from error
    return True


class Mirror:
    """Keeps the copy of one run directory.

    Args:
        workdir: run directory.
        storage: of `storage_of`.
    """

    def __init__(self, workdir: Path, storage: Storage) -> None:
        self._workdir, self._storage = workdir, storage
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="mirror-run")
        self._copying: Future[None] | None = None
        self._written: bytes | None = None

    def start(self) -> None:
        """Start to copy the run directory as it is; until `settle` returns, nothing may be deleted or replaced in it.

        Raises:
            EnvironmentUnfitError, CheckpointError: the copy before failed, see `wait`.
        """
        self.wait()
        last = latest(self._workdir)
        assert last is not None, "a run is copied after it wrote a checkpoint"
        self._copying = self._thread.submit(self._copy, last.name)

    def settle(self) -> None:
        """Wait until the copy that was started is whole or has failed; `wait` says which."""
        if self._copying is not None:
            futures.wait([self._copying])

    def wait(self) -> None:
        """Wait until the copy that was started is whole.

        Raises:
            EnvironmentUnfitError: the storage refuses, is full, or does not take it before the deadline.
            CheckpointError: another process writes to the same place.
        """
        copying, self._copying = self._copying, None
        if copying is not None:
            copying.result()

    def close(self) -> None:
        """End the thread after what it is copying; an error of it is dropped, so call `wait` first."""
        self._thread.shutdown(wait=True)

    def _copy(self, last: str) -> None:
        storage = self._storage
        before = _read_index(storage)
        self._check_alone(before)
        if before is not None and before.last == last:  # the run was ended and continued since
            self._written = before.encode()
            return
        there = storage.sizes("pairs-")
        files = {}
        for name, path in self._files(last):
            size = there.get(name)
            if before is None or size is None or before.files.get(name) != size:
                data = path.read_bytes()
                storage.write(name, data)
                size = len(data)
            files[name] = size
        index = _Index(last, files)
        storage.write(INDEX, index.encode())
        self._written = index.encode()
        for name in there.keys() - files.keys():
            if _OURS.match(name):
                storage.delete(name)

    def _files(self, last: str) -> Iterator[tuple[str, Path]]:
        """Name in the copy and path here."""
        for checkpoint in checkpoints(self._workdir):
            for path in sorted(checkpoint.iterdir()):
                yield f"{checkpoint.name}/{path.name}", path
        for pattern in RECORD_PATTERNS:
            for path in sorted(self._workdir.glob(pattern)):
                yield f"{last}/{RECORDS}/{path.name}", path

    def _check_alone(self, before: _Index | None) -> None:
        if self._written is not None and (before is None or before.encode() != self._written):
            raise CheckpointError(
                f"{self._storage.describe(INDEX)}: changed by another process since the last report; one run may write "
                "there at a time: end the other, or choose another --name"
            )


def _restore_checkpoint(storage: Storage, index: _Index, checkpoint: str, folder: Path) -> None:
    """Copy one checkpoint; it gets its name when it is whole."""
    final = folder / checkpoint
    if final.exists():
        return
    partial = folder / f".{checkpoint}.partial"
    shutil.rmtree(partial, ignore_errors=True)  # of a process that was killed, which may have had other files
    for name, size in index.files.items():
        parts = name.split("/")
        if parts[0] == checkpoint and len(parts) == 2:
            _save(partial / parts[1], storage.read(name, size))
    partial.rename(final)


def _save(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, data)


def _read_index(storage: Storage) -> _Index | None:
    """None where there is no copy.

    Raises:
        CheckpointError: not a copy that this version reads.
        EnvironmentUnfitError: the storage refuses or does not answer.
    """
    if not storage.exists(INDEX):
        return None
    where = storage.describe(INDEX)
    try:
        values = json.loads(storage.read(INDEX))  # whatever its size is by now
        if values["format"] != FORMAT:
            raise CheckpointError(
                f"{where}: a copy of format {values['format']!r}, this version of raylg reads {FORMAT}; choose another "
                "--name or train.checkpoint_storage"
            )
        pairs_of(values["last"])
        return _Index(values["last"], {str(name): int(length) for name, length in values["files"].items()})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{where}: damaged ({type(error).__name__}: {error}); delete it to start the run anew"
        ) from error

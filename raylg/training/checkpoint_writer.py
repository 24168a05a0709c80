"""Writes checkpoints beside the run: the state in a thread while the run validates, the metrics and the name after it.

The run waits for a copy of the state in memory, and for what is left to write when the validation is over. A
checkpoint gets its name, and its report is made, only when all of it is on disk.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from raylg.data.storage import NO_SPACE
from raylg.errors import EnvironmentUnfitError
from raylg.models.lightglue import LightGlue
from raylg.models.pretrained import official_state_dict
from raylg.training import checkpoint as checkpoints
from raylg.training import run_directory
from raylg.training.config import RunConfig
from raylg.training.run_directory import Best


class CheckpointWriter:
    """Writes the checkpoints of one run, one at a time.

    Args:
        workdir: run directory.
        config: stored in every checkpoint.
    """

    def __init__(self, workdir: Path, config: RunConfig) -> None:
        self._folder, self._config = workdir / run_directory.FOLDER, config
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="write-checkpoint")
        self._writing: Future[None] | None = None
        self._partial: Path | None = None

    def begin(self, state: Mapping[str, Any], matcher: LightGlue) -> None:
        """Copy the state and start to write it; what is copied may change as soon as this returns.

        Args:
            state: tensors on any device, numbers, strings and containers of them; must hold ``pairs_seen``.
            matcher: whose weights are validated.
        """
        assert self._writing is None, "the checkpoint before was neither finished nor closed"
        self._partial = self._folder / f".{run_directory.name(state['pairs_seen'])}.partial"
        self._writing = self._thread.submit(
            checkpoints.write_state, self._partial, snapshot(state), official_state_dict(matcher), self._config
        )

    def finish(self, metrics: Mapping[str, float], best: Best) -> Path:
        """Wait for what `begin` started, add what the validation gave, and return the directory: it is whole.

        Raises:
            EnvironmentUnfitError: the disk is full, or refuses.
        """
        assert self._writing is not None, "no checkpoint was begun"
        assert self._partial is not None
        with explained(self._partial):
            self._writing.result()
            done = checkpoints.complete(self._partial, metrics, best)
        self._writing = None
        return done

    def close(self) -> None:
        """Delete a checkpoint that was begun and not finished, and end the thread."""
        self._thread.shutdown(wait=True, cancel_futures=True)
        if self._writing is not None and self._partial is not None:
            shutil.rmtree(self._partial, ignore_errors=True)
        self._writing = None


def snapshot(value: Any) -> Any:
    """Copies of all tensors in nested mappings and sequences, on the CPU; everything else as it is."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, Mapping):
        return {key: snapshot(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(snapshot(each) for each in value)
    return value


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn what the file system says about writing a run directory into a message for people.

    Args:
        path: what is written.

    Raises:
        EnvironmentUnfitError: instead of any OSError.
    """
    try:
        yield
    except OSError as error:
        what = "the disk is full: free some space" if error.errno in NO_SPACE else "check the folder's permissions"
        raise EnvironmentUnfitError(
            f"{error.filename or path}: cannot be written ({error.strerror}); {what}, then repeat the command: it "
            "continues from the last checkpoint"
        ) from error

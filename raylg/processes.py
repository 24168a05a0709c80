"""Processes that work for another one, as those of a pool do, or once."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import connection
from typing import TypeVar

import torch

from raylg.errors import EnvironmentUnfitError

T = TypeVar("T")
R = TypeVar("R")


def apart(work: Callable[[T], R], argument: T) -> R:
    """Call a function in a process of its own, which takes its memory and its use of a GPU with it when it ends.

    Args:
        work: of a module, so that the process finds it; what it raises is raised here.
        argument: travels there.

    Raises:
        EnvironmentUnfitError: the process was killed.
    """
    try:
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), prepare_worker) as pool:
            return pool.submit(work, argument).result()
    except BrokenProcessPool as error:
        raise EnvironmentUnfitError(
            f"{work.__name__}: its process was killed, most likely for lack of memory; close other programs, or lower "
            "what it needs (data.num_keypoints, model.matcher)"
        ) from error


def prepare_worker() -> None:
    """Set this process up to work for its parent: one thread per library, and no life after the parent's."""
    os.environ["OMP_NUM_THREADS"] = "1"  # for libraries that are loaded later
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the parent says when to stop
    parent = multiprocessing.parent_process()
    assert parent is not None, "not a process of a pool"
    threading.Thread(target=_exit_after, args=(parent.sentinel,), daemon=True).start()


def _exit_after(sentinel: int) -> None:
    connection.wait([sentinel])
    os._exit(1)  # a killed parent leaves nobody who would end this process

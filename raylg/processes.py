"""Processes that work for another one, as those of a pool do."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from multiprocessing import connection

import torch


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

"""What a call costs: growth of the resident peak, exactly, and least processor time of several runs. Linux only.

Each measurement has a process of its own, so that no allocator keeps what another call left behind. The kernel counts
the largest resident size (VmHWM in ``/proc/self/status``) and starts anew when 5 is written to
``/proc/self/clear_refs``. Memory and time are measured in different processes, because giving every freed block back to
the kernel, which makes the first exact, makes the second slow. Processor time of one thread is time on the clock where
nothing else runs, and changes little where something does.
"""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

_M_MMAP_THRESHOLD = -3  # of mallopt(3)


@dataclass(frozen=True)
class Cost:
    """Of one call."""

    megabytes: float
    """Growth of the resident peak over the level before the call, in 10^6 bytes."""
    seconds: float
    """Of processor time, the least of the repeats."""


def cost(prepare: Callable[..., Callable[[], object]], *arguments: Any, repeats: int = 3) -> Cost:
    """Measure the call that ``prepare(*arguments)`` returns, on one thread.

    Args:
        prepare: a function of a module; makes the inputs, which are not counted.
        arguments: can be pickled.
        repeats: runs of each measurement, after a first one that warms up; the least counts.
    """
    return Cost(*(_in_a_process(function, prepare, arguments, repeats) for function in (_megabytes, _seconds)))


def best_of(repeats: int, call: Callable[[], object]) -> float:
    """Seconds of processor time of the cheapest of `repeats` runs, after one that warms up."""
    call()
    times = []
    for _ in range(repeats):
        start = time.process_time()
        call()
        times.append(time.process_time() - start)
    return min(times)


def _in_a_process(
    function: Callable[..., float], prepare: Callable[..., Callable[[], object]], arguments: Any, repeats: int
) -> float:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        return process.submit(function, prepare, arguments, repeats).result()


def _seconds(prepare: Callable[..., Callable[[], object]], arguments: Any, repeats: int) -> float:
    torch.set_num_threads(1)
    return best_of(repeats, prepare(*arguments))


def _megabytes(prepare: Callable[..., Callable[[], object]], arguments: Any, repeats: int) -> float:
    torch.set_num_threads(1)
    libc = ctypes.CDLL(None)
    libc.mallopt(_M_MMAP_THRESHOLD, 1 << 16)  # larger blocks leave the process when they are freed
    call = prepare(*arguments)
    call()
    growth = []
    for _ in range(repeats):
        gc.collect()
        libc.malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
        before = _resident("VmRSS")
        call()
        growth.append(_resident("VmHWM") - before)
    return min(growth) / 1e6


def _resident(field: str) -> int:
    """Bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith(f"{field}:"))
    return int(line.split()[1]) * 1024

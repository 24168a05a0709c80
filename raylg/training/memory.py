"""Memory of a device: what there is, what is free, and the most that a piece of work allocates at a time."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

MEMINFO = Path("/proc/meminfo")
CONTROL_GROUP = Path("/sys/fs/cgroup")


class Memory(Protocol):
    """One device."""

    name: str
    total: int
    """Bytes."""
    raises: bool
    """Whether work that needs too much ends in `torch.OutOfMemoryError`; else the kernel kills the process."""

    growth: float
    """Bytes that the process grows by for each byte of tensors."""

    def free(self) -> int:
        """Bytes that this process may still take."""

    def peak(self, run: Callable[[], None]) -> int:
        """Bytes of tensors that `run` holds at the most, beside those held before.

        Raises:
            torch.OutOfMemoryError: not so many are free; only where `raises`.
        """


def memory_of(device: torch.device) -> Memory:
    """The memory of a device."""
    return CudaMemory(device) if device.type == "cuda" else HostMemory()


class CudaMemory:
    """A GPU, through PyTorch's allocator; see `Memory`."""

    raises = True
    growth = 1.0

    def __init__(self, device: torch.device) -> None:
        self._device = device
        properties = torch.cuda.get_device_properties(device)
        self.name, self.total = properties.name, int(properties.total_memory)

    def free(self) -> int:
        """What the driver has, and what PyTorch keeps for itself without use."""
        torch.cuda.empty_cache()
        unused = torch.cuda.memory_reserved(self._device) - torch.cuda.memory_allocated(self._device)
        return int(torch.cuda.mem_get_info(self._device)[0]) + unused

    def peak(self, run: Callable[[], None]) -> int:
        """See `Memory.peak`."""
        torch.cuda.synchronize(self._device)
        torch.cuda.reset_peak_memory_stats(self._device)
        before = torch.cuda.memory_allocated(self._device)
        run()
        torch.cuda.synchronize(self._device)
        return int(torch.cuda.max_memory_allocated(self._device)) - before


class HostMemory:
    """The machine's memory, or what the control group of a container has of it; see `Memory`."""

    raises = False
    growth = 1.5  # blocks that were freed and do not fit again: up to 1.4 was seen, with recomputed activations

    def __init__(self) -> None:
        self.name = "cpu"
        physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        self._limit = _control_group_limit()
        self.total = min(physical, self._limit or physical)

    def free(self) -> int:
        """What the kernel says can be had without swapping."""
        free = self.total
        if MEMINFO.exists():  # Linux
            fields = dict(line.split(":", 1) for line in MEMINFO.read_text().splitlines())
            free = min(free, int(fields["MemAvailable"].split()[0]) * 1024)
        if self._limit is not None:
            free = min(free, self._limit - _control_group_use())
        return max(free, 0)

    def peak(self, run: Callable[[], None]) -> int:
        """The tensors that are alive at a time; what an operation needs inside itself is not seen."""
        live = LiveTensors()
        with live:
            run()
        return live.peak


class LiveTensors(TorchDispatchMode):
    """Within the context: the bytes of the storages that operations made and that are still referred to.

    Attributes:
        peak: the largest sum at any time.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak = 0
        self._now = 0
        self._alive: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operation and take in the storages that are new in its results."""
        kwargs = kwargs or {}
        results = func(*args, **kwargs)
        given = {_storage(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        for leaf in tree_leaves(results):
            # A view, or a result written in place, has the storage of an argument, which may be older than the context.
            if isinstance(leaf, Tensor) and _storage(leaf) not in given | self._alive:
                key, num_bytes = _storage(leaf), leaf.untyped_storage().nbytes()
                self._alive.add(key)
                self._now += num_bytes
                self.peak = max(self.peak, self._now)
                weakref.finalize(leaf.untyped_storage(), self._forget, key, num_bytes)
        return results

    def _forget(self, key: int, num_bytes: int) -> None:
        self._alive.remove(key)
        self._now -= num_bytes


def _storage(tensor: Tensor) -> int:
    """Identity of a storage while it is alive."""
    return int(tensor.untyped_storage()._cdata)


def _control_group_limit() -> int | None:
    """Bytes that a container may use; None where nothing limits it (or not by version 2 of control groups)."""
    file = CONTROL_GROUP / "memory.max"
    text = file.read_text().strip() if file.exists() else "max"
    return None if text == "max" else int(text)


def _control_group_use() -> int:
    """Bytes that a container uses, without cached files, which make room by themselves."""
    fields = dict(line.split() for line in (CONTROL_GROUP / "memory.stat").read_text().splitlines())
    return int((CONTROL_GROUP / "memory.current").read_text()) - int(fields["inactive_file"])

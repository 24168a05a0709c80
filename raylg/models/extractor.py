"""Build the extractor that a configuration names."""

from __future__ import annotations

import multiprocessing
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
import torch
from torch import Tensor

from raylg.batch import Features
from raylg.errors import EnvironmentUnfitError
from raylg.models.config import ExtractorConfig
from raylg.models.identity import extractor_identity
from raylg.processes import prepare_worker

Extractor = Callable[[np.ndarray], Features]
"""uint8 [H, W, 3] RGB to features in pixels of that image."""
IMAGES_PER_PASS = 8
"""Images that a network takes at a time on a GPU: about 2 GB at 640 x 480. A CPU gains nothing from more than one."""


@dataclass(frozen=True)
class BatchExtractor:
    """Features of many images of one size at a time; may be called from several threads."""

    extract: Callable[[Tensor], list[Features]]
    """Of uint8 [B, H, W, 3] RGB on `device`."""
    device: torch.device
    """Where images are wanted."""
    identity: Mapping[str, Any]
    """See `extractor_identity`."""

    def __call__(self, images: Tensor) -> list[Features]:
        """Features of each of uint8 [B, H, W, 3] RGB on `device`, in pixels of that image, strongest first."""
        return self.extract(images)


def make_extractor(config: ExtractorConfig) -> Extractor:
    """Build an extractor on the CPU.

    Raises:
        ConfigError: the extractor needs weights and none are named, or they are not what they should be.
        CheckpointError: the weights have another layout.
    """
    # Detectors are imported on use: SIFT must not wait for torch, nor SuperPoint for COLMAP.
    if config.name == "sift":
        from raylg.models.sift import Sift

        return Sift(config)
    from raylg.models.pretrained import load_superpoint

    return load_superpoint(config)


def make_batch_extractor(config: ExtractorConfig, device: torch.device | str = "cpu") -> BatchExtractor:
    """Build an extractor for many images at a time.

    Args:
        config: of the extractor.
        device: where a network runs. SIFT runs on the CPU whatever it says, in as many processes as torch may use
            threads (`torch.get_num_threads`): COLMAP does not let go of Python's lock while it works.

    Raises:
        ConfigError, CheckpointError: see `make_extractor`.
    """
    identity = extractor_identity(config)
    if config.name == "sift":
        return BatchExtractor(_sift_processes(config, torch.get_num_threads()), torch.device("cpu"), identity)
    from raylg.models.pretrained import load_superpoint

    network = load_superpoint(config).to(device)
    images_per_pass = 1 if torch.device(device).type == "cpu" else IMAGES_PER_PASS

    def extract(images: Tensor) -> list[Features]:
        return [features for part in images.split(images_per_pass) for features in network.extract(part)]

    return BatchExtractor(extract, torch.device(device), identity)


def _sift_processes(config: ExtractorConfig, num_processes: int) -> _SiftProcesses:
    """Processes that are shared by all who want the same, such as training and validation, while anybody does."""
    processes = _shared.get((config, num_processes))
    if processes is None:
        processes = _shared[config, num_processes] = _SiftProcesses(config, num_processes)
    return processes


class _SiftProcesses:
    """SIFT of each image in processes of its own, which start with the first batch and end with this object."""

    def __init__(self, config: ExtractorConfig, num_processes: int) -> None:
        self._here = make_extractor(config) if num_processes == 1 else None
        self._lock = threading.Lock()
        # A fork would copy threads and locks of torch and OpenCV.
        self._pool = (
            ProcessPoolExecutor(num_processes, multiprocessing.get_context("spawn"), _start_process, (config,))
            if num_processes > 1
            else None
        )

    def __call__(self, images: Tensor) -> list[Features]:
        """See `BatchExtractor`.

        Raises:
            EnvironmentUnfitError: a process was killed.
        """
        arrays = list(images.numpy())
        if self._here is not None:
            with self._lock:
                return [self._here(image) for image in arrays]
        assert self._pool is not None
        try:
            return list(self._pool.map(_extract_in_process, arrays))
        except BrokenProcessPool as error:
            raise EnvironmentUnfitError(
                "a process that extracts SIFT was killed, most likely for lack of memory, or could not start; use "
                "fewer threads per worker (scale.cpus_per_worker). A script of your own must be a file that works "
                'under `if __name__ == "__main__":` only'
            ) from error


_shared: WeakValueDictionary[tuple[ExtractorConfig, int], _SiftProcesses] = WeakValueDictionary()

_extractor: Extractor | None = None  # of a process of the pool


def _start_process(config: ExtractorConfig) -> None:
    global _extractor
    prepare_worker()
    _extractor = make_extractor(config)


def _extract_in_process(image: np.ndarray) -> Features:
    assert _extractor is not None
    return _extractor(image)

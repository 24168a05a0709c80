"""Fixtures that several test folders need: where the reference files and the photographs lie."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# Set before torch or Ray is imported, and inherited by every process that a test starts.
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tests share few cores; small tensors are faster on one thread
os.environ.setdefault("RAY_AUTH_MODE", "disabled")  # a test cluster listens on loopback and leaves no token in $HOME
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

REPOSITORY = Path(__file__).resolve().parents[1]


def _folder(variable: str, default: str, holds: str) -> Path:
    """The folder that an environment variable names, else one beside the repository; skips where it is absent."""
    folder = Path(os.environ.get(variable) or REPOSITORY.parent / "shared" / default)
    if not folder.is_dir():
        pytest.skip(f"no {holds}: {folder} is not a folder; set {variable}")
    return folder


@pytest.fixture(scope="session")
def parity_dir() -> Path:
    """Reference inputs and outputs of other implementations."""
    return _folder("RAYLG_PARITY", "parity", "reference files")


@pytest.fixture(scope="session")
def photo_dir() -> Path:
    """Posed photographs as COLMAP workspaces."""
    return _folder("RAYLG_DATA", "data", "photographs")

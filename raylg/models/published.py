"""Weights files that others published: found by name, downloaded once, checked by hash. Free of torch."""

from __future__ import annotations

import functools
import hashlib
import logging
import os
import tempfile
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from raylg.errors import ConfigError, EnvironmentUnfitError
from raylg.models.config import ExtractorConfig
from raylg.schema import nearest

log = logging.getLogger(__name__)

DOWNLOAD_TIMEOUT = 60.0
"""Seconds without an answer."""


@dataclass(frozen=True, kw_only=True)
class KnownWeights:
    """A published file."""

    url: str
    git_blob: str
    """SHA-1 of the file as a git blob, which is how its repository pins it."""
    licence: str


SUPERPOINT_WEIGHTS = {
    "open": KnownWeights(
        url="https://github.com/rpautrat/SuperPoint/raw/1411bbd68c50163555d39c1b26e9e046ebd48f27"
        "/weights/superpoint_v6_from_tf.pth",
        git_blob="f645e8db1b10a7be84d4e50d67a3c64dd240a49a",
        licence="MIT (Remi Pautrat and Paul-Edouard Sarlin)",
    ),
    "magicleap": KnownWeights(
        url="https://github.com/magicleap/SuperGluePretrainedNetwork/raw/ddcf11f42e7e0732a0c4607648f9448ea8d73590"
        "/models/weights/superpoint_v1.pth",
        git_blob="107a444ca318d487390137d619d49f2f0a3b1ad8",
        licence="Magic Leap, academic and non-commercial research only; results may not be used commercially",
    ),
}
"""By the name that `model.extractor.weights` takes."""


def resolve_superpoint(config: ExtractorConfig) -> Path:
    """File with the weights that `model.extractor.weights` names; a known name is downloaded once.

    Raises:
        ConfigError: see `load_superpoint`.
        EnvironmentUnfitError: the download failed.
    """
    names = ", ".join(SUPERPOINT_WEIGHTS)
    if config.weights is None:
        raise ConfigError(
            f"model.extractor.weights = null: superpoint needs weights; give a file or one of the names {names}"
        )
    if Path(config.weights).is_file():
        return Path(config.weights)
    if config.weights not in SUPERPOINT_WEIGHTS:
        raise ConfigError(
            f"model.extractor.weights = {config.weights!r}: no such file, and not one of the names {names}"
            f"{nearest(config.weights, SUPERPOINT_WEIGHTS)}"
        )
    return _cached(config.weights, SUPERPOINT_WEIGHTS[config.weights])


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def git_blob_id(content: bytes) -> str:
    """The name that git gives to a file."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def weights_folder() -> Path:
    """Where downloaded weights are kept."""
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "raylg" / "weights"


def _cached(name: str, known: KnownWeights) -> Path:
    path = weights_folder() / known.url.rsplit("/", 1)[-1]
    _announce_licence(name, known)
    if not path.is_file():
        _download(known, path)
    elif (found := git_blob_id(path.read_bytes())) != known.git_blob:
        raise ConfigError(f"{path}: git blob {found} is not the published {known.git_blob}; delete the file and retry")
    return path


def _download(known: KnownWeights, path: Path) -> None:
    by_hand = f"download it by hand to {path}, or set model.extractor.weights to a file"
    try:
        with urllib.request.urlopen(known.url, timeout=DOWNLOAD_TIMEOUT) as response:
            content = response.read()
    except OSError as error:  # URLError, HTTPError and timeouts are all OSError
        raise EnvironmentUnfitError(f"{known.url}: cannot be downloaded ({error}); {by_hand}") from error
    if (found := git_blob_id(content)) != known.git_blob:
        raise ConfigError(
            f"{known.url}: {len(content)} bytes with git blob {found}, but the published file is {known.git_blob}; "
            f"nothing was kept; check proxies, or {by_hand}"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
        file.write(content)
    os.replace(file.name, path)


@functools.cache
def _announce_licence(name: str, known: KnownWeights) -> None:
    log.warning("weights %r from %s; licence: %s", name, known.url, known.licence)

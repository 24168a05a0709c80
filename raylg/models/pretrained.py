"""Weights that others published or wrote: found, downloaded, checked by hash, loaded strictly; and ours, exported.

Files are read with `weights_only=True`, so that a downloaded file cannot run code. Nothing is ever loaded in part: a
matcher whose weights silently stayed random is the most expensive mistake of all.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import os
import pickle
import re
import tempfile
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from raylg.errors import CheckpointError, ConfigError, EnvironmentUnfitError
from raylg.models.adaptive import confidence_threshold
from raylg.models.config import ExtractorConfig
from raylg.models.lightglue import LightGlue
from raylg.models.superpoint import SuperPoint
from raylg.schema import nearest

log = logging.getLogger(__name__)

SHOWN_KEYS = 4
"""Tensors named per kind of mismatch."""
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


def load_superpoint(config: ExtractorConfig) -> SuperPoint:
    """SuperPoint with the weights that the configuration names, in the layout that the file has.

    Raises:
        ConfigError: no weights named, no such file, or a download that is not the published file.
        EnvironmentUnfitError: the download failed.
        CheckpointError: the file fits neither layout.
    """
    path = resolve_superpoint(config)
    state = read_state_dict(path)
    model = SuperPoint(config, "magicleap" if "conv1a.weight" in state else "open")
    advice = "SuperPoint takes files in the layout of rpautrat/SuperPoint (PyTorch) or of Magic Leap's superpoint_v1"
    load_strictly(model.network, state, path, advice)
    return model


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


def load_lightglue_weights(model: LightGlue, path: Path) -> None:
    """Fill a matcher from a file of cvg/LightGlue, kornia, glue-factory (also its `.tar` checkpoints) or `export`.

    Raises:
        CheckpointError: unreadable, or for another architecture; the message says which configuration fits.
    """
    state = official_names(read_state_dict(path))
    load_strictly(model, state, path, _fitting_configuration(state))


def export_lightglue(model: LightGlue, path: Path) -> None:
    """Write the weights in the official names, so that cvg/LightGlue, glue-factory and kornia load them strictly."""
    num_layers = model.config.num_layers
    state = {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}
    # A buffer of theirs that follows from the number of layers; here it is computed.
    state["confidence_thresholds"] = torch.tensor([confidence_threshold(i, num_layers) for i in range(num_layers)])
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
        torch.save(state, file)
    os.replace(file.name, path)


def official_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the tensors of any published LightGlue file to today's official names.

    Pipelines of glue-factory hold an extractor beside the matcher, which is left out; the released files precede the
    grouping of blocks into layers.
    """
    prefix = "matcher."
    if any(name.startswith(prefix) for name in state):
        state = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    grouped = {re.sub(r"^(self_attn|cross_attn)\.(\d+)\.", r"transformers.\2.\1.", name): name for name in state}
    return {new: state[old] for new, old in grouped.items() if new != "confidence_thresholds"}


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Tensors by name of a file written by `torch.save`; of a training checkpoint its `model`.

    Raises:
        CheckpointError: no such file, not such a file, or a pickle that holds more than tensors and plain values.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no such weights file; give the path of a .pth or .tar file")
    try:
        with torch.serialization.safe_globals(_numpy_scalars()):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(
            f"{path}: cannot be read as weights ({reason}); if you trust the file, load it with "
            "torch.load(..., weights_only=False) and save its state dict alone with torch.save"
        ) from error
    if isinstance(content, dict) and isinstance(content.get("model"), dict):
        content = content["model"]
    if not isinstance(content, dict) or not content or not all(isinstance(v, Tensor) for v in content.values()):
        raise CheckpointError(f"{path}: holds no state dict (tensors by name), but {type(content).__name__}")
    return content


def load_strictly(module: nn.Module, state: Mapping[str, Tensor], path: Path, advice: str) -> None:
    """Load all tensors or none.

    Args:
        module: what is filled.
        state: tensors by name.
        path: where they come from, for the message.
        advice: what to do about a mismatch.

    Raises:
        CheckpointError: names or shapes differ; the message lists the first of each kind.
    """
    expected = module.state_dict()
    both = [name for name in expected if name in state]
    problems = {
        "missing": [name for name in expected if name not in state],
        "unexpected": [name for name in state if name not in expected],
        "of another shape": [
            f"{name} {tuple(state[name].shape)} instead of {tuple(expected[name].shape)}"
            for name in both
            if state[name].shape != expected[name].shape
        ],
    }
    if any(problems.values()):
        lines = [f"  {len(found)} {kind}: {_first(found)}" for kind, found in problems.items() if found]
        summary = f"{path}: does not fit {type(module).__name__} of {len(expected)} tensors"
        raise CheckpointError("\n".join([summary, *lines, f"  {advice}"]))
    module.load_state_dict(dict(state))


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
    log.info("weights %r from %s; licence: %s", name, known.url, known.licence)


def _numpy_scalars() -> list[Callable[..., object] | tuple[Callable[..., object], str]]:
    """What pickled NumPy numbers are made of; training checkpoints hold metrics beside the weights."""
    scalar = np.float64(0).__reduce__()[0]
    assert callable(scalar)
    old_name = "numpy.core.multiarray.scalar"  # before NumPy 2
    dtypes = (np.dtypes.Float64DType, np.dtypes.Float32DType, np.dtypes.Int64DType)
    return [scalar, (scalar, old_name), np.dtype, *dtypes]


def _first(names: list[str]) -> str:
    more = ", ..." if len(names) > SHOWN_KEYS else ""
    return ", ".join(names[:SHOWN_KEYS]) + more


def _fitting_configuration(state: Mapping[str, Tensor]) -> str:
    """What to set so that a LightGlue file fits, read off its shapes."""
    try:
        dim = state["transformers.0.self_attn.out_proj.weight"].shape[0]
        frequencies, coordinates = state["posenc.Wr.weight"].shape
    except (KeyError, ValueError):
        return "this is no LightGlue file: it has no transformers.0.self_attn.out_proj.weight or posenc.Wr.weight"
    num_layers = len({name.split(".")[1] for name in state if name.startswith("transformers.")})
    input_proj = state.get("input_proj.weight")
    input_dim = dim if input_proj is None else input_proj.shape[1]
    return (
        f"the file fits model.matcher.descriptor_dim={dim} model.matcher.num_layers={num_layers} "
        f"model.matcher.num_heads={dim // (2 * frequencies)}, an extractor with descriptors of size {input_dim} "
        f"{'with' if coordinates == 4 else 'without'} scale and orientation"
    )

"""The weights that a run starts from: found, checked and identified before anything is started. Free of torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from raylg.errors import CheckpointError, ConfigError
from raylg.models.published import sha256_of
from raylg.schema import get
from raylg.training.config import RunConfig
from raylg.training.run_directory import CONFIG, find_weights

WEIGHTS, INIT_FROM = "model.matcher.weights", "train.init_from"
ARCHITECTURE = (
    "model.extractor.name",
    "model.matcher.descriptor_dim",
    "model.matcher.num_layers",
    "model.matcher.num_heads",
)
"""Options that decide names and shapes of the tensors."""


def start_file(config: RunConfig) -> Path | None:
    """The file of weights that a run starts from; None where the weights are drawn.

    Raises:
        ConfigError: nothing there, or a folder without weights.
    """
    option = WEIGHTS if config.model.matcher.weights is not None else INIT_FROM
    given = get(config, option)
    if given is None:
        return None
    path = Path(given).expanduser()
    if not path.exists():
        raise ConfigError(f"{option} = {given!r}: no such file or folder; give weights to start from, or null")
    if option == WEIGHTS and path.is_dir():
        raise ConfigError(f"{option} = {given!r}: a folder; give the file, or a run or checkpoint as {INIT_FROM}")
    try:
        return find_weights(path)
    except CheckpointError as error:
        raise ConfigError(f"{option}: {error}") from error


def check_start(config: RunConfig) -> None:
    """Refuse weights of another architecture, where the configuration beside them tells it.

    Raises:
        ConfigError: also, see `start_file`.
    """
    file = start_file(config)
    if file is None:
        return
    try:
        stored = json.loads(file.with_name(CONFIG).read_text())
    except (OSError, ValueError):
        return  # weights without a configuration of ours are compared when they are loaded
    there = {path: _leaf(stored, path) for path in ARCHITECTURE}
    changed = [path for path, value in there.items() if value is not None and value != get(config, path)]
    if changed:
        lines = [f"{file}: its matcher has {path} = {there[path]}, the run {get(config, path)}" for path in changed]
        same = " ".join(f"{path}={there[path]}" for path in changed)
        raise ConfigError("\n".join([*lines[:-1], f"{lines[-1]}; set {same}, or start from other weights"]))


def start_hash(config: RunConfig) -> str | None:
    """SHA-256 of the weights that a run starts from; None where they are drawn.

    Raises:
        ConfigError: see `start_file`.
    """
    file = start_file(config)
    return None if file is None else sha256_of(file)


def _leaf(mapping: Mapping[str, Any], path: str) -> Any:
    """The value at a dotted path; None where an older version knew no such option."""
    value: Any = mapping
    for key in path.split("."):
        value = value.get(key) if isinstance(value, Mapping) else None
    return value

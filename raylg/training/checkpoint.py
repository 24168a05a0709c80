"""Checkpoints: one directory that holds everything needed to continue a run exactly, or to use its matcher.

    pairs-000000012800/
        state.pt        all state of the trainer, loaded with weights_only=True
        config.json     the RunConfig
        metrics.json    what was reported with it
        lightglue.pth   the matcher that was validated (the average where `optim.ema_pairs` is on), official names

A directory under its final name is complete: it is written under another name, flushed to disk and renamed.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from raylg.errors import CheckpointError, ConfigError
from raylg.models.lightglue import LightGlue
from raylg.models.pretrained import export_lightglue, load_lightglue_weights
from raylg.schema import build, to_mapping
from raylg.training.config import RunConfig
from raylg.training.optim import same_schedule

FORMAT = 1
FOLDER = "checkpoints"
STATE, CONFIG, METRICS, WEIGHTS = "state.pt", "config.json", "metrics.json", "lightglue.pth"

WITHOUT_EFFECT_ON_RESULT = (
    "scale.",
    "evaluation.batch_size",
    "evaluation.num_threads",
    "train.micro_batch_size",  # to rounding
    "train.checkpointed",
    "train.report_every",
    "train.num_figures",
    "train.log_every",
    "data.prefetch_batches",
    "data.cache_dir",  # data may move: the trainer compares their hash
    "data.path",
    "data.source",
    "data.storage.",
    "benchmarks.megadepth1500.path",
)
"""Configuration that may change when a run is resumed; what ends in a dot is a whole group. `train.num_pairs` may
change too where the learning rate so far would have been the same (`optim.same_schedule`)."""


def build_matcher(config: RunConfig) -> LightGlue:
    """The matcher of a run, with the weights it starts from.

    Raises:
        ConfigError: `model.matcher.weights` and `train.init_from` are both given.
        CheckpointError: the file is missing, or its weights belong to another architecture.
    """
    weights, init_from = config.model.matcher.weights, config.train.init_from
    if weights is not None and init_from is not None:
        raise ConfigError(
            f"train.init_from = {init_from!r} and model.matcher.weights = {weights!r}: both give the weights to start "
            "from; keep one"
        )
    model = _construct(config)
    if weights is not None:
        load_lightglue_weights(model, Path(weights).expanduser())
    elif init_from is not None:
        load_lightglue_weights(model, _weights_file(Path(init_from).expanduser()))
    return model


def load_matcher(path: Path) -> tuple[LightGlue, RunConfig]:
    """The trained matcher and the configuration that made it.

    Args:
        path: a checkpoint, the weights file in it, or a run directory, of which the last checkpoint is taken because
            its metrics are the final metrics of the run.

    Raises:
        CheckpointError: nothing there, no configuration beside the weights, or weights that do not fit it.
    """
    file = _weights_file(path)
    config = load_config(file.parent)
    model = _construct(config)
    load_lightglue_weights(model, file)
    return model.eval(), config


def save(workdir: Path, state: Mapping[str, Any], matcher: LightGlue, config: RunConfig) -> Path:
    """Write a checkpoint atomically and return its directory.

    Args:
        workdir: run directory.
        state: tensors, numbers, strings and containers of them; must hold ``pairs_seen`` and ``metrics``.
        matcher: the weights that were validated.
        config: configuration of the run.
    """
    final = workdir / FOLDER / name(state["pairs_seen"])
    temporary = final.with_name(f".{final.name}.partial")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    torch.save({"format": FORMAT, **state}, temporary / STATE)
    export_lightglue(matcher, temporary / WEIGHTS)
    (temporary / CONFIG).write_text(json.dumps(to_mapping(config), indent=2) + "\n")
    (temporary / METRICS).write_text(format_metrics(state["metrics"]) + "\n")
    for file in temporary.iterdir():
        _flush(file)
    _flush(temporary)
    shutil.rmtree(final, ignore_errors=True)  # a resumed run that reaches the same point again
    temporary.rename(final)
    _flush(final.parent)
    return final


def name(pairs_seen: int) -> str:
    """Directory name of a checkpoint; sorts by pairs seen."""
    return f"pairs-{pairs_seen:012d}"


def load(path: Path, config: RunConfig) -> dict[str, Any]:
    """The state that `save` wrote, for a run with `config`.

    Raises:
        CheckpointError: not a checkpoint, of another format, or of a run with another result; names what differs.
    """
    if not (path / STATE).is_file():
        raise CheckpointError(f"{path}: no checkpoint ({STATE} is missing); give a directory {FOLDER}/pairs-...")
    state: dict[str, Any] = torch.load(path / STATE, map_location="cpu", weights_only=True)
    if state.get("format") != FORMAT:
        raise CheckpointError(
            f"{path}: checkpoint format {state.get('format')}, this version of raylg reads format {FORMAT}; "
            "start the run anew, or from its weights with train.init_from"
        )
    differences = _differences(load_config(path), config, state["pairs_seen"])
    if differences:
        changes = "\n".join(differences)
        raise CheckpointError(
            f"{path}: the checkpoint belongs to a run with another result:\n{changes}\n"
            f"give these values again, take another run directory, or start from its weights: train.init_from={path}"
        )
    return state


def load_config(path: Path) -> RunConfig:
    """The configuration stored in a checkpoint.

    Raises:
        CheckpointError: none there, or one that this version does not understand.
    """
    file = path / CONFIG
    if not file.is_file():
        raise CheckpointError(
            f"{file}: missing, so the architecture is unknown; give bare weights as model.matcher.weights"
        )
    try:
        return build(RunConfig, json.loads(file.read_text()))
    except ConfigError as error:
        raise CheckpointError(f"{file}: written by another version of raylg: {error}") from error


def load_metrics(path: Path) -> dict[str, float]:
    """What was reported with a checkpoint."""
    return parse_metrics((path / METRICS).read_text())


def format_metrics(metrics: Mapping[str, float]) -> str:
    """One line of JSON; a value that is not finite becomes null, because JSON has no NaN."""
    return json.dumps({key: value if math.isfinite(value) else None for key, value in metrics.items()})


def parse_metrics(line: str) -> dict[str, float]:
    """The inverse of `format_metrics`; null becomes NaN."""
    return {key: math.nan if value is None else value for key, value in json.loads(line).items()}


def checkpoints(workdir: Path) -> list[Path]:
    """Complete checkpoints of a run directory, oldest first."""
    return sorted((workdir / FOLDER).glob("pairs-*"))


def latest(workdir: Path) -> Path | None:
    """The last complete checkpoint of a run directory; None when there is none yet."""
    return max(checkpoints(workdir), default=None)


def prune(workdir: Path, keep: Iterable[str]) -> None:
    """Delete all checkpoints of a run directory, half-written ones too, but those named in `keep`."""
    kept = set(keep)
    for path in (workdir / FOLDER).glob("*"):
        if path.name not in kept:
            shutil.rmtree(path)


def _construct(config: RunConfig) -> LightGlue:
    extractor = config.model.extractor
    return LightGlue(
        replace(config.model.matcher, weights=None),
        input_dim=extractor.descriptor_dim,
        add_scale_ori=extractor.has_scale_and_orientation,
        checkpointed=config.train.checkpointed,
    )


def _weights_file(path: Path) -> Path:
    if path.is_file():
        return path
    last = path if (path / WEIGHTS).is_file() else latest(path)
    if last is None:
        raise CheckpointError(f"{path}: neither a checkpoint, nor its {WEIGHTS}, nor a run directory with {FOLDER}/")
    return last / WEIGHTS


def _differences(stored: RunConfig, config: RunConfig, pairs_seen: int) -> list[str]:
    before, now = flatten(to_mapping(stored)), flatten(to_mapping(config))
    changed = [key for key in now if before[key] != now[key] and not key.startswith(WITHOUT_EFFECT_ON_RESULT)]
    if same_schedule(config.optim, pairs_seen, stored.train.num_pairs, config.train.num_pairs):
        changed = [key for key in changed if key != "train.num_pairs"]
    return [f"  {key} was {before[key]!r}, now {now[key]!r}" for key in changed]


def flatten(mapping: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted keys to the leaves of a nested mapping."""
    leaves: dict[str, Any] = {}
    for key, value in mapping.items():
        leaves.update(flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value})
    return leaves


def _flush(path: Path) -> None:
    """Make a file or the entries of a directory survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

"""Checkpoints: one directory that holds everything needed to continue a run exactly, or to use its matcher.

    pairs-000000012800/
        state.pt        all state of the trainer, loaded with weights_only=True; in the last checkpoint of a run only
        config.json     the RunConfig
        metrics.json    what was reported with it
        best.json       the best report up to it: score and name of the checkpoint
        lightglue.pth   the matcher that was validated (the average where `optim.ema_pairs` is on), official names

A directory under its final name is complete: it is written under another name, flushed to disk and renamed. What is
known before the validation is written first, so that `checkpoint_writer` can do it while the validation runs.
"""

from __future__ import annotations

import io
import json
import math
import os
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from raylg.errors import CheckpointError, ConfigError
from raylg.models.lightglue import LightGlue
from raylg.models.pretrained import load_lightglue_weights
from raylg.schema import build, to_mapping
from raylg.training import run_directory
from raylg.training.config import RunConfig
from raylg.training.optim import same_schedule
from raylg.training.run_directory import BEST, CONFIG, FOLDER, METRICS, STATE, WEIGHTS, Best, find_weights
from raylg.training.start import start_file

FORMAT = 2

WITHOUT_EFFECT_ON_RESULT = (
    "scale.",
    "evaluation.batch_size",
    "evaluation.num_threads",
    "train.micro_batch_size",  # to rounding
    "train.checkpointed",
    "train.compile",  # to rounding
    "train.report_every",
    "train.num_figures",
    "train.log_every",
    "train.rungs",
    "train.checkpoint_storage",
    "train.profile_steps",
    "data.prefetch_batches",
    "data.cache_dir",  # data may move: the trainer compares their hash
    "data.path",
    "data.source",
    "data.storage.",
    "evaluation.benchmarks",  # of what is scored, not of what is trained
    "benchmarks.",
)
"""Configuration that may change when a run is resumed; what ends in a dot is a whole group. `train.num_pairs` may
change too where the learning rate so far would have been the same (`optim.same_schedule`)."""


def build_matcher(config: RunConfig, *, resumes: bool = False) -> LightGlue:
    """The matcher of a run, with the weights it starts from.

    Args:
        config: of the run.
        resumes: a checkpoint is loaded next, so that the weights to start from need not be there any more.

    Raises:
        ConfigError: the file is missing.
        CheckpointError: its weights belong to another architecture.
    """
    model = _construct(config)
    file = None if resumes else start_file(config)
    if file is not None:
        load_lightglue_weights(model, file)
    return model


def load_matcher(path: Path) -> tuple[LightGlue, RunConfig]:
    """The trained matcher and the configuration that made it.

    Args:
        path: a checkpoint, the weights file in it, or a run directory, of which the last checkpoint is taken because
            its metrics are the final metrics of the run.

    Raises:
        CheckpointError: nothing there, no configuration beside the weights, or weights that do not fit it.
    """
    file = find_weights(path)
    config = load_config(file.parent)
    model = _construct(config)
    load_lightglue_weights(model, file)
    return model.eval(), config


def write_state(folder: Path, state: Mapping[str, Any], weights: Mapping[str, Tensor], config: RunConfig) -> None:
    """Write the part of a checkpoint that is known before the validation, and flush it to disk.

    Args:
        folder: made anew.
        state: tensors, numbers, strings and containers of them; must hold ``pairs_seen``.
        weights: of the matcher that is validated, see `official_state_dict`.
        config: configuration of the run.

    Raises:
        OSError: of the file system.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    _write_tensors(folder / STATE, {"format": FORMAT, **state})
    _write_tensors(folder / WEIGHTS, weights)
    _write_text(folder / CONFIG, json.dumps(to_mapping(config), indent=2) + "\n")


def complete(folder: Path, metrics: Mapping[str, float], best: Best) -> Path:
    """Add what the validation gave to what `write_state` wrote, and give the checkpoint its final name.

    Args:
        folder: of `write_state`, in the folder of the checkpoints.
        metrics: the report, with ``pairs_seen``.
        best: the best report up to this one.

    Returns:
        The directory of the checkpoint.

    Raises:
        OSError: of the file system.
    """
    final = folder.with_name(run_directory.name(int(metrics["pairs_seen"])))
    _write_text(folder / METRICS, format_metrics(metrics) + "\n")
    _write_text(folder / BEST, run_directory.format_best(best))
    _flush(folder)
    shutil.rmtree(final, ignore_errors=True)  # a resumed run that reaches the same point again
    folder.rename(final)
    _flush(final.parent)
    return final


def load(path: Path, config: RunConfig) -> dict[str, Any]:
    """The state that `write_state` wrote, for a run with `config`.

    Raises:
        CheckpointError: not a checkpoint, of another format, or of a run with another result; names what differs.
    """
    if not (path / STATE).is_file():
        raise CheckpointError(
            f"{path}: no checkpoint that continues a run ({STATE} is missing); give the last in {FOLDER}/"
        )
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


def _construct(config: RunConfig) -> LightGlue:
    extractor = config.model.extractor
    return LightGlue(
        replace(config.model.matcher, weights=None),
        input_dim=extractor.descriptor_dim,
        add_scale_ori=extractor.has_scale_and_orientation,
        checkpointed=config.train.checkpointed,
    )


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


def _write_tensors(path: Path, content: Mapping[str, Any]) -> None:
    # Through memory: where the disk is full, torch.save to a file raises a RuntimeError that does not say so.
    buffer = io.BytesIO()
    torch.save(content, buffer)
    _write(path, buffer.getbuffer())


def _write_text(path: Path, text: str) -> None:
    _write(path, text.encode())


def _write(path: Path, data: bytes | memoryview) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _flush(path: Path) -> None:
    """Make the entries of a directory survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

"""What may change when a study is continued: its budget and machinery, and ranges, which may widen."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from raylg.errors import ConfigError
from raylg.search.parameter import Parameter
from raylg.search.record import FORMAT
from raylg.search.space import SearchSpace

if TYPE_CHECKING:
    from raylg.search.study import StudySetup

_MAY_CHANGE = (
    "study.budget",
    "study.max_concurrent_trials",
    "study.dir",
    "study.name",
    "study.sampler.",
    "study.warm_start",
    "study.confirm.",
    "space.description",
    "space.points",
    "run.scale.",
    "run.data.path",  # data may move: their hash is compared
    "run.data.source",
    "run.data.cache_dir",
    "run.data.storage.",
    "run.benchmarks.megadepth1500.path",
    "run.data.prefetch_batches",
    "run.evaluation.batch_size",
    "run.evaluation.num_threads",
    "run.train.micro_batch_size",
    "run.train.checkpointed",
    "run.train.compile",
    "run.train.num_figures",
    "run.train.log_every",
    "run.train.rungs",
    "run.train.checkpoint_storage",
    "run.train.profile_steps",
)
_GROUPS = ("hashes.", "study.", "space.", "run.")
_RANGE = ("low", "high", "values", "role")
_OTHER_KIND = "only ranges and choices may change"


def check_unchanged(description: Path, setup: StudySetup) -> None:
    """Compare a stored study with what is asked for now.

    Args:
        description: its ``study.yaml``.
        setup: of now.

    Raises:
        ConfigError: another format, or differences in what decides the results; all of them are shown.
    """
    stored = yaml.safe_load(description.read_text())
    if not isinstance(stored, Mapping) or stored.get("format") != FORMAT:
        found = stored.get("format") if isinstance(stored, Mapping) else None
        raise ConfigError(
            f"{description}: study format {found!r}, this version of raylg reads format {FORMAT}; choose another --name"
        )
    before, now = flatten(stored), flatten(setup.to_mapping())
    ranges, may_widen = _compare_ranges(stored["space"], setup.space)
    may_change = (*_MAY_CHANGE, *may_widen)
    keys = [key for key in {**before, **now} if key.startswith(_GROUPS) and not key.startswith(may_change)]
    changed = [key for key in keys if before.get(key) != now.get(key) or (key in before) != (key in now)]
    lines = [f"  {_shown(key)} was {_value(before, key)}, now {_value(now, key)}" for key in changed] + ranges
    if lines:
        raise ConfigError(
            "\n".join(
                (
                    f"{description.parent}: this study was started with another setup, so its trials could not be "
                    "compared:",
                    *lines,
                    "repeat the earlier command to continue it (a budget may change, ranges may widen), or start a new "
                    "study with another --name",
                )
            )
        )


def why_not_wider(old: Parameter, new: Parameter) -> str | None:
    """Why values of `old` would be lost in `new`; None where its range is the same or wider."""
    if _kind(old) != _kind(new):
        return _OTHER_KIND
    if old.type == "choice":
        missing = [value for value in old.values if new.why_outside(value)]
        return f"choices may only be added; {missing} would be lost" if missing else None
    if new.low > old.low or new.high < old.high:
        return "a range may only widen"
    steps = (old.low - new.low) / new.step if new.step else 0.0
    if not math.isclose(steps, round(steps), abs_tol=1e-6):
        return f"values tried before would lie between the steps; lower it by multiples of {new.step:g}"
    return None


def _kind(parameter: Parameter) -> tuple[object, ...]:
    return parameter.type, parameter.log, parameter.step, parameter.when, parameter.offset_from


def _compare_ranges(stored: Mapping[str, Any], space: SearchSpace) -> tuple[list[str], tuple[str, ...]]:
    """What is wrong with ranges that changed, and the keys of ``study.yaml`` that were judged by that."""
    source = {key: value for key, value in stored.items() if key != "name"}
    before = {parameter.path: parameter for parameter in SearchSpace.parse(source, space.name).parameters}
    lines, judged = [], []
    for new in space.parameters:
        old = before.get(new.path)
        if old is None or (reason := why_not_wider(old, new)) == _OTHER_KIND:
            continue  # key by key, with all other differences
        judged += [f"space.parameters.{new.path}.{key}" for key in _RANGE]
        if reason:
            lines.append(f"  space: {new.path} was {old.describe()}, now {new.describe()}: {reason}")
    return lines, tuple(judged)


def flatten(mapping: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted path to value for the leaves of nested mappings."""
    leaves: dict[str, Any] = {}
    for key, value in mapping.items():
        leaves.update(flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value})
    return leaves


def _shown(key: str) -> str:
    group, _, rest = key.partition(".")
    return {"hashes": f"hash of {rest}", "space": f"space: {rest}"}.get(group, rest if group == "run" else key)


def _value(leaves: Mapping[str, Any], key: str) -> str:
    return repr(leaves[key]) if key in leaves else "not set"

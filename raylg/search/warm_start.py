"""Finished studies as prior observations: the sampler knows what their trials scored; it counts for nothing else.

Observations are copied into the study (``prior.json``), so that it goes on alike when the others are moved or grow.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optuna.trial import FrozenTrial, TrialState, create_trial

from raylg.data.manifest import write_text_atomically
from raylg.errors import ConfigError
from raylg.search.journal import distributions
from raylg.search.parameter import Value
from raylg.search.resume import flatten
from raylg.search.stored import StoredStudy, read_study

if TYPE_CHECKING:
    from raylg.search.study import StudySetup

_STATES = {"complete": TrialState.COMPLETE, "stopped": TrialState.PRUNED, "infeasible": TrialState.PRUNED}


@dataclass(frozen=True, kw_only=True)
class Prior:
    """What is known before the first trial."""

    studies: tuple[str, ...] = ()
    """Study directories as given in ``study.warm_start``."""
    entries: tuple[Mapping[str, Any], ...] = ()
    """Their trials as stored: values by dotted path, state, scores by pairs seen."""
    trials: tuple[FrozenTrial, ...] = ()
    """Those within the present ranges, as a sampler sees them."""

    @property
    def num_left_out(self) -> int:
        """Trials outside of the present ranges."""
        return len(self.entries) - len(self.trials)

    def __str__(self) -> str:
        left_out = f"; {self.num_left_out} outside the present ranges left out" if self.num_left_out else ""
        return f"{len(self.trials)} trials of {', '.join(self.studies)} known beforehand{left_out}"

    def save(self, path: Path) -> None:
        """Write the observations for `load_prior`."""
        write_text_atomically(path, json.dumps({"studies": self.studies, "trials": self.entries}))


def load_prior(path: Path, setup: StudySetup) -> Prior:
    """Read what the studies of ``study.warm_start`` found, from `path` where that was saved before.

    Raises:
        ConfigError: one of them is no study, or this one, or was made with other data, another protocol, objective or
            budget per trial; all differences at once.
    """
    studies = setup.study.warm_start
    if not studies:
        return Prior()
    stored = json.loads(path.read_text()) if path.exists() else {}
    entries = stored["trials"] if stored.get("studies") == list(studies) else _read(studies, setup)
    found = (_observation(entry, setup) for entry in entries)
    return Prior(studies=studies, entries=tuple(entries), trials=tuple(trial for trial in found if trial is not None))


def _read(paths: tuple[str, ...], setup: StudySetup) -> list[dict[str, Any]]:
    entries, problems = [], []
    for path in paths:
        if Path(path).expanduser().resolve() == setup.path.resolve():
            problems.append(
                f"study.warm_start: {path} is this study itself, which knows its trials; leave it out (the study "
                f"before --fresh is {setup.path}.old-1 or later)"
            )
            continue
        try:
            study = read_study(Path(path).expanduser())
        except ConfigError as error:
            problems.append(f"study.warm_start: {error}")
            continue
        problems.extend(
            f"study.warm_start: {path}: {difference}; leave it out, or search with the same"
            for difference in _differences(study, setup)
        )
        entries.extend(_entries(study, setup))
    if problems:
        raise ConfigError("\n".join(problems))
    return entries


def _differences(study: StoredStudy, setup: StudySetup) -> list[str]:
    """Why scores of the other study cannot be compared with this one's."""
    now = {
        **{f"hash of {name}": value for name, value in setup.hashes.items()},
        "study.objective": setup.objective,
        "train.num_pairs": setup.run.train.num_pairs,
    }
    before = {
        **{f"hash of {name}": value for name, value in study.description["hashes"].items()},
        "study.objective": study.objective,
        "train.num_pairs": study.num_pairs,
    }
    return [
        f"{key} is {before.get(key, 'not set')!r} there and {now.get(key, 'not set')!r} here"
        for key in {**before, **now}
        if before.get(key) != now.get(key)
    ]


def _entries(study: StoredStudy, setup: StudySetup) -> list[dict[str, Any]]:
    """Trials that ended, each with a value for every path that is searched here: its own, or what it was laid over."""
    paths = [parameter.path for parameter in setup.space.parameters]
    base = flatten(study.description["run"])
    known = {path: base[path] for path in paths if path in base}
    return [
        {
            "values": {**known, **{path: value for path, value in record.values.items() if path in paths}},
            "state": record.state,
            "scores": dict(record.scores),
        }
        for record in study.records
        if record.state in _STATES
    ]


def _observation(entry: Mapping[str, Any], setup: StudySetup) -> FrozenTrial | None:
    """A trial of another study with the present ranges; None where it does not lie in them."""
    space, run, given = setup.space, setup.run, entry["values"]
    if any(parameter.path not in given for parameter in space.parameters):
        return None
    values: dict[str, Value] = space.assign(given.__getitem__, run)
    if space.why_outside(values, run):
        return None
    scores = {int(pairs): float(score) for pairs, score in entry["scores"].items()}
    params, ranges = space.sampler_values(values, run), distributions(space)
    return create_trial(
        state=_STATES[entry["state"]],
        value=scores[max(scores)] if entry["state"] == "complete" else None,
        params=dict(params),
        distributions={name: ranges[name] for name in params},
        intermediate_values=scores,
        constraints={"infeasible": 1.0} if entry["state"] == "infeasible" else None,
    )

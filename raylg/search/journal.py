"""The Optuna journal of a study: one file, opened by one writer, readable by optuna-dashboard."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import RandomSampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import Trial, TrialState, create_trial

from raylg.search.parameter import Parameter, Value
from raylg.search.space import SearchSpace

STUDY_NAME = "raylg"


def open_journal(path: Path) -> optuna.Study:
    """Open or create the study in a journal file; the caller must be its only writer.

    What a killed writer leaves behind, half a line and a lock, is removed.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    _drop_torn_line(path)
    path.with_name(f"{path.name}.lock").unlink(missing_ok=True)
    return optuna.create_study(
        storage=JournalStorage(JournalFileBackend(str(path))),
        sampler=RandomSampler(seed=0),  # never used: `Sampler` chooses outside of the journal
        study_name=STUDY_NAME,
        direction="maximize",
        load_if_exists=True,
    )


def start_trial(
    study: optuna.Study, space: SearchSpace, params: Mapping[str, Value], attributes: Mapping[str, Any]
) -> Trial:
    """Add a running trial in one write, so that a crash leaves all of it or nothing.

    Written as a whole it may also have other choices than earlier trials, which asking Optuna refuses.

    Args:
        study: the journal.
        space: with the range of each parameter.
        params: values by the names in the sampler.
        attributes: user attributes.
    """
    ranges = distributions(space)
    study.add_trial(
        create_trial(
            state=TrialState.RUNNING,
            params=dict(params),
            distributions={name: ranges[name] for name in params},
            user_attrs=dict(attributes),
        )
    )
    return reopen(study, len(study.get_trials(deepcopy=False)) - 1)


def reopen(study: optuna.Study, number: int) -> Trial:
    """The live handle of a running trial."""
    return Trial(study, study.get_trials(deepcopy=False)[number]._trial_id)


def distributions(space: SearchSpace) -> dict[str, BaseDistribution]:
    """The range of each parameter in Optuna's words, by its name in the sampler."""
    return {parameter.name: distribution(parameter) for parameter in space.parameters}


def distribution(parameter: Parameter) -> BaseDistribution:
    """The range of a parameter in Optuna's words."""
    if parameter.type == "choice":
        return CategoricalDistribution(parameter.values)
    if parameter.type == "int":
        step = int(parameter.step) if parameter.step else 1
        return IntDistribution(int(parameter.low), int(parameter.high), step=step, log=parameter.log)
    return FloatDistribution(float(parameter.low), float(parameter.high), step=parameter.step, log=parameter.log)


def _drop_torn_line(path: Path) -> None:
    """Cut the journal after its last complete line."""
    if not path.exists():
        return
    content = path.read_bytes()
    complete = content.rfind(b"\n") + 1
    if complete < len(content):
        with path.open("r+b") as file:
            file.truncate(complete)

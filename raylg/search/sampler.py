"""Optuna's side of a study: storage, samplers, and how a configuration is drawn."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import optuna
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import Trial, TrialState

from raylg.errors import ConfigError
from raylg.search.config import SamplerConfig
from raylg.search.space import SearchSpace

STUDY_NAME = "raylg"
_MAX_REJECTIONS = 2000


def open_journal(path: Path) -> optuna.Study:
    """Open or create the study in a journal file; the caller must be its only writer.

    What a killed writer leaves behind, half a line and a lock, is removed.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    _drop_torn_line(path)
    path.with_name(f"{path.name}.lock").unlink(missing_ok=True)
    return optuna.create_study(
        storage=JournalStorage(JournalFileBackend(str(path))),
        sampler=RandomSampler(seed=0),  # never used: `draw` enqueues what its own sampler chose
        study_name=STUDY_NAME,
        direction="maximize",
        load_if_exists=True,
    )


def make_sampler(config: SamplerConfig, *, offset: int) -> BaseSampler:
    """Build the sampler.

    Args:
        config: its options.
        offset: number of trials so far, so that a resumed study draws no configuration twice.
    """
    # Not their sum: the draws of seed 1 would be those of seed 0, moved by one.
    seed = int(np.random.SeedSequence([config.seed, offset]).generate_state(1)[0])
    if config.name == "random":
        return RandomSampler(seed=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return TPESampler(
            seed=seed,
            n_startup_trials=config.num_startup_trials,
            multivariate=True,
            group=True,  # conditional parameters
            constant_liar=True,  # trials that run at the same time are kept apart
        )


def draw(study: optuna.Study, config: SamplerConfig, space: SearchSpace, run: object) -> Trial:
    """Ask for a configuration that the constraints and the configuration itself accept.

    Candidates are drawn on a copy of the study, so that rejected ones leave no trace: trial numbers have no gaps and
    the sampler learns from trials only. The accepted one is enqueued before it is asked for: a crash in between loses
    nothing.

    Raises:
        ConfigError: the constraints leave (almost) nothing to draw.
    """
    if not study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
        study.enqueue_trial(_candidate(study, config, space, run))
    trial = study.ask()
    space.suggest(trial, run)
    return trial


def _candidate(study: optuna.Study, config: SamplerConfig, space: SearchSpace, run: object) -> dict[str, object]:
    trials = study.get_trials(deepcopy=False)
    copy = optuna.create_study(direction="maximize", sampler=make_sampler(config, offset=len(trials)))
    copy.add_trials(trials)
    for _ in range(_MAX_REJECTIONS):
        candidate = copy.ask()
        values = space.suggest(candidate, run)
        if space.is_feasible(values, run):
            return dict(candidate.params)
        copy.tell(candidate, state=TrialState.FAIL)
    raise ConfigError(
        f"search space {space.name}: {_MAX_REJECTIONS} configurations in a row violate the constraints; "
        "loosen the constraints or narrow the ranges"
    )


def reopen(study: optuna.Study, number: int) -> Trial:
    """The live handle of a trial that was running when the study was interrupted."""
    (frozen,) = (t for t in study.get_trials(deepcopy=False) if t.number == number)
    return Trial(study, frozen._trial_id)


def _drop_torn_line(path: Path) -> None:
    """Cut the journal after its last complete line."""
    if not path.exists():
        return
    content = path.read_bytes()
    complete = content.rfind(b"\n") + 1
    if complete < len(content):
        with path.open("r+b") as file:
            file.truncate(complete)

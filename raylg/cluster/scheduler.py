"""Ray Tune's view of the ledger: who runs next, and who goes on after a report."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray._raylet import PlacementGroupID
from ray.tune.execution.tune_controller import TuneController
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher
from ray.util.placement_group import PlacementGroup, remove_placement_group

from raylg import errors
from raylg.cluster.trial import FAILED, NUMBER, WORKDIR, last_line
from raylg.cluster.worker import FATAL, INFEASIBLE
from raylg.search.books import Books
from raylg.training.watch import COUNTERS

_DEATHS = ("ActorDiedError", "ActorUnavailableError", "WorkerCrashedError")
_SECONDS_BEFORE_REAPING = 4.0
"""A group removed at once is made again by the controller that is about to die."""


class _NotSaved:
    """Ray Tune pickles its parts to restore them; here the study directory is restored, so the copies are empty."""

    def __getstate__(self) -> dict[str, Any]:
        return {}


class LedgerSearch(_NotSaved, Searcher):
    """Hands out the trials of the ledger.

    Not Ray's OptunaSearch: that one owns its study, tells Optuna that stopped trials are complete, loses running ones
    on restart, swallows refused results, and can neither reject nor re-issue a configuration. All of its methods would
    have to be replaced; the ledger asks and tells Optuna itself.

    Args:
        ledger: hands out the trials.
        max_failures: times that a trial may lose its process before it has begun.
    """

    def __init__(self, ledger: Books, max_failures: int = 0) -> None:
        super().__init__()
        self._ledger, self._max_failures = ledger, max_failures
        self._numbers: dict[str, int] = {}
        self._lost: Counter[int] = Counter()

    @property
    def num_suggested(self) -> int:
        """Trials handed out so far."""
        return len(self._numbers)

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        """The configuration of the next trial: dotted paths, its number and its directory."""
        proposal = self._ledger.next_trial()
        if proposal is None:  # None has Tune ask again, its marker for the end is a string
            return None if self._ledger.may_follow else Searcher.FINISHED  # type: ignore[return-value]
        self._numbers[trial_id] = proposal.number
        return {**proposal.values, NUMBER: proposal.number, WORKDIR: str(proposal.workdir)}

    def on_trial_complete(self, trial_id: str, result: Mapping[str, Any] | None = None, error: bool = False) -> None:
        """The trial has left Tune; crashes were already taken by the scheduler, which knows their text.

        What is left are processes that died between two trials: Tune does not retry the second one, so it is handed
        out again.
        """
        number = self._numbers[trial_id]
        if not error:
            self._ledger.finish(number)
            return
        self._lost[number] += 1
        if self._lost[number] > self._max_failures:
            self._ledger.fail(number, "its process could not be started")
        else:
            self._ledger.put_back(number, "its process was killed before it began")

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the study directory is the record."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: the study directory is the record."""


class LedgerScheduler(_NotSaved, FIFOScheduler):
    """Lets the ledger decide after every report."""

    def __init__(self, ledger: Books) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._ledger = ledger
        self.fatal: errors.RaylgError | None = None
        """Why the study cannot go on."""

    def on_trial_result(self, tune_controller: TuneController, trial: Trial, result: Mapping[str, Any]) -> str:
        """Take a report, or the word of a trial that ended without a crash."""
        number = trial.config[NUMBER]
        match result.get("kind"):
            case None:
                stop = self._ledger.report(number, _metrics(result)).stop
                return str(TrialScheduler.STOP if stop else TrialScheduler.CONTINUE)
            case kind if kind == INFEASIBLE:
                self._ledger.infeasible(number, result["reason"])
            case kind if kind == FAILED:
                self._fail(number, result["reason"])
            case kind if kind == FATAL:
                self._ledger.close()
                self.fatal = getattr(errors, result["error"])(result["reason"])
        return str(TrialScheduler.STOP)

    def on_trial_error(self, tune_controller: TuneController, trial: Trial) -> None:
        """The trial crashed; Tune calls this for every crash, so those that are retried are left out."""
        if not trial.should_recover():  # type: ignore[no-untyped-call]
            self._fail(trial.config[NUMBER], error_text(trial))

    def _fail(self, number: int, reason: str) -> None:
        self._ledger.fail(number, reason)
        common = self._ledger.common_failure
        if common is not None:
            self._ledger.close()
            self.fatal = errors.RaylgError(
                f"the first trials of the study all failed: {common}; see log.txt in their directories, put it "
                "right and start over with another --name"
            )


class StopWhenFatal(_NotSaved, tune.Stopper):
    """Ends the experiment when the scheduler has found that no trial can succeed."""

    def __init__(self, scheduler: LedgerScheduler) -> None:
        self._scheduler = scheduler

    def __call__(self, trial_id: str, result: Mapping[str, Any]) -> bool:
        """Never stops a single trial."""
        return False

    def stop_all(self) -> bool:
        """Whether the study cannot go on."""
        return self._scheduler.fatal is not None


class Observer(_NotSaved, tune.Callback):
    """Notes restarts, and frees the workers of stopped trials should Ray Train fail to."""

    def __init__(self, ledger: Books) -> None:
        self._ledger = ledger
        self._timers: list[threading.Timer] = []

    def on_trial_recover(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """A crashed trial starts again from its checkpoint."""
        self._ledger.retried(trial.config[NUMBER], error_text(trial))

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Remove the placement group of the workers a little later."""
        group = (trial.last_result or {}).get("placement_group")
        if group is not None:
            timer = threading.Timer(_SECONDS_BEFORE_REAPING, _reap, (group,))
            timer.daemon = True
            timer.start()
            self._timers.append(timer)

    def on_experiment_end(self, trials: list[Trial], **info: Any) -> None:
        """Wait until all groups are freed: a cluster outlives this process."""
        for timer in self._timers:
            timer.join()


def error_text(trial: Trial) -> str:
    """What made a trial fail, in one line."""
    path = Path(trial.error_file) if trial.error_file else None
    text = path.read_text() if path is not None and path.exists() else ""
    if any(name in text for name in _DEATHS):
        return "its process was killed"
    return last_line(text)


def _metrics(result: Mapping[str, Any]) -> dict[str, float]:
    """The trainer's metrics among all that Tune adds."""
    named = {key: value for key, value in result.items() if "/" in key and not key.startswith("config/")}
    own = ("pairs_seen", "pairs_per_second", "micro_batch_size", *COUNTERS)
    values = {**named, **{key: result[key] for key in own if key in result}}
    return {key: value for key, value in values.items() if isinstance(value, int | float)}


def _reap(group: str) -> None:
    if ray.is_initialized():
        remove_placement_group(PlacementGroup(PlacementGroupID(bytes.fromhex(group))))

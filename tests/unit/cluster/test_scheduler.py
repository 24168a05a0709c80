"""Tune's calls are made by hand here, in the order in which its controller makes them; no cluster is started."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray import cloudpickle
from ray.tune.schedulers import TrialScheduler
from ray.tune.search import Searcher

from raylg.cluster.scheduler import LedgerScheduler, LedgerSearch, Observer, StopWhenFatal
from raylg.cluster.trial import last_line, values_of
from raylg.cluster.worker import outcome_of
from raylg.errors import OutOfMemory, RaylgError, ShardError
from raylg.schema import build
from raylg.search.config import StudyConfig
from raylg.search.ledger import Ledger
from raylg.search.space import SearchSpace
from raylg.search.study import StudyDirectory, StudySetup
from raylg.training.config import RunConfig
from raylg.training.distributed import World
from raylg.training.learner import Learner

SPACE = {"parameters": {"optim.lr": {"type": "float", "low": 1e-5, "high": 1e-1, "log": True}}}


@pytest.fixture
def parts(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[SimpleNamespace]:
    """Parts of a study with the scheduler that a test asks for."""
    setup = StudySetup(
        study=build(
            StudyConfig,
            {"name": "s", "dir": str(tmp_path), "budget": "4trials", "objective": "val/auc@5"}
            | {"scheduler": {"grace_pairs": 10, "name": getattr(request, "param", "asha"), "lottery": 0}},
        ),
        space=SearchSpace.parse(SPACE, "test"),
        run=build(RunConfig, {"train": {"num_pairs": 90, "report_every": 10}}),
        hashes={},
    )
    with StudyDirectory(setup) as directory:
        ledger = Ledger(directory, lambda event: None)
        yield SimpleNamespace(
            directory=directory,
            ledger=ledger,
            search=LedgerSearch(ledger),
            scheduler=LedgerScheduler(ledger),
            path=tmp_path,
        )


def suggest(parts: SimpleNamespace, tune_id: str, error: Path | None = None, retries: bool = False) -> Any:
    config = parts.search.suggest(tune_id)
    return SimpleNamespace(
        trial_id=tune_id, config=config, error_file=error, should_recover=lambda: retries, last_result={}
    )


def report(parts: SimpleNamespace, trial: Any, pairs_seen: int, score: float) -> str:
    result = {"pairs_seen": pairs_seen, "val/auc@5": score, "objective": score, "config/optim.lr": 1.0, "pid": 3}
    return str(parts.scheduler.on_trial_result(None, trial, result))


def test_suggestion_has_dotted_paths_number_and_directory(parts: SimpleNamespace) -> None:
    config = parts.search.suggest("a")
    assert config == {"optim.lr": 1e-4, "trial": 0, "workdir": str((parts.path / "s/trials/0000").resolve())}
    assert values_of(config) == {"optim.lr": 1e-4}
    assert [parts.search.suggest(x)["trial"] for x in "bcd"] == [1, 2, 3]
    assert parts.search.suggest("e") is None  # those that run may come to wait
    parts.ledger.close()
    assert parts.search.suggest("f") == Searcher.FINISHED


@pytest.mark.parametrize("parts", ["median"], indirect=True)
def test_stopped_trial_is_told_as_pruned(parts: SimpleNamespace) -> None:
    first, second = suggest(parts, "a"), suggest(parts, "b")
    assert report(parts, first, 10, 0.5) == TrialScheduler.CONTINUE
    assert report(parts, second, 10, 0.4) == TrialScheduler.STOP
    parts.search.on_trial_complete("b", {"objective": 0.4})
    assert report(parts, first, 90, 0.6) == TrialScheduler.CONTINUE
    assert report(parts, first, 90, 0.6) == TrialScheduler.CONTINUE  # Tune repeats the last result at the end
    parts.search.on_trial_complete("a", {"objective": 0.6})
    records = parts.directory.records()
    assert [r.state for r in records] == ["complete", "stopped"]
    assert records[0].metrics == {"pairs_seen": 90, "val/auc@5": 0.6}


def test_trial_that_waits_is_handed_out_again(parts: SimpleNamespace) -> None:
    trials = [suggest(parts, name) for name in "abc"]
    for name, trial, score in zip("abc", trials, (0.1, 0.4, 0.2), strict=True):
        assert report(parts, trial, 10, score) == TrialScheduler.STOP
        parts.search.on_trial_complete(name, {"objective": score})
    again = suggest(parts, "d")
    assert again.config == trials[1].config  # the best of three
    last = suggest(parts, "e")
    assert [record.state for record in parts.directory.records()] == ["waiting", "running", "waiting", "running"]
    assert report(parts, again, 90, 0.5) == TrialScheduler.CONTINUE
    parts.search.on_trial_complete("d", {"objective": 0.5})
    assert suggest(parts, "f").config == trials[0].config  # nothing is new, so the baseline goes on
    assert parts.search.suggest("g") is None  # the other one may go on, when the last has reported
    assert report(parts, last, 10, 0.05) == TrialScheduler.STOP
    parts.search.on_trial_complete("e", {"objective": 0.05})
    assert suggest(parts, "h").config == trials[2].config  # one of the best two of four


def test_record_has_what_tells_of_the_run(parts: SimpleNamespace) -> None:
    learner = Learner(build(RunConfig, {"train": {"micro_batch_size": 2}}), World())
    told = {**learner.metrics(), "pairs_seen": 10, "pairs_per_second": 3.5, "val/auc@5": 0.5}
    trial = suggest(parts, "a")
    parts.scheduler.on_trial_result(None, trial, {**told, "objective": 0.5, "pid": 3, "time_total_s": 1.0})
    assert parts.directory.records()[0].metrics == told


def test_infeasible_is_a_result(parts: SimpleNamespace) -> None:
    trial = suggest(parts, "a")
    assert parts.scheduler.on_trial_result(None, trial, outcome_of(OutOfMemory("64 pairs"))) == TrialScheduler.STOP
    parts.search.on_trial_complete("a", {})
    assert parts.directory.records()[0].state == "infeasible"
    assert parts.directory.records()[0].reason == "out_of_memory: 64 pairs"
    assert parts.scheduler.fatal is None


def test_error_that_hits_every_trial_ends_the_study(parts: SimpleNamespace) -> None:
    stopper = StopWhenFatal(parts.scheduler)
    trial = suggest(parts, "a")
    assert not stopper.stop_all()
    parts.scheduler.on_trial_result(None, trial, outcome_of(ShardError("shard-0.h5: truncated")))
    assert stopper.stop_all()
    parts.search.on_trial_complete("a", {})
    assert isinstance(parts.scheduler.fatal, ShardError)
    assert str(parts.scheduler.fatal) == "shard-0.h5: truncated"
    assert parts.directory.records()[0].state == "running"  # is continued when the shard is repaired


def test_crash_is_retried_before_it_fails(parts: SimpleNamespace, tmp_path: Path) -> None:
    error = tmp_path / "error.txt"
    error.write_text("Traceback\n  File x\nray.exceptions.ActorDiedError: The actor died\n  at 127.0.0.1\n")
    trial = suggest(parts, "a", error, retries=True)
    parts.scheduler.on_trial_error(None, trial)
    Observer(parts.ledger).on_trial_recover(0, [trial], trial)
    record = parts.directory.records()[0]
    assert (record.state, record.num_failures, record.reason) == ("running", 1, "its process was killed")
    trial.should_recover = lambda: False
    error.write_text("Traceback\n  File x\nValueError: a bug\n")
    parts.scheduler.on_trial_error(None, trial)
    parts.search.on_trial_complete("a", error=True)
    record = parts.directory.records()[0]
    assert (record.state, record.reason) == ("failed", "ValueError: a bug")


def test_trial_whose_process_died_between_two_trials_is_handed_out_again(parts: SimpleNamespace) -> None:
    """Tune retries what has begun, but not a trial whose reused process dies while it is being set up."""
    search = LedgerSearch(parts.ledger, max_failures=1)
    assert search.suggest("a")["trial"] == 0
    search.on_trial_complete("a", error=True)
    (record,) = parts.directory.records()
    assert (record.state, record.num_failures) == ("running", 1)
    assert search.suggest("b")["trial"] == 0
    search.on_trial_complete("b", error=True)
    assert parts.directory.records()[0].reason == "its process could not be started"
    assert search.suggest("c")["trial"] == 1
    assert search.num_suggested == 3


def test_process_that_cannot_start_fails_its_trial(parts: SimpleNamespace) -> None:
    suggest(parts, "a")
    parts.search.on_trial_complete("a", error=True)
    assert parts.directory.records()[0].reason == "its process could not be started"


def test_study_stops_when_the_first_trials_all_fail(parts: SimpleNamespace) -> None:
    for name in "abc":
        assert parts.scheduler.fatal is None
        trial = suggest(parts, name)
        parts.scheduler.on_trial_result(None, trial, {"kind": "failed", "reason": "ValueError: a bug"})
    assert isinstance(parts.scheduler.fatal, RaylgError)
    assert "ValueError: a bug" in str(parts.scheduler.fatal)


def test_what_tune_pickles_is_empty(parts: SimpleNamespace) -> None:
    for part in (parts.search, parts.scheduler, StopWhenFatal(parts.scheduler), Observer(parts.ledger)):
        copy = pickle.loads(cloudpickle.dumps(part))
        assert type(copy) is type(part)
        assert vars(copy) == {}


def test_last_line_says_what_happened() -> None:
    assert last_line("Traceback\n  File x\nValueError: a bug\n\n") == "ValueError: a bug"
    assert last_line("") == "unknown"

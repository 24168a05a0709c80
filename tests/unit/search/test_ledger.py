from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
from optuna.trial import TrialState

from raylg.errors import ConfigError
from raylg.schema import to_mapping
from raylg.search.config import SamplerConfig
from raylg.search.ledger import Ledger, Proposal, TrialEvent
from raylg.search.sampler import draw
from raylg.search.study import StudyDirectory, StudySetup

Make = Callable[..., StudySetup]


def ignore(event: TrialEvent) -> None:
    """Nobody watches."""


def metrics(pairs_seen: int, score: float) -> dict[str, float]:
    return {"pairs_seen": pairs_seen, "val/auc@5": score, "val/auc@10": score}


def take(ledger: Ledger) -> Proposal:
    proposal = ledger.next_trial()
    assert proposal is not None
    return proposal


def run_to_end(ledger: Ledger, number: int, score: float, start: int = 0) -> None:
    for pairs_seen in range(start + 10, 91, 10):
        if ledger.report(number, metrics(pairs_seen, score)).stop:
            break
    ledger.finish(number)


def test_baseline_is_trial_0_and_numbers_have_no_gaps(make_setup: Make) -> None:
    constrained = make_setup(space={"constraints": ["optim.lr * data.batch_size < 0.02"]})
    with StudyDirectory(constrained) as directory:
        ledger = Ledger(directory, ignore)
        proposals = [take(ledger) for _ in range(5)]
        assert ledger.next_trial() is None
        assert [p.number for p in proposals] == [0, 1, 2, 3, 4]
        assert proposals[0].values == {"optim.lr": 1e-3, "data.batch_size": 16}
        assert all(p.values["optim.lr"] * p.values["data.batch_size"] < 0.02 for p in proposals)  # type: ignore[operator]
        assert len({p.values["optim.lr"] for p in proposals}) == 5
        assert (directory.trial_dir(4) / "config.yaml").exists()


def test_states_are_truthful(make_setup: Make) -> None:
    events: list[TrialEvent] = []
    with StudyDirectory(make_setup(study={"num_trials": 6})) as directory:
        ledger = Ledger(directory, events.append)
        run_to_end(ledger, take(ledger).number, 0.5)
        run_to_end(ledger, take(ledger).number, 0.4)
        ledger.infeasible(take(ledger).number, "out_of_memory: batch of 64")
        ledger.fail(take(ledger).number, "its process was killed")
        ledger.report(take(ledger).number, metrics(10, math.nan))
        ledger.finish(take(ledger).number)
        trials = directory.journal.get_trials()
        records = directory.records()
        assert ledger.num_remaining == 0
    states = [TrialState.COMPLETE, TrialState.PRUNED, TrialState.PRUNED, TrialState.FAIL, TrialState.PRUNED]
    assert [t.state for t in trials] == [*states, TrialState.FAIL]
    assert trials[0].value == 0.5
    assert trials[1].intermediate_values == {10: 0.4}
    assert trials[2].constraints == {"out_of_memory": 1.0}
    assert trials[4].constraints == {"diverged": 1.0}
    assert [r.state for r in records] == ["complete", "stopped", "infeasible", "failed", "infeasible", "failed"]
    assert records[1].reason == "rung 10: 0.4 below 0.5, the best third"
    assert records[2].reason == "out_of_memory: batch of 64"
    assert records[4].reason.startswith("diverged: val/auc@5 = nan")
    assert records[5].reason == "ended after 0 of 90 pairs"
    assert [e.kind for e in events].count("finished") == 6
    assert events[0].kind == "started"


def test_table_is_ranked(make_setup: Make) -> None:
    setup = make_setup(study={"num_trials": 5, "scheduler": {"name": "none"}})
    with StudyDirectory(setup) as directory:
        ledger = Ledger(directory, ignore)
        run_to_end(ledger, take(ledger).number, 0.3)
        ledger.fail(take(ledger).number, "crashed")
        run_to_end(ledger, take(ledger).number, 0.6)
        ledger.report(take(ledger).number, metrics(10, 0.9))
        ledger.infeasible(take(ledger).number, "diverged: loss")
        assert [r.number for r in directory.table()] == [2, 0, 3, 4, 1]
        best = directory.best()
        assert best is not None and best.number == 2
        assert best.metrics["val/auc@10"] == 0.6


def test_killed_search_continues_where_it_was(make_setup: Make) -> None:
    setup = make_setup()
    with StudyDirectory(setup) as directory:
        ledger = Ledger(directory, ignore)
        run_to_end(ledger, take(ledger).number, 0.5)
        running = take(ledger)
        ledger.report(running.number, metrics(10, 0.7))
    events: list[TrialEvent] = []
    with StudyDirectory(setup) as directory:
        ledger = Ledger(directory, events.append)
        assert ledger.num_remaining == 4
        assert take(ledger) == running
        assert events[0].kind == "resumed" and events[0].record.pairs_seen == 10
        run_to_end(ledger, running.number, 0.7)  # reports 10 pairs again: taken once
        assert [take(ledger).number for _ in range(3)] == [2, 3, 4]
        assert ledger.next_trial() is None
        assert directory.journal.get_trials()[1].state == TrialState.COMPLETE


def test_end_that_was_decided_before_the_kill_is_told(make_setup: Make) -> None:
    setup = make_setup()
    with StudyDirectory(setup) as directory:
        ledger = Ledger(directory, ignore)
        run_to_end(ledger, take(ledger).number, 0.5)
        stopped, complete = take(ledger).number, take(ledger).number
        assert ledger.report(stopped, metrics(10, 0.1)).stop
        ledger.report(complete, metrics(90, 0.9))
    with StudyDirectory(setup) as directory:
        ledger = Ledger(directory, ignore)
        assert [r.state for r in directory.records()] == ["complete", "stopped", "complete"]
        assert take(ledger).number == 3
        best = directory.best()
        assert best is not None and best.number == complete


def test_killed_between_report_and_decision(make_setup: Make) -> None:
    setup = make_setup()
    with StudyDirectory(setup) as directory:
        ledger = Ledger(directory, ignore)
        run_to_end(ledger, take(ledger).number, 0.5)
        number = take(ledger).number
        ledger._live[number].report(0.1, 10)  # the journal has it, the rungs do not
    with StudyDirectory(setup) as directory:
        Ledger(directory, ignore)
        assert directory.records()[number].state == "stopped"


def test_killed_between_asking_and_recording(make_setup: Make) -> None:
    setup = make_setup()
    with StudyDirectory(setup) as directory:
        Ledger(directory, ignore)
        asked = directory.journal.ask()
    with StudyDirectory(setup) as directory:
        proposal = take(Ledger(directory, ignore))
        assert proposal == Proposal(number=asked.number, values={"optim.lr": 1e-3, "data.batch_size": 16})


def test_number_of_trials_may_grow_and_shrink(make_setup: Make) -> None:
    for num_trials, handed_out in ((2, 2), (3, 1), (1, 0)):
        with StudyDirectory(make_setup(study={"num_trials": num_trials})) as directory:
            ledger = Ledger(directory, ignore)
            assert ledger.num_remaining == handed_out
            for _ in range(handed_out):
                ledger.infeasible(take(ledger).number, "diverged: loss")
            assert ledger.next_trial() is None


def test_resumed_search_proposes_what_an_uninterrupted_one_would(make_setup: Make) -> None:
    def values(name: str, interrupt: bool) -> list[Any]:
        setup = make_setup(study={"name": name, "num_trials": 15, "sampler": {"num_startup_trials": 3}})
        directory = StudyDirectory(setup)
        ledger, found = Ledger(directory, ignore), []
        for index in range(15):
            if interrupt and index in (4, 9):
                directory.close()
                directory = StudyDirectory(setup)
                ledger = Ledger(directory, ignore)
            proposal = take(ledger)
            found.append(proposal.values)
            run_to_end(ledger, proposal.number, -abs(math.log10(float(proposal.values["optim.lr"])) + 2))  # type: ignore[arg-type]
        directory.close()
        return found

    uninterrupted = values("a", interrupt=False)
    assert values("b", interrupt=True) == uninterrupted
    assert len({v["optim.lr"] for v in uninterrupted}) == 15


def test_sampler_learns_and_avoids_what_is_infeasible(make_setup: Make) -> None:
    setup = make_setup(study={"num_trials": 60, "scheduler": {"name": "none"}})
    with StudyDirectory(setup) as directory:
        ledger = Ledger(directory, ignore)
        for _ in range(60):
            proposal = take(ledger)
            if proposal.values["data.batch_size"] == 8:
                ledger.infeasible(proposal.number, "out_of_memory: batch")
            else:
                run_to_end(ledger, proposal.number, -abs(math.log10(float(proposal.values["optim.lr"])) + 2))  # type: ignore[arg-type]
        late = directory.records()[30:]
    assert sum(r.state == "infeasible" for r in late) < 10  # 15 by chance
    assert sum(abs(math.log10(r.values["optim.lr"]) + 2) < 0.5 for r in late) > 14  # 7 by chance


def test_closed_ledger_takes_nothing(make_setup: Make) -> None:
    with StudyDirectory(make_setup()) as directory:
        ledger = Ledger(directory, ignore)
        number = take(ledger).number
        ledger.close()
        assert ledger.next_trial() is None
        assert ledger.report(number, metrics(90, 0.5)).stop
        ledger.finish(number)
        ledger.fail(number, "killed with the rest")
        assert directory.records()[0].state == "running"


def test_restarts_are_counted_and_the_reason_is_cleared_at_the_end(make_setup: Make) -> None:
    with StudyDirectory(make_setup()) as directory:
        ledger = Ledger(directory, ignore)
        number = take(ledger).number
        ledger.retried(number, "its process was killed")
        assert ledger.record(number).num_failures == 1
        run_to_end(ledger, number, 0.5)
        assert ledger.record(number).reason == ""


def test_first_trials_that_all_fail_point_at_a_common_cause(make_setup: Make) -> None:
    with StudyDirectory(make_setup()) as directory:
        ledger = Ledger(directory, ignore)
        for _ in range(3):
            assert ledger.common_failure is None
            ledger.fail(take(ledger).number, "ValueError: a bug")
        assert ledger.common_failure == "ValueError: a bug"


def test_impossible_constraints_end_the_search_with_their_name(make_setup: Make) -> None:
    setup = make_setup(space={"constraints": ["optim.lr < 0.00000001"]})
    with StudyDirectory(setup) as directory, pytest.raises(ConfigError, match="in a row violate the constraints"):
        draw(directory.journal, SamplerConfig(name="random"), setup.space, setup.run)


def test_config_of_a_trial_holds_its_values(make_setup: Make) -> None:
    with StudyDirectory(make_setup()) as directory:
        take(Ledger(directory, ignore))
        config = directory.config(directory.records()[0])
    assert config.optim.lr == 1e-3
    assert to_mapping(config)["data"]["batch_size"] == 16

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from optuna.trial import TrialState

import raylg
from raylg.schema import to_mapping
from raylg.search.books import Proposal, TrialEvent
from raylg.search.ledger import Ledger
from raylg.search.meter import Meter
from raylg.search.rungs import Decision
from raylg.search.study import StudyDirectory, StudySetup

Make = Callable[..., StudySetup]
MEDIAN = {"name": "median", "grace_pairs": 10}
"""Stops at once; of trials that wait at rungs, see test_live.py."""


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
    with StudyDirectory(make_setup(study={"budget": "6trials", "scheduler": MEDIAN})) as directory:
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
    assert records[1].reason == "rung 10: 0.4 below 0.5, the median"
    assert records[2].reason == "out_of_memory: batch of 64"
    assert records[4].reason.startswith("diverged: val/auc@5 = nan")
    assert records[5].reason == "ended after 0 of 90 pairs"
    assert [e.kind for e in events].count("finished") == 6
    assert events[0].kind == "started"


def test_table_is_ranked(make_setup: Make) -> None:
    setup = make_setup(study={"budget": "5trials", "scheduler": {"name": "none"}})
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
    setup = make_setup(study={"scheduler": MEDIAN})
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
    setup = make_setup(study={"scheduler": MEDIAN})
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
    setup = make_setup(study={"scheduler": MEDIAN})
    with StudyDirectory(setup) as directory:
        ledger = Ledger(directory, ignore)
        run_to_end(ledger, take(ledger).number, 0.5)
        number = take(ledger).number
        ledger._live[number].report(0.1, 10)  # the journal has it, the rungs do not
    with StudyDirectory(setup) as directory:
        Ledger(directory, ignore)
        assert directory.records()[number].state == "stopped"


def test_number_of_trials_may_grow_and_shrink(make_setup: Make) -> None:
    for num_trials, handed_out in ((2, 2), (3, 1), (1, 0)):
        with StudyDirectory(make_setup(study={"budget": f"{num_trials}trials"})) as directory:
            ledger = Ledger(directory, ignore)
            assert ledger.num_remaining == handed_out
            for _ in range(handed_out):
                ledger.infeasible(take(ledger).number, "diverged: loss")
            assert ledger.next_trial() is None


def test_sampler_learns_and_avoids_what_is_infeasible(make_setup: Make) -> None:
    setup = make_setup(study={"budget": "60trials", "scheduler": {"name": "none"}})
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
    with StudyDirectory(make_setup(study={"scheduler": {"name": "none"}})) as directory:
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


def test_config_of_a_trial_holds_its_values(make_setup: Make) -> None:
    with StudyDirectory(make_setup()) as directory:
        take(Ledger(directory, ignore))
        config = directory.config(directory.records()[0])
    assert config.optim.lr == 1e-3
    assert to_mapping(config)["data"]["batch_size"] == 16


class Clock:
    """A clock that the test moves."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def metered(directory: StudyDirectory, clock: Clock, gpus: float = 0.0) -> Ledger:
    limits = directory.setup.study.limits
    return Ledger(directory, ignore, Meter(directory.path / "spent.json", limits, gpus_per_trial=gpus, clock=clock))


def test_used_up_budget_stops_what_runs_but_not_the_baseline(make_setup: Make) -> None:
    clock = Clock()
    study = {"budget": "60s", "confirm": {"enabled": False}, "scheduler": MEDIAN}
    with StudyDirectory(make_setup(study=study)) as directory:
        ledger = metered(directory, clock)
        baseline, other = take(ledger).number, take(ledger).number
        clock.now = 59
        assert not ledger.report(other, metrics(10, 0.6)).stop
        clock.now = 60
        assert ledger.report(other, metrics(20, 0.6)) == Decision(stop=True, reason="budget 1min used up")
        ledger.finish(other)
        assert ledger.next_trial() is None
        run_to_end(ledger, baseline, 0.5)
        assert ledger.num_remaining == 0
        records, trial = directory.records(), directory.journal.get_trials()[other]
    assert [(r.state, r.reason) for r in records] == [("complete", ""), ("stopped", "budget 1min used up")]
    assert trial.state == TrialState.PRUNED and trial.intermediate_values == {10: 0.6, 20: 0.6}


def test_search_leaves_the_confirmation_its_share(make_setup: Make) -> None:
    clock = Clock()
    study = {"budget": ["10gpuh", "40trials"], "confirm": {"budget_share": 0.3}, "scheduler": MEDIAN}
    with StudyDirectory(make_setup(study=study)) as directory:
        ledger = metered(directory, clock, gpus=4)
        number = take(ledger).number
        clock.now = 3600 * 6.9 / 4
        run_to_end(ledger, number, 0.5)
        number = take(ledger).number
        clock.now = 3600 * 7.1 / 4
        assert ledger.report(number, metrics(10, 0.9)).reason == "budget 70% of 10gpuh used up"
        ledger.finish(number)
        assert ledger.next_trial() is None


def test_grown_budget_continues_and_a_used_up_one_settles_what_was_interrupted(make_setup: Make) -> None:
    clock = Clock()

    def setup(budget: str) -> StudySetup:
        return make_setup(study={"budget": budget, "confirm": {"enabled": False}, "scheduler": MEDIAN})

    with StudyDirectory(setup("60s")) as directory:
        ledger = metered(directory, clock)
        for _ in range(3):
            take(ledger)
        clock.now = 70
        ledger.close()
    clock.now = 5000  # downtime
    with StudyDirectory(setup("60s")) as directory:
        ledger = metered(directory, clock)
        assert [r.state for r in directory.records()] == ["running", "stopped", "stopped"]
        assert ledger.num_remaining == 1
        assert take(ledger).number == 0
        assert ledger.next_trial() is None
        run_to_end(ledger, 0, 0.5)
        assert ledger.num_remaining == 0
    with StudyDirectory(setup("80s")) as directory:
        ledger = metered(directory, clock)
        assert take(ledger).number == 3  # 10 s are left
        clock.now += 9
        assert not ledger.report(3, metrics(10, 0.9)).stop
        clock.now += 1
        assert ledger.report(3, metrics(20, 0.9)).reason == "budget 80s used up"


def test_seconds_of_a_trial_add_up_over_sessions(make_setup: Make) -> None:
    clock = Clock()
    setup = make_setup(study={"scheduler": {"name": "none"}})
    with StudyDirectory(setup) as directory:
        ledger = metered(directory, clock)
        first, second = take(ledger).number, take(ledger).number
        clock.now = 5
        ledger.report(first, metrics(10, 0.5))
        clock.now = 8
        ledger.infeasible(second, "out_of_memory: batch of 64")
        ledger.close()
    clock.now = 1000
    with StudyDirectory(setup) as directory:
        ledger = metered(directory, clock)
        take(ledger)
        clock.now += 7
        run_to_end(ledger, first, 0.5, start=10)
        assert [record.seconds for record in directory.records()] == [12, 8]


def test_lottery_trial_reaches_the_full_budget_and_may_win(make_setup: Make) -> None:
    setup = make_setup(study={"scheduler": {**MEDIAN, "lottery": 1.0}})
    with StudyDirectory(setup) as directory:
        ledger = Ledger(directory, ignore)
        run_to_end(ledger, take(ledger).number, 0.5)
        lucky = take(ledger).number
        ledger.report(lucky, metrics(10, 0.1))
    with StudyDirectory(setup) as directory:
        ledger = Ledger(directory, ignore)
        assert take(ledger).number == lucky
        run_to_end(ledger, lucky, 0.7, start=10)
        record, best = directory.records()[lucky], directory.best()
    assert record.state == "complete" and record.reason == ""
    assert record.lottery == "rung 10: 0.1 below 0.5, the median"
    assert record.scores == {10: 0.1, **dict.fromkeys(range(20, 91, 10), 0.7)}
    assert best is not None and best.number == lucky


def test_interrupted_lottery_trial_keeps_its_mark(make_setup: Make) -> None:
    setup = make_setup(study={"scheduler": {**MEDIAN, "lottery": 1.0}})
    with StudyDirectory(setup) as directory:
        ledger = Ledger(directory, ignore)
        run_to_end(ledger, take(ledger).number, 0.5)
        lucky = take(ledger).number
        ledger._live[lucky].report(0.1, 10)  # killed before the rung was asked
    with StudyDirectory(setup) as directory:
        Ledger(directory, ignore)
        assert directory.records()[lucky].lottery.startswith("rung 10")


def test_longest_interrupted_trial_goes_first(make_setup: Make) -> None:
    setup = make_setup(study={"scheduler": {"name": "none"}})
    with StudyDirectory(setup) as directory:
        ledger = Ledger(directory, ignore)
        numbers = [take(ledger).number for _ in range(3)]
        ledger.report(2, metrics(80, 0.5))

    def by_number(values: Mapping[str, Any]) -> float:
        return expected[values["optim.lr"]]

    with StudyDirectory(setup) as directory:
        learning_rates = [record.values["optim.lr"] for record in directory.records()]
        expected = dict(zip(learning_rates, (1.0, 2.0, 3.0), strict=True))
        ledger = Ledger(directory, ignore, cost=by_number)
        assert [take(ledger).number for _ in numbers] == [1, 0, 2]  # trial 2 is dearest, but almost done


def test_trials_carry_hashes_and_version(make_setup: Make) -> None:
    with StudyDirectory(make_setup(hashes={"data": "abc", "protocol": "def"})) as directory:
        number = take(Ledger(directory, ignore)).number
        record = directory.records()[number]
    assert record.hashes == {"data": "abc", "protocol": "def"}
    assert record.version == raylg.__version__


def test_finite_space_ends_by_itself(make_setup: Make) -> None:
    space = {
        "parameters": {"data.batch_size": {"type": "choice", "values": [8, 16, 32]}},
        "baseline": {"data.batch_size": 16},
    }
    study = {"budget": "50trials", "sampler": {"name": "grid"}, "scheduler": {"name": "none"}}
    with StudyDirectory(make_setup(study=study, space=space)) as directory:
        ledger = Ledger(directory, ignore)
        numbers = [take(ledger).number for _ in range(3)]
        assert ledger.next_trial() is None
        assert ledger.num_remaining == 3  # they still run
        for number in numbers:
            run_to_end(ledger, number, 0.5)
        assert ledger.num_remaining == 0


def test_longest_point_goes_first_after_the_baseline(make_setup: Make) -> None:
    points = [{"optim.lr": 1e-4}, {"optim.lr": 2e-2}, {"optim.lr": 5e-3}]
    with StudyDirectory(make_setup(space={"points": points})) as directory:
        ledger = Ledger(directory, ignore, cost=lambda values: float(values["optim.lr"]))
        assert [take(ledger).values["optim.lr"] for _ in range(4)] == [1e-3, 2e-2, 5e-3, 1e-4]


def test_interrupted_trials_beyond_a_shrunk_budget_are_ended(make_setup: Make) -> None:
    with StudyDirectory(make_setup(study={"scheduler": {"name": "none"}})) as directory:
        ledger = Ledger(directory, ignore)
        for number, score in enumerate((0.5, 0.6, 0.7, 0.8)):
            assert take(ledger).number == number
            if number < 2:
                run_to_end(ledger, number, score)
    with StudyDirectory(make_setup(study={"budget": "2trials", "scheduler": {"name": "none"}})) as directory:
        ledger = Ledger(directory, ignore)
        assert ledger.num_remaining == 2
        for number in (2, 3):
            assert take(ledger).number == number
            run_to_end(ledger, number, 0.9)
        assert ledger.num_remaining == 0
        assert ledger.next_trial() is None
        assert [r.state for r in directory.records()] == ["complete"] * 4


@pytest.mark.parametrize("attribute", ["reason", "infeasible", "constraint", "told"])
def test_killed_while_infeasibility_is_written(
    make_setup: Make, monkeypatch: pytest.MonkeyPatch, attribute: str
) -> None:
    """After each of the writes the trial is as it was before or as it should be, and never something else."""
    with StudyDirectory(make_setup(study={"scheduler": {"name": "none"}})) as directory:
        ledger = Ledger(directory, ignore)
        number = take(ledger).number
        trial = ledger._live[number]

        def kill(*_: object, **__: object) -> None:
            raise KeyboardInterrupt

        set_attribute = trial.set_user_attr
        if attribute == "constraint":
            monkeypatch.setattr(trial, "set_constraint", kill)
        elif attribute == "told":
            monkeypatch.setattr(directory.journal, "tell", kill)
        else:
            monkeypatch.setattr(
                trial, "set_user_attr", lambda key, value: kill() if key == attribute else set_attribute(key, value)
            )
        with pytest.raises(KeyboardInterrupt):
            ledger.infeasible(number, "out_of_memory: batch of 64")
        monkeypatch.undo()
    with StudyDirectory(make_setup(study={"scheduler": {"name": "none"}})) as directory:
        ledger = Ledger(directory, ignore)
        if directory.records()[0].state == "running":  # the next attempt finds enough memory
            assert take(ledger).number == number
            run_to_end(ledger, number, 0.5)
        record, stored = directory.records()[0], directory.journal.get_trials()[0]
    if record.state == "complete":
        assert not stored.constraints
    else:
        assert (record.state, record.reason) == ("infeasible", "out_of_memory: batch of 64")
        assert stored.constraints == {"out_of_memory": 1.0}
    assert record.state == ("complete" if attribute in ("reason", "infeasible") else "infeasible")


def test_what_the_confirmation_spent_is_not_taken_from_a_grown_search(make_setup: Make) -> None:
    clock = Clock()
    with StudyDirectory(make_setup(study={"budget": "100s", "scheduler": MEDIAN})) as directory:
        meter = Meter(directory.path / "spent.json", directory.setup.study.limits, clock=clock)
        ledger = Ledger(directory, ignore, meter)
        run_to_end(ledger, take(ledger).number, 0.5)
        clock.now = 50
        assert ledger.next_trial() is None
        ledger.close()
        meter.confirms = True
        meter.beat(2)
        clock.now = 100
        meter.stop()
        assert meter.reached() == "100s"
    with StudyDirectory(make_setup(study={"budget": "200s", "scheduler": MEDIAN})) as directory:
        ledger = metered(directory, clock)
        number = take(ledger).number
        clock.now = 149
        assert not ledger.report(number, metrics(10, 0.9)).stop
        clock.now = 150
        assert ledger.report(number, metrics(20, 0.9)).reason == "budget 50% of 200s used up"
        ledger.close()
    study = {"budget": "140s", "confirm": {"budget_share": 0.1}, "scheduler": MEDIAN}
    with StudyDirectory(make_setup(study=study)) as directory:
        ledger = metered(directory, clock)  # its share is 126 s, but 150 s of 140 s are gone
        assert directory.records()[1].reason == "budget 140s used up"
        assert ledger.num_remaining == 0

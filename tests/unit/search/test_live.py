"""Trials that wait at rungs, give their workers back, and go on or end later."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
from optuna.trial import TrialState

from raylg.search.books import EventKind, TrialEvent
from raylg.search.ledger import Ledger
from raylg.search.live import LiveTrials
from raylg.search.meter import Meter
from raylg.search.rungs import Decision, Rungs, draws_lottery, read_rungs
from raylg.search.study import StudyDirectory, StudySetup

Make = Callable[..., StudySetup]
Score = Callable[[int, int, Mapping[str, Any]], float]
WAITS = Decision(stop=True, waits=True)


class Clock:
    """A clock that the test moves."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


class Killed(BaseException):
    """The process is gone."""


def study(budget: str = "9trials", lottery: float = 0.0, **more: Any) -> dict[str, Any]:
    scheduler = {"grace_pairs": 10, "lottery": lottery}
    confirm = {"enabled": False}
    return {"budget": budget, "sampler": {"name": "sobol"}, "scheduler": scheduler, "confirm": confirm, **more}


def ledger_of(directory: StudyDirectory, events: list[TrialEvent] | None = None, clock: Clock | None = None) -> Ledger:
    meter = Meter(directory.path / "spent.json", directory.setup.study.limits, clock=clock or Clock())
    return Ledger(directory, (events if events is not None else []).append, meter)


def take(ledger: Ledger) -> int:
    proposal = ledger.next_trial()
    assert proposal is not None
    return proposal.number


def report(ledger: Ledger, number: int, pairs_seen: int, score: float) -> Decision:
    return ledger.report(number, {"pairs_seen": pairs_seen, "val/auc@5": score})


def wait(ledger: Ledger, *scores: float) -> None:
    """New trials come to the first rung and wait there."""
    for score in scores:
        number = take(ledger)
        assert report(ledger, number, 10, score) == WAITS
        ledger.finish(number)


def drive(ledger: Ledger, score: Score, clock: Clock | None = None) -> list[int]:
    """One worker until nothing is handed out; a second of the clock for each pair. Numbers as handed out."""
    handed_out = []
    while (proposal := ledger.next_trial()) is not None:
        number, values = proposal.number, proposal.values
        handed_out.append(number)
        for pairs_seen in range(ledger.record(number).pairs_seen + 10, 91, 10):
            if clock is not None:
                clock.now += 10
            if report(ledger, number, pairs_seen, score(number, pairs_seen, values)).stop:
                break
        ledger.finish(number)
    return handed_out


def by_number(number: int, pairs_seen: int, values: Mapping[str, Any]) -> float:
    return number / 100


def test_a_waiting_trial_is_handed_out_again_before_new_ones(make_setup: Make) -> None:
    events: list[TrialEvent] = []
    with StudyDirectory(make_setup(study=study())) as directory:
        ledger = ledger_of(directory, events)
        wait(ledger, 0.5, 0.9)
        record, trial = ledger.record(1), directory.journal.get_trials()[1]
        assert (record.state, record.reason, record.pairs_seen) == ("waiting", "", 10)
        assert trial.state == TrialState.RUNNING
        assert ledger.num_remaining == 9  # those that wait included
        wait(ledger, 0.1)
        assert take(ledger) == 1
        assert ledger.record(1).state == "running"
        assert take(ledger) == 3
    kinds: list[tuple[EventKind, int]] = [(event.kind, event.record.number) for event in events]
    assert kinds[:3] == [("started", 0), ("reported", 0), ("waits", 0)]
    assert kinds[6:] == [("started", 2), ("reported", 2), ("waits", 2), ("resumed", 1), ("started", 3)]
    assert [event.record.state for event in events if event.kind == "waits"] == ["waiting"] * 3


def test_the_best_keeps_its_worker(make_setup: Make) -> None:
    with StudyDirectory(make_setup(study=study())) as directory:
        ledger = ledger_of(directory)
        wait(ledger, 0.5, 0.4)
        best = take(ledger)
        assert report(ledger, best, 10, 0.6) == Decision()
        assert report(ledger, best, 20, 0.6) == Decision()
        assert report(ledger, best, 30, 0.6) == WAITS
        assert ledger.record(best).state == "running"
        ledger.finish(best)
        assert [record.state for record in directory.records()] == ["waiting"] * 3


def test_a_report_taken_twice_gets_the_same_answer(make_setup: Make) -> None:
    with StudyDirectory(make_setup(study=study())) as directory:
        ledger = ledger_of(directory)
        number = take(ledger)
        assert report(ledger, number, 10, 0.5) == report(ledger, number, 10, 0.5) == WAITS
        ledger.finish(number)
        assert report(ledger, number, 20, 0.9).stop  # it holds no worker any more
        assert directory.records()[number].pairs_seen == 10


def test_those_that_wait_in_vain_end_with_the_reason_of_their_rung(make_setup: Make) -> None:
    events: list[TrialEvent] = []
    with StudyDirectory(make_setup(study=study())) as directory:
        ledger = ledger_of(directory, events)
        drive(ledger, by_number)
        assert ledger.num_remaining == 0 and ledger.next_trial() is None
        records, trials = directory.records(), directory.journal.get_trials()
        passages = read_rungs(directory.path / "rungs.json")
    assert {trial.state for trial in trials} == {TrialState.COMPLETE, TrialState.PRUNED}
    assert records[0].state == records[8].state == "complete"  # the baseline, and the best
    stopped = [record for record in records if record.state == "stopped"]
    assert stopped and all(r.reason == passages[r.pairs_seen][r.number].reason for r in stopped)
    assert records[1].reason == "rung 10: 0.01, not among the best third"
    assert sorted(e.record.number for e in events if e.kind == "finished") == list(range(9))


def crossing(number: int, pairs_seen: int, values: Mapping[str, Any]) -> float:
    """The best learning rate grows with the budget, from 1e-4 to 1e-2."""
    return -abs(math.log10(values["optim.lr"]) + 4 - 2 * pairs_seen / 90)


def test_killed_again_and_again_it_goes_on_as_if_nothing_had_happened(
    make_setup: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before and after each of the steps in which a trial comes to wait, goes on and ends."""
    more = {"sampler": {"name": "surface", "num_startup_trials": 4}}
    whole, setup = (make_setup(study=study("12trials", 0.3, name=name, **more)) for name in ("whole", "killed"))
    with StudyDirectory(whole) as directory:
        drive(ledger_of(directory), crossing)
        expected = directory.records()
    rng, driving, killed = np.random.default_rng(0), False, set()

    def mortal(owner: type, method: str) -> Callable[..., Any]:
        original = getattr(owner, method)

        def step(*arguments: Any, **named: Any) -> Any:
            fates = rng.random(2) < 0.08
            for when, dies in zip(("before", "after"), fates, strict=True):
                if when == "after":
                    answer = original(*arguments, **named)
                if driving and dies:
                    killed.add((method, when))
                    raise Killed
            return answer

        return step

    steps = {Rungs: ("decide", "let_on", "end"), LiveTrials: ("start", "pause", "tell")}
    for owner, methods in steps.items():
        for method in methods:
            monkeypatch.setattr(owner, method, mortal(owner, method))
    ended = False
    with StudyDirectory(setup) as directory:
        while not ended:
            with contextlib.suppress(Killed):
                driving, ledger = False, ledger_of(directory)
                driving = True
                drive(ledger, crossing)
                ended = True
        found = directory.records()
    assert len(killed) > 6 and {method for method, _ in killed} >= {"decide", "let_on", "start", "pause"}
    for then, now in zip(expected, found, strict=True):
        assert (now.values, now.state, now.reason) == (then.values, then.state, then.reason)
        assert (now.scores, now.lottery) == (then.scores, then.lottery)
    assert (setup.path / "rungs.json").read_text() == (whole.path / "rungs.json").read_text()
    assert {record.state for record in found} == {"complete", "stopped"} and any(r.lottery for r in found)


def test_waiting_trials_of_an_earlier_session_go_on_waiting(make_setup: Make) -> None:
    events: list[TrialEvent] = []
    with StudyDirectory(make_setup(study=study())) as directory:
        wait(ledger_of(directory), 0.5, 0.9)
    with StudyDirectory(make_setup(study=study())) as directory:
        ledger = ledger_of(directory, events)
        assert not events  # nothing new
        assert [record.state for record in directory.records()] == ["waiting"] * 2
        assert not ledger.may_follow and ledger.num_remaining == 9
        wait(ledger, 0.1)
        assert take(ledger) == 1
    with StudyDirectory(make_setup(study=study())) as directory:
        ledger = ledger_of(directory)
        assert [record.state for record in directory.records()] == ["waiting", "running", "waiting"]
        assert take(ledger) == 1  # interrupted: before all others


def test_a_waiting_trial_may_follow_one_that_runs(make_setup: Make) -> None:
    with StudyDirectory(make_setup(study=study("3trials"))) as directory:
        ledger = ledger_of(directory)
        wait(ledger, 0.5)
        assert not ledger.may_follow  # nothing runs
        running = [take(ledger), take(ledger)]
        assert ledger.may_follow
        assert take(ledger) == 0  # no new trial will come, and it is the only one at its rung
        assert ledger.may_follow  # nobody waits, but those that run may come to wait
        assert report(ledger, running[0], 10, 0.4) == WAITS
        ledger.finish(running[0])
        assert ledger.next_trial() is None and ledger.may_follow
        assert report(ledger, running[1], 10, 0.6) == Decision()
        assert ledger.next_trial() is None and ledger.record(1).state == "waiting"
        assert report(ledger, running[1], 90, 0.6) == Decision()
        ledger.finish(running[1])
        assert ledger.may_follow
        ledger.close()
        assert not ledger.may_follow


def test_a_waiting_trial_holds_no_worker(make_setup: Make) -> None:
    clock = Clock()
    with StudyDirectory(make_setup(study=study())) as directory:
        ledger = ledger_of(directory, clock=clock)
        number = take(ledger)
        clock.now = 10
        assert report(ledger, number, 10, 0.5).waits
        clock.now = 12  # it writes its checkpoint
        ledger.finish(number)
        assert ledger.record(number).seconds == 12
        clock.now = 100
        wait(ledger, 0.4, 0.3)
        assert take(ledger) == number
        clock.now = 120
        report(ledger, number, 20, 0.5)
        assert ledger.record(number).seconds == 32
        ledger.close()
    clock.now = 1000
    with StudyDirectory(make_setup(study=study())) as directory:
        ledger = ledger_of(directory, clock=clock)
        assert take(ledger) == number
        clock.now = 1005
        report(ledger, number, 30, 0.5)
        assert [record.seconds for record in directory.records()] == [37, 0, 0]


@pytest.mark.parametrize("limit", [185, 190, 260, 500])
def test_last_call_before_the_time_is_up(make_setup: Make, limit: int) -> None:
    """The best one gets what it needs for its end, even below the 200 s that rungs alone need; a trial takes 90 s."""
    clock, ended = Clock(), {}

    def note(event: TrialEvent) -> None:
        if event.kind == "finished":
            ended[event.record.number] = clock.now

    def score(number: int, pairs_seen: int, values: Mapping[str, Any]) -> float:
        return 0.5 + number * 37 % 10 / 100 if number else 0.1

    with StudyDirectory(make_setup(study=study(f"{limit}s"))) as directory:
        meter = Meter(directory.path / "spent.json", directory.setup.study.limits, clock=clock)
        drive(Ledger(directory, note, meter), score, clock)
        records = directory.records()
    complete = [record.number for record in records if record.state == "complete"]
    assert 0 in complete and ended[0] < limit + 90  # no limit ends the baseline
    others = [number for number in complete if number]
    assert others and all(ended[number] <= limit for number in others)
    last = max(record.number for record in records)
    assert last >= 2 and max(score(n, 90, {}) for n in range(1, last + 1)) == max(score(n, 90, {}) for n in others)
    assert not any(record.reason.startswith("budget") for record in records)  # nobody was cut off between rungs


def test_used_up_budget_ends_those_that_wait_but_not_the_baseline(make_setup: Make) -> None:
    clock = Clock()
    with StudyDirectory(make_setup(study=study("60s"))) as directory:
        ledger = ledger_of(directory, clock=clock)
        baseline, waiting, running = take(ledger), take(ledger), take(ledger)
        for number, score in ((baseline, 0.1), (waiting, 0.6)):
            assert report(ledger, number, 10, score) == WAITS
            ledger.finish(number)
        clock.now = 60
        late = "rung 10: 0.9, budget 1min used up"
        assert report(ledger, running, 10, 0.9) == Decision(stop=True, reason=late)  # the best, but too late
        ledger.finish(running)
        assert set(drive(ledger, by_number)) == {baseline}
        records = directory.records()
    assert [record.state for record in records] == ["complete", "stopped", "stopped"]
    assert records[waiting].reason == "rung 10: 0.6, budget 1min used up"
    assert records[running].reason == late


def test_drawn_trials_go_on_at_the_end_and_say_so(make_setup: Make) -> None:
    drawn = [number for number in range(1, 9) if draws_lottery(0, number, 0.3)]
    setup = make_setup(study=study(lottery=0.3))
    with StudyDirectory(setup) as directory:
        handed_out = drive(ledger_of(directory), lambda number, *_: (9 - number) / 100)
        records, passages = directory.records(), read_rungs(directory.path / "rungs.json")
    lucky = [record for record in records if record.lottery]
    assert lucky and {record.number for record in lucky} <= set(drawn)
    assert all(record.state == "complete" and record.reason == "" for record in lucky)
    assert handed_out[-len(lucky) :] == sorted(record.number for record in lucky)
    for record in lucky:
        assert [p[record.number].reason for p in passages.values() if record.number in p].count(record.lottery) == 1
        assert record.lottery.endswith(f": {(9 - record.number) / 100:.4g}, not among the best third")


def test_drawn_trials_go_on_at_once_where_nobody_knows_the_end(make_setup: Make) -> None:
    with StudyDirectory(make_setup(study=study("10h", lottery=1.0))) as directory:
        ledger = ledger_of(directory)
        wait(ledger, 0.5, 0.4)
        number = take(ledger)
        assert report(ledger, number, 10, 0.1) == WAITS  # the best of three, which is the baseline, goes first
        ledger.finish(number)
        assert take(ledger) == 0
        assert take(ledger) == 1
        assert ledger.record(1).lottery == "rung 10: 0.4, not among the best third"
        assert report(ledger, 1, 30, 0.1) == Decision()
        assert ledger.record(number).state == "waiting"


def test_a_trial_that_lost_its_process_when_told_to_wait_can_still_complete(make_setup: Make) -> None:
    with StudyDirectory(make_setup(study=study("4trials"))) as directory:
        ledger = ledger_of(directory)
        wait(ledger, 0.5, 0.4)
        lost, last = take(ledger), take(ledger)
        assert report(ledger, lost, 10, 0.45) == WAITS
        ledger.put_back(lost, "its process was killed")
        assert report(ledger, last, 10, 0.1) == WAITS
        ledger.finish(last)
        assert take(ledger) == lost and take(ledger) == 0
        assert report(ledger, 0, 30, 0.5) == Decision()
        assert report(ledger, 0, 90, 0.5) == Decision()
        ledger.finish(0)
        assert report(ledger, lost, 10, 0.45) == Decision()
        assert report(ledger, lost, 30, 0.9) == Decision()
        assert report(ledger, lost, 90, 0.9) == Decision()
        ledger.finish(lost)
        assert ledger.record(lost).state == "complete"

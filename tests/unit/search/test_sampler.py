from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from raylg.errors import ConfigError
from raylg.search.journal import STUDY_NAME
from raylg.search.ledger import Ledger
from raylg.search.sampler import SOBOL
from raylg.search.study import StudyDirectory, StudySetup

Make = Callable[..., StudySetup]
CONDITIONAL = {
    "parameters": {
        "optim.lr": {"type": "float", "low": 1e-5, "high": 1e-1, "log": True},
        "optim.decay": {"type": "choice", "values": ["none", "cosine"]},
        "optim.decay_start": {"type": "float", "low": 0.0, "high": 0.8, "step": 0.2, "when": "optim.decay != none"},
        "ground_truth.th_positive": {"type": "float", "low": 1.0, "high": 5.0, "step": 0.5},
        "ground_truth.th_negative": {"offset_from": "ground_truth.th_positive", "low": 0.0, "high": 4.0},
        "data.batch_size": {"type": "int", "low": 8, "high": 64, "log": True},
    },
    "constraints": ["ground_truth.th_negative <= 6", "optim.lr * data.batch_size < 0.1"],
    "baseline": {
        "optim.lr": 1e-3,
        "optim.decay": "none",
        "ground_truth.th_positive": 3.0,
        "ground_truth.th_negative": 5.0,
        "data.batch_size": 16,
    },
}
FINITE = {
    "parameters": {
        "data.batch_size": {"type": "choice", "values": [8, 16, 32]},
        "optim.decay": {"type": "choice", "values": ["none", "cosine"]},
        "optim.decay_start": {"type": "float", "low": 0.0, "high": 0.4, "step": 0.2, "when": "optim.decay != none"},
    },
    "constraints": ["data.batch_size < 32 or optim.decay == none"],
    "baseline": {"data.batch_size": 16, "optim.decay": "none"},
}


def study(name: str, num_trials: int = 1000, num_startup_trials: int = 5, **more: Any) -> dict[str, Any]:
    sampler = {"name": name, "num_startup_trials": num_startup_trials}
    return {"name": name, "budget": f"{num_trials}trials", "sampler": sampler, **more}


def score(values: Mapping[str, Any]) -> float:
    return -abs(math.log10(values.get("optim.lr", 1e-2)) + 2) - values.get("data.batch_size", 8) / 1000


def search(
    setup: StudySetup,
    *,
    interrupt_after: int = 0,
    workers: int = 1,
    why_infeasible: Callable[[Mapping[str, Any]], str] = lambda values: "",
) -> list[dict[str, Any]]:
    """Values of all trials, in order; every full-budget score is -|log10 lr + 2| a little less for large batches."""
    with StudyDirectory(setup) as directory:
        ledger = Ledger(directory, lambda event: None)
        live: list[Any] = []
        while True:
            proposal = ledger.next_trial()
            live += [proposal] if proposal else []
            if not live or (interrupt_after and len(directory.records()) > interrupt_after):
                break
            if proposal and len(live) < workers:
                continue
            number, values = live[0].number, live.pop(0).values
            if reason := why_infeasible(values):
                ledger.infeasible(number, reason)
                continue
            for pairs_seen in (10, 30, 90):
                if ledger.report(number, {"pairs_seen": pairs_seen, "val/auc@5": score(values)}).stop:
                    break
            ledger.finish(number)
        found = [dict(record.values) for record in directory.records()]
    if interrupt_after:
        return search(setup, workers=workers, why_infeasible=why_infeasible)
    return found


@pytest.mark.parametrize(
    ("name", "space"),
    [("surface", CONDITIONAL), ("tpe", CONDITIONAL), ("tpe", {}), ("sobol", CONDITIONAL), ("random", {})],
)
def test_resumed_study_proposes_what_an_uninterrupted_one_would(make_setup: Make, name: str, space: Any) -> None:
    whole = search(make_setup(study=study(name, 12), space=space))
    for after in (1, 8):
        again = study(name, 12, dir=str(make_setup().path / f"{after}"))
        assert search(make_setup(study=again, space=space), interrupt_after=after) == whole
    assert len({str(values) for values in whole}) == 12


def test_gaussian_process_learns_resumes_and_sees_stopped_and_infeasible_trials(make_setup: Make) -> None:
    def why(values: Mapping[str, Any]) -> str:
        return "out_of_memory: batch" if values["data.batch_size"] == 16 and values["optim.lr"] > 0.02 else ""

    whole = search(make_setup(study=study("gp", 14)), why_infeasible=why)
    again = study("gp", 14, dir=str(make_setup().path))
    assert search(make_setup(study=again), why_infeasible=why, interrupt_after=9) == whole
    late = whole[6:]
    assert sum(score(values) > -0.5 for values in late) >= 4  # 2 by chance
    assert sum(bool(why(values)) for values in late) <= 2


@pytest.mark.parametrize("name", ["surface", "tpe", "gp", "random", "sobol", "grid"])
def test_every_sampler_keeps_to_constraints_and_tries_nothing_twice(make_setup: Make, name: str) -> None:
    space = FINITE if name == "grid" else CONDITIONAL
    if name == "gp":
        space = {"constraints": ["optim.lr * data.batch_size < 0.1"]}
    setup = make_setup(study=study(name, 14), space=space)
    found = search(setup, workers=3)
    assert found[0] == setup.space.baseline_values(setup.run)
    assert all(setup.space.is_feasible(values, setup.run) for values in found)
    assert all(not setup.space.why_outside(values, setup.run) for values in found)
    assert len({str(sorted(values.items())) for values in found}) == len(found)
    if name != "gp":
        assert {values["optim.decay"] for values in found} == {"none", "cosine"}
        assert all(("optim.decay_start" in values) == (values["optim.decay"] != "none") for values in found)


@pytest.mark.parametrize("name", ["grid", "surface", "tpe", "gp", "sobol", "random"])
def test_ends_of_a_range_survive_rounding(make_setup: Make, name: str) -> None:
    space = {  # 0.1 + 6 * 0.1 > 0.7, and (0.7 + 0.1) - 0.7 > 0.1
        "parameters": {
            "optim.weight_decay": {"type": "float", "low": 0.1, "high": 0.7, "step": 0.1},
            "ground_truth.th_positive": {"type": "choice", "values": [0.7]},
            "ground_truth.th_negative": {
                "offset_from": "ground_truth.th_positive",
                "low": 0.1,
                "high": 0.3,
                "step": 0.1,
            },
        },
        "baseline": {"optim.weight_decay": 0.1, "ground_truth.th_positive": 0.7, "ground_truth.th_negative": 0.8},
    }
    setup = make_setup(study=study(name), space=space)
    setup.space.validate(setup.run)
    found = search(setup)
    assert len(found) == 21
    assert max(values["optim.weight_decay"] for values in found) == 0.7


@pytest.mark.parametrize("name", ["grid", "surface", "tpe", "sobol", "random"])
def test_finite_space_ends_by_itself_when_all_was_tried(make_setup: Make, name: str) -> None:
    found = search(make_setup(study=study(name), space=FINITE))
    expected = {(batch, "none", None) for batch in (8, 16, 32)}
    expected |= {(batch, "cosine", start) for batch in (8, 16) for start in (0.0, 0.2, 0.4)}
    tried = [(v["data.batch_size"], v["optim.decay"], v.get("optim.decay_start")) for v in found]
    assert len(tried) == 9 and set(tried) == expected


def test_sobol_start_covers_every_stratum(make_setup: Make) -> None:
    with StudyDirectory(make_setup(study=study("sobol", 17))) as directory:
        ledger = Ledger(directory, lambda event: None)
        lrs = [p.values["optim.lr"] for p in iter(ledger.next_trial, None)][1:]
        indices = [trial.user_attrs.get(SOBOL) for trial in directory.journal.get_trials()]
    assert indices == [None, *range(16)]
    strata = sorted(int(4 * (math.log10(float(lr)) + 5)) for lr in lrs)  # type: ignore[arg-type]
    assert strata == list(range(16))  # one point in each sixteenth of the range: what random points never do


def test_model_takes_over_after_the_start(make_setup: Make) -> None:
    setup = make_setup(study=study("tpe", 40))
    found = search(setup)
    with StudyDirectory(setup) as directory:
        from_sobol = [SOBOL in trial.user_attrs for trial in directory.journal.get_trials()]
    assert from_sobol == [False] + [True] * 4 + [False] * 35
    assert sum(score(values) > -0.5 for values in found[20:]) >= 10  # 5 by chance


def test_model_sees_every_end_for_what_it_was(make_setup: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    setup = make_setup(study=study("tpe", 5, num_startup_trials=1, scheduler={"name": "median", "grace_pairs": 10}))
    with StudyDirectory(setup) as directory:
        ledger = Ledger(directory, lambda event: None)
        for number, quality in enumerate((0.5, 0.1)):
            ledger.next_trial()
            ledger.report(number, {"pairs_seen": 10, "val/auc@5": quality})
            if quality == 0.5:
                ledger.report(number, {"pairs_seen": 90, "val/auc@5": 0.6})
            ledger.finish(number)
        ledger.next_trial()
        ledger.infeasible(2, "diverged: loss")
        ledger.next_trial()
        ledger.fail(3, "its process was killed")
        seen = seen_by_the_model(ledger, monkeypatch)
    assert seen == [
        (TrialState.COMPLETE, 0.6, {10: 0.5, 90: 0.6}, {}),
        (TrialState.PRUNED, 0.1, {10: 0.1}, {}),
        (TrialState.PRUNED, None, {}, {"diverged": 1.0}),
    ]


def seen_by_the_model(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """Trials in the study of the model that is asked for the next one."""
    studies, create_study = [], optuna.create_study

    def remember(**arguments: Any) -> optuna.Study:
        studies.append(create_study(**arguments))
        return studies[-1]

    monkeypatch.setattr(optuna, "create_study", remember)
    assert ledger.next_trial() is not None
    monkeypatch.undo()
    trials = [trial for trial in studies[-1].trials if trial.state != TrialState.FAIL]  # what it was asked itself
    return [(t.state, t.value, t.intermediate_values, t.constraints) for t in trials]


def test_model_sees_trials_that_wait_as_stopped(make_setup: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    setup = make_setup(study=study("tpe", 8, num_startup_trials=1, scheduler={"grace_pairs": 10, "lottery": 0}))
    with StudyDirectory(setup) as directory:
        ledger = Ledger(directory, lambda event: None)
        for number, quality in enumerate((0.5, 0.1)):
            ledger.next_trial()
            assert ledger.report(number, {"pairs_seen": 10, "val/auc@5": quality}).waits
            ledger.finish(number)
        waiting = [(TrialState.PRUNED, None, {10: quality}, {}) for quality in (0.5, 0.1)]
        assert seen_by_the_model(ledger, monkeypatch) == waiting
        assert ledger.report(2, {"pairs_seen": 10, "val/auc@5": 0.2}).waits
        ledger.finish(2)
        resumed = ledger.next_trial()
        assert resumed is not None and resumed.number == 0
        running = (TrialState.RUNNING, None, {}, {})
        others = [(TrialState.PRUNED, None, {10: quality}, {}) for quality in (0.1, 0.2)]
        assert seen_by_the_model(ledger, monkeypatch) == [*others, running]
        ledger.report(0, {"pairs_seen": 90, "val/auc@5": 0.6})
        ledger.finish(0)
        seen = seen_by_the_model(ledger, monkeypatch)
    assert seen == [(TrialState.COMPLETE, 0.6, {10: 0.5, 90: 0.6}, {}), *others, running]


def test_surface_moves_towards_the_best_and_away_from_what_is_infeasible(make_setup: Make) -> None:
    def why(values: Mapping[str, Any]) -> str:  # half of the best ones, and whatever is beyond
        return "diverged: loss" if values["optim.lr"] > 1e-2 else ""

    setup = make_setup(study=study("surface", 30, num_startup_trials=8))
    found = search(setup, why_infeasible=why)
    with StudyDirectory(setup) as directory:
        from_sobol = [SOBOL in trial.user_attrs for trial in directory.journal.get_trials()]
    assert from_sobol == [False] + [True] * 7 + [False] * 22
    late = found[15:]
    assert sum(bool(why(values)) for values in late) <= 2  # 4 by chance, and the edge is the best place
    assert sum(score(values) > -0.75 and not why(values) for values in late) >= 8  # 3 by chance


def test_surface_orders_trials_at_a_rung_by_what_it_expects_them_to_become(make_setup: Make) -> None:
    def crossing(values: Mapping[str, Any], pairs_seen: int) -> float:  # large learning rates begin badly
        return (math.log10(values["optim.lr"]) + 3) * (pairs_seen - 30) / 300

    orders = {}
    for name in ("surface", "sobol"):
        scheduler = {"grace_pairs": 10, "lottery": 1.0}  # at the end, all go on
        with StudyDirectory(make_setup(study=study(name, 12, 12, scheduler=scheduler))) as directory:
            ledger = Ledger(directory, lambda event: None)
            while (proposal := ledger.next_trial()) is not None:
                for pairs_seen in (10, 30, 90):
                    quality = crossing(proposal.values, pairs_seen)
                    if ledger.report(proposal.number, {"pairs_seen": pairs_seen, "val/auc@5": quality}).stop:
                        break
                ledger.finish(proposal.number)
            records = directory.records()
            early = {record.number: record.scores[10] for record in records}
            ranks = ledger._sampler.ranking()(10, early)
            orders[name] = sorted(ranks, key=lambda number: -ranks[number])
            by_lr = sorted(early, key=lambda number: -records[number].values["optim.lr"])
    assert orders["surface"][:4] == by_lr[:4] and orders["surface"][-4:] == by_lr[-4:]
    assert orders["sobol"] == by_lr[::-1]


def test_surface_that_knows_too_little_leaves_the_scores_as_they_are(make_setup: Make) -> None:
    with StudyDirectory(make_setup(study=study("surface", 12))) as directory:
        ledger = Ledger(directory, lambda event: None)
        for number in range(3):
            ledger.next_trial()
            ledger.report(number, {"pairs_seen": 10, "val/auc@5": number / 10})
        assert ledger._sampler.ranking()(10, {0: 0.0, 1: 0.1}) == {0: 0.0, 1: 0.1}


def test_trials_that_run_at_the_same_time_are_kept_apart(make_setup: Make) -> None:
    with StudyDirectory(make_setup(study=study("tpe", 40))) as directory:
        ledger = Ledger(directory, lambda event: None)
        for _ in range(20):
            proposal = ledger.next_trial()
            assert proposal is not None
            ledger.report(proposal.number, {"pairs_seen": 90, "val/auc@5": score(proposal.values)})
            ledger.finish(proposal.number)
        running = [ledger.next_trial() for _ in range(8)]
    lrs = sorted(math.log10(p.values["optim.lr"]) for p in running if p)  # type: ignore[arg-type]
    assert len(lrs) == 8 and lrs[-1] - lrs[0] > 0.3


def test_what_does_not_fit_the_memory_is_never_proposed(make_setup: Make) -> None:
    setup = make_setup(study=study("tpe", 20), space={"baseline": {"optim.lr": 1e-3, "data.batch_size": 8}})
    with StudyDirectory(setup) as directory:
        ledger = Ledger(directory, lambda event: None, is_feasible=lambda values: values["data.batch_size"] == 8)
        found = list(iter(ledger.next_trial, None))
    assert {p.values["data.batch_size"] for p in found} == {8} and len(found) == 20


def test_impossible_constraints_end_the_search_with_their_name(make_setup: Make) -> None:
    setup = make_setup(space={"constraints": ["optim.lr < 0.00000001"]})
    with StudyDirectory(setup) as directory:
        ledger = Ledger(directory, lambda event: None)
        ledger.next_trial()  # the baseline, which validation would have refused
        with pytest.raises(ConfigError, match=r"space search_spaces/test.yaml: 2000 configurations in a row violate"):
            ledger.next_trial()


def test_points_come_right_after_the_baseline_and_once(make_setup: Make) -> None:
    points = [{"optim.lr": 1e-2}, {"optim.lr": 1e-4, "data.batch_size": 8}, {"data.batch_size": 16}]
    found = search(make_setup(study=study("tpe", 6), space={"points": points}), interrupt_after=2)
    assert found[1:3] == [
        {"optim.lr": 1e-2, "data.batch_size": 16},
        {"optim.lr": 1e-4, "data.batch_size": 8},
    ]
    assert found[3]["optim.lr"] not in (1e-2, 1e-3, 1e-4)  # the third point is the baseline


def test_points_added_to_a_finished_study_are_next(make_setup: Make) -> None:
    search(make_setup(study=study("tpe", 4)))
    found = search(make_setup(study=study("tpe", 6), space={"points": [{"optim.lr": 0.05}]}))
    assert found[4] == {"optim.lr": 0.05, "data.batch_size": 16} and len(found) == 6


def test_journal_is_a_plain_optuna_study(make_setup: Make) -> None:
    """What optuna-dashboard opens."""
    setup = make_setup(study=study("tpe", 12), space=CONDITIONAL)
    found = search(setup)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        storage = JournalStorage(JournalFileBackend(str(setup.path / "journal.log")))
        loaded = optuna.load_study(study_name=STUDY_NAME, storage=storage)
    trials = loaded.trials
    assert {trial.state for trial in trials} == {TrialState.COMPLETE, TrialState.PRUNED}
    assert [trial.params["optim.lr"] for trial in trials] == [values["optim.lr"] for values in found]
    offsets = [trial.params["ground_truth.th_negative.offset"] for trial in trials]
    assert all(0 <= offset <= 4 for offset in offsets)
    assert all(trial.datetime_start is not None for trial in trials)
    assert loaded.best_value == max(score(v) for v, t in zip(found, trials, strict=True) if t.value is not None)
    assert len(loaded.trials_dataframe()) == 12

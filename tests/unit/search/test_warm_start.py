from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from raylg.errors import ConfigError
from raylg.search.ledger import Ledger
from raylg.search.sampler import SOBOL
from raylg.search.study import StudyDirectory, StudySetup

Make = Callable[..., StudySetup]
FIRST = {
    "name": "first",
    "budget": "12trials",
    "sampler": {"name": "sobol"},
    "scheduler": {"grace_pairs": 10, "lottery": 0},
}


def run(setup: StudySetup, infeasible: tuple[int, ...] = ()) -> list[dict[str, Any]]:
    with StudyDirectory(setup) as directory:
        ledger = Ledger(directory, lambda event: None)
        for proposal in iter(ledger.next_trial, None):
            if proposal.number in infeasible:
                ledger.infeasible(proposal.number, "out_of_memory: batch")
                continue
            quality = 0.9 if float(proposal.values["optim.lr"]) > 1e-2 else 0.1  # type: ignore[arg-type]
            quality -= proposal.number / 1000
            for pairs_seen in (10, 30, 90):
                if ledger.report(proposal.number, {"pairs_seen": pairs_seen, "val/auc@5": quality}).stop:
                    break
            ledger.finish(proposal.number)
        return [dict(record.values) for record in directory.records()]


@pytest.fixture
def first(make_setup: Make) -> str:
    setup = make_setup(study=FIRST)
    run(setup, infeasible=(5,))
    return str(setup.path)


def second(first: str, **more: Any) -> dict[str, Any]:
    return {
        "name": "second",
        "budget": "10trials",
        "warm_start": [first],
        "sampler": {"num_startup_trials": 10},
        **more,
    }


def test_sampler_begins_with_what_others_found_and_the_study_holds_its_own_trials_only(
    make_setup: Make, first: str
) -> None:
    setup = make_setup(study=second(first))
    found = run(setup)
    cold = run(make_setup(study=second(first, name="cold", warm_start=[])))
    with StudyDirectory(setup) as directory:
        assert len(directory.records()) == 10
        assert not any(SOBOL in trial.user_attrs for trial in directory.journal.get_trials())
        assert str(directory.prior) == f"12 trials of {first} known beforehand"
        states = [(len(trial.intermediate_values), trial.constraints) for trial in directory.prior.trials]
    assert found[0] == cold[0]  # the baseline
    assert sum(values["optim.lr"] > 1e-2 for values in found[1:]) >= 6 > sum(v["optim.lr"] > 1e-2 for v in cold[1:])
    assert states[5] == (0, {"infeasible": 1.0})
    assert {num for num, _ in states} == {0, 1, 2, 3}  # stopped trials are known by what they scored


def test_study_is_no_warm_start_of_itself(make_setup: Make, first: str) -> None:
    for budget in ("12trials", "14trials"):
        with pytest.raises(ConfigError, match="is this study itself"):
            StudyDirectory(make_setup(study={**FIRST, "budget": budget, "warm_start": [first]}))


def test_goes_on_alike_when_the_other_study_has_gone(make_setup: Make, first: str) -> None:
    whole = run(make_setup(study=second(first)))
    part = make_setup(study=second(first, name="part", budget="4trials"))
    run(part)
    shutil.rmtree(first)
    assert run(make_setup(study=second(first, name="part"))) == whole
    with pytest.raises(ConfigError, match=r"study.warm_start: .*first: no study there"):
        StudyDirectory(make_setup(study=second(first, name="third")))
    assert not (part.path.parent / "third").exists()


def test_trials_outside_of_the_present_ranges_are_left_out_and_counted(make_setup: Make, first: str) -> None:
    narrow = {"parameters": {"optim.lr": {"type": "float", "low": 1e-4, "high": 1e-2, "log": True}}}
    with StudyDirectory(make_setup(study=second(first), space={**narrow, "baseline": {}})) as directory:
        prior = directory.prior
    assert 0 < prior.num_left_out < 12 and prior.num_left_out + len(prior.trials) == 12
    assert all(1e-4 <= trial.params["optim.lr"] <= 1e-2 for trial in prior.trials)
    assert str(prior).endswith(f"; {prior.num_left_out} outside the present ranges left out")


def test_what_the_other_study_did_not_search_is_taken_from_its_configuration(make_setup: Make, first: str) -> None:
    wider = {
        "parameters": {
            "optim.lr": {"type": "float", "low": 1e-5, "high": 1e-1, "log": True},
            "data.batch_size": {"type": "choice", "values": [8, 16]},
            "loss.gamma": {"type": "float", "low": 0.7, "high": 1.0},
        }
    }
    with StudyDirectory(make_setup(study=second(first), space=wider)) as directory:
        stored = json.loads((directory.path / "prior.json").read_text())
        assert {trial.params["loss.gamma"] for trial in directory.prior.trials} == {1.0}
        assert len(directory.prior.trials) == len(stored["trials"]) == 12


def test_studies_that_cannot_be_compared_are_refused_with_all_differences(make_setup: Make, first: str) -> None:
    setup = make_setup(
        study=second(first, objective="val/auc@10"),
        run={"train": {"num_pairs": 60, "report_every": 10}},
        hashes={"data": "other", "protocol": "p"},
    )
    with pytest.raises(ConfigError) as caught:
        StudyDirectory(setup)
    assert [line.split(": ", 2)[2] for line in str(caught.value).splitlines()] == [
        "hash of data is 'd' there and 'other' here; leave it out, or search with the same",
        "study.objective is 'val/auc@5' there and 'val/auc@10' here; leave it out, or search with the same",
        "train.num_pairs is 90 there and 60 here; leave it out, or search with the same",
    ]
    assert not setup.path.exists()


def test_a_running_study_can_be_learnt_from(make_setup: Make, first: str, tmp_path: Path) -> None:
    with StudyDirectory(make_setup(study={**FIRST, "budget": "13trials"})) as running:
        ledger = Ledger(running, lambda event: None)
        assert ledger.next_trial() is not None
        with StudyDirectory(make_setup(study=second(first))) as directory:
            assert len(directory.prior.trials) == 12

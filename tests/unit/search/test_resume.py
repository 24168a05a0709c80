from __future__ import annotations

from collections.abc import Callable
from typing import Any

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from raylg.errors import ConfigError
from raylg.search.journal import STUDY_NAME
from raylg.search.ledger import Ledger
from raylg.search.parameter import Parameter, parse_parameter
from raylg.search.resume import why_not_wider
from raylg.search.study import StudyDirectory, StudySetup

Make = Callable[..., StudySetup]
NARROW = {
    "optim.lr": {"type": "float", "low": 1e-4, "high": 1e-2, "log": True},
    "data.batch_size": {"type": "choice", "values": [16, 32]},
    "data.num_keypoints": {"type": "int", "low": 256, "high": 512, "step": 64},
}
WIDE = {
    "optim.lr": {"type": "float", "low": 1e-5, "high": 1e-1, "log": True},
    "data.batch_size": {"type": "choice", "values": [8, 16, 24, 32]},
    "data.num_keypoints": {"type": "int", "low": 128, "high": 512, "step": 64},
}


def setup(make_setup: Make, parameters: dict[str, Any], num_trials: int, **space: Any) -> StudySetup:
    study = {"budget": f"{num_trials}trials", "sampler": {"num_startup_trials": 4}}
    return make_setup(study=study, space={"parameters": parameters, "baseline": {"data.batch_size": 32}, **space})


def run(made: StudySetup) -> list[dict[str, Any]]:
    with StudyDirectory(made) as directory:
        ledger = Ledger(directory, lambda event: None)
        for proposal in iter(ledger.next_trial, None):
            for pairs_seen in (10, 30, 90):
                lr = float(proposal.values["optim.lr"])  # type: ignore[arg-type]
                if ledger.report(proposal.number, {"pairs_seen": pairs_seen, "val/auc@5": min(lr, 0.5)}).stop:
                    break
            ledger.finish(proposal.number)
        return [dict(record.values) for record in directory.records()]


def test_ranges_may_widen_and_earlier_trials_still_teach(make_setup: Make) -> None:
    before = run(setup(make_setup, NARROW, 12))
    found = run(setup(make_setup, WIDE, 40))
    assert found[:12] == before
    later = found[12:]
    assert sum(values["optim.lr"] > 1e-2 for values in later) > 14  # learnt: higher is better; 7 by chance
    assert {values["data.batch_size"] for values in later} & {8, 24}
    assert {values["data.num_keypoints"] for values in later} & {128, 192}
    storage = JournalStorage(JournalFileBackend(str(setup(make_setup, WIDE, 40).path / "journal.log")))
    trials = optuna.load_study(study_name=STUDY_NAME, storage=storage).trials  # what a dashboard reads
    assert [trial.params["data.batch_size"] for trial in trials] == [values["data.batch_size"] for values in found]


def test_widened_study_goes_on_alike_after_an_interruption(make_setup: Make) -> None:
    run(setup(make_setup, NARROW, 6))
    run(setup(make_setup, WIDE, 9))
    resumed = run(setup(make_setup, WIDE, 14))
    whole_dir = {"dir": str(make_setup().path)}
    again = [
        make_setup(
            study={"budget": f"{n}trials", "sampler": {"num_startup_trials": 4}, **whole_dir},
            space={"parameters": parameters, "baseline": {"data.batch_size": 32}},
        )
        for n, parameters in ((6, NARROW), (14, WIDE))
    ]
    assert [run(made) for made in again][-1] == resumed


def test_narrow_command_after_widening_is_refused(make_setup: Make) -> None:
    run(setup(make_setup, NARROW, 2))
    run(setup(make_setup, WIDE, 3))
    with pytest.raises(ConfigError) as caught:
        run(setup(make_setup, NARROW, 4))
    lines = str(caught.value).splitlines()
    assert lines[1:4] == [
        "  space: optim.lr was 1e-05..0.1 log, now 0.0001..0.01 log: a range may only widen",
        "  space: data.batch_size was {8, 16, 24, 32}, now {16, 32}: choices may only be added; [8, 24] would be lost",
        "  space: data.num_keypoints was 128..512 step 64, now 256..512 step 64: a range may only widen",
    ]


def test_budget_warm_start_points_and_description_may_change(make_setup: Make) -> None:
    run(setup(make_setup, NARROW, 2))
    changed = setup(make_setup, NARROW, 3, description="said better", points=[{"optim.lr": 2e-3}])
    assert run(changed)[2]["optim.lr"] == 2e-3


@pytest.mark.parametrize(
    ("parameters", "shown"),
    [
        ({**NARROW, "optim.lr": {"type": "float", "low": 1e-4, "high": 1e-2}}, "parameters.optim.lr.log was True, now"),
        (
            {k: v for k, v in NARROW.items() if k != "optim.lr"},
            "parameters.optim.lr.low was 0.0001, now not set",
        ),
        ({**NARROW, "loss.gamma": {"type": "float", "low": 0.7, "high": 1.0}}, "parameters.loss.gamma.low was not set"),
    ],
)
def test_other_parameters_are_another_study(make_setup: Make, parameters: Any, shown: str) -> None:
    run(setup(make_setup, NARROW, 1))
    with pytest.raises(ConfigError) as caught:
        StudyDirectory(setup(make_setup, parameters, 1))
    assert shown in str(caught.value)
    assert "ranges may widen" in str(caught.value)


def parameter(**entry: Any) -> Parameter:
    problems: list[str] = []
    found = parse_parameter("optim.lr", entry, problems)
    assert found is not None, problems
    return found


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ({"low": 1.0, "high": 2.0}, {"low": 1.0, "high": 2.0}, None),
        ({"low": 1.0, "high": 2.0}, {"low": 0.5, "high": 2.5}, None),
        ({"low": 1.0, "high": 2.0}, {"low": 1.5, "high": 2.5}, "a range may only widen"),
        ({"low": 1.0, "high": 2.0, "step": 0.5}, {"low": 0.0, "high": 2.5, "step": 0.5}, None),
        ({"low": 1.0, "high": 2.0, "step": 0.5}, {"low": 0.75, "high": 2.25, "step": 0.5}, "lie between the steps"),
        ({"low": 1.0, "high": 2.0, "step": 0.5}, {"low": 1.0, "high": 2.0}, "only ranges and choices may change"),
        ({"low": 1.0, "high": 2.0}, {"low": 1.0, "high": 2.0, "log": True}, "only ranges and choices may change"),
        ({"low": 1.0, "high": 2.0}, {"low": 1.0, "high": 2.0, "when": "optim.decay == exp"}, "only ranges and choices"),
    ],
)
def test_wider_means_that_nothing_tried_is_lost(old: Any, new: Any, reason: str | None) -> None:
    found = why_not_wider(parameter(type="float", **old), parameter(type="float", **new))
    assert (found is None) if reason is None else (found is not None and reason in found)


def test_choices_that_only_look_alike_are_other_choices() -> None:
    old, new = parameter(type="choice", values=[1, True]), parameter(type="choice", values=[1.0, True, 1])
    assert why_not_wider(old, new) is None
    assert why_not_wider(new, old) == "choices may only be added; [1.0] would be lost"

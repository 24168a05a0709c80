"""Which weights the end of a study looks at: runs on fresh seeds, where a confirmation made them."""

from __future__ import annotations

from pathlib import Path

from raylg.cluster.tuner import StudyResult
from raylg.console.conclusion import chosen_trial, tied_matchers, trained_matchers
from raylg.search.finalists import FOLDER
from raylg.search.study import StudyDirectory
from tests.simulation import searches
from tests.simulation.surface import Surface


def test_finalists_in_a_tie_are_swept_and_those_of_no_confirmation_are_not(tmp_path: Path) -> None:
    surface = Surface(4, flat=True)
    with StudyDirectory(searches.make_setup(tmp_path, 4)) as directory:
        searches.run_raylg(directory, surface)
        found = searches.confirm(directory, surface)
        best = max((r for r in directory.records() if r.state == "complete"), key=lambda r: r.objective or 0.0)
        result = StudyResult(best=best, confirmation=found)
        trained, tied = trained_matchers(directory, result), tied_matchers(directory, result)
        unconfirmed = StudyResult(best=best, confirmation=None)
        assert tied_matchers(directory, unconfirmed) == {}
        assert set(trained_matchers(directory, unconfirmed).values()) == {
            directory.trial_dir(best.number),
            directory.trial_dir(0),
        }
    assert found.outcome == "no difference" and len(found.finalists) > 1
    runs = {*trained.values(), *tied.values()}
    assert all(run.parent.name == FOLDER and (run / "pairs.npz").is_file() for run in runs)
    in_tie = {each.number for each in found.finalists if not each.reason}
    assert {int(run.name.partition("-")[0]) for run in runs} == {0, chosen_trial(result), *in_tie}
    assert len(runs) == len(trained) + len(tied)

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from omegaconf import OmegaConf

import raylg
from raylg.errors import ConfigError
from raylg.schema import build
from raylg.search.ledger import Ledger
from raylg.search.study import StudyDirectory, StudySetup, set_aside
from raylg.training.config import RunConfig

Make = Callable[..., StudySetup]


def test_directory_is_named_after_the_space_unless_told(make_setup: Make, tmp_path: Path) -> None:
    assert make_setup().path == tmp_path / "s"
    assert make_setup(study={"name": None}).path == tmp_path / "test"


def test_study_yaml_says_what_made_the_results(make_setup: Make) -> None:
    setup = make_setup()
    StudyDirectory(setup).close()
    stored = yaml.safe_load((setup.path / "study.yaml").read_text())
    assert stored["format"] == 1
    assert stored["hashes"] == {"data": "d", "protocol": "p"}
    assert set(stored["versions"]) >= {"raylg", "python", "torch", "ray", "optuna", "poselib"}
    assert build(RunConfig, stored["run"]) == setup.run
    assert stored["space"]["parameters"]["optim.lr"]["low"] == 1e-5


def test_a_resume_with_other_packages_is_written_down(make_setup: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    setup = make_setup()
    StudyDirectory(setup).close()
    path = setup.path / "study.yaml"
    first = yaml.safe_load(path.read_text())
    assert "resumed_with" not in first
    monkeypatch.setattr("raylg.__version__", "9.9.9")
    for _ in range(2):
        StudyDirectory(setup).close()
    again = yaml.safe_load(path.read_text())
    assert again["versions"] == first["versions"] and again["created"] == first["created"]
    assert [versions["raylg"] for versions in again["resumed_with"]] == ["9.9.9"]


def test_killed_while_the_study_was_made(make_setup: Make) -> None:
    setup = make_setup()
    setup.path.mkdir()
    (setup.path / ".lock").touch()
    (setup.path / ".study.yaml.123.tmp").write_text("format: 1")
    with StudyDirectory(setup) as directory:
        assert directory.records() == []


@pytest.mark.parametrize(
    ("change", "shown"),
    [
        ({"run": {"train": {"num_pairs": 90, "report_every": 10}, "seed": 3}}, "seed was 0, now 3"),
        ({"run": {"train": {"num_pairs": 80, "report_every": 10}}}, "train.num_pairs was 90, now 80"),
        ({"study": {"objective": "val/auc@10"}}, "study.objective was 'val/auc@5', now 'val/auc@10'"),
        ({"study": {"scheduler": {"grace_pairs": 20}}}, "study.scheduler.grace_pairs was 10, now 20"),
        ({"space": {"baseline": {"optim.lr": 1e-2, "data.batch_size": 16}}}, "space: baseline.optim.lr was 0.001"),
        ({"hashes": {"data": "e", "protocol": "p"}}, "hash of data was 'd', now 'e'"),
        ({"hashes": {"data": "d"}}, "hash of protocol was 'p', now not set"),
        ({"hashes": {"data": "d", "protocol": "p", "start": "s"}}, "hash of start was not set, now 's'"),
    ],
)
def test_refuses_to_mix_what_cannot_be_compared(make_setup: Make, change: dict[str, object], shown: str) -> None:
    StudyDirectory(make_setup()).close()
    with pytest.raises(ConfigError) as caught:
        StudyDirectory(make_setup(**change))
    assert shown in str(caught.value)
    assert "--name" in str(caught.value)


def test_budget_and_machinery_may_change(make_setup: Make) -> None:
    StudyDirectory(make_setup()).close()
    run = {"scale": {"cpus_per_worker": 2}, "train": {"num_pairs": 90, "report_every": 10, "log_every": 7}}
    setup = make_setup(study={"budget": "50trials", "max_concurrent_trials": 3}, run=run)
    StudyDirectory(setup).close()
    assert yaml.safe_load((setup.path / "study.yaml").read_text())["study"]["budget"] == ["50trials"]


def test_one_process_at_a_time(make_setup: Make) -> None:
    with StudyDirectory(make_setup()), pytest.raises(ConfigError, match="another process is running this study"):
        StudyDirectory(make_setup())
    StudyDirectory(make_setup()).close()


def test_refuses_a_folder_that_is_no_study(make_setup: Make, tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "holiday.jpg").touch()
    with pytest.raises(ConfigError, match="is no study"):
        StudyDirectory(make_setup())


def test_refuses_another_format(make_setup: Make, tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "study.yaml").write_text("format: 7\n")
    with pytest.raises(ConfigError, match="study format 7, this version of raylg reads format 1"):
        StudyDirectory(make_setup())


def test_half_written_journal_line_and_stale_lock_are_removed(make_setup: Make) -> None:
    setup = make_setup()
    with StudyDirectory(setup) as directory:
        Ledger(directory, lambda event: None).next_trial()
    journal = setup.path / "journal.log"
    with journal.open("a") as file:
        file.write('{"op_code": 6, "trial_')
    (setup.path / "journal.log.lock").touch()
    with StudyDirectory(setup) as directory:
        assert [record.state for record in directory.records()] == ["running"]
        directory.journal.set_user_attr("writable", True)


def test_empty_study_has_no_best(make_setup: Make) -> None:
    with StudyDirectory(make_setup()) as directory:
        assert directory.best() is None
        assert directory.write_best() is None
        assert directory.table() == []


def test_best_yaml_trains_the_winner(make_setup: Make) -> None:
    with StudyDirectory(make_setup()) as directory:
        ledger = Ledger(directory, lambda event: None)
        proposal = ledger.next_trial()
        assert proposal is not None
        ledger.report(proposal.number, {"pairs_seen": 90, "val/auc@5": 0.25})
        ledger.finish(proposal.number)
        text = (directory.path / "best.yaml").read_text()
        written = build(RunConfig, OmegaConf.to_container(OmegaConf.create(text)))
        assert written == directory.config(directory.records()[0])
    assert "trial 0" in text
    assert "val/auc@5 = 0.2500" in text
    assert "optimistic" in text
    assert "python -m raylg.train --config" in text


def test_sampler_that_cannot_draw_is_refused_before_anything_is_made(make_setup: Make) -> None:
    setup = make_setup(study={"sampler": {"name": "grid"}})
    with pytest.raises(ConfigError, match=r"grid: optim.lr = 1e-05..0.1 log is continuous"):
        StudyDirectory(setup)
    assert not setup.path.exists()


def test_set_aside_keeps_the_old_study_and_frees_its_name(make_setup: Make) -> None:
    setup = make_setup()
    assert set_aside(setup.path) is None
    for number in (1, 2):
        with StudyDirectory(setup) as directory:
            Ledger(directory, lambda event: None).next_trial()
        moved = set_aside(setup.path)
        assert moved == setup.path.with_name(f"s.old-{number}")
        assert (moved / "journal.log").exists() and not setup.path.exists()
    again = make_setup(study={"name": "s.old-2"})
    with StudyDirectory(again) as directory:  # still a study that can be continued
        assert [record.number for record in directory.records()] == [0]


def test_fresh_study_does_not_continue_from_the_copies_of_the_old_one(
    make_setup: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    setup = make_setup()
    with StudyDirectory(setup) as directory:
        first = directory.storage_name
    with StudyDirectory(setup) as directory:
        assert directory.storage_name == first
    set_aside(setup.path)
    path = setup.path.with_name("s.old-1") / "study.yaml"
    created = yaml.safe_load(path.read_text())["created"]
    assert first == f"s-{created.replace('-', '').replace(':', '')}"
    later = datetime.fromisoformat(created) + timedelta(seconds=1)
    monkeypatch.setattr("raylg.search.study.datetime", SimpleNamespace(now=lambda zone: later))
    with StudyDirectory(setup) as directory:
        assert directory.storage_name not in (first, "s")


def test_set_aside_leaves_what_is_running_or_no_study(make_setup: Make, tmp_path: Path) -> None:
    setup = make_setup()
    with StudyDirectory(setup), pytest.raises(ConfigError, match="another process is running this study"):
        set_aside(setup.path)
    assert setup.path.exists()
    (tmp_path / "photos").mkdir()
    with pytest.raises(ConfigError, match="is no study and stays where it is"):
        set_aside(tmp_path / "photos")


def test_every_trial_is_stamped_and_ranks_do_not_cross_stamps(make_setup: Make) -> None:
    setup, other = make_setup(), make_setup(study={"name": "t"}, hashes={"data": "e", "protocol": "p"})
    for made in (setup, other):
        with StudyDirectory(made) as directory:
            ledger = Ledger(directory, lambda event: None)
            ledger.next_trial()
            assert directory.table()[0].hashes == made.hashes
            assert directory.table()[0].version == raylg.__version__
            if made is other:
                ledger.next_trial()
                foreign = directory.journal.get_trials()[1]
    with StudyDirectory(setup) as directory:
        directory.journal.add_trial(foreign)  # somebody has merged two journals
        assert len(directory.records()) == 2
        with pytest.raises(ConfigError) as caught:
            directory.table()
    assert "  trials 0: data d, protocol p\n  trials 1: data e, protocol p\n" in str(caught.value)

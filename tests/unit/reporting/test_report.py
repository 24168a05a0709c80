"""The page from its text: what is said, of which studies; `tests/system/test_report.py` opens it in a browser."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from raylg.errors import ConfigError
from raylg.evaluation.free_axes import FreeAxes, Point, Setting
from raylg.evaluation.pair_scores import PairScores
from raylg.report import main
from raylg.reporting import curves_frame, study_frame, trial_figures
from raylg.reporting.frames import write_tables
from raylg.reporting.study_page import write_report
from raylg.search.finalists import FOLDER, Run
from raylg.search.stored import read_study
from raylg.search.study import StudyDirectory
from raylg.search.verdict import ConfirmationResult
from tests.simulated_study import NUM_PAIRS, REPORT_EVERY, SPACE, confirm, simulate, write_json
from tests.simulation import searches
from tests.simulation.surface import Surface

LOADS = re.compile(r"""(?:src|href)=["'](?!#|data:)|url\((?!#)|@import|<script""")


class _Text(HTMLParser):
    """What a reader sees, and whether tags nest."""

    def __init__(self) -> None:
        super().__init__()
        self.words: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta", "link", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words.append(data)


def text_of(page: Path) -> str:
    """Visible text; a page whose tags do not nest, or that would load something, fails."""
    content = page.read_text()
    assert LOADS.search(content) is None
    for svg in re.findall(r"<svg.*?</svg>", content, re.DOTALL):
        ElementTree.fromstring(svg)
    parser = _Text()
    parser.feed(content)
    assert parser.open == []
    return " ".join(" ".join(parser.words).split())


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return simulate(tmp_path_factory.mktemp("studies"))


@pytest.fixture
def study(original: Path, tmp_path: Path) -> Path:
    """A copy, as on another machine: no lock, no checkpoints, no data."""
    return Path(shutil.copytree(original, tmp_path / "copied"))


def test_all_ends_of_trials_are_on_the_page(study: Path) -> None:
    states = {record.state for record in read_study(study).records}
    assert states == {"complete", "stopped", "infeasible", "failed", "running"}
    text = text_of(write_report(study).page)
    assert "Not confirmed yet: trial" in text and "optimistic" in text
    assert "out of memory: batch of 64 pairs" in text
    assert "NCCL communicator was aborted" in text
    assert re.search(r"stopped: rung 1000: 0\.\d+ below", text)
    assert "by lottery, would have stopped at rung" in text
    for section in (
        "Learning curves",
        "Parameters",
        "Search space",
        "Early stopping",
        "Cost",
        "Provenance",
        "Commands",
    ):
        assert section in text
    assert "3f2a9c01d4e5" in text and "python -m raylg.report" in text


def test_the_gain_shown_is_that_of_the_pairs(study: Path) -> None:
    stored = read_study(study)
    assert stored.best is not None and stored.baseline is not None
    scores = [np.load(stored.trial_dir(n) / "pairs.npz") for n in (stored.best.number, 0)]
    errors = [np.maximum(each["rotation_error"], each["translation_error"]) for each in scores]
    best, baseline = (np.maximum(0, 1 - error / 5).mean() for error in errors)
    assert f"{100 * (best - baseline):+.1f} [" in text_of(write_report(study).page)


def test_a_confirmation_decides_the_verdict(study: Path) -> None:
    numbers = [record.number for record in read_study(study).ranked if record.state == "complete" and record.number]
    result = confirm(study, tuple(numbers[:3]))
    assert result.outcome == "better"
    text = text_of(write_report(study).page)
    assert f"{result.sentence[1:]}." in text and "Not confirmed" not in text
    assert f"Use trial {result.chosen}: lr" in text
    assert f"confirmation 12 {12 * NUM_PAIRS:,}" in text


def confirmed(folder: Path, *, flat: bool) -> tuple[Path, ConfirmationResult]:
    """A study that the real ledger has searched and the real confirmation has confirmed."""
    surface = Surface(10 if flat else 3, flat=flat)
    with StudyDirectory(searches.make_setup(folder, surface.seed, budget=("24trials",))) as directory:
        searches.run_raylg(directory, surface)
        return directory.path, searches.confirm(directory, surface)


@pytest.mark.parametrize("flat", [False, True])
def test_a_real_confirmation_is_on_the_page(tmp_path: Path, flat: bool) -> None:
    path, result = confirmed(tmp_path, flat=flat)
    chosen = next(each for each in result.finalists if each.number == result.chosen)
    text = text_of(write_report(path).page)
    assert f"{result.sentence[1:]}." in text
    assert chosen.difference is not None and chosen.low is not None and chosen.high is not None
    own = f"{100 * chosen.difference:+.1f} [{100 * chosen.low:+.1f}, {100 * chosen.high:+.1f}]"
    assert f"Use trial {chosen.number}: lr" in text
    assert (f"({own} over the baseline)" in text) == flat  # the sentence is of the best, which is not the cheapest
    assert f"On fresh seeds: 300 pairs, {len(result.seeds)} seeds" in text


def test_a_confirmed_trial_is_shown_by_runs_that_did_not_choose_it(tmp_path: Path) -> None:
    path, result = confirmed(tmp_path, flat=False)
    assert result.chosen is not None
    text = text_of(write_report(path).page)
    assert f"Both trained with the fresh seed {result.seeds[0]}" in text
    runs = [path / FOLDER / Run(number, 1, result.seeds[0]).name / "pairs.npz" for number in (0, result.chosen)]
    before, after = (np.maximum(0, 1 - PairScores.load(file).error / 5) for file in runs)
    assert f"{int((after > before).sum())} gain, {int((after < before).sum())} lose" in text


def test_a_search_that_goes_on_after_its_confirmation_says_so(tmp_path: Path) -> None:
    path, _ = confirmed(tmp_path, flat=False)
    assert "has gone on since" not in text_of(write_report(path).page)
    with StudyDirectory(searches.make_setup(tmp_path, 3, budget=("30trials",))) as directory:
        searches.run_raylg(directory, Surface(3))
    assert "has gone on since" in text_of(write_report(path).page)


def test_without_a_finalist_no_interval_is_claimed(study: Path) -> None:
    confirm(study, (2,))
    file = study / "confirm" / "confirmation.json"
    stored = json.loads(file.read_text())
    untold = {"outcome": "no difference", "reason": "the baseline was the best", "chosen": 0}
    stored["result"] |= {**untold, "baseline": None, "finalists": [], "seeds": [], "num_pairs": 0}
    write_json(file, stored)
    text = text_of(write_report(study).page)
    assert "No difference: the baseline was the best; the baseline stays." in text
    assert "Intervals hold for all finalists" not in text


def test_what_the_budget_ended_was_not_saved_by_stopping(study: Path) -> None:
    by_rungs = re.search(r"Stopping (\d+) trials early saved", text_of(write_report(study).page))
    assert by_rungs is not None
    rungs = json.loads((study / "rungs.json").read_text())
    ended = {str(record.number) for record in read_study(study).records if record.state == "stopped"}
    stopped = {n for rung in rungs.values() for n, passage in rung.items() if not passage["goes_on"] and n in ended}
    assert int(by_rungs[1]) == len(stopped) > 1
    for rung in rungs.values():  # as when the budget had ended this one
        rung.pop(min(stopped), None)
    write_json(study / "rungs.json", rungs)
    assert f"Stopping {len(stopped) - 1} trials early saved" in text_of(write_report(study).page)


def test_the_last_table_of_the_command_is_kept(study: Path) -> None:
    row = ["chosen (trial 2)", "52.9", "+4.6 [+2.0, +7.3]"]
    table = {
        "title": "80 test pairs, which chose nothing",
        "headers": ["matcher", "AUC@5", "difference"],
        "rows": [row],
    }
    write_json(study / "test.json", {"reads": ["test pairs read twice by 1 study or checkpoint"], **table})
    text = text_of(write_report(study).page)
    assert "test pairs read twice by 1 study or checkpoint." in text
    assert "80 test pairs, which chose nothing" in text and " ".join(row) in text
    write_json(study / "test.json", {"rows": []})
    with pytest.raises(ConfigError, match="not a table of tune"):
        write_report(study)


def test_names_of_scenes_are_no_formulas_and_many_scenes_stay_a_figure(study: Path) -> None:
    for file in study.glob("trials/*/pairs.npz"):
        scores = PairScores.load(file)
        scenes = np.array([f'{i % 40:02d}$\\frac$<&"' for i in range(len(scores))])
        dataclasses.replace(scores, scenes=scenes).save(file)
    page = write_report(study).page
    text = text_of(page)
    assert "By scene: of 40 the 8 that gain and the 8 that lose most." in text
    figure = next(
        svg for svg in re.findall(r"<svg.*?</svg>", page.read_text(), re.DOTALL) if "$\\frac$&lt;&amp;" in svg
    )
    height = float(re.search(r'viewBox="0 0 \S+ (\S+)"', figure)[1])
    assert height < 500


def test_a_trial_that_reports_once_has_a_mark(study: Path) -> None:
    stored = read_study(study)
    once = dataclasses.replace(stored.records[1], state="complete", scores={NUM_PAIRS: 0.5})
    drawn = trial_figures.curves(dataclasses.replace(stored, records=(once,)), [], "AUC@5")
    assert drawn is not None
    assert len(re.findall(r"<use [^>]*--accent", drawn)) == 2  # the other one is the legend's


def test_a_confirmation_that_goes_on_is_not_a_result(study: Path) -> None:
    confirm(study, (2,))
    file = study / "confirm" / "confirmation.json"
    stored = json.loads(file.read_text())
    stored["result"]["finished"] = False
    write_json(file, stored)
    assert "Being confirmed: Trial 2" in text_of(write_report(study).page)


def test_free_axes_are_drawn_when_they_were_swept(study: Path) -> None:
    settings = [
        Setting(num_keypoints=k, depth_confidence=-1, filter_threshold=0.1, ransac_threshold=2.0) for k in (256, 1024)
    ]
    points = tuple(
        Point(
            setting=setting,
            scores=(0.4 + 0.1 * i, 0.5 + 0.1 * i),
            match_seconds=0.01 * (i + 1),
            estimate_seconds=0.004,
            num_matches=300.0,
            num_layers=9.0,
            on_front=True,
        )
        for i, setting in enumerate(settings)
    )
    swept = FreeAxes(
        points=points,
        protocol=settings[0],
        best=settings[1],
        gain=0.1,
        gain_low=0.02,
        gain_high=0.18,
        thresholds=(5.0, 10.0),
        headline=5.0,
        unit="deg",
        num_pairs=100,
        num_pairs_of=160,
        device="cpu",
    )
    write_json(study / "free_axes.json", {"of": {}, "matchers": {"trial 2": swept.to_mapping()}})
    text = text_of(write_report(study).page)
    assert "Choices after training" in text
    assert "trial 2: 1024 keypoints, filter 0.1, RANSAC 2 px scores 50.0 at 5 deg" in text


def test_what_a_copy_lacks_is_said(study: Path) -> None:
    assert [what.partition(",")[0] for what in write_report(study).left_out] == ["pictures of matches"]
    for file in study.glob("trials/*/pairs.npz"):
        file.unlink()
    report = write_report(study)
    assert any("pairs.npz" in what for what in report.left_out)
    assert "Not on this page: which pairs gain and which lose" in text_of(report.page)


def test_a_running_study_is_read_without_its_last_half_line(study: Path) -> None:
    whole = read_study(study).records
    with (study / "journal.log").open("a") as file:
        file.write('{"op_code": 4, "worker_id": "x", "tri')
    before = (study / "journal.log").read_bytes()
    assert read_study(study).records == whole
    write_report(study)
    assert (study / "journal.log").read_bytes() == before


@pytest.mark.parametrize("num_trials", [1, 2])
def test_the_first_trials_give_a_page(tmp_path: Path, num_trials: int) -> None:
    text = text_of(write_report(simulate(tmp_path, num_trials)).page)
    expected = "No trial has finished yet." if num_trials == 1 else "Nothing beats the baseline so far"
    assert expected in text


def test_a_study_without_a_trial_gives_a_page(study: Path) -> None:
    (study / "journal.log").unlink()
    text = text_of(write_report(study).page)
    assert "No trial has finished yet." in text and "No trial has started yet." in text
    assert study_frame(study).empty and curves_frame(study).empty


def test_only_infeasible_trials_give_a_page(tmp_path: Path) -> None:
    space = {**SPACE, "baseline": {"optim.lr": 1e-4, "data.batch_size": 64}}
    rates = {"type": "float", "low": 2e-5, "high": 1.9e-4, "log": True}
    space["parameters"] = {"optim.lr": rates, "data.batch_size": {"type": "choice", "values": [64]}}
    text = text_of(write_report(simulate(tmp_path, 4, space)).page)
    assert "No trial could be trained to the end. trial 0: out of memory" in text


def test_hundreds_of_trials_stay_a_page(tmp_path: Path) -> None:
    report = write_report(simulate(tmp_path, 130))
    assert report.page.stat().st_size < 3_000_000
    text = text_of(report.page)
    assert "100 more rows" in text and "trials that rank last" not in text


def test_one_parameter_has_no_map_of_two(tmp_path: Path) -> None:
    space = {"parameters": {"optim.lr": SPACE["parameters"]["optim.lr"]}, "baseline": {"optim.lr": 1e-4}}
    page = write_report(simulate(tmp_path, 8, space)).page
    assert "of every trial against optim.lr" in page.read_text()
    assert "over optim.lr and" not in page.read_text()


def test_axes_of_relative_parameters_count_what_was_tried(tmp_path: Path) -> None:
    band = {"type": "float", "low": 1.0, "high": 4.0}
    offset = {**band, "offset_from": "ground_truth.th_positive"}
    space = {"parameters": {"ground_truth.th_positive": band, "ground_truth.th_negative": offset}}
    stored = read_study(simulate(tmp_path, 8, space))
    drawn = trial_figures.parallel(stored, "AUC@5")
    assert drawn is not None
    tried = [record.values["ground_truth.th_negative"] for record in stored.records]
    for end in (min(tried), max(tried)):
        assert f">{end:.3g}</text>" in drawn
    assert drawn.count(">4</text>") == 1  # of the other one


def test_reasons_cannot_become_markup(study: Path) -> None:
    journal = study / "journal.log"
    journal.write_text(journal.read_text().replace("NCCL communicator", "<script>alert(1)</script> communicator"))
    page = write_report(study).page
    assert "<script>" not in page.read_text()
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page.read_text()


def test_tables_hold_the_journal(study: Path) -> None:
    stored, (csv, parquet) = read_study(study), write_report(study).tables
    frame = study_frame(study)
    assert list(frame.index) == [record.number for record in stored.records]
    assert frame["optim.lr"].tolist() == [record.values["optim.lr"] for record in stored.records]
    for written in (pd.read_csv(csv, index_col="number"), pd.read_parquet(parquet)):
        np.testing.assert_allclose(written["objective"], frame["objective"])
        assert written["state"].tolist() == frame["state"].tolist()
        assert written["data.batch_size"].tolist() == frame["data.batch_size"].tolist()


def test_mixed_choices_can_be_written(study: Path) -> None:
    journal = study / "journal.log"
    journal.write_text(journal.read_text().replace('"data.batch_size":16', '"data.batch_size":"auto"'))
    assert {"auto", 32} <= set(study_frame(study)["data.batch_size"])
    assert {"auto", "32"} <= set(pd.read_parquet(write_tables(read_study(study))[1])["data.batch_size"])


def test_curves_have_every_report(study: Path) -> None:
    curves, records = curves_frame(study), read_study(study).records
    assert len(curves) == sum(len(record.scores) for record in records)
    baseline = curves[curves.number == 0]
    assert baseline.pairs_seen.tolist() == list(range(REPORT_EVERY, NUM_PAIRS + 1, REPORT_EVERY))
    np.testing.assert_allclose(baseline["val/auc@5"], baseline["objective"])


def test_tensorboard_shows_stopped_trials_with_what_was_searched(study: Path) -> None:
    folder = write_report(study).hparams
    stopped = next(record for record in read_study(study).records if record.state == "stopped")
    events = EventAccumulator(str(folder / f"{stopped.number:04d}")).Reload()
    assert events.Scalars("val/auc@5")[-1].value == pytest.approx(stopped.objective)
    content = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    assert b"optim.lr" in content and b"stopped" in content and b"model.extractor" not in content


def test_command_writes_the_report_and_refuses_other_folders(
    study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(study)]) == 0
    assert f"report: {study / 'study.html'}" in capsys.readouterr().out
    assert main([str(tmp_path / "nothing")]) == 2
    assert "no study there (study.yaml is missing)" in capsys.readouterr().err
    (study / "study.html").unlink()
    (study / "study.html").mkdir()
    assert main([str(study)]) == 2
    assert "the report cannot be written" in capsys.readouterr().err


def test_another_format_is_refused(study: Path) -> None:
    file = study / "study.yaml"
    file.write_text(file.read_text().replace("format: 1", "format: 9"))
    with pytest.raises(ConfigError, match="study format 9"):
        read_study(study)

import json
import math

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from raylg.training.config import RunConfig
from raylg.training.reporter import ConsoleReporter, ProfileReporter, RunDirectoryReporter, TeeReporter, read_metrics


def record(pairs, **metrics):
    return {"pairs_seen": float(pairs), **metrics}


def checkpoint_of(folder, metrics):
    folder.mkdir()
    (folder / "metrics.json").write_text(json.dumps(metrics))
    return folder


def test_every_report_is_one_line_at_once(tmp_path):
    reporter = RunDirectoryReporter(tmp_path, RunConfig())
    reporter.report(record(10, **{"val/loss": 1.5}), None)
    reporter.report(record(20, **{"val/loss": math.nan}), None)
    text = (tmp_path / "metrics.jsonl").read_text()
    assert json.loads(text.splitlines()[0]) == {"pairs_seen": 10.0, "val/loss": 1.5}
    assert "NaN" not in text  # not JSON
    assert math.isnan(read_metrics(tmp_path)[1]["val/loss"])
    reporter.close()


def test_resuming_takes_back_what_came_after_the_checkpoint(tmp_path):
    reporter = RunDirectoryReporter(tmp_path, RunConfig())
    for pairs in (10, 20, 30):
        reporter.report(record(pairs, x=pairs), None)
    reporter.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"pairs_seen": 40.0, "x"')  # killed while writing
    checkpoint = checkpoint_of(tmp_path / "c", record(20, x=20))
    resumed = RunDirectoryReporter(tmp_path, RunConfig(), resume_from=checkpoint)
    resumed.report(record(30, x=31), None)
    resumed.close()
    assert read_metrics(tmp_path) == [record(10, x=10), record(20, x=20), record(30, x=31)]


def test_resuming_adds_the_report_that_the_interruption_prevented(tmp_path):
    RunDirectoryReporter(tmp_path, RunConfig()).report(record(10), None)
    checkpoint = checkpoint_of(tmp_path / "c", record(20, x=2.0))
    RunDirectoryReporter(tmp_path, RunConfig(), resume_from=checkpoint).close()
    assert read_metrics(tmp_path) == [record(10), record(20, x=2.0)]


def test_resumed_curves_replace_what_came_after_the_checkpoint(tmp_path):
    reporter = RunDirectoryReporter(tmp_path, RunConfig())
    for pairs in (10, 20, 30):
        reporter.curves({"train/loss": 1.0}, pairs)
    reporter.close()
    checkpoint = checkpoint_of(tmp_path / "c", record(20))
    resumed = RunDirectoryReporter(tmp_path, RunConfig(), resume_from=checkpoint)
    resumed.curves({"train/loss": 2.0}, 30)
    resumed.close()
    curve = EventAccumulator(str(tmp_path)).Reload().Scalars("train/loss")
    assert [(e.step, e.value) for e in curve] == [(10, 1.0), (20, 1.0), (30, 2.0)]


def test_starting_anew_discards_an_older_record(tmp_path):
    RunDirectoryReporter(tmp_path, RunConfig()).report(record(10), None)
    RunDirectoryReporter(tmp_path, RunConfig()).close()
    assert read_metrics(tmp_path) == []


def test_no_record_is_an_empty_one(tmp_path):
    assert read_metrics(tmp_path) == []


def test_tensorboard_has_curves_figures_and_hyperparameters(tmp_path):
    reporter = RunDirectoryReporter(tmp_path, RunConfig())
    reporter.curves({"train/loss": 3.0}, 5)
    reporter.report(record(10, **{"val/auc@5": 0.25, "train/loss": 9.0}), None)
    reporter.figure("val/a - b", np.zeros((4, 6, 3), np.uint8), 10)
    reporter.close(final=record(10, **{"val/auc@5": 0.25}))
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [(e.step, e.value) for e in events.Scalars("train/loss")] == [(5, 3.0)]
    assert [(e.step, e.value) for e in events.Scalars("val/auc@5")] == [(10, 0.25)]
    assert events.Tags()["images"] == ["val/a - b"]
    assert any("hparams" in name for name in events.PluginTagToContent("hparams"))


def test_console_line_has_progress_scores_and_time_left():
    lines = []
    reporter = ConsoleReporter(lines.append, num_pairs=2000)
    metrics = record(500, **{"train/loss": 1.25, "val/auc@5": 0.5, "pairs_per_second": 10.0, "skipped_steps": 2.0})
    reporter.report(metrics, None)
    assert lines == [
        "500 pairs (25%), loss 1.2500, AUC@5 50.0, pairs/s 10.0, 2.5 min left, 2 steps skipped (not finite)"
    ]


def test_console_line_has_the_scores_of_homographies_and_benchmarks():
    lines = []
    scores = {"val/corner_auc@1": 0.1, "val/corner_auc@3": 0.5, "val/mean_auc": 0.3, "megadepth1500/auc@5": 0.25}
    ConsoleReporter(lines.append).report(record(500, **scores), None)
    assert lines == ["500 pairs, corner AUC@1 10.0, @3 50.0, megadepth1500 AUC@5 25.0"]


@pytest.mark.parametrize("num_pairs", [None, 100])
def test_console_line_without_budget_or_at_its_end_has_no_time_left(num_pairs):
    lines = []
    ConsoleReporter(lines.append, num_pairs).report(record(100, pairs_per_second=10.0), None)
    assert "left" not in lines[0]


def test_tee_passes_on_in_order(tmp_path):
    calls = []

    class Recorder:
        def __init__(self, name):
            self.name = name

        def report(self, metrics, checkpoint):
            calls.append((self.name, metrics["x"], checkpoint))

    TeeReporter([Recorder("a"), Recorder("b")]).report({"x": 1.0}, tmp_path)
    assert calls == [("a", 1.0, tmp_path), ("b", 1.0, tmp_path)]


def test_profile_is_shown_once_and_never_that_of_a_run_before(tmp_path):
    table, lines = tmp_path / "profile.txt", []
    table.write_text("of a run before\n")
    reporter = ProfileReporter(lines.append, tmp_path)
    reporter.report(record(10), None)
    assert lines == []
    table.unlink()
    reporter.report(record(20), None)
    table.write_text("Where the time goes\n")
    reporter.report(record(30), None)
    reporter.report(record(40), None)
    assert lines == [f"Where the time goes\n{table}, {tmp_path / 'profile.pt.trace.json'}"]

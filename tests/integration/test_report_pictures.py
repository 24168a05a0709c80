"""Match pictures of a study that was really trained, on a tiny data set."""

from __future__ import annotations

import base64
import io
import re
import shutil
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest

from raylg.errors import CheckpointError
from raylg.evaluation.pair_scores import PairScores
from raylg.reporting.match_pictures import match_pictures
from raylg.reporting.score import pairs_of
from raylg.reporting.study_page import write_report
from raylg.schema import build, override
from raylg.search.config import StudyConfig
from raylg.search.ledger import Ledger
from raylg.search.space import SearchSpace
from raylg.search.stored import StoredStudy, read_study
from raylg.search.study import StudyDirectory, StudySetup
from raylg.training.distributed import World
from raylg.training.trainer import Trainer
from tests.integration.test_training import config_for
from tests.integration.tiny_shards import tiny_shard, write_features


class _ToLedger:
    def __init__(self, ledger: Ledger, number: int) -> None:
        self._ledger, self._number = ledger, number

    def report(self, metrics, checkpoint) -> None:
        self._ledger.report(self._number, metrics)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Baseline and one trial, two reports each."""
    folder = tmp_path_factory.mktemp("trained")
    shards = {"train": tiny_shard("a", "train", 5, seed=0), "val": tiny_shard("b", "val", 3, seed=1)}
    features = write_features(folder / "tiny", shards)
    run = config_for(features, train__num_pairs=40, train__report_every=20)
    space = SearchSpace.parse(
        {
            "parameters": {"optim.lr": {"type": "float", "low": 1e-3, "high": 1e-1, "log": True}},
            "baseline": {"optim.lr": 1e-3},
        },
        "lr",
    )
    options = {"name": "s", "dir": str(folder), "budget": ["2trials"], "objective": "val/auc@20"}
    options["scheduler"] = {"name": "none"}
    setup = StudySetup(study=build(StudyConfig, options), space=space, run=run, hashes={"data": "d"})
    with StudyDirectory(setup) as directory:
        ledger = Ledger(directory, lambda event: None)
        while (proposal := ledger.next_trial()) is not None:
            config = override(run, proposal.values)
            Trainer(config, World(), _ToLedger(ledger, proposal.number), proposal.workdir).fit(None)
            ledger.finish(proposal.number)
        return directory.path


def _runs(stored: StoredStudy) -> list[tuple[str, Path, PairScores]]:
    folders = [stored.trial_dir(record.number) for record in stored.records]
    return [(f"trial {number}", folder, pairs_of(stored, folder)) for number, folder in enumerate(folders)]


def _names(pairs: PairScores, row: int) -> str:
    return f"{pairs.scenes[row]} - {pairs.names0[row]} - {pairs.names1[row]}"


def test_a_picture_shows_both_weights_on_the_same_pair(study: Path) -> None:
    stored = read_study(study)
    trials = _runs(stored)
    pictures = match_pictures(stored, trials, [0, 2])
    assert [name for name, _ in pictures] == [_names(trials[0][2], row) for row in (0, 2)]
    for _, picture in pictures:
        data, width, height = re.search(r'base64,([^"]+)" width="(\d+)" height="(\d+)"', picture).groups()
        pixels = matplotlib.image.imread(io.BytesIO(base64.b64decode(data)), format="jpeg")
        assert pixels.shape[:2] == (int(height), int(width))
        above, below = np.split(pixels, 2)
        assert above.shape == below.shape and not np.array_equal(above, below)
        assert "trial 0, trial 1" in picture


def test_without_a_checkpoint_there_is_an_error_to_show(study: Path, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(study, tmp_path / "copied", ignore=shutil.ignore_patterns("checkpoints")))
    stored = read_study(copied)
    trials = _runs(stored)
    with pytest.raises(CheckpointError, match="no checkpoint"):
        match_pictures(stored, trials, [0])
    assert "python -m raylg.train" in write_report(copied).page.read_text()

from __future__ import annotations

import subprocess
import sys

import pytest

from raylg.evaluation.measures import HOMOGRAPHY, MEASURES, POSE, ScoreColumns, objectives


def test_keys_of_both_kinds() -> None:
    assert POSE.keys("val") == ("val/auc@5", "val/auc@10", "val/auc@20")
    assert HOMOGRAPHY.keys("val") == ("val/corner_auc@1", "val/corner_auc@3", "val/corner_auc@5")
    assert all(measure.kind == kind and measure.headline in measure.thresholds for kind, measure in MEASURES.items())


def test_objectives() -> None:
    assert objectives("val", POSE) == ("val/auc@5", "val/auc@10", "val/auc@20", "val/mean_auc")
    assert objectives("megadepth1500", POSE)[0] == "megadepth1500/auc@5"
    both = objectives("val", POSE, HOMOGRAPHY)
    assert len(set(both)) == len(both) == 7


@pytest.mark.parametrize(
    ("columns", "titles", "text"),
    [
        (ScoreColumns(), ("AUC@5", "@10", "@20"), "AUC@5/10/20 12.3/nan/nan"),
        (ScoreColumns("val", HOMOGRAPHY), ("corner AUC@1", "@3", "@5"), "corner AUC@1/3/5 px 12.3/nan/nan"),
        (
            ScoreColumns("megadepth1500"),
            ("megadepth1500 AUC@5", "@10", "@20"),
            "megadepth1500 AUC@5/10/20 12.3/nan/nan",
        ),
    ],
)
def test_columns_for_people(columns: ScoreColumns, titles: tuple[str, ...], text: str) -> None:
    assert columns.titles == titles
    assert columns.text({columns.keys[0]: 0.1234}) == text


def test_columns_of_metrics() -> None:
    assert ScoreColumns.of({"val/corner_auc@3": 0.5, "val/mean_auc": 0.5}).measure is HOMOGRAPHY
    assert ScoreColumns.of({"val/auc@10": 0.5}).measure is POSE
    assert ScoreColumns.of({}).measure is POSE
    assert ScoreColumns.of({"val/corner_auc@1": 0.5}, "megadepth1500") == ScoreColumns("megadepth1500", POSE)


def test_module_is_free_of_torch() -> None:
    code = "import sys, raylg.evaluation.measures; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

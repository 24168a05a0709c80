from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from raylg.schema import build
from raylg.search.config import StudyConfig
from raylg.search.space import SearchSpace
from raylg.search.study import StudySetup
from raylg.training.config import RunConfig

SPACE: dict[str, Any] = {
    "parameters": {
        "optim.lr": {"type": "float", "low": 1e-5, "high": 1e-1, "log": True},
        "data.batch_size": {"type": "choice", "values": [8, 16]},
    },
    "baseline": {"optim.lr": 1e-3, "data.batch_size": 16},
}


@pytest.fixture
def make_setup(tmp_path: Path) -> Callable[..., StudySetup]:
    """A study of 90 pairs per trial, reports every 10, rungs at 10 and 30."""

    def make(
        study: dict[str, Any] | None = None,
        run: dict[str, Any] | None = None,
        space: dict[str, Any] | None = None,
        hashes: dict[str, str] | None = None,
    ) -> StudySetup:
        options = {"name": "s", "dir": str(tmp_path), "budget": "5trials", "objective": "val/auc@5"}
        options["scheduler"] = {"grace_pairs": 10}
        return StudySetup(
            study=build(StudyConfig, {**options, **(study or {})}),
            space=SearchSpace.parse({**SPACE, **(space or {})}, "search_spaces/test.yaml"),
            run=build(RunConfig, {"train": {"num_pairs": 90, "report_every": 10}, **(run or {})}),
            hashes=hashes or {"data": "d", "protocol": "p"},
        )

    return make

"""Matches of single pairs by two sets of weights, as pictures; needs the data and the checkpoints of the study."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path

import matplotlib.image
import numpy as np
import torch
from markupsafe import Markup

from raylg.data.stream import PairData
from raylg.evaluation.pair_scores import PairScores
from raylg.schema import build
from raylg.search.stored import StoredStudy
from raylg.training.benchmarks import open_benchmark
from raylg.training.checkpoint import load_matcher
from raylg.training.config import RunConfig
from raylg.training.features import open_split
from raylg.training.validation import pair_figure

_QUALITY = 82


def match_pictures(
    study: StoredStudy, runs: Sequence[tuple[str, Path, PairScores]], rows: Sequence[int]
) -> list[tuple[str, Markup]]:
    """Name and picture of pairs: one pair of images for each run, under each other.

    Args:
        study: whose pairs they are.
        runs: name, directory, and scores of the same pairs, top to bottom.
        rows: of the scores.

    Raises:
        RaylgError: the data or a checkpoint is not there.
    """
    run = build(RunConfig, study.description["run"])
    matchers = [load_matcher(folder)[0] for _, folder, _ in runs]
    device = torch.device("cpu")  # the GPUs may be training
    dataset = _open(run, study.objective.partition("/")[0])
    pictures = []
    for row in rows:
        drawn = [
            pair_figure(matcher, dataset, run, (scores, row), device)
            for matcher, (_, _, scores) in zip(matchers, runs, strict=True)
        ]
        names = ", ".join(name for name, _, _ in runs)
        name = drawn[0][0]
        pictures.append((name, _image(np.concatenate([image for _, image in drawn]), f"Matches of {name}: {names}")))
    return pictures


def _open(run: RunConfig, group: str) -> PairData:
    benchmark = next((name for name in run.evaluation.benchmarks if name == group), None)
    return open_split(run, "val") if benchmark is None else open_benchmark(run, benchmark)


def _image(pixels: np.ndarray, description: str) -> Markup:
    """An image element that carries its bytes, from uint8 [H, W, 3]."""
    file = io.BytesIO()
    matplotlib.image.imsave(file, pixels, format="jpeg", pil_kwargs={"quality": _QUALITY})
    data = base64.b64encode(file.getvalue()).decode()
    height, width = pixels.shape[:2]
    return Markup('<img src="data:image/jpeg;base64,{}" width="{}" height="{}" alt="{}">').format(
        data, width, height, description
    )

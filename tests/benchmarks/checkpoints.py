"""How long a run waits for a checkpoint: written in line, and beside the validation.

    python tests/benchmarks/checkpoints.py [--validation 5] [--folder FOLDER] > table.md

The state is that of the published architecture (9 layers, 256 dimensions) with AdamW and the average of weights; the
validation is matching of the same pair for a given time. Both ways write the same files, flushed to disk.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from datetime import date
from pathlib import Path

import torch

from raylg.batch import View
from raylg.geometry.camera import Camera
from raylg.models.lightglue import LightGlue
from raylg.schema import override
from raylg.training.checkpoint_writer import CheckpointWriter
from raylg.training.config import RunConfig
from raylg.training.distributed import World
from raylg.training.learner import Learner
from raylg.training.run_directory import Best

REPEATS = 3
NUM_KEYPOINTS = 512
CONFIG = {"optim.ema_pairs": 1000.0, "model.extractor.name": "superpoint", "train.micro_batch_size": 1}


def main() -> None:
    """Measure and print a table."""
    words = argparse.ArgumentParser()
    words.add_argument("--validation", type=float, default=5.0, help="seconds of the validation")
    words.add_argument("--folder", help="where to write (default: a temporary folder)")
    arguments = words.parse_args()
    torch.manual_seed(0)
    learner = Learner(override(RunConfig(), CONFIG), World())
    _take_a_step(learner)
    state = {"pairs_seen": 1, "learner": learner.state_dict()}
    rounds = _rounds(learner.validated, arguments.validation)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        measured = [_measure(Path(folder), state, learner.validated, rounds) for _ in range(REPEATS)]
        megabytes = sum(file.stat().st_size for file in Path(folder).rglob("state.pt")) / 1e6
    columns = list(zip(*measured, strict=True))
    validation, in_line, beside, copied = (min(column) for column in columns)
    print(f"{date.today()}, CPU, {torch.get_num_threads()} thread, least of {REPEATS}: state of {megabytes:.0f} MB\n")
    print("| validation alone, s | waits in line, s | waits beside it, s | of that for the copy, s | share |")
    print("|--:|--:|--:|--:|--:|")
    print(f"| {validation:.2f} | {in_line:.2f} | {beside:.2f} | {copied:.2f} | {beside / in_line:.2f} |")


def _measure(
    folder: Path, state: dict[str, object], matcher: LightGlue, rounds: int
) -> tuple[float, float, float, float]:
    """Seconds of the validation, and of waiting in line and beside it, the latter with its copy."""
    start = time.perf_counter()
    _validate(matcher, rounds)
    validation = time.perf_counter() - start

    start = time.perf_counter()
    writer = CheckpointWriter(folder, RunConfig())
    writer.begin(state, matcher)
    writer.finish({"pairs_seen": 1}, Best())
    in_line = time.perf_counter() - start

    start = time.perf_counter()
    writer.begin(state, matcher)
    copied = time.perf_counter() - start
    _validate(matcher, rounds)
    writer.finish({"pairs_seen": 1}, Best())
    beside = time.perf_counter() - start - validation
    writer.close()
    return validation, in_line, beside, copied


def _take_a_step(learner: Learner) -> None:
    """Make the moments of the optimiser and the average, as large as after any step."""
    for parameter in learner.model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    learner._optimizer.step()


def _rounds(matcher: LightGlue, seconds: float) -> int:
    start = time.perf_counter()
    _validate(matcher, 2)
    return max(1, round(seconds * 2 / (time.perf_counter() - start)))


def _validate(matcher: LightGlue, rounds: int) -> None:
    matcher.eval()
    for seed in range(rounds):
        matcher.match(_view(seed), _view(seed + 1))


def _view(seed: int) -> View:
    generator = torch.Generator().manual_seed(seed)
    size = torch.tensor([[640.0, 480.0]])
    descriptors = torch.randn(1, NUM_KEYPOINTS, 256, generator=generator)
    return View(
        keypoints=torch.rand(1, NUM_KEYPOINTS, 2, generator=generator) * size,
        descriptors=torch.nn.functional.normalize(descriptors, dim=-1),
        mask=torch.ones(1, NUM_KEYPOINTS, dtype=torch.bool),
        image_size=size,
        camera=Camera.from_params(torch.tensor([[500.0, 500.0, 320.0, 240.0]])),
        depth_keypoints=torch.full((1, NUM_KEYPOINTS), torch.nan),
    )


if __name__ == "__main__":
    main()

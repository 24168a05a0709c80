"""Early exit and point pruning on a trained matcher: layers used, matches kept, speed-up, by number of keypoints.

python tests/benchmarks/adaptive.py [--run runs/NAME] [--cache ~/.cache/raylg]

Without `--run` a LightGlue of 9 layers of 128 channels is trained on the built-in scenes first: the whole network, then
the confidences alone with everything else frozen. Pairs are of validation scenes rendered at 1280 x 960, where SIFT
finds more keypoints: the easy ones overlap most, the hard ones least. Official thresholds: 0.95 for the exit, 0.99 for
pruning; one thread, one pair at a time. Pruning is shown alone too: where the exit is early, nothing is left to prune.
"""

from __future__ import annotations

import argparse
import copy
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from raylg.batch import Matches, PairBatch
from raylg.data.stream import PairData, evaluation_indices
from raylg.models.lightglue import LightGlue
from raylg.schema import override
from raylg.training.checkpoint import load_matcher
from raylg.training.config import RunConfig
from raylg.training.distributed import World
from raylg.training.features import ensure_features, open_split
from raylg.training.trainer import Trainer
from tests.benchmarks.memory import best_of

COUNTS = (256, 512, 1024, 2048, 4096)
DEPTH_CONFIDENCE, WIDTH_CONFIDENCE = 0.95, 0.99
MODES = {"exit and pruning": (DEPTH_CONFIDENCE, WIDTH_CONFIDENCE), "pruning": (-1.0, WIDTH_CONFIDENCE)}
TRAINING = {
    "data.num_keypoints": 256,
    "data.batch_size": 8,
    "model.matcher.descriptor_dim": 128,
    "model.matcher.num_layers": 9,
    "model.matcher.num_heads": 4,
    "model.matcher.init": "identity",
    "optim.lr": 3e-4,
    "optim.warmup_pairs": 64,
    "optim.ema_pairs": 128.0,
    "evaluation.max_pairs": 40,
    "train.num_figures": 0,
}
LARGE_VIEWS = {
    "data.mini.num_train_scenes": 1,
    "data.mini.num_val_scenes": 3,
    "data.mini.num_test_scenes": 1,
    "data.mini.width": 1280,
    "data.mini.height": 960,
    "data.min_overlap": 0.05,
    "data.max_overlap": 0.9,
    "model.extractor.max_num_keypoints": 4096,
    "model.extractor.detection_threshold": 0.001,
}


@dataclass(frozen=True)
class Row:
    """Means over pairs."""

    num_keypoints: float
    layers: float
    matches: float
    matches_full: float
    kept: float
    """Share of the matches of the full network that the adaptive one gives too."""
    seconds: float
    seconds_full: float

    def cells(self) -> str:
        """The columns from the layers on."""
        return (
            f"{self.layers:.1f} | {self.matches_full:.0f} | {self.matches:.0f} | {100 * self.kept:.0f} % | "
            f"{1e3 * self.seconds_full:.0f} | {1e3 * self.seconds:.0f} | {self.seconds_full / self.seconds:.1f}"
        )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, help="a trained SIFT run instead of training one")
    parser.add_argument("--pairs", type=int, default=1024, help="training pairs of the whole network")
    parser.add_argument("--confidence-pairs", type=int, default=512, help="training pairs of the confidences after it")
    parser.add_argument("--num-pairs", type=int, default=6, help="easy pairs, and hard pairs, that are timed")
    parser.add_argument("--counts", type=int, nargs="+", default=COUNTS, help="keypoints of a view, at most")
    parser.add_argument("--cache", default="~/.cache/raylg", help="renders and features")
    words = parser.parse_args()
    config = override(RunConfig(), TRAINING | {"data.cache_dir": words.cache})
    views = override(config, LARGE_VIEWS)
    ensure_features(views)
    if words.run is not None:
        matcher, _ = load_matcher(words.run)
    else:
        with tempfile.TemporaryDirectory() as folder:
            matcher = train(config, words.pairs, words.confidence_pairs, Path(folder))
    torch.set_num_threads(1)
    num_layers = matcher.config.num_layers
    print(f"{date.today()}, CPU, one thread: {num_layers} layers of {matcher.config.descriptor_dim}, SIFT\n")
    matches, times = "matches, all layers | adaptive | kept", "ms, all layers | adaptive | speed-up"
    print(f"| keypoints at most | found | pairs | adaptive in | layers used | {matches} | {times} |")
    print("|--:|--:|---|---|--:|--:|--:|--:|--:|--:|--:|")
    for count in words.counts:
        pairs = open_split(override(views, {"evaluation.num_keypoints": count}), "val")
        for kind, indices in easy_and_hard(pairs, words.num_pairs).items():
            batches = [pairs.batch(index[None]) for index in indices]
            for mode, confidences in MODES.items():
                row = measure(matcher, batches, confidences)
                print(f"| {count} | {row.num_keypoints:.0f} | {kind} | {mode} | {row.cells()} |", flush=True)


def train(config: RunConfig, num_pairs: int, confidence_pairs: int, folder: Path) -> LightGlue:
    """The whole network, then its confidences."""
    ensure_features(config)
    first, second = folder / "all", folder / "confidence"
    whole = override(config, {"train.num_pairs": num_pairs, "train.report_every": num_pairs})
    Trainer(whole, World(), Silent(), first).fit()
    if confidence_pairs == 0:
        return load_matcher(first)[0]
    rest = {
        "train.stage": "confidence",
        "train.init_from": str(first),
        "train.num_pairs": confidence_pairs,
        "train.report_every": confidence_pairs,
        "optim.lr": 5e-2,  # a single linear layer, which starts at chance
    }
    Trainer(override(config, rest), World(), Silent(), second).fit()
    return load_matcher(second)[0]


class Silent:
    """A reporter that tells nobody."""

    def report(self, metrics: Mapping[str, float], checkpoint: Path | None) -> None:
        """See `raylg.training.reporter.Reporter`."""


def easy_and_hard(pairs: PairData, number: int) -> dict[str, np.ndarray]:
    """Indices int64 [number, 2] of the pairs that overlap most and of those that overlap least."""
    entries = evaluation_indices(pairs, None)
    overlap = np.concatenate([pairs.batch(entry[None]).overlap.numpy() for entry in entries])
    order = np.argsort(-overlap, kind="stable")
    return {"easy": entries[order[:number]], "hard": entries[order[-number:]]}


def measure(matcher: LightGlue, batches: Sequence[PairBatch], confidences: tuple[float, float]) -> Row:
    """Match pairs of one with all layers and adaptively."""
    full, adaptive = with_confidences(matcher, -1.0, -1.0), with_confidences(matcher, *confidences)
    rows = []
    for batch in batches:
        view0, view1 = batch.view0, batch.view1
        expected, found = full.match(view0, view1), adaptive.match(view0, view1)
        number = (int(view0.mask.sum()) + int(view1.mask.sum())) / 2
        values = (number, float(found.num_layers_used[0]), num_matches(found), num_matches(expected))
        rows.append((*values, share_kept(expected, found), seconds(adaptive, batch), seconds(full, batch)))
    return Row(*np.nanmean(rows, axis=0))


def seconds(matcher: LightGlue, batch: PairBatch) -> float:
    """The quicker of two."""
    return best_of(2, lambda: matcher.match(batch.view0, batch.view1))


def with_confidences(matcher: LightGlue, depth: float, width: float) -> LightGlue:
    """The same weights with other options at inference."""
    other = copy.copy(matcher)
    other.config = replace(matcher.config, depth_confidence=depth, width_confidence=width)
    return other


def num_matches(matches: Matches) -> int:
    """Of one pair."""
    return int((matches.matches0 >= 0).sum())


def share_kept(expected: Matches, found: Matches) -> float:
    """Share of the expected matches that were found; NaN without any."""
    is_match = expected.matches0 >= 0
    return float((found.matches0 == expected.matches0)[is_match].float().mean())


if __name__ == "__main__":
    main()

"""Does it learn? The two-stage recipe with averaged weights against the plain loop: validation AUC by training pairs.

python tests/benchmarks/learning.py [--seeds 4 5 6] [--goal 50] [--pairs 2560] [--cache ~/.cache/raylg]

Plain loop: posed pairs only, the formulas of `tests/benchmarks/reference.py`, the weights of the last step. Recipe:
homographies of the rendered training images first, then posed pairs, the average of the weights, all by raylg's
trainer; its homographies count as training pairs. Both start from the same weights, take posed pairs in the same order,
and have the same optimiser, shape of schedule and learning rate. Curves are means over seeds. The
goal is a fixed score, and beside it the best one of the plain loop, which is only known afterwards.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import closing
from datetime import date
from pathlib import Path
from statistics import fmean

import cv2
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from raylg.data.stream import stream_batches
from raylg.data.synthetic.source import MiniSource
from raylg.schema import override
from raylg.training.checkpoint import build_matcher, load_matcher
from raylg.training.config import RunConfig
from raylg.training.distributed import World
from raylg.training.features import ensure_features, open_split
from raylg.training.optim import build_optimizer, clip_gradients, lr_factor, set_lr
from raylg.training.reporter import read_metrics
from raylg.training.trainer import Trainer, crosses
from raylg.training.validation import validate
from tests.benchmarks.reference import dense_step

METRICS = ("val/auc@5", "val/auc@10", "val/auc@20")
GOAL = "val/mean_auc"
Curve = dict[int, Mapping[str, float]]
"""Pairs seen to metrics of the validation pairs."""

SETTINGS = {
    "data.num_keypoints": 256,
    "data.batch_size": 4,
    "model.matcher.descriptor_dim": 128,
    "model.matcher.num_layers": 2,
    "model.matcher.num_heads": 2,
    "model.matcher.init": "identity",
    "optim.lr": 2.2e-4,
    "optim.warmup_pairs": 64,
    "evaluation.num_keypoints": 256,
    "train.num_figures": 0,
}


def main() -> None:
    """Print the curves."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=2560, help="budget of either side, all stages together")
    parser.add_argument("--homographies", type=int, default=512, help="how many of the recipe's pairs these are")
    parser.add_argument("--every", type=int, default=256, help="validate each time this many more pairs were seen")
    parser.add_argument("--ema-pairs", type=float, default=256.0, help="time constant of the average")
    parser.add_argument("--seeds", type=int, nargs="+", default=(4, 5, 6))
    parser.add_argument("--goal", type=float, default=50.0, help="mean AUC in percent; at the start it is 48")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--cache", default="~/.cache/raylg", help="renders and features")
    words = parser.parse_args()
    budget = {"train.num_pairs": words.pairs, "train.report_every": words.every}
    config = override(RunConfig(), SETTINGS | budget | {"data.cache_dir": words.cache})
    torch.set_num_threads(words.threads)
    ensure_features(config)
    plain, recipe = [], []
    for seed in words.seeds:
        seeded = override(config, {"seed": seed})
        with tempfile.TemporaryDirectory() as workdir:
            plain.append(plain_loop(seeded))
            recipe.append(two_stages(seeded, words.homographies, words.ema_pairs, Path(workdir)))
        print(f"seed {seed}: at the end plain {ending(plain[-1]):.1f}, two stages {ending(recipe[-1]):.1f}", flush=True)
    print(f"{date.today()}: {words.pairs} pairs, {words.homographies} homographies first, seeds {words.seeds}\n")
    print_table(mean_curve(plain), mean_curve(recipe), words.goal / 100)


def mean_curve(curves: Sequence[Curve]) -> Curve:
    """Mean over seeds; the curves have the same points."""
    names = (*METRICS, GOAL)
    return {pairs: {name: fmean(curve[pairs][name] for curve in curves) for name in names} for pairs in curves[0]}


def ending(curve: Curve) -> float:
    """Mean AUC of the last point, percent."""
    return 100 * curve[max(curve)][GOAL]


def plain_loop(config: RunConfig) -> Curve:
    """Train with the plain formulas and validate the weights as they are."""
    torch.manual_seed(config.seed)
    model = build_matcher(config).train()
    optimizer = build_optimizer(model, config.optim)
    pairs, validation = open_split(config, "train"), open_split(config, "val")
    curve: Curve = {0: validate(model, validation, config, World())[1]}
    seen, batch_size = 0, config.data.batch_size
    with closing(stream_batches(pairs, config.data, config.seed, 0, 1, start_pairs=0)) as stream:
        while seen < config.train.num_pairs:
            factor = lr_factor(seen + batch_size / 2, config.optim, config.train.num_pairs)
            set_lr(optimizer, config.optim.lr * factor)
            dense_step(model, next(stream), (config.ground_truth, config.loss)).mean().backward()
            clip_gradients(model, config.optim.clip_grad_norm)
            optimizer.step()
            optimizer.zero_grad()
            seen += batch_size
            if crosses(seen - batch_size, seen, config.train.report_every) or seen >= config.train.num_pairs:
                curve[seen] = validate(model, validation, config, World())[1]
                Progress("plain").report(curve[seen] | {"pairs_seen": seen}, None)
    return curve


def two_stages(config: RunConfig, homographies: int, ema_pairs: float, workdir: Path) -> Curve:
    """Homographies, then posed pairs, as a user would; keys count the pairs of both stages."""
    config = override(config, {"optim.ema_pairs": ema_pairs})
    warped = override(
        config,
        {
            "data.source": "images",
            "data.path": [str(write_photographs(config, workdir / "photographs"))],
            "train.num_pairs": homographies,
            "train.report_every": homographies,
            "evaluation.max_pairs": 8,
        },
    )
    ensure_features(warped)
    first, second = workdir / "homographies", workdir / "posed"
    Trainer(warped, World(), Progress("homographies"), first).fit()
    matcher, _ = load_matcher(first)
    curve: Curve = {homographies: validate(matcher, open_split(config, "val"), config, World())[1]}
    posed = {"train.num_pairs": config.train.num_pairs - homographies}
    posed |= {"train.init_from": str(first)}
    Trainer(override(config, posed), World(), Progress("posed"), second).fit()
    return curve | {homographies + int(metrics["pairs_seen"]): metrics for metrics in read_metrics(second)}


class Progress:
    """A reporter that says on the error stream how far a run is."""

    def __init__(self, name: str) -> None:
        self.name = name

    def report(self, metrics: Mapping[str, float], checkpoint: Path | None) -> None:
        """See `raylg.training.reporter.Reporter`."""
        print(f"{self.name}: {metrics['pairs_seen']:.0f} pairs, {GOAL} {metrics[GOAL]:.3f}", file=sys.stderr)


def write_photographs(config: RunConfig, folder: Path) -> Path:
    """The rendered training images as files."""
    folder.mkdir()
    source = MiniSource(config.data)
    for reference in source.scenes():
        if reference.split == "train":
            scene = source.load(reference)
            for index in range(len(scene.views)):
                image = cv2.cvtColor(scene.image(index), cv2.COLOR_RGB2BGR)
                cv2.imwrite(str(folder / f"{reference.name}-{index:03d}.jpg"), image)
    return folder


def print_table(plain: Curve, recipe: Curve, fixed: float) -> None:
    """Both curves, and after how many pairs each reaches a fixed score and the best one of the plain loop."""
    print("| training pairs | plain: AUC@5 / 10 / 20 | two stages: AUC@5 / 10 / 20 |")
    print("|--:|--:|--:|")
    for pairs in sorted(plain.keys() | recipe.keys()):
        cells = ("" if pairs not in curve else percent(curve[pairs]) for curve in (plain, recipe))
        print(f"| {pairs} | {' | '.join(cells)} |")
    print("\n| mean AUC | plain | two stages |")
    print("|---|--:|--:|")
    for name, goal in (("fixed", fixed), ("best of the plain loop", max(metrics[GOAL] for metrics in plain.values()))):
        print(f"| {100 * goal:.1f}, {name} | {first_at(plain, goal)} | {first_at(recipe, goal)} |")
    print(f"| at the end | {ending(plain):.1f} | {ending(recipe):.1f} |")


def percent(metrics: Mapping[str, float]) -> str:
    """AUC at the three thresholds."""
    return " / ".join(f"{100 * metrics[name]:.1f}" for name in METRICS)


def first_at(curve: Curve, goal: float) -> str:
    """Pairs after which the score is reached for the first time."""
    reached = [pairs for pairs, metrics in sorted(curve.items()) if metrics[GOAL] >= goal]
    return f"after {reached[0]}" if reached else "never"


if __name__ == "__main__":
    main()

"""`python -m raylg.train`: one training run; the same command continues an interrupted one."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from raylg import config
from raylg.console.terminal import console, guard, parser, progress_bar
from raylg.evaluation.measures import ScoreColumns

if TYPE_CHECKING:
    from raylg.training.config import RunConfig
    from raylg.training.reporter import Reporter


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point."""
    return guard("train", _train, sys.argv[1:] if argv is None else argv)


def _train(argv: Sequence[str]) -> int:
    words = parser("train", __doc__ or "")
    words.add_argument("--name", default="train", help="folder of the run under runs/ (default: train)")
    arguments = words.parse_intermixed_args(argv)
    run = config.load(arguments.overrides, arguments.config, arguments.config_dir).without_benchmark().run
    workdir = Path("runs") / arguments.name

    from raylg.cluster.resources import check_fits
    from raylg.training.benchmarks import check_benchmarks, ensure_benchmark
    from raylg.training.features import check_inputs, ensure_features

    check_fits(run.scale)
    check_benchmarks(run)
    check_inputs(run)  # last, because it makes folders
    with progress_bar("extracting features") as progress:
        ensure_features(run, progress)
    for name in run.evaluation.benchmarks:
        with progress_bar(f"extracting features of {name}") as progress:
            ensure_benchmark(run, name, progress)

    from raylg.training.reporter import ConsoleReporter

    out = console()
    reporter = ConsoleReporter(out.print, run.train.num_pairs)
    alone = run.scale.num_workers == 1 and run.scale.executor != "ray_train"
    metrics = _train_here(run, workdir, reporter) if alone else _train_on_ray(run, workdir, reporter)
    areas = [f"validation {ScoreColumns.of(metrics).text(metrics, digits=2)}"]
    areas += [ScoreColumns(name).text(metrics, digits=2) for name in run.evaluation.benchmarks]
    out.print(f"done: {metrics['pairs_seen']:.0f} pairs, {', '.join(areas)}, run {workdir}")
    out.print(f"next: python -m raylg.evaluate {workdir}    curves: tensorboard --logdir {workdir}")
    return 0


def _train_here(run: RunConfig, workdir: Path, reporter: Reporter) -> Mapping[str, float]:
    import torch

    from raylg.training.checkpoint import latest
    from raylg.training.trainer import Trainer, World

    torch.set_num_threads(run.scale.cpus_per_worker)
    gpu = torch.cuda.is_available() and run.scale.gpus_per_worker != 0
    world = World(device=torch.device("cuda" if gpu else "cpu"))
    return Trainer(run, world, reporter, workdir).fit(latest(workdir))


def _train_on_ray(run: RunConfig, workdir: Path, reporter: Reporter) -> Mapping[str, float]:
    from raylg.cluster.session import RaySession
    from raylg.cluster.train import run_training

    workdir.mkdir(parents=True, exist_ok=True)
    with RaySession(run.scale, workdir / "ray.log") as session:
        return run_training(run, workdir, session, lambda metrics: reporter.report(metrics, None))


if __name__ == "__main__":
    sys.exit(main())

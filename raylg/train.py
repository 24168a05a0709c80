"""`python -m raylg.train`: one training run; the same command continues an interrupted one."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from raylg import config
from raylg.console.terminal import console, guard, parser, progress_bar
from raylg.evaluation.measures import ScoreColumns
from raylg.schema import override

if TYPE_CHECKING:
    from raylg.training.config import RunConfig
    from raylg.training.reporter import Reporter

PROFILE_STEPS = 20


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point."""
    return guard("train", _train, sys.argv[1:] if argv is None else argv)


def _train(argv: Sequence[str]) -> int:
    words = parser("train", __doc__ or "")
    words.add_argument("--name", default="train", help="folder of the run under runs/ (default: train)")
    words.add_argument(
        "--profile",
        metavar="STEPS",
        type=int,
        help=f"show where the time of STEPS steps goes, and trace as many after them (default: {PROFILE_STEPS})",
    )
    arguments = words.parse_intermixed_args(_with_steps(argv))
    run = config.load(arguments.overrides, arguments.config, arguments.config_dir).without_benchmark().run
    if arguments.profile is not None:
        os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # before torch is imported: no messages of its profiler
        run = override(run, {"train.profile_steps": arguments.profile})
    workdir = Path("runs") / arguments.name

    from raylg.cluster.resources import check_fits
    from raylg.training.benchmarks import check_benchmarks, ensure_all
    from raylg.training.features import check_inputs
    from raylg.training.mirror import resume_point, resumes
    from raylg.training.run_directory import locked

    check_fits(run.scale)
    check_benchmarks(run)
    check_inputs(run, resumes=resumes(run, workdir))  # last, because it makes folders
    with locked(workdir):
        resume_from = resume_point(run, workdir)
        ensure_all(run, progress_bar, grow=resume_from is None)

        from raylg.training.reporter import ConsoleReporter, ProfileReporter, TeeReporter

        out = console()
        reporter = TeeReporter([ConsoleReporter(out.print, run.train.num_pairs), ProfileReporter(out.print, workdir)])
        alone = run.scale.num_workers == 1 and run.scale.executor != "ray_train"
        metrics = _train_here(run, workdir, reporter, resume_from) if alone else _train_on_ray(run, workdir, reporter)
    columns = {name: ScoreColumns(name) for name in run.evaluation.benchmarks}
    missing = [name for name in columns if not all(key in metrics for key in columns[name].keys)]
    areas = [f"validation {ScoreColumns.of(metrics).text(metrics, digits=2)}"]
    areas += [columns[name].text(metrics, digits=2) for name in columns if name not in missing]
    out.print(f"done: {metrics['pairs_seen']:.0f} pairs, {', '.join(areas)}, run {workdir}")
    for name in missing:
        pairs = f"benchmark={name} benchmarks.{name}.path={run.benchmarks.named(name).path}"
        out.print(f"{name} is not scored, as the run had ended before: python -m raylg.evaluate {workdir} {pairs}")
    out.print(f"next: python -m raylg.evaluate {workdir}    curves: tensorboard --logdir {workdir}")
    return 0


def _with_steps(argv: Sequence[str]) -> list[str]:
    """Add the number of steps that `--profile` may leave out; argparse would take key=value after it for the number."""
    followed = zip(argv, [*argv[1:], ""], strict=True)
    given = f"--profile={PROFILE_STEPS}"
    return [given if word == "--profile" and not after.isdecimal() else word for word, after in followed]


def _train_here(run: RunConfig, workdir: Path, reporter: Reporter, resume_from: Path | None) -> Mapping[str, float]:
    import torch

    from raylg.training.trainer import Trainer, World

    torch.set_num_threads(run.scale.cpus_per_worker)
    gpu = torch.cuda.is_available() and run.scale.gpus_per_worker != 0
    world = World(device=torch.device("cuda" if gpu else "cpu"))
    return Trainer(run, world, reporter, workdir).fit(resume_from)


def _train_on_ray(run: RunConfig, workdir: Path, reporter: Reporter) -> Mapping[str, float]:
    from raylg.cluster.session import RaySession
    from raylg.cluster.train import run_training

    with RaySession(run.scale, workdir / "ray.log") as session:
        return run_training(run, workdir, session, lambda metrics: reporter.report(metrics, None))


if __name__ == "__main__":
    sys.exit(main())

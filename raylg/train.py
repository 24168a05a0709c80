"""`python -m raylg.train`: one training run; again = resume."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from raylg import config
from raylg.console.terminal import console, guard, parser, progress_bar


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point."""
    return guard(_train, sys.argv[1:] if argv is None else argv)


def _train(argv: Sequence[str]) -> int:
    words = parser("train", __doc__ or "")
    words.add_argument("--name", default="train", help="run directory under runs/; an existing one is continued")
    arguments = words.parse_args(argv)
    run = config.load(arguments.overrides, arguments.config, arguments.config_dir).run
    workdir = Path("runs") / arguments.name

    from raylg.training.features import check_inputs, ensure_features

    check_inputs(run)
    with progress_bar("extracting features") as progress:
        ensure_features(run, progress)
    out = console()
    if run.scale.num_workers > 1 or run.scale.executor == "ray_train":
        from raylg.cluster.training import run_training

        metrics = run_training(run, workdir, out.print)
    else:
        from raylg.training.local import train_here

        metrics = train_here(run, workdir, out.print)
    out.print(f"done: {metrics['pairs_seen']:.0f} pairs, val/auc@5 {100 * metrics['val/auc@5']:.1f}; run: {workdir}")
    out.print(f"next: python -m raylg.evaluate {workdir}    curves: tensorboard --logdir {workdir}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""`python -m raylg.tune --space NAME`: search hyperparameters; the same command continues an interrupted search."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from raylg.config import Config
from raylg.console.plan import expect, show
from raylg.console.terminal import console, guard, parser, progress_bar
from raylg.console.tune_input import checked, looked_over, open_study, study_path

if TYPE_CHECKING:
    from raylg.search.books import TrialEvent
    from raylg.search.space import SearchSpace


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point."""
    return guard("tune", _tune, sys.argv[1:] if argv is None else argv)


def _tune(argv: Sequence[str]) -> int:
    words = parser("tune", __doc__ or "")
    words.add_argument("--space", required=True, help="search space: a name in search_spaces/, or a YAML file")
    words.add_argument("--name", help="folder of the study under studies/ (default: name of the space)")
    words.add_argument("--plan", action="store_true", help="time a few steps, print what the study will take, and end")
    words.add_argument("--fresh", action="store_true", help="start over; the study of that name is renamed and kept")
    arguments = words.parse_intermixed_args(argv)
    loaded, space = checked(arguments)
    out = console()
    begins = arguments.fresh or not (study_path(loaded) / "study.yaml").exists()
    if begins or arguments.plan:  # what has begun was looked over then
        for line in looked_over(loaded, space):
            out.print(line)
    if arguments.plan:
        show(loaded, space, out)
        out.print(f"next: {shlex.join(['python', '-m', 'raylg.tune', *(w for w in argv if w != '--plan')])}")
        return 0

    if arguments.fresh:
        from raylg.search.study import set_aside

        earlier = set_aside(study_path(loaded))
        if earlier is not None:
            out.print(f"the earlier study is now {earlier}")

    from raylg.training.benchmarks import ensure_all

    ensure_all(loaded.run, progress_bar)
    _run(loaded, space, shlex.join(["python", "-m", "raylg.tune", *(w for w in argv if w != "--fresh")]))
    return 0


def _run(loaded: Config, space: SearchSpace, command: str) -> None:
    """Start or continue the study, and print what it found."""
    from raylg.console.conclusion import conclude
    from raylg.console.live_report import LiveReport
    from raylg.console.study import LiveStudy, TrialColumns
    from raylg.training.objective import objective_columns

    out = console()
    with open_study(loaded, space, command) as directory:
        columns = TrialColumns(
            parameters=[parameter.path for parameter in space.parameters],
            scores=objective_columns(loaded.run, directory.setup.objective),
            num_pairs=loaded.train.num_pairs,
        )
        from raylg.cluster.session import RaySession
        from raylg.cluster.tuner import run_study
        from raylg.search.plan import feasible_by, seconds_by

        out.print(f"study: {directory.path}    (stop at any time; the same command continues)")
        if directory.prior.studies:
            out.print(str(directory.prior))
        with RaySession(loaded.scale, directory.path / "ray.log") as session:
            out.print(f"Ray dashboard: {session.dashboard_url}    curves: tensorboard --logdir {directory.path}/trials")
            cost = expect(loaded, space, session, out)
            with LiveReport(directory.path) as page, LiveStudy(out, columns) as live:

                def show_event(event: TrialEvent) -> None:
                    live(event)
                    page(event)

                result = run_study(
                    directory,
                    session,
                    show_event,
                    cost=seconds_by(cost, loaded.run),
                    is_feasible=feasible_by(cost, loaded.run),
                )
        conclude(loaded, directory, result, columns)


if __name__ == "__main__":
    sys.exit(main())

"""`python -m raylg.report STUDY`: write the report of a study into its folder; also while it runs, or of a copy."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from raylg.console.terminal import console, guard
from raylg.errors import ConfigError


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point."""
    return guard("report", _report, sys.argv[1:] if argv is None else argv)


def _report(argv: Sequence[str]) -> int:
    words = argparse.ArgumentParser(prog="python -m raylg.report", description=__doc__)
    words.add_argument("study", type=Path, help="folder of the study, such as studies/lr_bs")
    path: Path = words.parse_args(argv).study.expanduser()

    from raylg.reporting.study_page import write_report

    try:
        report = write_report(path)
    except OSError as error:
        raise ConfigError(f"{path}: the report cannot be written ({error}); copy the study to where you may") from error
    out = console()
    for what in report.left_out:
        out.print(f"left out: {what}")
    out.print(f"tables: {', '.join(map(str, report.tables))}    TensorBoard: tensorboard --logdir {report.hparams}")
    out.print(f"report: {report.page}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""`python -m raylg.evaluate CHECKPOINT`: AUC of a matcher beside mutual nearest neighbours, on a split or benchmark."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raylg import config
from raylg.console.study import comparison_table
from raylg.console.terminal import console, guard, parser, progress_bar
from raylg.errors import ConfigError
from raylg.schema import override
from raylg.training.run_directory import CONFIG, find_weights

if TYPE_CHECKING:
    from raylg.data.scene import Split
    from raylg.data.stream import PairData
    from raylg.evaluation.config import BenchmarkName, EvaluationConfig
    from raylg.training.config import RunConfig


CAVEAT = ", which may have trained or chosen these weights: that flatters them"


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point."""
    return guard("evaluate", _evaluate, sys.argv[1:] if argv is None else argv)


def _evaluate(argv: Sequence[str]) -> int:
    words = parser("evaluate", f"{__doc__} CHECKPOINT: a checkpoint, run or trial directory, or a LightGlue .pth file.")
    words.add_argument("--split", choices=("train", "val", "test"), help="pairs to score (default: test, else val)")
    words.add_argument(
        "--checkpoint",
        default="last",
        metavar="NAME",
        help="of a run or trial directory: last, best, or a folder of its checkpoints/ (default: last)",
    )
    arguments = words.parse_intermixed_args(argv)
    paths = [word for word in arguments.overrides if "=" not in word]
    if len(paths) != 1:
        raise ConfigError(f"{' '.join(paths) or 'no checkpoint given'}: give one checkpoint, run or .pth file")
    weights = find_weights(Path(paths[0]).expanduser(), arguments.checkpoint)
    stored = weights.with_name(CONFIG)
    overrides = [word for word in arguments.overrides if word not in paths]
    start = arguments.config or (str(stored) if stored.is_file() else None)
    loaded = config.load(overrides, start, arguments.config_dir)

    if loaded.benchmark is not None and arguments.split is not None:
        raise ConfigError(f"--split {arguments.split} and benchmark={loaded.benchmark}: give one of them")
    values: dict[str, Any] = {"model.matcher.weights": str(weights), "train.init_from": None}
    if loaded.benchmark is not None:
        values["evaluation.benchmarks"] = [loaded.benchmark]
    _score(override(loaded.run, values), arguments.split, loaded.benchmark)
    return 0


def _score(run: RunConfig, split: Split | None, benchmark: BenchmarkName | None) -> None:
    """Print how the matcher of `run` scores beside the baselines on a split, or on a benchmark."""
    _check(run, benchmark)

    from raylg.evaluation.comparison import baselines, compare
    from raylg.evaluation.reads import describe_reads, look, record_read
    from raylg.training.checkpoint import build_matcher

    matcher = build_matcher(run).eval()
    pairs, protocol, group = _split_pairs(run, split) if benchmark is None else _benchmark_pairs(run, benchmark)
    scores = compare({"LightGlue": matcher, **baselines()}, pairs, protocol)
    of_group = f"{group} pairs{CAVEAT if group == 'val' else ''}" if benchmark is None else f"pairs of {group}"
    out = console()
    if group in ("test", benchmark):
        reader = str(Path(run.model.matcher.weights or "").resolve())
        read = look(pairs, protocol, run.model.matcher, test=group, reader=reader)
        out.print(describe_reads(record_read(run.data.cache_dir, read)))
    out.print(comparison_table(scores, f"{len(scores['LightGlue'])} {of_group}", group))
    if benchmark is not None:
        out.print(f"If trials were chosen by {benchmark}, its number of the chosen one is optimistic.")


def _check(run: RunConfig, benchmark: BenchmarkName | None) -> None:
    """Answer what is wrong with the input before torch is imported."""
    from raylg.training.benchmarks import check_benchmarks
    from raylg.training.features import check_inputs
    from raylg.training.start import check_start

    if benchmark is None:
        check_inputs(run)
    else:
        check_start(run)
        check_benchmarks(run)


def _split_pairs(run: RunConfig, split: Split | None) -> tuple[PairData, EvaluationConfig, str]:
    from raylg.evaluation.benchmarks import check_pixels
    from raylg.evaluation.comparison import scoring_device
    from raylg.training.features import ensure_features, has_split, open_split

    with progress_bar("extracting features") as progress:
        ensure_features(run, progress)
    split = split or ("test" if has_split(run, "test") else "val")
    dataset = open_split(run, split, scoring_device())
    check_pixels(dataset, run.evaluation)
    return dataset, run.evaluation, split


def _benchmark_pairs(run: RunConfig, name: BenchmarkName) -> tuple[PairData, EvaluationConfig, str]:
    from raylg.training.benchmarks import benchmark_protocol, ensure_benchmark, open_benchmark

    with progress_bar(f"extracting features of {name}") as progress:
        ensure_benchmark(run, name, progress)
    return open_benchmark(run, name), benchmark_protocol(run, name), name


if __name__ == "__main__":
    sys.exit(main())

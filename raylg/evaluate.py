"""`python -m raylg.evaluate CHECKPOINT`: AUC of a matcher beside mutual nearest neighbours, on a split or benchmark."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from raylg import config
from raylg.console.study import comparison_table
from raylg.console.terminal import console, guard, parser, progress_bar
from raylg.errors import ConfigError

if TYPE_CHECKING:
    from raylg.data.scene import Split
    from raylg.evaluation.config import BenchmarkName
    from raylg.training.config import RunConfig


CAVEAT = ", which may have trained or chosen these weights: that flatters them"


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point."""
    return guard("evaluate", _evaluate, sys.argv[1:] if argv is None else argv)


def _evaluate(argv: Sequence[str]) -> int:
    words = parser("evaluate", f"{__doc__} CHECKPOINT: a checkpoint, run or trial directory, or a LightGlue .pth file.")
    words.add_argument("--split", choices=("train", "val", "test"), help="pairs to score (default: test, else val)")
    arguments = words.parse_intermixed_args(argv)
    paths = [word for word in arguments.overrides if "=" not in word]
    if len(paths) != 1:
        raise ConfigError(f"{' '.join(paths) or 'no checkpoint given'}: give one checkpoint, run or .pth file")
    weights, stored = _find(Path(paths[0]).expanduser())
    overrides = [word for word in arguments.overrides if word not in paths]
    loaded = config.load(overrides, arguments.config or stored, arguments.config_dir)

    from raylg.schema import override

    run = override(loaded.run, {"model.matcher.weights": str(weights), "train.init_from": None})
    if loaded.benchmark is None:
        _score_split(run, arguments.split)
    elif arguments.split is None:
        _score_benchmark(run, loaded.benchmark)
    else:
        raise ConfigError(f"--split {arguments.split} and benchmark={loaded.benchmark}: give one of them")
    return 0


def _score_split(run: RunConfig, split: Split | None) -> None:
    from raylg.training.features import check_inputs, ensure_features, has_split, open_split

    check_inputs(run)

    from raylg.evaluation.benchmarks import check_pixels
    from raylg.evaluation.comparison import baselines, compare, scoring_device
    from raylg.training.checkpoint import build_matcher

    matcher = build_matcher(run).eval()
    with progress_bar("extracting features") as progress:
        ensure_features(run, progress)
    split = split or ("test" if has_split(run, "test") else "val")
    dataset = open_split(run, split, scoring_device())
    check_pixels(dataset, run.evaluation)
    scores = compare({"LightGlue": matcher, **baselines()}, dataset, run.evaluation)
    console().print(
        comparison_table(scores, f"{len(scores['LightGlue'])} {split} pairs{CAVEAT if split == 'val' else ''}")
    )


def _score_benchmark(run: RunConfig, name: BenchmarkName) -> None:
    from raylg.schema import override
    from raylg.training.benchmarks import benchmark_protocol, check_benchmarks, ensure_benchmark, open_benchmark

    run = override(run, {"evaluation.benchmarks": [name]})
    check_benchmarks(run)

    from raylg.evaluation.comparison import baselines, compare
    from raylg.training.checkpoint import build_matcher

    matcher = build_matcher(run).eval()
    with progress_bar(f"extracting features of {name}") as progress:
        ensure_benchmark(run, name, progress)
    scores = compare({"LightGlue": matcher, **baselines()}, open_benchmark(run, name), benchmark_protocol(run, name))
    out = console()
    out.print(comparison_table(scores, f"{len(scores['LightGlue'])} pairs of {name}"))
    out.print(f"If trials were chosen by {name}, its number of the chosen one is optimistic.")


def _find(path: Path) -> tuple[Path, str | None]:
    """Weights file, and the configuration beside it where there is one."""
    if not path.exists():
        raise ConfigError(f"{path}: no such checkpoint, run directory or weights file")
    if path.is_dir():
        # A run or trial directory stands for its last checkpoint, whose numbers are those of the run.
        candidates = [path / "lightglue.pth", *sorted(path.glob("checkpoints/pairs-*/lightglue.pth"), reverse=True)]
        found = next((file for file in candidates if file.is_file()), None)
        if found is None:
            raise ConfigError(f"{path}: no checkpoint in it; give a run or trial directory, or a LightGlue .pth file")
        path = found
    stored = path.with_name("config.json")
    return path, str(stored) if stored.is_file() else None


if __name__ == "__main__":
    sys.exit(main())

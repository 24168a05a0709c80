"""`python -m raylg.prepare`: images to shards, once; the same command continues an interrupted one."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from raylg import config
from raylg.config import Config
from raylg.console.data_set import changed, print_check, print_summary, words_of
from raylg.console.terminal import console, guard, parser, progress_bar
from raylg.errors import ConfigError

if TYPE_CHECKING:
    from raylg.data.export import ExportPool
    from raylg.evaluation.config import BenchmarkName
    from raylg.training.config import RunConfig

DESCRIPTION = (
    f"{__doc__} out=FOLDER or out=s3://bucket/folder says where (default: below data.cache_dir). With scale.address or "
    "RAY_ADDRESS the features are extracted by tasks of that Ray cluster, otherwise by processes of this machine."
)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point."""
    return guard("prepare", _prepare, sys.argv[1:] if argv is None else argv)


def _prepare(argv: Sequence[str]) -> int:
    words = parser("prepare", DESCRIPTION)
    words.add_argument("--check", metavar="URL", help="prepare nothing; verify the shards in a folder or s3://")
    arguments = words.parse_intermixed_args(argv)
    if arguments.check is not None:
        return _check(arguments)
    loaded = config.load(arguments.overrides, arguments.config, arguments.config_dir)
    if loaded.benchmark is not None:
        _prepare_benchmark(loaded, loaded.benchmark)
        return 0
    run = loaded.run

    from raylg.training.features import check_inputs, ensure_features, features_location

    check_inputs(run, loaded.out)
    extracts = run.data.source not in ("images", "shards")
    with _pool(run, extracts=extracts) as pool, progress_bar("preparing images") as progress:
        manifest = ensure_features(run, progress, loaded.out, pool)
    print_summary(run, loaded.out or features_location(run), manifest)
    return 0


def _check(arguments: Namespace) -> int:
    """Verify what is there; of the configuration only `data.storage` plays a part."""
    given = config.fixed_paths(arguments.overrides) & {"out", "data.path", "benchmark"}
    if given:
        raise ConfigError(
            f"--check {arguments.check} and {', '.join(f'{path}=' for path in sorted(given))}: --check verifies the "
            "shards in its own folder or URL and prepares nothing; give one of them"
        )
    loaded = config.load(arguments.overrides, arguments.config, arguments.config_dir)
    return print_check(arguments.check, loaded.data.storage)


def _prepare_benchmark(loaded: Config, name: BenchmarkName) -> None:
    from raylg.training.benchmarks import prepare_benchmark

    run = loaded.run
    with _pool(run, extracts=True) as pool, progress_bar(f"extracting features of {name}") as progress:
        where = prepare_benchmark(run, name, loaded.out, progress, pool)
    options = changed(replace(run.benchmarks.named(name), path=where), f"benchmarks.{name}")
    words = words_of(options, run.data.storage)
    console().print(f"feature shards: {where}")
    console().print(f"next: python -m raylg.evaluate CHECKPOINT benchmark={name} {words}")


@contextmanager
def _pool(run: RunConfig, *, extracts: bool) -> Iterator[ExportPool | None]:
    """The cluster that a run joins, where features are extracted at all; None for processes of this machine."""
    from raylg.cluster.resources import joins_cluster

    if not extracts or not joins_cluster(run.scale):
        yield None
        return
    from raylg.cluster.export import cluster_pool

    log_file = Path(run.data.cache_dir).expanduser() / "ray.log"
    with cluster_pool(run.scale, network=run.model.extractor.name != "sift", log_file=log_file) as pool:
        console().print(f"extracting on the Ray cluster, {pool.slots} tasks at a time")
        yield pool


if __name__ == "__main__":
    sys.exit(main())

"""`python -m raylg.prepare`: images to shards, once; the same command continues an interrupted one."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from raylg import config
from raylg.console.terminal import console, guard, parser, progress_bar
from raylg.errors import ShardError

if TYPE_CHECKING:
    from raylg.data.config import StorageConfig
    from raylg.data.export import ExportPool
    from raylg.data.manifest import Manifest
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
    loaded = config.load(arguments.overrides, arguments.config, arguments.config_dir)
    run = loaded.run
    if arguments.check is not None:
        return _check(arguments.check, run.data.storage)
    if loaded.benchmark is not None:
        from raylg.training.benchmarks import prepare_benchmark

        with progress_bar(f"extracting features of {loaded.benchmark}") as progress:
            where = prepare_benchmark(run, loaded.benchmark, loaded.out, progress)
        path = f"benchmarks.{loaded.benchmark}.path={where}"
        console().print(f"feature shards: {where}")
        console().print(f"next: python -m raylg.evaluate CHECKPOINT benchmark={loaded.benchmark} {path}")
        return 0

    from raylg.training.features import check_inputs, ensure_features, features_location

    check_inputs(run, loaded.out)
    with _pool(run) as pool, progress_bar("preparing images") as progress:
        manifest = ensure_features(run, progress, loaded.out, pool)
    _conclude(run, loaded.out or features_location(run), manifest)
    return 0


@contextmanager
def _pool(run: RunConfig) -> Iterator[ExportPool | None]:
    """The cluster that a run joins; None for processes of this machine."""
    from raylg.cluster.resources import joins_cluster

    if run.data.source in ("images", "shards") or not joins_cluster(run.scale):  # neither extracts features
        yield None
        return
    from raylg.cluster.export import cluster_pool

    log_file = Path(run.data.cache_dir).expanduser() / "ray.log"
    with cluster_pool(run.scale, network=run.model.extractor.name != "sift", log_file=log_file) as pool:
        console().print(f"extracting on the Ray cluster, {pool.slots} tasks at a time")
        yield pool


def _conclude(run: RunConfig, location: str, manifest: Manifest) -> None:
    out = console()
    images = manifest.content == "images"
    for split, counts in manifest.splits.items():
        of_pairs = "a pair each, drawn anew in each epoch" if images else f"{counts.num_pairs} pairs"
        out.print(f"{split}: {counts.num_images} images, {of_pairs}")
    out.print(f"{'image' if images else 'feature'} shards: {location}")
    words = ["data=shards", f"data.path={location}"]
    endpoint = []
    if run.data.storage.endpoint_url is not None:
        endpoint = [f"data.storage.endpoint_url={run.data.storage.endpoint_url}"]
    if manifest.extractor is not None and manifest.extractor.name != "sift":
        words.append(f"model.extractor.name={manifest.extractor.name}")
    out.print(f"check: {' '.join(['python -m raylg.prepare --check', location, *endpoint])}")
    out.print(f"next: {' '.join(['python -m raylg.tune --space lr_bs', *words, *endpoint])}")


def _check(url: str, storage: StorageConfig) -> int:
    """Print a line for each problem of a data set, and a summary."""
    from raylg.data.check import check_data_set
    from raylg.data.storage import Storage

    out = console()
    with progress_bar("checking shards") as progress:
        report = check_data_set(Storage(url, storage), progress)
    for problem in report.problems:
        num_pairs = report.num_pairs(problem)
        out.print(f"{problem.what}{f' ({num_pairs} pairs)' if num_pairs else ''}")
    manifest = report.manifest
    if manifest is None:
        return ShardError.exit_code
    num_pairs = sum(entry.num_pairs for entry in manifest.shards)
    size = f"{sum(entry.bytes for entry in manifest.shards) / 1e9:.3g} GB"
    if not report.problems:
        out.print(f"{url}: {len(manifest.shards)} shards with {num_pairs} pairs, {size}: all there and as written")
        return 0
    out.print(
        f"{url}: {len(report.problems)} problems touch {report.num_pairs()} of {num_pairs} pairs; copy the shards "
        "again, or delete the folder and prepare it again"
    )
    return ShardError.exit_code


if __name__ == "__main__":
    sys.exit(main())

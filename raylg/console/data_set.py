"""What is told of shards: what was prepared and how to go on with it, and what a check found."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

from raylg.console.terminal import console, progress_bar
from raylg.data.config import STORED, StorageConfig
from raylg.errors import ShardError
from raylg.schema import to_mapping

if TYPE_CHECKING:
    from raylg.data.manifest import Manifest
    from raylg.training.config import RunConfig


def print_summary(run: RunConfig, location: str, manifest: Manifest) -> None:
    """Say what was prepared, and the next commands.

    Args:
        run: configuration that it was prepared with.
        location: folder or URL.
        manifest: of the shards there.
    """
    out, storage = console(), run.data.storage
    images = manifest.content == "images"
    for split, counts in manifest.splits.items():
        of_pairs = "a pair each, drawn anew in each epoch" if images else f"{counts.num_pairs} pairs"
        out.print(f"{split}: {counts.num_images} images, {of_pairs}")
    out.print(f"{'image' if images else 'feature'} shards: {location}")
    options: dict[str, Any] = {"data": "shards", "data.path": location}
    if images:  # how views are drawn of them is not stored
        options |= changed(run.data.images, "data.images", without=STORED)
    extractor = run.model.extractor if manifest.extractor is None else manifest.extractor
    if extractor.name != "sift":
        options["model.extractor.name"] = extractor.name
    if images and run.model.extractor.weights is not None:  # features are extracted when they are used
        options["model.extractor.weights"] = run.model.extractor.weights
    out.print(f"check: python -m raylg.prepare --check {location} {words_of({}, storage)}".rstrip())
    out.print(f"next: python -m raylg.tune --space lr_bs {words_of(options, storage)}")


def print_check(url: str, storage: StorageConfig) -> int:
    """Print a line for each problem of a data set, and a summary.

    Returns:
        Exit code: 0, or that of damaged shards.

    Raises:
        ConfigError: there is no data set.
        EnvironmentUnfitError: the storage refuses or does not answer.
    """
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


def words_of(options: Mapping[str, Any], storage: StorageConfig) -> str:
    """Options as words of a command, with what reaches the storage."""
    words = [f"{path}={value}" for path, value in options.items()]
    if storage.endpoint_url is not None:
        words.append(f"data.storage.endpoint_url={storage.endpoint_url}")
    return " ".join(words)


def changed(options: Any, path: str, without: Collection[str] = ()) -> dict[str, Any]:
    """Dotted path to value of the options that are not the default.

    Args:
        options: a dataclass.
        path: its own.
        without: fields that do not count.
    """
    default = to_mapping(type(options)())
    found = {name: value for name, value in to_mapping(options).items() if value != default[name]}
    return {f"{path}.{name}": value for name, value in found.items() if name not in without}

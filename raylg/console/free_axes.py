"""What may still be chosen after training, for the matchers of a study: swept once, kept, and shown."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from raylg.console.terminal import progress_bar, table
from raylg.data.manifest import read_manifest, write_text_atomically
from raylg.data.storage import Storage
from raylg.schema import override, to_mapping
from raylg.training.config import RunConfig
from raylg.training.features import features_location, open_split
from raylg.training.run_directory import find_weights

if TYPE_CHECKING:
    from raylg.evaluation.free_axes import FreeAxes, Setting

FILE = "free_axes.json"
"""In the study directory: ``of`` what it was made of, and under ``matchers`` a `FreeAxes` each by name."""


def free_axes(
    run: RunConfig, trained: Mapping[str, Path], file: Path, max_seconds: float = 60.0
) -> dict[str, FreeAxes]:
    """Sweep filter and RANSAC thresholds, keypoints and early exit over validation pairs, or read what that gave.

    Args:
        run: configuration of the study; its protocol is what is compared with.
        trained: name to run directory.
        file: where the results are kept; the same weights and protocol are not swept again.
        max_seconds: for all of them; where that is too short fewer pairs are scored.

    Raises:
        CheckpointError: a run directory without weights.
        ShardError: no validation pairs.
    """
    from raylg.evaluation.comparison import scoring_device
    from raylg.evaluation.free_axes import FreeAxes
    from raylg.evaluation.sweep import sweep
    from raylg.models.published import sha256_of
    from raylg.training.checkpoint import load_matcher

    made_of = {
        "weights": {name: sha256_of(find_weights(path)) for name, path in trained.items()},
        "evaluation": {**to_mapping(run.evaluation), "batch_size": None, "num_threads": None},
    }
    stored = _read(file)
    if stored.get("of") == made_of:
        return {name: FreeAxes.from_mapping(found) for name, found in stored["matchers"].items()}
    largest = _num_stored(run)
    device = scoring_device()
    dataset = open_split(override(run, {"evaluation.num_keypoints": largest}), "val", device)
    result = {}
    for name, path in trained.items():
        with progress_bar(f"free axes of {name}") as progress:
            result[name] = sweep(
                load_matcher(path)[0].to(device),
                dataset,
                run.evaluation,
                max_num_keypoints=largest,
                max_seconds=max_seconds / len(trained),
                progress=progress,
            )
    found = {name: axes.to_mapping() for name, axes in result.items()}
    write_text_atomically(file, json.dumps({"of": made_of, "matchers": found}, indent=1) + "\n")
    return result


def free_axes_table(name: str, axes: FreeAxes) -> Table:
    """The settings that no other beats in score and speed at once, and the protocol's; per cent and milliseconds."""
    scores = [f"@{threshold:g}" for threshold in axes.thresholds]
    title = f"{name}: accuracy against latency of a pair on {axes.device}, {axes.num_pairs} validation pairs"
    headers = ["keypoints", "early exit", "filter", "RANSAC px", *scores, "match ms", "estimate ms", "matches", ""]
    result = table(title, headers)
    result.columns[-1].justify = "left"
    for point in axes.points:
        if point.on_front or point.setting == axes.protocol:
            here = point.setting
            early = f"{here.depth_confidence:g}" if here.depth_confidence > 0 else "off"
            result.add_row(
                *(str(here.num_keypoints), early, f"{here.filter_threshold:g}", f"{here.ransac_threshold:g}"),
                *(f"{100 * score:.1f}" for score in point.scores),
                *(f"{1e3 * point.match_seconds:.1f}", f"{1e3 * point.estimate_seconds:.1f}"),
                f"{point.num_matches:.0f}",
                _remark(here, axes),
            )
    return result


def _remark(setting: Setting, axes: FreeAxes) -> str:
    remarks = {"protocol": setting == axes.protocol, "best score": setting == axes.best}
    return ", ".join(text for text, holds in remarks.items() if holds)


def _num_stored(run: RunConfig) -> int:
    """Keypoints per image that can be had: of feature shards at most twice the protocol's, of photographs its own."""
    extractor = read_manifest(Storage(features_location(run), run.data.storage)).extractor
    own = run.evaluation.num_keypoints
    stored = None if extractor is None else extractor.settings.get("max_num_keypoints")
    return own if stored is None else min(int(stored), 2 * own)


def _read(file: Path) -> dict[str, Any]:
    """What was kept; nothing where that cannot be read, because it can be made again."""
    try:
        content = json.loads(file.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}

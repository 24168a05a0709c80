"""`python -m raylg.prepare`: posed images to feature shards, once; again = continue."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from raylg import config
from raylg.console.terminal import console, guard, parser, progress_bar


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point."""
    return guard("prepare", _prepare, sys.argv[1:] if argv is None else argv)


def _prepare(argv: Sequence[str]) -> int:
    arguments = parser("prepare", __doc__ or "").parse_intermixed_args(argv)
    loaded = config.load(arguments.overrides, arguments.config, arguments.config_dir)

    from raylg.training.features import check_inputs, ensure_features, features_dir

    check_inputs(loaded.run)
    out = features_dir(loaded.run) if loaded.out is None else Path(loaded.out)
    with progress_bar("extracting features") as progress:
        manifest = ensure_features(loaded.run, progress, out)
    for split, counts in manifest.splits.items():
        console().print(f"{split}: {counts.num_images} images, {counts.num_pairs} pairs")
    console().print(f"feature shards: {out}")
    console().print(f"next: python -m raylg.tune --space lr_bs data=shards data.path={out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

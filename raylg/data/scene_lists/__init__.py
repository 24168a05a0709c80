"""Which scenes of public data sets are for what; the origin of each list stands at its head."""

from __future__ import annotations

import importlib.resources

from raylg.data.scene import Split


def megadepth_scenes(split: Split) -> list[str]:
    """Ids of MegaDepth's scenes for a split."""
    text = (importlib.resources.files(__name__) / f"megadepth_{split}.txt").read_text(encoding="utf-8")
    return [line for line in text.splitlines() if line and not line.startswith("#")]

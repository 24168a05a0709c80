"""Which scenes of public data sets are for what; the origin of a list stands at its head."""

from __future__ import annotations

import importlib.resources

from raylg.data.scene import Split


def megadepth_scenes(split: Split) -> list[str]:
    """Ids of MegaDepth's scenes for a split."""
    return _lines(f"megadepth_{split}.txt")


def megadepth1500_images() -> list[str]:
    """The 806 images of MegaDepth-1500, as scene/name."""
    return _lines("megadepth1500_images.txt")


def _lines(name: str) -> list[str]:
    text = (importlib.resources.files(__name__) / name).read_text(encoding="utf-8")
    return [line for line in text.splitlines() if line and not line.startswith("#")]

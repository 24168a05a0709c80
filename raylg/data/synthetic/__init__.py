"""Built-in procedural scenes with exact depth (numpy and OpenCV only)."""

from raylg.data.synthetic.source import MiniScene, MiniSource

__all__ = ["MiniScene", "MiniSource"]

"""Relative-pose scoring and the statistics of comparing matchers."""

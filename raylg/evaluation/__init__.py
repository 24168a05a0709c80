"""Scoring by relative poses and homographies, and the statistics of comparing matchers."""

"""Runs trials and workers on Ray; the only home of ray."""

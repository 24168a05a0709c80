"""Cameras, poses and the two-view relations between them."""

"""Reports and tables of a study; the only home of matplotlib, jinja2 and pandas."""

from raylg.reporting.frames import curves_frame, study_frame

__all__ = ["curves_frame", "study_frame"]

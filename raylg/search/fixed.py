"""Options that no search may vary, because trials that differ in them cannot be ranked, or need not be."""

from __future__ import annotations

_OTHER_DATA = "trials on other data cannot be ranked"
_OTHER_PAIRS = "it changes the validation pairs, so trials cannot be ranked"
_OTHER_PROTOCOL = "results of different scoring protocols cannot be ranked"
_PROTOCOL = "it is part of the scoring protocol, so trials cannot be ranked"
_EQUAL_PAIRS = "rungs compare trials at equal pairs seen"
_NO_RESULT = "it does not decide a result"
_START = "all trials start from the same weights, which the study records"

_REASONS = {
    "benchmarks.": _OTHER_PROTOCOL,
    "data.cache_dir": _NO_RESULT,
    "data.images.": _OTHER_PAIRS,
    "data.images_per_shard": _OTHER_PAIRS,
    "data.max_overlap": _OTHER_PAIRS,
    "data.max_pairs_per_scene": _OTHER_PAIRS,
    "data.min_overlap": _OTHER_PAIRS,
    "data.mini.": _OTHER_DATA,
    "data.path": _OTHER_DATA,
    "data.prefetch_batches": _NO_RESULT,
    "data.source": _OTHER_DATA,
    "data.split.": _OTHER_DATA,
    "data.storage.": _NO_RESULT,
    "evaluation.": _OTHER_PROTOCOL,
    "model.extractor.": "all trials read the same features",
    "model.matcher.depth_confidence": _PROTOCOL,
    "model.matcher.filter_threshold": _PROTOCOL,
    "model.matcher.weights": _START,
    "model.matcher.width_confidence": _PROTOCOL,
    "scale.": _NO_RESULT,
    "train.checkpoint_storage": _NO_RESULT,
    "train.checkpointed": _NO_RESULT,
    "train.compile": _NO_RESULT,
    "train.init_from": _START,
    "train.log_every": _NO_RESULT,
    "train.micro_batch_size": _NO_RESULT,
    "train.num_figures": _NO_RESULT,
    "train.num_pairs": _EQUAL_PAIRS,
    "train.profile_steps": _NO_RESULT,
    "train.report_every": _EQUAL_PAIRS,
    "train.rungs": _NO_RESULT,
}
"""By dotted path; what ends in a dot is a whole group."""


def why_fixed(path: str) -> str | None:
    """Why a path of the configuration cannot be searched; None where it can."""
    for fixed, reason in _REASONS.items():
        if path == fixed or (fixed.endswith(".") and path.startswith(fixed)):
            return reason
    return None

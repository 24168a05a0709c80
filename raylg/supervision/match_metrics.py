"""How good matches are against labels, per pair. Keypoints whose label is `IGNORE` count nowhere."""

from __future__ import annotations

import torch
from torch import Tensor

from raylg.batch import GroundTruth, Matches


@torch.no_grad()
def match_metrics(matches: Matches, gt: GroundTruth) -> dict[str, Tensor]:
    """Score the matches of view 0, float32 [B] each.

    Returns:
        ``match_recall``: share of the labelled matches that were found; ``match_precision``: share of the found matches
        with a label (a match or unmatched) that are right, 0 where none was found; ``average_precision``: area under
        the curve of both over the ranking by score, the sum of precision times gain in recall (glue-factory multiplies
        all gains by the precision at the end of the ranking, which is lower). Recall and average precision are NaN for
        a pair without a labelled match: nobody could have found one.
    """
    found = (matches.matches0 >= 0) & (gt.gt_matches0 >= -1)
    right = found & (matches.matches0 == gt.gt_matches0)
    num_right, num_found = right.sum(1), found.sum(1)
    num_true = (gt.gt_matches0 >= 0).sum(1).float()

    order = matches.matching_scores0.argsort(dim=1, descending=True, stable=True)
    ranked_right, ranked_found = right.gather(1, order), found.gather(1, order)
    precision = ranked_right.cumsum(1) / ranked_found.cumsum(1).clamp_min(1)
    return {
        "match_recall": num_right / num_true,
        "match_precision": num_right / num_found.clamp_min(1),
        "average_precision": (precision * ranked_right).sum(1) / num_true,
    }

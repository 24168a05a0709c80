"""What a confirmation found: which configuration to use, and by how much it beats the baseline, if it does.

``confirm/confirmation.json`` holds it; `ConfirmationResult.load` reads it without the rest of the study.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from raylg.errors import ConfigError
from raylg.evaluation.pair_scores import PairScores
from raylg.evaluation.pose import scores
from raylg.evaluation.statistics import SeededDifference, seeded_differences
from raylg.search.config import ConfirmConfig

FORMAT = 1
CHEAPER = 0.9
"""A finalist that is no better than the baseline must train in at most this share of its time to be preferred: speeds
of runs vary by a few per cent."""

Verdict = Literal["better", "no difference", "worse"]
Outcome = Literal["better", "no difference", "worse", "no verdict"]


@dataclass(frozen=True, kw_only=True)
class Contender:
    """A configuration in the confirmation; scores and differences are shares, over the fresh seeds alone."""

    number: int
    """Of its trial."""
    values: Mapping[str, Any]
    """Dotted configuration path to value."""
    per_seed: tuple[float, ...]
    """Mean score of its pairs with each seed."""
    seconds: float | None
    """Of training at full budget, validation not counted; None where runs do not report their speed."""
    difference: float | None = None
    """Score minus that of the baseline; None for the baseline, and for a finalist that left without a complete seed."""
    low: float | None = None
    """Lower end of its interval, which holds for all finalists and all looks together."""
    high: float | None = None
    """Upper end."""
    seed_error: float | None = None
    """Part of the standard error that comes from seeds."""
    pair_error: float | None = None
    """Part that comes from pairs and images."""
    verdict: Verdict | None = None
    """Against the baseline."""
    reason: str = ""
    """Why it left before the others."""

    @property
    def score(self) -> float | None:
        """Mean over seeds; None without one."""
        return float(np.mean(self.per_seed)) if self.per_seed else None


@dataclass(frozen=True, kw_only=True)
class ConfirmationResult:
    """The state of a confirmation after a complete seed, or its end."""

    outcome: Outcome
    """Of the whole: better as soon as one finalist is, worse when all are."""
    finished: bool
    """False while more seeds are to come."""
    reason: str
    """Why it ended, or why there is no verdict."""
    chosen: int | None
    """Trial whose configuration to use: the best of those that are better, else the cheapest that is not worse, the
    baseline included, which also remains when all finalists fail; None where the others could not be compared."""
    study: str
    objective: str
    confidence: float
    """With which all intervals hold together, over finalists and over all looks at the data."""
    seeds: tuple[int, ...]
    """Fresh seeds that the baseline was trained with."""
    num_pairs: int
    """Pairs that each run was scored on; 0 where nothing was compared."""
    baseline: Contender | None
    """None where nothing was compared."""
    finalists: tuple[Contender, ...]
    """Best first; those that were never compared come last."""
    left_out: tuple[int, ...]
    """Trials that were as hard to tell from the best, but for which there was no room."""
    hashes: Mapping[str, str]
    """Of data and scoring protocol."""

    @property
    def sentence(self) -> str:
        """The result for people, differences in percent."""
        if self.outcome == "no verdict":
            return f"no verdict: {self.reason}"
        first = next((each for each in self.finalists if each.difference is not None), None)
        if first is None:
            return f"no difference: {self.reason}; the baseline stays"
        chosen = next((each for each in self.finalists if each.number == self.chosen), None)
        best = chosen if self.outcome == "better" and chosen is not None else first
        group = self.objective.partition("/")[0]
        pairs = f"{self.num_pairs} {'validation' if group == 'val' else group} pairs"
        gain = f"{shown_difference(best)} {self.metric} over the baseline"
        evidence = f"({len(best.per_seed)} fresh seeds, {pairs})"
        if self.outcome == "better":
            return f"trial {best.number} is better: {gain} {evidence}"
        said = "every finalist is worse" if self.outcome == "worse" else "no difference"
        stays = "the baseline stays" if chosen is None else f"trial {chosen.number} is chosen, because it trains faster"
        return f"{said}: at best {gain} {evidence}; {stays}"

    @property
    def metric(self) -> str:
        """What differences are counted in, such as ``AUC@5``."""
        name, at, threshold = self.objective.partition("/")[2].partition("@")
        return name.replace("_", " ").replace("auc", "AUC") + at + threshold

    @staticmethod
    def load(path: Path) -> ConfirmationResult | None:
        """Read ``confirmation.json``; None where there is no such file, and before the first look.

        Raises:
            ConfigError: the file is broken or of another format.
        """
        stored = read(path)
        return None if stored is None or stored["result"] is None else from_mapping(stored["result"])


def shown_difference(contender: Contender) -> str:
    """Such as ``+4.6 [+2.0, +7.3]``, in percent."""
    assert contender.difference is not None and contender.low is not None and contender.high is not None
    return f"{100 * contender.difference:+.1f} [{100 * contender.low:+.1f}, {100 * contender.high:+.1f}]"


def read(path: Path) -> dict[str, Any] | None:
    """Content of ``confirmation.json``: ``plan``, ``runs``, ``looks`` and ``result``; None where there is none.

    Raises:
        ConfigError: it is broken or of another format.
    """
    if not path.exists():
        return None
    try:
        stored: dict[str, Any] = json.loads(path.read_text())
        found = stored["format"]
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path}: not a confirmation ({error}); delete it to confirm again") from error
    if found != FORMAT:
        raise ConfigError(f"{path}: format {found!r}, this version of raylg reads {FORMAT}; delete it to confirm again")
    return stored


def to_mapping(result: ConfirmationResult) -> dict[str, Any]:
    """Plain values; the inverse of `from_mapping`."""
    mapping: dict[str, Any] = json.loads(json.dumps({**asdict(result), "sentence": result.sentence}))
    return mapping


def from_mapping(mapping: Mapping[str, Any]) -> ConfirmationResult:
    """Rebuild what `to_mapping` made."""
    values = {key: value for key, value in mapping.items() if key != "sentence"}
    baseline = values["baseline"]
    return ConfirmationResult(
        **{
            **values,
            "seeds": tuple(values["seeds"]),
            "left_out": tuple(values["left_out"]),
            "baseline": None if baseline is None else _contender(baseline),
            "finalists": tuple(_contender(each) for each in values["finalists"]),
        }
    )


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What the runs of one configuration have shown."""

    number: int
    """Of its trial."""
    values: Mapping[str, Any]
    runs: tuple[PairScores, ...]
    """With the first seeds, in their order."""
    seconds: float | None = None
    """See `Contender`."""
    reason: str = ""
    """Why there are no more."""


def weigh(
    baseline: Evidence, finalists: Sequence[Evidence], thresholds: Sequence[float], *, confidence: float
) -> tuple[Contender, tuple[Contender, ...]]:
    """Compare finalists with the baseline on the fresh seeds that both were trained with.

    Args:
        baseline: trained with at least as many seeds as each finalist, at least one.
        finalists: in any order.
        thresholds: of the objective, in the unit of the errors.
        confidence: of all intervals together.

    Returns:
        The baseline, and the finalists, best first.
    """
    trained = [each for each in finalists if each.runs]
    found = seeded_differences([each.runs for each in trained], baseline.runs, thresholds, confidence=confidence)
    differences = {each.number: difference for each, difference in zip(trained, found, strict=True)}
    contenders = [_contender_of(each, differences.get(each.number), thresholds) for each in finalists]
    contenders.sort(key=lambda each: -np.inf if each.difference is None else each.difference, reverse=True)
    return _contender_of(baseline, None, thresholds), tuple(contenders)


def confidence_of_look(options: ConfirmConfig, num_before: int, *, is_last: bool) -> float:
    """Of the intervals of one look, so that those of all looks together have the confidence that was asked for.

    Args:
        options: how many looks there may be.
        num_before: looks so far.
        is_last: whether this is the last one for a reason other than its own result.
    """
    alpha, num_early = 1 - options.confidence, options.max_seeds - options.min_seeds
    early = alpha / 2 / num_early if num_early else 0.0
    return 1 - (alpha - early * num_before if is_last else early)


def why_untold(baseline: Evidence, finalists: Sequence[Evidence], cut: str) -> tuple[Outcome, str] | None:
    """Outcome and reason where nothing can be compared, None where it can; `cut` is what ended the budget."""
    if baseline.reason:
        return "no verdict", f"the baseline could not be trained ({baseline.reason})"
    if not finalists:
        return "no difference", "no trial came within one standard error of the baseline, which was the best"
    if cut and len(baseline.runs) < 2:
        first = "after one fresh seed, which does not tell how seeds vary"
        return "no verdict", f"{cut} {first if baseline.runs else 'before the first fresh seed'}"
    if not any(each.runs for each in finalists):
        return "no verdict", "; ".join(f"trial {each.number}, {each.reason}" for each in finalists)
    return None


def is_open(result: ConfirmationResult | None, options: ConfirmConfig) -> bool:
    """Whether further seeds could still tell more: it is under way, or ended with seeds left and something unclear."""
    if result is None or not result.finished:
        return True
    unclear = any(not each.reason and each.verdict != "better" for each in result.finalists)
    return unclear and len(result.seeds) < options.max_seeds


def outcome_of(finalists: Sequence[Contender]) -> Outcome:
    """Verdict on all finalists together."""
    verdicts = {each.verdict for each in finalists if each.verdict is not None}
    if "better" in verdicts:
        return "better"
    return "worse" if verdicts == {"worse"} else "no difference"


def choose(baseline: Contender, finalists: Sequence[Contender]) -> int:
    """The best of those that are better; else the cheapest that is not worse, the baseline included."""
    better = [each for each in finalists if each.verdict == "better"]
    if better:
        return max(better, key=lambda each: (not each.reason, each.difference or 0.0)).number  # leavers are behind
    tied = [each for each in finalists if each.verdict == "no difference" and each.seconds is not None]
    cheapest = min(tied, key=lambda each: each.seconds or 0.0, default=None)
    if cheapest is None or baseline.seconds is None or cheapest.seconds is None:
        return baseline.number
    return cheapest.number if cheapest.seconds <= CHEAPER * baseline.seconds else baseline.number


def leaving(finalists: Sequence[Contender]) -> dict[int, str]:
    """Finalists that need no further seed, with the reason: their interval lies below 0 or below that of another."""
    compared = [each for each in finalists if each.low is not None and each.high is not None]
    if not compared:
        return {}
    leader = max(compared, key=lambda each: each.low or 0.0)
    left = {}
    for each in compared:
        seeds = f"{len(each.per_seed)} seeds"
        if each.verdict == "worse":
            left[each.number] = f"worse than the baseline after {seeds}"
        elif each.high is not None and leader.low is not None and each.high < leader.low:
            left[each.number] = f"worse than trial {leader.number} after {seeds}"
    return left


def _contender_of(evidence: Evidence, difference: SeededDifference | None, thresholds: Sequence[float]) -> Contender:
    contender = Contender(
        number=evidence.number,
        values=dict(evidence.values),
        per_seed=tuple(float(np.mean([scores(run.error, t).mean() for t in thresholds])) for run in evidence.runs),
        seconds=evidence.seconds,
        reason=evidence.reason,
    )
    if difference is None:
        return contender
    verdict: Verdict = "better" if difference.low > 0 else "worse" if difference.high < 0 else "no difference"
    return replace(
        contender,
        difference=difference.difference,
        low=difference.low,
        high=difference.high,
        seed_error=difference.seed_error,
        pair_error=difference.pair_error,
        verdict=verdict,
    )


def _contender(mapping: Mapping[str, Any]) -> Contender:
    return Contender(**{**mapping, "per_seed": tuple(mapping["per_seed"])})

"""Which trials of a search deserve to be trained again: those that the validation pairs cannot tell from the best."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from raylg.data.manifest import write_text_atomically
from raylg.evaluation.measures import Measure
from raylg.evaluation.pair_scores import PairScores
from raylg.evaluation.statistics import difference_and_error
from raylg.schema import override, to_mapping
from raylg.search.config import StudyConfig
from raylg.search.meter import Meter
from raylg.search.record import State, TrialRecord
from raylg.search.study import StudyDirectory, dump_yaml

FOLDER = "confirm"
"""Of the confirmation, in the study directory."""
BASELINE = 0
_SEEDS_BELOW = 100_000
"""So that people can read fresh seeds to each other."""


@dataclass(kw_only=True)
class Plan:
    """Who is trained again, and how often; the field names are those of ``confirmation.json``."""

    considered: list[int]
    """Trials at full budget that it was chosen from."""
    options: dict[str, Any]
    """`study.confirm`."""
    finalists: list[int]
    """Best first, without the baseline."""
    left_out: list[int]
    """Trials that are as hard to tell from the best, but for which there is no room."""
    seeds: list[int]
    """Fresh ones, as many as there may be."""
    max_pairs: float
    """Training pairs that fit the budget."""
    target: int
    """Seeds to train with before the next look at the data."""
    limits: dict[str, float | None] = field(default_factory=dict)
    """`study.budget` in numbers."""
    cut: str = ""
    """What ended the budget before the seeds that were planned."""


@dataclass
class Run:
    """One training run of the confirmation."""

    trial: int
    """Whose configuration it trains."""
    seed_number: int
    """Which of the fresh seeds, from 1."""
    seed: int
    state: State = "waiting"
    reason: str = ""
    """Why it was stopped, is infeasible or failed."""
    pairs_seen: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    """Of the last report."""
    num_failures: int = 0
    """Workers lost to crashes."""

    @property
    def name(self) -> str:
        """Its directory below ``confirm``."""
        return f"{self.trial:04d}-seed-{self.seed_number}"


def make_plan(directory: StudyDirectory, meter: Meter, runs: Sequence[Run]) -> Plan:
    """Choose finalists and seeds. Finalists for which the budget has no `min_seeds` seeds are left out but the first.

    Args:
        directory: a study whose search has ended.
        meter: what it has spent.
        runs: that were made for an earlier plan.

    Raises:
        ConfigError: the scores of a trial are gone.
    """
    setup, records = directory.setup, directory.records()
    options = setup.study.confirm
    max_pairs = _affordable_pairs(setup.study, meter, records, runs)
    begun = {run.seed_number: run.seed for run in runs}
    affordable = int(max_pairs / setup.run.train.num_pairs / options.min_seeds) - 1
    limit = max(1, min(options.max_finalists, affordable))
    near = near_best(directory)
    used = {setup.run.seed, *(record.values.get("seed", setup.run.seed) for record in records)}
    seeds: list[int] = []
    for index in range(1, options.max_seeds + 1):
        taken = frozenset({*used, *seeds, *begun.values()})
        fresh = fresh_seed(index, sampler_seed=setup.study.sampler.seed, run_seed=setup.run.seed, used=taken)
        seeds.append(begun.get(index, fresh))
    return Plan(
        considered=at_full_budget(records),
        options=asdict(options),
        finalists=near[:limit],
        left_out=near[limit:],
        seeds=seeds,
        max_pairs=max_pairs,
        target=options.min_seeds,
        limits=asdict(setup.study.limits),
    )


def _affordable_pairs(study: StudyConfig, meter: Meter, records: Iterable[TrialRecord], runs: Iterable[Run]) -> float:
    """Training pairs that a confirmation may take, earlier `runs` included.

    What is left of time or GPU-hours lasts for as many pairs as before; with a number of trials alone it is a share of
    what the search has trained.
    """
    limits, share = study.limits, study.confirm.budget_share
    used = ((limits.seconds, meter.seconds), (limits.gpu_hours, meter.gpu_hours))
    ratios = [max(0.0, limit - spent) / spent for limit, spent in used if limit is not None and spent > 0]
    searched, confirmed = (sum(each.pairs_seen for each in group) for group in (records, runs))
    return confirmed + (searched + confirmed) * min(ratios) if ratios else searched * share / (1 - share)


def at_full_budget(records: Iterable[TrialRecord]) -> list[int]:
    """Numbers of the trials that finished."""
    return sorted(record.number for record in records if record.state == "complete")


def near_best(directory: StudyDirectory) -> list[int]:
    """All trials at full budget within one standard error of the best one, best first, without the baseline.

    The error is that of the paired difference on the pairs that the objective is made of. The baseline counts as the
    best where it is. Of trials with equal values the best one stands for all.

    Raises:
        ConfigError: the scores of a trial are gone.
    """
    ranked = [record for record in directory.table() if record.state == "complete"]
    if not ranked:
        return []
    objective = directory.setup.objective
    best = pair_scores(directory.trial_dir(ranked[0].number), objective)
    thresholds = thresholds_of(objective, best.measure)
    known: list[Mapping[str, Any]] = [record.values for record in ranked if record.number == BASELINE]
    near = []
    for record in ranked:
        if record.values in known:
            continue
        scores = pair_scores(directory.trial_dir(record.number), objective)
        difference, error = difference_and_error(best, scores, thresholds)
        if difference <= error:
            known.append(record.values)
            near.append(record.number)
    return near


def pair_scores(workdir: Path, objective: str) -> PairScores:
    """Scores of single pairs at the last report of a run, of the pairs that an objective is made of.

    Raises:
        ConfigError: the file is missing or broken.
    """
    group = objective.partition("/")[0]
    return PairScores.load(workdir / ("pairs.npz" if group == "val" else f"pairs-{group}.npz"))


def thresholds_of(objective: str, measure: Measure) -> tuple[float, ...]:
    """Thresholds that an objective is a mean over: one for ``val/auc@5``, all for ``val/mean_auc``."""
    _, at, threshold = objective.partition("@")
    return (float(threshold),) if at else measure.thresholds


def fresh_seed(index: int, *, sampler_seed: int, run_seed: int, used: frozenset[int]) -> int:
    """A training seed that no trial was chosen by; the same in every session.

    Args:
        index: which one, from 1.
        sampler_seed: of the study.
        run_seed: of its trials.
        used: seeds that trials were trained with, or other indices got.
    """
    for attempt in itertools.count():
        words = np.random.SeedSequence([sampler_seed, run_seed, index, attempt]).generate_state(1)
        seed = int(words[0]) % _SEEDS_BELOW
        if seed not in used:
            break
    return seed


def write_config(directory: StudyDirectory, run: Run, values: Mapping[str, Any]) -> None:
    """Write ``config.yaml`` into the directory of a run, which is made."""
    workdir = directory.path / FOLDER / run.name
    workdir.mkdir(parents=True, exist_ok=True)
    header = f"# Trial {run.trial} of study {directory.path.name}, fresh seed {run.seed_number}\n"
    config = to_mapping(override(directory.setup.run, values))
    write_text_atomically(workdir / "config.yaml", header + dump_yaml(config))


def seconds_of(metrics: Mapping[str, float], num_pairs: int) -> float | None:
    """Of training at full budget; None where the speed is not known."""
    speed = metrics.get("pairs_per_second", 0.0)
    return num_pairs / speed if speed > 0 else None

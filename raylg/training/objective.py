"""What a study maximises: the metric that suits the pairs of a run, and the scores that go with it. Free of torch."""

from __future__ import annotations

from typing import TypeVar

from raylg.data.storage import Storage
from raylg.errors import ConfigError
from raylg.evaluation.config import BENCHMARKS
from raylg.evaluation.measures import MEASURES, POSE, Kind, ScoreColumns, objectives
from raylg.schema import override
from raylg.training.config import RunConfig
from raylg.training.features import features_location, given_manifest

C = TypeVar("C", bound=RunConfig)


def kind_of_pairs(config: RunConfig) -> Kind:
    """What the pairs of the data set are scored by; reads at most a manifest.

    Raises:
        ConfigError: `data.source=shards` and there are none.
    """
    if config.data.source != "shards":
        return "homography" if config.data.source == "images" else "pose"
    manifest = given_manifest(Storage(features_location(config), config.data.storage), "data.path")
    return "homography" if manifest.content == "images" else "pose"


def default_objective(config: RunConfig) -> str:
    """The metric of a study that names none: of the benchmark that is configured, else of the validation pairs.

    Raises:
        ConfigError: see `kind_of_pairs`.
    """
    group = next((name for name in BENCHMARKS if config.benchmarks.named(name).path is not None), None)
    if group is not None:
        return POSE.key(group, POSE.headline)
    measure = MEASURES[kind_of_pairs(config)]
    return measure.key("val", measure.headline)


def objective_columns(config: RunConfig, objective: str) -> ScoreColumns:
    """The scores that belong to an objective.

    Raises:
        ConfigError: the pairs of the data set do not have it.
    """
    group = objective.partition("/")[0]
    if group != "val":
        return ScoreColumns(group)
    measure = MEASURES[kind_of_pairs(config)]
    allowed = objectives(group, measure)
    if objective not in allowed:
        raise ConfigError(
            f"study.objective = {objective!r}: the pairs of data.source={config.data.source} are scored by "
            f"{measure.kind}; choose one of {', '.join(allowed)}"
        )
    return ScoreColumns(group, measure)


def add_objective_benchmark(config: C, objective: str) -> C:
    """A configuration that scores the benchmark which the objective names at each report.

    Raises:
        ConfigError: the path of the benchmark is not given.
    """
    name = objective.partition("/")[0]
    if name == "val" or name in config.evaluation.benchmarks:
        return config
    return override(config, {"evaluation.benchmarks": [*config.evaluation.benchmarks, name]})

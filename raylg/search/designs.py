"""Configurations that are chosen without looking at results: points of a Sobol sequence, and all points of a grid."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator, Mapping

from raylg.errors import ConfigError
from raylg.search.config import SamplerConfig
from raylg.search.parameter import Value
from raylg.search.space import SearchSpace
from raylg.search.suggest import UnitSuggester

MAX_GRID = 10_000
"""Points of a grid that are enumerated; nobody trains as many."""


def check_sampler(config: SamplerConfig, space: SearchSpace) -> None:
    """Refuse a sampler that cannot draw from a space.

    Raises:
        ConfigError: a grid over a continuous range or over too many points; a Gaussian process over a parameter that
            some configurations do not have.
    """
    problems = []
    if config.name == "grid":
        problems = [
            f"{p.path} = {p.describe()} is continuous; give it a step, or list choices"
            for p in space.parameters
            if p.num_values is None
        ]
        if not problems and grid_size(space) is None:
            sizes = " x ".join(f"{p.num_values} ({p.path})" for p in space.parameters)
            problems = [f"{sizes} are more than {MAX_GRID} points; make ranges or steps coarser, or take sobol"]
    if config.name == "gp":
        problems = [
            f"{p.path} has a condition (when: {p.when.text}), and a Gaussian process needs every parameter in every "
            "trial; drop the condition, or take surface"
            for p in space.parameters
            if p.when
        ]
    if problems:
        raise ConfigError("\n".join(f"study.sampler.name = {config.name}: {problem}" for problem in problems))


def grid_size(space: SearchSpace) -> int | None:
    """Points of the grid, those that conditions make equal counted each; None where they cannot be enumerated."""
    sizes = [parameter.num_values for parameter in space.parameters]
    total = math.prod(size for size in sizes if size is not None)
    return None if None in sizes or total > MAX_GRID else total


def grid(space: SearchSpace, seed: int) -> Iterator[Mapping[str, Value]]:
    """All points of a finite space by the names in the sampler, in an order that covers it from the start.

    Args:
        space: one whose `grid_size` is a number.
        seed: of the order.
    """
    indices = list(itertools.product(*(range(p.num_values or 0) for p in space.parameters)))
    random.Random(seed).shuffle(indices)
    for point in indices:
        yield {p.name: p.nth(index) for p, index in zip(space.parameters, point, strict=True)}


def sobol(space: SearchSpace, seed: int, start: int) -> Iterator[UnitSuggester]:
    """Points of a scrambled Sobol sequence with a dimension for each parameter.

    Optuna's QMCSampler draws the first trial and all conditional parameters at random instead, and keeps its place in
    attributes of the study that a rejected point would move as well.

    Source: Owen, "Scrambling Sobol' and Niederreiter-Xing Points" (J. Complexity 14, 1998), as in SciPy.

    Args:
        space: to be drawn from; parameters that do not apply ignore their dimension.
        seed: of the scrambling.
        start: index of the first point, from 0.
    """
    from scipy.stats import qmc  # takes a second to import, and most commands never draw

    names = [parameter.name for parameter in space.parameters]
    engine = qmc.Sobol(len(names), scramble=True, seed=seed)
    if start:
        engine.fast_forward(start)
    while True:
        point = dict(zip(names, engine.random(1)[0].tolist(), strict=True))
        yield UnitSuggester(point.__getitem__)

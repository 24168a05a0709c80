"""What `tune` is given: read, checked as a whole, and looked over for mistakes that nothing refuses."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from raylg import config
from raylg.config import Config
from raylg.errors import ConfigError

if TYPE_CHECKING:
    from raylg.search.lint import Variation
    from raylg.search.space import SearchSpace
    from raylg.search.study import StudyDirectory


def checked(arguments: Namespace) -> tuple[Config, SearchSpace]:
    """Everything that can be wrong with the input, before a machine or a minute is spent.

    Raises:
        ConfigError: all that is wrong.
        EnvironmentUnfitError: the storage of the data cannot be reached.
    """
    from raylg.cluster.resources import check_fits
    from raylg.schema import check_all
    from raylg.search.designs import check_sampler
    from raylg.search.space import SearchSpace
    from raylg.training.benchmarks import check_benchmarks
    from raylg.training.features import check_inputs
    from raylg.training.objective import add_objective_benchmark, default_objective, objective_columns

    loaded = config.load(arguments.overrides, arguments.config, arguments.config_dir).without_benchmark()
    found, mapping = config.load_space(arguments.space, arguments.config_dir)
    defaults = config.load((), config_dir=arguments.config_dir).run
    space = SearchSpace.parse(mapping, found).starting_from(loaded.run, defaults)
    fixed = config.fixed_paths(arguments.overrides)
    check_all(
        lambda: space.validate(loaded.run, fixed),
        lambda: check_sampler(loaded.study.sampler, space),
        lambda: check_fits(loaded.scale),
    )
    objective = loaded.study.objective or default_objective(loaded.run)
    loaded = add_objective_benchmark(loaded, objective)
    objective_columns(loaded.run, objective)
    check_benchmarks(loaded.run)
    check_inputs(loaded.run)  # last, because it makes folders
    name = arguments.name or loaded.study.name or space.name
    return replace(loaded, study=replace(loaded.study, name=name, objective=objective)), space


def study_path(loaded: Config) -> Path:
    """Folder of the study that was checked."""
    assert loaded.study.name is not None
    return Path(loaded.study.dir).expanduser() / loaded.study.name


def open_study(loaded: Config, space: SearchSpace, command: str) -> StudyDirectory:
    """Create or continue the study; the features must be there.

    Args:
        loaded: the configuration.
        space: that is searched.
        command: what was typed, for the records.

    Raises:
        ConfigError: see `StudyDirectory`.
    """
    from raylg.search.study import StudyDirectory, StudySetup
    from raylg.training.protocol import protocol_hashes

    hashes = protocol_hashes(loaded.run)
    return StudyDirectory(StudySetup(study=loaded.study, space=space, run=loaded.run, hashes=hashes, command=command))


def looked_over(loaded: Config, space: SearchSpace) -> Iterator[str]:
    """What works but is probably a mistake, one line each.

    Raises:
        ConfigError: parameters of which no value makes a difference.
    """
    from raylg.search.lint import variations, warnings
    from raylg.training.dead_knobs import is_dead
    from raylg.training.objective import kind_of_pairs

    kind = kind_of_pairs(loaded.run)
    dead = [each for each in variations(space, loaded.run) if is_dead(each.path, each.configurations, kind)]
    if dead:
        raise ConfigError("\n".join(f"search space {space.name}: {_why_dead(each)}" for each in dead))
    yield from (f"warning: {line}" for line in warnings(loaded.study, space, loaded.run))


def _why_dead(variation: Variation) -> str:
    values = " and ".join(repr(value) for value in variation.values)
    return (
        f"{variation.path}: {values} give the same result, bit for bit, with everything else as in the baseline: it "
        "has no effect here; remove it from the space, or set what it depends on"
    )

from __future__ import annotations

import itertools
from typing import Any

import pytest

from raylg.errors import ConfigError
from raylg.search.config import SamplerConfig
from raylg.search.designs import MAX_GRID, check_sampler, grid, grid_size, sobol
from raylg.search.space import SearchSpace
from raylg.search.suggest import FixedSuggester, RandomSuggester, UnitSuggester
from raylg.training.config import RunConfig

LR = {"type": "float", "low": 1e-5, "high": 1e-2, "log": True}
BATCH = {"type": "int", "low": 8, "high": 64, "step": 8}


def space(**parameters: Any) -> SearchSpace:
    return SearchSpace.parse({"parameters": {k.replace("__", "."): v for k, v in parameters.items()}}, "test")


def test_grid_has_every_combination_once_in_an_order_of_its_seed() -> None:
    small = space(data__batch_size=BATCH, optim__decay={"type": "choice", "values": ["none", "exp"]})
    points = [tuple(point.values()) for point in grid(small, seed=0)]
    assert sorted(points) == sorted(itertools.product(range(8, 65, 8), ["none", "exp"]))
    assert points == [tuple(point.values()) for point in grid(small, seed=0)]
    assert points != [tuple(point.values()) for point in grid(small, seed=1)]
    assert grid_size(small) == 16


def test_numbers_of_a_grid_are_of_the_type_that_is_searched() -> None:
    stepped = space(optim__lr={"type": "float", "low": 1, "high": 3, "step": 1}, data__batch_size=BATCH)
    types = {tuple(type(value) for value in point.values()) for point in grid(stepped, seed=0)}
    assert types == {(float, int)}


@pytest.mark.parametrize(
    ("name", "parameters", "expected"),
    [
        ("grid", {"optim__lr": LR, "data__batch_size": BATCH}, "optim.lr = 1e-05..0.01 log is continuous; give it a"),
        ("grid", {"data__batch_size": {"type": "int", "low": 1, "high": MAX_GRID + 1}}, "10001 (data.batch_size) are"),
        (
            "gp",
            {"optim__lr": {**LR, "when": "optim.decay == exp"}},
            "optim.lr has a condition (when: optim.decay",
        ),
    ],
)
def test_sampler_that_cannot_draw_from_the_space_is_refused(name: Any, parameters: Any, expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_sampler(SamplerConfig(name=name), space(**parameters))
    assert expected in str(caught.value)
    assert str(caught.value).startswith(f"study.sampler.name = {name}: ")
    check_sampler(SamplerConfig(name="tpe"), space(**parameters))


def test_sobol_goes_on_where_it_was_and_depends_on_the_seed() -> None:
    both = space(optim__lr=LR, data__batch_size=BATCH)

    def draws(seed: int, start: int, count: int) -> list[dict[str, Any]]:
        points = itertools.islice(sobol(both, seed, start), count)
        return [both.suggest(point, RunConfig()) for point in points]

    assert draws(0, 5, 3) == draws(0, 0, 8)[5:]
    assert draws(1, 0, 8) != draws(0, 0, 8)
    assert sorted(values["data.batch_size"] for values in draws(0, 0, 8)) == list(range(8, 65, 8))


def test_every_value_of_an_int_is_drawn_alike_often() -> None:
    logarithmic = {"type": "int", "low": 1, "high": 3, "log": True}
    ints = space(optim__lr={"type": "int", "low": 1, "high": 3}, data__batch_size=logarithmic)
    suggester = RandomSuggester(0)
    draws = [ints.suggest(suggester, RunConfig()) for _ in range(3000)]
    linear = [sum(values["optim.lr"] == k for values in draws) for k in (1, 2, 3)]
    shares = [sum(values["data.batch_size"] == k for values in draws) / 3000 for k in (1, 2, 3)]
    assert all(abs(count - 1000) < 100 for count in linear)
    assert shares == pytest.approx([0.565, 0.262, 0.173], abs=0.03)  # log(1.5 / 0.5), log(2.5 / 1.5), log(3.5 / 2.5)


@pytest.mark.parametrize("unit", [0.0, 1 - 2**-53])
def test_ends_of_the_unit_interval_are_ends_of_the_range(unit: float) -> None:
    four = space(
        optim__lr=LR,
        data__batch_size=BATCH,
        loss__gamma={"type": "float", "low": 0.7, "high": 1.0, "step": 0.1},
        optim__decay={"type": "choice", "values": ["none", "exp"]},
    )
    suggester = UnitSuggester(lambda name: unit)
    values = four.suggest(suggester, RunConfig())
    assert list(values.values()) == pytest.approx([1e-5, 8, 0.7, "none"] if unit == 0 else [1e-2, 64, 1.0, "exp"])
    assert four.suggest(FixedSuggester(suggester.params), RunConfig()) == values

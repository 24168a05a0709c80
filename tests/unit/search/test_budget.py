from __future__ import annotations

from dataclasses import asdict

import pytest

from raylg.errors import ConfigError
from raylg.search.budget import Limits, parse_limits, spelled_seconds
from raylg.search.config import SamplerConfig
from raylg.training.config import RunConfig


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("30min",), Limits(seconds=1800)),
        (("1.5h",), Limits(seconds=5400)),
        (("2d", "64trials"), Limits(seconds=172_800, trials=64)),
        (("200gpuh", "12h", "1trial"), Limits(seconds=43_200, gpu_hours=200, trials=1)),
        ((" 90 S ",), Limits(seconds=90)),
    ],
)
def test_limits_are_read(words: tuple[str, ...], expected: Limits) -> None:
    assert parse_limits(words) == expected


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), r"budget = \[\]: expected a number with"),
        (("12",), r"budget = '12': expected a number with"),
        (("12parsecs",), "'12parsecs': expected a number with"),
        (("-3h",), "'-3h': expected"),
        (("0h",), "'0h': expected above 0"),
        (("2.5trials",), "'2.5trials': expected a whole number of trials, above 0"),
        (("12h", "30min"), r"\['12h', '30min'\]: limits seconds twice"),
    ],
)
def test_what_is_no_limit_is_refused(words: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_limits(words)


@pytest.mark.parametrize(
    ("seconds", "text"), [(1800.0, "30min"), (43_200.0, "12h"), (5400.0, "90min"), (86_400.0, "1d"), (1.5, "1.5s")]
)
def test_seconds_are_spelled_as_they_are_read(seconds: float, text: str) -> None:
    assert spelled_seconds(seconds) == text
    assert parse_limits((text,)).seconds == seconds


def test_limits_that_exceed_others() -> None:
    old = asdict(Limits(seconds=60, trials=5))
    assert Limits(seconds=61, trials=5).exceed(old)
    assert Limits(seconds=60).exceed(old)
    assert not Limits(seconds=60, trials=5).exceed(old)
    assert not Limits(seconds=59, trials=5, gpu_hours=1).exceed(old)
    assert not Limits(seconds=59).exceed({})


def test_seed_is_not_negative() -> None:
    with pytest.raises(ConfigError, match="seed = -1"):
        SamplerConfig(seed=-1)
    with pytest.raises(ConfigError, match="seed = -1: must be at least 0"):
        RunConfig(seed=-1)

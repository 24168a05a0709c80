"""Strict building of frozen dataclasses from mappings."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import pytest

from raylg import schema
from raylg.errors import ConfigError
from raylg.search.config import StudyConfig
from raylg.training.config import RunConfig


@dataclass(frozen=True, kw_only=True)
class Inner:
    lr: float = 1e-4
    name: Literal["adam", "adamw"] = "adamw"
    clip: float | None = 1.0

    def __post_init__(self) -> None:
        schema.check(self.lr > 0, "lr", self.lr, "above 0")


@dataclass(frozen=True, kw_only=True)
class Outer:
    optim: Inner = field(default_factory=Inner)
    num_pairs: int = 10
    use_ema: bool = False
    path: tuple[str, ...] = ()
    size: tuple[int, int] = (640, 480)
    note: str = ""


@pytest.mark.parametrize("cls", [RunConfig, StudyConfig])
def test_mapping_round_trip_of_the_real_configurations(cls: type) -> None:
    config = cls()
    mapping = schema.to_mapping(config)
    assert schema.build(cls, mapping) == config
    assert schema.build(cls, {}) == config


def test_round_trip_keeps_every_kind_of_value() -> None:
    config = Outer(optim=Inner(lr=0.5, name="adam", clip=None), path=("a", "b"), size=(3, 4), use_ema=True, note="n")
    mapping = schema.to_mapping(config)
    assert mapping["path"] == ["a", "b"]
    assert mapping["optim"] == {"lr": 0.5, "name": "adam", "clip": None}
    assert schema.build(Outer, mapping) == config


def test_the_only_conversions() -> None:
    config = schema.build(Outer, {"optim": {"lr": 1, "clip": 2}, "path": ["x"]})
    assert isinstance(config.optim.lr, float)
    assert isinstance(config.optim.clip, float)
    assert config.path == ("x",)
    assert schema.build(Outer, {"path": "x"}) == schema.build(Outer, {"path": ["x"]})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_pairs": "10"}, "num_pairs = '10': expected int, got str"),
        ({"num_pairs": 1.5}, "num_pairs = 1.5: expected int, got float"),
        ({"num_pairs": True}, "num_pairs = True: expected int, got bool"),
        ({"num_pairs": None}, "num_pairs = None: expected int"),
        ({"use_ema": 1}, "use_ema = 1: expected bool, got int"),
        ({"optim": {"lr": True}}, "optim.lr = True: expected float, got bool"),
        ({"optim": {"lr": "1e-4"}}, "optim.lr = '1e-4': expected float, got str"),
        ({"optim": {"clip": "big"}}, "optim.clip = 'big': expected float, got str"),
        ({"optim": 3}, "optim = 3: expected a group of keys"),
        ({"path": 3}, "path = 3: expected text or a list"),
        ({"size": "640"}, "size = '640': expected a list"),
        ({"path": [1]}, "path[0] = 1: expected str, got int"),
        ({"size": [1, 2, 3]}, "size = [1, 2, 3]: expected a list"),
        ({"size": [1, "b"]}, "size[1] = 'b': expected int, got str"),
    ],
)
def test_wrong_types_name_path_value_and_type(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        schema.build(Outer, values)
    assert message in str(caught.value)


def test_unknown_choice_lists_the_choices_and_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"optim.name = 'adamv': choose one of adam, adamw; did you mean 'adam"):
        schema.build(Outer, {"optim": {"name": "adamv"}})


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"num_pair": 3}, ("num_pair: unknown key", "the configuration has", "did you mean 'num_pairs'?")),
        ({"optim": {"lrr": 3}}, ("optim.lrr: unknown key", "'optim' has lr, name, clip", "did you mean 'lr'?")),
    ],
)
def test_unknown_keys_are_refused_with_the_nearest_name(values: dict[str, Any], words: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError) as caught:
        schema.build(Outer, values)
    assert all(word in str(caught.value) for word in words)


def test_a_far_name_gets_no_suggestion() -> None:
    with pytest.raises(ConfigError) as caught:
        schema.build(Outer, {"zzzzzz": 3})
    assert "did you mean" not in str(caught.value)


def test_all_problems_are_told_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        schema.build(Outer, {"num_pairs": "x", "optim": {"lrr": 1, "clip": "y"}, "notes": ""})
    lines = str(caught.value).splitlines()
    assert [line.split(":")[0].split(" =")[0] for line in lines] == ["num_pairs", "optim.lrr", "optim.clip", "notes"]


def test_range_errors_carry_the_path() -> None:
    with pytest.raises(ConfigError, match=r"^optim\.lr = 0\.0: must be above 0$"):
        schema.build(Outer, {"optim": {"lr": 0}})


def test_a_whole_configuration_that_is_no_mapping() -> None:
    with pytest.raises(ConfigError, match="configuration = 3: expected a group of keys"):
        schema.build(Outer, 3)  # type: ignore[arg-type]


def test_get_follows_dotted_paths() -> None:
    config = Outer(optim=Inner(lr=0.25))
    assert schema.get(config, "optim.lr") == 0.25
    assert schema.get(config, "optim") == Inner(lr=0.25)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("optim.lrr", "optim.lrr: unknown key; 'optim' has lr, name, clip; did you mean 'lr'?"),
        ("num_pairs.x", "num_pairs.x: unknown key; 'num_pairs' has no keys"),
    ],
)
def test_get_refuses_wrong_paths(path: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        schema.get(Outer(), path)
    assert str(caught.value) == message


def test_override_replaces_without_touching_the_original() -> None:
    config = Outer()
    changed = schema.override(config, {"optim.lr": 0.5, "num_pairs": 20})
    assert (changed.optim.lr, changed.num_pairs) == (0.5, 20)
    assert config == Outer()
    assert schema.override(changed, {"optim.lr": 1e-4, "num_pairs": 10}) == config


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"optim.lr": -1.0}, "optim.lr = -1.0: must be above 0"),
        ({"optim.lrr": 1.0}, "optim.lrr: unknown key"),
        ({"opt.lr": 1.0}, "opt.lr: unknown key"),
        ({"num_pairs.deep": 1}, "num_pairs.deep: unknown key"),
        ({"optim.name": "sgd"}, "optim.name = 'sgd': choose one of adam, adamw"),
    ],
)
def test_override_validates_again(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        schema.override(Outer(), values)
    assert message in str(caught.value)


def test_digest_ignores_the_order_of_keys_only() -> None:
    assert schema.digest({"a": 1, "b": {"c": 2, "d": 3}}) == schema.digest({"b": {"d": 3, "c": 2}, "a": 1})
    assert schema.digest({"a": 1}) != schema.digest({"a": 2})
    assert schema.digest({"a": [1, 2]}) != schema.digest({"a": [2, 1]})
    assert len(schema.digest({})) == 12


def test_check_says_name_value_and_what_is_allowed() -> None:
    schema.check(True, "x", 1, "anything")
    with pytest.raises(ConfigError, match=r"^x = 1: must be at least 2$"):
        schema.check(False, "x", 1, "at least 2")

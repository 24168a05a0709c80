"""What decides the scores of a study: told by hashes, and kept out of search spaces."""

from __future__ import annotations

import types
import typing
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from raylg.errors import ConfigError, RaylgError
from raylg.schema import get, override, to_mapping
from raylg.search.fixed import why_fixed
from raylg.training.checkpoint import WITHOUT_EFFECT_ON_RESULT, flatten
from raylg.training.config import RunConfig
from raylg.training.features import ensure_features, features_location
from raylg.training.protocol import protocol_hashes
from tests.integration.tiny_shards import NUM_POINTS, tiny_shard, write_benchmark, write_features
from tests.unit.training.one_scene import write_superpoint

NAME = "megadepth1500"
ORIGINAL = 3
SMALL = {"data.num_keypoints": NUM_POINTS, "evaluation.num_keypoints": NUM_POINTS}


@pytest.fixture(scope="module")
def benchmark(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Options of a benchmark of 13 pairs."""
    made = {s: tiny_shard(s, "test", count, seed, ORIGINAL) for s, count, seed in (("a", 5, 0), ("b", 3, 1))}
    folder = write_benchmark(tmp_path_factory.mktemp("benchmark") / "shards", made)
    return {
        "benchmarks.megadepth1500.path": str(folder),
        "benchmarks.megadepth1500.resize": 320,
        "benchmarks.megadepth1500.num_keypoints": NUM_POINTS - 1,
        "evaluation.benchmarks": [NAME],
    }


@pytest.fixture(scope="module")
def posed(benchmark: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """On shards of the user's."""
    shards = {s: tiny_shard(s, s, 4, 3, ORIGINAL) for s in ("train", "val")}
    features = write_features(tmp_path_factory.mktemp("features") / "f", shards)
    return override(RunConfig(), SMALL | benchmark | {"data.source": "shards", "data.path": [str(features)]})


@pytest.fixture(scope="module")
def extracted(benchmark: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> list[RunConfig]:
    """On features of sources, which lie in the cache."""
    runs = []
    for source, path in (("mini", []), ("colmap", ["somewhere"]), ("megadepth", ["somewhere"])):
        values = {"data.source": source, "data.path": path, "data.cache_dir": str(tmp_path_factory.mktemp(source))}
        runs.append(override(RunConfig(), SMALL | benchmark | values))
        location = Path(features_location(runs[-1]))
        location.parent.mkdir(parents=True)
        write_features(location, {s: tiny_shard(s, s, 4, 3, ORIGINAL) for s in ("train", "val")})
    return runs


@pytest.fixture(scope="module")
def photographs(benchmark: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """On image shards, whose views are drawn on the fly."""
    folder = tmp_path_factory.mktemp("photographs")
    for k in range(6):
        pixels = np.random.default_rng(k).integers(0, 255, (6, 8, 3), np.uint8).repeat(20, 0).repeat(20, 1)
        assert cv2.imwrite(str(folder / f"{k}.jpg"), pixels)
    values = {"data.source": "images", "data.path": [str(folder)], "data.cache_dir": str(folder / "cache")}
    views = {"data.images.width": 160, "data.images.height": 120}
    config = override(RunConfig(), SMALL | benchmark | values | views)
    ensure_features(config)
    return config


def test_hash_of_the_protocol_belongs_to_the_hashes_of_a_study(posed: RunConfig) -> None:
    config, hashes = posed, protocol_hashes(posed)
    assert list(hashes) == ["data", "protocol", NAME]
    assert protocol_hashes(override(config, {"evaluation.ransac_threshold": 1.0}))[NAME] == hashes[NAME]
    for change in ({"benchmarks.megadepth1500.max_pairs": 4}, {"model.matcher.filter_threshold": 0.2}):
        assert protocol_hashes(override(config, change))[NAME] != hashes[NAME]


def test_rungs_of_fewer_pairs_are_another_protocol(posed: RunConfig) -> None:
    config, hashes = posed, protocol_hashes(posed)
    rungs = {"evaluation.rung_pairs": 3, "benchmarks.megadepth1500.rung_pairs": 5}
    with_rungs = protocol_hashes(override(config, rungs))
    assert {name: with_rungs[name] for name in hashes} == hashes  # the last report scores what it scored
    assert with_rungs.keys() - hashes.keys() == {"rungs", f"{NAME} rungs"}
    assert len(set(with_rungs.values())) == len(with_rungs)
    other = protocol_hashes(override(config, rungs | {"evaluation.rung_pairs": 2}))
    assert [name for name in other if other[name] != with_rungs[name]] == ["rungs"]


def test_weights_to_start_from_belong_to_a_study(posed: RunConfig, tmp_path: Path) -> None:
    """By their content: the run that `train.init_from` names may have gone on since."""
    write_superpoint(tmp_path / "weights.pth", seed=0)  # any file
    config = override(posed, {"model.matcher.weights": str(tmp_path / "weights.pth")})
    before = protocol_hashes(config)
    assert before.keys() - protocol_hashes(posed).keys() == {"start"}
    write_superpoint(tmp_path / "weights.pth", seed=1)
    after = protocol_hashes(config)
    assert [name for name in before if after[name] != before[name]] == ["start"]


def test_what_may_be_searched_does_not_change_the_protocol(
    posed: RunConfig, extracted: list[RunConfig], photographs: RunConfig, tmp_path: Path
) -> None:
    """Every option there is, a new one too: one that is left out of `raylg.search.fixed` by mistake fails here."""
    weights = write_superpoint(tmp_path / "weights.pth", seed=0)
    paths = list(flatten(to_mapping(RunConfig())))
    varied = set()
    for config in (posed, *extracted, photographs):
        hashes = protocol_hashes(config)
        for path in paths:
            changed = varied_option(config, path, weights)
            if changed is None:
                continue
            varied.add(path)
            if why_fixed(path) is None:
                assert outcome(changed) == hashes, f"{path} changes what is scored, and may be searched"
    # There is one estimator, and the second stage needs weights to start from.
    assert set(paths) - varied == {"evaluation.estimator", "train.stage"}


def test_what_does_not_decide_a_result_may_not_be_searched() -> None:
    for path in flatten(to_mapping(RunConfig())):
        if path.startswith(WITHOUT_EFFECT_ON_RESULT):
            assert why_fixed(path) is not None, path
    assert why_fixed("data.images.difficulty") and why_fixed("benchmarks.megadepth1500.resize")
    assert why_fixed("optim.lr") is None and why_fixed("data.num_keypoints") is None


def outcome(config: RunConfig) -> dict[str, str] | str:
    """The hashes, or what is wrong, such as shards that are somewhere else."""
    try:
        return protocol_hashes(config)
    except RaylgError as error:
        return str(error)


def varied_option(config: RunConfig, path: str, weights: str) -> RunConfig | None:
    """The configuration with another value at a path; None where no other value fits the rest."""
    *parents, last = path.split(".")
    group = get(config, ".".join(parents)) if parents else config
    for value in other_values(typing.get_type_hints(type(group))[last], getattr(group, last), weights):
        try:
            return override(config, {path: value})
        except ConfigError:
            continue
    return None


def other_values(hint: Any, value: Any, weights: str) -> list[Any]:
    """Candidates for another value of a field of that type."""
    if isinstance(hint, types.UnionType) and value is None:
        (hint,) = (each for each in typing.get_args(hint) if each is not type(None))
    if typing.get_origin(hint) is typing.Literal:
        return [each for each in typing.get_args(hint) if each != value]
    if value is None or isinstance(value, bool):
        return [not value] if hint is bool else {int: [2, 2048], float: [0.5]}.get(hint, [weights, "http://host"])
    if isinstance(value, int):
        return [value + 1, value - 1, 2 * value]
    if isinstance(value, float):
        return [value / 2, value + 0.25, value - 1]
    return [["other"], [7], []] if isinstance(value, tuple) else ["other", "images", "mini"]

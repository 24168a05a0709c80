"""The cluster files pass Ray's own validator, offline, and say what raylg relies on."""

from __future__ import annotations

import copy
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from raylg.config import load, load_space

pytestmark = pytest.mark.ray

REPOSITORY = Path(__file__).resolve().parents[2]
AWS = REPOSITORY / "cluster.yaml"
ON_PREMISE = REPOSITORY / "configs" / "cluster" / "on_premise.yaml"
CLUSTERS = sorted([AWS, *(REPOSITORY / "configs" / "cluster").glob("*.yaml")])


def read(path: Path) -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load(path.read_text())
    return document


def validated(document: dict[str, Any]) -> dict[str, Any]:
    """The document with the provider's defaults filled in, after Ray's schema and consistency checks."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    config: dict[str, Any] = prepare_config(copy.deepcopy(document))
    validate_config(config)
    return config


def ray_start(commands: list[str]) -> list[str]:
    """Words of the one `ray start` among some start commands."""
    (line,) = (command for command in commands if "ray start" in command)
    return shlex.split(line)


@pytest.mark.parametrize("path", CLUSTERS, ids=lambda path: path.stem)
def test_ray_accepts_the_file(path: Path) -> None:
    config = validated(read(path))
    assert config["available_node_types"][config["head_node_type"]]["max_workers"] >= 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"max_wrkers": 1}, "'max_wrkers' was unexpected"),
        ({"idle_timeout_minutes": "x"}, "'x' is not of type 'number'"),
        ({"provider": {"type": "nope"}}, "Unsupported node provider: nope"),
        ({"head_node_type": "tail"}, "must be one of `available_node_types`"),
    ],
)
def test_ray_refuses_what_is_wrong(change: dict[str, Any], message: str) -> None:
    from jsonschema import ValidationError

    with pytest.raises((ValidationError, ValueError, NotImplementedError), match=message):
        validated({**read(AWS), **change})


@pytest.mark.parametrize("path", CLUSTERS, ids=lambda path: path.stem)
def test_every_node_authenticates_with_the_token(path: Path) -> None:
    config = validated(read(path))
    assert config["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    for role in ("head", "worker"):
        words = ray_start(config[f"{role}_start_ray_commands"])
        assert "RAY_AUTH_MODE=token" in words
        assert not any(word.startswith("--dashboard-host=0.0.0.0") for word in words)


@pytest.mark.parametrize("path", CLUSTERS, ids=lambda path: path.stem)
def test_head_and_workers_find_each_other_and_raylg(path: Path) -> None:
    config = validated(read(path))
    head, worker = (ray_start(config[f"{role}_start_ray_commands"]) for role in ("head", "worker"))
    assert {"--head", "--port=6379", "--autoscaling-config=~/ray_bootstrap_config.yaml"} <= set(head)
    assert "--address=$RAY_HEAD_IP:6379" in worker
    assert config["file_mounts"]["~/raylg"] == "."
    assert any(command.endswith("pip install -e ~/raylg") for command in config["setup_commands"])


def test_aws_workers_are_gpu_spot_machines_that_start_from_none() -> None:
    config = validated(read(AWS))
    head, gpu = config["available_node_types"]["head"], config["available_node_types"]["gpu"]
    assert head["resources"]["CPU"] == 0
    assert head["resources"]["trial_driver"] >= config["max_workers"]
    assert (gpu["min_workers"], gpu["max_workers"]) == (0, config["max_workers"])
    assert gpu["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert gpu["node_config"]["ImageId"] == head["node_config"]["ImageId"]
    assert any("boto3" in command for command in config["head_setup_commands"])


def test_on_premise_head_offers_trial_drivers_and_all_workers_join() -> None:
    document = read(ON_PREMISE)
    assert '--resources={"trial_driver": 64}' in ray_start(document["head_start_ray_commands"])
    assert document["min_workers"] == document["max_workers"] == len(document["provider"]["worker_ips"])
    assert "RAY_UP_enable_autoscaler_v2=0 ray up" in ON_PREMISE.read_text()


def test_aws_workers_mount_what_the_head_shares_before_ray_starts() -> None:
    config = validated(read(AWS))
    assert any("/mnt/raylg" in command and "exports" in command for command in config["head_setup_commands"])
    commands = config["worker_start_ray_commands"]
    (mount,) = (index for index, command in enumerate(commands) if "mount -t nfs4 $RAY_HEAD_IP:/mnt/raylg" in command)
    (start,) = (index for index, command in enumerate(commands) if "ray start" in command)
    assert mount < start


@pytest.mark.parametrize("path", CLUSTERS, ids=lambda path: path.stem)
def test_the_command_in_the_comment_is_a_valid_one(path: Path) -> None:
    (command,) = re.findall(r"raylg tune --space ([^']+)'", path.read_text())
    space, *words = shlex.split(command)
    load_space(space)
    config = load(words)
    assert config.scale.address == "auto"
    assert config.data.cache_dir.startswith("/mnt/raylg/")
    if path == AWS:
        assert config.scale.gpus_per_worker == 1
        assert config.study.max_concurrent_trials == read(AWS)["max_workers"]

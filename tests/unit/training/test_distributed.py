import pytest
import torch

from raylg.errors import EnvironmentUnfitError
from raylg.training.distributed import World


def test_one_process_needs_no_group():
    world = World()
    values = torch.arange(3)
    assert world.is_main
    assert torch.equal(world.sum(values), values)
    assert world.gather("a") == ["a"]


def test_several_processes_need_one():
    with pytest.raises(EnvironmentUnfitError, match="process group"):
        World(rank=1, size=2)

"""Compiled training is the same training."""

from __future__ import annotations

import copy
import os
import shutil

import pytest
import torch
from torch._dynamo.utils import counters

from raylg.schema import override
from raylg.training.config import RunConfig
from raylg.training.distributed import World
from raylg.training.learner import Learner
from raylg.training.micro_batch import synthetic_batch

TINY = {
    "model.matcher.descriptor_dim": 16,
    "model.matcher.num_layers": 3,
    "model.matcher.num_heads": 2,
    "data.batch_size": 5,
    "data.num_keypoints": 11,
    "optim.ema_pairs": 20.0,
}


@pytest.mark.slow
def test_compiled_training_gives_the_same(monkeypatch, tmp_path):
    if shutil.which(os.environ.get("CXX", "g++")) is None:
        pytest.skip("torch.compile needs a C++ compiler: no g++")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    config = override(RunConfig(), TINY)
    compiled = Learner(override(config, {"train.compile": True}), World())
    eager = Learner(config, World())
    for i, (num_keypoints, micro_batch_size) in enumerate([(9, 5), (13, 3)]):
        batch = synthetic_batch(config, 5, num_keypoints, torch.device("cpu"))
        gradients = []
        for learner in (compiled, eager):
            learner.micro_batch_size = micro_batch_size
            sums = torch.zeros(5, dtype=torch.float64)
            assert learner._accumulate(batch, sums)
            gradients.append(torch.cat([sums, *(p.grad.flatten() for p in learner.model.parameters())]))
            learner._optimizer.zero_grad()
        torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-5, atol=1e-6)
        results = [learner.step(batch, 5 * i) for learner in (compiled, eager)]
        assert results[0].terms == pytest.approx(results[1].terms, rel=1e-4)
    graphs = counters["stats"]["unique_graphs"]
    compiled.step(synthetic_batch(config, 5, 10, torch.device("cpu")), 15)
    compiled.validated.match(batch.view0, batch.view1)
    compiled.model.eval()(batch.view0, batch.view1)
    assert counters["stats"]["unique_graphs"] == graphs  # neither another length nor evaluation compiles again
    assert 4 <= graphs <= 12
    assert list(compiled.model.state_dict()) == list(eager.model.state_dict())
    eager.load_state_dict(copy.deepcopy(compiled.state_dict()))

"""How much memory work takes."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from raylg.training import memory
from raylg.training.memory import CudaMemory, HostMemory, LiveTensors

MIB = 2**20
FLOATS = MIB // 4


def test_peak_counts_what_is_alive_at_a_time():
    def run():
        a = torch.zeros(FLOATS)
        b = a + 1
        del a
        c = b * 2
        del b
        assert c[0] == 2

    assert HostMemory().peak(run) == pytest.approx(2 * MIB, abs=100)


def test_views_and_changes_in_place_take_nothing():
    held = torch.zeros(4, FLOATS)
    with LiveTensors() as live:
        view = held[1:].reshape(-1).unsqueeze(0)
        view += 1
        held.mul_(2)
    assert live.peak < 100


def test_what_autograd_keeps_is_counted_until_it_is_freed():
    weight = torch.ones(FLOATS, requires_grad=True)
    with LiveTensors() as live:
        loss = weight.exp().exp().exp().sum()  # each result is kept for its gradient
        loss.backward()
    assert 3 * MIB <= live.peak <= 5 * MIB + 100
    del loss
    weight.grad = None
    with LiveTensors() as live, torch.no_grad():
        weight.exp().exp().exp().sum()
    assert live.peak == pytest.approx(2 * MIB, abs=100)


def test_free_memory_is_less_than_all_of_it():
    host = HostMemory()
    assert 0 < host.free() <= host.total
    assert not host.raises


def test_a_container_is_limited_by_its_control_group(tmp_path, monkeypatch):
    (tmp_path / "memory.max").write_text(f"{8 * MIB}\n")
    (tmp_path / "memory.current").write_text(f"{5 * MIB}\n")
    (tmp_path / "memory.stat").write_text(f"anon 1\ninactive_file {2 * MIB}\n")
    monkeypatch.setattr(memory, "CONTROL_GROUP", tmp_path)
    host = HostMemory()
    assert host.total == 8 * MIB
    assert host.free() == 5 * MIB  # cached files make room
    (tmp_path / "memory.max").write_text("max\n")
    assert HostMemory().total > 8 * MIB


def test_gpu_is_asked_through_the_allocator(monkeypatch):
    """A made-up GPU of 100 bytes: 30 are others', 20 are PyTorch's, of which 15 are in use."""
    calls = []
    answers = {
        "get_device_properties": SimpleNamespace(name="made-up", total_memory=100),
        "mem_get_info": (50, 100),
        "memory_reserved": 20,
        "memory_allocated": 15,
        "max_memory_allocated": 42,
        "synchronize": None,
        "reset_peak_memory_stats": None,
    }
    for name, answer in answers.items():
        monkeypatch.setattr(torch.cuda, name, lambda device, name=name, answer=answer: calls.append(name) or answer)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: calls.append("empty_cache"))
    gpu = CudaMemory(torch.device("cuda", 0))
    assert (gpu.name, gpu.total, gpu.raises) == ("made-up", 100, True)
    assert gpu.free() == 55
    calls.clear()
    assert gpu.peak(lambda: calls.append("run")) == 42 - 15
    expected = ["synchronize", "reset_peak_memory_stats", "memory_allocated", "run", "synchronize"]
    assert calls == [*expected, "max_memory_allocated"]


@pytest.mark.gpu
def test_gpu_peak_is_what_was_allocated():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    gpu = CudaMemory(torch.device("cuda"))
    assert gpu.peak(lambda: torch.zeros(FLOATS, device="cuda")) == MIB
    assert 0 < gpu.free() <= gpu.total

"""A whole step of training: labels, network, loss, gradients, optimiser; raylg against the plain formulas.

python tests/benchmarks/train_step.py [--counts 512 1024 2048] [--device cuda --batch-size 16 --peak-tflops 990]

The published LightGlue, 9 layers of 256 channels, with and without recomputing activations in the backward pass. On a
CPU: float32, one thread, one process per row, exact resident peak. On a GPU: bfloat16 with float32 losses, peak of the
allocator, the share of `--peak-tflops` that the multiplications of raylg's step reach, and the largest batch.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from raylg.models.config import LightGlueConfig
from raylg.models.lightglue import LightGlue
from raylg.supervision.assignment_loss import matching_loss
from raylg.supervision.config import GroundTruthConfig, LossConfig
from raylg.supervision.ground_truth import ground_truth_matches
from raylg.training.config import OptimConfig
from raylg.training.optim import build_optimizer, clip_gradients
from tests.benchmarks.memory import Cost, cost
from tests.benchmarks.reference import dense_step
from tests.benchmarks.scenes import random_pairs

DIM = 256
NUM_REPEATS = 2
CONFIGS = (GroundTruthConfig(), LossConfig())


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--counts", type=int, nargs="+", default=[512, 1024, 2048], help="keypoints of a view")
    parser.add_argument("--batch-size", type=int, default=1, help="pairs of a step")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--peak-tflops", type=float, help="dense bfloat16 peak of the card, from its data sheet")
    words = parser.parse_args()
    on_gpu = words.device == "cuda"
    name = torch.cuda.get_device_name() if on_gpu else "CPU, one thread"
    print(f"{date.today()}, {name}: batches of {words.batch_size}, best of {NUM_REPEATS}\n")
    print("| keypoints | recomputed | dense MB | raylg MB | share | dense pairs/s | raylg pairs/s | times as fast |")
    print("|--:|---|--:|--:|--:|--:|--:|--:|")
    measure = gpu_cost if on_gpu else cpu_cost
    for count in words.counts:
        for recomputed in (False, True):
            dense, ours = (measure(kind, count, words.batch_size, recomputed) for kind in ("dense", "raylg"))
            print(
                f"| {count} | {'yes' if recomputed else 'no'} | {dense.megabytes:.0f} | {ours.megabytes:.0f} | "
                f"1/{dense.megabytes / ours.megabytes:.1f} | {words.batch_size / dense.seconds:.2f} | "
                f"{words.batch_size / ours.seconds:.2f} | {dense.seconds / ours.seconds:.2f} |",
                flush=True,
            )
    if on_gpu:
        report_gpu(words.counts[-1], words.batch_size, words.peak_tflops)


def cpu_cost(kind: str, count: int, batch_size: int, recomputed: bool) -> Cost:
    """In a process of its own."""
    return cost(prepare, kind, count, batch_size, recomputed, "cpu", repeats=NUM_REPEATS)


def gpu_cost(kind: str, count: int, batch_size: int, recomputed: bool) -> Cost:
    """Peak of the allocator over the level before a step, and seconds of a step."""
    step = prepare(kind, count, batch_size, recomputed, "cuda")
    step()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    seconds = []
    for _ in range(NUM_REPEATS):
        start = time.perf_counter()
        step()
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return Cost((torch.cuda.max_memory_allocated() - before) / 1e6, min(seconds))


def prepare(kind: str, count: int, batch_size: int, recomputed: bool, device: str) -> Callable[[], None]:
    """A call that takes one step on always the same batch; bfloat16 on a GPU."""
    torch.manual_seed(0)
    model = LightGlue(
        LightGlueConfig(descriptor_dim=DIM), input_dim=DIM, add_scale_ori=False, checkpointed=recomputed
    ).to(device)
    batch = random_pairs(batch_size, count, count, seed=0, dim=DIM).to(device)
    optimizer = build_optimizer(model, OptimConfig())
    masks = batch.view0.mask, batch.view1.mask

    def raylg() -> torch.Tensor:
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            layers = model(batch.view0, batch.view1)
        return matching_loss(layers, ground_truth_matches(batch, CONFIGS[0]), CONFIGS[1], *masks).total

    def dense() -> torch.Tensor:
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            return dense_step(model, batch, CONFIGS, checkpointed=recomputed)

    loss = {"dense": dense, "raylg": raylg}[kind]

    def step() -> None:
        loss().mean().backward()
        clip_gradients(model, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def report_gpu(count: int, batch_size: int, peak_tflops: float | None) -> None:
    """Print rate, share of the peak, and the largest batch."""
    step = prepare("raylg", count, batch_size, False, "cuda")
    with FlopCounterMode(display=False) as counter:
        step()
    rate = counter.get_total_flops() / gpu_cost("raylg", count, batch_size, False).seconds / 1e12
    share = "" if peak_tflops is None else f", {100 * rate / peak_tflops:.0f} % of {peak_tflops:g}"
    print(f"\n{count} keypoints, activations kept: {rate:.1f} TFLOP/s of multiplications{share}.")
    for recomputed in (False, True):
        largest = largest_batch(lambda size, recomputed=recomputed: gpu_cost("raylg", count, size, recomputed))
        print(f"Largest batch {'with' if recomputed else 'without'} recomputing: {largest} pairs.")


def largest_batch(attempt: Callable[[int], object], most: int = 1 << 14) -> int:
    """Largest number of pairs that does not run out of memory, to a sixteenth; 0 where not even one fits.

    Args:
        attempt: raises `torch.cuda.OutOfMemoryError` above it.
        most: is not exceeded.
    """

    def fits(size: int) -> bool:
        try:
            attempt(size)
        except torch.cuda.OutOfMemoryError:
            torch.cuda.empty_cache()
            return False
        return True

    size = 0
    while size < most and fits(max(1, 2 * size)):
        size = max(1, 2 * size)
    step = size // 2
    while step >= max(1, size // 16):
        if size + step <= most and fits(size + step):
            size += step
        step //= 2
    return size


if __name__ == "__main__":
    main()

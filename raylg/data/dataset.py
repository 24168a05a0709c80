"""Feature shards to batches of pairs: in any order, with a bounded number of shards in memory."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from raylg.batch import PairBatch, View
from raylg.data.manifest import data_hash
from raylg.data.open_shards import SplitShards
from raylg.data.reader import ShardReader
from raylg.data.resize import decode_thumbnail
from raylg.data.scene import Split
from raylg.data.shard import Shard
from raylg.errors import ConfigError
from raylg.geometry.camera import Camera, Pose

SERIAL_COPY = 2**15
"""Elements that torch copies in one thread; it divides larger copies among threads that belong to the training step."""


class PairDataset(SplitShards[Shard]):
    """The posed pairs of one split of a data set of feature shards. May be used from several threads.

    A pair is addressed as (shard, pair), both from 0 within the split. Shards that were used last stay in memory, see
    `OpenShards`.
    """

    def __init__(self, reader: ShardReader, split: Split, num_keypoints: int, open_shards: int) -> None:
        """Nothing is read before a pair is asked for.

        Args:
            reader: of the data set.
            split: of the manifest; one without pairs gives an empty data set.
            num_keypoints: strongest keypoints used per image; images with fewer give all they have.
            open_shards: shards that are used at a time, at least 1.

        Raises:
            ConfigError: the shards hold photographs, or fewer keypoints per image than `num_keypoints`.
        """
        super().__init__(reader, split, open_shards, reader.read)
        self.num_keypoints, self.data_hash = num_keypoints, data_hash(self.manifest)
        extractor, where = self.manifest.extractor, reader.storage.url
        if extractor is None:
            raise ConfigError(
                f"{where} holds photographs, not local features of posed images; give other shards here, and these as "
                f"data=shards data.path={where}, which trains on homographies"
            )
        self._descriptor_dim = extractor.descriptor_dim
        stored = extractor.settings.get("max_num_keypoints")
        if stored is not None and num_keypoints > stored:
            raise ConfigError(
                f"num_keypoints = {num_keypoints}, but the shards in {where} were made with at most {stored} "
                f"keypoints per image; lower data.num_keypoints or evaluation.num_keypoints, or prepare again with "
                f"model.extractor.max_num_keypoints={num_keypoints}"
            )

    def batch(self, indices: np.ndarray) -> PairBatch:
        """Read pairs.

        Args:
            indices: int64 [n, 2] (shard, pair), or [n, 3] with the epoch, which changes nothing here; n may be 0.

        Returns:
            The pairs in this order, padded to the longest image of each side.

        Raises:
            ShardError: a shard is missing or damaged.
            EnvironmentUnfitError: the storage refuses or does not answer.
        """
        shards = self._shards.several(indices[:, 0].tolist())
        pairs = [(shards[index], pair) for index, pair in indices[:, :2].tolist()]
        sides = [[(shard, int(shard.pairs[pair, side])) for shard, pair in pairs] for side in (0, 1)]
        view0, view1 = (self._view(images) for images in sides)
        T0, T1 = (np.array([shard.T_w2c[i] for shard, i in images]).reshape(-1, 4, 4) for images in sides)
        return PairBatch(
            view0=view0,
            view1=view1,
            T_0to1=Pose.from_matrix(torch.from_numpy(relative_pose(T0, T1).astype(np.float32))),
            overlap=torch.tensor([float(shard.overlap[pair]) for shard, pair in pairs], dtype=torch.float32),
            names=tuple(
                (shard.scene, shard.names[i], shard.names[j]) for (shard, i), (_, j) in zip(*sides, strict=True)
            ),
        )

    def thumbnails(self, indices: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
        """Small grey images, uint8 [h, w], of both sides of each pair; arguments and errors as of `batch`."""
        result = []
        for index, pair in indices[:, :2].tolist():
            shard, where = self._shards[index], self.reader.storage.describe(self.entries[index].file)
            image0, image1 = (decode_thumbnail(shard.thumbnails[i], where) for i in shard.pairs[pair])
            result.append((image0, image1))
        return result

    def _view(self, images: Sequence[tuple[Shard, int]]) -> View:
        rows = [
            slice(shard.offsets[i], min(shard.offsets[i + 1], shard.offsets[i] + self.num_keypoints))
            for shard, i in images
        ]
        counts = np.array([row.stop - row.start for row in rows], dtype=np.int64)
        longest = int(counts.max(initial=0))

        def per_keypoint(name: str, shape: tuple[int, ...] = (), fill: float = 0) -> torch.Tensor:
            parts = [getattr(shard, name)[row] for (shard, _), row in zip(images, rows, strict=True)]
            return padded(parts, longest, shape, fill)

        def per_image(name: str, width: int) -> torch.Tensor:
            values = np.array([getattr(shard, name)[i] for shard, i in images], dtype=np.float32)
            return torch.from_numpy(values.reshape(-1, width))

        has_scale_ori = bool(images) and all(shard.scales is not None for shard, _ in images)
        return View(
            keypoints=per_keypoint("keypoints", (2,)),
            descriptors=per_keypoint("descriptors", (self._descriptor_dim,)),
            mask=torch.from_numpy(np.arange(longest) < counts[:, None]),
            image_size=per_image("image_size", 2),
            camera=Camera.from_params(per_image("camera", 4)),
            depth_keypoints=per_keypoint("depth_keypoints", fill=np.nan),
            scales=per_keypoint("scales") if has_scale_ori else None,
            oris=per_keypoint("oris") if has_scale_ori else None,
            original_size=original_size(images),
        )


def padded(parts: Sequence[np.ndarray], longest: int, shape: tuple[int, ...], fill: float) -> torch.Tensor:
    """Put arrays of different lengths under each other.

    Args:
        parts: float16 or float32 [n, *shape], n at most `longest`.
        longest: rows for each part.
        shape: of a row.
        fill: of the rows beyond a part's own.

    Returns:
        float32 [len(parts), longest, *shape].
    """
    # NumPy's memory, because it asks the system for large pages (torch does not, which takes twice as long); but
    # torch's conversion from float16, because it uses vector instructions (NumPy does not: five times as long).
    array: np.ndarray = np.empty((len(parts), longest, *shape), dtype=np.float32)
    step = max(1, SERIAL_COPY // int(np.prod(shape)))
    for rows, part in zip(array, parts, strict=True):
        count = len(part)
        if count < longest:
            rows[count:] = fill
        if part.dtype == np.float32:
            rows[:count] = part
            continue
        target, source = torch.from_numpy(rows[:count]), torch.from_numpy(part)
        for i in range(0, count, step):
            target[i : i + step].copy_(source[i : i + step])
    return torch.from_numpy(array)


def original_size(images: Sequence[tuple[Shard, int]]) -> torch.Tensor | None:
    """float32 [B, 2], sizes of images before resizing, NaN where a shard does not know them; None if none does."""
    if all(shard.original_size is None for shard, _ in images):
        return None
    sizes = [(np.nan, np.nan) if shard.original_size is None else shard.original_size[i] for shard, i in images]
    return torch.from_numpy(np.array(sizes, dtype=np.float32))


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

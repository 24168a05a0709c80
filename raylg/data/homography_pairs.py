"""Pairs of views of photographs under homographies, drawn anew in each epoch, with features extracted as they come.

What a pair looks like is a pure function of (seed, epoch, shard, pair): ranks, threads and the composition of a batch
play no part, and a resumed run sees what an uninterrupted one would have seen. Warps and changes of light run where the
extractor wants its images; photographs are kept encoded and decoded each time they are used.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import dataclass
from typing import Any, Protocol

import cv2
import numpy as np
import torch
from torch import Tensor

from raylg import schema
from raylg.batch import Features, PairBatch, View
from raylg.data.config import STORED, DataConfig
from raylg.data.dataset import padded
from raylg.data.homographies import HomographyPair, sample_pair, warp_views
from raylg.data.image_shards import ImageShard
from raylg.data.manifest import data_hash
from raylg.data.open_shards import SplitShards
from raylg.data.photometric import photometric
from raylg.data.reader import ShardReader
from raylg.data.resize import THUMBNAIL_SIZE, shrink
from raylg.data.scene import Split
from raylg.errors import ConfigError
from raylg.geometry.camera import Camera, Pose

STREAM = 0x50414952
"""Sets these random numbers apart from others of the same seed and epoch, such as the order of the pairs."""
SCORING_SEED = 0
"""Of all splits but train, so that runs with different seeds are scored on the same pairs."""
PAIRS_AT_A_TIME = 16
"""Pairs whose views are in memory at a time: about 30 MB at 640 x 480."""


class BatchExtractor(Protocol):
    """Finds local features in many images at a time; models.extractor makes one."""

    @property
    def device(self) -> torch.device:
        """Where images are wanted."""

    @property
    def identity(self) -> Mapping[str, Any]:
        """What decides the features, as in manifests: `settings`, `descriptor_dim` and more; plain values."""

    def __call__(self, images: Tensor) -> list[Features]:
        """Features of each of uint8 [B, H, W, 3] RGB, in pixels of that image, strongest first."""


@dataclass(frozen=True, kw_only=True)
class RenderedPair:
    """The two views of a pair."""

    views: tuple[Tensor, Tensor]
    """uint8 [H, W, 3] RGB each, on the device of the extractor."""
    geometry: HomographyPair
    name: tuple[str, str]
    """(scene, photograph)."""


class HomographyPairs(SplitShards[ImageShard]):
    """The homography pairs of one split of a data set of photographs. May be used from several threads.

    A pair is addressed as (shard, photograph, epoch), the first two from 0 within the split, or as (shard, photograph)
    for epoch 0. Memory: the encoded photographs of `data.open_shards` shards, and a few decoded ones.
    """

    def __init__(
        self,
        reader: ShardReader,
        split: Split,
        num_keypoints: int,
        config: DataConfig,
        *,
        extractor: BatchExtractor,
        seed: int,
    ) -> None:
        """Nothing is read before a pair is asked for.

        Args:
            reader: of the data set.
            split: of the manifest; one without photographs gives an empty data set.
            num_keypoints: strongest keypoints used per view; views with fewer give all they have.
            config: `images` and `open_shards`.
            extractor: of local features.
            seed: of the views of the split `train`; other splits are the same for every seed.

        Raises:
            ConfigError: the shards hold no photographs, or the extractor gives fewer keypoints than `num_keypoints` or
                wants smaller images than the views.
        """
        super().__init__(reader, split, config.open_shards, reader.read_images)
        self.num_keypoints, self.options, self.extractor = num_keypoints, config.images, extractor
        self.seed = seed if split == "train" else SCORING_SEED
        self._check()
        self.data_hash = schema.digest(
            {
                "shards": data_hash(self.manifest),
                "images": {key: value for key, value in schema.to_mapping(self.options).items() if key not in STORED},
                "extractor": dict(extractor.identity),
                "num_keypoints": num_keypoints,
            }
        )
        self._threads = ThreadPoolExecutor(torch.get_num_threads(), thread_name_prefix="decode-photographs")

    def batch(self, indices: np.ndarray) -> PairBatch:
        """Draw pairs and extract their features.

        Args:
            indices: int64 [n, 2] (shard, photograph) or [n, 3] with the epoch; n may be 0.

        Returns:
            The pairs in this order on the CPU, padded to the longest view of each side, with `H_0to1`.

        Raises:
            ShardError: a shard is missing or damaged.
            EnvironmentUnfitError: the storage refuses or does not answer, or an extractor's process was killed.
        """
        geometries: list[HomographyPair] = []
        names: list[tuple[str, str, str]] = []
        features: tuple[list[Features], list[Features]] = ([], [])
        for start in range(0, len(indices), PAIRS_AT_A_TIME):
            pairs = list(self.render(indices[start : start + PAIRS_AT_A_TIME]))
            found = self.extractor(torch.stack([pair.views[side] for side in (0, 1) for pair in pairs]))
            features[0].extend(found[: len(pairs)])
            features[1].extend(found[len(pairs) :])
            geometries += [pair.geometry for pair in pairs]
            names += [(scene, name, name) for scene, name in (pair.name for pair in pairs)]
        H_0to1 = np.array([geometry.H_0to1 for geometry in geometries], dtype=np.float32).reshape(-1, 3, 3)
        unknown = torch.full((len(indices), 4, 4), torch.nan)
        return PairBatch(
            view0=self._view(features[0]),
            view1=self._view(features[1]),
            T_0to1=Pose.from_matrix(unknown),
            overlap=torch.tensor([geometry.overlap for geometry in geometries], dtype=torch.float32),
            names=tuple(names),
            H_0to1=torch.from_numpy(H_0to1),
        )

    def thumbnails(self, indices: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
        """Small grey images, uint8 [h, w], of both views of each pair; arguments and errors as of `batch`."""
        result = []
        for pair in self.render(indices):
            greys = [cv2.cvtColor(view.cpu().numpy(), cv2.COLOR_RGB2GRAY) for view in pair.views]
            small0, small1 = (shrink(grey, THUMBNAIL_SIZE) for grey in greys)
            result.append((small0, small1))
        return result

    def render(self, indices: np.ndarray) -> Iterator[RenderedPair]:
        """The views of each pair; photographs are decoded ahead by threads. Arguments and errors as of `batch`."""
        size = (self.options.width, self.options.height)
        # In the context of the caller, which may want to stop.
        photographs = [self._threads.submit(copy_context().run, self._photograph, *row[:2]) for row in indices.tolist()]
        for (shard, pair, *epoch), decoded in zip(indices.tolist(), photographs, strict=True):
            photograph, name = decoded.result()
            rng = np.random.default_rng((self.seed, epoch[0] if epoch else 0, shard, pair, STREAM))
            geometry = sample_pair(rng, (photograph.shape[1], photograph.shape[0]), self.options)
            image = torch.from_numpy(photograph).to(self.extractor.device)
            view0, view1 = (
                photometric(view, rng, self.options.photometric).permute(1, 2, 0)
                for view in warp_views(image, (geometry.H0, geometry.H1), size)
            )
            yield RenderedPair(views=(view0, view1), geometry=geometry, name=name)

    def _photograph(self, number: int, photograph: int) -> tuple[np.ndarray, tuple[str, str]]:
        """Pixels, uint8 [H, W, 3] RGB, and (scene, name)."""
        shard = self._shards[number]
        image = shard.decode(photograph, self.reader.storage.describe(self.entries[number].file))
        return image, (shard.scene, shard.names[photograph])

    def _check(self) -> None:
        where = self.reader.storage.url
        if self.manifest.content != "images":
            raise ConfigError(f"{where} holds {self.manifest.content}, not photographs; open it as PairDataset")
        settings = self.extractor.identity["settings"]
        most, resize = settings["max_num_keypoints"], settings["resize"]
        if self.num_keypoints > most:
            raise ConfigError(
                f"num_keypoints = {self.num_keypoints}, but the extractor gives at most {most}; lower "
                "data.num_keypoints or evaluation.num_keypoints, or raise model.extractor.max_num_keypoints"
            )
        problem = self.options.problem_of(resize)
        if problem is not None:
            raise ConfigError(problem)

    def _view(self, features: Sequence[Features]) -> View:
        """Pad the strongest `num_keypoints` of each view to the longest."""
        counts = np.array([min(len(each), self.num_keypoints) for each in features], dtype=np.int64)
        longest = int(counts.max(initial=0))
        images = len(features)

        def rows(arrays: Sequence[np.ndarray], *shape: int) -> Tensor:
            return padded([array[: self.num_keypoints] for array in arrays], longest, shape, 0)

        scales = [each.scales for each in features if each.scales is not None]
        oris = [each.oris for each in features if each.oris is not None]
        size = torch.tensor([self.options.width, self.options.height], dtype=torch.float32)
        return View(
            keypoints=rows([each.keypoints for each in features], 2),
            descriptors=rows([each.descriptors for each in features], self.extractor.identity["descriptor_dim"]),
            mask=torch.from_numpy(np.arange(longest) < counts[:, None]),
            image_size=size.expand(images, 2).clone(),
            camera=Camera.from_params(torch.full((images, 4), torch.nan)),
            depth_keypoints=torch.full((images, longest), torch.nan),
            scales=rows(scales) if scales else None,
            oris=rows(oris) if oris else None,
        )

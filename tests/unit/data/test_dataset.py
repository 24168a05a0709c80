"""Shards to batches: content, padding, damage, memory, threads."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from contextlib import closing
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from raylg.batch import PairBatch
from raylg.data.config import DataConfig
from raylg.data.dataset import SERIAL_COPY, PairDataset, padded, relative_pose
from raylg.data.export import export_features
from raylg.data.manifest import ShardEntry
from raylg.data.order import all_entries
from raylg.data.reader import ShardReader
from raylg.data.scene import Split
from raylg.data.shard import Shard
from raylg.data.storage import Storage
from raylg.data.stream import stream_batches
from raylg.errors import ConfigError, ShardError
from raylg.geometry.camera import Pose
from tests.unit.data.buckets import open_bucket, open_folder
from tests.unit.data.scenes import DIM, FakeExtractor, FakeSource, export_options


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two training scenes in 4 shards (18 pairs), one for validation (9 pairs)."""
    out = tmp_path_factory.mktemp("shards")
    export_features(FakeSource(), FakeExtractor, Storage(out), export_options(images_per_shard=4))
    return out


def opened(folder: Path, split: Split, num_keypoints: int = 20, open_shards: int = 9) -> PairDataset:
    return PairDataset(open_folder(folder), split, num_keypoints, open_shards)


def all_indices(dataset: PairDataset) -> np.ndarray:
    return all_entries(dataset.shard_sizes)


def same(a: PairBatch, b: PairBatch) -> bool:
    return a.names == b.names and torch.equal(a.view0.descriptors, b.view0.descriptors)


def test_batch_holds_what_was_extracted(folder: Path) -> None:
    source, extractor = FakeSource(), FakeExtractor()
    dataset = opened(folder, "train", open_shards=2)
    indices = np.random.default_rng(0).permutation(all_indices(dataset))
    batch = dataset.batch(indices)
    assert len(batch) == dataset.num_pairs == 18
    scenes = {ref.name: source.load(ref) for ref in source.scenes()}
    for b, (scene_name, *names) in enumerate(batch.names):
        scene = scenes[scene_name]
        ids = [[view.name for view in scene.views].index(name) for name in names]
        (k,) = np.flatnonzero((scene.pairs == ids).all(axis=1))
        assert batch.overlap[b] == scene.overlap[k]
        for view, i in zip((batch.view0, batch.view1), ids, strict=True):
            features = extractor(scene.image(i))
            count = len(features)
            assert view.mask[b].tolist() == [True] * count + [False] * (view.mask.shape[1] - count)
            for stored, expected in (
                (view.keypoints, features.keypoints),
                (view.descriptors, features.descriptors.astype(np.float32)),
                (view.scales, features.scales),
                (view.oris, features.oris),
            ):
                assert stored is not None
                np.testing.assert_array_equal(stored[b, :count], expected)
                assert (stored[b, count:] == 0).all()
            assert view.depth_keypoints[b, count:].isnan().all()
            assert view.image_size[b].tolist() == [64, 48]
            assert view.camera.f[b].tolist() == [60, 61] and view.camera.c[b].tolist() == [31, 25]
        expected_pose = scene.views[ids[1]].T_w2c @ np.linalg.inv(scene.views[ids[0]].T_w2c)
        np.testing.assert_allclose(batch.T_0to1.matrix[b], expected_pose, atol=2e-6)


def test_dtypes(folder: Path) -> None:
    batch = opened(folder, "val").batch(np.array([[0, 0]]))
    for view in (batch.view0, batch.view1):
        tensors = (view.keypoints, view.descriptors, view.image_size, view.depth_keypoints, view.scales, view.camera.f)
        assert {t.dtype for t in tensors if t is not None} == {torch.float32}
        assert view.mask.dtype == torch.bool
    assert batch.T_0to1.R.dtype == batch.overlap.dtype == torch.float32
    assert batch.H_0to1 is None


def test_padded_to_the_longest_of_the_batch_and_no_more(folder: Path) -> None:
    dataset = opened(folder, "train")
    batch = dataset.batch(all_indices(dataset))
    for view in (batch.view0, batch.view1):
        assert view.mask.any(dim=0).all()
        assert len(set(view.mask.sum(dim=1).tolist())) > 2


def test_fewer_keypoints_are_the_strongest(folder: Path) -> None:
    whole, few = opened(folder, "train"), opened(folder, "train", num_keypoints=7)
    indices = all_indices(whole)
    a, b = whole.batch(indices).view0, few.batch(indices).view0
    assert b.keypoints.shape[1] == 7
    np.testing.assert_array_equal(b.keypoints, a.keypoints[:, :7])
    np.testing.assert_array_equal(b.mask.sum(1), a.mask.sum(1).clamp(max=7))


def test_the_epoch_changes_nothing(folder: Path) -> None:
    dataset = opened(folder, "train")
    indices = all_indices(dataset)
    later = np.column_stack([indices, np.full(len(indices), 5)])
    assert same(dataset.batch(later), dataset.batch(indices))
    assert len(dataset.thumbnails(later[:2])) == 2


def test_more_keypoints_than_stored_are_refused(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"num_keypoints = 21.*at most 20.*max_num_keypoints=21"):
        opened(folder, "train", num_keypoints=21)


def test_photographs_are_refused(folder: Path) -> None:
    reader = open_folder(folder)
    photographs = replace(reader.manifest, extractor=None, content="images")
    with pytest.raises(ConfigError, match=r"holds photographs.*data=shards data\.path=.*homographies"):
        PairDataset(ShardReader(reader.storage, photographs, None), "train", 20, 1)


def test_images_without_keypoints_and_batches_without_pairs(tmp_path: Path) -> None:
    export_features(FakeSource(), partial(FakeExtractor, 0), Storage(tmp_path), export_options())
    dataset = opened(tmp_path, "val")
    batch = dataset.batch(all_indices(dataset))
    assert batch.view0.keypoints.shape == (9, 0, 2) and batch.view1.descriptors.shape == (9, 0, DIM)
    for columns in (2, 3):
        empty = dataset.batch(np.zeros((0, columns), dtype=np.int64))
        assert len(empty) == 0
        assert empty.view0.keypoints.shape == (0, 0, 2) and empty.T_0to1.matrix.shape == (0, 4, 4)


def test_without_scale_and_orientation(tmp_path: Path) -> None:
    export_features(FakeSource(), partial(FakeExtractor, scale_ori=False), Storage(tmp_path), export_options())
    batch = opened(tmp_path, "val").batch(np.array([[0, 0]]))
    assert batch.view0.scales is None and batch.view0.oris is None


class EditedReader(ShardReader):
    """Gives `size` as the original size of the images in the shards named."""

    sizes: dict[str, tuple[int, int] | None]

    def read(self, entry: ShardEntry) -> Shard:
        shard, size = super().read(entry), self.sizes.get(entry.file)
        count = len(shard.names)
        sizes = None if size is None else np.arange(count, dtype=np.int32)[:, None] + np.array(size, dtype=np.int32)
        return replace(shard, original_size=sizes)


def test_original_size_is_given_where_it_is_known(folder: Path) -> None:
    plain = open_folder(folder)
    reader = EditedReader(plain.storage, plain.manifest, None)
    dataset = PairDataset(reader, "train", 20, 4)
    reader.sizes = {dataset.entries[1].file: (640, 480)}
    without = dataset.batch(np.array([[0, 0], [2, 0]]))
    assert without.view0.original_size is None and without[:1].view1.original_size is None
    batch = dataset.batch(np.array([[0, 0], [1, 0], [1, 1]]))
    pairs = reader.read(dataset.entries[1]).pairs
    for side, view in enumerate((batch.view0, batch.view1)):
        assert view.original_size is not None and view.original_size.dtype == torch.float32
        assert view.original_size[0].isnan().all()
        assert view.original_size[1:].tolist() == [[640 + i, 480 + i] for i in pairs[:2, side]]


def test_split_without_pairs(folder: Path) -> None:
    dataset = opened(folder, "test")
    assert dataset.num_pairs == 0 and all_indices(dataset).shape == (0, 2)


def test_thumbnails(folder: Path) -> None:
    dataset = opened(folder, "train", open_shards=2)
    images = dataset.thumbnails(all_indices(dataset)[[0, -1]])
    assert [image.shape for pair in images for image in pair] == [(48, 64)] * 4
    assert not np.array_equal(images[0][0], images[0][1])


def test_damaged_shard_is_named(folder: Path, tmp_path: Path) -> None:
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    dataset = opened(tmp_path, "val")
    path = tmp_path / dataset.entries[0].file
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(ShardError, match=rf"{path.name}: SHA-256 is .* prepare the data again"):
        dataset.batch(np.array([[0, 0]]))


def test_extractor_settings_without_a_limit_are_accepted(tmp_path: Path) -> None:
    manifest = export_features(FakeSource(), FakeExtractor, Storage(tmp_path), export_options())
    assert manifest.extractor is not None
    manifest = replace(manifest, extractor=replace(manifest.extractor, settings={}))
    assert PairDataset(ShardReader(Storage(tmp_path), manifest, None), "val", 4096, 1).num_pairs == 9


class WatchedReader(ShardReader):
    """Notes which shards are read and fetched; `before` is called first."""

    def __init__(self, reader: ShardReader) -> None:
        super().__init__(reader.storage, reader.manifest, reader.cache)
        self.reads: list[str] = []
        self.fetches: list[str] = []

    def before(self, entry: ShardEntry) -> None:
        """For tests to replace."""

    def read(self, entry: ShardEntry) -> Shard:
        self.reads.append(entry.file)
        self.before(entry)
        return super().read(entry)

    def fetch(self, entry: ShardEntry) -> None:
        self.fetches.append(entry.file)
        super().fetch(entry)


def touch(dataset: PairDataset, shards: Iterable[int]) -> None:
    for shard in shards:
        dataset.batch(np.array([[shard, 0]]))


def test_shards_are_read_late_and_few_are_kept(folder: Path) -> None:
    """One open shard and one more: 1 was not used for the longest time when 2 comes."""
    reader = WatchedReader(open_folder(folder))
    dataset = PairDataset(reader, "train", 20, open_shards=1)
    assert reader.reads == []
    names = [entry.file for entry in dataset.entries]
    touch(dataset, (0, 1, 0, 2, 0, 1))
    assert reader.reads == [names[0], names[1], names[2], names[1]]


def test_a_batch_does_not_displace_what_it_needs_itself(folder: Path) -> None:
    """0 and 3 are open; a batch of both and 1 and 2 reads 1 and 2 only, and then the last two it used stay."""
    reader = WatchedReader(open_folder(folder))
    dataset = PairDataset(reader, "train", 20, open_shards=1)
    touch(dataset, (0, 3))
    dataset.batch(np.array([[3, 0], [0, 0], [1, 0], [2, 0], [3, 1]]))
    assert reader.reads == [dataset.entries[shard].file for shard in (0, 3, 1, 2)]
    touch(dataset, (2, 3))
    assert len(reader.reads) == 4
    touch(dataset, [1])
    assert len(reader.reads) == 5


def test_several_threads_may_read(folder: Path) -> None:
    dataset = opened(folder, "train", open_shards=1)
    indices = all_indices(dataset)
    expected = dataset.batch(indices)
    results: list[PairBatch] = []
    threads = [threading.Thread(target=lambda: results.append(dataset.batch(indices))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 4 and all(same(result, expected) for result in results)


def test_a_slow_shard_holds_up_only_those_that_want_it(folder: Path) -> None:
    reader = WatchedReader(open_folder(folder))
    dataset = PairDataset(reader, "train", 20, open_shards=4)
    slow, begun, go_on = dataset.entries[0].file, threading.Event(), threading.Event()

    def before(entry: ShardEntry) -> None:
        if entry.file == slow:
            begun.set()
            assert go_on.wait(10)

    reader.before = before
    waiting = [threading.Thread(target=touch, args=(dataset, [0])) for _ in range(3)]
    for thread in waiting:
        thread.start()
    assert begun.wait(10)
    touch(dataset, (1, 2))
    assert all(thread.is_alive() for thread in waiting)
    go_on.set()
    for thread in waiting:
        thread.join(10)
    assert sorted(reader.reads) == sorted(dataset.entries[shard].file for shard in (0, 1, 2))


def test_an_error_is_not_remembered(folder: Path) -> None:
    reader = WatchedReader(open_folder(folder))
    dataset = PairDataset(reader, "train", 20, open_shards=4)

    def before(entry: ShardEntry) -> None:
        if len(reader.reads) == 1:
            raise ShardError("away for a moment")

    reader.before = before
    with pytest.raises(ShardError, match="away"):
        touch(dataset, [0])
    touch(dataset, [0, 0])
    assert len(reader.reads) == 2


def test_fetch_leaves_it_to_the_reader_where_shards_have_a_place(folder: Path, tmp_path: Path) -> None:
    for reader in (WatchedReader(open_folder(folder)), WatchedReader(open_bucket(folder, tmp_path))):
        dataset = PairDataset(reader, "train", 20, open_shards=2)
        dataset.fetch(1)
        assert reader.fetches == [dataset.entries[1].file] and reader.reads == []
    assert reader.storage.log == [dataset.entries[1].file]
    touch(dataset, [1])
    assert len(reader.storage.log) == 1


def test_fetch_keeps_shards_without_a_cache_until_they_are_used(folder: Path) -> None:
    """One open shard, one more, and one from fetch, whatever happens to the others."""
    reader = WatchedReader(open_bucket(folder))
    dataset = PairDataset(reader, "train", 20, open_shards=1)
    names = [entry.file for entry in dataset.entries]
    dataset.fetch(2)
    dataset.fetch(2)
    dataset.fetch(3)  # no room
    assert reader.reads == [names[2]]
    touch(dataset, [0, 1, 3, 0])
    assert reader.reads == [names[i] for i in (2, 0, 1, 3, 0)]
    touch(dataset, [2])
    assert len(reader.reads) == 5
    dataset.fetch(2)  # still there
    dataset.fetch(1)
    assert reader.reads[5:] == [names[1]]


@pytest.mark.parametrize("world_size", [1, 4])
@pytest.mark.parametrize("remote", [False, True])
def test_the_stream_reads_each_shard_about_once_per_epoch(world_size: int, remote: bool, tmp_path: Path) -> None:
    export_features(
        FakeSource(names=tuple((f"scene {i:02d}", "train") for i in range(40)), num_views=12, reach=4),
        FakeExtractor,
        Storage(tmp_path),
        export_options(),
    )
    reader = WatchedReader(open_bucket(tmp_path) if remote else open_folder(tmp_path))
    dataset = PairDataset(reader, "train", 20, open_shards=8)
    assert len(dataset.entries) == 40
    with closing(stream_batches(dataset, DataConfig(batch_size=16), 0, 0, world_size, start_pairs=0)) as batches:
        for _ in islice(batches, dataset.num_pairs // 16):
            pass
    assert 40 <= len(reader.reads) <= 52  # 8 at most are of the next epoch


@settings(max_examples=60, deadline=None)
@given(
    counts=st.lists(st.integers(0, 40), max_size=5),
    shape=st.sampled_from([(), (2,), (3,), (SERIAL_COPY // 16,), (SERIAL_COPY + 1,)]),
    extra=st.integers(0, 3),
    half=st.booleans(),
    seed=st.integers(0, 99),
)
def test_padded_is_a_plain_conversion(
    counts: list[int], shape: tuple[int, ...], extra: int, half: bool, seed: int
) -> None:
    """Every bit pattern of float16, subnormals, infinities and NaN too."""
    rng = np.random.default_rng(seed)
    parts = [rng.integers(0, 2**16, (count, *shape)).astype(np.uint16).view(np.float16) for count in counts]
    if not half:
        parts = [part.astype(np.float32) for part in parts]
    longest = max(counts, default=0) + extra
    result = padded(parts, longest, shape, fill=7).numpy()
    assert result.dtype == np.float32 and result.shape == (len(parts), longest, *shape)
    for rows, part in zip(result, parts, strict=True):
        np.testing.assert_array_equal(rows[: len(part)], part.astype(np.float32))
        assert (rows[len(part) :] == 7).all()


def test_relative_pose_is_exact_far_from_the_origin() -> None:
    rng = np.random.default_rng(0)
    rotations = np.linalg.qr(rng.normal(size=(2, 3, 3)))[0]
    rotations *= np.linalg.det(rotations)[:, None, None]
    centres = 1e6 + rng.normal(size=(2, 3))
    T = np.tile(np.eye(4), (2, 1, 1))
    T[:, :3, :3], T[:, :3, 3] = rotations, -np.einsum("bij,bj->bi", rotations, centres)
    exact = rotations[1] @ (centres[0] - centres[1])
    pose = Pose.from_matrix(torch.from_numpy(relative_pose(T[:1], T[1:]).astype(np.float32)))
    np.testing.assert_allclose(pose.t[0], exact, atol=1e-6)
    np.testing.assert_allclose(pose.R[0], rotations[1] @ rotations[0].T, atol=1e-6)

"""Shards to batches: content, padding, damage, memory, prefetch."""

from __future__ import annotations

import threading
from contextlib import closing
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from raylg.batch import PairBatch
from raylg.data import stream
from raylg.data.config import DataConfig
from raylg.data.export import export_features
from raylg.data.stream import PairDataset, evaluation_indices, relative_pose, stream_batches
from raylg.errors import ConfigError, ShardError
from raylg.geometry.camera import Pose
from tests.unit.data.scenes import DIM, FakeExtractor, FakeSource, export_options


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two training scenes in 4 shards (18 pairs), one for validation (9 pairs)."""
    out = tmp_path_factory.mktemp("shards")
    export_features(FakeSource(), FakeExtractor, out, export_options(images_per_shard=4))
    return out


def all_indices(dataset: PairDataset) -> np.ndarray:
    return evaluation_indices(dataset, None)


def test_batch_holds_what_was_extracted(folder: Path) -> None:
    source, extractor = FakeSource(), FakeExtractor()
    dataset = PairDataset(folder, "train", num_keypoints=20, open_shards=2)
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
                np.testing.assert_array_equal(stored[b, :count], expected)
                assert (stored[b, count:] == 0).all()
            assert view.depth_keypoints[b, count:].isnan().all()
            assert view.image_size[b].tolist() == [64, 48]
            assert view.camera.f[b].tolist() == [60, 61] and view.camera.c[b].tolist() == [31, 25]
        expected_pose = scene.views[ids[1]].T_w2c @ np.linalg.inv(scene.views[ids[0]].T_w2c)
        np.testing.assert_allclose(batch.T_0to1.matrix[b], expected_pose, atol=2e-6)


def test_dtypes(folder: Path) -> None:
    batch = PairDataset(folder, "val", 20, 1).batch(np.array([[0, 0]]))
    for view in (batch.view0, batch.view1):
        tensors = (view.keypoints, view.descriptors, view.image_size, view.depth_keypoints, view.scales, view.camera.f)
        assert {t.dtype for t in tensors if t is not None} == {torch.float32}
        assert view.mask.dtype == torch.bool
    assert batch.T_0to1.R.dtype == batch.overlap.dtype == torch.float32


def test_padded_to_the_longest_of_the_batch_and_no_more(folder: Path) -> None:
    dataset = PairDataset(folder, "train", 20, 9)
    batch = dataset.batch(all_indices(dataset))
    for view in (batch.view0, batch.view1):
        assert view.mask.any(dim=0).all()
        assert len(set(view.mask.sum(dim=1).tolist())) > 2


def test_fewer_keypoints_are_the_strongest(folder: Path) -> None:
    whole = PairDataset(folder, "train", 20, 9)
    few = PairDataset(folder, "train", 7, 9)
    indices = all_indices(whole)
    a, b = whole.batch(indices).view0, few.batch(indices).view0
    assert b.keypoints.shape[1] == 7
    np.testing.assert_array_equal(b.keypoints, a.keypoints[:, :7])
    np.testing.assert_array_equal(b.mask.sum(1), a.mask.sum(1).clamp(max=7))


def test_more_keypoints_than_stored_are_refused(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"num_keypoints = 21.*at most 20.*max_num_keypoints=21"):
        PairDataset(folder, "train", 21, 1)


def test_images_without_keypoints_and_batches_without_pairs(tmp_path: Path) -> None:
    export_features(FakeSource(), partial(FakeExtractor, 0), tmp_path, export_options())
    dataset = PairDataset(tmp_path, "val", 20, 1)
    batch = dataset.batch(all_indices(dataset))
    assert batch.view0.keypoints.shape == (9, 0, 2) and batch.view1.descriptors.shape == (9, 0, DIM)
    empty = dataset.batch(np.zeros((0, 2), dtype=np.int64))
    assert len(empty) == 0
    assert empty.view0.keypoints.shape == (0, 0, 2) and empty.T_0to1.matrix.shape == (0, 4, 4)


def test_without_scale_and_orientation(tmp_path: Path) -> None:
    export_features(FakeSource(), partial(FakeExtractor, scale_ori=False), tmp_path, export_options())
    batch = PairDataset(tmp_path, "val", 20, 1).batch(np.array([[0, 0]]))
    assert batch.view0.scales is None and batch.view0.oris is None


def test_split_without_pairs(folder: Path) -> None:
    dataset = PairDataset(folder, "test", 20, 1)
    assert dataset.num_pairs == 0 and all_indices(dataset).shape == (0, 2)


def test_thumbnails(folder: Path) -> None:
    dataset = PairDataset(folder, "train", 20, 2)
    indices = all_indices(dataset)[[0, -1]]
    images = dataset.thumbnails(indices)
    assert [image.shape for pair in images for image in pair] == [(48, 64)] * 4
    assert not np.array_equal(images[0][0], images[0][1])


def test_damaged_shard_is_named(folder: Path, tmp_path: Path) -> None:
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    dataset = PairDataset(tmp_path, "val", 20, 1)
    path = tmp_path / dataset.entries[0].file
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(ShardError, match=rf"{path.name}: SHA-256 is .* prepare the features again"):
        dataset.batch(np.array([[0, 0]]))


def test_shards_are_read_late_verified_once_and_few_are_kept(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read, verified = [], []
    monkeypatch.setattr(stream, "read_shard", lambda p, f=stream.read_shard: (read.append(p.name), f(p))[1])
    monkeypatch.setattr(stream, "verify_shard", lambda p, e, f=stream.verify_shard: (verified.append(p.name), f(p, e)))
    dataset = PairDataset(folder, "train", 20, open_shards=2)
    assert read == []
    names = [entry.file for entry in dataset.entries]
    for shard in (0, 1, 0, 2, 0, 1):
        dataset.batch(np.array([[shard, 0]]))
        assert len(dataset._open) <= 2
    assert read == [names[0], names[1], names[2], names[1]]
    assert sorted(verified) == sorted(set(read))


def same(a: PairBatch, b: PairBatch) -> bool:
    return a.names == b.names and torch.equal(a.view0.descriptors, b.view0.descriptors)


@pytest.mark.parametrize("prefetch", [1, 3])
def test_stream_follows_the_order_and_resumes(folder: Path, prefetch: int) -> None:
    dataset = PairDataset(folder, "train", 20, open_shards=2)
    config = DataConfig(batch_size=5, open_shards=2, prefetch_batches=prefetch)
    with closing(stream_batches(dataset, config, 0, 0, 1, start_pairs=0)) as batches:
        whole = list(islice(batches, 8))
    epoch = [name for batch in whole for name in batch.names][:18]
    assert len(set(epoch)) == 18
    with closing(stream_batches(dataset, config, 0, 0, 1, start_pairs=25)) as batches:
        assert all(same(a, b) for a, b in zip(islice(batches, 3), whole[5:], strict=True))
    for rank in range(2):
        with closing(stream_batches(dataset, config, 0, rank, 2, start_pairs=0)) as batches:
            for part, batch in zip(islice(batches, 8), whole, strict=True):
                assert part.names == batch.names[rank::2]


def reader_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("read-pairs")]


def test_stream_reads_ahead_a_bounded_number_and_ends_its_thread(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = PairDataset(folder, "train", 20, open_shards=2)
    calls: list[int] = []
    monkeypatch.setattr(dataset, "batch", lambda indices: calls.append(len(indices)) or len(calls))
    batches = stream_batches(dataset, DataConfig(batch_size=4, prefetch_batches=2), 0, 0, 1, start_pairs=0)
    assert reader_threads() == [] and calls == []
    assert next(batches) == 1 and next(batches) == 2
    batches.close()
    assert len(calls) <= 4
    assert reader_threads() == []


def test_errors_reach_the_consumer(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = PairDataset(folder, "train", 20, open_shards=2)
    original, calls = dataset.batch, []

    def third_fails(indices: np.ndarray) -> PairBatch:
        calls.append(1)
        if len(calls) == 3:
            raise ShardError("lost")
        return original(indices)

    monkeypatch.setattr(dataset, "batch", third_fails)
    batches = stream_batches(dataset, DataConfig(batch_size=4), 0, 0, 1, start_pairs=0)
    next(batches), next(batches)
    with pytest.raises(ShardError, match="lost"):
        next(batches)
    assert reader_threads() == []


def test_several_threads_may_read(folder: Path) -> None:
    dataset = PairDataset(folder, "train", 20, open_shards=1)
    indices = all_indices(dataset)
    expected = dataset.batch(indices)
    results: list[PairBatch] = []
    threads = [threading.Thread(target=lambda: results.append(dataset.batch(indices))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 4 and all(same(result, expected) for result in results)


def test_evaluation_indices_are_spread(folder: Path) -> None:
    dataset = PairDataset(folder, "train", 20, open_shards=1)
    whole = all_indices(dataset).tolist()
    assert len(whole) == 18 and whole == sorted(whole)
    some = evaluation_indices(dataset, 6).tolist()
    assert [whole.index(entry) for entry in some] == [0, 3, 6, 9, 12, 15]
    assert evaluation_indices(dataset, 100).tolist() == whole


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


def test_extractor_settings_without_a_limit_are_accepted(tmp_path: Path) -> None:
    options = export_options()
    options = replace(options, extractor=replace(options.extractor, settings={}))
    export_features(FakeSource(), FakeExtractor, tmp_path, options)
    assert PairDataset(tmp_path, "val", 4096, 1).num_pairs == 9

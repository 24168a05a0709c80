"""One scene: what a shard holds of an image, cameras and depth after resizing, continuing after an interruption."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest

from raylg.batch import Features
from raylg.data import export_scene
from raylg.data.export_notes import ShardNote, file_stem
from raylg.data.export_scene import ExportJob, ExportOptions, Extractor, ImageFeatures, Part, PartExporter, Progress
from raylg.data.resize import decode_thumbnail
from raylg.data.scene import Scene, SceneRef, SceneSource
from raylg.data.shard import read_shard
from raylg.data.storage import Storage
from raylg.errors import ShardError
from tests.unit.data.scenes import DIM, FakeExtractor, FakeScene, FakeSource, export_options

REF = SceneRef(name="one", split="train")
WHOLE = Part(scene=REF)


def nothing(progress: Progress) -> None:
    pass


def export(
    out: Path,
    source: SceneSource,
    extractor: Extractor,
    options: ExportOptions,
    part: Part = WHOLE,
    tell: Callable[[Progress], None] = nothing,
) -> tuple[ShardNote, ...]:
    job = ExportJob(
        source=source, make_extractor=lambda: extractor, out=Storage(out), options=options, token="of this test"
    )
    return PartExporter(job, tell).export(part)


@dataclass(frozen=True)
class Changed:
    """A source with one scene, some of whose attributes are others."""

    changes: dict[str, object]
    source: FakeSource = field(default_factory=FakeSource)

    def scenes(self) -> Sequence[SceneRef]:
        return [REF]

    def load(self, scene: SceneRef) -> Scene:
        return replace(self.source.load(scene), **self.changes)


@dataclass(frozen=True)
class WithDepths(FakeSource):
    """Depth of some images is another one."""

    depths: tuple[tuple[int, np.ndarray | None], ...] = ()

    def load(self, scene: SceneRef) -> FakeScene:
        loaded, depth = super().load(scene), FakeScene.depth
        object.__setattr__(loaded, "depth", lambda index: dict(self.depths).get(index, depth(loaded, index)))
        return loaded


def fixed_features(keypoints: list[list[float]], **changes: np.ndarray) -> Features:
    count = len(keypoints)
    features = Features(
        keypoints=np.array(keypoints, dtype=np.float32).reshape(-1, 2),
        keypoint_scores=np.linspace(1, 0, count, dtype=np.float32),
        descriptors=np.ones((count, DIM), dtype=np.float16),
    )
    return replace(features, **changes)


@pytest.mark.parametrize(
    ("resize", "enlarge", "width", "height"),
    [
        (None, False, 64, 48),
        (None, True, 64, 48),
        (32, False, 32, 24),
        (50, False, 50, 37),  # 37.5 is cut to 37
        (50, True, 50, 37),
        (90, False, 64, 48),
        (90, True, 90, 67),
    ],
)
def test_camera_depth_and_size_follow_the_resize(
    tmp_path: Path, resize: int | None, enlarge: bool, width: int, height: int
) -> None:
    @dataclass
    class AtFixedShare:
        def __call__(self, image: np.ndarray) -> Features:
            height, width = image.shape[:2]
            return fixed_features([[0.75 * width, 0.5 * height], [0.1 * width, 0.5 * height], [width, height]])

    options = replace(export_options(resize=resize), enlarge=enlarge)
    (note,) = export(tmp_path, FakeSource(), AtFixedShare(), options)
    shard = read_shard(tmp_path / note.entry.file)
    assert shard.image_size.tolist() == [[width, height]] * 6
    assert shard.original_size.tolist() == [[64, 48]] * 6
    scale = np.array([width / 64, height / 48] * 2)
    np.testing.assert_allclose(shard.camera, np.tile(np.array([60, 61, 31, 25]) * scale, (6, 1)))
    depth = shard.depth_keypoints.reshape(6, 3)
    assert np.isnan(depth[0]).all()  # this image has no depth map
    np.testing.assert_allclose(depth[1:, 0], 1.75, atol=1e-6)
    assert np.isnan(depth[1:, 1]).all()
    np.testing.assert_allclose(depth[1:, 2], 2, atol=0.01)


def test_shard_content(tmp_path: Path) -> None:
    source, extractor = FakeSource(), FakeExtractor()
    (note,) = export(tmp_path, source, extractor, export_options())
    assert (note.scene, note.index, note.num_shards, note.num_images) == (REF, 0, 1, 6)
    shard, scene = read_shard(tmp_path / note.entry.file), source.load(REF)
    np.testing.assert_array_equal(shard.pairs, scene.pairs)
    np.testing.assert_array_equal(shard.overlap, scene.overlap)
    assert shard.names == tuple(view.name for view in scene.views)
    for i, view in enumerate(scene.views):
        features, rows = extractor(scene.image(i)), slice(shard.offsets[i], shard.offsets[i + 1])
        np.testing.assert_array_equal(shard.keypoints[rows], features.keypoints)
        np.testing.assert_array_equal(shard.descriptors[rows], features.descriptors)
        np.testing.assert_array_equal(shard.scales[rows], features.scales)
        np.testing.assert_array_equal(shard.oris[rows], features.oris)
        np.testing.assert_array_equal(shard.T_w2c[i], view.T_w2c)
        assert decode_thumbnail(shard.thumbnails[i], "").shape == (48, 64)


def test_large_scene_is_divided(tmp_path: Path) -> None:
    log = tmp_path / "log"
    source = FakeSource(num_views=20, reach=3, log=log)
    notes = export(tmp_path, source, FakeExtractor(), export_options(images_per_shard=7))
    shards = [read_shard(tmp_path / note.entry.file) for note in notes]
    assert len(shards) > 2 and all(shard.num_images <= 7 for shard in shards)
    named = [(s.names[i], s.names[j]) for s in shards for i, j in s.pairs]
    scene = source.load(REF)
    assert sorted(named) == sorted((scene.views[i].name, scene.views[j].name) for i, j in scene.pairs)
    assert len(log.read_text().split()) == 20  # each image is read once, though in several shards
    by_name = {}
    for shard in shards:
        for i, name in enumerate(shard.names):
            content = shard.keypoints[shard.offsets[i] : shard.offsets[i + 1]].tobytes()
            assert by_name.setdefault(name, content) == content


@pytest.mark.parametrize("count", [2, 3, 5, 40])
def test_parts_together_give_the_same_shards(tmp_path: Path, count: int) -> None:
    source, options = FakeSource(num_views=30, reach=3), export_options(images_per_shard=7)
    whole = export(tmp_path / "whole", source, FakeExtractor(), options)
    told: dict[int, Progress] = {}
    notes: list[ShardNote] = []
    for index in reversed(range(count)):
        part = Part(scene=REF, index=index, count=count)
        notes = [
            *export(
                tmp_path / "parts", source, FakeExtractor(), options, part, lambda p: told.update({p.part.index: p})
            ),
            *notes,
        ]
    assert tuple(notes) == whole
    assert sorted(path.name for path in (tmp_path / "parts").glob("*.h5")) == sorted(note.entry.file for note in whole)
    assert sum(progress.num_done for progress in told.values()) == 30
    assert {(progress.num_images, progress.num_shards) for progress in told.values()} == {(30, len(whole))}
    assert len(Part(scene=REF, count=count).shards(len(whole))) >= 1


def test_memory_is_bounded_when_all_images_are_paired_with_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alive: weakref.WeakSet[ImageFeatures] = weakref.WeakSet()
    most = 0

    class Counted(ImageFeatures):
        __hash__ = object.__hash__

        def __init__(self, *args: object, **kwargs: object) -> None:
            nonlocal most
            super().__init__(*args, **kwargs)
            alive.add(self)
            most = max(most, len(alive))

    monkeypatch.setattr(export_scene, "ImageFeatures", Counted)
    source = FakeSource(num_views=60, reach=60)
    notes = export(tmp_path, source, FakeExtractor(), export_options(images_per_shard=6))
    assert sum(note.entry.num_pairs for note in notes) == 60 * 59 // 2
    assert 6 < most <= export_scene.KEPT_SHARDS * 6


def test_images_without_a_pair_are_left_out(tmp_path: Path) -> None:
    source = Changed({"pairs": np.array([[1, 4]], np.int32), "overlap": np.array([0.5], np.float32)})
    (note,) = export(tmp_path, source, FakeExtractor(), export_options())
    shard = read_shard(tmp_path / note.entry.file)
    assert shard.names == ("01.jpg", "04.jpg") and shard.pairs.tolist() == [[0, 1]]
    assert note.num_images == 2


def test_scene_without_pairs_has_no_shards(tmp_path: Path) -> None:
    assert export(tmp_path, FakeSource(reach=0), FakeExtractor(), export_options()) == ()


def test_interrupted_scene_continues_with_the_next_shard(tmp_path: Path) -> None:
    part = tmp_path / "part"
    log = tmp_path / "log"
    source = FakeSource(num_views=20, reach=3, log=log)
    options = export_options(images_per_shard=7)
    expected = export(tmp_path / "whole", source, FakeExtractor(), options)
    log.unlink()

    class Killed(Exception):
        pass

    def stop(progress: Progress) -> None:
        if progress.num_done > 12:
            raise Killed

    with pytest.raises(Killed):
        export(part, source, FakeExtractor(), options, tell=stop)
    read_before = len(log.read_text().split())
    told: list[tuple[int, int]] = []

    def again() -> tuple[ShardNote, ...]:
        log.write_text("")
        return export(part, source, FakeExtractor(), options, tell=lambda p: told.append((p.num_done, p.num_images)))

    assert again() == expected
    assert 20 - read_before <= len(log.read_text().split()) < 20
    assert 0 < told[0][0] < told[-1][0] == told[-1][1] == 20
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    assert again() == expected
    assert log.read_text() == ""


@pytest.mark.parametrize("damage", ["missing", "cut", "not noted", "half a note", "of other options"])
def test_what_is_not_whole_is_made_again(tmp_path: Path, damage: str) -> None:
    source, options = FakeSource(num_views=20, reach=3), export_options(images_per_shard=7)
    expected = export(tmp_path, source, FakeExtractor(), options)
    content = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    shard = tmp_path / expected[1].entry.file
    note = tmp_path / ".progress" / f"{shard.stem}.json"
    if damage == "missing":
        shard.unlink()
    elif damage == "cut":
        shard.write_bytes(shard.read_bytes()[:100])
    elif damage == "not noted":
        note.unlink()
    elif damage == "half a note":
        note.write_bytes(note.read_bytes()[:50])
    else:
        note.write_text(note.read_text().replace("abc", "xyz"))
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.h5")}
    assert export(tmp_path, source, FakeExtractor(), options) == expected
    assert {path: path.read_bytes() for path in content} == content
    after = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.h5")}
    assert [path.name for path in after if after[path] != before.get(path)] == [shard.name]


VIEWS = FakeSource(num_views=20, reach=3).load(REF).views
PAIRS = FakeSource(num_views=20, reach=3).load(REF).pairs


@pytest.mark.parametrize(
    "changed",
    [
        Changed({"views": [replace(v, name=f"new {v.name}") for v in VIEWS]}, FakeSource(num_views=20, reach=3)),
        Changed({"views": [replace(v, camera=v.camera * 2) for v in VIEWS]}, FakeSource(num_views=20, reach=3)),
        Changed({"views": [replace(v, T_w2c=v.T_w2c.T) for v in VIEWS]}, FakeSource(num_views=20, reach=3)),
        Changed({"overlap": np.full(len(PAIRS), 0.4, np.float32)}, FakeSource(num_views=20, reach=3)),
        Changed({"pairs": np.where(PAIRS == 19, 1, PAIRS)}, FakeSource(num_views=20, reach=3)),
        FakeSource(num_views=21, reach=3),
        FakeSource(num_views=20, reach=2),
    ],
    ids=["names", "cameras", "poses", "overlap", "pairs", "another image", "fewer pairs"],
)
def test_shards_of_other_pairs_are_made_again(tmp_path: Path, changed: SceneSource) -> None:
    """As when depth maps or images come into a scene after an interruption: two lists of pairs must not be mixed."""
    options = export_options(images_per_shard=7)
    export(tmp_path / "continued", FakeSource(num_views=20, reach=3), FakeExtractor(), options)
    assert export(tmp_path / "continued", changed, FakeExtractor(), options) == export(
        tmp_path / "whole", changed, FakeExtractor(), options
    )


def test_images_without_a_pair_change_nothing(tmp_path: Path) -> None:
    source, options, log = FakeSource(num_views=20, reach=3), export_options(images_per_shard=7), tmp_path / "log"
    notes = export(tmp_path / "out", source, FakeExtractor(), options)

    class OneMore(FakeScene):
        def image(self, index: int) -> np.ndarray:
            return super().image(index - 1)

        def depth(self, index: int) -> np.ndarray | None:
            return super().depth(index - 1)

    class WithOneMore(FakeSource):
        def load(self, scene: SceneRef) -> FakeScene:
            loaded = super().load(scene)
            views = [replace(VIEWS[0], name="new.jpg"), *VIEWS]
            return OneMore(views, loaded.pairs + 1, loaded.overlap, loaded.seed, loaded.log)

    more = WithOneMore(num_views=20, reach=3, log=log)
    assert export(tmp_path / "out", more, FakeExtractor(), options) == notes
    assert not log.exists()


@pytest.mark.parametrize("depth", [None, np.ones((48, 64), np.float32)])
def test_shards_are_made_again_where_depth_has_come_or_gone(tmp_path: Path, depth: np.ndarray | None) -> None:
    options, log = export_options(images_per_shard=7), tmp_path / "log"
    image = 0 if depth is not None else 19
    before = export(tmp_path / "out", WithDepths(num_views=20, reach=3), FakeExtractor(), options)
    changed = WithDepths(num_views=20, reach=3, depths=((image, depth),), log=log)
    after = export(tmp_path / "out", changed, FakeExtractor(), options)
    holding = [VIEWS[image].name in read_shard(tmp_path / "out" / note.entry.file).names for note in before]
    assert 0 < sum(holding) < len(holding)
    assert [one != other for one, other in zip(before, after, strict=True)] == holding
    log.unlink()
    assert export(tmp_path / "out", changed, FakeExtractor(), options) == after
    assert not log.exists()


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (fixed_features([[1, 1]], descriptors=np.zeros((1, 3), np.float16)), r"descriptors of shape \[1, 3\]"),
        (fixed_features([[1, 1]], keypoint_scores=np.ones((1, 1), np.float32)), r"keypoint_scores of shape \[1, 1\]"),
        (fixed_features([[1, 1]], scales=np.ones(2, np.float32)), r"scales of shape \[2\], expected \[1\]"),
        (fixed_features([[1, 1], [2, 2]], keypoint_scores=np.array([0, 1], np.float32)), "not sorted"),
        (fixed_features([[np.nan, 1]]), "keypoints that are not finite"),
        (fixed_features([[1, 1]], keypoint_scores=np.array([np.nan], np.float32)), "keypoint_scores that are not fin"),
        (fixed_features([[1, 1]], oris=np.array([np.inf], np.float32)), "oris that are not finite"),
        (fixed_features([[1, 1], [64.5, 2]]), "keypoints outside of the 64 x 48 pixels"),
        (fixed_features([[1, -0.01]]), "keypoints outside"),
        (fixed_features([[1, 1]] * 21), "21 keypoints, more than max_num_keypoints = 20"),
    ],
)
def test_extractor_that_breaks_its_contract(tmp_path: Path, features: Features, message: str) -> None:
    with pytest.raises(ShardError, match=rf"image 00\.jpg: .*{message}"):
        export(tmp_path, FakeSource(), lambda image: features, export_options())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"overlap": np.zeros(3, np.float32)}, "9 pairs, but overlap of 3"),
        ({"pairs": np.full((9, 2), 6, np.int32)}, "index images up to 6, but there are 6"),
        ({"views": [FakeSource().load(REF).views[0]] * 6}, r"repeated: 00\.jpg"),
        (
            {"views": [replace(v, image_size=(48, 64)) for v in FakeSource().load(REF).views]},
            r"expected uint8 \[64, 48",
        ),
    ],
)
def test_scene_that_breaks_its_contract(tmp_path: Path, change: dict[str, object], message: str) -> None:
    with pytest.raises(ShardError, match=message):
        export(tmp_path, Changed(change), FakeExtractor(), export_options())


@pytest.mark.parametrize(
    ("depth", "message"),
    [
        (np.ones((48, 64, 1), np.float32), r"depth map has the shape \[48, 64, 1\], expected \[H, W\]"),
        (np.ones(64 * 48, np.float32), r"depth map has the shape \[3072\]"),
        (np.ones((0, 64), np.float32), r"depth map has the shape \[0, 64\]"),
        (np.ones((64, 48), np.float32), "64 x 48 pixels, but its depth map has 48 x 64"),
        (np.full((48, 64), np.inf, np.float32), "infinite values; give 0 where"),
    ],
)
def test_depth_that_does_not_cover_its_image(tmp_path: Path, depth: np.ndarray, message: str) -> None:
    with pytest.raises(ShardError, match=rf"image 03\.jpg: .*{message}"):
        export(tmp_path, WithDepths(depths=((3, depth),)), FakeExtractor(), export_options())


def test_depth_of_another_resolution(tmp_path: Path) -> None:
    (note,) = export(
        tmp_path, WithDepths(depths=((3, np.full((96, 128), 5.0)),)), FakeExtractor(), export_options(resize=32)
    )
    shard = read_shard(tmp_path / note.entry.file)
    assert (shard.depth_keypoints[shard.offsets[3] : shard.offsets[4]] == 5).all()
    assert shard.offsets[4] > shard.offsets[3]


def test_file_stems_are_safe_and_differ() -> None:
    names = ["one", "a/b", "a-b", "a b", "../x", ".hidden", "ä"]
    stems = [file_stem(name) for name in names]
    assert stems[0] == "one" and len(set(stems)) == len(names)
    assert all(stem.isascii() and "/" not in stem and not stem.startswith(".") for stem in stems)

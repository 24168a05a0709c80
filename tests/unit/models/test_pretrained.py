"""Weights: names, strictness, hashes, licences, files of other projects."""

import hashlib
import io
import logging
import subprocess
import urllib.error
import urllib.request
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from raylg.errors import CheckpointError, ConfigError, EnvironmentUnfitError
from raylg.models import published
from raylg.models.config import ExtractorConfig, LightGlueConfig
from raylg.models.extractor import make_extractor
from raylg.models.identity import extractor_identity
from raylg.models.lightglue import LightGlue
from raylg.models.pretrained import export_lightglue, load_lightglue_weights, load_superpoint, read_state_dict
from raylg.models.published import SUPERPOINT_WEIGHTS, git_blob_id, resolve_superpoint
from raylg.models.superpoint import Layout, MagicLeapNetwork, OpenNetwork, SuperPoint

SMALL = LightGlueConfig(descriptor_dim=32, num_layers=2, num_heads=2)


def matcher(seed: int, config: LightGlueConfig = SMALL, input_dim: int = 16) -> LightGlue:
    torch.manual_seed(seed)
    return LightGlue(config, input_dim=input_dim, add_scale_ori=False)


def assert_equal_weights(a: LightGlue, b: LightGlue) -> None:
    for name, value in a.state_dict().items():
        assert torch.equal(value, b.state_dict()[name]), name


def old_names(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """As in the files that were released with the paper."""
    renamed = {}
    for name, value in state.items():
        parts = name.split(".")
        if parts[0] == "transformers":
            parts = [parts[2], parts[1], *parts[3:]]
        renamed[".".join(parts)] = value
    return renamed


@pytest.mark.parametrize("kind", ["official", "with thresholds", "old", "prefixed", "glue-factory"])
def test_files_of_every_origin_load(tmp_path: Path, kind: str) -> None:
    source, target = matcher(0), matcher(1)
    state = dict(source.state_dict())
    content: dict[str, object] = {
        "official": state,
        "with thresholds": state | {"confidence_thresholds": torch.ones(2)},
        "old": old_names(state),
        "prefixed": {f"matcher.{name}": value for name, value in old_names(state).items()},
        "glue-factory": {
            "model": {f"matcher.{name}": value for name, value in state.items()}
            | {"extractor.conv1a.weight": torch.zeros(1)},
            "epoch": 3,
            "eval": {"loss": np.float64(0.3), "count": np.int64(4)},
            "conf": {"lr": 1e-4},
        },
    }[kind]
    path = tmp_path / ("checkpoint.tar" if kind == "glue-factory" else "weights.pth")
    torch.save(content, path)
    load_lightglue_weights(target, path)
    assert_equal_weights(source, target)


def test_export_holds_the_official_names(tmp_path: Path) -> None:
    source, target = matcher(0), matcher(1)
    path = tmp_path / "new" / "lightglue.pth"
    export_lightglue(source, path)
    state = torch.load(path, weights_only=True)
    assert set(state) == set(source.state_dict()) | {"confidence_thresholds"}
    torch.testing.assert_close(state["confidence_thresholds"], torch.tensor([0.9, 0.8 + 0.1 * float(np.exp(-2))]))
    load_lightglue_weights(target, path)
    assert_equal_weights(source, target)
    assert [p.name for p in path.parent.iterdir()] == ["lightglue.pth"]  # no temporary file stays


def test_another_architecture_is_refused_with_the_settings_that_fit(tmp_path: Path) -> None:
    export_lightglue(matcher(0), tmp_path / "a.pth")
    target = matcher(1, replace(SMALL, descriptor_dim=64, num_layers=3, num_heads=4))
    before = {name: value.clone() for name, value in target.state_dict().items()}
    with pytest.raises(CheckpointError) as caught:
        load_lightglue_weights(target, tmp_path / "a.pth")
    message = str(caught.value)
    for part in (
        "a.pth",
        "missing: transformers.2.self_attn.Wqkv.weight",
        "of another shape: input_proj.weight (32, 16) instead of (64, 16)",
        "model.matcher.descriptor_dim=32 model.matcher.num_layers=2 model.matcher.num_heads=2",
        "descriptors of size 16 without scale and orientation",
    ):
        assert part in message
    assert all(torch.equal(value, before[name]) for name, value in target.state_dict().items())


def test_only_the_number_of_heads_differs(tmp_path: Path) -> None:
    export_lightglue(matcher(0), tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=r"num_heads=2"):
        load_lightglue_weights(matcher(1, replace(SMALL, num_heads=4)), tmp_path / "a.pth")


def test_a_surplus_tensor_is_refused(tmp_path: Path) -> None:
    torch.save(dict(matcher(0).state_dict()) | {"surplus": torch.zeros(1)}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match="1 unexpected: surplus"):
        load_lightglue_weights(matcher(1), tmp_path / "a.pth")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "holds no state dict"),
        ({"lr": 1.0}, "holds no state dict"),
        ({"a": torch.zeros(1)}, "no LightGlue file"),
        ({"model": Path("x")}, "cannot be read as weights"),  # a pickled object, which could run code
    ],
)
def test_other_content_is_refused(tmp_path: Path, content: object, message: str) -> None:
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=message):
        load_lightglue_weights(matcher(0), tmp_path / "a.pth")


def test_unreadable_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such weights file"):
        read_state_dict(tmp_path / "absent.pth")
    export_lightglue(matcher(0), tmp_path / "cut.pth")
    (tmp_path / "cut.pth").write_bytes((tmp_path / "cut.pth").read_bytes()[:500])
    (tmp_path / "text.pth").write_text("<html>not found</html>")
    (tmp_path / "empty.pth").touch()
    for name in ("cut.pth", "text.pth", "empty.pth"):
        with pytest.raises(CheckpointError, match=rf"{name}: cannot be read as weights"):
            read_state_dict(tmp_path / name)


def superpoint_file(path: Path, layout: Layout, seed: int = 0) -> Path:
    torch.manual_seed(seed)
    network = OpenNetwork() if layout == "open" else MagicLeapNetwork()
    torch.save(network.state_dict(), path)
    return path


@pytest.mark.parametrize("layout", ["open", "magicleap"])
def test_superpoint_recognises_its_layout(tmp_path: Path, layout: Layout) -> None:
    path = superpoint_file(tmp_path / "weights.pth", layout)
    config = ExtractorConfig(name="superpoint", weights=str(path), max_num_keypoints=20)
    extractor = make_extractor(config)
    assert isinstance(extractor, SuperPoint)
    assert type(extractor.network) is (OpenNetwork if layout == "open" else MagicLeapNetwork)
    saved = torch.load(path, weights_only=True)
    assert all(torch.equal(value, saved[name]) for name, value in extractor.network.state_dict().items())
    identity = extractor_identity(config)
    assert identity["weights_sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert identity["settings"]["nms_radius"] == 3 and identity["descriptor_dim"] == 256


def test_superpoint_is_loaded_strictly(tmp_path: Path) -> None:
    path = superpoint_file(tmp_path / "weights.pth", "open")
    state = torch.load(path, weights_only=True)
    state.pop("detector.1.bn.running_mean")
    torch.save(state, path)
    with pytest.raises(CheckpointError, match=r"1 missing: detector\.1\.bn\.running_mean"):
        load_superpoint(ExtractorConfig(name="superpoint", weights=str(path)))


@pytest.mark.parametrize(
    ("weights", "message"),
    [(None, "superpoint needs weights"), ("opne", "did you mean 'open'"), ("/no/where.pth", "no such file")],
)
def test_superpoint_without_a_file(weights: str | None, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_extractor(ExtractorConfig(name="superpoint", weights=weights))


def test_git_blob_id_is_that_of_git(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"some\0bytes\n")
    expected = subprocess.run(["git", "hash-object", "a"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert git_blob_id(b"some\0bytes\n") == expected.stdout.strip()


@pytest.fixture
def published_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A stand-in for the published file and the network; the list counts the downloads."""
    content = superpoint_file(tmp_path / "published.pth", "open").read_bytes()
    known = replace(SUPERPOINT_WEIGHTS["open"], git_blob=git_blob_id(content))
    downloads: list[str] = []

    def urlopen(url: str, timeout: float) -> io.BytesIO:
        downloads.append(url)
        return io.BytesIO(content)

    monkeypatch.setitem(published.SUPERPOINT_WEIGHTS, "open", known)
    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return downloads


def test_known_weights_are_downloaded_once(published_file: list[str], caplog: pytest.LogCaptureFixture) -> None:
    config = ExtractorConfig(name="superpoint", weights="open")
    with caplog.at_level(logging.INFO):
        assert isinstance(load_superpoint(config), SuperPoint)
        load_superpoint(config)
    assert len(published_file) == 1 and published_file[0].startswith("https://github.com/rpautrat/SuperPoint/")
    assert caplog.text.count("licence: MIT") == 1
    assert [p.name for p in resolve_superpoint(config).parent.iterdir()] == ["superpoint_v6_from_tf.pth"]


def test_a_wrong_file_is_not_kept(published_file: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(urllib.request, "urlopen", lambda url, timeout: io.BytesIO(b"<html>login</html>"))
    with pytest.raises(ConfigError, match=r"18 bytes with git blob [0-9a-f]{40}, but the published file is") as caught:
        resolve_superpoint(ExtractorConfig(name="superpoint", weights="open"))
    assert caught.value.exit_code == 2
    assert not published.weights_folder().exists()


def test_a_file_that_changed_in_the_cache_is_noticed(published_file: list[str]) -> None:
    config = ExtractorConfig(name="superpoint", weights="open")
    with resolve_superpoint(config).open("ab") as file:
        file.write(b"x")
    with pytest.raises(ConfigError, match="delete the file"):
        resolve_superpoint(config)


def test_no_network(published_file: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(url: str, timeout: float) -> io.BytesIO:
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    with pytest.raises(EnvironmentUnfitError, match=r"no route to host.*download it by hand to") as caught:
        resolve_superpoint(ExtractorConfig(name="superpoint", weights="open"))
    assert caught.value.exit_code == 3

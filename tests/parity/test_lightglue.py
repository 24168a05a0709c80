"""LightGlue against kornia's and against reference outputs, on the same random weights."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from raylg.batch import Matches, View
from raylg.geometry.camera import Camera
from raylg.models.config import LightGlueConfig
from raylg.models.lightglue import LightGlue, log_assignment
from raylg.models.pretrained import export_lightglue, load_lightglue_weights


@pytest.fixture(autouse=True)
def _attention_switches() -> Iterator[None]:
    """Building kornia's matcher turns flash attention off for the whole process."""
    enabled = torch.backends.cuda.flash_sdp_enabled()
    yield
    torch.backends.cuda.enable_flash_sdp(enabled)


def make_view(keypoints: torch.Tensor, descriptors: torch.Tensor, image_size: torch.Tensor) -> View:
    batch, num = keypoints.shape[:2]
    generator = torch.Generator().manual_seed(num)
    return View(
        keypoints=keypoints,
        descriptors=descriptors,
        mask=torch.ones(batch, num, dtype=torch.bool),
        image_size=image_size,
        camera=Camera(torch.full((batch, 2), 500.0), image_size / 2),
        depth_keypoints=torch.full((batch, num), torch.nan),
        scales=torch.rand(batch, num, generator=generator) * 8,
        oris=(torch.rand(batch, num, generator=generator) - 0.5) * 6,
    )


def random_views(batch: int, num0: int, num1: int, dim: int) -> tuple[View, View]:
    """Two views of which 3 in 4 keypoints are the same with noise."""
    generator = torch.Generator().manual_seed(num0 + num1)
    image_size = torch.tensor([[640.0, 480.0], [400.0, 700.0]])[:batch]
    relative = torch.rand(batch, num0, 2, generator=generator)
    descriptors = F.normalize(torch.randn(batch, num0, dim, generator=generator), dim=-1)
    again = torch.randperm(num0, generator=generator)[: num1 * 3 // 4]
    extra = num1 - len(again)
    relative1 = torch.cat([relative[:, again], torch.rand(batch, extra, 2, generator=generator)], dim=1)
    other = F.normalize(torch.randn(batch, num1, dim, generator=generator), dim=-1)
    descriptors1 = torch.cat([descriptors[:, again], other[:, len(again) :]], dim=1) + 0.3 * other
    return (
        make_view(relative * image_size[:, None], descriptors, image_size),
        make_view(relative1 * image_size[:, None], F.normalize(descriptors1, dim=-1), image_size),
    )


def as_kornia(view: View) -> dict[str, torch.Tensor | None]:
    return {
        "keypoints": view.keypoints,
        "descriptors": view.descriptors,
        "image_size": view.image_size,
        "scales": view.scales,
        "oris": view.oris,
    }


def pair_of_models(config: LightGlueConfig, input_dim: int, path: Path, *, add_scale_ori: bool = False):
    """Ours and kornia's with the same weights, which travel through an exported file."""
    feature = pytest.importorskip("kornia.feature", reason="kornia, the oracle, is not installed")
    torch.manual_seed(0)
    ours = LightGlue(config, input_dim=input_dim, add_scale_ori=add_scale_ori).eval()
    with torch.no_grad():
        for assignment in ours.log_assignment:  # random weights alone give almost uniform assignments
            assignment.final_proj.weight += 2 * torch.eye(config.descriptor_dim)
    theirs = feature.LightGlue(
        features=None,
        input_dim=input_dim,
        descriptor_dim=config.descriptor_dim,
        n_layers=config.num_layers,
        num_heads=config.num_heads,
        add_scale_ori=add_scale_ori,
        filter_threshold=config.filter_threshold,
        depth_confidence=config.depth_confidence,
        width_confidence=config.width_confidence,
        flash=False,
    ).eval()
    export_lightglue(ours, path / "lightglue.pth")
    theirs.load_state_dict(torch.load(path / "lightglue.pth", weights_only=True), strict=True)
    return ours, theirs


def assert_same(matches: Matches, reference: dict[str, torch.Tensor]) -> None:
    assert torch.equal(matches.matches0, reference["matches0"])
    assert torch.equal(matches.matches1, reference["matches1"])
    torch.testing.assert_close(matches.matching_scores0, reference["matching_scores0"], atol=1e-5, rtol=0)
    torch.testing.assert_close(matches.matching_scores1, reference["matching_scores1"], atol=1e-5, rtol=0)
    assert (matches.matches0 >= 0).any()


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize(
    ("num_layers", "width", "num_heads", "input_dim"),
    [(2, 64, 4, 64), (9, 64, 2, 128), (6, 96, 1, 64), (3, 256, 4, 256)],
)
def test_matches_equal_kornia(
    tmp_path: Path, batch: int, num_layers: int, width: int, num_heads: int, input_dim: int
) -> None:
    config = LightGlueConfig(descriptor_dim=width, num_layers=num_layers, num_heads=num_heads, filter_threshold=1e-3)
    ours, theirs = pair_of_models(config, input_dim, tmp_path)
    view0, view1 = random_views(batch, 90, 70, input_dim)
    with torch.no_grad():
        reference = theirs({"image0": as_kornia(view0), "image1": as_kornia(view1)})
        last = log_assignment(ours(view0, view1)[-1], view0.mask, view1.mask)
    assert_same(ours.match(view0, view1), reference)
    torch.testing.assert_close(last, reference["log_assignment"], atol=5e-5, rtol=1e-5)


def test_sift_variant_equals_kornia(tmp_path: Path) -> None:
    config = LightGlueConfig(descriptor_dim=64, num_layers=4, filter_threshold=1e-3)
    ours, theirs = pair_of_models(config, 128, tmp_path, add_scale_ori=True)
    view0, view1 = random_views(2, 80, 60, 128)
    with torch.no_grad():
        reference = theirs({"image0": as_kornia(view0), "image1": as_kornia(view1)})
    assert_same(ours.match(view0, view1), reference)


@pytest.mark.parametrize(("depth_confidence", "width_confidence"), [(0.5, -1.0), (-1.0, 0.5), (0.95, 0.5), (0.5, 0.45)])
def test_adaptive_inference_equals_kornia(tmp_path: Path, depth_confidence: float, width_confidence: float) -> None:
    config = LightGlueConfig(
        descriptor_dim=64,
        num_layers=5,
        filter_threshold=1e-3,
        depth_confidence=depth_confidence,
        width_confidence=width_confidence,
    )
    ours, theirs = pair_of_models(config, 64, tmp_path)
    with torch.no_grad():
        for model in (ours, theirs):
            for layer, head in enumerate(model.token_confidence):
                # Logits around the thresholds (logit(0.85) = 1.7), rising with depth so that an exit comes.
                head.token[0].weight *= 3
                head.token[0].bias.fill_(1.2 + 0.3 * layer)
            for head in model.log_assignment:
                head.matchability.weight *= 3
                head.matchability.bias.fill_(0.5)
    view0, view1 = random_views(1, 90, 70, 64)
    with torch.no_grad():
        reference = theirs({"image0": as_kornia(view0), "image1": as_kornia(view1)})
    matches = ours.match(view0, view1)
    assert_same(matches, reference)
    assert matches.num_layers_used.tolist() == [reference["stop"]]
    if depth_confidence == 0.5:
        assert reference["stop"] < 5, "the setting should exit early"
    if width_confidence > 0:
        assert (matches.matching_scores0 == 0).sum() > (90 - 70), "the setting should prune"


@pytest.fixture(scope="module")
def small(parity_dir: Path) -> dict[str, torch.Tensor]:
    """Inputs, weights and outputs of the reference implementation."""
    path = parity_dir / "lightglue_small.npz"
    if not path.is_file():
        pytest.skip(f"no reference outputs: {path}")
    with np.load(path) as archive:
        return {name: torch.from_numpy(archive[name]) for name in archive.files}


def test_reference_outputs(small: dict[str, torch.Tensor], tmp_path: Path) -> None:
    config = LightGlueConfig(descriptor_dim=64, num_layers=3, num_heads=2, filter_threshold=0.0)
    model = LightGlue(config, input_dim=64, add_scale_ori=False).eval()
    torch.save({name[3:]: value for name, value in small.items() if name.startswith("sd/")}, tmp_path / "small.pth")
    load_lightglue_weights(model, tmp_path / "small.pth")
    image_size = small["image_size"].float()
    view0, view1 = (make_view(small[f"keypoints{i}"], small[f"descriptors{i}"], image_size) for i in (0, 1))
    assert_same(model.match(view0, view1), small)
    scores = log_assignment(model(view0, view1)[-1], view0.mask, view1.mask)
    torch.testing.assert_close(scores, small["log_assignment"], atol=2e-5, rtol=0)

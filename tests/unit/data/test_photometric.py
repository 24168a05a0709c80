"""Changes of light and sharpness: what they do, and that nothing moves."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch

from raylg.data.photometric import (
    LUMA,
    RECIPE,
    Step,
    box_blur,
    camera_noise,
    convolve,
    darker,
    equalise,
    equalised,
    from_hsv,
    gamma,
    hue_saturation_value,
    line_kernel,
    motion_blur,
    photometric,
    to_hsv,
)
from tests.unit.data.registration import displacements

STEPS = [gamma, hue_saturation_value, box_blur, motion_blur, camera_noise, darker, equalise]


def textured(height: int = 240, width: int = 320) -> torch.Tensor:
    """float32 [3, H, W], 0 to 1."""
    rng = np.random.default_rng(1)
    layers = [cv2.GaussianBlur(rng.standard_normal((height, width, 3)), (0, 0), sigma) for sigma in (2, 4, 10)]
    image = np.asarray(sum(layer / layer.std() for layer in layers))
    return torch.from_numpy(np.clip(0.5 + 0.12 * image, 0, 1).astype(np.float32)).permute(2, 0, 1)


def test_off_changes_nothing() -> None:
    image = torch.randint(0, 256, (3, 40, 50), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    for seed in range(20):
        assert torch.equal(photometric(image, np.random.default_rng(seed), 0.0), image)


def test_only_the_generator_decides() -> None:
    image = textured(64, 64) * 255
    results = [photometric(image, np.random.default_rng(seed), 1.0) for seed in range(12)]
    again = [photometric(image, np.random.default_rng(seed), 1.0) for seed in range(12)]
    assert all(torch.equal(a, b) for a, b in zip(results, again, strict=True))
    assert len({result.numpy().tobytes() for result in results}) > 5
    assert all(result.dtype == torch.uint8 and result.shape == (3, 64, 64) for result in results)


def test_how_often_views_stay_as_they_are() -> None:
    image = textured(32, 32) * 255
    plain = photometric(image, np.random.default_rng(0), 0.0)
    rng = np.random.default_rng(0)
    unchanged = np.mean([torch.equal(photometric(image, rng, 1.0), plain) for _ in range(1500)])
    none = np.prod([1 - odds for odds, _ in RECIPE]) / 0.9 * 0.925  # a quarter of the one-of steps does nothing
    assert unchanged == pytest.approx(0.05 + 0.95 * none, abs=0.04)


def test_strength_scales_the_change() -> None:
    image = textured(48, 48) * 255
    plain = photometric(image, np.random.default_rng(0), 0.0).float()

    def change(strength: float) -> float:
        results = [photometric(image, np.random.default_rng(seed), strength) for seed in range(40)]
        return float(np.mean([(result.float() - plain).abs().mean() for result in results]))

    weak, half, full = change(0.1), change(0.5), change(1.0)
    assert 0 < weak < 0.2 * full < half < 0.75 * full


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("value", [0.0, 0.4, 1.0, None], ids=["black", "grey", "white", "photograph"])
def test_results_are_images(step: Step, value: float | None) -> None:
    image = textured(50, 70) if value is None else torch.full((3, 50, 70), value)
    before = image.clone()
    for seed in range(10):
        result = step(image, np.random.default_rng(seed))
        assert result.shape == image.shape and result.dtype == torch.float32
        assert result.min() >= -1e-5 and result.max() <= 1 + 1e-5  # false for NaN
    assert torch.equal(image, before)


@pytest.mark.parametrize("step", [step for step in STEPS if step is not camera_noise])
def test_no_step_has_a_direction(step: Step) -> None:
    """Turned by 180 degrees, the same comes out turned: exact, and it fails for any shift."""
    image = textured()
    for seed in range(8):
        result = step(image, np.random.default_rng(seed))
        turned = step(image.flip(1, 2), np.random.default_rng(seed)).flip(1, 2)
        torch.testing.assert_close(result, turned, atol=2e-6, rtol=0)


@pytest.mark.parametrize("step", STEPS)
def test_nothing_moves(step: Step) -> None:
    image = textured()
    shifts = []
    for seed in range(6):
        result = step(image, np.random.default_rng(seed))
        # Equal contrast, or the registration sees the change of light as a movement.
        planes = [(each.mean(0) - each.mean()) / each.std() * 30 for each in (image, result)]
        shifts.append(displacements(planes[0].double().numpy(), planes[1].double().numpy(), np.eye(3)).shift)
    shift = np.concatenate(shifts)
    assert len(shift) > 100
    assert np.abs(shift.mean(axis=0)).max() < 0.01 + 3 * shift.std() / len(shift) ** 0.5


def test_the_measurement_notices_a_movement() -> None:
    image = textured().mean(0).double().numpy() * 255
    moved = (image + np.roll(image, 1, axis=1)) / 2
    shift = displacements(image, moved, np.eye(3)).shift
    assert shift.mean(axis=0) == pytest.approx([0.5, 0], abs=0.04)


@pytest.mark.parametrize("half", [(0, 0), (0.5, 0), (3, -1.5), (12, 12), (0, 7)])
def test_line_kernels(half: tuple[float, float]) -> None:
    kernel = line_kernel(np.array(half))
    assert kernel.sum() == pytest.approx(1) and kernel.min() >= 0
    assert kernel.shape[0] % 2 == 1 and kernel.shape[1] % 2 == 1
    np.testing.assert_allclose(kernel, kernel[::-1, ::-1], atol=1e-12)
    ys, xs = np.mgrid[: kernel.shape[0], : kernel.shape[1]]
    spread = [(kernel * (axis - axis.mean()) ** 2).sum() ** 0.5 for axis in (xs, ys)]
    for found, extent in zip(spread, np.abs(half), strict=True):
        assert found == pytest.approx(extent / 3**0.5, abs=0.55)  # of an even distribution from -extent to extent


def test_convolution_keeps_constants_and_orientation() -> None:
    kernel = np.zeros((3, 5))
    kernel[0, 4] = 1
    image = torch.zeros(3, 9, 9)
    image[:, 4, 4] = 1
    assert convolve(image, kernel).nonzero().tolist() == [[c, 5, 2] for c in range(3)]
    torch.testing.assert_close(convolve(torch.full((3, 9, 9), 0.3), np.full((5, 5), 0.04)), torch.full((3, 9, 9), 0.3))


def test_colours_agree_with_opencv() -> None:
    image = torch.rand(3, 30, 40, generator=torch.Generator().manual_seed(0))
    image[:, :3] = image[:1, :3]  # grey has no hue
    hue, saturation, value = to_hsv(image)
    expected = cv2.cvtColor(image.permute(1, 2, 0).contiguous().numpy(), cv2.COLOR_RGB2HSV)
    np.testing.assert_allclose(np.exp(2j * np.pi * hue.numpy()), np.exp(2j * np.pi * expected[..., 0] / 360), atol=1e-4)
    np.testing.assert_allclose(saturation, expected[..., 1], atol=1e-5)
    np.testing.assert_allclose(value, expected[..., 2], atol=1e-6)
    torch.testing.assert_close(from_hsv(hue, saturation, value), image, atol=1e-5, rtol=0)
    torch.testing.assert_close(from_hsv(hue + 3, saturation, value), image, atol=1e-5, rtol=0)


@pytest.mark.parametrize("clip_limit", [1.0, 2.5, 4.0])
def test_equalisation_agrees_with_opencv(clip_limit: float) -> None:
    luma = (textured(480, 640).permute(1, 2, 0) @ torch.tensor(LUMA) * 255).round().to(torch.uint8)
    expected = cv2.createCLAHE(clip_limit, (8, 8)).apply(luma.numpy()).astype(float)
    found = equalised(luma.float() / 255, clip_limit).numpy() * 255
    # OpenCV rounds the shares and returns whole levels.
    assert np.abs(found - expected).mean() < 1.5 and np.abs(found - expected).max() < 6
    assert np.abs(luma.numpy() - expected).mean() > 3


def test_directions_of_the_steps() -> None:
    image = textured()
    for seed in range(5):
        assert gamma(image, np.random.default_rng(seed)).mean() > image.mean()
        assert darker(image, np.random.default_rng(seed)).mean() < image.mean()
        assert hue_saturation_value(image, np.random.default_rng(seed)).mean() < image.mean()
        blurred = box_blur(image, np.random.default_rng(seed))
        assert blurred.std() < image.std() and blurred.mean() == pytest.approx(float(image.mean()), abs=0.01)
        assert camera_noise(image, np.random.default_rng(seed)).diff(dim=2).std() > image.diff(dim=2).std()

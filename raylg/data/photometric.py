"""Changes of light and sharpness that leave every point of an image where it is.

The recipe is the one that glue-factory calls `lg`; odds and ranges are its. Each view gets the recipe with a chance of
95 %, and each step has a chance of its own. What differs: JPEG at quality 99 to 100, which changes nothing, is left
out (its turn does nothing); contrast is equalised on luma; noise of the luminance is normal instead of Poisson.

Written in torch, so that views are changed on the device where they were warped and where the extractor reads them: on
a CPU all of it costs a few per cent of a detector's time, and nothing is copied to and from a GPU. All randomness comes
from a NumPy generator, so the device does not change what is drawn.

Images are float32 [3, H, W], 0 to 1, with sides of at least 32 pixels.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

Step = Callable[[Tensor, np.random.Generator], Tensor]

WHOLE_ODDS = 0.95
LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue (ITU-R BT.601)."""
LEVELS = 256
TILES = 8
"""Tiles per axis of the equalisation."""


@torch.no_grad()
def photometric(image: Tensor, rng: np.random.Generator, strength: float) -> Tensor:
    """Apply the recipe; a pure function of the image and the state of `rng`.

    Args:
        image: uint8 or float [3, H, W], 0 to 255.
        rng: the only source of randomness.
        strength: 0 to 1; each step's result is blended with what it was given, so 0 is off and 1 the full recipe.

    Returns:
        uint8 [3, H, W].
    """
    result = image.float() / 255
    if strength > 0 and rng.random() < WHOLE_ODDS:
        for odds, step in RECIPE:
            if rng.random() < odds:
                changed = step(result, rng)
                result = changed if strength == 1 else torch.lerp(result, changed, strength)
    return (result * 255).round_().clamp_(0, 255).to(torch.uint8)


def gamma(image: Tensor, rng: np.random.Generator) -> Tensor:
    """Power of 0.15 to 0.65, which brightens."""
    return image ** rng.uniform(0.15, 0.65)


def hue_saturation_value(image: Tensor, rng: np.random.Generator) -> Tensor:
    """Turn the hue by up to 40 degrees, add up to 30 / 255 to saturation, take 40 to 100 / 255 from the value."""
    hue, saturation, value = to_hsv(image)
    turn, more, darker = rng.uniform(-20, 20) / 180, rng.uniform(-30, 30) / 255, rng.uniform(-100, -40) / 255
    return from_hsv(hue + turn, (saturation + more).clamp(0, 1), (value + darker).clamp(0, 1))


def box_blur(image: Tensor, rng: np.random.Generator) -> Tensor:
    """Mean of 3 x 3 to 9 x 9 pixels."""
    size = int(rng.choice([3, 5, 7, 9]))
    return convolve(image, np.full((size, size), 1 / size**2))


def motion_blur(image: Tensor, rng: np.random.Generator) -> Tensor:
    """Mean along a line through each pixel, within 3 x 3 to 25 x 25 pixels."""
    size = int(rng.choice(np.arange(3, 26, 2)))
    half = (rng.integers(0, size, 2) - rng.integers(0, size, 2)) / 2
    return convolve(image, line_kernel(half))


def camera_noise(image: Tensor, rng: np.random.Generator) -> Tensor:
    """Noise of hue and brightness as of a high ISO number."""
    shift, intensity = rng.uniform(0.01, 0.05), rng.uniform(0.1, 0.5)
    noise = torch.from_numpy(rng.standard_normal((2, *image.shape[1:]), dtype=np.float32)).to(image.device)
    hue, saturation, value = to_hsv(image)
    photons = value.std() * intensity * 255  # mean and variance of the counts that are added
    brighter = (photons + photons.sqrt() * noise[1]) / 255
    return from_hsv(hue + noise[0] * shift * intensity, saturation, (value + brighter * (1 - value)).clamp(0, 1))


def one_defect(image: Tensor, rng: np.random.Generator) -> Tensor:
    """One of box blur, motion blur, camera noise, nothing."""
    steps: list[Step] = [box_blur, motion_blur, camera_noise]
    index = int(rng.integers(len(steps) + 1))
    return steps[index](image, rng) if index < len(steps) else image


def darker(image: Tensor, rng: np.random.Generator) -> Tensor:
    """Brightness lower by up to 0.4, contrast by up to 0.3."""
    brightness, contrast = rng.uniform(-0.4, 0), rng.uniform(-0.3, 0)
    return (image * (1 + contrast) + brightness).clamp(0, 1)


def equalise(image: Tensor, rng: np.random.Generator) -> Tensor:
    """Contrast-limited adaptive equalisation of the luma, with a limit of 1 to 4."""
    luma = torch.einsum("chw,c->hw", image, image.new_tensor(LUMA))
    return (image + (equalised(luma, rng.uniform(1, 4)) - luma)).clamp(0, 1)


RECIPE: tuple[tuple[float, Step], ...] = (
    (0.1, gamma),
    (0.1, hue_saturation_value),
    (0.1, one_defect),
    (0.1, box_blur),
    (0.1, motion_blur),
    (0.5, darker),
    (0.2, equalise),
)
"""Chance and step, in order."""


def convolve(image: Tensor, kernel: np.ndarray) -> Tensor:
    """Filter each channel with an odd kernel; the image is mirrored at its borders."""
    weight = torch.from_numpy(kernel).to(image.device, image.dtype)[None, None]
    rows, columns = kernel.shape[0] // 2, kernel.shape[1] // 2
    padded = F.pad(image[:, None], (columns, columns, rows, rows), mode="reflect")
    return F.conv2d(padded, weight)[:, 0]


def line_kernel(half: np.ndarray) -> np.ndarray:
    """Kernel of a straight movement from -half to +half (x, y) px; equal to itself turned by 180 degrees."""
    radius = np.ceil(np.abs(half)).astype(int)
    kernel = np.zeros((2 * radius[1] + 1, 2 * radius[0] + 1))
    steps = int(2 * np.abs(half).max()) + 1
    points = np.linspace(-1, 1, steps)[:, None] * half if steps > 1 else np.zeros((1, 2))
    ys, xs = np.mgrid[-radius[1] : radius[1] + 1, -radius[0] : radius[0] + 1]
    for x, y in points:  # each point is shared by the four pixels around it
        kernel += np.maximum(1 - np.abs(xs - x), 0) * np.maximum(1 - np.abs(ys - y), 0)
    result: np.ndarray = kernel / kernel.sum()
    return result


def to_hsv(image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Hue (1 is a full turn), saturation and value, [H, W] each."""
    red, green, blue = image
    value, low = image.amax(dim=0), image.amin(dim=0)
    chroma = value - low
    safe = chroma.clamp(min=1e-6)
    hue = torch.where(
        value == red,
        (green - blue) / safe,
        torch.where(value == green, 2 + (blue - red) / safe, 4 + (red - green) / safe),
    )
    return hue / 6, chroma / value.clamp(min=1e-6), value


def from_hsv(hue: Tensor, saturation: Tensor, value: Tensor) -> Tensor:
    """Inverse of `to_hsv`, for a hue of any number of turns."""
    chroma = value * saturation
    channels = []
    for offset in (5, 3, 1):
        k = (offset + hue * 6) % 6
        channels.append(value - chroma * torch.minimum(k, 4 - k).clamp(0, 1))
    return torch.stack(channels)


def equalised(luma: Tensor, clip_limit: float) -> Tensor:
    """Equalise the histogram of each of 8 x 8 tiles and interpolate between their mappings.

    Source: Zuiderveld, Contrast Limited Adaptive Histogram Equalization, Graphics Gems IV (1994).

    Args:
        luma: [H, W], 0 to 1.
        clip_limit: largest count of a level, as a multiple of the mean count; what exceeds it is shared by all levels.
    """
    height, width = luma.shape
    rows, columns = -(-height // TILES), -(-width // TILES)  # pixels of a tile
    padded = F.pad(luma[None, None], (0, columns * TILES - width, 0, rows * TILES - height), mode="reflect")[0, 0]
    level = (padded * (LEVELS - 1)).round().long()
    tile_row = torch.arange(rows * TILES, device=luma.device) // rows
    tile_column = torch.arange(columns * TILES, device=luma.device) // columns
    tile = tile_row[:, None] * TILES + tile_column
    counts = torch.bincount((tile * LEVELS + level).flatten(), minlength=TILES**2 * LEVELS).view(-1, LEVELS).float()
    limit = max(int(clip_limit * rows * columns / LEVELS), 1)
    excess = (counts - limit).clamp(min=0).sum(dim=1, keepdim=True)
    mapping = ((counts.clamp(max=limit) + excess / LEVELS).cumsum(dim=1) / (rows * columns)).clamp(max=1)

    def neighbours(count: int, size: int) -> tuple[Tensor, Tensor, Tensor]:
        position = (torch.arange(count, device=luma.device) + 0.5) / size - 0.5
        first = position.floor()
        return first.long().clamp(0, TILES - 1), (first.long() + 1).clamp(0, TILES - 1), position - first

    top, bottom, weight_y = neighbours(height, rows)
    left, right, weight_x = neighbours(width, columns)
    level = level[:height, :width]

    def mapped(row: Tensor, column: Tensor) -> Tensor:
        return mapping.flatten()[(row[:, None] * TILES + column) * LEVELS + level]

    upper = torch.lerp(mapped(top, left), mapped(top, right), weight_x)
    lower = torch.lerp(mapped(bottom, left), mapped(bottom, right), weight_x)
    return torch.lerp(upper, lower, weight_y[:, None])

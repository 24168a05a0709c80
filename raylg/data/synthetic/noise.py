"""Fractal noise that tiles, from which every material takes its irregularity."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

SIZE = 1024
"""Side of the tileable noise fields in texels."""


def fractal(spectrum: np.ndarray, exponent: float) -> np.ndarray:
    """Tileable Gaussian noise of unit variance whose power falls as frequency ** -exponent.

    Args:
        spectrum: complex64 [size, size // 2 + 1], of white noise.
        exponent: about 1 is grainy, 3 cloudy.

    Returns:
        float32 [size, size].
    """
    size = len(spectrum)
    fy, fx = np.fft.fftfreq(size).astype(np.float32)[:, None], np.fft.rfftfreq(size).astype(np.float32)[None]
    power = fy * fy + fx * fx
    power[0, 0] = np.inf
    field = np.fft.irfft2(spectrum * power ** np.float32(-exponent / 4), s=(size, size))
    return np.asarray(field / field.std(), dtype=np.float32)


@dataclass(frozen=True)
class NoiseBank:
    """Three noise fields of one scene; crops at random offsets stand for independent noise."""

    fine: np.ndarray
    """Grain and pores: float32 [SIZE, SIZE]."""
    medium: np.ndarray
    """Blotches and wear."""
    coarse: np.ndarray
    """Large stains."""

    @staticmethod
    def create(rng: np.random.Generator) -> NoiseBank:
        """Draw the fields."""
        # One draw serves all three: crops are taken at random offsets, so that they do not go together anywhere.
        spectrum = np.fft.rfft2(rng.standard_normal((SIZE, SIZE), dtype=np.float32))
        return NoiseBank(fractal(spectrum, 0.9), fractal(spectrum, 1.9), fractal(spectrum, 3.0))

    def crop(self, rng: np.random.Generator, field: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
        """Crop float32 `shape` of a field at a random offset, wrapping around (so that SIZE x SIZE crops tile)."""
        dy, dx = (int(v) for v in rng.integers(0, SIZE, 2))
        rows, columns = (np.arange(shape[0]) + dy) % SIZE, (np.arange(shape[1]) + dx) % SIZE
        return np.take(np.take(field, rows, axis=0), columns, axis=1)

    def streaks(self, rng: np.random.Generator, shape: tuple[int, int], stretch: int = 10) -> np.ndarray:
        """Noise float32 `shape` stretched vertically, as rain leaves it on a wall."""
        source = self.crop(rng, self.medium, (max(2, shape[0] // stretch), shape[1]))
        return cv2.resize(source, (shape[1], shape[0]), interpolation=cv2.INTER_LINEAR)

    def motif(self, rng: np.random.Generator, size: int) -> np.ndarray:
        """A carved ornament: mirror-symmetric relief float32 [size, size] in [-1, 1]."""
        half = (size + 1) // 2
        patch = self.crop(rng, self.coarse, (48, 24)) + 0.5 * self.crop(rng, self.medium, (48, 24))
        leaf = cv2.resize(patch, (half, size), interpolation=cv2.INTER_CUBIC)
        whole = np.concatenate([leaf, leaf[:, ::-1]], axis=1)[:, :size]
        relief = np.gradient(np.tanh(3 * (whole - np.median(whole))), axis=0)
        return np.asarray(np.clip(relief * size / 8, -1, 1), dtype=np.float32)

import numpy as np

from raylg.data.synthetic.noise import SIZE, NoiseBank, fractal


def test_fractal_noise_tiles_and_has_unit_variance() -> None:
    white = np.fft.rfft2(np.random.default_rng(0).standard_normal((128, 128), dtype=np.float32))
    field = fractal(white, 3.0)
    assert field.shape == (128, 128) and field.dtype == np.float32
    np.testing.assert_allclose([field.mean(), field.std()], [0, 1], atol=1e-4)
    inner = np.abs(np.diff(field, axis=0)).mean()
    seam = np.abs(field[0] - field[-1]).mean()
    assert seam < 1.5 * inner


def test_larger_exponent_is_smoother() -> None:
    white = np.fft.rfft2(np.random.default_rng(0).standard_normal((128, 128), dtype=np.float32))
    steps = [np.abs(np.diff(fractal(white, exponent), axis=1)).mean() for exponent in (0.9, 1.9, 3.0)]
    assert steps[0] > 1.5 * steps[1] > 2 * steps[2]


def test_crops_wrap_around_and_motifs_are_symmetric() -> None:
    rng = np.random.default_rng(1)
    noise = NoiseBank.create(rng)
    crop = noise.crop(rng, noise.fine, (10, SIZE + 5))
    np.testing.assert_array_equal(crop[:, :5], crop[:, SIZE:])
    motif = noise.motif(rng, 32)
    np.testing.assert_array_equal(motif, motif[:, ::-1])
    assert np.abs(motif).max() <= 1
    assert motif.std() > 0.05

"""Data that are generated."""

import numpy as np

SAMPLES = 200  # points of a curve
SIGMA = 0.6  # width of the pen in pixels
MARGIN = 3  # pixels between the points and the border


def curves(count: int, seed: int = 0, size: int = 28) -> np.ndarray:
    """Generates images like those of CURVES: random curves, values from 0 to 1.

    A quadratic Bezier curve on three points, drawn with a Gaussian pen. The images of
    the literature were drawn by a program that is documented nowhere, so errors must
    not be compared with published ones. Returns one row of ``size * size`` numbers per
    image.
    """
    rng = np.random.default_rng(seed)
    points = rng.uniform(MARGIN, size - 1 - MARGIN, (count, 3, 2))
    t, grid = np.linspace(0, 1, SAMPLES)[:, None], np.arange(size)
    basis = np.concatenate([(1 - t) ** 2, 2 * t * (1 - t), t**2], axis=1)
    images = np.zeros((count, size, size), np.float32)
    for image, corners in zip(images, points, strict=True):
        offsets = grid - (basis @ corners)[:, :, None]  # (samples, 2, size)
        squares = offsets[:, 0, :, None] ** 2 + offsets[:, 1, None, :] ** 2
        image[:] = np.exp(-squares.min(axis=0) / (2 * SIGMA**2))
    return images.reshape(count, -1)

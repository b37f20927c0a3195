"""Solutions of the equations without a network: exact, or to about 1e-10 or better."""

from collections.abc import Callable

import numpy as np


def burgers(points: np.ndarray, viscosity: float) -> np.ndarray:
    """``u_t + u u_x = viscosity u_xx`` from ``-sin(pi x)``, at points (x, t).

    The formula of Cole and Hopf. The heat kernel is integrated by the trapezoidal rule
    around the maximum of the exponent, in logarithms, so that nothing overflows.
    """
    if len(points) > 500:  # the matrices below have 8001 columns
        parts = np.array_split(points, -(-len(points) // 500))
        return np.concatenate([burgers(part, viscosity) for part in parts])
    x, t = points[:, :1], np.maximum(points[:, 1:], 1e-12)
    # y = x - s with s the distance that the heat has come, within 12 deviations, and
    # within the reach of the characteristics.
    reach = 12 * np.sqrt(2 * viscosity * t) + t
    s = np.linspace(-1, 1, 8001)[None] * reach
    y = x - s
    exponent = -np.cos(np.pi * y) / (2 * np.pi * viscosity) - s**2 / (4 * viscosity * t)
    weight = np.exp(exponent - exponent.max(axis=1, keepdims=True))
    found = -np.sum(np.sin(np.pi * y) * weight, axis=1) / np.sum(weight, axis=1)
    start = points[:, 1] <= 1e-12
    return np.where(start, -np.sin(np.pi * points[:, 0]), found)


def periodic(
    linear: Callable[[np.ndarray], np.ndarray],
    nonlinear: Callable[[np.ndarray, Callable], np.ndarray],
    start: np.ndarray,
    length: float,
    times: np.ndarray,
    steps: int,
) -> np.ndarray:
    """``u_t = L u + N(u)``, periodic in space, by ETDRK4 (Kassam, Trefethen 2005).

    Args:
      linear: the symbol of ``L`` as a function of the wave numbers.
      nonlinear: ``N`` of ``u`` and of a function that differentiates in space.
      start: ``u`` at time 0 on a uniform grid without its right end.
      length: of the interval.
      times: increasing, from 0, uniform.
      steps: of the time integration between two times.

    Returns:
      ``u`` at the times, shape=(times, grid).
    """
    n = len(start)
    k = 2 * np.pi / length * np.fft.rfftfreq(n, 1 / n)
    kept = np.arange(len(k)) < n // 3  # the rule of two thirds

    def derivative(u):
        return np.fft.irfft(1j * k * np.fft.rfft(u), n)

    def n_hat(v):
        return kept * np.fft.rfft(nonlinear(np.fft.irfft(v, n), derivative))

    h = (times[1] - times[0]) / steps
    symbol = linear(k)
    roots = np.exp(1j * np.pi * (np.arange(1, 65) - 0.5) / 64)
    z = h * symbol[:, None] + roots[None]

    def mean(values):
        return h * np.real(np.mean(values, axis=1))

    e, half = np.exp(h * symbol), np.exp(h * symbol / 2)
    q = mean((np.exp(z / 2) - 1) / z)
    f1 = mean((-4 - z + np.exp(z) * (4 - 3 * z + z**2)) / z**3)
    f2 = mean((2 + z + np.exp(z) * (z - 2)) / z**3)
    f3 = mean((-4 - 3 * z - z**2 + np.exp(z) * (4 - z)) / z**3)
    v, found = np.fft.rfft(start), [start]
    for _ in times[1:]:
        for _ in range(steps):
            nv = n_hat(v)
            a = half * v + q * nv
            na = n_hat(a)
            b = half * v + q * na
            nb = n_hat(b)
            c = half * a + q * (2 * nb - nv)
            v = e * v + f1 * nv + 2 * f2 * (na + nb) + f3 * n_hat(c)
        found.append(np.fft.irfft(v, n))
    return np.array(found)

"""Equations for physics-informed networks, each with points and a reference solution.

A problem has *conditions*: the equation, boundary and initial values. A condition is a
function of ``u`` and of points that should be zero. Derivatives are nested forward
derivatives along coordinates.
"""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.stats import qmc

from benchmarks.pinn import references

Field = Callable[[jax.Array], jax.Array]  # points, shape=(n, d), to values, shape=(n,)
Condition = Callable[[Field, jax.Array], jax.Array]
Params = list[dict[str, jax.Array]]


class Problem(NamedTuple):
    """An equation with its boundary and initial conditions.

    Attributes:
      name: of the problem.
      low: lower corner of the domain; the last coordinate is time if there is time.
      high: upper corner.
      conditions: by name, what should vanish.
      places: by name of a condition, the faces where its points are drawn, as pairs
        (coordinate, value); no face means the interior.
      solution: the reference solution at points of ``grid``.
      grid: points where the solution is compared, shape=(n, d).
      weights: of the mean squares of the conditions; 1 if not given.
      is_periodic: whether the solution is smooth and periodic along coordinate 0.
      is_recommended: whether points are of scrambled Sobol sequences and not random,
        and the network is periodic by itself where the solution is.
    """

    name: str
    low: tuple[float, ...]
    high: tuple[float, ...]
    conditions: Mapping[str, Condition]
    places: Mapping[str, tuple[tuple[int, float], ...]]
    solution: Callable[[np.ndarray], np.ndarray]
    grid: Callable[[], np.ndarray]
    weights: Mapping[str, float] = {}
    is_periodic: bool = False
    is_recommended: bool = False

    def points(self, counts: Mapping[str, int], seed: int) -> dict[str, np.ndarray]:
        """Points of a seed: by name of a condition, shape=(count, d).

        A condition with several faces gets the same number of points on each.
        """
        if self.is_recommended:
            return self._even_points(counts, seed)
        rng = np.random.default_rng(seed)
        found = {}
        for name in self.conditions:
            x = rng.uniform(self.low, self.high, (counts[name], len(self.low)))
            faces = self.places[name]
            for k, (coordinate, value) in enumerate(faces):
                x[k :: len(faces), coordinate] = value
            found[name] = x
        return found

    def _even_points(
        self, counts: Mapping[str, int], seed: int
    ) -> dict[str, np.ndarray]:
        """Points of scrambled Sobol sequences, one for each face."""
        found = {}
        for k, name in enumerate(self.conditions):
            faces = self.places[name] or (None,)
            parts = []
            count = max(1, counts[name] // len(faces))
            for j, face in enumerate(faces):
                sobol = qmc.Sobol(
                    len(self.low), seed=np.random.default_rng([seed, k, j])
                )
                # It warns of any number that is not a power of two.
                x = sobol.random_base2(math.ceil(math.log2(count)))[:count]
                x = qmc.scale(x, self.low, self.high)
                if face is not None:
                    x[:, face[0]] = face[1]
                parts.append(x)
            found[name] = np.concatenate(parts)
        return found

    @property
    def _sees_angle(self) -> bool:
        """Whether the network sees sine and cosine of coordinate 0 in its place."""
        return self.is_recommended and self.is_periodic

    @property
    def inputs(self) -> int:
        """The number of inputs of the network."""
        return len(self.low) + self._sees_angle

    def field(self, params: Params, x: jax.Array) -> jax.Array:
        """The network at points, shape=(n,); it sees its inputs scaled to [-1, 1]."""
        low, high = jnp.asarray(self.low), jnp.asarray(self.high)
        x = 2 * (x - low) / (high - low) - 1
        if self._sees_angle:
            angle = np.pi * x[:, :1]
            x = jnp.concatenate([jnp.cos(angle), jnp.sin(angle), x[:, 1:]], axis=1)
        return network(params, x)[:, 0]


WEIGHT = 10.0  # of boundary and initial conditions, if recommended


def recommended(problem: Problem) -> Problem:
    """The same equation as we recommend to set it up.

    All conditions but the equation have the same weight, and those that a periodic
    network satisfies by itself are left out.
    """
    left_out = ("periodic", "slope") if problem.is_periodic else ()
    conditions = {k: f for k, f in problem.conditions.items() if k not in left_out}
    weights = {name: WEIGHT for name in conditions if name != "equation"}
    return problem._replace(conditions=conditions, weights=weights, is_recommended=True)


_KNOWN: dict[str, tuple[np.ndarray, np.ndarray]] = {}


def reference(problem: Problem) -> tuple[np.ndarray, np.ndarray]:
    """The grid of a problem and the solution there, which are computed once."""
    if problem.name not in _KNOWN:
        grid = problem.grid()
        _KNOWN[problem.name] = grid, problem.solution(grid)
    return _KNOWN[problem.name]


def network(params: Params, x: jax.Array) -> jax.Array:
    """All outputs of a tanh network, shape=(n, outputs)."""
    for layer in params[:-1]:
        x = jnp.tanh(x @ layer["w"] + layer["b"])
    return x @ params[-1]["w"] + params[-1]["b"]


def initial_params(sizes: tuple[int, ...], seed: int) -> Params:
    """Glorot's normal weights, biases zero, in the default dtype."""
    rng = np.random.default_rng(seed)
    return [
        {
            "w": jnp.asarray(rng.normal(size=(m, n)) * (2 / (m + n)) ** 0.5, float),
            "b": jnp.zeros(n, float),
        }
        for m, n in zip(sizes[:-1], sizes[1:], strict=True)
    ]


def d(u: Field, *coordinates: int) -> Field:
    """The derivative along coordinates, one after the other."""
    for coordinate in coordinates:
        u = functools.partial(_derivative, u, coordinate)
    return u


def _derivative(u: Field, coordinate: int, x: jax.Array) -> jax.Array:
    along = jnp.zeros_like(x).at[:, coordinate].set(1)
    return jax.jvp(u, (x,), (along,))[1]


def _tensor_grid(low: Any, high: Any, side: int) -> np.ndarray:
    axes = [np.linspace(a, b, side) for a, b in zip(low, high, strict=True)]
    return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, len(low))


def poisson(dimensions: int) -> Problem:
    """``-laplace(u) = f`` on a cube with the solution ``sum_i cos(pi x_i)``."""
    low, high = (0.0,) * dimensions, (1.0,) * dimensions

    def exact(x):
        return np.sum(np.cos(np.pi * x), axis=1)

    def equation(u, x):
        laplace = sum(d(u, k, k)(x) for k in range(dimensions))
        return laplace + np.pi**2 * jnp.sum(jnp.cos(np.pi * x), axis=1)

    def grid():
        if dimensions == 2:
            return _tensor_grid(low, high, 101)
        return np.random.default_rng(1).uniform(low, high, (10_000, dimensions))

    return Problem(
        name=f"poisson_{dimensions}d",
        low=low,
        high=high,
        conditions={
            "equation": equation,
            "boundary": lambda u, x: u(x) - jnp.sum(jnp.cos(np.pi * x), axis=1),
        },
        places={
            "equation": (),
            "boundary": tuple((k, v) for k in range(dimensions) for v in (0.0, 1.0)),
        },
        solution=exact,
        grid=grid,
    )


def helmholtz(a: int = 1, b: int = 4) -> Problem:
    """``laplace(u) + u = f``, ``u = sin(a pi x) sin(b pi y)``, on [-1, 1]^2."""
    low, high = (-1.0, -1.0), (1.0, 1.0)

    def exact(x, sin=np.sin):
        return sin(a * np.pi * x[:, 0]) * sin(b * np.pi * x[:, 1])

    def equation(u, x):
        f = (1 - (a**2 + b**2) * np.pi**2) * exact(x, jnp.sin)
        return d(u, 0, 0)(x) + d(u, 1, 1)(x) + u(x) - f

    return Problem(
        name=f"helmholtz_{a}_{b}",
        low=low,
        high=high,
        conditions={"equation": equation, "boundary": lambda u, x: u(x)},
        places={
            "equation": (),
            "boundary": tuple((k, v) for k in range(2) for v in (-1.0, 1.0)),
        },
        solution=exact,
        grid=lambda: _tensor_grid(low, high, 101),
    )


def burgers(viscosity: float = 0.01 / np.pi) -> Problem:
    """``u_t + u u_x = viscosity u_xx`` from ``-sin(pi x)``, zero at the ends."""
    low, high = (-1.0, 0.0), (1.0, 1.0)
    return Problem(
        name="burgers",
        low=low,
        high=high,
        conditions={
            "equation": lambda u, x: (
                d(u, 1)(x) + u(x) * d(u, 0)(x) - viscosity * d(u, 0, 0)(x)
            ),
            "initial": lambda u, x: u(x) + jnp.sin(np.pi * x[:, 0]),
            "boundary": lambda u, x: u(x),
        },
        places={
            "equation": (),
            "initial": ((1, 0.0),),
            "boundary": ((0, -1.0), (0, 1.0)),
        },
        solution=functools.partial(references.burgers, viscosity=viscosity),
        grid=lambda: _tensor_grid(low, high, 101),
    )


def _same_at_both_ends(length: float) -> Condition:
    """``u`` at the left end, coordinate 0, minus ``u`` at the right end."""
    return lambda u, x: u(x) - u(x + jnp.array([length, 0.0]))


def _same_slope_at_both_ends(length: float) -> Condition:
    """The same for the derivative along coordinate 0."""
    return lambda u, x: _same_at_both_ends(length)(d(u, 0), x)


def convection(speed: float = 30.0) -> Problem:
    """``u_t + speed u_x = 0`` from ``sin x``, periodic."""
    low, high = (0.0, 0.0), (2 * np.pi, 1.0)
    return Problem(
        name=f"convection_{speed:g}",
        low=low,
        high=high,
        conditions={
            "equation": lambda u, x: d(u, 1)(x) + speed * d(u, 0)(x),
            "initial": lambda u, x: u(x) - jnp.sin(x[:, 0]),
            "periodic": _same_at_both_ends(2 * np.pi),
        },
        places={"equation": (), "initial": ((1, 0.0),), "periodic": ((0, 0.0),)},
        solution=lambda x: np.sin(x[:, 0] - speed * x[:, 1]),
        grid=lambda: _tensor_grid(low, high, 101),
        is_periodic=True,
    )


def reaction(rate: float = 5.0) -> Problem:
    """``u_t = rate u (1 - u)`` from a Gaussian, periodic."""
    low, high = (0.0, 0.0), (2 * np.pi, 1.0)

    def start(x, exp=jnp.exp):
        return exp(-((x[:, 0] - np.pi) ** 2) / (2 * (np.pi / 4) ** 2))

    def exact(x):
        h = start(x, np.exp)
        grown = h * np.exp(rate * x[:, 1])
        return grown / (grown + 1 - h)

    return Problem(
        name="reaction",
        low=low,
        high=high,
        conditions={
            "equation": lambda u, x: d(u, 1)(x) - rate * u(x) * (1 - u(x)),
            "initial": lambda u, x: u(x) - start(x),
            "periodic": _same_at_both_ends(2 * np.pi),
        },
        places={"equation": (), "initial": ((1, 0.0),), "periodic": ((0, 0.0),)},
        solution=exact,
        grid=lambda: _tensor_grid(low, high, 101),
    )


def wave(frequency: int = 5) -> Problem:
    """``u_tt = 4 u_xx`` from ``sin(pi x) + sin(frequency pi x) / 2`` at rest."""
    low, high = (0.0, 0.0), (1.0, 1.0)

    def exact(x):
        x, t = x[:, 0], x[:, 1]
        first = np.sin(np.pi * x) * np.cos(2 * np.pi * t)
        higher = np.sin(frequency * np.pi * x) * np.cos(2 * frequency * np.pi * t)
        return first + higher / 2

    def start(x):
        x = x[:, 0]
        return jnp.sin(np.pi * x) + jnp.sin(frequency * np.pi * x) / 2

    return Problem(
        name="wave",
        low=low,
        high=high,
        conditions={
            "equation": lambda u, x: d(u, 1, 1)(x) - 4 * d(u, 0, 0)(x),
            "initial": lambda u, x: u(x) - start(x),
            "velocity": lambda u, x: d(u, 1)(x),
            "boundary": lambda u, x: u(x),
        },
        places={
            "equation": (),
            "initial": ((1, 0.0),),
            "velocity": ((1, 0.0),),
            "boundary": ((0, 0.0), (0, 1.0)),
        },
        solution=exact,
        grid=lambda: _tensor_grid(low, high, 101),
    )


def _periodic_grid(low: Any, high: Any, x: int, t: int) -> np.ndarray:
    """Points of a grid without the right end in space, time varying slowest."""
    axes = (
        np.linspace(low[1], high[1], t),
        np.linspace(low[0], high[0], x, endpoint=False),
    )
    times, places = np.meshgrid(*axes, indexing="ij")
    return np.stack([places, times], axis=-1).reshape(-1, 2)


def allen_cahn(diffusion: float = 1e-4) -> Problem:
    """``u_t = diffusion u_xx + 5 (u - u^3)`` from ``x^2 cos(pi x)``, periodic."""
    low, high = (-1.0, 0.0), (1.0, 1.0)

    def solution(_):
        x = np.linspace(-1, 1, 512, endpoint=False)
        found = references.periodic(
            lambda k: -diffusion * k**2 + 5,
            lambda u, _: -5 * u**3,
            x**2 * np.cos(np.pi * x),
            length=2.0,
            times=np.linspace(0, 1, 101),
            steps=20,
        )
        return found.reshape(-1)

    return Problem(
        name="allen_cahn",
        low=low,
        high=high,
        conditions={
            "equation": lambda u, x: (
                d(u, 1)(x) - diffusion * d(u, 0, 0)(x) - 5 * (u(x) - u(x) ** 3)
            ),
            "initial": lambda u, x: u(x) - x[:, 0] ** 2 * jnp.cos(np.pi * x[:, 0]),
            "periodic": _same_at_both_ends(2.0),
            "slope": _same_slope_at_both_ends(2.0),
        },
        places={
            "equation": (),
            "initial": ((1, 0.0),),
            "periodic": ((0, -1.0),),
            "slope": ((0, -1.0),),
        },
        solution=solution,
        grid=lambda: _periodic_grid(low, high, 512, 101),
        weights={"initial": 100.0},
        is_periodic=True,
    )


def kuramoto_sivashinsky() -> Problem:
    """``u_t + 6.25 u u_x + 0.390625 u_xx + 0.00152587890625 u_xxxx = 0``, periodic.

    From ``cos(x) (1 + sin(x))`` until time 0.4; the setting of Wang, Sankaran and
    Perdikaris (2022) up to the time.
    """
    low, high = (0.0, 0.0), (2 * np.pi, 0.4)
    speed, growth, decay = 100 / 16, 100 / 16**2, 100 / 16**4

    def start(x, m):
        return m.cos(x) * (1 + m.sin(x))

    def solution(_):
        x = np.linspace(0, 2 * np.pi, 512, endpoint=False)
        found = references.periodic(
            lambda k: growth * k**2 - decay * k**4,
            lambda u, derivative: -speed * derivative(u**2 / 2),
            start(x, np),
            length=2 * np.pi,
            times=np.linspace(0, 0.4, 101),
            steps=20,
        )
        return found.reshape(-1)

    return Problem(
        name="kuramoto_sivashinsky",
        low=low,
        high=high,
        conditions={
            "equation": lambda u, x: (
                d(u, 1)(x)
                + speed * u(x) * d(u, 0)(x)
                + growth * d(u, 0, 0)(x)
                + decay * d(u, 0, 0, 0, 0)(x)
            ),
            "initial": lambda u, x: u(x) - start(x[:, 0], jnp),
            "periodic": _same_at_both_ends(2 * np.pi),
            "slope": _same_slope_at_both_ends(2 * np.pi),
        },
        places={
            "equation": (),
            "initial": ((1, 0.0),),
            "periodic": ((0, 0.0),),
            "slope": ((0, 0.0),),
        },
        solution=solution,
        grid=lambda: _periodic_grid(low, high, 512, 101),
        weights={"initial": 100.0},
        is_periodic=True,
    )


PROBLEMS: dict[str, Callable[[], Problem]] = {
    "poisson_2d": functools.partial(poisson, 2),
    "poisson_5d": functools.partial(poisson, 5),
    "helmholtz": helmholtz,
    "burgers": burgers,
    "convection_30": convection,
    "convection_40": functools.partial(convection, 40.0),
    "reaction": reaction,
    "wave": wave,
    "allen_cahn": allen_cahn,
    "kuramoto_sivashinsky": kuramoto_sivashinsky,
}

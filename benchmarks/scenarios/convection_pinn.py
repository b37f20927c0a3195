"""A physics-informed network for convection: ``u_t + 30 u_x = 0`` from ``sin x``."""

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.scenarios._base import Dataset, Scenario
from benchmarks.scenarios._networks import (
    Layers,
    half_mean_squared_error,
    initialiser,
    regressor,
)

SPEED = 30.0
POINTS = {"equation": 48 * 48, "periodic": 96, "known": 96}
GRID = 101  # points in space and in time where the solution is compared

Points = dict[str, jax.Array]  # by the condition that holds there; columns x and t


def solution(points: np.ndarray) -> np.ndarray:
    """The exact solution: a sine that moves to the right.

    Example:
        >>> solution(np.array([[np.pi / 2, 0.0]]))
        array([1.])
    """
    return np.sin(points[:, 0] - SPEED * points[:, 1])


def load() -> Dataset:
    """The conditions with random points in ``[0, 2 pi] x [0, 1]``, and a grid.

    A condition is an output that should be equal to its target. On the grid the
    solution is known, so that the held-out score compares with the exact one.
    """
    rng = np.random.default_rng(0)
    x = {
        name: rng.uniform((0, 0), (2 * np.pi, 1), (n, 2)) for name, n in POINTS.items()
    }
    x["periodic"][:, 0] = 0
    x["known"][:, 1] = 0
    y = {name: np.zeros(n) for name, n in POINTS.items()}
    y["known"] = _weight("known", x) * solution(x["known"])
    axes = np.linspace(0, 2 * np.pi, GRID), np.linspace(0, 1, GRID)
    grid = np.stack(np.meshgrid(*axes), axis=-1).reshape(-1, 2)
    train = {"x": x, "y": np.concatenate([y[name] for name in POINTS])}
    held_out = {"x": {"known": grid}, "y": solution(grid)}
    return Dataset(*jax.tree.map(lambda a: jnp.asarray(a, float), (train, held_out)))


def model(layers: Layers, x: Points) -> jax.Array:
    """Every condition's outputs, weighted so that each counts as one mean square."""

    def u(points: jax.Array) -> jax.Array:
        return regressor(layers, points)

    def equation(points: jax.Array) -> jax.Array:
        along = jnp.broadcast_to(jnp.array([SPEED, 1.0]), points.shape)
        return jax.jvp(u, (points,), (along,))[1]

    def periodic(points: jax.Array) -> jax.Array:
        return u(points) - u(points + jnp.array([2 * jnp.pi, 0.0]))

    conditions = {"equation": equation, "periodic": periodic, "known": u}
    return jnp.concatenate(
        [_weight(name, x) * conditions[name](x[name]) for name in POINTS if name in x]
    )


def _weight(name: str, x: Points) -> float:
    return (sum(map(len, x.values())) / len(x[name])) ** 0.5


def relative_error(outputs: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.linalg.norm(outputs - y) / jnp.linalg.norm(y)


SCENARIO = Scenario(
    name="convection_pinn",
    description="Convection by a physics-informed network, 2-50-50-50-50-1, float64",
    load=load,
    init=initialiser(2, 50, 50, 50, 50, 1),
    model=model,
    loss=half_mean_squared_error,
    metric=relative_error,
    metric_name="relative error",
    budget=4000.0,
    seeds=3,
    batch_sizes=(),
    x64=True,
)

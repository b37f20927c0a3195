"""A physics-informed network for convection: ``u_t + 30 u_x = 0`` from ``sin x``.

Set up as in the code of Raissi, Perdikaris and Karniadakis (2019): inputs scaled to
[-1, 1], Glorot's initial weights. Without the two, at points drawn at random, the same
network stays much longer on the plateau where ``u`` is about zero: the second scenario.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.scenarios import _networks as networks
from benchmarks.scenarios._base import Dataset, Scenario

SPEED = 30.0
POINTS = {"equation": 48 * 48, "periodic": 96, "known": 96}
ENDS = np.array([2 * np.pi, 1.0])  # of space and of time, which begin at 0
GRID = 101  # points in space and in time where the solution is compared

Points = dict[str, jax.Array]  # by the condition that holds there; columns x and t


def solution(points: np.ndarray) -> np.ndarray:
    """The exact solution: a sine that moves to the right."""
    return np.sin(points[:, 0] - SPEED * points[:, 1])


def on_grids() -> Points:
    """Points on uniform grids, those of the equation on a square one."""
    side = round(POINTS["equation"] ** 0.5)
    return {
        "equation": _grid(side),
        "periodic": _line(POINTS["periodic"], along=1),
        "known": _line(POINTS["known"], along=0),
    }


def at_random() -> Points:
    """Points drawn uniformly, always the same ones."""
    rng = np.random.default_rng(0)
    x = {name: rng.uniform((0, 0), ENDS, (n, 2)) for name, n in POINTS.items()}
    x["periodic"][:, 0] = 0
    x["known"][:, 1] = 0
    return x


def loader(points: Callable[[], Points]) -> Callable[[], Dataset]:
    """The conditions with their points, and a grid.

    A condition is an output that should be equal to its target. On the grid the
    solution is known, so that the held-out score compares with the exact one.
    """

    def load() -> Dataset:
        x = points()
        y = {name: np.zeros(n) for name, n in POINTS.items()}
        y["known"] = _weight("known", x) * solution(x["known"])
        train = {"x": x, "y": np.concatenate([y[name] for name in POINTS])}
        grid = _grid(GRID)
        held_out = {"x": {"known": grid}, "y": solution(grid)}
        return Dataset(
            *jax.tree.map(lambda a: jnp.asarray(a, float), (train, held_out))
        )

    return load


def model(layers: networks.Layers, x: Points, scaled: bool = True) -> jax.Array:
    """The conditions of a network, which sees its inputs scaled to [-1, 1] or not."""

    def u(points: jax.Array) -> jax.Array:
        return networks.regressor(layers, 2 * points / ENDS - 1 if scaled else points)

    return conditions(u, x)


def conditions(u: Callable[[jax.Array], jax.Array], x: Points) -> jax.Array:
    """Every condition's outputs, weighted so that each counts as one mean square."""

    def equation(points: jax.Array) -> jax.Array:
        along = jnp.broadcast_to(jnp.array([SPEED, 1.0]), points.shape)
        return jax.jvp(u, (points,), (along,))[1]

    def periodic(points: jax.Array) -> jax.Array:
        return u(points) - u(points + jnp.array([ENDS[0], 0.0]))

    outputs = {"equation": equation, "periodic": periodic, "known": u}
    return jnp.concatenate(
        [_weight(name, x) * outputs[name](x[name]) for name in POINTS if name in x]
    )


def _grid(side: int) -> np.ndarray:
    axes = [np.linspace(0, end, side) for end in ENDS]
    return np.stack(np.meshgrid(*axes), axis=-1).reshape(-1, 2)


def _line(count: int, along: int) -> np.ndarray:
    points = np.zeros((count, 2))
    points[:, along] = np.linspace(0, ENDS[along], count)
    return points


def _weight(name: str, x: Points) -> float:
    return (sum(map(len, x.values())) / len(x[name])) ** 0.5


def relative_error(outputs: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.linalg.norm(outputs - y) / jnp.linalg.norm(y)


SIZES = (2, 50, 50, 50, 50, 1)
SCENARIO = Scenario(
    name="convection_pinn",
    description="Convection by a physics-informed network, 2-50-50-50-50-1, float64",
    load=loader(on_grids),
    init=networks.glorot_initialiser(*SIZES),
    model=model,
    loss=networks.half_mean_squared_error,
    metric=relative_error,
    metric_name="relative error",
    budget=10_000.0,
    batch_sizes=(),
    x64=True,
)
UNSCALED = SCENARIO._replace(
    name="convection_pinn_unscaled",
    description="Convection on unscaled inputs, poor start, random points, float64",
    load=loader(at_random),
    init=networks.initialiser(*SIZES),
    model=partial(model, scaled=False),
    seeds=2,
)

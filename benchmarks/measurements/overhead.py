"""The overhead of a step where the loss costs nothing: twenty parameters."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

import ncg_optax as ncg

SIZE = 20


def _loss(w: jax.Array) -> jax.Array:
    """A convex function with changing curvature, whose minimum is not at the start."""
    return jnp.sum(jnp.cosh(w - jnp.linspace(-1, 1, SIZE))) + 0.1 * jnp.sum(w) ** 2


def _stepper(tx: optax.GradientTransformationExtraArgs) -> Callable[[], None]:
    """One jitted step, always from the same state: every call does the same work."""

    @jax.jit
    def step(w: jax.Array, state: Any) -> tuple[jax.Array, Any]:
        value, grad = jax.value_and_grad(_loss)(w)
        updates, state = tx.update(
            grad, state, w, value=value, grad=grad, value_fn=_loss
        )
        return optax.apply_updates(w, updates), state

    w = jnp.zeros(SIZE)
    w, state = step(w, tx.init(w))  # past the first step, which calibrates
    return lambda: jax.block_until_ready(step(w, state))


def measure(repeats: int = 2000) -> dict[str, float]:
    """Median microseconds of a step, the two taking turns in one process."""
    steppers = {
        "newton_cg": _stepper(ncg.newton_cg(solver=ncg.cg(maxiter=3))),
        "optax.lbfgs": _stepper(optax.lbfgs()),
    }
    seconds: dict[str, list[float]] = {name: [] for name in steppers}
    for _ in range(repeats):
        for name, run in steppers.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    return {name: 1e6 * statistics.median(taken) for name, taken in seconds.items()}

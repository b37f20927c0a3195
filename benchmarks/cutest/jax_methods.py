"""Peers that are written in JAX: L-BFGS of optax and BFGS of optimistix."""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.experimental
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.cutest.problems import Problem, Settings

Objective = Callable[[Any], jax.Array]
# BFGS has a dense matrix: above this many variables it is not run.
LARGEST_BFGS = 1000


class Ended(NamedTuple):
    """Where a method ended and what it asked for.

    Attributes:
      point: the last parameters.
      iterations: int.
      gradients: evaluations of value and gradient.
      values: evaluations of the value alone.
    """

    point: Any
    iterations: jax.Array
    gradients: jax.Array
    values: jax.Array


def _largest(tree: Any) -> jax.Array:
    return optax.tree.norm(tree, ord=jnp.inf)


def lbfgs(f: Objective, start: Any, settings: Settings, is_over: Callable) -> Ended:
    """Optax's L-BFGS with its defaults, a zoom line search."""
    tx = optax.lbfgs()
    value_and_grad = optax.value_and_grad_from_state(f)

    def goes_on(now):
        k, _, _, norm, _ = now
        return (norm > settings.gtol) & (k < settings.maxiter) & ~is_over()

    def step(now):
        k, params, state, _, gradients = now
        value, grad = value_and_grad(params, state=state)
        updates, state = tx.update(
            grad, state, params, value=value, grad=grad, value_fn=f
        )
        params = optax.apply_updates(params, updates)
        norm = _largest(optax.tree.get(state, "grad"))
        asked = optax.tree.get(state, "num_linesearch_steps")
        return k + 1, params, state, norm, gradients + asked

    norm = _largest(jax.grad(f)(start))
    begin = (jnp.asarray(0), start, tx.init(start), norm, jnp.asarray(1))
    k, params, _, _, gradients = jax.lax.while_loop(goes_on, step, begin)
    return Ended(params, k, gradients, jnp.asarray(0))


def bfgs(f: Objective, start: Any, settings: Settings, is_over: Callable) -> Ended:
    """Optimistix's BFGS with its defaults, stopped by the same rule as the others."""
    import optimistix

    solver = optimistix.BFGS(rtol=0.0, atol=0.0)
    number = jax.eval_shape(f, start)

    def fn(y, _):
        return f(y), None

    fixed = dict(fn=fn, args=None, options={}, tags=frozenset())
    first = solver.init(y=start, f_struct=number, aux_struct=None, **fixed)

    def goes_on(now):
        k, _, state, norm = now
        going = state.result == optimistix.RESULTS.successful
        return (norm > settings.gtol) & (k < settings.maxiter) & ~is_over() & going

    def step(now):
        k, y, state, _ = now
        y, state, _ = solver.step(y=y, state=state, **fixed)
        return k + 1, y, state, _largest(state.f_info.grad)

    state_of_arrays, static = _split(first)

    def body(now):
        k, y, arrays, norm = now
        k, y, state, norm = step((k, y, _join(arrays, static), norm))
        return k, y, _split(state)[0], norm

    def condition(now):
        k, y, arrays, norm = now
        return goes_on((k, y, _join(arrays, static), norm))

    begin = (jnp.asarray(0), start, state_of_arrays, jnp.asarray(jnp.inf))
    k, y, arrays, _ = jax.lax.while_loop(condition, body, begin)
    accepted = _join(arrays, static).num_accepted_steps
    return Ended(y, k, accepted, k - accepted)


def _split(state: Any) -> tuple[Any, Any]:
    import equinox

    return equinox.partition(state, equinox.is_array)


def _join(arrays: Any, static: Any) -> Any:
    import equinox

    return equinox.combine(arrays, static)


METHODS = {"optax-lbfgs": lbfgs, "optimistix-bfgs": bfgs}


def run(problem: Problem, method: str, settings: Settings) -> tuple[Ended, str, float]:
    """Runs one of `METHODS`: where it ended, how, and the seconds it took."""
    started = float("inf")

    def too_late():
        return np.bool_(time.perf_counter() - started > settings.time_limit)

    def is_over():
        shape = jax.ShapeDtypeStruct((), bool)
        return jax.experimental.io_callback(too_late, shape)

    if method == "optimistix-bfgs" and problem.x0.size > LARGEST_BFGS:
        zero = jnp.asarray(0)
        reason = f"not run: more than {LARGEST_BFGS} variables"
        return Ended(problem.start, zero, zero, zero), reason, 0.0

    def solve(start):
        return METHODS[method](problem.objective, start, settings, is_over)

    compiled = jax.jit(solve).lower(problem.start).compile()
    started = time.perf_counter()
    ended = jax.block_until_ready(compiled(problem.start))
    seconds = time.perf_counter() - started
    return ended, "time limit" if too_late() else "", seconds

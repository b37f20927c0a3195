"""Methods of optax: first-order ones, whose learning rate is tuned, and L-BFGS."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from benchmarks.peers.base import Competitor, Method, Problem, Setting
from benchmarks.peers.batches import in_batches, plan
from benchmarks.scenarios._base import Batch, Params
from benchmarks.training.schedules import SCHEDULES

sgd = partial(optax.sgd, momentum=0.9, nesterov=True)


class _Counted(NamedTuple):
    inner: optax.OptState
    gradients: jax.Array


def first_order(
    make: Callable[[optax.Schedule], optax.GradientTransformation],
    problem: Problem,
    setting: Setting | None,
) -> Method:
    """A first-order method: every step costs one gradient."""
    assert setting is not None, "first-order methods are tuned"
    batches = plan(problem, setting.batch)
    shape = SCHEDULES[setting.schedule](batches.total)

    def transform(learning_rate: jax.Array) -> optax.GradientTransformation:
        # The learning rate is traced: one compilation serves the whole grid.
        return make(lambda count: learning_rate * shape(count))

    def init(params: Params, learning_rate: jax.Array) -> Any:
        return transform(learning_rate).init(params), learning_rate

    def step(params: Params, state: Any, batch: Batch) -> tuple[Params, Any, float]:
        inner, learning_rate = state
        grads = jax.grad(lambda p: problem.scenario.value(p, **batch))(params)
        updates, inner = transform(learning_rate).update(grads, inner, params)
        return optax.apply_updates(params, updates), (inner, learning_rate), 1.0

    return in_batches(problem, batches, init, step)


def lbfgs(problem: Problem, _: Setting | None) -> Method:
    """`optax.lbfgs` with its defaults; a call of value-and-gradient is one unit."""
    tx = optax.lbfgs()

    def init(params: Params, seed: Any, learning_rate: Any) -> _Counted:
        return _Counted(tx.init(params), jnp.zeros((), jnp.int32))

    def advance(params: Params, state: _Counted, data: Batch) -> tuple[Params, Any]:
        def value_fn(params: Params) -> jax.Array:
            return problem.scenario.value(params, **data)

        # The line search hands over value and gradient, but for the very first step.
        fresh = ~jnp.isfinite(optax.tree.get(state.inner, "value"))
        value, grads = optax.value_and_grad_from_state(value_fn)(
            params, state=state.inner
        )
        updates, inner = tx.update(
            grads, state.inner, params, value=value, grad=grads, value_fn=value_fn
        )
        search = optax.tree.get(inner, "info").num_linesearch_steps
        gradients = (search + fresh).astype(state.gradients.dtype)
        return optax.apply_updates(params, updates), _Counted(inner, gradients)

    # A step that has converged calls nothing; at no cost it would run for ever.
    return Method(init, advance, spent=lambda state: max(float(state.gradients), 1.0))


def tuned(
    name: str,
    what: str,
    make: Callable[[optax.Schedule], optax.GradientTransformation],
    exponents: range,
) -> tuple[Competitor, Competitor]:
    """A first-order method on the full batch, and on mini-batches."""
    build = partial(first_order, make)
    full = f"{what}, full batch; learning rate and schedule tuned"
    small = f"{what}, shuffled mini-batches; tuned like {name}"
    return (
        Competitor(name, full, build, exponents),
        Competitor(f"{name}_minibatch", small, build, exponents, minibatch=True),
    )

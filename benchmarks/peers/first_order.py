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


POWER = 9.0  # of the average of the iterates, as `kronecker_adam` has it


class _Counted(NamedTuple):
    inner: optax.OptState
    gradients: jax.Array


def first_order(
    make: Callable[[optax.Schedule], optax.GradientTransformation],
    problem: Problem,
    setting: Setting | None,
    averaged: bool = False,
) -> Method:
    """A first-order method: every step costs one gradient.

    With ``averaged`` the model is evaluated at an average of the iterates, the same as
    that of `kronecker_adam`: step ``t`` moves it ``9 / (t + 8)`` of the way to the
    iterate.
    """
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

    def init_average(params: Params, learning_rate: jax.Array) -> Any:
        return init(params, learning_rate), params, jnp.zeros(())

    def step_average(average: Params, state: Any, batch: Batch) -> Any:
        state, iterate, count = state
        iterate, state, cost = step(iterate, state, batch)
        average = optax.incremental_update(iterate, average, POWER / (count + POWER))
        return average, (state, iterate, count + 1), cost

    if averaged:
        return in_batches(problem, batches, init_average, step_average)
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


def tuned_average(
    name: str,
    what: str,
    make: Callable[[optax.Schedule], optax.GradientTransformation],
    exponents: range,
) -> Competitor:
    """A first-order method on mini-batches, evaluated at the average of its iterates.

    The average takes the place of a schedule.
    """
    return Competitor(
        f"{name}_averaged",
        f"{what}, mini-batches, at the average of its iterates; learning rate tuned",
        partial(first_order, make, averaged=True),
        exponents,
        schedules=("constant",),
        minibatch=True,
    )

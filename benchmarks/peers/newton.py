"""The optimizers of `ncg_optax`, and the poster's method built from its parts."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import ncg_optax as ncg
from benchmarks.peers.base import Method, Problem, Setting
from benchmarks.peers.batches import Plan, in_batches, plan
from benchmarks.peers.first_order import sgd
from benchmarks.scenarios import Scenario
from benchmarks.scenarios._base import Batch, Params
from benchmarks.training import cost
from benchmarks.training.schedules import SCHEDULES
from ncg_optax.minibatch.step import WARM_UP

Build = Callable[[Problem, Setting | None], Method]
BATCH = 512  # terms of the loss in a mini-batch of stochastic_hessian_free


def newton_step(
    scenario: Scenario, tx: optax.GradientTransformationExtraArgs
) -> Callable[[Params, Any, Batch], tuple[Params, Any]]:
    """``step(params, state, data) -> (params, state)`` with a transform of ours."""
    loss = ncg.CompositeLoss(scenario.model, scenario.loss)

    def step(params: Params, state: Any, data: Batch) -> tuple[Params, Any]:
        value_fn = loss.bind(**data)
        value, grads = jax.value_and_grad(value_fn)(params)
        updates, state = tx.update(
            grads, state, params, value=value, grad=grads, value_fn=value_fn
        )
        return optax.apply_updates(params, updates), state

    return step


def _untuned(
    problem: Problem,
    batch: int | None,
    tx: optax.GradientTransformationExtraArgs,
    price: Callable[[Any], jax.Array],
) -> Method:
    """A transform of ours on batches, or on all examples if ``batch`` is ``None``.

    ``price`` is the cost of a step in gradients of its batch, from its `get_info`.
    """
    advance = newton_step(problem.scenario, tx)

    def init(params: Params, learning_rate: jax.Array) -> optax.OptState:
        return tx.init(params)

    def step(params: Params, state: Any, batch: Batch) -> tuple[Any, Any, Any]:
        params, state = advance(params, state, batch)
        return params, state, price(ncg.get_info(state))

    return in_batches(problem, plan(problem, batch), init, step)


def preset(name: str, curvature: cost.Curvature) -> Build:
    """One of the presets of `ncg_optax` with its defaults, on all examples."""

    def build(problem: Problem, _: Setting | None) -> Method:
        tx = getattr(ncg, name)()
        prices = cost.measure(problem.scenario, problem.train, curvature)

        def price(info: Any) -> jax.Array:
            return prices.price(info.batch_products, info.batch_evaluations)

        return _untuned(problem, None, tx, price)._replace(prices=prices)

    return build


def residual_space(problem: Problem, _: Setting | None) -> Method:
    """Exact steps by `residual_space`, with the cost of its matrices.

    The passes through the network are the smaller part, and `get_info` counts both.
    """
    tx = ncg.newton_cg(curvature=ncg.gauss_newton(), solver=ncg.residual_space())

    def init(params: Params, seed: Any, learning_rate: Any) -> optax.OptState:
        return tx.init(params)

    def spent(state: optax.OptState) -> float:
        return float(ncg.get_info(state).gradient_equivalents)

    return Method(init, newton_step(problem.scenario, tx), spent)


class Averaged(NamedTuple):
    """State of mini-batch steps whose running mean is evaluated."""

    inner: optax.OptState  # the state of the optimizer
    iterate: Params  # its parameters, before averaging
    count: jax.Array  # of the steps
    rate: jax.Array  # the learning rate, for an optimizer that has one


def _averaged(
    problem: Problem,
    batches: Plan,
    transform: Callable[[jax.Array], optax.GradientTransformationExtraArgs],
    price: Callable[[Any, jax.Array], jax.Array],
    begin: int = 0,
) -> Method:
    """Steps on mini-batches, and the running mean of their iterates.

    The mean is over about a third of the steps so far and at most the last thirty, and
    begins after ``begin`` steps. ``price`` is the cost of a step, from the state of the
    optimizer and the number of the step.
    """

    def init(params: Params, rate: jax.Array) -> Averaged:
        count = jnp.zeros((), jnp.int32)
        return Averaged(transform(rate).init(params), params, count, rate)

    def step(params: Params, state: Averaged, batch: Batch) -> tuple[Any, Any, Any]:
        inner, iterate, count, rate = state
        advance = newton_step(problem.scenario, transform(rate))
        iterate, inner = advance(iterate, inner, batch)
        averaged = jnp.maximum(count - begin, 0)
        share = jnp.maximum(3 / (averaged + 3), 1 / 30)  # the first replaces the mean
        mean = optax.incremental_update(iterate, params, share)
        cost = price(inner, count)
        return mean, Averaged(inner, iterate, count + 1, rate), cost

    return in_batches(problem, batches, init, step)


def _stochastic(problem: Problem) -> tuple[int, Any]:
    """`stochastic_hessian_free` as its documentation has it, and its batch size.

    An example with many terms of the loss, such as a sequence, counts as so many, but
    batches are not smaller than the smallest of the first-order methods.
    """
    scenario, terms = problem.scenario, problem.scenario.terms
    size = max(BATCH // terms, min(scenario.batch_sizes))
    sampling = ncg.sampling(1 / 4, min_examples=max(128 // terms, 1))
    tx = ncg.stochastic_hessian_free(sampling=sampling)
    return min(size, problem.examples // 4), tx


def stochastic(problem: Problem, _: Setting | None) -> Method:
    """`stochastic_hessian_free` on large batches, averaged."""
    size, tx = _stochastic(problem)

    def price(state: Any, count: jax.Array) -> jax.Array:
        return ncg.get_info(state).gradient_equivalents

    return _averaged(problem, plan(problem, size), lambda rate: tx, price)


def kronecker_adam(
    problem: Problem, setting: Setting | None, averaged: bool = True, **changes: Any
) -> Method:
    """`kronecker_adam` on the smallest batches of the first-order methods.

    For ablations it is evaluated at the last iterate unless ``averaged``, takes other
    settings than its defaults, or has a learning rate that is tuned.
    """
    batches = plan(problem, min(problem.scenario.batch_sizes))

    def transform(rate: jax.Array) -> optax.GradientTransformationExtraArgs:
        if setting is None:
            return ncg.kronecker_adam(**changes)
        # Its warm-up for a number, which has to be known without tracing.
        return ncg.kronecker_adam(
            lambda count: rate * jnp.minimum((count + 1) / WARM_UP, 1), **changes
        )

    def init(params: Params, rate: jax.Array) -> Any:
        return transform(rate).init(params), params, rate

    def step(params: Params, state: Any, batch: Batch) -> tuple[Any, Any, Any]:
        inner, iterate, rate = state
        advance = newton_step(problem.scenario, transform(rate))
        iterate, inner = advance(iterate, inner, batch)
        cost = ncg.get_info(inner).gradient_equivalents
        shown = ncg.averaged_params(inner, iterate) if averaged else iterate
        return shown, (inner, iterate, rate), cost

    return in_batches(problem, batches, init, step)


def sgd_then_stochastic(problem: Problem, setting: Setting | None) -> Method:
    """SGD for half of the budget, then `stochastic_hessian_free`, averaged.

    Both see the same batches, as large as the second one needs them.
    """
    assert setting is not None, "the learning rate of SGD is tuned"
    size, then = _stochastic(problem)
    batches = plan(problem, size)
    switch = max(batches.total // 2, 1)
    shape = SCHEDULES[setting.schedule](switch)

    def transform(rate: jax.Array) -> optax.GradientTransformationExtraArgs:
        return ncg.switch_after(switch, sgd(lambda count: rate * shape(count)), then)

    def price(state: Any, count: jax.Array) -> jax.Array:
        later = ncg.get_info(state.then).gradient_equivalents
        return jnp.where(count < switch, 1.0, later)

    return _averaged(problem, batches, transform, price, begin=switch)


def poster(problem: Problem, _: Setting | None) -> Method:
    """The algorithm of the poster (arXiv 2208.02017), as its code has it.

    The exact Hessian of the batch, a fixed damping, at most 20 iterations of plain CG
    to an absolute residual of 1e-5, the gradient in the place of a direction that does
    not descend by more than the damping, and a learning rate; no line search.
    """
    settings = problem.scenario.poster
    assert settings is not None, "the poster has no settings for this scenario"
    tau = settings.damping
    tx = ncg.newton_cg(
        settings.learning_rate,
        damping=tau,
        linesearch=None,
        solver=ncg.cg(
            maxiter=20,
            rtol=0.0,
            atol=1e-5,
            forcing=None,
            negative_curvature="ignore",
            descent_threshold=tau,
        ),
    )
    return _untuned(problem, settings.batch, tx, lambda i: i.gradient_equivalents)

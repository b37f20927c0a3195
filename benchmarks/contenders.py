"""The optimizers that compete, all behind the same two functions: init and advance."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import ncg_optax as ncg
from benchmarks import cost
from benchmarks.scenarios import Scenario
from benchmarks.scenarios._base import Batch, Params

State = Any


class Setting(NamedTuple):
    """What is tuned for a first-order method; the others have no setting at all.

    Attributes:
        batch: examples per step, ``None`` for all of them.
        schedule: ``constant`` or ``cosine``.
        exponent: the learning rate in half decades, so that grids can grow exactly.
    """

    batch: int | None
    schedule: str
    exponent: int

    @property
    def learning_rate(self) -> float:
        """The learning rate.

        Example:
            >>> Setting(None, "constant", -4).learning_rate
            0.01
        """
        return 10.0 ** (self.exponent / 2)

    def __str__(self) -> str:
        batch = "full batch" if self.batch is None else f"batch {self.batch}"
        return f"lr {self.learning_rate:.1e}, {batch}, {self.schedule}"


class Problem(NamedTuple):
    """A scenario with its data and the budget of a run, in gradients."""

    scenario: Scenario
    train: Batch
    held_out: Batch
    budget: float

    @property
    def examples(self) -> int:
        return len(self.train["y"])


class Method(NamedTuple):
    """An optimizer bound to a problem.

    Attributes:
        init: ``init(params, seed, learning_rate) -> state``, jittable.
        advance: ``advance(params, state, data) -> (params, state)``, jittable: one
            step, or one epoch of mini-batch steps.
        spent: gradients that the latest `advance` cost, from its state.
        steps: optimizer steps in one `advance`.
        prices: what the parts of a Newton-CG step cost; the others need no model.
    """

    init: Callable[[Params, Any, Any], State]
    advance: Callable[[Params, State, Batch], tuple[Params, State]]
    spent: Callable[[State], float]
    steps: int = 1
    prices: cost.CostModel | None = None


class Contender(NamedTuple):
    """An optimizer that can enter the comparison.

    Attributes:
        name: what the command line calls it.
        description: one line for ``python -m benchmarks list``.
        build: binds it to a problem; only batch and schedule of the setting matter.
        exponents: learning rates to begin the tuning with, in half decades; empty if
            there is nothing to tune.
        minibatch: whether it takes shuffled mini-batches instead of the full batch.
    """

    name: str
    description: str
    build: Callable[[Problem, Setting | None], Method]
    exponents: range = range(0)
    minibatch: bool = False


class _Stochastic(NamedTuple):
    inner: optax.OptState
    key: jax.Array
    learning_rate: jax.Array


class _Counted(NamedTuple):
    inner: optax.OptState
    gradients: jax.Array


def _first_order(
    make: Callable[[optax.Schedule], optax.GradientTransformation],
    problem: Problem,
    setting: Setting | None,
) -> Method:
    """A first-order method; one `advance` is a full-batch step or a shuffled epoch."""
    assert setting is not None, "first-order methods are tuned"
    examples = problem.examples
    size = min(setting.batch or examples, examples)
    steps = examples // size
    units = steps * size / examples
    decay_steps = max(int(problem.budget / units), 1) * steps
    shape = {
        "constant": optax.constant_schedule(1.0),
        "cosine": optax.cosine_decay_schedule(1.0, decay_steps),
    }[setting.schedule]

    def transform(learning_rate: jax.Array) -> optax.GradientTransformation:
        # The learning rate is traced: one compilation serves the whole grid.
        return make(lambda count: learning_rate * shape(count))

    def init(params: Params, seed: Any, learning_rate: Any) -> _Stochastic:
        inner = transform(learning_rate).init(params)
        return _Stochastic(inner, jax.random.key(seed), jnp.asarray(learning_rate))

    def advance(params: Params, state: _Stochastic, data: Batch) -> tuple[Params, Any]:
        tx = transform(state.learning_rate)

        def step(carry: Any, batch: Batch) -> tuple[Any, None]:
            params, inner = carry
            grads = jax.grad(problem.scenario.value)(params, **batch)
            updates, inner = tx.update(grads, inner, params)
            return (optax.apply_updates(params, updates), inner), None

        if steps == 1 and size == examples:
            (params, inner), _ = step((params, state.inner), data)
            return params, state._replace(inner=inner)
        key, shuffle = jax.random.split(state.key)
        rows = jax.random.permutation(shuffle, examples)[: steps * size]
        batches = jax.tree.map(
            lambda leaf: leaf[rows].reshape(steps, size, *leaf.shape[1:]), data
        )
        (params, inner), _ = jax.lax.scan(step, (params, state.inner), batches)
        return params, state._replace(inner=inner, key=key)

    return Method(init, advance, spent=lambda _: units, steps=steps)


def _adam(problem: Problem, setting: Setting | None) -> Method:
    return _first_order(optax.adam, problem, setting)


def _sgd(problem: Problem, setting: Setting | None) -> Method:
    def make(learning_rate: optax.Schedule) -> optax.GradientTransformation:
        return optax.sgd(learning_rate, momentum=0.9, nesterov=True)

    return _first_order(make, problem, setting)


def _lbfgs(problem: Problem, _: Setting | None) -> Method:
    """`optax.lbfgs` as it comes; every call of value-and-gradient is one unit."""
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
        return optax.apply_updates(params, updates), _Counted(inner, search + fresh)

    # A step that has converged calls nothing; at no cost it would run for ever.
    return Method(init, advance, spent=lambda state: max(float(state.gradients), 1.0))


def _newton(
    preset: str, curvature: cost.Curvature
) -> Callable[[Problem, Setting | None], Method]:
    """One of the presets of `ncg_optax`, with no settings at all."""

    def build(problem: Problem, _: Setting | None) -> Method:
        tx = getattr(ncg, preset)()
        loss = ncg.CompositeLoss(problem.scenario.model, problem.scenario.loss)
        prices = cost.measure(problem.scenario, problem.train, curvature)

        def init(params: Params, seed: Any, learning_rate: Any) -> optax.OptState:
            return tx.init(params)

        def advance(params: Params, state: Any, data: Batch) -> tuple[Params, Any]:
            value_fn = loss.bind(**data)
            value, grads = jax.value_and_grad(value_fn)(params)
            updates, state = tx.update(
                grads, state, params, value=value, grad=grads, value_fn=value_fn
            )
            return optax.apply_updates(params, updates), state

        def spent(state: optax.OptState) -> float:
            info = ncg.get_info(state)
            return prices.price(int(info.products), int(info.evaluations))

        return Method(init, advance, spent, prices=prices)

    return build


CONTENDERS: dict[str, Contender] = {
    contender.name: contender
    for contender in (
        Contender(
            "newton_cg",
            "ncg_optax.newton_cg(), full batch, no settings",
            _newton("newton_cg", "hessian"),
        ),
        Contender(
            "hessian_free",
            "ncg_optax.hessian_free(), full batch, no settings",
            _newton("hessian_free", "gauss_newton"),
        ),
        Contender(
            "adam",
            "optax.adam, full batch; learning rate and schedule tuned",
            _adam,
            range(-7, -1),
        ),
        Contender(
            "sgd",
            "optax.sgd, Nesterov momentum 0.9, full batch; tuned like adam",
            _sgd,
            range(-5, 1),
        ),
        Contender("lbfgs", "optax.lbfgs(), full batch, no settings", _lbfgs),
        Contender(
            "adam_minibatch",
            "optax.adam on shuffled batches of 64; tuned like adam",
            _adam,
            range(-7, -1),
            minibatch=True,
        ),
        Contender(
            "sgd_minibatch",
            "optax.sgd on shuffled batches of 64; tuned like sgd",
            _sgd,
            range(-5, 1),
            minibatch=True,
        ),
    )
}

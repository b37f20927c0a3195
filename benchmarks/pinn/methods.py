"""The contenders: ours, first-order and quasi-Newton methods, and foreign packages."""

import importlib.util
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import ncg_optax as ncg
from benchmarks.peers.soap import soap
from benchmarks.pinn.tasks import Params, Rows, Task

State = Any
# ``step(params, state, rows, left) -> (params, state, cost)``, jittable. ``left`` is
# the share of the phase that is left, ``cost`` in gradients; nan if it is not known.
Step = Callable[[Params, State, Rows, jax.Array], tuple[Params, State, jax.Array]]
# ``begin(task, params, rows, rate) -> (state, step)``
Begin = Callable[[Task, Params, Rows, float], tuple[State, Step]]
RATES = (-6, -5, -4)  # first learning rates, in half decades: 1e-3, 3.2e-3, 1e-2


class Phase(NamedTuple):
    """A part of a run.

    Attributes:
      share: of the seconds.
      begin: returns the first state and a step.
    """

    share: float
    begin: Begin


class Method(NamedTuple):
    """A contender.

    Attributes:
      title: for tables and figures.
      phases: one after the other.
      rate: "tuned", the name of a method whose learning rate is taken, or "" for none.
      package: what has to be installed, by the name under which it is imported.
    """

    title: str
    phases: tuple[Phase, ...]
    rate: str = ""
    package: str = ""

    @property
    def missing(self) -> str:
        """What to do before it can run; empty if it can."""
        if not self.package or importlib.util.find_spec(self.package):
            return ""
        name = self.package.replace("_", "-")
        return f"{name} is not installed: python -m pip install '.[pinn]'"


def ours(make: Callable[[], optax.GradientTransformationExtraArgs]) -> Begin:
    """An optimizer of this library without settings."""

    def begin(task, params, rows, rate):
        tx = make()

        def step(params, state, rows, left):
            loss = task.loss(rows)
            grads = jax.grad(loss)(params)
            updates, state = tx.update(grads, state, params, value_fn=loss)
            cost = ncg.get_info(state).gradient_equivalents
            return optax.apply_updates(params, updates), state, cost

        return tx.init(params), step

    return begin


def first_order(make: Callable[[Any], Any], decays: bool) -> Begin:
    """A first-order method; its rate may fall along a half cosine."""

    def begin(task, params, rows, rate):
        # The rate is a part of the state: one compilation serves all rates.
        def step(params, state, rows, left):
            inner, rate = state
            now = rate * (1 - jnp.cos(jnp.pi * left)) / 2 if decays else rate
            grads = jax.grad(task.loss(rows))(params)
            updates, inner = make(now).update(grads, inner, params)
            return optax.apply_updates(params, updates), (inner, rate), jnp.ones(())

        return (make(rate).init(params), jnp.asarray(rate)), step

    return begin


def lbfgs(task, params, rows, rate):
    """`optax.lbfgs` with a memory of 100 as in Rathore et al. (2024)."""
    tx = optax.lbfgs(memory_size=100)

    def step(params, state, rows, left):
        loss = task.loss(rows)
        fresh = ~jnp.isfinite(optax.tree.get(state, "value"))
        value, grads = optax.value_and_grad_from_state(loss)(params, state=state)
        updates, state = tx.update(
            grads, state, params, value=value, grad=grads, value_fn=loss
        )
        # The line search hands over value and gradient, but for the very first step.
        cost = optax.tree.get(state, "info").num_linesearch_steps + fresh
        return optax.apply_updates(params, updates), state, cost

    return tx.init(params), step


def nystrom_newton() -> optax.GradientTransformationExtraArgs:
    """Parts of ours in the place of NysNewton-CG (Rathore et al. 2024).

    Rank 60 and a refresh every 20 steps are theirs. They fix the damping, which they
    tune, and allow 1000 iterations; here Levenberg and Marquardt's rule sets it, and
    a step has to fit into seconds.
    """
    return ncg.newton_cg(
        curvature=ncg.hessian(),
        solver=ncg.cg(maxiter=100),
        preconditioner=ncg.nystrom(rank=60, refresh=20),
    )


def ssbroyden(task, params, rows, rate):
    """Self-scaled Broyden of ssbroyden-optimistix, with its line search.

    A step evaluates one trial point with its gradient.
    """
    os.environ.setdefault("SSBROYDEN_ENABLE_X64", "0")
    import equinox as eqx
    from ssbroyden_optimistix import SSBroyden

    solver = SSBroyden(rtol=0.0, atol=0.0)

    def loss_of(rows):
        return lambda params, args: (task.loss(rows)(params), None)

    shape = jax.eval_shape(task.loss(rows), params)
    state = solver.init(loss_of(rows), params, None, {}, shape, None, frozenset())
    arrays, rest = eqx.partition(state, eqx.is_array)

    def step(params, arrays, rows, left):
        state = eqx.combine(arrays, rest)
        params, state, _ = solver.step(
            loss_of(rows), params, None, {}, state, frozenset()
        )
        return params, eqx.filter(state, eqx.is_array), jnp.ones(())

    return arrays, step


def jinns(task, params, rows, rate):
    """Self-scaled Broyden of jinns, with optax's line search."""
    from jinns.optimizers import scale_by_SSBroyden_family

    tx = scale_by_SSBroyden_family()

    def step(params, state, rows, left):
        loss = task.loss(rows)
        value, grads = jax.value_and_grad(loss)(params)
        steps, state = tx.update(
            grads, state, params, value, grads, value_fn=loss, grad_fn=jax.grad(loss)
        )
        cost = 2 + state.linesearch_state.info.num_linesearch_steps
        return optax.apply_updates(params, steps), state, cost

    return tx.init(params), step


def residual_space() -> optax.GradientTransformationExtraArgs:
    """Exact Gauss-Newton steps from the start, as the documentation has them."""
    return ncg.newton_cg(curvature=ncg.gauss_newton(), solver=ncg.residual_space())


ADAM = first_order(optax.adam, decays=False)


def _soap(rate):
    return soap(rate, precondition_frequency=1)


METHODS: dict[str, Method] = {
    "scientific": Method("scientific", (Phase(1, ours(ncg.scientific)),)),
    "adam_lbfgs": Method(
        "Adam, then L-BFGS", (Phase(0.2, ADAM), Phase(0.8, lbfgs)), rate="tuned"
    ),
    "hessian_free": Method("hessian_free", (Phase(1, ours(ncg.hessian_free)),)),
    "residual_space": Method("residual_space", (Phase(1, ours(residual_space)),)),
    # Published runs begin with Adam as well (Urban, Stefanou and Pons 2025).
    "ssbroyden": Method(
        "Adam, self-scaled Broyden",
        (Phase(0.2, ADAM), Phase(0.8, ssbroyden)),
        rate="adam_lbfgs",
        package="ssbroyden_optimistix",
    ),
    "soap": Method("SOAP", (Phase(1, first_order(_soap, decays=True)),), rate="tuned"),
    "nncg": Method(
        "Adam, L-BFGS, NNCG",
        (Phase(0.2, ADAM), Phase(0.4, lbfgs), Phase(0.4, ours(nystrom_newton))),
        rate="adam_lbfgs",
    ),
    "jinns": Method(
        "Adam, SSBroyden of jinns",
        (Phase(0.2, ADAM), Phase(0.8, jinns)),
        rate="adam_lbfgs",
        package="jinns",
    ),
}

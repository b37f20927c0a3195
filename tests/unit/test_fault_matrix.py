"""Numbers that are not finite, at every place and time: a run goes on after them.

Faults are arrays with one number per step, 0 for none, so that one compiled run of an
optimizer serves all cases. After the last fault a run needs at most twice the steps of
a run without faults.
"""

import functools
import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import ncg_optax as ncg
from ncg_optax import Status

pytestmark = pytest.mark.usefixtures("empty_jit_caches")

LONGEST = 100  # steps with faults
SMALLEST_RADIUS = 47  # so many doublings are from there to the first
NAN, INF = float("nan"), float("inf")
# The values of the faults at each place. Those of damping replace it; the last is 0.
PLACES = {
    "loss": (NAN, INF, -INF),
    "gradient": (NAN, INF),
    "product": (NAN,),
    "trial": (NAN, INF, -INF),
    "example": (NAN, INF),
    "warm": (NAN, INF),
    "factors": (NAN, INF),
    "damping": (NAN, INF, 3e38, 1e-37, 1e-45),
}
TIMES = {"first": (0, 1), "later": (7, 1), "ten": (7, 10), "hundred": (0, LONGEST)}
# The batch is not known, so that nothing is done.
UNKNOWN = {"loss", "gradient", "example"}

# The problem: a network of 26 weights on 24 examples.


def start():
    keys = jax.random.split(jax.random.key(1), 2)
    return {
        "w1": 0.7 * jax.random.normal(keys[0], (3, 4)),
        "b1": jnp.zeros(4),
        "w2": 0.7 * jax.random.normal(keys[1], (4, 2)),
        "b2": jnp.zeros(2),
    }


X = jax.random.normal(jax.random.key(0), (24, 3))
Y = jnp.sin(2 * X[:, :2]) + 0.1


def model(params, x, trial, at):
    """``trial`` is added to the outputs at all parameters but ``at``."""
    outputs = jnp.tanh(x @ params["w1"] + params["b1"]) @ params["w2"] + params["b2"]
    same = jax.tree.map(lambda p, q: jnp.all(p == q), params, at)
    here = jnp.all(jnp.stack(jax.tree.leaves(same)))
    return outputs + jnp.where(here, 0, trial)


def loss_fn(outputs, y, bad, product):
    """Its second derivative is NaN if ``product`` is not 0."""
    rest = outputs - jax.lax.stop_gradient(outputs)
    root = jnp.abs(jnp.where(product == 0, 1, rest)) ** 1.5
    extra = jnp.where(product == 0, 0, jnp.mean(root))
    return jnp.mean((outputs - y) ** 2) + extra + bad


LOSS = ncg.CompositeLoss(model, loss_fn)


def with_faults(state, fault):
    """The state of an optimizer with faults in its arrays."""

    def replaced(name, value, scalars=False):
        def of_leaf(path, leaf):
            real = jnp.issubdtype(jnp.result_type(leaf), jnp.inexact)
            here = f".{name}" in jax.tree_util.keystr(path)
            if not (real and here and (leaf.ndim == 0) == scalars):
                return leaf
            return jnp.where(value == 0, leaf, value.astype(leaf.dtype))

        return of_leaf

    tree_map = jax.tree_util.tree_map_with_path
    state = tree_map(replaced("solver", fault["warm"]), state)
    state = tree_map(replaced("preconditioner", fault["factors"]), state)
    state = tree_map(replaced("bases", fault["factors"]), state)
    return tree_map(replaced("damping.damping", fault["damping"], True), state)


class Case(NamedTuple):
    tx: optax.GradientTransformation
    steps: int = 10  # of a run without faults
    has_radius: bool = False


GAUSS_NEWTON = {"curvature": ncg.gauss_newton()}
CASES = {
    "newton_cg": Case(ncg.newton_cg()),
    "hessian_free": Case(ncg.hessian_free()),
    "steihaug": Case(
        ncg.newton_cg(solver=ncg.steihaug(), damping=0.0, linesearch=None),
        has_radius=True,
    ),
    "kronecker_adam": Case(ncg.kronecker_adam(), 60),
}
MORE_CASES = {
    "stochastic_hessian_free": Case(ncg.stochastic_hessian_free(), 30),
    "learning rate": Case(ncg.kronecker_adam(1e-2), 60),
    "warm start": Case(ncg.newton_cg(solver=ncg.cg(8, warm_start=0.9)), 15),
    "minres": Case(ncg.newton_cg(solver=ncg.minres())),
    "residual_space": Case(
        ncg.newton_cg(solver=ncg.residual_space(momentum=0.5), **GAUSS_NEWTON)
    ),
    "momentum": Case(
        ncg.newton_cg(
            solver=ncg.quadratic_momentum(ncg.cg(2)),
            preconditioner=ncg.kronecker(),
            **GAUSS_NEWTON,
        )
    ),
    "quasi_newton": Case(ncg.newton_cg(solver=ncg.quasi_newton(ncg.cg(4)))),
    "averaged": Case(
        ncg.newton_cg(
            0.4,
            solver=ncg.averaged_gradient(),
            preconditioner=ncg.jacobi(),
            linesearch=ncg.safeguard(),
            **GAUSS_NEWTON,
        ),
        40,
    ),
    "squared gradients": Case(ncg.newton_cg(preconditioner=ncg.jacobi("gradient"))),
    "nystrom": Case(ncg.newton_cg(preconditioner=ncg.nystrom(3))),
    "composed": Case(
        ncg.newton_cg(
            preconditioner=ncg.compose(ncg.kronecker(with_sqrt=True), ncg.nystrom(2))
        ),
        15,
    ),
    "as the poster": Case(
        ncg.newton_cg(
            0.25,
            solver=ncg.cg(20, rtol=1e-5, forcing=None, negative_curvature="ignore"),
            damping=0.3,
            linesearch=None,
            **GAUSS_NEWTON,
        ),
        20,
    ),
}
ALL = CASES | MORE_CASES


def one_step(tx, carry, fault):
    """The next parameters and state; what a run records."""
    params, state = carry
    state = with_faults(state, fault)
    data = {
        "x": X.at[3].add(fault["example"]),
        "y": Y,
        "bad": fault["loss"],
        "product": fault["product"],
        "trial": fault["trial"],
        "at": params,
    }
    value, grads = jax.value_and_grad(LOSS)(params, **data)
    grads = jax.tree.map(lambda g: g + fault["gradient"], grads)
    updates, state = tx.update(grads, state, params, value=value, value_fn=LOSS, **data)
    params = optax.apply_updates(params, updates)
    plain = {"bad": 0.0, "product": 0.0, "trial": 0.0, "at": params}
    return (params, state), {
        "loss": LOSS(params, x=X, y=Y, **plain),
        "finite": jnp.all(jnp.stack([jnp.isfinite(p).all() for p in params.values()])),
        "moved": jnp.any(jnp.stack([jnp.any(u != 0) for u in updates.values()])),
        "status": ncg.get_info(state).status,
    }


@functools.cache
def run_of(name):
    """A jitted run: the faults of each step -> the record of each step."""
    tx = ALL[name].tx

    @jax.jit
    def run(faults):
        params = start()
        step = functools.partial(one_step, tx)
        return jax.lax.scan(step, (params, tx.init(params)), faults)[1]

    return run


def faults_of(name, place=None, value=0.0, first=0, number=0):
    """One number per step and place."""
    steps = LONGEST + 7 + 2 * ALL[name].steps + SMALLEST_RADIUS
    faults = {k: np.zeros(steps, np.float32) for k in PLACES}
    if place:
        faults[place][first : first + number] = value
    return faults


@functools.cache
def target(name):
    """The loss that a run without faults reaches, with five per cent to spare."""
    losses = jax.device_get(run_of(name)(faults_of(name)))["loss"]
    reached, first = losses[ALL[name].steps - 1], losses[0]
    assert reached < 0.7 * first
    return reached + 0.05 * (first - reached)


def check_recovery(name, place, value, time):
    first, number = TIMES[time]
    faults = faults_of(name, place, value, first, number)
    record = jax.device_get(run_of(name)(faults))
    during, end = slice(first, first + number), first + number
    assert record["finite"].all()
    if place in UNKNOWN:
        assert not record["moved"][during].any()
        assert set(record["status"][during]) == {Status.REJECTED_NON_FINITE}
    steps = 2 * ALL[name].steps
    if place == "trial" and ALL[name].has_radius:
        # What a failed trial divides by 4, a good step doubles.
        steps += min(2 * number, SMALLEST_RADIUS)
    after = record["loss"][end : end + steps]
    assert after.min() <= target(name), (after.min(), target(name))


def check_all(name, places):
    failed = []
    for place, values in places.items():
        for value, time in itertools.product(values, TIMES):
            try:
                check_recovery(name, place, value, time)
            except AssertionError as error:
                failed.append((place, value, time, str(error).split("\n")[0]))
    assert not failed, "\n".join(map(str, failed))


@pytest.mark.parametrize("name", CASES)
def test_a_run_goes_on_after_faults(name):
    check_all(name, {place: values[:1] for place, values in PLACES.items()})


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL)
def test_every_optimizer_goes_on_after_every_fault(name):
    check_all(name, PLACES)


def test_a_loop_of_jitted_steps_and_vmap_go_on_as_scan_does():
    name, tx = "newton_cg", CASES["newton_cg"].tx
    cases = [("loss", NAN), ("product", NAN), ("trial", INF), ("damping", 3e38)]
    runs = [faults_of(name, place, value, 3, 2) for place, value in cases]
    runs = [{k: v[:25] for k, v in run.items()} for run in runs]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *runs)
    record = jax.vmap(run_of(name))(stacked)
    assert record["finite"].all()
    assert (record["loss"][:, -1] <= target(name)).all()
    step = jax.jit(functools.partial(one_step, tx))
    for run in runs:
        carry = start(), tx.init(start())
        for i in range(25):
            carry, record = step(carry, {k: v[i] for k, v in run.items()})
            assert record["finite"]
        assert record["loss"] <= target(name)
    assert step._cache_size() == 1

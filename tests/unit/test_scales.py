"""Losses that are very large or very small make the same steps."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import ncg_optax as ncg
from ncg_optax import Status
from ncg_optax._utils import pytree
from ncg_optax.globalization.damping import as_damping
from ncg_optax.step import model as step_model
from ncg_optax.step.unit import model_unit

X = jax.random.normal(jax.random.key(0), (64, 5))
Y = jnp.sin(X @ jnp.arange(5.0) / 3)
STEPS = 5


def model(params, x):
    return jnp.tanh(x @ params["w"] + params["b"]) @ params["v"]


def start():
    w, v = jax.random.split(jax.random.key(1))
    return {
        "w": 0.5 * jax.random.normal(w, (5, 4)),
        "b": jnp.zeros(4),
        "v": 0.5 * jax.random.normal(v, (4,)),
    }


LOSS = ncg.CompositeLoss(
    model, lambda outputs, y, factor: factor * jnp.mean((outputs - y) ** 2)
)
FREE = dict(damping=0.0, curvature=ncg.gauss_newton())
OPTIMIZERS = {
    "newton_cg": ncg.newton_cg(),
    "hessian_free": ncg.hessian_free(),
    "stochastic_hessian_free": ncg.stochastic_hessian_free(),
    "minres": ncg.newton_cg(solver=ncg.minres()),
    "momentum": ncg.newton_cg(solver=ncg.quadratic_momentum(ncg.cg(maxiter=3))),
    # Without a rule of damping the gradient defines the unit.
    "steihaug": ncg.newton_cg(solver=ncg.steihaug(), linesearch=None, **FREE),
    "averaged": ncg.newton_cg(
        0.3,
        solver=ncg.averaged_gradient(),
        preconditioner=ncg.jacobi(),
        **FREE | {"linesearch": None},
    ),
    "nystrom": ncg.newton_cg(preconditioner=ncg.nystrom(3), **FREE),
}


@functools.cache
def make_step(name):
    tx = OPTIMIZERS[name]

    @jax.jit
    def step(params, state, factor):
        data = {"x": X, "y": Y, "factor": factor}
        grads = jax.grad(LOSS)(params, **data)
        updates, state = tx.update(grads, state, params, value_fn=LOSS, **data)
        return optax.apply_updates(params, updates), state

    return step


@functools.cache
def run(name, exponent):
    """The parameters after each step for 2^exponent times the loss; the infos."""
    step, params = make_step(name), start()
    state = OPTIMIZERS[name].init(params)
    trajectory, infos = [], []
    for _ in range(STEPS):
        params, state = step(params, state, jnp.float32(2.0**exponent))
        trajectory.append(jax.device_get(params))
        infos.append(jax.device_get(ncg.get_info(state)))
    return trajectory, infos


@pytest.mark.parametrize("name", [n for n in OPTIMIZERS if n != "nystrom"])
@pytest.mark.parametrize("exponent", [-66, -33, 33, 64, 100])
def test_a_power_of_two_times_the_loss_makes_the_same_steps_bit_for_bit(name, exponent):
    plain, infos = run(name, 0)
    scaled, scaled_infos = run(name, exponent)
    assert LOSS(plain[-1], x=X, y=Y, factor=1.0) < LOSS(start(), x=X, y=Y, factor=1.0)
    jax.tree.map(np.testing.assert_array_equal, scaled, plain)
    absolute = {"loss", "next_loss", "gradient_norm", "damping", "curvature"}
    absolute |= {"predicted_reduction", "actual_reduction"}
    for info, expected in zip(scaled_infos, infos, strict=True):
        for field in info._fields:
            factor = 2.0**exponent if field in absolute else 1.0
            np.testing.assert_array_equal(
                np.float64(getattr(info, field)),
                factor * np.float64(getattr(expected, field)),
                err_msg=field,
            )


@pytest.mark.parametrize("exponent", [-66, 100])
def test_a_decomposition_is_the_same_up_to_rounding(exponent):
    # That of LAPACK scales the matrix by no power of two.
    for scaled, plain in zip(
        run("nystrom", exponent)[0], run("nystrom", 0)[0], strict=True
    ):
        jax.tree.map(
            lambda x, y: np.testing.assert_allclose(x, y, atol=1e-4), scaled, plain
        )


@pytest.mark.parametrize("name", ["newton_cg", "hessian_free"])
def test_a_loss_of_1e_30_makes_the_same_steps_up_to_rounding(name):
    # What is below 1e-38, 1e-8 of the loss, is zero.
    plain, infos = run(name, 0)
    scaled, scaled_infos = run(name, -100)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, atol=2e-4), scaled, plain
    )
    statuses = [[Status(int(i.status)) for i in some] for some in (scaled_infos, infos)]
    assert statuses[0] == statuses[1]


@pytest.mark.parametrize("factor", [1e-20, 1e19])
def test_a_gradient_norm_whose_square_is_out_of_range(factor):
    loss = lambda w: factor * jnp.sum((w - 3.0) ** 2)  # noqa: E731
    tx, w = ncg.newton_cg(damping=0.0), jnp.zeros(2)
    updates, state = tx.update(jax.grad(loss)(w), tx.init(w), w, value_fn=loss)
    info = ncg.get_info(state)
    np.testing.assert_allclose(info.gradient_norm, factor * 72**0.5, rtol=1e-6)
    np.testing.assert_allclose(updates, 3, rtol=1e-6)
    assert info.status == Status.ACCEPTED


@pytest.mark.parametrize(
    "preconditioner", [ncg.jacobi(), ncg.nystrom(2), ncg.kronecker()], ids=str
)
@pytest.mark.parametrize("factor", [1.0, 1e-6])
def test_float16_with_a_preconditioner(preconditioner, factor):
    x, y = X.astype("float16"), (X @ jnp.arange(5.0) / 3).astype("float16")
    loss = ncg.CompositeLoss(
        lambda w: x @ w,
        lambda outputs: factor * jnp.mean((outputs - y).astype(jnp.float32) ** 2),
    )
    tx = ncg.newton_cg(preconditioner=preconditioner)
    w = jnp.zeros(5, "float16")
    state = tx.init(w)

    @jax.jit
    def step(w, state):
        updates, state = tx.update(jax.grad(loss)(w), state, w, value_fn=loss)
        return optax.apply_updates(w, updates), state

    first = loss(w)
    for _ in range(4):
        w, state = step(w, state)
        info = ncg.get_info(state)
        assert info.solver_status not in (
            Status.SOLVER_NON_FINITE,
            Status.ZERO_CURVATURE,
        )
    assert loss(w) < 0.5 * first


def test_units_are_exact():
    numbers = jnp.array([3e30, 1e-30, 1.0, 0.7, 5.0, 0.0, jnp.inf, jnp.nan])
    units = [float(pytree.power_of_two(x)) for x in numbers]
    assert units == [2.0**100, 2.0**-100, 1.0, 0.5, 4.0, 1.0, 1.0, 1.0]
    tree = {"a": jnp.array([3e30, 4e30]), "b": jnp.zeros(2)}
    np.testing.assert_allclose(pytree.scaled_norm(tree), 5e30, rtol=1e-6)
    assert pytree.scaled_norm(jnp.zeros(2)) == 0
    assert jnp.isnan(pytree.scaled_norm(jnp.array([1.0, jnp.nan])))


def slope_step(tx, size):
    """The first update on a linear loss with a gradient of this size."""
    loss = lambda w: jnp.float32(size) * jnp.sum(w)  # noqa: E731
    w = jnp.zeros(3, jnp.float32)
    update = jax.jit(lambda g, s: tx.update(g, s, w, value_fn=loss))
    return update(jax.grad(loss)(w), tx.init(w))


@pytest.mark.parametrize("size", [1e-11, 1e-7, 1.0, 1e7])
def test_a_step_along_the_gradient_is_the_gradient(size):
    tx = ncg.newton_cg(1.0, damping=0.0, linesearch=None)
    updates, _ = slope_step(tx, size)
    np.testing.assert_allclose(updates, -size, rtol=1e-6)


class Uphill(ncg.solvers.Solver):
    """Returns the gradient, which the optimizer replaces by its negative."""

    def solve(self, model, state):
        found = ncg.solvers.conjugate_gradient(
            model.product, model.rhs, model.damping, maxiter=1, tolerance=0.0
        )
        return found._replace(solution=model.gradient), state


@pytest.mark.parametrize("size", [1e-15, 1e-7, 1.0, 1e15])
def test_a_replaced_direction_is_the_negative_gradient(size):
    tx = ncg.newton_cg(1.0, solver=Uphill(), damping=0.1, linesearch=None)
    updates, state = slope_step(tx, size)
    assert ncg.get_info(state).status == ncg.Status.STEEPEST_DESCENT
    np.testing.assert_allclose(updates, -size, rtol=1e-6)


def test_the_unit_does_not_change_in_a_usual_run():
    for dtype, sizes in (
        (jnp.float32, (1e-14, 1e-7, 1.0, 1e7, 1e14)),
        (jnp.float64, (1e-100, 1e-20, 1.0, 1e20)),
    ):
        with jax.enable_x64(True):
            damping = as_damping(0.1)
            units = {
                float(model_unit(damping, (), jnp.full(2, size, dtype)))
                for size in sizes
            }
        assert units == {1.0}


@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_curvature_along_a_gradient_whose_square_is_out_of_range(size):
    gradient = jnp.float32(size) * jnp.array([3.0, 4.0], jnp.float32)
    found = step_model._curvature_scale(lambda v: 2 * v, gradient)
    np.testing.assert_allclose(found, 2.0, rtol=1e-6)


def test_a_measured_unit_counts_if_it_is_far_from_one():
    damping = ncg.levenberg_marquardt()
    state = damping.init(jnp.float32)
    units = [
        float(model_unit(damping, state._replace(unit=jnp.float32(2.0**k)), None))
        for k in (-21, -20, 0, 20, 21)
    ]
    assert units == [2.0**-21, 1, 1, 1, 2.0**21]


def test_a_first_damping_far_below_the_curvature_is_taken_as_it_is():
    f = lambda w: jnp.sum((w - 3.0) ** 2)  # noqa: E731
    w = jnp.zeros(2, jnp.float32)
    tx = ncg.newton_cg(damping=ncg.levenberg_marquardt(initial=1e-20))
    updates, state = jax.jit(lambda g, s: tx.update(g, s, w, value_fn=f))(
        jax.grad(f)(w), tx.init(w)
    )
    assert ncg.get_info(state).status == ncg.Status.ACCEPTED
    np.testing.assert_allclose(updates, 3, rtol=1e-5)

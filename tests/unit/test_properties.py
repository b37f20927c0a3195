"""What holds for every problem, setting and scale: finite steps and true statuses.

Spectra, data, starts and scales are arguments of a compiled step, so that all examples
of a case share one program. The truth is computed in float64, with a dense matrix.
"""

import functools
import os
from typing import NamedTuple

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

import ncg_optax as ncg
from ncg_optax import Status

pytestmark = pytest.mark.usefixtures("empty_jit_caches")

# Of each case; 150 take four minutes.
EXAMPLES = int(os.environ.get("NCG_OPTAX_EXAMPLES", "30"))
STEPS = 4
REJECTED = {
    Status.REJECTED_NO_DECREASE,
    Status.REJECTED_NON_FINITE,
    Status.ZERO_GRADIENT,
}
NON_FINITE = {Status.REJECTED_NON_FINITE, Status.NON_FINITE_CURVATURE}
TINY = float(np.finfo(np.float32).tiny)


# Problems. Both have six examples or outputs along the first axis.


def quadratic_outputs(params, rows):
    return rows @ flat(params)


def quadratic_loss(outputs, eigenvalues, targets, linear, factor):
    """Its Hessian is ``factor * rows.T @ diag(eigenvalues) @ rows``."""
    parabolas = 0.5 * eigenvalues * (outputs - targets) ** 2
    return factor * jnp.sum(parabolas + linear * outputs)


def net_outputs(params, x):
    hidden = jnp.tanh(x @ params["hidden"]["w"] + params["hidden"]["b"])
    return hidden @ params["out"]


def net_loss(outputs, y, factor):
    return factor * jnp.mean((outputs - y) ** 2)


def flat(params):
    leaves = [leaf.ravel() for leaf in jax.tree.leaves(params)]
    dtype = jnp.result_type(jnp.float32, *leaves)
    return jnp.concatenate([leaf.astype(dtype) for leaf in leaves])


LOSSES = {
    "quadratic": ncg.CompositeLoss(quadratic_outputs, quadratic_loss),
    "net": ncg.CompositeLoss(net_outputs, net_loss),
}
STRUCTURES = {
    "vector": np.zeros(6),
    "tree": {"a": np.zeros((2, 2)), "b": [np.zeros(()), (np.zeros(1),)]},
    "net": {"hidden": {"w": np.zeros((2, 3)), "b": np.zeros(3)}, "out": np.zeros(3)},
}


def magnitudes(low, high):
    return st.floats(low, high).map(lambda exponent: 10.0**exponent)


EIGENVALUES = st.lists(
    st.one_of(
        st.just(0.0), magnitudes(-3, 3), magnitudes(-3, 3).map(lambda size: -size)
    ),
    min_size=6,
    max_size=6,
)
COMMON = {"seed": st.integers(0, 2**16), "factor": magnitudes(-30, 30)}
PROBLEMS = {
    "quadratic": st.fixed_dictionaries(
        COMMON
        | {
            "start": st.one_of(st.just(0.0), magnitudes(-2, 2)),
            "eigenvalues": st.one_of(
                EIGENVALUES, EIGENVALUES.map(lambda values: np.abs(values).tolist())
            ),
            "linear": st.sampled_from([0.0, 0.0, 1e-2, 1.0]),
        }
    ),
    "net": st.fixed_dictionaries(COMMON | {"start": magnitudes(-2, 0.5)}),
}


def made(case, drawn):
    """The parameters and the data of an example."""
    if {*case.dtypes} & {"float16", "bfloat16"}:
        # What is large overflows in them.
        drawn = drawn | {"factor": drawn["factor"] ** (1 / 30)}
    if case.direct:  # it takes the loss as it is
        drawn = drawn | {"factor": drawn["factor"] ** (1 / 2)}
    if case.convex and "eigenvalues" in drawn:
        drawn = drawn | {"eigenvalues": np.abs(drawn["eigenvalues"])}
    if drawn.get("linear") and np.abs(drawn["eigenvalues"]).min() < 1e-6:
        # Along a flat direction a step of the length of the gradient has a decrease of
        # its square, which overflows in float32 from 1e19 on.
        drawn = drawn | {"factor": drawn["factor"] ** (1 / 2)}
    rng = np.random.default_rng(drawn["seed"])
    dtype = case.dtypes[0]
    leaves, tree = jax.tree.flatten(STRUCTURES[case.structure])
    leaves = [
        jnp.asarray(drawn["start"] * rng.normal(size=leaf.shape), dtype)
        for leaf, dtype in zip(leaves, case.dtypes * len(leaves), strict=False)
    ]
    if case.problem == "net":
        data = {"x": rng.normal(size=(6, 2)), "y": rng.normal(size=6)}
    else:
        data = {
            "rows": np.linalg.qr(rng.normal(size=(6, 6)))[0],
            "eigenvalues": drawn["eigenvalues"],
            "targets": rng.normal(size=6),
            "linear": drawn["linear"] * rng.normal(size=6),
        }
    data["factor"] = drawn["factor"]
    real = jnp.float64 if dtype == "float64" else jnp.float32
    data = {name: jnp.asarray(value, real) for name, value in data.items()}
    return jax.tree.unflatten(tree, leaves), data


# Cases: each is compiled once.


class Case(NamedTuple):
    tx: optax.GradientTransformation
    problem: str = "quadratic"
    structure: str = "tree"
    dtypes: tuple = ("float32",)  # in turn over the leaves
    gauss_newton: bool = False
    maxiter: int | None = None
    rtol: float | None = None  # of the residual, where it is that of the direction
    may_ascend: bool = False
    convex: bool = False
    direct: bool = False  # the solver is a DirectSolver


HALF = ("bfloat16", "float32", "float16")
GAUSS_NEWTON = {"curvature": ncg.gauss_newton()}
FREE = {"damping": 0.0, "linesearch": None}


def newton(**settings):
    return ncg.newton_cg(**settings)


CASES = {
    "newton_cg": Case(newton(), maxiter=200, rtol=0.1),
    "steihaug": Case(newton(solver=ncg.steihaug(), **FREE), maxiter=200, rtol=0.1),
    "minres": Case(newton(solver=ncg.minres()), "net", "net", maxiter=50, rtol=0.1),
    "hessian_free": Case(ncg.hessian_free(), "net", "net", gauss_newton=True, rtol=0.2),
    "stochastic_hessian_free": Case(
        ncg.stochastic_hessian_free(1.0), gauss_newton=True, may_ascend=True
    ),
    "residual_space": Case(
        newton(solver=ncg.residual_space(), **GAUSS_NEWTON),
        "net",
        "net",
        gauss_newton=True,
        direct=True,
    ),
    "half": Case(newton(preconditioner=ncg.jacobi()), dtypes=HALF, convex=True),
}
MORE_CASES = {
    "float64": Case(newton(), "net", "net", ("float64",), maxiter=200, rtol=0.1),
    "net": Case(newton(), "net", "net", maxiter=200, rtol=0.1),
    "vector": Case(newton(), structure="vector", maxiter=200, rtol=0.1),
    "undamped": Case(newton(damping=0.0), maxiter=200, rtol=0.1),
    "fixed": Case(newton(damping=1e-3, linesearch=None), may_ascend=True, rtol=0.1),
    "short": Case(
        newton(solver=ncg.cg(maxiter=2, warm_start=0.95, forcing=None)),
        maxiter=2,
        rtol=0.1,
    ),
    "progress": Case(newton(solver=ncg.cg(rtol=1e-6, forcing=None, progress_tol=5e-4))),
    "minres quadratic": Case(newton(solver=ncg.minres(5)), maxiter=5, rtol=0.1),
    "minres kronecker": Case(
        newton(solver=ncg.minres(), preconditioner=ncg.kronecker()), maxiter=50
    ),
    "steihaug net": Case(
        newton(solver=ncg.steihaug(), **FREE), "net", "net", maxiter=200, rtol=0.1
    ),
    "steihaug jacobi": Case(
        newton(solver=ncg.steihaug(), preconditioner=ncg.jacobi(), **FREE)
    ),
    "momentum": Case(newton(solver=ncg.quadratic_momentum(ncg.cg(maxiter=2)))),
    "momentum net": Case(
        newton(
            solver=ncg.quadratic_momentum(ncg.cg(maxiter=1)),
            preconditioner=ncg.kronecker(),
            **GAUSS_NEWTON,
        ),
        "net",
        "net",
        gauss_newton=True,
    ),
    "quasi_newton": Case(newton(solver=ncg.quasi_newton()), rtol=0.1),
    "quasi_newton minres": Case(newton(solver=ncg.quasi_newton(ncg.minres()))),
    "nystrom": Case(newton(preconditioner=ncg.nystrom(3)), rtol=0.1),
    "kronecker": Case(
        newton(preconditioner=ncg.kronecker()), "net", "net", maxiter=200, rtol=0.1
    ),
    "squared gradients": Case(newton(preconditioner=ncg.jacobi("gradient")), rtol=0.1),
    "composed": Case(
        newton(
            preconditioner=ncg.compose(ncg.kronecker(with_sqrt=True), ncg.nystrom(2))
        ),
        rtol=0.1,
    ),
    "hessian_free quadratic": Case(ncg.hessian_free(), gauss_newton=True, rtol=0.2),
    "stochastic net": Case(
        ncg.stochastic_hessian_free(1.0),
        "net",
        "net",
        gauss_newton=True,
        may_ascend=True,
    ),
    "residual_space quadratic": Case(
        newton(solver=ncg.residual_space(momentum=0.5), **GAUSS_NEWTON),
        gauss_newton=True,
        convex=True,
        direct=True,
    ),
    "half steihaug": Case(
        newton(solver=ncg.steihaug(), **FREE), dtypes=HALF, convex=True
    ),
    "half hessian_free": Case(
        ncg.hessian_free(), "net", "net", HALF, gauss_newton=True
    ),
    "half minres": Case(newton(solver=ncg.minres()), dtypes=("float16",), convex=True),
}
ALL = CASES | MORE_CASES


@functools.cache
def compiled(name):
    case = ALL[name]
    loss = LOSSES[case.problem]

    @jax.jit
    def step(params, state, data):
        value, grads = jax.value_and_grad(loss)(params, **data)
        updates, state = case.tx.update(
            grads, state, params, value=value, value_fn=loss, **data
        )
        return optax.apply_updates(params, updates), updates, grads, state

    return step


@functools.cache
def dense(problem, structure, gauss_newton):
    """Loss, gradient and matrix as a function of the flat parameters, in float64."""
    loss = LOSSES[problem]
    _, unravel = ravel_pytree(STRUCTURES[structure])

    @jax.jit
    def model(vector, data):
        value = lambda v: loss(unravel(v), **data)  # noqa: E731
        if not gauss_newton:
            return value(vector), jax.grad(value)(vector), jax.hessian(value)(vector)
        inputs = {k: v for k, v in data.items() if k in ("x", "rows")}
        rest = {k: v for k, v in data.items() if k not in inputs}
        outputs = lambda v: loss.model_fn(unravel(v), **inputs)  # noqa: E731
        of_outputs = jax.hessian(lambda z: loss.loss_fn(z, **rest))(outputs(vector))
        jacobian = jax.jacobian(outputs)(vector)
        matrix = jacobian.T @ of_outputs @ jacobian
        return value(vector), jax.grad(value)(vector), matrix

    return model


class Truth(NamedTuple):
    loss: float
    gradient: np.ndarray
    matrix: np.ndarray
    eigenvalues: np.ndarray
    norm: float  # of the matrix
    gradient_error: float  # a bound on that of the float32 gradient


def wide(tree):
    leaves = [np.zeros(0), *jax.tree.leaves(tree)]
    return np.concatenate([np.asarray(x, np.float64).ravel() for x in leaves])


def truth(case, params, data):
    with jax.enable_x64(True):
        data = {k: np.asarray(v, np.float64) for k, v in data.items()}
        model = dense(case.problem, case.structure, case.gauss_newton)
        vector = wide(params)
        loss, gradient, matrix = jax.device_get(model(vector, data))
    eigenvalues = np.linalg.eigvalsh(matrix)
    norm = np.abs(eigenvalues).max()
    # The terms of the gradient may cancel.
    terms = norm * (np.abs(vector).max() + 3) + np.linalg.norm(gradient)
    if case.problem == "quadratic":
        terms += np.linalg.norm(data["linear"]) * data["factor"]
    return Truth(loss, gradient, matrix, eigenvalues, norm, 1e-5 * terms + TINY)


# What has to hold after a step.


def overflows_float16(case, params, data):
    """Whether the loss falls without bound along a direction that is flat."""
    if "float16" not in case.dtypes:
        return False
    known = truth(case, params, data)
    return known.eigenvalues.min() <= 1e-5 * known.norm + known.gradient_error


def check_step(case, before, after, updates, grads, old, info, data):
    step_status = Status(int(info.status))
    moved = np.any(wide(after) != wide(before))
    known_gradient = np.isfinite(wide(grads)).all()  # it may overflow in float16
    for tree in (after, updates, info if known_gradient else ()):
        assert np.isfinite(wide(tree)).all(), step_status
    if not known_gradient:
        assert step_status == Status.REJECTED_NON_FINITE
    elif not overflows_float16(case, before, data):
        assert step_status not in NON_FINITE
    assert (step_status not in REJECTED) == moved, step_status
    if not moved:
        assert not wide(updates).any() or step_status != Status.REJECTED_NON_FINITE
        assert info.actual_reduction == 0
    if step_status == Status.ACCEPTED:
        assert info.step_size >= 1
    if step_status == Status.SHORTENED:
        assert 0 < info.step_size < 1

    known = truth(case, before, data)
    check_descent(case, known, before, after, data)
    if {*case.dtypes} <= {"float32", "float64"}:
        check_against_dense(case, known, step_status, updates, old, info)
    if step_status == Status.ZERO_GRADIENT:
        assert not wide(grads).any()
    if step_status == Status.STEEPEST_DESCENT:
        gradient, step = wide(grads), wide(updates)
        gradient, step = (v / np.abs(v).max() for v in (gradient, step))
        np.testing.assert_allclose(step, -gradient, atol=2e-2)


def check_descent(case, known, before, after, data):
    if case.may_ascend:
        return
    end = truth(case, after, data)
    eps = 1e-15 if case.dtypes == ("float64",) else 1e-6
    if case.problem == "quadratic":  # its terms may cancel
        outputs = wide(data["rows"]).reshape(6, 6) @ wide(before)
        sizes = np.abs(outputs) + np.abs(wide(data["targets"]))
        distances = np.abs(outputs - wide(data["targets"])) + eps * sizes
        terms = np.abs(wide(data["eigenvalues"])) * distances * sizes
        terms += np.abs(wide(data["linear"]) * outputs)
        size = float(data["factor"]) * terms.sum()
    else:
        size = abs(known.loss)
    assert end.loss <= known.loss + 20 * eps * size + TINY


def check_against_dense(case, known, step_status, updates, old, info):
    solver_status = Status(int(info.solver_status))
    damping = float(info.damping)
    lowest, norm = known.eigenvalues[0] + damping, known.norm + damping
    rounding = 1e-5 if case.problem == "quadratic" else 1e-4
    unsure = rounding * norm + TINY

    np.testing.assert_allclose(
        info.gradient_norm,
        np.linalg.norm(known.gradient),
        rtol=1e-4,
        atol=10 * known.gradient_error,
    )
    if solver_status == Status.NEGATIVE_CURVATURE:
        assert lowest <= unsure
    if solver_status == Status.ZERO_CURVATURE:
        assert np.abs(known.eigenvalues).min() <= unsure
    if solver_status == Status.ZERO_RIGHT_HAND_SIDE:
        assert info.gradient_norm == 0
    if solver_status == Status.MAX_ITERATIONS and case.maxiter:
        assert info.cg_iterations == case.maxiter
    assert solver_status not in {Status.NOT_STARTED, Status.RUNNING}
    assert solver_status != Status.SOLVER_NON_FINITE

    if not wide(updates).any():
        return
    d = wide(updates) / float(info.step_size)
    length = np.linalg.norm(d)
    if not case.may_ascend:
        slope = known.gradient @ d
        assert slope <= known.gradient_error * length
    if step_status == Status.STEEPEST_DESCENT:
        return
    bend = d @ known.matrix @ d / length**2
    np.testing.assert_allclose(
        info.curvature,
        bend,
        rtol=1e-3,
        atol=30 * unsure + known.gradient_error / length,
    )
    if solver_status == Status.RESIDUAL_CONVERGED and case.rtol:
        residual = known.gradient + known.matrix @ d + damping * d
        allowed = 1.01 * case.rtol * np.linalg.norm(known.gradient)
        rest = 10 * unsure * length + 10 * known.gradient_error
        assert np.linalg.norm(residual) <= allowed + rest
        assert info.residual <= 1.01 * case.rtol
    if solver_status == Status.TRUST_REGION_BOUNDARY and case.rtol:
        np.testing.assert_allclose(length, old[0].solver.radius, rtol=1e-2)


def check_run(name, drawn):
    case = ALL[name]
    with jax.enable_x64("float64" in case.dtypes):
        step = compiled(name)
        params, data = made(case, drawn)
        state = case.tx.init(params)
        types = jax.tree.map(jax.typeof, (params, state))
        for _ in range(STEPS):
            new, updates, grads, new_state = step(params, state, data)
            assert jax.tree.map(jax.typeof, (new, new_state)) == types
            assert jax.tree.structure(new_state) == jax.tree.structure(state)
            info = jax.device_get(ncg.get_info(new_state))
            check_step(case, params, new, updates, grads, state, info, data)
            params, state = new, new_state
            if info.next_loss < -1e6 * abs(info.loss) or info.next_loss < -1e34:
                break  # the loss has no minimum, and will overflow
        assert step._cache_size() == 1


def check_examples(name):
    @hypothesis.settings(max_examples=EXAMPLES)
    @hypothesis.given(PROBLEMS[ALL[name].problem])
    def check(drawn):
        check_run(name, drawn)

    check()


@pytest.mark.parametrize("name", CASES)
def test_steps_are_finite_and_their_statuses_true(name):
    check_examples(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", MORE_CASES)
def test_steps_of_other_parts_are_finite_and_their_statuses_true(name):
    check_examples(name)

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import symmetric, vector

import ncg_optax as ncg

pytestmark = pytest.mark.usefixtures("x64")

N = 30
DIAGONAL = np.geomspace(1e-3, 1e3, N)
DENSE = symmetric(np.linspace(1.0, 3.0, N)) + np.diag(np.arange(N))


def updated(preconditioner, matvec, grads, state=None, seed=0):
    """State and products after one jitted update."""
    update = jax.jit(
        lambda state, grads, key: preconditioner.update(
            state, matvec, grads, jnp.zeros(()), key, 0
        )
    )
    state = preconditioner.init(grads) if state is None else state
    return update(state, grads, jax.random.key(seed))


def of_matrix(a, **settings):
    preconditioner = ncg.jacobi(**settings)
    state, _ = updated(preconditioner, lambda v: a @ v, jnp.ones(len(a)))
    return preconditioner, state


@pytest.mark.parametrize("exponent", [1.0, 0.75, 0.0])
@pytest.mark.parametrize("damping", [0.0, 0.1])
def test_one_probe_of_a_diagonal_matrix_is_exact(exponent, damping):
    preconditioner, state = of_matrix(
        np.diag(DIAGONAL), exponent=exponent, damping=damping, first_probes=1
    )
    r = vector(N)
    divisor = DIAGONAL + 0.5 + damping * DIAGONAL.mean()
    np.testing.assert_allclose(
        preconditioner.apply(state, r, 0.5), r / divisor**exponent, rtol=1e-12
    )


def test_entries_below_zero_count_with_their_size():
    signs = np.where(np.arange(N) % 3, 1, -1)
    preconditioner, state = of_matrix(np.diag(signs * DIAGONAL), damping=0.0)
    applied = preconditioner.apply(state, jnp.ones(N), 0.5)
    np.testing.assert_allclose(applied, 1 / (DIAGONAL + 0.5), rtol=1e-12)


def test_an_indefinite_operator_is_safe():
    a = symmetric(np.linspace(-1, 1, N))
    preconditioner, state = of_matrix(a, first_probes=1)
    assert (state.diagonal < 0).any()
    assert (preconditioner.apply(state, jnp.ones(N), 0.0) > 0).all()


def test_probes_average_to_the_diagonal():
    def error(probes):
        _, state = of_matrix(DENSE, first_probes=probes)
        return np.linalg.norm(state.diagonal - np.diag(DENSE))

    noise = np.linalg.norm(DENSE - np.diag(np.diag(DENSE)))
    assert 0.3 * noise < error(1) < 3 * noise
    assert error(10_000) < 0.03 * noise


def test_the_running_mean():
    preconditioner = ncg.jacobi(decay=0.75, refresh=1, probes=2, first_probes=3)
    state, counted = None, []
    for scale in (1.0, 2.0, 4.0):
        state, products = updated(
            preconditioner, lambda v, c=scale: c * v, jnp.ones(4), state
        )
        counted.append((int(products), float(state.diagonal[0])))
    assert counted == [(3, 1.0), (2, 1.25), (2, 1.9375)]


def test_products_are_counted_when_spent():
    preconditioner = ncg.jacobi(refresh=3, probes=2, first_probes=4)
    calls = []

    def product(v):
        jax.debug.callback(lambda _: calls.append(1), v[0])
        return v

    state, counted = None, []
    for _ in range(4):
        state, products = updated(preconditioner, product, jnp.ones(4), state)
        jax.effects_barrier()
        counted.append((int(products), len(calls)))
    assert counted == [(4, 4), (0, 4), (0, 4), (2, 6)]


def test_conjugate_gradients_take_fewer_iterations():
    scaling = np.diag(np.sqrt(DIAGONAL))
    a = scaling @ symmetric(np.linspace(0.8, 1.2, N)) @ scaling
    preconditioner, state = of_matrix(a, damping=0.0)

    def iterations(precondition=None):
        result = jax.jit(
            lambda b: ncg.solvers.conjugate_gradient(
                lambda v: a @ v,
                b,
                maxiter=500,
                tolerance=1e-6,
                precondition=precondition,
            )
        )(vector(N))
        assert result.status == ncg.Status.RESIDUAL_CONVERGED
        return int(result.iterations)

    plain = iterations()
    scaled = iterations(lambda r: preconditioner.apply(state, r, jnp.zeros(())))
    assert plain > N
    assert scaled < plain / 3


def test_squared_gradients_cost_nothing():
    preconditioner = ncg.jacobi("gradient", decay=0.75, damping=0.0)
    refuse = None  # not to be called
    state, products = updated(preconditioner, refuse, jnp.array([1.0, 3.0]))
    np.testing.assert_allclose(state.diagonal, [0.2, 1.8], rtol=1e-12)
    assert products == 0
    state, _ = updated(preconditioner, refuse, jnp.array([2.0, 0.0]), state)
    np.testing.assert_allclose(state.diagonal, [0.65, 1.35], rtol=1e-12)
    np.testing.assert_allclose(
        preconditioner.apply(state, jnp.ones(2), 100.0), [1 / 0.65, 1 / 1.35]
    )


@pytest.mark.parametrize("scale", [1e-30, 1e-8, 1e8])
def test_squared_gradients_do_not_know_the_scale(scale):
    grads = np.float32(vector(6))
    preconditioner = ncg.jacobi("gradient")
    state, _ = updated(preconditioner, None, jnp.asarray(grads))
    scaled, _ = updated(preconditioner, None, jnp.asarray(np.float32(scale) * grads))
    np.testing.assert_allclose(scaled.diagonal, state.diagonal, rtol=1e-5)


@pytest.mark.parametrize("scale", [1e-8, 1e8])
def test_products_scale_with_the_loss(scale):
    preconditioner, state = of_matrix(DENSE)
    _, scaled = of_matrix(scale * DENSE)
    r = vector(N)
    np.testing.assert_allclose(
        scale * preconditioner.apply(scaled, r, scale * 0.5),
        preconditioner.apply(state, r, 0.5),
        rtol=1e-10,
    )


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_products_that_are_not_finite_keep_the_state(bad):
    preconditioner = ncg.jacobi(refresh=1)
    state, _ = updated(preconditioner, lambda v: 2.0 * v, jnp.ones(4))
    kept, _ = updated(preconditioner, lambda v: bad * v, jnp.ones(4), state)
    np.testing.assert_array_equal(kept.diagonal, np.full(4, 2.0))
    assert kept.steps == 2


def test_a_first_estimate_that_failed_is_tried_again():
    preconditioner = ncg.jacobi(first_probes=7)
    state, _ = updated(preconditioner, lambda v: np.nan * v, jnp.ones(4))
    np.testing.assert_array_equal(
        preconditioner.apply(state, jnp.ones(4), 0.5), np.full(4, 2.0)
    )
    state, products = updated(preconditioner, lambda v: 3.0 * v, jnp.ones(4), state)
    assert products == 7
    np.testing.assert_allclose(state.diagonal, np.full(4, 3.0))


@pytest.mark.parametrize("bad", [np.nan, np.inf, 0.0])
def test_gradients_without_a_direction_keep_the_state(bad):
    preconditioner = ncg.jacobi("gradient")
    state, _ = updated(preconditioner, None, jnp.array([1.0, 3.0]))
    kept, _ = updated(preconditioner, None, jnp.full(2, bad), state)
    np.testing.assert_array_equal(kept.diagonal, state.diagonal)


def test_a_complex_entry_gets_the_mean_of_its_two_parts():
    def product(v):  # 2 on the real axis, 6 on the imaginary one
        return 2 * v.real + 6j * v.imag

    preconditioner = ncg.jacobi(first_probes=4000, damping=0.0)
    state, _ = updated(preconditioner, product, jnp.ones(3, complex))
    assert state.diagonal.dtype == jnp.float64
    np.testing.assert_allclose(state.diagonal, np.full(3, 4.0), rtol=0.05)
    r = jnp.array([1 + 2j, -3j, 2.0 + 0j])
    np.testing.assert_allclose(
        preconditioner.apply(state, r, 1.0), r / (state.diagonal + 1), rtol=1e-12
    )


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"estimate": "exact"}, ValueError, "estimate must be one of hutchinson"),
        ({"exponent": 1.5}, ValueError, r"jacobi: exponent must be .*\[0, 1\]"),
        ({"decay": 1.0}, ValueError, "jacobi: decay"),
        ({"refresh": 0}, ValueError, "jacobi: refresh must be .* at least 1, got 0"),
        ({"probes": 0}, ValueError, "jacobi: probes"),
        ({"first_probes": 1.0}, TypeError, "jacobi: first_probes must be an integer"),
        ({"damping": -0.1}, ValueError, "jacobi: damping"),
    ],
)
def test_errors(settings, error, message):
    with pytest.raises(error, match=message):
        ncg.jacobi(**settings)

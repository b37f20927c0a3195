import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ncg_optax as ncg
from ncg_optax.evidence.posterior import posterior

pytestmark = pytest.mark.usefixtures("x64")


def linear(w, x):
    return x @ w


def line_data(n=40, noise=0.3, outputs=()):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(n, 5))
    w = rng.normal(size=(5, *outputs))
    return jnp.asarray(x), jnp.asarray(x @ w + noise * rng.normal(size=(n, *outputs)))


def network(params, x):
    return jnp.tanh(x @ params["a"] + params["b"]) @ params["c"]


def network_start(key=0, inputs=5, width=8):
    ka, kc = jax.random.split(jax.random.key(key))
    return {
        "a": jax.random.normal(ka, (inputs, width)) / inputs**0.5,
        "b": jnp.zeros(width),
        "c": jax.random.normal(kc, (width,)) / width**0.5,
    }


@pytest.mark.parametrize("shape", [(3, 7), (7, 3)], ids=["residuals", "parameters"])
def test_posterior_against_dense_algebra(shape):
    rows = jnp.asarray(np.random.default_rng(0).normal(size=shape))
    found = posterior(rows)
    matrix = rows.T @ rows + jnp.eye(shape[1])
    inverse = jnp.linalg.inv(matrix)
    b, new = jnp.arange(shape[1]) + 1.0, jnp.ones((2, shape[1]))
    close = dict(rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(
        found.log_determinant, jnp.linalg.slogdet(matrix)[1], **close
    )
    shifted = jnp.linalg.solve(matrix + 2 * jnp.eye(shape[1]), b)
    np.testing.assert_allclose(found.solve(b, jnp.asarray(3.0)), shifted, **close)
    np.testing.assert_allclose(found.determined(), 1 - jnp.diag(inverse), **close)
    hat = jnp.diag(rows @ inverse @ rows.T)
    np.testing.assert_allclose(found.freedom(), 1 - hat, **close)
    variances = jnp.einsum("ri,ij,rj->r", new, inverse, new)
    np.testing.assert_allclose(found.variances(new), variances, **close)


def test_a_linear_model_is_that_of_scikit_learn():
    bayesian_ridge = pytest.importorskip("sklearn.linear_model").BayesianRidge
    x, y = line_data()
    theirs = bayesian_ridge(
        fit_intercept=False, tol=1e-10, alpha_1=0, alpha_2=0, lambda_1=0, lambda_2=0
    ).fit(x, y)
    fit = ncg.bayesian_fit(linear, jnp.ones(5), y, x=x)
    assert fit.converged and fit.status == ncg.Status.CONVERGED_EVIDENCE
    np.testing.assert_allclose(fit.params, theirs.coef_, rtol=1e-3)
    np.testing.assert_allclose(fit.noise, theirs.alpha_**-0.5, rtol=1e-3)
    np.testing.assert_allclose(fit.prior_precision, theirs.lambda_, rtol=1e-2)
    new = np.ones((2, 5)) * [[1.0], [10.0]]
    mean, std = fit.predict(x=jnp.asarray(new))
    their_mean, their_std = theirs.predict(new, return_std=True)
    np.testing.assert_allclose(mean, their_mean, rtol=1e-3)
    np.testing.assert_allclose(std, their_std, rtol=1e-2)


def test_the_evidence_of_a_linear_model_is_exact():
    x, y = line_data()
    fit = ncg.bayesian_fit(linear, jnp.ones(5), y, x=x)
    covariance = fit.noise**2 * jnp.eye(len(y)) + x @ x.T / fit.prior_precision
    exact = jax.scipy.stats.multivariate_normal.logpdf(y, jnp.zeros(len(y)), covariance)
    np.testing.assert_allclose(fit.log_evidence, exact, atol=1e-2)


def test_each_output_has_its_noise():
    x, y = line_data(n=400, outputs=(3,))
    y = y * jnp.array([1.0, 10.0, 0.1])
    fit = ncg.bayesian_fit(linear, jnp.ones((5, 3)), y, x=x)
    np.testing.assert_allclose(fit.noise, [0.3, 3.0, 0.03], rtol=0.15)
    outputs, std = fit.predict(x=x[:2])
    assert outputs.shape == std.shape == (2, 3)
    assert jnp.all(std > fit.noise)


@pytest.mark.parametrize("likelihood", ["bernoulli", "categorical"])
def test_classes(likelihood):
    x, y = line_data(n=80)
    labels = (y > 0).astype(jnp.int32)
    start = jnp.ones(5) if likelihood == "bernoulli" else jnp.ones((5, 2))
    fit = ncg.bayesian_fit(linear, start, labels, likelihood=likelihood, x=x)
    outputs, std = fit.predict(x=x)
    chosen = outputs > 0 if outputs.ndim == 1 else outputs[:, 1] > outputs[:, 0]
    assert fit.converged
    assert jnp.mean(chosen == labels) > 0.85
    assert jnp.all(fit.noise == 1) and jnp.all(jnp.isfinite(std))
    assert 0 < fit.effective_parameters < 5


def test_a_network_does_not_fit_the_noise():
    x, _ = line_data(n=60)
    clean = jnp.sin(x[:, 0]) * x[:, 1]
    y = clean + 0.2 * jax.random.normal(jax.random.key(0), clean.shape)
    fit = ncg.bayesian_fit(network, network_start(width=30), y, x=x)
    assert 0.05 < fit.noise < 0.6
    assert 0 < fit.effective_parameters < 60
    assert jnp.mean((network(fit.params, x) - y) ** 2) > 0.2**2 / 10


@pytest.mark.parametrize(
    "targets",
    [np.zeros(40), np.full(40, 1e-200), np.full(40, 1e100), np.arange(40.0)],
    ids=["zeros", "tiny", "huge", "unscaled"],
)
def test_extreme_targets_give_no_nan(targets):
    x, _ = line_data()
    fit = ncg.bayesian_fit(network, network_start(), jnp.asarray(targets), x=x)
    for leaf in jax.tree.leaves(fit):
        assert jnp.all(jnp.isfinite(leaf))
    assert 0 <= fit.effective_parameters <= 56


def test_noise_free_targets_in_float32():
    x, y = line_data(noise=0.0)
    x, y = x.astype(jnp.float32), y.astype(jnp.float32)
    fit = ncg.bayesian_fit(linear, jnp.ones(5, jnp.float32), y, x=x)
    assert fit.params.dtype == fit.noise.dtype == jnp.float32
    np.testing.assert_allclose(linear(fit.params, x), y, atol=1e-2)
    assert jnp.isfinite(fit.log_evidence)


def test_what_is_not_finite_ends_it():
    x, y = line_data()
    fit = ncg.bayesian_fit(linear, jnp.ones(5), y.at[0].set(jnp.nan), x=x)
    assert fit.status == ncg.Status.DIVERGED and not fit.converged
    assert jnp.all(fit.params == 1) and fit.log_evidence == -jnp.inf


def test_maxiter():
    x, y = line_data()
    none = ncg.bayesian_fit(linear, jnp.ones(5), y, maxiter=0, x=x)
    assert jnp.all(none.params == 1) and none.status == ncg.Status.MAX_STEPS
    assert jnp.isfinite(none.log_evidence) and none.iterations == 0
    few = ncg.bayesian_fit(linear, jnp.ones(5), y, maxiter=2, x=x)
    assert few.log_evidence > none.log_evidence and few.iterations == 2


def test_more_evidence_with_vmap_and_jit_is_the_same():
    x, y = line_data()
    starts = jnp.stack([jnp.ones(5), -jnp.ones(5)])
    mapped = jax.jit(jax.vmap(lambda w: ncg.bayesian_fit(linear, w, y, x=x)))(starts)
    single = ncg.bayesian_fit(linear, starts[1], y, x=x)
    np.testing.assert_allclose(mapped.params[1], single.params, rtol=1e-8)
    np.testing.assert_allclose(mapped.log_evidence[1], single.log_evidence, rtol=1e-8)


def test_predictions_for_no_example_and_without_an_axis_of_examples():
    x, y = line_data()
    fit = ncg.bayesian_fit(linear, jnp.ones(5), y, maxiter=0, x=x)
    outputs, std = fit.predict(x=x[:0])
    assert outputs.shape == std.shape == (0,)
    with pytest.raises(ValueError, match="a batch of one"):
        fit.predict(x=x[0])


@pytest.mark.parametrize(
    ("error", "message", "change"),
    [
        (ValueError, r"y must have the shape \(40,\)", {"y": jnp.ones((40, 1))}),
        (ValueError, "likelihood", {"likelihood": "gaussian"}),
        (TypeError, "classes, integers", {"likelihood": "categorical"}),
        (TypeError, "does not take X", {"X": jnp.ones(3)}),
        (TypeError, "must be real", {"params": jnp.ones(5, complex)}),
        (ValueError, "maxiter", {"maxiter": -1}),
        (TypeError, "model_fn", {"model_fn": 3}),
        (TypeError, "y must be an array", {"y": None}),
        (TypeError, "y must be real", {"y": jnp.ones(40, complex)}),
        (ValueError, "y has no examples", {"y": jnp.ones(0), "x": jnp.ones((0, 5))}),
        (ValueError, "0 and 1", {"y": -jnp.ones(40), "likelihood": "bernoulli"}),
        (
            ValueError,
            "classes 0, 1",
            {"y": jnp.arange(40) - 1, "likelihood": "categorical"},
        ),
        (ValueError, r"got the shape \(\)", {"model_fn": lambda w, x: jnp.sum(x @ w)}),
        (TypeError, "one array", {"model_fn": lambda w, x: {"z": x @ w}}),
    ],
)
def test_wrong_use(error, message, change):
    x, y = line_data()
    settings = {"model_fn": linear, "params": jnp.ones(5), "y": y, "x": x} | change
    with pytest.raises(error, match=message):
        ncg.bayesian_fit(**settings)

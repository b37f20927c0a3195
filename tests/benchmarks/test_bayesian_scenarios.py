"""The variational autoencoder and the Bayesian networks, on little data."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import datasets
from benchmarks.scenarios import SCENARIOS, vae, wisconsin_bayesian
from benchmarks.scenarios import _bayesian as bayesian
from benchmarks.scenarios._base import Dataset

KEY = jax.random.key(0)


def images(count):
    return jax.random.uniform(jax.random.key(1), (count, 784)).round()


@pytest.fixture(scope="module")
def layers():
    """A posterior that has left the prior."""
    layers = bayesian.init_mean_field((3, 4, 2), seed=0)
    return jax.tree.map(lambda a: a + 0.3 * jax.random.normal(KEY, a.shape), layers)


def model(layers, x, key):
    return bayesian.classifier(jnp.tanh, draws=2)(layers, x, key)


# Divergences


@pytest.mark.parametrize("divergence", ["weights", "codes"])
def test_divergence_is_the_mean_log_ratio_of_the_densities(divergence):
    mean, deviation = jnp.array([[0.5, -1.0]]), jnp.array([[0.3, 1.5]])
    draws = mean + deviation * jax.random.normal(KEY, (200_000, 2))
    log_density = jax.scipy.stats.norm.logpdf
    ratios = log_density(draws, mean, deviation) - log_density(draws)
    if divergence == "weights":
        found = bayesian.divergence([{"mean": mean, "deviation": deviation}])
    else:
        found = vae.divergence(mean, deviation)[0]
    assert float(found) == pytest.approx(float(ratios.sum(-1).mean()), abs=0.01)


# The losses are convex in the outputs


def assert_convex(loss, outputs):
    flat, unravel = jax.flatten_util.ravel_pytree(outputs)
    hessian = jax.jit(jax.hessian(lambda z: loss(unravel(z))))(flat)
    assert np.linalg.eigvalsh(np.asarray(hessian, float)).min() > -1e-6


def test_loss_of_a_bayesian_network_is_convex_in_its_outputs(layers):
    x, y = jax.random.normal(KEY, (5, 3)), jnp.array([0, 1, 1, 0, 1])
    loss = bayesian.negative_elbo(5)
    assert_convex(lambda z: loss(z, y), model(layers, x, KEY))


def test_loss_of_the_autoencoder_is_convex_in_its_outputs():
    y = images(3)[:, :6]
    outputs = {
        "logits": jax.random.normal(KEY, y.shape),
        "mean": jnp.array([[0.0, 2.0]] * 3),
        "deviation": jnp.array([[0.1, 3.0]] * 3),
    }
    assert_convex(lambda z: vae.loss(z, y), outputs)


# Noise


@pytest.mark.parametrize("name", ["mnist_vae", "mnist_bayesian", "wisconsin_bayesian"])
def test_the_key_fixes_the_noise_and_the_loss_has_a_slope_everywhere(name):
    scenario = SCENARIOS[name]
    width = 30 if name == "wisconsin_bayesian" else 784
    x = jax.random.uniform(KEY, (4, width))
    y = x if name == "mnist_vae" else jnp.array([0, 1, 1, 0])
    params = scenario.init(0)
    value_and_grad = jax.jit(jax.value_and_grad(scenario.value))

    def at(seed):
        return value_and_grad(params, x=x, y=y, key=jax.random.key(seed))

    (first, grads), (again, _), (other, _) = at(0), at(0), at(1)
    assert first == again != other
    assert all(jnp.isfinite(g).all() and jnp.any(g) for g in jax.tree.leaves(grads))


def test_local_reparameterisation_has_the_moments_of_drawn_weights(layers):
    x, draws = jnp.array([0.5, -1.0, 2.0]), 20_000
    layer, rows = layers[0], jnp.tile(x, (draws, 1))
    sums = bayesian.linear(layer, rows, jax.random.key(2))
    shape = (draws, *layer["mean"].shape)
    noise = jax.random.normal(jax.random.key(3), shape)
    weights = layer["mean"] + jnp.exp(layer["log_deviation"]) * noise
    scale = (bayesian.PRIOR_GAIN / 4) ** 0.5
    expected = scale * jnp.einsum("i,dij->dj", jnp.append(x, 1.0), weights)
    spread = expected.std(axis=0)
    np.testing.assert_allclose(sums.std(axis=0), spread, rtol=0.04)
    error = (sums.mean(axis=0) - expected.mean(axis=0)) / spread
    assert jnp.abs(error).max() < 5 * (2 / draws) ** 0.5


# Predictions


def test_a_prediction_is_the_mean_probability_of_its_draws(layers):
    x = jax.random.normal(KEY, (6, 3))
    outputs = bayesian.predictor(jnp.tanh)(layers, x, {"key": KEY})
    keys = jax.random.split(KEY, bayesian.DRAWS)
    drawn = jax.nn.softmax(
        jax.vmap(lambda k: bayesian.logits(layers, x, k, jnp.tanh))(keys)
    )
    found = jnp.exp(outputs["logits"][:, 0])
    np.testing.assert_allclose(found, drawn.mean(axis=0), rtol=1e-4)
    np.testing.assert_allclose(found.sum(axis=-1), 1.0, rtol=1e-5)
    # The held-out loss: no divergence, and below the mean loss of single draws.
    y = jnp.array([0, 1, 1, 0, 1, 0])
    score = float(bayesian.negative_elbo(6)(outputs, y))
    expected = -np.log(np.asarray(found)[np.arange(6), y]).mean()
    assert score == pytest.approx(expected, rel=1e-4)
    assert score < -np.log(np.asarray(drawn)[:, np.arange(6), y]).mean()


def test_the_elbo_bounds_the_log_likelihood_of_images():
    # With small weights codes and images are nearly independent, so that draws from
    # the prior give the likelihood itself.
    params, x = jax.tree.map(lambda a: 0.1 * a, vae.init(0)), images(8)
    elbo = -float(vae.loss(vae.predict(params, x, {"key": KEY}), x))
    z = jax.random.normal(KEY, (2_000, vae.LATENT))
    logits = vae.decode(params, z)
    log_p = -jax.nn.softplus(logits).sum(-1)[:, None] + logits @ x.T
    likelihood = jax.nn.logsumexp(log_p, axis=0) - jnp.log(len(z))
    bound = vae.log_likelihood(params, x, KEY, 512)
    assert elbo < float(bound.mean())
    np.testing.assert_allclose(bound, likelihood, atol=0.2)


# Pictures and further scores


def assert_pictures(folder, *names):
    assert {path.name for path in folder.iterdir()} == set(names)
    assert all(p.read_bytes().startswith(b"\x89PNG") for p in folder.iterdir())


def test_examining_the_autoencoder_draws_images_and_the_plane(tmp_path, monkeypatch):
    labels = np.arange(30) % 3
    stand_in = datasets.images.Images(None, None, None, labels)
    monkeypatch.setattr(datasets.images, "mnist", lambda: stand_in)
    part = {"x": images(30), "y": images(30)}
    scores = vae.examine(vae.init(0), Dataset(part, part), tmp_path / "adam")
    assert_pictures(tmp_path, "adam_images.png", "adam_latent.png")
    (bound,) = scores.values()
    assert -2_000 < bound < 0


def test_examining_tumours_says_how_apt_the_doubt_is(tmp_path):
    data = wisconsin_bayesian.SCENARIO.load()
    assert len(data.train["y"]) == wisconsin_bayesian.EXAMPLES
    params = wisconsin_bayesian.SCENARIO.init(0)
    scores = wisconsin_bayesian.examine(params, data, tmp_path / "adam")
    assert_pictures(tmp_path, "adam_tumours.png", "adam_uncertainty.png")
    # At the prior it knows nothing, and knows that.
    assert scores["predictive log-likelihood"] == pytest.approx(np.log(0.5), abs=0.1)
    assert 0 <= scores["expected calibration error"] < 0.6
    wrong = scores["mean predictive entropy where wrong"]
    assert wrong == pytest.approx(np.log(2), abs=0.1)


def test_calibration_error_of_an_overconfident_classifier():
    confidence, right = np.array([0.95] * 4 + [0.55] * 2), np.array([1, 1, 0, 0, 1, 0])
    error = wisconsin_bayesian.expected_calibration_error(confidence, right)
    assert error == pytest.approx(4 / 6 * 0.45 + 2 / 6 * 0.05)

"""Scenarios: shapes and values that need no download, on little data."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import datasets
from benchmarks.peers import COMPETITORS
from benchmarks.scenarios import SCENARIOS, _networks, convection_pinn, shakespeare

IMAGES = datasets.images.Images(
    *(
        np.random.default_rng(0).integers(0, high, shape, dtype=np.uint8)
        for high, shape in ((256, (6, 28, 28)), (10, 6), (256, (3, 28, 28)), (10, 3))
    )
)


@pytest.fixture
def data(monkeypatch):
    """Stands in for everything that would be downloaded."""
    text = "".join(map(chr, range(84))) * 40
    monkeypatch.setattr(datasets.images, "mnist", lambda: IMAGES)
    monkeypatch.setattr(datasets.images, "fashion_mnist", lambda: IMAGES)
    monkeypatch.setattr(datasets.text, "shakespeare", lambda: text)
    monkeypatch.setattr(shakespeare, "HELD_OUT", 200)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("mnist_autoencoder_small", 367_104),
        ("mnist_classifier", 669_706),
        ("mnist_cnn", 11_274),
        ("shakespeare", 426_580),
    ],
)
def test_networks_fit_their_data(data, name, parameters):
    scenario = SCENARIOS[name]
    train, held_out, _ = scenario.load()
    assert len(train["x"]) == len(train["y"]) > len(held_out["y"])
    assert size(scenario) == parameters
    # Shapes alone: running it would take seconds.
    loss = jax.eval_shape(lambda s: scenario.value(scenario.init(s), **train), 0)
    assert loss.shape == () and loss.dtype == jnp.float32


def size(scenario):
    leaves = jax.tree.leaves(jax.eval_shape(scenario.init, 0))
    return sum(leaf.size for leaf in leaves)


def test_curves_autoencoder_has_dead_pixels(monkeypatch):
    monkeypatch.setattr("benchmarks.scenarios.curves_autoencoder.IMAGES", 40)
    scenario = SCENARIOS["curves_autoencoder"]
    train, held_out, _ = scenario.load()
    assert train["x"].shape == held_out["y"].shape == (40, 196)
    assert (train["x"].max(axis=0) < 0.01).sum() > 20
    assert size(scenario) == 52_552
    outputs = jnp.full((40, 196), 0.5)
    expected = np.sum((0.5 - np.asarray(train["y"])) ** 2) / 40
    assert scenario.loss(outputs, train["y"]) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("name", "seen"),
    [
        ("convection_pinn", lambda x, t: (x / np.pi - 1, 2 * t - 1)),
        ("convection_pinn_unscaled", lambda x, t: (x, t)),
    ],
)
def test_convection_counts_every_condition_once(monkeypatch, name, seen):
    counts = {"equation": 9, "periodic": 4, "known": 2}
    monkeypatch.setattr(convection_pinn, "POINTS", counts)
    scenario = SCENARIOS[name]
    with jax.enable_x64(scenario.x64):
        train, held_out, _ = scenario.load()
        params = jax.jit(scenario.init)(0)
        assert size(scenario) == 7_851
        leaves = jax.tree.leaves((params, train))
        assert all(leaf.dtype == jnp.float64 for leaf in leaves)
        assert train["y"].shape == (15,)

        def u(x, t):
            return _networks.regressor(params, jnp.array([seen(x, t)]))[0]

        squares, slopes = [], jax.jit(jax.grad(u, argnums=(0, 1)))
        u = jax.jit(u)
        for x, t in train["x"]["equation"]:
            u_x, u_t = slopes(x, t)
            squares.append((u_t + 30 * u_x) ** 2 / 9)
        for _, t in train["x"]["periodic"]:
            squares.append((u(0.0, t) - u(2 * np.pi, t)) ** 2 / 4)
        for x, t in train["x"]["known"]:
            assert t == 0
            squares.append((u(x, 0.0) - jnp.sin(x)) ** 2 / 2)
        value = float(jax.jit(scenario.value)(params, **train))
        assert value == pytest.approx(0.5 * float(sum(squares)), rel=1e-10)

        score = float(scenario.metric(held_out["y"] * 1.1, held_out["y"]))
        assert score == pytest.approx(0.1)
        outputs = jax.eval_shape(scenario.model, params, held_out["x"])
        assert outputs.shape == held_out["y"].shape


def test_points_of_convection_lie_where_their_condition_holds():
    for points in (convection_pinn.on_grids(), convection_pinn.at_random()):
        assert {k: len(x) for k, x in points.items()} == convection_pinn.POINTS
        everywhere = np.concatenate(list(points.values()))
        assert (everywhere >= 0).all() and (everywhere <= convection_pinn.ENDS).all()
        assert (points["periodic"][:, 0] == 0).all()
        assert (points["known"][:, 1] == 0).all()
        assert np.ptp(points["periodic"][:, 1]) > 0.9
        assert np.ptp(points["known"][:, 0]) > 0.9 * 2 * np.pi
        assert len(np.unique(points["equation"], axis=0)) == 48 * 48


def test_glorot_weights_have_the_variance_of_their_name():
    weights = convection_pinn.SCENARIO.init(0)[0]["w"]
    # 100 numbers: their sample deviation is good to some 7 %.
    assert float(jnp.std(weights)) == pytest.approx((2 / 52) ** 0.5, rel=0.25)


def test_the_solution_of_convection_solves_it():
    def u(point):
        return jnp.sin(point[0] - convection_pinn.SPEED * point[1])

    point = jnp.array([0.3, 0.02])
    u_x, u_t = jax.grad(u)(point)
    assert abs(u_t + 30 * u_x) < 1e-5
    exact = convection_pinn.solution(np.array(point)[None])
    assert exact[0] == pytest.approx(float(u(point)), rel=1e-6)


def test_a_transformer_does_not_look_ahead():
    x = jnp.stack([jnp.arange(20), jnp.arange(20).at[12].set(50)])
    scenario = shakespeare.SCENARIO
    outputs = jax.jit(lambda seed: scenario.model(scenario.init(seed), x))(0)
    first, second = outputs
    np.testing.assert_allclose(first[:12], second[:12], atol=1e-5)
    assert jnp.abs(first[12:] - second[12:]).max() > 1e-3
    # Small random weights know nothing: every character is about equally likely.
    start = float(SCENARIOS["shakespeare"].loss(outputs, x))
    assert start == pytest.approx(np.log(84), rel=0.05)


def test_float64_variants_keep_the_rest():
    scenario = SCENARIOS["boston_x64"]
    assert scenario.x64 and scenario.load is SCENARIOS["boston"].load
    with jax.enable_x64(True):
        assert scenario.load().train["x"].dtype == jnp.float64


@pytest.mark.parametrize(
    ("scenario", "left_out"),
    [
        ("digits", {"residual_space", "poster"}),
        ("wisconsin", {"kfac", "residual_space", "poster"}),
        ("boston_x64", set()),
        (
            "convection_pinn",
            {"kfac", "poster"} | {n for n, c in COMPETITORS.items() if c.minibatch},
        ),
        ("shakespeare", {n for n, c in COMPETITORS.items() if not c.minibatch}),
    ],
)
def test_competitors_that_do_not_fit_are_known(scenario, left_out):
    fitting = {n for n, c in COMPETITORS.items() if c.fits(SCENARIOS[scenario])}
    assert fitting == set(COMPETITORS) - left_out

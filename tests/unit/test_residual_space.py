import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from oracles import as_matrix, dense_gradient, flat, tiny_net, train

import ncg_optax as ncg
from ncg_optax import Status
from ncg_optax._loss import as_objective

pytestmark = pytest.mark.usefixtures("x64")


def batch(examples, outputs=1, seed=0, dtype=jnp.float64):
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(examples, 2)), rng.normal(size=(examples, outputs))
    return {"x": jnp.asarray(x, dtype), "y": jnp.asarray(y, dtype)}


def network(outputs=1, dtype=jnp.float64):
    """13 parameters for one output, 21 for three."""
    rng = np.random.default_rng(3)
    params = {"w": rng.normal(size=(2, 3)), "v": rng.normal(size=(3, outputs))}
    params["b"] = rng.normal(size=(outputs,))
    return jax.tree.map(lambda p: jnp.asarray(p, dtype), params)


def model(params, x):
    return jnp.tanh(x @ params["w"]) @ params["v"] + params["b"]


def squares(outputs, y):
    return jnp.mean((outputs - y) ** 2)


def softmax(outputs, y):
    labels = jnp.argmax(y, axis=1)
    return optax.softmax_cross_entropy_with_integer_labels(outputs, labels).mean()


def huber(outputs, y):
    return jnp.mean(optax.huber_loss(outputs, y, delta=0.5))


def minus_gradient(loss, params):
    return jax.tree.map(lambda g: -jnp.conj(g), jax.grad(loss)(params))


def solve(loss, params, damping=0.1, rhs=None, state=None, **settings):
    solver = ncg.residual_space(**{"ladder": None, **settings})

    @jax.jit
    def run(params, rhs, damping, state):
        return solver.solve(
            None,
            rhs,
            damping,
            None,
            state,
            objective=as_objective(loss, {}),
            params=params,
        )

    rhs = minus_gradient(loss, params) if rhs is None else rhs
    state = solver.init(params) if state is None else state
    return run(params, rhs, jnp.asarray(damping), state)


def dense(loss, params):
    product = functools.partial(ncg.curvature_product, ncg.gauss_newton(), loss)
    return as_matrix(product, params)


def assert_solves(result, b, rhs, damping, rtol=1e-8):
    a = b + damping * np.eye(len(b))
    d = np.linalg.solve(a, rhs)
    np.testing.assert_allclose(
        flat(result.solution), d, rtol=0, atol=rtol * np.linalg.norm(d)
    )
    bd = d @ b @ d
    np.testing.assert_allclose(result.model_decrease, rhs @ d / 2, rtol=1e-6)
    np.testing.assert_allclose(result.curvature, bd / (d @ d), rtol=1e-6)
    np.testing.assert_allclose(result.length, np.linalg.norm(d), rtol=1e-6)
    assert result.residual < 1e-8 * np.linalg.norm(rhs)
    assert result.status == Status.RESIDUAL_CONVERGED


PROBLEMS = {  # loss, outputs, examples; the last of each pair has fewer parameters
    "squares": (squares, 1, 7),
    "squares, many": (squares, 1, 40),
    "softmax": (softmax, 3, 5),
    "softmax, many": (softmax, 3, 40),
    "flat tails": (huber, 1, 7),
    "flat tails, many": (huber, 1, 40),
}


@pytest.mark.parametrize("problem", PROBLEMS)
def test_the_step_is_that_of_the_dense_system(problem):
    loss_fn, outputs, examples = PROBLEMS[problem]
    loss = ncg.CompositeLoss(model, loss_fn).bind(**batch(examples, outputs))
    params = network(outputs)
    b, rhs = dense(loss, params), -dense_gradient(loss, params)
    by_example, state = solve(loss, params, chunk=4)
    assert_solves(by_example, b, rhs, 0.1)
    assert (int(state.route), int(by_example.products)) == (1, outputs + 2)
    again, state = solve(loss, params, state=state)
    assert (int(state.route), int(again.products)) == (1, outputs)

    whole, state = solve(loss, params, jacobian="whole_batch", chunk=4)
    assert_solves(whole, b, rhs, 0.1)
    assert (int(state.route), int(whole.products)) == (2, outputs * examples)


@pytest.mark.parametrize("examples", [7, 40])
def test_any_right_hand_side(examples):
    loss = ncg.CompositeLoss(model, squares).bind(**batch(examples))
    params = network()
    b, rhs = dense(loss, params), minus_gradient(loss, params)
    anything = jax.tree.map(lambda p: jnp.cos(7 * p), params)
    mixed = jax.tree.map(lambda r, c: r + 0.1 * c, rhs, anything)
    clipped = jax.tree.map(lambda r: 0.01 * r, rhs)
    for right in (anything, mixed):
        result, _ = solve(loss, params, 0.1, rhs=right)
        assert_solves(result, b, flat(right), 0.1)
    # As a whole it stays in the span of the rows, and tiny dampings do no harm.
    result, _ = solve(loss, params, 1e-9, rhs=clipped)
    assert_solves(result, b, flat(clipped), 1e-9, rtol=1e-5)


@pytest.mark.parametrize("power", [0, -4, -8, -12])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
@pytest.mark.parametrize("loss_fn", [squares, softmax])
def test_small_dampings(loss_fn, dtype, power):
    """Down to what the Gram matrix resolves, and harmless below."""
    params = network(3)
    loss = ncg.CompositeLoss(model, loss_fn)
    b = dense(loss.bind(**batch(6, 3)), params)
    rhs = -dense_gradient(loss.bind(**batch(6, 3)), params)
    damping = 10.0**power * np.linalg.norm(b, 2)

    narrow = jax.tree.map(lambda p: p.astype(dtype), params)
    data = batch(6, 3, dtype=dtype)
    result, _ = solve(loss.bind(**data), narrow, np.asarray(damping, dtype))
    d, found = np.linalg.solve(b + damping * np.eye(len(b)), rhs), flat(result.solution)
    assert np.isfinite(found).all()
    eps = float(jnp.finfo(dtype).eps)
    if eps / 10.0**power < 1e-3:
        assert np.linalg.norm(found - d) < 1e-2 * np.linalg.norm(d)
    # In units of the best decrease of the model.
    decrease = rhs @ found - found @ b @ found / 2
    assert decrease > 0.97 * (rhs @ d - d @ b @ d / 2)


@pytest.mark.parametrize("examples", [7, 40])
def test_without_damping_it_is_the_least_squares_step(examples):
    def repeated(params, x):  # A rank-deficient Jacobian in either space.
        return model(params, jnp.concatenate([x[:, :1], x[:, :1]], axis=1))

    data = batch(examples)
    data = {name: jnp.concatenate([a[:3], a]) for name, a in data.items()}
    params = network()
    loss = ncg.CompositeLoss(repeated, squares).bind(**data)
    b, rhs = dense(loss, params), -dense_gradient(loss, params)
    result, _ = solve(loss, params, 0.0)
    d = np.linalg.pinv(b, rcond=1e-13) @ rhs
    decrease = rhs @ d / 2
    np.testing.assert_allclose(result.model_decrease, decrease, rtol=1e-3)
    assert result.length < 1.1 * np.linalg.norm(d)


def test_the_ladder_takes_the_largest_step_that_keeps_its_promise():
    loss = ncg.CompositeLoss(model, squares).bind(**batch(7))
    params = network()
    b, rhs = dense(loss, params), -dense_gradient(loss, params)
    state, centre = None, 1e-3
    for _ in range(3):
        result, state = solve(
            loss, params, centre, ladder=5, spread=100.0, ratio=0.5, state=state
        )
        rungs = centre * 10.0 ** np.arange(-2, 3)
        expected = rungs[-1]
        for damping in rungs[::-1]:
            d = np.linalg.solve(b + damping * np.eye(len(b)), rhs)
            moved = jax.tree.map(
                jnp.add, params, jax.flatten_util.ravel_pytree(params)[1](d)
            )
            if loss(params) - loss(moved) >= 0.5 * (rhs @ d - d @ b @ d / 2):
                expected = damping
        np.testing.assert_allclose(result.damping, expected, rtol=1e-9)
        assert result.evaluations == 5
        assert_solves(result, b, rhs, float(result.damping))
        params = jax.tree.map(jnp.add, params, result.solution)
        b, rhs = dense(loss, params), -dense_gradient(loss, params)
        centre = float(result.damping)
        assert state.damping == centre


def test_if_no_step_descends_the_shortest_is_taken_and_the_ladder_rises():
    def trap(outputs, y):  # Only infinitesimal steps descend.
        here = jnp.where(outputs == jax.lax.stop_gradient(outputs), 0, 0)
        far = jnp.sum(jnp.abs(outputs - model(params, data["x"]))) > 1e-9
        return squares(outputs, y) + here + jnp.where(far, 1e3, 0)

    params, data = network(), batch(7)
    loss = ncg.CompositeLoss(model, trap).bind(**data)
    result, state = solve(loss, params, 1.0, ladder=3, momentum=0.5)
    assert result.damping == state.damping == 10.0
    assert not flat(state.direction).any()


def test_momentum():
    loss = ncg.CompositeLoss(model, squares)
    params = network()
    for examples in (7, 40):
        bound = loss.bind(**batch(examples))
        b, rhs = dense(bound, params), -dense_gradient(bound, params)
        first, state = solve(bound, params, momentum=0.9)
        assert_solves(first, b, rhs, 0.1)
        second, _ = solve(bound, params, momentum=0.9, state=state)
        old = 0.9 * flat(first.solution)
        expected = old + np.linalg.solve(b + 0.1 * np.eye(len(b)), rhs - b @ old)
        np.testing.assert_allclose(flat(second.solution), expected, rtol=1e-8)


def test_points_of_several_kinds():
    """A leaf of outputs for each, as physics-informed networks have them."""

    def conditions(params, inside, edge, start):
        def slope(x):
            along = jnp.ones_like(x)
            return jax.jvp(lambda x: model(params, x), (x,), (along,))[1]

        return {"a": slope(inside), "b": model(params, edge), "c": slope(start)[:, 0]}

    def loss_fn(outputs):
        return sum(jnp.mean((x - 1.0) ** 2) for x in jax.tree.leaves(outputs))

    points = {"inside": batch(5)["x"], "edge": batch(2)["x"], "start": batch(2, 1, 1)}
    points["start"] = points["start"]["x"]
    params = network()
    loss = ncg.CompositeLoss(conditions, loss_fn).bind(**points)
    result, state = solve(loss, params)
    assert state.route == 1
    assert_solves(result, dense(loss, params), -dense_gradient(loss, params), 0.1)


def normalised(params, x):
    return model(params, (x - x.mean(0)) / x.std(0))


def shifted(params, x, shift):
    return model(params, x - shift[:2])


def weight_decay(params, x):
    return {"outputs": model(params, x), "weights": params["w"]}


def squares_and_decay(outputs, y):
    return squares(outputs["outputs"], y) + 0.1 * jnp.sum(outputs["weights"] ** 2)


@pytest.mark.parametrize(
    ("model_fn", "loss_fn", "extra"),
    [
        (normalised, squares, {}),
        (shifted, squares, {"shift": jnp.arange(7.0)}),
        (lambda p, x: model(p, x)[::-1], squares, {}),
    ],
    ids=["batch statistics", "same length by chance", "reordered"],
)
def test_models_that_mix_examples_are_noticed(model_fn, loss_fn, extra):
    params = network()
    loss = ncg.CompositeLoss(model_fn, loss_fn).bind(**batch(7), **extra)
    result, state = solve(loss, params)
    assert state.route == 2
    assert_solves(result, dense(loss, params), -dense_gradient(loss, params), 0.1)


@pytest.mark.parametrize("examples", [4, 40])
def test_data_in_a_closure_and_weight_decay(examples):
    data, params = batch(examples), network()
    closure = ncg.CompositeLoss(
        lambda p: model(p, data["x"]), lambda outputs: squares(outputs, data["y"])
    )
    decay = ncg.CompositeLoss(weight_decay, squares_and_decay).bind(**data)
    for loss in (closure, decay):
        result, _ = solve(loss, params)
        b, rhs = dense(loss, params), -dense_gradient(loss, params)
        assert_solves(result, b, rhs, 0.1)


@pytest.mark.parametrize("examples", [3, 20])
def test_complex_parameters(examples):
    params = jax.tree.map(lambda p: p * (1 + 0.3j), network())
    loss = ncg.CompositeLoss(lambda p, x: jnp.abs(model(p, x)), squares)
    loss = loss.bind(**batch(examples))
    tx = ncg.newton_cg(
        curvature=ncg.gauss_newton(), damping=0.1, solver=ncg.cg(200, 1e-12)
    )
    rhs = minus_gradient(loss, params)
    matvec = ncg.curvature_product(ncg.gauss_newton(), loss, params)
    expected = ncg.conjugate_gradient(matvec, rhs, 0.1, maxiter=200, tolerance=1e-13)
    result, _ = solve(loss, params)
    np.testing.assert_allclose(
        flat(result.solution), flat(expected.solution), rtol=1e-7, atol=1e-9
    )
    assert tx is not None


def test_low_precision_parameters():
    loss = ncg.CompositeLoss(model, squares)
    data = batch(7, dtype=jnp.float32)
    params = network(dtype=jnp.bfloat16)
    rhs = jax.tree.map(
        lambda g: g.astype(jnp.float32), minus_gradient(loss.bind(**data), params)
    )
    result, state = solve(loss.bind(**data), params, 1e-2, rhs=rhs)
    assert state.route == 1
    wide = jax.tree.map(lambda p: p.astype(jnp.float32), params)
    expected, _ = solve(loss.bind(**data), wide, 1e-2)
    a, b = flat(result.solution), flat(expected.solution)
    assert a.dtype == np.float32
    assert np.linalg.norm(a - b) < 0.1 * np.linalg.norm(b)


def newton(**settings):
    settings = {"curvature": ncg.gauss_newton(), **settings}
    return ncg.newton_cg(**settings)


def test_training():
    params, loss = tiny_net(jnp.float64)
    tx = newton(solver=ncg.residual_space())
    params, state = train(tx, loss, params, 25)
    info = ncg.get_info(state)
    assert loss(params) < 1e-20
    assert info.evaluations == 6  # the ladder's, and the line search's
    assert info.products == 1
    assert info.damping < 1e-4
    assert info.residual < 1e-6


def test_training_does_not_know_the_scale():
    params, loss = tiny_net(jnp.float64)
    scaled = ncg.CompositeLoss(loss.model_fn, lambda z, y: 1e-8 * loss.loss_fn(z, y))
    tx = newton(solver=ncg.residual_space())
    one, state = train(tx, loss, params, 4)
    other, scaled_state = train(tx, scaled.bind(**loss.data), params, 4)
    np.testing.assert_allclose(flat(one), flat(other), rtol=1e-6)
    damping = ncg.get_info(state).damping, ncg.get_info(scaled_state).damping
    np.testing.assert_allclose(1e-8 * damping[0], damping[1], rtol=1e-6)


def test_a_mask():
    params, loss = tiny_net(jnp.float64)
    mask = {"hidden": False, "out": True}
    tx = newton(solver=ncg.residual_space(ladder=None), damping=0.1, mask=mask)
    after, _ = train(tx, loss, params, 1)
    last = lambda w: loss.model({**params, "out": w})  # noqa: E731
    exact = ncg.CompositeLoss(last, lambda z: loss.loss(z))
    rhs = -dense_gradient(exact, params["out"])
    b = dense(exact, params["out"])
    d = np.linalg.solve(b + 0.1 * np.eye(len(b)), rhs)
    np.testing.assert_allclose(flat(after["out"]) - flat(params["out"]), d, rtol=1e-8)
    np.testing.assert_array_equal(flat(after["hidden"]), flat(params["hidden"]))


def test_nothing_to_do_and_nothing_finite():
    params, data = network(), batch(7)
    data["y"] = model(params, data["x"])
    loss = ncg.CompositeLoss(model, squares)
    result, _ = solve(loss.bind(**data), params)
    assert result.status == Status.ZERO_RIGHT_HAND_SIDE
    assert not flat(result.solution).any()
    data["y"] = data["y"].at[0].set(jnp.nan)
    for ladder in (None, 3):
        result, _ = solve(loss.bind(**data), params, ladder=ladder)
        assert result.status == Status.SOLVER_NON_FINITE
        assert not flat(result.solution).any()


def test_a_loss_that_is_not_curved():
    loss = ncg.CompositeLoss(model, lambda outputs, y: jnp.mean(outputs * y))
    params = network()
    result, _ = solve(loss.bind(**batch(7)), params, 0.5)
    rhs = -dense_gradient(loss.bind(**batch(7)), params)
    np.testing.assert_allclose(flat(result.solution), rhs / 0.5, rtol=1e-12)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"ladder": 1}, ValueError, "ladder"),
        ({"ladder": 2.0}, TypeError, "ladder"),
        ({"spread": 1.0}, ValueError, "spread"),
        ({"ratio": -0.1}, ValueError, "ratio"),
        ({"momentum": 1.0}, ValueError, "momentum"),
        ({"momentum": jnp.nan}, ValueError, "momentum"),
        ({"jacobian": "fast"}, ValueError, "jacobian"),
        ({"chunk": 0}, ValueError, "chunk"),
        ({"max_size": 0}, ValueError, "max_size"),
    ],
)
def test_bad_settings(settings, error, message):
    with pytest.raises(error, match=message):
        ncg.residual_space(**settings)


def test_what_it_cannot_solve():
    params, data = network(), batch(7)
    loss = ncg.CompositeLoss(model, squares).bind(**data)
    plain = lambda p: loss(p)  # noqa: E731
    scalar = ncg.CompositeLoss(lambda p: jnp.sum(p["b"]), lambda z: z**2)
    imaginary = ncg.CompositeLoss(
        lambda p: p["b"] * 1j, lambda z: jnp.sum(jnp.abs(z) ** 2)
    )
    closure = ncg.CompositeLoss(lambda p: model(p, data["x"]), lambda z: jnp.sum(z))
    with pytest.raises(TypeError, match="CompositeLoss"):
        solve(plain, params)
    with pytest.raises(ValueError, match="first axis runs over the examples"):
        solve(scalar, params)
    with pytest.raises(TypeError, match="real floating-point outputs"):
        solve(imaginary, params)
    with pytest.raises(ValueError, match="data bound to the loss"):
        solve(closure, params, jacobian="per_example")
    with pytest.raises(ValueError, match="7 x 7 numbers"):
        solve(loss, params, max_size=6)

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree
from oracles import flat, make_step, solve_model, tiny_net, train

import ncg_optax as ncg
from ncg_optax import Status
from ncg_optax.losses.objective import as_objective
from ncg_optax.solvers.residual_space import cost, normal_equations

pytestmark = pytest.mark.usefixtures("x64")


def batch(examples, outputs=1, seed=0, dtype=jnp.float64):
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(examples, 2)), rng.normal(size=(examples, outputs))
    return {"x": jnp.asarray(x, dtype), "y": jnp.asarray(y, dtype)}


def network(outputs=1, dtype=jnp.float64):
    """10 parameters for one output, 18 for three."""
    rng = np.random.default_rng(3)
    params = {"w": rng.normal(size=(2, 3)), "v": rng.normal(size=(3, outputs))}
    params["b"] = rng.normal(size=(outputs,))
    return jax.tree.map(lambda p: jnp.asarray(p, dtype), params)


def model(params, x):
    return jnp.tanh(x @ params["w"]) @ params["v"] + params["b"]


def squares(outputs, y):
    return jnp.mean((outputs - y) ** 2)


def scaled(outputs, y, scale):
    return scale * squares(outputs, y)


def softmax(outputs, y):
    labels = jnp.argmax(y, axis=1)
    return optax.softmax_cross_entropy_with_integer_labels(outputs, labels).mean()


def huber(outputs, y):
    return jnp.mean(optax.huber_loss(outputs, y, delta=0.5))


def weighted(outputs, y):
    weights = jnp.arange(1.0 * len(y))[:, None] % 4  # every fourth does not count
    return jnp.mean(weights * (outputs - y) ** 2)


SQUARES = ncg.CompositeLoss(model, squares)
SCALED = ncg.CompositeLoss(model, scaled)
SOFTMAX = ncg.CompositeLoss(model, softmax)
HUBER = ncg.CompositeLoss(model, huber)
WEIGHTED = ncg.CompositeLoss(model, weighted)


# Compiled once for each loss, whatever the data says.


@functools.partial(jax.jit, static_argnums=0)
def _system(loss, params, data):
    """The dense Gauss-Newton matrix and the right-hand side."""
    bound = loss.bind(**data)
    product = ncg.curvature.curvature_product(ncg.gauss_newton(), bound, params)
    vector, unravel = ravel_pytree(params)
    column = lambda e: ravel_pytree(product(unravel(e)))[0]  # noqa: E731
    gradient = ravel_pytree(jax.grad(bound)(params))[0]
    return jax.vmap(column)(jnp.eye(vector.size)).T, -gradient


def system(loss, params, **data):
    return tuple(map(np.asarray, _system(loss, params, data)))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _run(solver, loss, params, data, rhs, damping, state):
    bound = loss.bind(**data)
    if rhs is None:
        rhs = jax.tree.map(lambda g: -jnp.conj(g), jax.grad(bound)(params))
    state = solver.init(params) if state is None else state
    objective = as_objective(bound, {})
    return solve_model(
        solver, None, rhs, damping, None, state, objective=objective, params=params
    )


cached = functools.cache(ncg.residual_space)


def solve(loss, params, data, damping=0.1, *, rhs=None, state=None, **settings):
    solver = cached(**{"trials": None, **settings})
    return _run(solver, loss, params, data, rhs, jnp.asarray(damping), state)


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


def unraveled(vector, params):
    return ravel_pytree(params)[1](jnp.asarray(vector))


PROBLEMS = {  # loss, outputs, examples; with many there are fewer parameters
    "squares": (SQUARES, 1, 7),
    "squares, many": (SQUARES, 1, 40),
    "softmax": (SOFTMAX, 3, 5),
    "softmax, many": (SOFTMAX, 3, 40),
    "flat tails": (HUBER, 1, 7),
    "flat tails, many": (HUBER, 1, 40),
    "weights": (WEIGHTED, 1, 7),
    "weights, many": (WEIGHTED, 1, 40),
}


fast = {"jacobian": "per_example"}  # compiles one mode only


@pytest.mark.parametrize("problem", PROBLEMS)
def test_the_step_is_that_of_the_dense_system(problem):
    loss, outputs, examples = PROBLEMS[problem]
    params, data = network(outputs), batch(examples, outputs)
    result, state = solve(loss, params, data, chunk=4, **fast)
    assert_solves(result, *system(loss, params, **data), 0.1)
    assert (int(state.jacobian_mode), int(result.products)) == (1, outputs)


@pytest.mark.parametrize("examples", [7, 40])
@pytest.mark.parametrize("scale", [1.0, 1e-12])
def test_the_jacobian_mode_is_determined_once(examples, scale):
    params, data = network(), {**batch(examples), "scale": scale}
    state = cached().init(params)
    for products in (3, 1):
        result, state = solve(SCALED, params, data, 0.1 * scale, state=state)
        assert_solves(result, *system(SCALED, params, **data), 0.1 * scale)
        assert (int(state.jacobian_mode), int(result.products)) == (1, products)


@pytest.mark.parametrize(
    ("jacobian", "rows"), [("whole_batch", 256), ("per_example", 600)]
)
def test_rows_through_the_whole_batch_are_fewer_at_once(jacobian, rows):
    """A chunk of 1024 would need memory for as many whole batches."""
    params, data = network(), batch(600)
    loss = ncg.CompositeLoss(model, squares).bind(**data)
    tx = ncg.newton_cg(
        curvature=ncg.gauss_newton(), solver=ncg.residual_space(jacobian=jacobian)
    )

    def step(params, state):
        return tx.update(jax.grad(loss)(params), state, params, value_fn=loss)

    program = str(jax.make_jaxpr(step)(params, tx.init(params)))
    # Derivatives of the weights of the first layer, for so many rows.
    found = {n for n in (256, 600) if f"f64[{n},2,3]" in program}
    assert found == {rows}


@pytest.mark.parametrize("examples", [5, 40])
def test_backward_passes_through_the_whole_batch(examples):
    params, data = network(3), batch(examples, 3)
    result, state = solve(SOFTMAX, params, data, jacobian="whole_batch", chunk=4)
    assert_solves(result, *system(SOFTMAX, params, **data), 0.1)
    assert (int(state.jacobian_mode), int(result.products)) == (2, 3 * examples)


@pytest.mark.parametrize("examples", [7, 40])
def test_any_right_hand_side(examples):
    params, data = network(), batch(examples)
    b, rhs = system(SQUARES, params, **data)
    anything = np.cos(np.arange(len(rhs)))

    def assert_solved(right, damping, rtol=1e-8):
        tree = unraveled(right, params)
        result, _ = solve(SQUARES, params, data, damping, rhs=tree, **fast)
        assert_solves(result, b, right, damping, rtol)

    assert_solved(anything, 0.1)
    assert_solved(rhs + 0.1 * anything, 0.1)
    # Clipped as a whole it stays in the span of the rows: tiny dampings do no harm.
    assert_solved(0.01 * rhs, 1e-9, rtol=1e-5)


@pytest.mark.parametrize("examples", [4, 40])
@pytest.mark.parametrize("gap", [0.0, 30.0, 70.0])
def test_a_confident_mistake(gap, examples):
    """Next to no curvature under a gradient of one: its residual is 1e6 or 1e15."""

    def biased(params, x, bias):
        return model(params, x) + bias * jnp.array([1.0, 0.0, 0.0])

    loss = ncg.CompositeLoss(biased, softmax)
    params, data = network(3), batch(examples, 3)
    data["bias"] = jnp.zeros((examples, 1)).at[0].set(gap)
    data["y"] = data["y"].at[0].set(jnp.array([0.0, 1.0, 0.0]))
    b, rhs = system(loss, params, **data)
    params, data = jax.tree.map(lambda a: a.astype(jnp.float32), (params, data))
    for clip in (1.0, 0.01):
        short = unraveled(clip * rhs, params)
        short = jax.tree.map(lambda a: a.astype(jnp.float32), short)
        damping = np.float32(1e-2)
        result, _ = solve(loss, params, data, damping, rhs=short, **fast)
        d = np.linalg.solve(b + 1e-2 * np.eye(len(b)), clip * rhs)
        assert np.linalg.norm(flat(result.solution) - d) < 1e-4 * np.linalg.norm(d)


@pytest.mark.parametrize("noise, kept", [(0.0, 0.1), (1e4, 0.0)])
def test_a_difference_within_the_rounding_of_the_rows_is_dropped(noise, kept):
    own = jnp.array([1.0, 0.0], jnp.float32)
    b, zero = own.at[1].set(0.1), jnp.zeros_like(own)
    factor, rest = normal_equations._split(b, own, zero, noise)
    np.testing.assert_allclose(factor, 1.0)
    np.testing.assert_allclose(rest, [0.0, kept], rtol=1e-6)


# Below what rounding resolves the result depends on how XLA rounds: the slow tests are
# compiled as they are for users.
@pytest.mark.parametrize(
    "power", [0, -4, -8, pytest.param(-12, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
@pytest.mark.parametrize("loss", [SQUARES, SOFTMAX], ids=["squares", "softmax"])
def test_small_dampings(loss, dtype, power):
    """Exact down to what the Gram matrix resolves, and harmless below."""
    params = network(3)
    b, rhs = system(loss, params, **batch(6, 3))
    damping = 10.0**power * np.linalg.norm(b, 2)
    d = np.linalg.solve(b + damping * np.eye(len(b)), rhs)

    narrow, data = jax.tree.map(lambda a: a.astype(dtype), (params, batch(6, 3)))
    result, _ = solve(loss, narrow, data, np.asarray(damping, dtype), **fast)
    found = flat(result.solution).astype(np.float64)
    assert np.isfinite(found).all()
    if jnp.finfo(dtype).eps < 1e-3 * 10.0**power:
        assert np.linalg.norm(found - d) < 1e-2 * np.linalg.norm(d)
    decrease = rhs @ found - found @ b @ found / 2
    assert decrease > 0.97 * (rhs @ d - d @ b @ d / 2)


@pytest.mark.parametrize("examples", [4, 37])
def test_without_damping_it_is_the_least_squares_step(examples):
    params, data = network(), batch(examples)
    # Rank-deficient in either space: repeated examples, and inputs with a dead column.
    data = {name: jnp.concatenate([a[:3], a]) for name, a in data.items()}
    data["x"] = data["x"].at[:, 0].set(0)
    b, rhs = system(SQUARES, params, **data)
    result, _ = solve(SQUARES, params, data, 0.0, **fast)
    d = np.linalg.pinv(b, rcond=1e-13) @ rhs
    np.testing.assert_allclose(result.model_decrease, rhs @ d / 2, rtol=1e-3)
    assert result.length < 1.1 * np.linalg.norm(d)


def second_derivative(params, data, d):
    """Of the outputs along ``d``, and the weight of a squared residual."""
    outputs = lambda t: model(unraveled(flat(params) + t * d, params), data["x"])  # noqa: E731
    slope = lambda t: jax.jvp(outputs, (t,), (1.0,))[1]  # noqa: E731
    return jax.jvp(slope, (0.0,), (1.0,))[1], 2 / data["y"].size


@pytest.mark.parametrize("examples", [7, 40])
@pytest.mark.parametrize("limit", [0.0, 1e-6, 1e6])
def test_the_accelerated_step_is_that_of_the_dense_systems(examples, limit):
    params, data = network(), batch(examples)
    settings = {"trials": 1, "acceleration": limit, **fast}
    b, rhs = system(SQUARES, params, **data)
    a = b + 10.0 * np.eye(len(b))
    d = np.linalg.solve(a, rhs)
    if limit > 1:
        z, weight = second_derivative(params, data, d)
        pull = jax.vjp(lambda p: model(p, data["x"]), params)[1]
        d = d - np.linalg.solve(a, flat(pull(weight * z)[0])) / 2
    result, state = solve(SQUARES, params, data, 10.0, **settings)
    size = np.linalg.norm(d)
    np.testing.assert_allclose(flat(result.solution), d, rtol=0, atol=1e-5 * size)
    np.testing.assert_allclose(result.length, size, rtol=1e-5)
    assert (result.damping, result.evaluations) == (10.0, 5 if limit else 2)
    assert state.damping < 10.0


def test_an_acceleration_is_what_brings_the_outputs_to_the_data():
    """On one parabola the outputs after the step differ in the third order."""
    loss = ncg.CompositeLoss(lambda w, x: x * (w + w**2), squares)
    data = {"x": jnp.ones(1), "y": jnp.full(1, 0.1)}
    errors = {}
    for limit in (0.0, 1.0):
        settings = {"trials": 1, "acceleration": limit, **fast}
        result, _ = solve(loss, jnp.zeros(1), data, 1e-12, **settings)
        w = result.solution
        errors[limit] = abs(float((w + w**2)[0]) - 0.1)
    np.testing.assert_allclose(errors[0.0], 0.1**2, rtol=1e-6)
    np.testing.assert_allclose(errors[1.0], 2 * 0.1**3, rtol=0.1)


def test_if_no_step_descends_the_shortest_is_taken_and_the_damping_rises():
    def trapped(outputs, y, start):  # Only infinitesimal steps descend.
        moved = jnp.sum(jnp.abs(outputs - start)) > 1e-9
        return squares(outputs, y) + jnp.where(moved, 1e3, 0.0)

    params, data = network(), batch(7)
    data["start"] = model(params, data["x"])
    loss = ncg.CompositeLoss(model, trapped)
    settings = {"trials": 2, "momentum": 0.5, **fast}
    result, state = solve(loss, params, data, 1.0, **settings)
    np.testing.assert_allclose((result.damping, state.damping), 4.0, rtol=1e-12)
    assert not flat(state.direction).any()


def test_the_cost_has_the_matrices_in_it():
    params, data = network(), batch(7)
    result, _ = solve(SQUARES, params, data, **fast)
    unit = cost.gradient_operations(as_objective(SQUARES.bind(**data), {}), params)
    np.testing.assert_allclose(result.gradients * unit, 7**2 * 10 + 7**3 / 3)


@pytest.mark.parametrize("examples", [7, 40])
def test_momentum_from_one_batch_to_the_next(examples):
    params, settings = network(), {"momentum": 0.9, **fast}
    state, old = cached(**settings).init(params), np.zeros(10)
    for seed in range(2):
        data = batch(examples, seed=seed)
        b, rhs = system(SQUARES, params, **data)
        result, state = solve(SQUARES, params, data, state=state, **settings)
        new = np.linalg.solve(b + 0.1 * np.eye(len(b)), rhs - b @ old)
        np.testing.assert_allclose(flat(result.solution), old + new, rtol=1e-8)
        old = 0.9 * flat(result.solution)


@pytest.mark.parametrize("trials", [None, 1])
@pytest.mark.parametrize("examples", [7, 40])
def test_a_momentum_that_leads_uphill_is_dropped(examples, trials):
    """The last direction was that of a batch that has nothing to do with this one."""
    params, data = network(), batch(examples)
    rhs = system(SQUARES, params, **data)[1]
    settings = {"momentum": 0.9, "trials": trials, **fast}
    state = cached(**settings).init(params)
    state = state._replace(direction=unraveled(-rhs, params), damping=jnp.array(1e5))
    result, state = solve(SQUARES, params, data, 1e5, state=state, **settings)
    assert flat(result.solution) @ rhs < 0
    assert not flat(state.direction).any()


def test_points_of_several_kinds():
    """A leaf of outputs for each, as physics-informed networks have them."""

    def conditions(params, inside, edge, start):
        def slope(x):
            u = lambda x: model(params, x)  # noqa: E731
            return jax.jvp(u, (x,), (jnp.ones_like(x),))[1]

        return {"a": slope(inside), "b": model(params, edge), "c": slope(start)[:, 0]}

    def loss_fn(outputs):
        return sum(jnp.mean((x - 1.0) ** 2) for x in jax.tree.leaves(outputs))

    points = {"inside": batch(5)["x"], "edge": batch(2)["x"]}
    points["start"] = points["edge"] + 1.0
    params, loss = network(), ncg.CompositeLoss(conditions, loss_fn)
    result, _ = solve(loss, params, points, **fast)
    assert_solves(result, *system(loss, params, **points), 0.1)


def normalised(params, x):
    return model(params, (x - x.mean(0)) / x.std(0))


def shifted(params, x, shift):
    return model(params, x - shift[:2])


@pytest.mark.parametrize(
    ("model_fn", "extra"),
    [
        (normalised, {}),
        (shifted, {"shift": jnp.arange(7.0)}),
        (lambda params, x: model(params, x)[::-1], {}),
    ],
    ids=["batch statistics", "same length by chance", "reordered"],
)
def test_models_that_mix_examples_are_noticed(model_fn, extra):
    params, data = network(), {**batch(7), **extra}
    loss = ncg.CompositeLoss(model_fn, squares)
    result, state = solve(loss, params, data)
    assert state.jacobian_mode == 2
    assert_solves(result, *system(loss, params, **data), 0.1)


@pytest.mark.parametrize("examples", [4, 40])
def test_data_in_a_closure(examples):
    data, params = batch(examples), network()
    closure = ncg.CompositeLoss(
        lambda p: model(p, data["x"]), lambda outputs: squares(outputs, data["y"])
    )
    result, state = solve(closure, params, {})
    assert state.jacobian_mode == 2
    assert_solves(result, *system(closure, params), 0.1)


def test_outputs_that_are_no_examples():
    data, params = batch(40), network()
    loss = ncg.CompositeLoss(
        lambda p, x: {"outputs": model(p, x), "weights": p["w"]},
        lambda z, y: squares(z["outputs"], y) + 0.1 * jnp.sum(z["weights"] ** 2),
    )
    result, state = solve(loss, params, data)
    assert state.jacobian_mode == 1
    assert_solves(result, *system(loss, params, **data), 0.1)


@pytest.mark.parametrize("examples", [3, 40])
def test_complex_parameters(examples):
    params = jax.tree.map(lambda p: p * (1 + 0.3j), network())
    loss = ncg.CompositeLoss(lambda p, x: jnp.abs(model(p, x)), squares)
    data = batch(examples)

    @jax.jit
    def by_conjugate_gradients(params):
        bound = loss.bind(**data)
        rhs = jax.tree.map(lambda g: -jnp.conj(g), jax.grad(bound)(params))
        matvec = ncg.curvature.curvature_product(ncg.gauss_newton(), bound, params)
        return ncg.solvers.conjugate_gradient(
            matvec, rhs, 0.1, maxiter=99, tolerance=1e-13
        )

    result, _ = solve(loss, params, data, **fast)
    expected = flat(by_conjugate_gradients(params).solution)
    np.testing.assert_allclose(flat(result.solution), expected, rtol=1e-7, atol=1e-9)


def test_low_precision_parameters():
    data, params = batch(7, dtype=jnp.float32), network(dtype=jnp.bfloat16)
    wide = jax.tree.map(lambda p: p.astype(jnp.float32), params)
    grads = jax.jit(lambda p: jax.grad(SQUARES.bind(**data))(p))(params)
    rhs = jax.tree.map(lambda g: -g.astype(jnp.float32), grads)
    result, _ = solve(SQUARES, params, data, 1e-2, rhs=rhs, **fast)
    expected, _ = solve(SQUARES, wide, data, 1e-2, **fast)
    a, b = flat(result.solution), flat(expected.solution)
    assert a.dtype == np.float32
    assert np.linalg.norm(a - b) < 0.1 * np.linalg.norm(b)


@pytest.mark.parametrize("examples", [4, 40])
def test_parameters_of_several_dtypes(examples):
    data, params = batch(examples), network()
    params["w"] = params["w"].astype(jnp.float32)
    params["v"] = params["v"].astype(jnp.complex64)
    loss = ncg.CompositeLoss(lambda p, x: jnp.real(model(p, x)), squares)
    wide = {**params, "w": params["w"].astype(jnp.float64), "v": params["v"].real}
    wide["v"] = wide["v"].astype(jnp.float64)
    settings = {"momentum": 0.5, **fast}
    result, state = solve(loss, params, data, **settings)
    b, rhs = system(SQUARES, wide, **data)
    d = np.linalg.solve(b + 0.1 * np.eye(len(b)), rhs)
    assert np.linalg.norm(flat(result.solution) - d) < 1e-5 * np.linalg.norm(d)
    for tree in (result.solution, state.direction):
        assert jax.tree.map(lambda x: x.dtype, tree) == {
            "w": jnp.float32,
            "v": jnp.complex64,
            "b": jnp.float64,
        }


def newton(**settings):
    settings = {"curvature": ncg.gauss_newton(), **settings}
    return ncg.newton_cg(**settings)


def test_training_ends_at_a_perfect_fit_and_does_not_know_the_scale():
    tx = newton(solver=cached(**fast))
    step, infos, after = make_step(tx, SCALED), [], []
    for scale, steps in ((1.0, 25), (1e-8, 2)):
        params, data = network(), {**batch(4), "scale": scale}
        state = tx.init(params)
        for k in range(steps):
            params, state = step(params, state, data)
            if k == 1:
                after.append(flat(params))
                infos.append(ncg.get_info(state))
        if scale == 1:
            assert SCALED(params, **data) < 1e-20
    assert infos[0].evaluations >= 6  # at the start, four a trial, the line search's
    assert infos[0].products == 1
    np.testing.assert_allclose(*after, rtol=1e-6)
    np.testing.assert_allclose(1e-8 * infos[0].damping, infos[1].damping, rtol=1e-6)


def test_trials_on_a_sample_cost_its_share():
    sampling = ncg.sampling(1 / 4, min_examples=1)
    tx = newton(solver=cached(**fast), sampling=sampling, linesearch=None)
    step, params = make_step(tx, SQUARES), network()
    _, state = step(params, tx.init(params), batch(16))
    info = ncg.get_info(state)
    # The solver's and the model itself on a quarter, the line search on everything.
    trials = (int(info.evaluations) - 2) // 4
    assert info.evaluations == 1 + 4 * trials + 1
    assert info.batch_evaluations == (1 + 4 * trials + 1) / 4 + 1


@pytest.mark.parametrize("jacobian", ["auto", "whole_batch"])
def test_leaves_without_entries_change_nothing(jacobian):
    params, data = network(), batch(7)
    bigger = params | {"none": jnp.zeros((0, 4))}
    alone, _ = solve(SQUARES, params, data, jacobian=jacobian)
    result, _ = solve(SQUARES, bigger, data, jacobian=jacobian)
    assert result.solution.pop("none").shape == (0, 4)
    for name, leaf in result.solution.items():
        np.testing.assert_allclose(leaf, alone.solution[name], rtol=1e-9)


def test_a_mask():
    params, loss = tiny_net(jnp.float64)
    mask = {"hidden": False, "out": True}
    tx = newton(solver=ncg.residual_space(trials=None, **fast), damping=0.1, mask=mask)
    after, _ = train(tx, loss, params, 1)
    last = ncg.CompositeLoss(
        lambda w: loss.model({**params, "out": w}), lambda outputs: loss.loss(outputs)
    )
    b, rhs = system(last, params["out"])
    d = np.linalg.solve(b + 0.1 * np.eye(len(b)), rhs)
    np.testing.assert_allclose(flat(after["out"]) - flat(params["out"]), d, rtol=1e-8)
    np.testing.assert_array_equal(flat(after["hidden"]), flat(params["hidden"]))


def test_nothing_to_do_and_nothing_finite():
    params, data = network(), batch(7)
    data["y"] = model(params, data["x"])
    result, _ = solve(SQUARES, params, data, **fast)
    assert result.status == Status.ZERO_RIGHT_HAND_SIDE
    assert not flat(result.solution).any()
    data["y"] = data["y"].at[0].set(jnp.nan)
    for trials in (None, 3):
        result, _ = solve(SQUARES, params, data, trials=trials, **fast)
        assert result.status == Status.SOLVER_NON_FINITE
        assert not flat(result.solution).any()


def test_a_loss_that_is_not_curved():
    params, data = network(), batch(7)
    loss = ncg.CompositeLoss(model, lambda outputs, y: jnp.mean(outputs * y))
    result, _ = solve(loss, params, data, 0.5, **fast)
    rhs = system(loss, params, **data)[1]
    np.testing.assert_allclose(flat(result.solution), rhs / 0.5, rtol=1e-12)


@pytest.mark.parametrize("outputs", [1, 3])
def test_a_curvature_that_is_not_finite(outputs):
    """The loss is smooth enough for a gradient, but has no second derivative at 0."""
    loss = ncg.CompositeLoss(model, lambda z, y: jnp.mean(jnp.abs(z - y) ** 1.5))
    params, data = network(outputs), batch(7, outputs)
    data["y"] = data["y"].at[0, 0].set(model(params, data["x"])[0, 0])
    for trials in (None, 3):
        result, _ = solve(loss, params, data, trials=trials, **fast)
        assert result.status == Status.SOLVER_NON_FINITE
        assert not flat(result.solution).any()


def test_a_batch_without_a_gradient_says_nothing_about_the_damping():
    def weighted(outputs, y, weight):
        return jnp.mean(weight[:, None] * (outputs - y) ** 2)

    loss = ncg.CompositeLoss(model, weighted)
    params, data = network(), {**batch(7), "weight": jnp.arange(7.0)}
    _, state = solve(loss, params, data, trials=3, **fast)
    empty = {**data, "weight": jnp.zeros(7)}
    result, after = solve(loss, params, empty, trials=3, state=state, **fast)
    assert result.status == Status.ZERO_RIGHT_HAND_SIDE
    assert not flat(result.solution).any()
    assert after.damping == state.damping > 0


@pytest.mark.parametrize("examples", [7, 40])
def test_trials_on_a_loss_that_is_not_curved(examples):
    """All residuals start in the flat tails: the steps are those of the gradient."""
    params, data = network(), batch(examples)
    data["y"] = data["y"] + 10
    rhs = system(HUBER, params, **data)[1]
    result, state = solve(HUBER, params, data, 0.0, trials=3, **fast)
    np.testing.assert_allclose(result.length, 1.0)
    along = flat(result.solution) / float(result.length)
    np.testing.assert_allclose(along, rhs / np.linalg.norm(rhs), rtol=1e-9)
    np.testing.assert_allclose(result.damping * result.length, np.linalg.norm(rhs))
    assert state.damping < result.damping
    after, _ = train(newton(solver=cached(**fast)), HUBER, params, 40, **data)
    assert HUBER(after, **data) < 0.2 * HUBER(params, **data)


def test_a_damping_in_the_noise_of_float32_is_raised_within_the_step():
    """A batch of much larger scale, after dampings that suited the last one."""
    params, data = network(dtype=jnp.float32), batch(7, dtype=jnp.float32)
    data = {name: jnp.concatenate([a, a]) for name, a in data.items()}  # singular
    loss = ncg.CompositeLoss(model, lambda z, y: 1e10 * squares(z, y))
    settings = {"trials": 10, **fast}
    state = cached(**settings).init(params)._replace(damping=jnp.float32(1e-9))
    result, state = solve(loss, params, data, state=state, **settings)
    assert result.status == Status.RESIDUAL_CONVERGED
    wide, exact = jax.tree.map(lambda a: a.astype(jnp.float64), (params, data))
    b, rhs = system(loss, wide, **exact)
    assert flat(result.solution) @ rhs > 0
    # Not higher than without the noise, from where the noise begins.
    first = 1e-3 * jnp.finfo(jnp.float32).eps * np.trace(b)
    state64 = cached(**settings).init(wide)._replace(damping=jnp.asarray(first))
    _, state64 = solve(loss, wide, exact, state=state64, **settings)
    assert first < state.damping < 10 * state64.damping


@pytest.mark.parametrize("examples", [7, 40])
def test_a_batch_that_is_not_finite_keeps_the_damping(examples):
    params, data = network(), batch(examples)
    _, state = solve(SQUARES, params, data, trials=3, **fast)
    for name in data:
        bad = {**data, name: data[name].at[0, 0].set(jnp.nan)}
        result, after = solve(SQUARES, params, bad, trials=3, state=state, **fast)
        assert after.damping == state.damping
        assert result.evaluations == 5  # no more trials


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"trials": 0}, ValueError, "trials"),
        ({"trials": 2.0}, TypeError, "trials"),
        ({"acceleration": -1.0}, ValueError, "acceleration"),
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
    scalar = ncg.CompositeLoss(lambda p: jnp.sum(p["b"]), lambda z: z**2)
    imaginary = ncg.CompositeLoss(
        lambda p: p["b"] * 1j, lambda z: jnp.sum(jnp.abs(z) ** 2)
    )
    closure = ncg.CompositeLoss(lambda p: model(p, data["x"]), jnp.sum)
    with pytest.raises(ValueError, match="first axis runs over the examples"):
        solve(scalar, params, {})
    with pytest.raises(TypeError, match="real floating-point outputs"):
        solve(imaginary, params, {})
    with pytest.raises(ValueError, match="data bound to the loss"):
        solve(closure, params, {}, **fast)
    with pytest.raises(ValueError, match="7 x 7 numbers"):
        solve(SQUARES, params, data, max_size=6)
    large = ncg.CompositeLoss(lambda w: w, lambda z: jnp.sum(z**2))
    w = jax.ShapeDtypeStruct((10_001,), float)
    with pytest.raises(ValueError, match="10001 x 10001 numbers, 0.7 GB"):
        jax.eval_shape(lambda w: solve(large, w, {}, jacobian="whole_batch"), w)
    tx = newton(solver=ncg.residual_space(), curvature=ncg.hessian())
    with pytest.raises(TypeError, match="CompositeLoss"):
        train(tx, lambda p: jnp.sum(p["b"] ** 2), params, 1)

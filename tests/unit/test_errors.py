import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import ncg_optax as ncg

W = jnp.ones(2)


def loss(w):
    return jnp.sum(w**2)


def update(tx, params=W, grads=None, **extra):
    """One update, traced only."""
    extra.setdefault("value_fn", loss)
    grads = params if grads is None else grads
    state = tx.init(params)
    return jax.eval_shape(lambda g, p: tx.update(g, state, p, **extra), grads, params)


@pytest.mark.parametrize(
    "transform",
    [
        ncg.newton_cg,
        ncg.hessian_free,
        ncg.stochastic_hessian_free,
        ncg.scale_by_newton_cg,
    ],
)
@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("curvature", "hessian"),
        ("curvature", None),
        ("curvature", ncg.hessian),
        ("curvature", ncg.cg()),
        ("solver", "cg"),
        ("solver", None),
        ("solver", ncg.cg),
        ("solver", ncg.hessian()),
        ("damping", "auto"),
        ("damping", None),
        ("damping", ncg.levenberg_marquardt),
        ("damping", ncg.cg()),
        ("linesearch", "armijo"),
        ("linesearch", ncg.armijo),
        ("linesearch", ncg.cg()),
        ("linesearch", optax.scale_by_backtracking_linesearch(5)),
        ("preconditioner", "jacobi"),
        ("preconditioner", ncg.identity),
        ("preconditioner", ncg.cg()),
    ],
)
def test_a_wrong_component_is_a_type_error_that_names_it(transform, name, wrong):
    with pytest.raises(TypeError, match=f"^{name} must be a .* made by .*"):
        transform(**{name: wrong})


@pytest.mark.parametrize(
    "name", ["curvature", "solver", "damping", "linesearch", "preconditioner"]
)
def test_an_uncalled_factory_is_recognised(name):
    factories = {
        "curvature": ncg.gauss_newton,
        "solver": ncg.steihaug,
        "damping": ncg.levenberg_marquardt,
        "linesearch": ncg.armijo,
        "preconditioner": ncg.identity,
    }
    got = f"got the class {factories[name].__name__} .*forget to call the factory"
    with pytest.raises(TypeError, match=f"{name} must be .*{got}"):
        ncg.newton_cg(**{name: factories[name]})


@pytest.mark.parametrize("preset", [ncg.hessian_free, ncg.stochastic_hessian_free])
def test_a_misspelt_setting_of_a_preset(preset):
    sentence = rf"^{preset.__name__}\(\) got .*'precond' .did you mean pre.*; it takes learning_rate,"
    with pytest.raises(TypeError, match=sentence):
        preset(precond=ncg.jacobi())
    with pytest.raises(TypeError, match=rf"^{preset.__name__}\(\) too many positional"):
        preset(1.0, ncg.cg())


@pytest.mark.parametrize(
    ("solver", "sentence"),
    [
        (ncg.steihaug(), "got steihaug.* needs_outcome=True: .* trust region"),
        (ncg.residual_space(), r"got residual_space\(\) of type residual_space"),
        (ncg.residual_space(ladder=None), r"got residual_space\(ladder=None\)"),
        (ncg.quasi_newton(), r"got quasi_newton\(\) of type quasi_newton"),
        (ncg.cg, "forget to call the factory"),
    ],
)
def test_quadratic_momentum_says_why_it_refuses_a_solver(solver, sentence):
    with pytest.raises((TypeError, ValueError), match=r"made by cg\(\).*" + sentence):
        ncg.quadratic_momentum(solver)


def test_a_line_search_is_refused_where_directions_may_lead_uphill():
    with pytest.raises(
        ValueError, match=r"linesearch must be one that tolerates .* averaged_gradient"
    ):
        ncg.newton_cg(solver=ncg.averaged_gradient())
    with pytest.raises(ValueError, match=r"such as safeguard\(\), or None .* armijo"):
        ncg.stochastic_hessian_free(linesearch=ncg.armijo())


def test_a_bool_is_no_damping():
    with pytest.raises(
        TypeError, match="damping must be a number .* got True of type bool"
    ):
        ncg.newton_cg(damping=True)


@pytest.mark.parametrize("seed", ["a", 1.5, None, True])
def test_a_wrong_seed(seed):
    with pytest.raises(TypeError, match="seed must be an integer .* of type"):
        ncg.newton_cg(seed=seed)


@pytest.mark.parametrize("axis_name", [3, ("data", 3), jnp.ones(2)])
def test_a_wrong_axis_name(axis_name):
    with pytest.raises(TypeError, match="axis_name must be the name of a mapped axis"):
        ncg.newton_cg(axis_name=axis_name)


@pytest.mark.parametrize("damping", [-1e-3, np.nan, np.inf, jnp.array(-1.0)])
def test_a_wrong_damping_is_a_value_error(damping):
    with pytest.raises(ValueError, match="damping must be a number in"):
        ncg.newton_cg(damping=damping)


@pytest.mark.parametrize(
    ("rate", "error"),
    [
        ("1", TypeError),
        (True, TypeError),
        (np.nan, ValueError),
        (-1.0, ValueError),
        (np.inf, ValueError),
    ],
)
def test_a_wrong_learning_rate(rate, error):
    with pytest.raises(error, match="learning_rate must be a number in"):
        ncg.newton_cg(rate)


NAN = float("nan")


@pytest.mark.parametrize(
    ("factory", "name", "wrong", "error"),
    [
        (ncg.cg, "maxiter", 0, ValueError),
        (ncg.cg, "maxiter", -5, ValueError),
        (ncg.cg, "maxiter", 2.0, TypeError),
        (ncg.cg, "maxiter", None, TypeError),
        (ncg.cg, "rtol", -0.1, ValueError),
        (ncg.cg, "rtol", NAN, ValueError),
        (ncg.cg, "rtol", "tight", TypeError),
        (ncg.cg, "atol", -0.1, ValueError),
        (ncg.cg, "atol", NAN, ValueError),
        (ncg.cg, "progress_tol", -1.0, ValueError),
        (ncg.cg, "progress_tol", NAN, ValueError),
        (ncg.cg, "warm_start", -0.1, ValueError),
        (ncg.cg, "warm_start", 1.1, ValueError),
        (ncg.cg, "warm_start", NAN, ValueError),
        (ncg.cg, "warm_start", True, TypeError),
        (ncg.cg, "forcing", "newton", ValueError),
        (ncg.cg, "negative_curvature", "raise", ValueError),
        (ncg.cg, "descent_threshold", -1.0, ValueError),
        (ncg.cg, "rtol", 5.0, ValueError),
        (ncg.minres, "rtol", 5.0, ValueError),
        (ncg.steihaug, "max_radius", 0.5, ValueError),
        (ncg.steihaug, "maxiter", 0, ValueError),
        (ncg.steihaug, "rtol", NAN, ValueError),
        (ncg.steihaug, "radius", 0.0, ValueError),
        (ncg.steihaug, "radius", NAN, ValueError),
        (ncg.steihaug, "max_radius", -1.0, ValueError),
        (ncg.steihaug, "forcing", True, ValueError),
        (ncg.minres, "maxiter", -1, ValueError),
        (ncg.minres, "rtol", -1.0, ValueError),
        (ncg.minres, "atol", NAN, ValueError),
        (ncg.quadratic_momentum, "solver", "cg", TypeError),
        (ncg.quadratic_momentum, "solver", ncg.cg, TypeError),
        (ncg.quadratic_momentum, "solver", ncg.steihaug(), ValueError),
        (ncg.quadratic_momentum, "solver", ncg.residual_space(), TypeError),
        (ncg.quadratic_momentum, "solver", ncg.quasi_newton(), TypeError),
        (ncg.quasi_newton, "solver", ncg.cg, TypeError),
        (ncg.quasi_newton, "solver", ncg.residual_space(), TypeError),
        (ncg.quasi_newton, "solver", ncg.quasi_newton(), TypeError),
        (ncg.quasi_newton, "memory_size", 0, ValueError),
        (ncg.quasi_newton, "memory_size", 2.5, TypeError),
        (ncg.averaged_gradient, "decay", 1.0, ValueError),
        (ncg.averaged_gradient, "decay", NAN, ValueError),
        (ncg.averaged_gradient, "decay", "slow", TypeError),
        (ncg.averaged_gradient, "longest", 0.0, ValueError),
        (ncg.averaged_gradient, "longest", NAN, ValueError),
        (ncg.averaged_gradient, "longest", None, TypeError),
        (ncg.armijo, "c", 1.5, ValueError),
        (ncg.armijo, "c", NAN, ValueError),
        (ncg.armijo, "shrink", 0.0, ValueError),
        (ncg.armijo, "shrink", 1.0, ValueError),
        (ncg.armijo, "maxiter", 0, ValueError),
        (ncg.levenberg_marquardt, "initial", 0.0, ValueError),
        (ncg.levenberg_marquardt, "initial", NAN, ValueError),
        (ncg.levenberg_marquardt, "decrease", 1.5, ValueError),
        (ncg.levenberg_marquardt, "increase", 0.5, ValueError),
        (ncg.levenberg_marquardt, "low", -0.1, ValueError),
        (ncg.levenberg_marquardt, "high", 1.1, ValueError),
        (ncg.levenberg_marquardt, "minimum", NAN, ValueError),
        (ncg.levenberg_marquardt, "maximum", 0.5, ValueError),
        (ncg.hessian, "mode", "forward", ValueError),
        (ncg.gauss_newton, "mode", "reverse", ValueError),
        (ncg.empirical_fisher, "mode", None, ValueError),
    ],
)
def test_a_wrong_setting_is_named_with_its_factory(factory, name, wrong, error):
    with pytest.raises(error, match=f"^{factory.__name__}: {name} must be "):
        factory(**{name: wrong})


@pytest.mark.parametrize("make", [ncg.hessian, ncg.gauss_newton, ncg.empirical_fisher])
def test_an_unknown_precision_is_refused(make):
    composite = ncg.CompositeLoss(lambda w: w, loss)
    with pytest.raises(ValueError, match="extreme"):
        update(ncg.newton_cg(curvature=make(precision="extreme")), value_fn=composite)


def test_missing_params():
    tx = ncg.newton_cg()
    with pytest.raises(ValueError, match="newton_cg needs params"):
        tx.update(W, tx.init(W), value_fn=loss)


def test_missing_value_fn():
    tx = ncg.newton_cg()
    with pytest.raises(
        ValueError, match="newton_cg needs value_fn, the loss as a function"
    ):
        tx.update(W, tx.init(W), W)


@pytest.mark.parametrize("value_fn", [3.0, "loss", W])
def test_a_value_fn_that_cannot_be_called(value_fn):
    with pytest.raises(
        TypeError, match="value_fn must be a function of the parameters"
    ):
        update(ncg.newton_cg(), value_fn=value_fn)


def test_a_value_fn_that_lacks_an_argument():
    with pytest.raises(TypeError, match="value_fn needs the .* batch, .*available: x"):
        update(ncg.newton_cg(), value_fn=lambda w, x, batch: loss(w), x=1.0)


@pytest.mark.parametrize(
    "tx",
    [
        ncg.newton_cg(curvature=ncg.gauss_newton()),
        ncg.newton_cg(curvature=ncg.empirical_fisher()),
        ncg.hessian_free(),
    ],
)
def test_a_plain_function_where_a_composite_loss_is_needed(tx):
    with pytest.raises(
        TypeError, match="needs to see .*CompositeLoss.*not a plain function"
    ):
        update(tx)


@pytest.mark.parametrize(
    ("value_fn", "sentence"),
    [
        (lambda w: w**2, r"scalar loss, got an array of shape \(2,\)"),
        (lambda w: jnp.sum(w) * 1j, "real floating-point loss, got dtype complex64"),
        (lambda w: jnp.sum(w).astype(int), "real floating-point loss, got dtype int32"),
        (lambda w: None, "got None of type NoneType"),
        (lambda w: {"loss": 0.0}, "of type dict"),
    ],
    ids=["vector", "complex", "integer", "None", "dict"],
)
@pytest.mark.parametrize("mode", ["forward_over_reverse", "reverse_over_reverse"])
def test_a_value_fn_that_returns_no_loss(value_fn, sentence, mode):
    with pytest.raises(TypeError, match="value_fn must return .*" + sentence):
        update(ncg.newton_cg(curvature=ncg.hessian(mode)), value_fn=value_fn)


def test_a_composite_loss_that_returns_no_scalar():
    composite = ncg.CompositeLoss(lambda w: w, lambda out: out**2)
    with pytest.raises(TypeError, match="scalar loss, got an array of shape"):
        update(ncg.hessian_free(), value_fn=composite)


@pytest.mark.parametrize(
    ("grads", "sentence"),
    [
        ({"a": W}, "updates must have the structure of params"),
        ({"a": W, "b": jnp.ones(3)}, r"updates\['b'\] has shape \(3,\)"),
        ({"a": W, "c": W}, "updates.*params"),
        ([W, W], "updates.*params"),
    ],
    ids=["leaf missing", "shape", "name", "container"],
)
def test_gradients_that_do_not_fit_the_parameters(grads, sentence):
    params = {"a": W, "b": W}
    with pytest.raises(ValueError, match=sentence):
        update(
            ncg.newton_cg(),
            params,
            grads,
            value_fn=lambda p: loss(p["a"]) + loss(p["b"]),
        )


def test_integer_leaves_are_named():
    with pytest.raises(TypeError, match=r"params\['n'\] .*got dtype int32.*mask="):
        ncg.newton_cg().init({"w": W, "n": jnp.arange(3)})


@pytest.mark.parametrize("params", [{}, None, {"w": None}])
def test_a_tree_without_leaves(params):
    with pytest.raises(ValueError, match="params has no leaves"):
        ncg.newton_cg().init(params)


@pytest.mark.parametrize(
    "tx",
    [
        optax.masked(ncg.newton_cg(), {"a": True, "b": False}),
        optax.partition(
            {"newton": ncg.newton_cg(), "rest": optax.sgd(0.1)},
            {"a": "newton", "b": "rest"},
        ),
    ],
    ids=["masked", "partition"],
)
def test_optax_masks_are_refused_with_advice(tx):
    with pytest.raises(TypeError, match="optax.masked or optax.partition.*mask=..."):
        tx.init({"a": W, "b": W})


@pytest.mark.parametrize(
    ("mask", "error", "sentence"),
    [
        ({"a": True}, ValueError, "mask must have the structure of the parameters"),
        ({"a": False, "b": False}, ValueError, "it is False everywhere"),
        (lambda p: False, ValueError, "it is False everywhere"),
        ({"a": 1, "b": 0}, TypeError, "mask must be a pytree of bools"),
        ("head", TypeError, "mask must be a pytree of bools"),
    ],
)
def test_wrong_masks(mask, error, sentence):
    with pytest.raises(error, match=sentence):
        ncg.newton_cg(mask=mask).init({"a": W, "b": W})


def test_an_unknown_axis_is_named():
    with pytest.raises(NameError, match="devices"):
        update(ncg.newton_cg(axis_name="devices"))


@pytest.mark.parametrize("state", [(), None, optax.adam(0.1).init(W), {"info": 3}])
def test_get_info_of_a_foreign_state(state):
    with pytest.raises(
        ValueError, match="get_info: expected one NewtonCGInfo .* found 0"
    ):
        ncg.get_info(state)


def test_get_info_of_two_states():
    state = ncg.newton_cg().init(W)
    with pytest.raises(ValueError, match="found 2. Pass the state of one"):
        ncg.get_info((state, state))


@pytest.mark.parametrize("status", ["ACCEPTED", None, ncg.newton_cg().init(W)[0].info])
def test_explain_no_code(status):
    name = type(status).__name__
    with pytest.raises(TypeError, match=f"status must be a code, .* got {name}"):
        ncg.explain(status)


def test_explain_an_unknown_code():
    with pytest.raises(ValueError, match="status must be one of the codes .* got 1000"):
        ncg.explain(1000)


@pytest.mark.parametrize(
    ("settings", "error", "sentence"),
    [
        (
            {"maxiter": -1},
            ValueError,
            "minimize: maxiter must be an integer of at least 0",
        ),
        ({"maxiter": 1.5}, TypeError, "minimize: maxiter must be an integer"),
        ({"gtol": -1.0}, ValueError, "minimize: gtol must be a number"),
        ({"gtol": NAN}, ValueError, "minimize: gtol must be a number"),
        ({"ftol": "tight"}, TypeError, "minimize: ftol must be a number"),
        (
            {"optimizer": "newton"},
            TypeError,
            "optimizer must be a GradientTransformation",
        ),
        (
            {"optimizer": ncg.newton_cg},
            TypeError,
            "optimizer.*forget to call the factory",
        ),
        ({"params": {}}, ValueError, "params has no leaves"),
        ({"params": jnp.arange(2)}, TypeError, "params.* got dtype int32"),
        ({"value_fn": None}, ValueError, "value_fn"),
        ({"value_fn": lambda w: w}, TypeError, "value_fn must return a scalar loss"),
        ({"value_fn": lambda w, x: loss(w)}, TypeError, "value_fn needs .* x"),
    ],
)
def test_minimize_checks_its_arguments(settings, error, sentence):
    settings = {"value_fn": loss, "params": W, **settings}
    with pytest.raises(error, match=sentence):
        ncg.minimize(**settings)

"""Wrong uses, and the sentence that each of them gets.

A row of a table is a wrong use, the error, and a part of its message. Wrong states are
in test_foreign_states.py, wrong parts of one's own in test_own_parts.py.
"""

import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import ncg_optax as ncg

NAN, INF = float("nan"), float("inf")
W = jnp.ones(2)
PARAMS = {"a": W, "b": W}
X, Y = jnp.ones((4, 2)), jnp.ones(4)
KEY = jax.random.key(0)


def loss(w):
    return jnp.sum(w**2)


def loss_of_two(params):
    return loss(params["a"]) + loss(params["b"])


def on_data(w, x, y):
    return jnp.mean((x @ w - y) ** 2)


def with_penalty(w, x, penalty=0.0):
    return jnp.mean((x @ w) ** 2) + penalty * loss(w)


COMPOSITE = ncg.CompositeLoss(
    lambda w, x: x @ w, lambda outputs, y: jnp.mean((outputs - y) ** 2)
)


def composite(model_fn, loss_fn=loss, **settings):
    return ncg.CompositeLoss(model_fn, loss_fn, **settings)


def later(function, *args, **kwargs):
    return functools.partial(function, *args, **kwargs)


def update(tx, params=W, grads=None, **extra):
    """One update, traced only."""

    def call():
        extra.setdefault("value_fn", loss)
        gradients = params if grads is None else grads
        return jax.eval_shape(
            lambda p: tx().update(gradients, tx().init(p), p, **extra), params
        )

    return call


def newton(**settings):
    return later(ncg.newton_cg, **settings)


def train(value_fn, batch, extra=None, **settings):
    """One step of make_train_step."""

    def call():
        tx = ncg.newton_cg()
        step = ncg.make_train_step(value_fn, tx, **settings)
        step.lower(W, tx.init(W), batch, **(extra or {}))

    return call


def init(params, **settings):
    return lambda: ncg.newton_cg(**settings).init(params)


# Settings of parts: factory, name, value, error. The message begins with
# "factory: name must be".
SETTINGS = [
    (ncg.cg, "maxiter", 0, ValueError),
    (ncg.cg, "maxiter", -5, ValueError),
    (ncg.cg, "maxiter", 2.0, TypeError),
    (ncg.cg, "maxiter", None, TypeError),
    (ncg.cg, "maxiter", lambda: 3, TypeError),
    (ncg.cg, "rtol", -0.1, ValueError),
    (ncg.cg, "rtol", NAN, ValueError),
    (ncg.cg, "rtol", "tight", TypeError),
    (ncg.cg, "rtol", 5.0, ValueError),
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
    (ncg.minres, "maxiter", -1, ValueError),
    (ncg.minres, "rtol", -1.0, ValueError),
    (ncg.minres, "rtol", 5.0, ValueError),
    (ncg.minres, "atol", NAN, ValueError),
    (ncg.steihaug, "maxiter", 0, ValueError),
    (ncg.steihaug, "rtol", NAN, ValueError),
    (ncg.steihaug, "radius", 0.0, ValueError),
    (ncg.steihaug, "radius", NAN, ValueError),
    (ncg.steihaug, "max_radius", -1.0, ValueError),
    (ncg.steihaug, "max_radius", 0.5, ValueError),
    (ncg.steihaug, "forcing", True, ValueError),
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
    (ncg.safeguard, "rise", -1.0, ValueError),
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
    (ncg.hessian, "precision", "extreme", ValueError),
    (ncg.gauss_newton, "precision", "extreme", ValueError),
    (ncg.empirical_fisher, "precision", 3, ValueError),
    (ncg.kronecker, "with_sqrt", 3, TypeError),
    (ncg.kronecker, "refresh", lambda: 3, TypeError),
    (ncg.kronecker, "refresh", 1.5, TypeError),
    (ncg.nystrom, "rank", 0, ValueError),
    (ncg.jacobi, "probes", 0, ValueError),
    (ncg.sampling, "curvature_fraction", 0.0, ValueError),
    (ncg.sampling, "microbatch_size", 2.5, TypeError),
]

# Settings of all transforms: name, value, error. The message begins with
# "name must be".
COMPONENTS = [
    ("curvature", "hessian", TypeError),
    ("curvature", None, TypeError),
    ("curvature", ncg.hessian, TypeError),
    ("curvature", ncg.cg(), TypeError),
    ("solver", "cg", TypeError),
    ("solver", None, TypeError),
    ("solver", ncg.cg, TypeError),
    ("solver", ncg.hessian(), TypeError),
    ("damping", "auto", TypeError),
    ("damping", None, TypeError),
    ("damping", ncg.levenberg_marquardt, TypeError),
    ("damping", ncg.cg(), TypeError),
    ("damping", True, TypeError),
    ("damping", jnp.ones(2), TypeError),
    ("damping", lambda: 1.0, TypeError),
    ("damping", -1e-3, ValueError),
    ("damping", NAN, ValueError),
    ("damping", INF, ValueError),
    ("damping", jnp.array(-1.0), ValueError),
    ("linesearch", "armijo", TypeError),
    ("linesearch", ncg.armijo, TypeError),
    ("linesearch", ncg.cg(), TypeError),
    ("linesearch", optax.scale_by_backtracking_linesearch(5), TypeError),
    ("preconditioner", "jacobi", TypeError),
    ("preconditioner", ncg.identity, TypeError),
    ("preconditioner", ncg.cg(), TypeError),
    ("sampling", 0.25, TypeError),
    ("seed", "a", TypeError),
    ("seed", 1.5, TypeError),
    ("seed", None, TypeError),
    ("seed", True, TypeError),
    ("axis_name", 3, TypeError),
    ("axis_name", ("data", 3), TypeError),
    ("axis_name", W, TypeError),
]

TRANSFORMS = [
    ncg.newton_cg,
    ncg.hessian_free,
    ncg.stochastic_hessian_free,
    ncg.scale_by_newton_cg,
]

OF_TRANSFORMS = {
    "rate is a string": (newton(learning_rate="1"), TypeError, "learning_rate must be"),
    "rate is a bool": (newton(learning_rate=True), TypeError, "learning_rate must be"),
    "rate is a vector": (newton(learning_rate=W), TypeError, "learning_rate must be"),
    "rate is NaN": (newton(learning_rate=NAN), ValueError, "learning_rate must be"),
    "rate is negative": (newton(learning_rate=-1), ValueError, "learning_rate must be"),
    "rate is infinite": (newton(learning_rate=INF), ValueError, "learning_rate must"),
    "rate without a count": (
        newton(learning_rate=lambda: 1.0),
        TypeError,
        r"learning_rate must be an optax schedule, .* done; got <lambda>\(\)",
    ),
    "damping without a count": (
        newton(damping=lambda: 1.0),
        TypeError,
        "damping must be an optax schedule, a function of the number of steps done",
    ),
    "damping of strings": (
        update(newton(damping=lambda count: "x")),
        TypeError,
        "damping: the value of the schedule must be a number .* got 'x' of type str",
    ),
    "damping of vectors": (
        update(newton(damping=lambda count: W)),
        TypeError,
        "damping: the value of the schedule must be a number in",
    ),
    "damping below zero": (
        update(newton(damping=lambda count: -1.0)),
        ValueError,
        "damping: the value of the schedule must be a number .* got -1",
    ),
    "a factory": (
        newton(solver=ncg.steihaug),
        TypeError,
        "solver must be .* got the class steihaug .*forget to call the factory",
    ),
    "a setting of a preset": (
        later(ncg.hessian_free, precond=ncg.jacobi()),
        TypeError,
        r"^hessian_free\(\) got .*'precond' \(did you mean preconditioner\?\); it "
        "takes learning_rate,",
    ),
    "too many settings of a preset": (
        later(ncg.stochastic_hessian_free, 1.0, ncg.cg()),
        TypeError,
        r"^stochastic_hessian_free\(\) too many positional",
    ),
    "a setting of a part": (
        later(ncg.cg, maxiters=5),
        TypeError,
        r"^cg has no setting maxiters \(did you mean maxiter\?\); it has maxiter, rtol",
    ),
    "a setting of another part": (
        later(ncg.armijo, probes=5),
        TypeError,
        "^armijo has no setting probes; it has c, shrink, maxiter",
    ),
    "compose: a factory": (
        later(ncg.compose, ncg.jacobi, ncg.jacobi()),
        TypeError,
        "compose: inner must be .* forget to call the factory",
    ),
    "compose: no square root": (
        later(ncg.compose, ncg.kronecker(), ncg.jacobi()),
        TypeError,
        "compose: inner must have a square root",
    ),
    "momentum around a trust region": (
        later(ncg.quadratic_momentum, ncg.steihaug()),
        ValueError,
        r"made by cg\(\).* got steihaug.* needs_outcome=True: .* trust region",
    ),
    "momentum around secant pairs": (
        later(ncg.quadratic_momentum, ncg.quasi_newton()),
        TypeError,
        r"made by cg\(\).* got quasi_newton\(\) of type quasi_newton",
    ),
    "an average with Armijo's search": (
        newton(solver=ncg.averaged_gradient()),
        ValueError,
        "linesearch must be one that tolerates .* averaged_gradient",
    ),
    "Armijo's search with an average": (
        later(ncg.stochastic_hessian_free, linesearch=ncg.armijo()),
        ValueError,
        r"such as safeguard\(\), or None .* armijo",
    ),
    "a schedule and a test of progress": (
        later(ncg.cg, maxiter=optax.constant_schedule(3), progress_tol=1e-3),
        ValueError,
        "cg: progress_tol must be None if maxiter is a schedule",
    ),
    "switch_after: no integer": (
        later(ncg.switch_after, "a", optax.sgd(0.1), ncg.newton_cg()),
        TypeError,
        "switch_after: steps must be an integer of at least 0",
    ),
    "switch_after: a factory": (
        later(ncg.switch_after, 3, optax.sgd, ncg.newton_cg()),
        TypeError,
        "switch_after: first must be .*forget to call the factory",
    ),
}

OF_INIT = {
    "integers": (
        init({"w": W, "n": jnp.arange(3)}),
        TypeError,
        r"params\['n'\] .*got dtype int32.*mask=",
    ),
    "a random key": (init({"w": W, "k": KEY}), TypeError, r"params\['k'\] .*mask="),
    "a string": (
        init({"w": W, "k": "a"}),
        TypeError,
        r"params\['k'\] must be an array",
    ),
    "no leaves": (init({}), ValueError, "params has no leaves"),
    "None": (init(None), ValueError, "params has no leaves"),
    "None within": (init({"w": None}), ValueError, "params has no leaves"),
    "optax.masked": (
        lambda: optax.masked(ncg.newton_cg(), {"a": True, "b": False}).init(PARAMS),
        TypeError,
        "optax.masked or optax.partition.*mask=...",
    ),
    "optax.partition": (
        lambda: optax.partition(
            {"newton": ncg.newton_cg(), "rest": optax.sgd(0.1)},
            {"a": "newton", "b": "rest"},
        ).init(PARAMS),
        TypeError,
        "optax.masked or optax.partition.*mask=...",
    ),
    "mask: a leaf is missing": (
        init(PARAMS, mask={"a": True}),
        ValueError,
        r"mask must have the structure .* leaves \['a'\] and .* have \['a'\], \['b'\]",
    ),
    "mask: another container": (
        init(W, mask=[True]),
        ValueError,
        r"mask must have the structure .* leaves \[0\] and .* have \(the tree itself\)",
    ),
    "mask: False": (
        init(PARAMS, mask={"a": False, "b": False}),
        ValueError,
        "it is False everywhere",
    ),
    "mask: a function to False": (
        init(PARAMS, mask=lambda p: False),
        ValueError,
        "it is False everywhere",
    ),
    "mask: integers": (
        init(PARAMS, mask={"a": 1, "b": 0}),
        TypeError,
        "mask must be a pytree of bools",
    ),
    "mask: a string": (
        init(PARAMS, mask="head"),
        TypeError,
        "mask must be a pytree of bools",
    ),
}


def without_params():
    tx = ncg.newton_cg()
    tx.update(W, tx.init(W), value_fn=loss)


def without_value_fn():
    tx = ncg.newton_cg()
    tx.update(W, tx.init(W), W)


def with_state_of(other, tx):
    """One update of ``tx`` with the state of another optimizer, traced only."""
    value_fn = COMPOSITE.bind(x=X, y=Y)
    return lambda: jax.eval_shape(
        lambda w: tx.update(w, other.init(W), w, value_fn=value_fn), W
    )


FREE, PLAIN = ncg.hessian_free, ncg.newton_cg
REVERSE = newton(curvature=ncg.hessian("reverse_over_reverse"))
DATA = {"value_fn": COMPOSITE, "x": X, "y": Y}

OF_UPDATE = {
    "no params": (without_params, ValueError, "newton_cg needs params"),
    "no value_fn": (
        without_value_fn,
        ValueError,
        "newton_cg needs value_fn, the loss as a function",
    ),
    "value_fn is a number": (
        update(PLAIN, value_fn=3.0),
        TypeError,
        "value_fn must be a function of the parameters, got 3.0 of type float",
    ),
    "value_fn is an array": (
        update(PLAIN, value_fn=W),
        TypeError,
        "value_fn must be a function of the parameters",
    ),
    "value_fn without parameters": (
        update(PLAIN, value_fn=lambda: 1.0),
        TypeError,
        "must take the parameters as its first positional argument",
    ),
    "a missing argument": (
        update(PLAIN, value_fn=lambda w, x, batch: loss(w), x=1.0),
        TypeError,
        "value_fn needs the .* batch, .*available: x",
    ),
    "a misspelt argument": (
        update(FREE, value_fn=COMPOSITE, x=X, yy=Y),
        TypeError,
        "loss_fn needs the argument.* y, .* available: x, yy",
    ),
    "a misspelt required argument": (
        update(PLAIN, value_fn=lambda w, labels: loss(w), lables=Y),
        TypeError,
        r"value_fn needs .* labels, .* lables \(did you mean lables\?\)",
    ),
    "a misspelt optional argument": (
        update(PLAIN, value_fn=with_penalty, x=X, penalti=1.0),
        UserWarning,
        r"update: no function takes the argument penalti \(did you mean penalty\?\)",
    ),
    "a name that optax reserves": (
        update(PLAIN, value_fn=lambda w, grad: loss(w)),
        TypeError,
        "grad: reserved by optax, rename the parameter",
    ),
    "a plain function for gauss_newton": (
        update(newton(curvature=ncg.gauss_newton())),
        TypeError,
        "needs to see .*CompositeLoss.*not a plain function",
    ),
    "a plain function for empirical_fisher": (
        update(newton(curvature=ncg.empirical_fisher())),
        TypeError,
        "needs to see .*CompositeLoss.*not a plain function",
    ),
    "a plain function for hessian_free": (
        update(FREE),
        TypeError,
        "needs to see .*CompositeLoss.*not a plain function",
    ),
    "a plain function for residual_space": (
        update(newton(solver=ncg.residual_space())),
        TypeError,
        "residual_space needs to see .*CompositeLoss.*not a plain function",
    ),
    "outputs that are integers": (
        update(FREE, value_fn=composite(lambda w: (w > 0).astype(int))),
        TypeError,
        "model_fn must return floating-point arrays, but outputs has dtype int32",
    ),
    "outputs that are bools": (
        update(FREE, value_fn=composite(lambda w: {"a": w > 0}, lambda out: 1.0)),
        TypeError,
        r"must return floating-point arrays, but outputs\['a'\] has dtype bool",
    ),
    "aux without its flag": (
        update(FREE, value_fn=composite(lambda w: (w, {"n": 1}), lambda out: 1.0)),
        TypeError,
        r"outputs\[1\]\['n'\] has dtype int.* returns \(outputs, aux\), pass has_aux",
    ),
    "the flag without aux": (
        update(FREE, value_fn=composite(lambda w: w, has_aux=True)),
        TypeError,
        r"model_fn must return \(outputs, aux\), because has_aux=True; got array of sh",
    ),
    "the flag with too many outputs": (
        update(FREE, value_fn=composite(lambda w: (w, w, w), has_aux=True)),
        TypeError,
        r"\(outputs, aux\), because has_aux=True; got a tuple of array of shape \(2,\)",
    ),
    "a composite loss that is a vector": (
        update(FREE, value_fn=composite(lambda w: w, lambda out: out**2)),
        TypeError,
        "scalar loss, got an array of shape",
    ),
    "a gradient is missing": (
        update(PLAIN, PARAMS, {"a": W}, value_fn=loss_of_two),
        ValueError,
        "updates must have the structure of params",
    ),
    "a gradient has another shape": (
        update(PLAIN, PARAMS, {"a": W, "b": Y}, value_fn=loss_of_two),
        ValueError,
        r"updates\['b'\] has shape \(4,\)",
    ),
    "a gradient has another name": (
        update(PLAIN, PARAMS, {"a": W, "c": W}, value_fn=loss_of_two),
        ValueError,
        "updates.*params",
    ),
    "gradients in another container": (
        update(PLAIN, PARAMS, [W, W], value_fn=loss_of_two),
        ValueError,
        "updates.*params",
    ),
    "integer gradients": (
        update(PLAIN, W, jnp.ones(2, int)),
        TypeError,
        "updates .* must be floating-point or complex, got dtype int",
    ),
    "value is a string": (
        update(PLAIN, value="a"),
        TypeError,
        r"value must be the loss at params, a number of shape \(\); got str",
    ),
    "value is a vector": (
        update(PLAIN, value=W),
        TypeError,
        r"value must be the loss at params, .* got array of shape \(2,\)",
    ),
    "value with aux": (
        update(PLAIN, value=(1.0, W)),
        TypeError,
        "value must be the loss at params, .* got a tuple of float, array of shape",
    ),
    "an unknown axis": (update(newton(axis_name="devices")), NameError, "devices"),
    "a curvature batch that is an array": (
        update(FREE, curvature_batch=X, **DATA),
        TypeError,
        "curvature_batch must be a dict of data arguments of the loss",
    ),
    "a curvature batch of another name": (
        update(FREE, curvature_batch={"z": X}, **DATA),
        ValueError,
        "curvature_batch: the loss has no data argument 'z'; it has x, y",
    ),
    "a curvature batch of two lengths": (
        update(FREE, curvature_batch={"x": X[:2], "y": Y[:1]}, **DATA),
        ValueError,
        "curvature_batch must have the same number of rows",
    ),
    "microbatches of another size": (
        update(newton(sampling=ncg.sampling(microbatch_size=3)), **DATA),
        ValueError,
        "microbatch_size must divide the number of examples, got 3 for 4",
    ),
    "microbatches of a closure": (
        update(newton(sampling=ncg.sampling(microbatch_size=2))),
        ValueError,
        "microbatch_size needs to see the data",
    ),
    "the state of Adam": (
        with_state_of(optax.adam(0.1), ncg.newton_cg()),
        TypeError,
        "newton_cg: state must be the ScaleByNewtonCGState .* got ScaleByAdamState",
    ),
    "the state of another preset": (
        with_state_of(ncg.newton_cg(), ncg.hessian_free()),
        ValueError,
        "state.solver does not fit .* got CGState .* expected QuasiNewtonState .* Was "
        "it made by another preset",
    ),
    "the state of a preset with fewer parts": (
        with_state_of(ncg.hessian_free(), ncg.newton_cg()),
        ValueError,
        "state.solver does not fit .* got QuasiNewtonState .* expected CGState",
    ),
    "labels of one axis more": (
        update(FREE, value_fn=COMPOSITE, x=X, y=Y[:, None]),
        UserWarning,
        r"outputs of shape \(4,\) and y of shape \(4, 1\) to shape \(4, 4\)",
    ),
    "labels of one axis less": (
        update(
            FREE,
            value_fn=composite(lambda w, x: (x @ w)[:, None], COMPOSITE.loss_fn),
            x=X,
            y=Y,
        ),
        UserWarning,
        r"outputs of shape \(4, 1\) and y of shape \(4,\) .* all pairs.*filterwarnings",
    ),
} | {
    f"{mode}: a loss that is {name}": (
        update(tx, value_fn=value_fn),
        TypeError,
        "value_fn must return .*" + sentence,
    )
    for mode, tx in (("forward", PLAIN), ("reverse", REVERSE))
    for name, value_fn, sentence in (
        ("a vector", lambda w: w**2, r"scalar loss, got an array of shape \(2,\)"),
        ("complex", lambda w: jnp.sum(w) * 1j, "real floating.* got dtype complex64"),
        ("an integer", lambda w: jnp.sum(w).astype(int), "real .* got dtype int32"),
        ("None", lambda w: None, "got None of type NoneType"),
        ("a dict", lambda w: {"loss": 0.0}, "of type dict"),
    )
}

OF_LOSSES = {
    "model_fn is a number": (
        later(ncg.CompositeLoss, 3, loss),
        TypeError,
        "CompositeLoss: model_fn must be a function of the parameters, got 3",
    ),
    "loss_fn is a number": (
        later(ncg.CompositeLoss, loss, 3),
        TypeError,
        "CompositeLoss: loss_fn must be a function of the outputs, got 3",
    ),
    "has_aux is a number": (
        later(composite, loss, has_aux=1),
        TypeError,
        "CompositeLoss: has_aux must be True or False, got 1 of type int",
    ),
    "bind: a misspelt name": (
        later(composite(loss, lambda out, labels: 1.0).bind, lables=Y),
        UserWarning,
        r"bind: no function takes the argument lables \(did you mean labels\?\); .* "
        "silence this: warnings.filterwarnings",
    ),
    "value_and_grad of a number": (
        later(ncg.value_and_grad, 3),
        TypeError,
        "value_and_grad: value_fn must be a function",
    ),
    "value_and_grad over a number": (
        later(ncg.value_and_grad, loss, axis_name=3),
        TypeError,
        "axis_name must be the name of a mapped axis",
    ),
}

OF_TRAIN_STEP = {
    "value_fn and tx in the wrong order": (
        later(ncg.make_train_step, ncg.newton_cg(), loss),
        TypeError,
        "make_train_step: value_fn must be a function of the parameters",
    ),
    "tx is a factory": (
        later(ncg.make_train_step, loss, ncg.newton_cg),
        TypeError,
        "make_train_step: tx must be .*forget to call the factory",
    ),
    "no dtype": (
        later(ncg.make_train_step, loss, ncg.newton_cg(), product_dtype="foo"),
        TypeError,
        "make_train_step: product_dtype must be a floating-point dtype .* got 'foo'",
    ),
    "an integer dtype": (
        later(ncg.make_train_step, loss, ncg.newton_cg(), product_dtype=int),
        TypeError,
        "make_train_step: product_dtype must be a floating-point dtype",
    ),
    "has_aux is a number": (
        later(ncg.make_train_step, loss, ncg.newton_cg(), has_aux=3),
        TypeError,
        "make_train_step: has_aux must be True or False, got 3",
    ),
    "donate is a string": (
        later(ncg.make_train_step, loss, ncg.newton_cg(), donate="state"),
        TypeError,
        "make_train_step: donate must be True or False, got 'state'",
    ),
    "axis_name is a number": (
        later(ncg.make_train_step, loss, ncg.newton_cg(), axis_name=3),
        TypeError,
        "axis_name must be the name of a mapped axis",
    ),
    "mesh is a string": (
        later(ncg.make_train_step, loss, ncg.newton_cg(), "cpu"),
        TypeError,
        "make_train_step: mesh must be a jax.sharding.Mesh",
    ),
    "has_aux of a loss without aux": (
        train(with_penalty, {"x": X}, has_aux=True),
        TypeError,
        r"must return \(loss, aux\), because has_aux=True; got the loss alone",
    ),
    "aux without has_aux": (
        train(lambda w, x: (jnp.mean(x @ w), W), {"x": X}),
        TypeError,
        r"returned a tuple \(loss, aux\).* pass has_aux=True",
    ),
    "a list as batch": (
        train(on_data, [X, Y]),
        TypeError,
        r"batch must be dict\(x=..., y=...\), because value_fn takes several .*; got l",
    ),
    "a tuple as batch of a composite loss": (
        train(COMPOSITE, (X, Y)),
        TypeError,
        r"batch must be dict\(x=..., y=...\), because .*; got a tuple of array of sha",
    ),
    "no batch": (
        train(lambda w, x: jnp.mean(x @ w), None),
        TypeError,
        r"batch has no arrays, but value_fn takes data: pass dict\(x=...\)",
    ),
    "a string as batch": (train(on_data, "abc"), ValueError, "has no axis over the ex"),
    "a number as batch": (
        train(with_penalty, {"x": 1.0}),
        ValueError,
        r"batch\['x'\] has no axis over the examples",
    ),
    "a column that nothing takes": (
        train(on_data, {"x": X, "y": Y, "id": Y}),
        UserWarning,
        "make_train_step: no function takes the argument id; the loss takes x, y",
    ),
    "a keyword that nothing takes": (
        train(on_data, {"x": X, "y": Y}, extra={"key": 1.0}),
        UserWarning,
        "make_train_step: no function takes the argument key; the loss takes x, y",
    ),
}

OF_MINIMIZE = {
    "value_fn is None": (
        later(ncg.minimize, None, W),
        TypeError,
        "minimize: value_fn must be a function of the parameters, got None",
    ),
    "arguments in the wrong order": (
        later(ncg.minimize, W, loss),
        TypeError,
        "minimize: value_fn must be a function of the parameters",
    ),
    "a loss that is a vector": (
        later(ncg.minimize, lambda w: w, W),
        TypeError,
        "value_fn must return a scalar loss",
    ),
    "a missing argument": (
        later(ncg.minimize, lambda w, x: loss(w), W),
        TypeError,
        "value_fn needs .* x",
    ),
    "a misspelt setting": (
        later(ncg.minimize, loss, W, maxiters=3),
        TypeError,
        r"takes maxiters \(did you mean maxiter\?\); minimize takes optimizer, .*"
        "maxiter, gtol, .*, and value_fn takes none",
    ),
    "an argument with the name of a setting": (
        later(ncg.minimize, lambda w, every: jnp.sum(w) * every, W, every=2),
        TypeError,
        "value_fn takes every, which is a setting of minimize: give this argument",
    ),
    "a misspelt argument": (
        later(ncg.minimize, with_penalty, W, x=X, penalti=1.0),
        TypeError,
        r"takes penalti \(did you mean penalty\?\).* value_fn takes x, penalty",
    ),
    "maxiter is negative": (
        later(ncg.minimize, loss, W, maxiter=-1),
        ValueError,
        "minimize: maxiter must be an integer of at least 0",
    ),
    "maxiter is a float": (
        later(ncg.minimize, loss, W, maxiter=1.5),
        TypeError,
        "minimize: maxiter must be an integer",
    ),
    "gtol is negative": (
        later(ncg.minimize, loss, W, gtol=-1.0),
        ValueError,
        "minimize: gtol must be a number",
    ),
    "gtol is NaN": (
        later(ncg.minimize, loss, W, gtol=NAN),
        ValueError,
        "minimize: gtol must be a number",
    ),
    "ftol is a string": (
        later(ncg.minimize, loss, W, ftol="tight"),
        TypeError,
        "minimize: ftol must be a number",
    ),
    "check_curvature is a string": (
        later(ncg.minimize, loss, W, check_curvature="no"),
        TypeError,
        "minimize: check_curvature must be True or False, got 'no'",
    ),
    "optimizer is a string": (
        later(ncg.minimize, loss, W, "newton"),
        TypeError,
        "optimizer must be a GradientTransformation",
    ),
    "optimizer is a factory": (
        later(ncg.minimize, loss, W, ncg.newton_cg),
        TypeError,
        "optimizer.*forget to call the factory",
    ),
    "no parameters": (
        later(ncg.minimize, loss, {}),
        ValueError,
        "params has no leaves",
    ),
    "integer parameters": (
        later(ncg.minimize, loss, jnp.arange(2)),
        TypeError,
        "params.* got dtype int32",
    ),
    "a string among the parameters": (
        later(ncg.minimize, loss, {"a": W, "b": "abc"}),
        TypeError,
        r"params\['b'\] must be an array, got 'abc' of type str",
    ),
}

OF_REPORTS = {
    f"get_info of {name}": (
        later(ncg.get_info, state),
        ValueError,
        "get_info: expected the measurements of one optimizer .* found 0",
    )
    for name, state in (
        ("nothing", ()),
        ("None", None),
        ("Adam", optax.adam(0.1).init(W)),
        ("a number", {"info": 3}),
    )
} | {
    "get_info of two states": (
        lambda: ncg.get_info((ncg.newton_cg().init(W),) * 2),
        ValueError,
        "found 2. Pass the state of one",
    ),
    "explain a string": (
        later(ncg.explain, "ACCEPTED"),
        TypeError,
        "status must be a code, .* got str",
    ),
    "explain None": (
        later(ncg.explain, None),
        TypeError,
        "status must be a code, .* got NoneType",
    ),
    "explain an info": (
        lambda: ncg.explain(ncg.newton_cg().init(W)[0].info),
        TypeError,
        "status must be a code, .* got NewtonCGInfo",
    ),
    "explain an unknown code": (
        later(ncg.explain, 1000),
        ValueError,
        "status must be one of the codes .* got 1000",
    ),
    "diagnose a number": (
        later(ncg.diagnose, 3),
        ValueError,
        "diagnose: expected an optimizer state with one NewtonCGInfo",
    ),
    "check a number": (
        later(ncg.check_operator, 3, W),
        TypeError,
        "check_operator: matvec must be a function v -> B v",
    ),
}


def rows():
    """All wrong uses, by name."""
    for factory, name, value, error in SETTINGS:
        sentence = f"^{factory.__name__}: {name} must be "
        call = later(factory, **{name: value})
        shown = "function" if callable(value) else value  # not with its address
        yield f"{factory.__name__}({name}={shown})", call, error, sentence
    for transform in TRANSFORMS:
        for name, value, error in COMPONENTS:
            call = later(transform, **{name: value})
            yield f"{transform.__name__}({name})", call, error, f"^{name} must be "
    for place, table in {
        "transforms": OF_TRANSFORMS,
        "init": OF_INIT,
        "update": OF_UPDATE,
        "losses": OF_LOSSES,
        "make_train_step": OF_TRAIN_STEP,
        "minimize": OF_MINIMIZE,
        "reports": OF_REPORTS,
    }.items():
        for name, use in table.items():
            yield f"{place}: {name}", *use


@pytest.mark.parametrize(
    ("use", "error", "sentence"), [pytest.param(*use, id=name) for name, *use in rows()]
)
def test_a_wrong_use_gets_its_sentence(use, error, sentence):
    if issubclass(error, Warning):
        with pytest.warns(error, match=sentence):
            use()
    else:
        with pytest.raises(error, match=sentence):
            use()


def test_the_warnings_are_silenced_as_they_say():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "ncg_optax: .* no function takes")
        warnings.filterwarnings("ignore", "ncg_optax: loss_fn broadcasts")
        OF_UPDATE["a misspelt optional argument"][0]()
        OF_UPDATE["labels of one axis more"][0]()


@pytest.mark.parametrize("mode", ["bilinear", "softmax"])
def test_what_is_right_is_not_warned_of(mode):
    # All warnings are errors here. A kernel matrix is meant, and so are names that
    # another optimizer of a chain takes.
    if mode == "bilinear":
        kernel = lambda out, y: out @ (y @ y.T) @ out / 16  # noqa: E731
        value_fn = composite(lambda w, x: (x @ w)[:, None][:, 0], kernel)
        update(FREE, value_fn=value_fn, x=X, y=jnp.ones((4, 3)))()
    update(PLAIN, value_fn=on_data, x=X, y=Y, temperature=1.0)()


def test_minimize_takes_strings_and_bools_as_data():
    def value_fn(w, mode, square, x):
        assert mode == "sum" and square is True
        return jnp.sum((w - x) ** 2)

    w, _, result = ncg.minimize(value_fn, W, mode="sum", square=True, x=3.0)
    assert result.converged
    np.testing.assert_allclose(w, 3, rtol=1e-5)

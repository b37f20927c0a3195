import inspect
from functools import partial

import jax
import jax.numpy as jnp
import optax
import pytest

import ncg_optax as ncg
from ncg_optax.losses.arguments import select_arguments
from ncg_optax.losses.objective import as_objective
from ncg_optax.losses.scalar import drop_aux, scalar_loss

EXTRA = {"x": 1, "y": 2, "value": 3, "grad": 4, "value_fn": 5}


class Callable:
    def __call__(self, params, x):
        return params


@pytest.mark.parametrize(
    ("fn", "expected"),
    [
        (lambda p: 0, {}),
        (lambda p, x: 0, {"x": 1}),
        (lambda p, y, x: 0, {"x": 1, "y": 2}),
        (lambda p, *, y: 0, {"y": 2}),
        (lambda p, x, unknown=None: 0, {"x": 1}),
        (lambda p, /, x: 0, {"x": 1}),
        (lambda p, **kwargs: 0, {"x": 1, "y": 2}),
        (lambda *args, x: 0, {"x": 1}),
        (partial(lambda p, x, y: 0, y=7), {"x": 1, "y": 2}),
        (jax.jit(lambda p, x: 0), {"x": 1}),
        (Callable(), {"x": 1}),
    ],
    ids=[
        "params only",
        "named",
        "any order",
        "keyword-only",
        "default",
        "positional-only",
        "kwargs",
        "args",
        "partial",
        "jit",
        "object",
    ],
)
def test_extra_arguments_go_where_they_are_named(fn, expected):
    assert select_arguments("value_fn", fn, EXTRA) == expected


def test_a_given_argument_overrides_a_default():
    objective = as_objective(lambda p, x=10.0: p * x, {"x": 2.0})
    assert objective.value(jnp.float32(3.0)) == 6.0


@pytest.mark.parametrize("name", ["value", "grad", "value_fn", "state", "updates"])
def test_reserved_names_are_refused_with_advice(name):
    namespace = {}
    exec(f"def loss(p, {name}): return 0.0", namespace)
    with pytest.raises(TypeError, match=f"{name}.*reserved by optax, rename"):
        select_arguments("value_fn", namespace["loss"], EXTRA)


def test_a_missing_argument_is_named_with_the_available_ones():
    with pytest.raises(TypeError, match="value_fn needs .* batch, .* available: x, y"):
        select_arguments("value_fn", lambda p, x, batch: 0, EXTRA)


def test_a_function_without_a_positional_argument_is_refused():
    with pytest.raises(TypeError, match="parameters as its first positional argument"):
        select_arguments("value_fn", lambda *, params: 0, {})


def test_aux_is_dropped():
    assert drop_aux((1.0, "aux")) == 1.0
    assert drop_aux(1.0) == 1.0


def test_python_numbers_are_scalar_losses():
    assert scalar_loss((2.5, None)) == 2.5


@pytest.mark.parametrize(
    ("out", "sentence"),
    [
        (jnp.ones(3), r"array of shape \(3,\): take the mean"),
        (jnp.ones((1, 1)), r"array of shape \(1, 1\)"),
        (jnp.array(1j), "real floating-point loss, got dtype complex64"),
        (jnp.array(1), "real floating-point loss, got dtype int32"),
        (1, "real floating-point loss, got dtype int32"),
        (None, "scalar loss .* got None of type NoneType"),
        ("low", "got 'low' of type str"),
        ([1.0], "of type list"),
    ],
)
def test_an_output_that_is_no_loss_is_a_type_error(out, sentence):
    with pytest.raises(TypeError, match="value_fn must return .*" + sentence):
        scalar_loss(out)


def linear(params, x, w=1.0):
    return w * x * params


def squared(outputs, y, w=1.0):
    return w * jnp.mean((outputs - y) ** 2)


DATA = {"x": jnp.array([1.0, 2.0]), "y": jnp.array([2.0, 2.0])}


def test_a_composite_loss_is_the_composition():
    loss = ncg.CompositeLoss(linear, squared)
    params = jnp.float32(3.0)
    assert loss(params, **DATA) == (1.0 + 16.0) / 2
    assert jnp.array_equal(loss.model(params, **DATA), jnp.array([3.0, 6.0]))
    assert loss.loss(jnp.array([3.0, 6.0]), **DATA) == (1.0 + 16.0) / 2


def test_a_name_that_both_have_goes_to_both():
    loss = ncg.CompositeLoss(linear, squared)
    assert loss(jnp.float32(3.0), **DATA, w=2.0) == 2 * (16.0 + 100.0) / 2


def test_binding_is_partial_and_later_bindings_win():
    loss = ncg.CompositeLoss(linear, squared)
    bound = loss.bind(x=DATA["x"]).bind(y=0.0).bind(y=DATA["y"])
    assert bound(jnp.float32(3.0)) == loss(jnp.float32(3.0), **DATA)
    assert bound(jnp.float32(3.0), y=jnp.zeros(2)) == (9.0 + 36.0) / 2
    assert loss.data == {}


def test_unknown_data_is_ignored():
    loss = ncg.CompositeLoss(linear, squared)
    assert loss(jnp.float32(3.0), **DATA, epoch=7) == loss(jnp.float32(3.0), **DATA)


def test_missing_data_is_named_with_the_function_that_needs_it():
    loss = ncg.CompositeLoss(linear, squared)
    with pytest.raises(TypeError, match="model_fn needs .* x"):
        loss(jnp.float32(3.0), y=0.0)
    with pytest.raises(TypeError, match="loss_fn needs .* y"):
        loss(jnp.float32(3.0), x=0.0)


@pytest.mark.parametrize("name", ["model_fn", "loss_fn"])
def test_both_parts_must_be_functions(name):
    parts = {"model_fn": linear, "loss_fn": squared, name: "mse"}
    with pytest.raises(TypeError, match=f"CompositeLoss: {name} must be a function"):
        ncg.CompositeLoss(**parts)


def test_the_signature_shows_the_data_by_keyword():
    signature = inspect.signature(ncg.CompositeLoss(linear, squared).bind(x=0.5))
    kinds = {n: p.kind.name for n, p in signature.parameters.items()}
    assert kinds == {
        "params": "POSITIONAL_ONLY",
        "x": "KEYWORD_ONLY",
        "w": "KEYWORD_ONLY",
        "y": "KEYWORD_ONLY",
    }
    defaults = {n: p.default for n, p in signature.parameters.items()}
    assert defaults["x"] == 0.5 and defaults["w"] == 1.0
    assert defaults["y"] is inspect.Parameter.empty


def test_the_models_aux_is_returned_and_kept_from_the_curvature():
    loss = ncg.CompositeLoss(lambda p, x: (p * x, {"mean": x}), squared, has_aux=True)
    value, aux = loss(jnp.float32(3.0), **DATA)
    assert value == 8.5
    assert jnp.array_equal(aux["mean"], DATA["x"])
    assert loss.model(jnp.float32(3.0), **DATA).shape == (2,)
    assert as_objective(loss, DATA).value(jnp.float32(3.0)) == 8.5


def test_a_composite_objective_shows_its_parts():
    objective = as_objective(ncg.CompositeLoss(linear, squared), {**DATA, "value": 0.0})
    params = jnp.float32(3.0)
    assert objective.loss(objective.model(params)) == objective.value(params) == 8.5


def test_a_plain_objective_has_no_parts():
    objective = as_objective(lambda p: p**2, {})
    assert objective.model is None and objective.loss is None


def test_a_restricted_objective_embeds_before_both_value_and_model():
    objective = as_objective(ncg.CompositeLoss(linear, squared), DATA)
    doubled = objective.restricted(lambda p: 2 * p)
    assert doubled.value(jnp.float32(1.5)) == objective.value(jnp.float32(3.0))
    assert jnp.array_equal(doubled.model(jnp.float32(1.5)), 3.0 * DATA["x"])


@pytest.mark.parametrize("bound", [False, True])
def test_optax_line_searches_take_a_composite_loss(bound):
    loss = ncg.CompositeLoss(linear, squared)
    data = DATA
    if bound:
        loss, data = loss.bind(**DATA), {}
    tx = optax.chain(
        optax.sgd(1.0),
        optax.scale_by_backtracking_linesearch(max_backtracking_steps=15),
    )
    params = jnp.float32(3.0)
    value, grad = jax.value_and_grad(loss)(params, **data)
    updates, _ = tx.update(
        grad, tx.init(params), params, value=value, grad=grad, value_fn=loss, **data
    )
    assert loss(params + updates, **data) < value

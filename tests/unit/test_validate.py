import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ncg_optax import cg
from ncg_optax._utils import validate
from ncg_optax.solvers import Solver


@pytest.mark.parametrize(
    "x", [0, 0.5, 1.0, np.float32(0.5), np.array(1), jnp.array(0.0)]
)
def test_numbers_in_the_interval_pass_unchanged(x):
    assert validate.number("x", x, low=0.0, high=1.0) is x


@pytest.mark.parametrize(
    "x", [-1e-9, 1.1, np.nan, np.inf, jnp.array(2.0), jnp.array(jnp.nan)]
)
def test_numbers_outside_or_nan_are_value_errors(x):
    with pytest.raises(ValueError, match=r"x must be a number in \[0, 1\], got"):
        validate.number("x", x, low=0.0, high=1.0)


def test_an_open_end_is_excluded_and_shown():
    with pytest.raises(ValueError, match=r"x must be a number in \(0, inf\], got 0"):
        validate.number("x", 0.0, low=0.0, low_open=True)

    with pytest.raises(ValueError, match=r"x must be a number in \[0, 1\), got 1"):
        validate.number("x", 1.0, low=0.0, high=1.0, high_open=True)


@pytest.mark.parametrize("x", [None, "1", True, [1.0], jnp.ones(2), cg()])
def test_what_is_no_number_is_a_type_error(x):
    with pytest.raises(TypeError, match="x must be a number .* of type"):
        validate.number("x", x)


def test_tracers_are_let_through():
    checked = jax.jit(lambda x: validate.number("x", x, low=0.0))
    assert checked(-1.0) == -1.0
    assert validate.concrete(jnp.array(2.0)) == 2.0


def test_integers():
    assert validate.integer("n", 3, low=1) == 3
    with pytest.raises(ValueError, match="n must be an integer of at least 1, got 0"):
        validate.integer("n", 0, low=1)


@pytest.mark.parametrize("n", [2.0, True, "2", None, jnp.array(2)])
def test_what_is_no_python_integer_is_a_type_error(n):
    with pytest.raises(TypeError, match="n must be an integer of at least 1"):
        validate.integer("n", n, low=1)


def test_choices():
    assert validate.choice("mode", "a", ("a", "b")) == "a"
    with pytest.raises(ValueError, match="mode must be one of a, b, got 'c'"):
        validate.choice("mode", "c", ("a", "b"))


def test_components():
    solver = cg()
    assert validate.component("solver", solver, Solver, "cg()") is solver
    with pytest.raises(TypeError, match=r"made by cg\(\); got 'cg' of type str\."):
        validate.component("solver", "cg", Solver, "cg()")
    with pytest.raises(TypeError, match="forget to call the factory"):
        validate.component("solver", cg, Solver, "cg()")


@pytest.mark.parametrize(
    "tree",
    [
        jnp.ones(2),
        {"w": np.ones(2), "none": None},
        [jnp.ones(1, "bfloat16"), jnp.ones(1, "complex64")],
    ],
)
def test_trainable_trees(tree):
    validate.trainable_tree("params", tree)
    validate.trainable_tree("params", jax.eval_shape(lambda: tree))


@pytest.mark.parametrize(
    ("tree", "error", "sentence"),
    [
        ({}, ValueError, "params has no leaves"),
        (
            {"n": jnp.arange(2)},
            TypeError,
            r"params\['n'\] .*got dtype int32.*mask=",
        ),
        ([jnp.ones(1), 2.0], TypeError, r"params\[1\] must be an array, got 2.0"),
        ([optax.MaskedNode()], TypeError, r"params\[0\] is an optax.MaskedNode.*mask="),
        (jnp.arange(2), TypeError, r"params \(the tree itself\) .*got dtype"),
    ],
)
def test_untrainable_trees(tree, error, sentence):
    with pytest.raises(error, match=sentence):
        validate.trainable_tree("params", tree)


def test_same_structure():
    params = {"a": jnp.ones(2), "b": jnp.ones(3)}
    validate.same_structure(
        "updates", params, "params", {"a": np.zeros(2), "b": np.zeros(3)}
    )


@pytest.mark.parametrize(
    ("updates", "sentence"),
    [
        (
            {"a": jnp.ones(2)},
            "updates must have the structure of params.* 1 leaves .* 2",
        ),
        (
            {"a": jnp.ones(2), "b": jnp.ones(4)},
            r"updates\['b'\] has shape \(4,\).*\(3,\)",
        ),
        ({"a": jnp.ones(2), "c": jnp.ones(3)}, "updates.*params"),
    ],
    ids=["a leaf is missing", "another shape", "another name"],
)
def test_different_structures_are_refused(updates, sentence):
    params = {"a": jnp.ones(2), "b": jnp.ones(3)}
    with pytest.raises(ValueError, match=sentence):
        validate.same_structure("updates", updates, "params", params)

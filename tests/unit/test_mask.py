import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ncg_optax.step import mask as _mask

TREE = {"body": {"w": jnp.ones((2, 2)), "b": jnp.zeros(2)}, "head": jnp.full(3, 5.0)}
HEAD_ONLY = {"body": {"w": False, "b": False}, "head": True}


@pytest.mark.parametrize(
    "mask",
    [
        HEAD_ONLY,
        {"body": False, "head": True},
        {"body": np.bool_(False), "head": np.bool_(True)},
        lambda tree: {"body": False, "head": True},
        lambda tree: jax.tree.map(lambda x: x.shape == (3,), tree),
    ],
    ids=["full", "prefix", "numpy", "callable", "callable of shapes"],
)
def test_every_form_of_a_mask_resolves_to_the_full_tree(mask):
    assert _mask.resolve(mask, TREE) == HEAD_ONLY


@pytest.mark.parametrize("mask", [None, True])
def test_everything_is_trained_by_default(mask):
    full = _mask.resolve(mask, TREE)
    assert jax.tree.structure(full) == jax.tree.structure(TREE)
    assert all(jax.tree.leaves(full))


def test_select_leaves_none_in_place_of_the_frozen():
    selected = _mask.select(HEAD_ONLY, TREE)
    assert selected == {"body": {"w": None, "b": None}, "head": TREE["head"]}


def test_merge_undoes_select():
    trained = {"body": {"w": None, "b": None}, "head": jnp.zeros(3)}
    merged = _mask.merge(HEAD_ONLY, trained, TREE)
    assert merged["body"]["w"] is TREE["body"]["w"]
    assert merged["body"]["b"] is TREE["body"]["b"]
    assert merged["head"] is trained["head"]


def test_none_leaves_survive():
    tree = {"w": jnp.ones(2), "unused": None}
    mask = _mask.resolve(None, tree)
    assert mask == {"w": True, "unused": None}
    assert _mask.merge(mask, _mask.select(mask, tree), tree) == tree


@pytest.mark.parametrize(
    ("mask", "error", "sentence"),
    [
        ({"body": 1, "head": 0}, TypeError, "pytree of bools .* got 1 of type int"),
        ({"body": "no", "head": True}, TypeError, "got 'no' of type str"),
        ({"body": jnp.array(True), "head": True}, TypeError, "known while tracing"),
        ({"head": True}, ValueError, "mask must have the structure of the parameters"),
        ({"body": True, "tail": True}, ValueError, "mask must have the structure"),
        (False, ValueError, "it is False everywhere"),
        (lambda tree: False, ValueError, "it is False everywhere"),
    ],
)
def test_wrong_masks_are_refused(mask, error, sentence):
    with pytest.raises(error, match=sentence):
        _mask.resolve(mask, TREE)

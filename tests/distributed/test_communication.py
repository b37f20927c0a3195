"""What a data-parallel step sends around, read off the compiled program."""

import collections
import re

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P
from mappings import AXIS, mesh

import ncg_optax as ncg
from benchmarks.scaling.communication import Collective, collectives
from benchmarks.scenarios import _networks, _transformer
from ncg_optax.preconditioners import sharing


def mlp():
    params = _networks.init_dense((6, 8, 8, 3), seed=0)
    return params, _networks.dense, jnp.ones((8, 6))


def cnn():
    kernel = jax.random.normal(jax.random.key(0), (3, 3, 1, 4))
    params = {"kernel": kernel, "dense": _networks.init_dense((4 * 36, 3), seed=1)}

    def model(params, x):
        dimensions = ("NHWC", "HWIO", "NHWC")
        x = jax.lax.conv_general_dilated(
            x, params["kernel"], (1, 1), "SAME", dimension_numbers=dimensions
        )
        return _networks.dense(params["dense"], jnp.tanh(x).reshape(x.shape[0], -1))

    return params, model, jnp.ones((8, 6, 6, 1))


def transformer():
    params = _transformer.init_transformer(0, symbols=3, context=4, width=8, layers=1)
    model = lambda params, x: _transformer.transformer(params, x, 2)[:, -1]  # noqa: E731
    return params, model, jnp.zeros((8, 4), int)


NETWORKS = {"mlp": mlp, "cnn": cnn, "transformer": transformer}
# Settings, and how many places of a step make a product: the solver and, with a damping
# that adapts, its calibration.
OPTIMIZERS = {
    "newton_cg": (dict(), 2),
    "minres": (dict(solver=ncg.minres(), damping=0.1), 1),
}


def single_precision(tree):
    cast = lambda x: x.astype(jnp.float32) if x.dtype == float else x  # noqa: E731
    return jax.tree.map(cast, tree)


def setup(network):
    params, model, x = NETWORKS[network]()
    params, x = single_precision((params, x))
    loss = ncg.CompositeLoss(model, _networks.softmax_cross_entropy)
    weights = sum(leaf.size for leaf in jax.tree.leaves(params))
    return params, loss, {"x": x, "y": jnp.zeros(8, int)}, weights


def sent_by_a_step(loss, tx, params, batch, **settings):
    step = ncg.make_train_step(loss, tx, **settings)
    program = step.lower(params, tx.init(params), batch).compile()
    return collectives(program.as_text())


def all_reduce(elements):
    return Collective("all-reduce", ("f32",), elements, 4 * elements)


def check(sent, weights, products):
    """One all-reduce for loss and gradient, one a product, one a trial value."""
    by_size = sorted(sent, key=lambda c: c.bytes)
    expected = [1] + products * [weights] + [weights + 1]
    assert by_size == [all_reduce(n) for n in expected]


@pytest.mark.parametrize(
    "network, optimizer",
    [(network, "newton_cg") for network in NETWORKS] + [("mlp", "minres")],
)
def test_a_step(network, optimizer):
    settings, products = OPTIMIZERS[optimizer]
    params, loss, batch, weights = setup(network)
    tx = ncg.newton_cg(curvature=ncg.gauss_newton(), **settings)
    check(sent_by_a_step(loss, tx, params, batch), weights, products)


@pytest.mark.slow
@pytest.mark.parametrize("network", NETWORKS)
def test_a_hessian_free_step(network, monkeypatch):
    """Products of the solver, the calibration and the probes.

    What devices send to share the work of large matrices is in test_sharing.py.
    """
    monkeypatch.setattr(sharing, "MIN_ROWS", 1000)
    params, loss, batch, weights = setup(network)
    check(sent_by_a_step(loss, ncg.hessian_free(), params, batch), weights, 3)


def test_a_step_by_hand():
    """Under the user's own shard_map: types tell what is averaged already."""
    params, loss, batch, weights = setup("mlp")
    tx = ncg.newton_cg(curvature=ncg.gauss_newton(), axis_name=AXIS, damping=0.1)

    def step(params, state, batch):
        bound = loss.bind(**batch)
        value, grads = ncg.value_and_grad(bound, AXIS)(params)
        updates, state = tx.update(
            grads, state, params, value=value, grad=grads, value_fn=bound
        )
        return updates, state, value

    mapped = jax.shard_map(
        step, mesh=mesh(), in_specs=(P(), P(), P(AXIS)), out_specs=P()
    )
    program = jax.jit(mapped).lower(params, tx.init(params), batch).compile()
    check(collectives(program.as_text()), weights, 1)


def test_half_the_bytes():
    """Read before XLA compiles, as its CPU backend adds bfloat16 in float32."""
    params, loss, batch, _ = setup("mlp")
    tx = ncg.newton_cg(curvature=ncg.gauss_newton(), damping=0.1)

    def types_of_all_reduces(dtype):
        step = ncg.make_train_step(loss, tx, product_dtype=dtype)
        program = step.lower(params, tx.init(params), batch).as_text()
        after = program.split('"stablehlo.all_reduce"')[1:]
        return collections.Counter(
            re.search(r"arg\d+: tensor<(\w+)>", text)[1] for text in after
        )

    # One operation a leaf here, of which XLA makes one: gradient and product.
    leaves = len(jax.tree.leaves(params))
    assert types_of_all_reduces(None) == {"f32": 2 * leaves + 2}
    expected = {"bf16": leaves, "f32": leaves + 2}
    assert types_of_all_reduces(jnp.bfloat16) == expected

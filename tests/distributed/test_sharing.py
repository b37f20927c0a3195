"""Devices share the work of a preconditioner: the results are those of one device."""

import collections
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from mappings import (
    AXIS,
    DEVICES,
    MAPPINGS,
    assert_replicas_are_identical,
    by_mapping_and_loss,
    largest_difference,
    make_loss,
    mesh,
    on_devices_and_alone,
    place,
    problem,
    run_steps,
)

import ncg_optax as ncg
from benchmarks.scaling.communication import collectives
from ncg_optax.preconditioners import sharing

# Sides of at least 128, most of them not divisible by four.
SHAPES = {
    "a": (130, 129),
    "b": (130, 129),
    "few": (131, 2),
    "long": (150, 5),
    "v": (133,),
}
MAX_SIZE = 140
DAMPING = 0.1
STEPS = 3


def kronecker(axes):
    return ncg.kronecker(
        refresh=2, first_probes=8, fraction=1.0, max_size=MAX_SIZE
    ).over(axes)


def random_leaves(seed):
    rng = np.random.default_rng(seed)
    return {k: jnp.asarray(rng.normal(size=shape)) for k, shape in SHAPES.items()}


def scaled_rows(v):
    """An operator that has no product of matrices of its own."""
    return jax.tree.map(
        lambda x: x * jnp.linspace(1, 3, len(x)).reshape(-1, *(1,) * (x.ndim - 1)), v
    )


def updated(of, steps=STEPS):
    def step(state, key):
        zero = jnp.zeros((), jnp.int32)
        grads = jax.tree.map(jnp.zeros_like, random_leaves(0))
        return of.update(state, scaled_rows, grads, DAMPING, key, zero)[0], ()

    keys = jax.random.split(jax.random.key(0), steps)
    return jax.lax.scan(step, of.init(random_leaves(0)), keys)[0]


def applied(of, state, r):
    damping = jnp.asarray(DAMPING)
    return of.apply(of.prepare(state, damping), r, damping)


def work(axes, state, r):
    """The state after some steps, and applications with it and with ``state``."""
    of = kronecker(axes)
    own = updated(of)
    return own, applied(of, own, r), applied(of, state, r)


@functools.cache
def reference():
    state = jax.jit(lambda: updated(kronecker(())))()
    r = random_leaves(1)
    image = jax.jit(functools.partial(applied, kronecker(())))(state, r)
    return state, r, image


def relative(actual, expected):
    """The largest difference of a leaf, in units of its largest number."""
    return max(
        np.max(np.abs(np.asarray(a) - np.asarray(b))) / np.max(np.abs(b))
        for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True)
    )


def check_work(done):
    """The results of :func:`work` on all devices."""
    state, r, image = reference()
    assert {leaf.shape[0] for leaf in jax.tree.leaves(done[1])} <= {1, DEVICES}
    own, own_image, given_image = done
    for side, expected in ((own.left, state.left), (own.right, state.right)):
        assert relative(side.gram, expected.gram) < 1e-12
        assert relative(side.eigenvalues, expected.eigenvalues) < 1e-10
        assert relative(side.basis, expected.basis) < 1e-10
    assert np.all(own.steps == STEPS) and np.all(own.turn == state.turn)
    assert relative(given_image, image) < 1e-12
    assert relative(own_image, image) < 1e-10


@pytest.mark.parametrize("mapping", [name for name in MAPPINGS if name != "vmap"])
def test_work_equals_that_of_one_device(mapping):
    state, r, _ = reference()
    fn = lambda inputs, x, y: work((AXIS,), *inputs)  # noqa: E731
    nothing = jnp.zeros(DEVICES)
    check_work(MAPPINGS[mapping](fn)((state, r), nothing, nothing))


@pytest.mark.parametrize("check_vma", [True, False])
def test_work_on_two_axes(check_vma):
    axes = ("a", "b")
    state, r, _ = reference()
    mapped = jax.shard_map(
        functools.partial(work, axes),
        mesh=mesh((2, 2), axes),
        in_specs=(P(), P()),
        out_specs=P(),
        check_vma=check_vma,
    )
    done = jax.jit(mapped)(state, r)
    check_work(jax.tree.map(lambda x: x[None], done))


# What each device computes and sends.


def lowered(fn, *args):
    mapped = jax.shard_map(
        fn, mesh=mesh(), in_specs=(P(),) * len(args), out_specs=P(AXIS), check_vma=False
    )
    return jax.jit(mapped).lower(*args)


def products_of_matrices(program):
    """How many there are, by the shapes of the result."""
    shapes = re.findall(r"dot_general .*-> tensor<([\dx]+)xf64>", program.as_text())
    return collections.Counter(tuple(map(int, s.split("x"))) for s in shapes)


def sent(program):
    """The number of operations that send something, by their kind."""
    found = collectives(program.compile().as_text())
    return collections.Counter(c.kind for c in found), sum(c.elements for c in found)


def padded(rows):
    return DEVICES * -(-rows // DEVICES)


def test_an_application():
    """A quarter of the rows on each device; all leaves are gathered together."""
    state, r, _ = reference()
    of = kronecker((AXIS,))
    prepared = jax.eval_shape(
        jax.shard_map(
            lambda s: of.prepare(s, jnp.asarray(DAMPING)),
            mesh=mesh(),
            in_specs=P(),
            out_specs=P(),
            check_vma=False,
        ),
        state,
    )
    program = lowered(lambda p, r: of.apply(p, r, DAMPING), prepared, r)
    # Left and right of three leaves; the right of "long". A vector has a diagonal.
    expected = {(33, 129): 4, (33, 2): 2, (38, 5): 1}
    assert products_of_matrices(program) == expected
    kinds, elements = sent(program)
    assert kinds == {"all-gather": 1}
    assert elements == 2 * 132 * 129 + 132 * 2 + 152 * 5 + 136


def test_the_inverses():
    state, _, _ = reference()
    of = kronecker((AXIS,))
    program = lowered(lambda s: of.prepare(s, jnp.asarray(DAMPING)), state)
    # Leaves of the same shape are stacked. The sides of two and five are not shared.
    shared = {(2, 33, 130): 1, (2, 33, 129): 1, (33, 131): 1}
    assert products_of_matrices(program) == shared | {(2, 2): 1, (5, 5): 1}
    kinds, elements = sent(program)
    assert kinds == {"all-gather": 1}
    assert elements == 2 * 132 * 129  # an application needs the own rows of the left


def test_an_update():
    state, r, _ = reference()
    of = kronecker((AXIS,))
    key = jax.random.key_data(jax.random.key(0))

    def update(state, r, key):
        key = jax.random.wrap_key_data(key)
        new, _ = of.update(state, scaled_rows, r, DAMPING, key, jnp.int32(0))
        return jax.tree.map(lambda x: x[None], new)

    program = lowered(update, state, r, key)
    # The own rows of the estimates; the sides of two and five are not shared.
    rows = {(33, 130): 2, (33, 129): 2, (33, 131): 1, (2, 2): 1, (5, 5): 1}
    # One member of each stack at a time: a product for its eigenvectors in the loop of
    # the iterations, and one for its eigenvalues.
    iterations = collections.Counter({(k, k): 2 for k in (130, 129, 131, 2, 5)})
    expected = collections.Counter(rows) + iterations
    assert products_of_matrices(program) == expected
    found = collectives(program.compile().as_text())
    (gathered,) = (c.elements for c in found if c.kind == "all-gather")
    assert gathered == 2 * 132 * 130 + 2 * 132 * 129 + 132 * 131
    # The eigenvectors and eigenvalues of large factors, together, if one is due.
    (reduced,) = (c.elements for c in found if c.kind == "all-reduce")
    members = {130: 2, 129: 2, 131: 1}
    assert len(found) == 2
    assert reduced == sum(n * (k * k + k) for k, n in members.items())


def test_few_rows_are_not_shared():
    of = ncg.kronecker().over((AXIS,))
    r = jnp.zeros((sharing.MIN_ROWS - 1, 3))
    state = of.init(r)
    program = lowered(functools.partial(applied, of), state, r)
    assert sent(program) == ({}, 0)


# Who is due.


@pytest.mark.parametrize("owner", range(DEVICES))
def test_members_are_dealt_out(owner):
    size = 6

    def owners(first, number):
        inputs, last = jnp.arange(1.0 * size), jnp.full(size, -1.0)
        own = sharing.Turn(inputs, last, first, number, owner)
        one = lambda x, _: x + 10.0 * jax.lax.axis_index(AXIS)  # noqa: E731
        (shared,) = sharing.in_turn(one, [own], (AXIS,))
        every = own._replace(owner=None)
        (replicated,) = sharing.in_turn(lambda x, _: x, [every], (AXIS,))
        return shared, replicated

    mapped = jax.shard_map(
        lambda first, number: jax.vmap(owners)(first, number),
        mesh=mesh(),
        in_specs=(P(), P()),
        out_specs=P(),
    )
    cases = [(first, number) for first in range(size) for number in range(size + 1)]
    found = jax.jit(mapped)(*jnp.array(cases, jnp.int32).T)
    for (first, number), shared, replicated in zip(cases, *found, strict=True):
        expected, of_every = np.full(size, -1), np.full(size, -1)
        for k in range(number):
            i = (first + k) % size
            expected[i] = i + 10 * ((owner + k) % DEVICES)
            of_every[i] = i
        np.testing.assert_array_equal(shared, expected)
        np.testing.assert_array_equal(replicated, of_every)


def test_expensive_members_are_dealt_first():
    assert sharing.deal([8.0, 27.0, 1.0], [3, 2, 4]) == [2, 0, 5]


# Whole steps, with sides that are shared although they are small.


@pytest.fixture
def share_all(monkeypatch):
    monkeypatch.setattr(sharing, "MIN_ROWS", 2)


def settings():
    preconditioner = ncg.kronecker(refresh=2, fraction=1.0)
    return dict(preconditioner=preconditioner, solver=ncg.cg(maxiter=4))


@by_mapping_and_loss
def test_steps_equal_those_of_one_device(mapping, reduce_over, share_all):
    mapped, alone = on_devices_and_alone(mapping, reduce_over, **settings())
    (trajectory, values), info = mapped
    (expected, expected_values), expected_info = alone
    assert largest_difference(trajectory, expected) < 1e-10
    assert largest_difference(values, expected_values) < 1e-10
    assert np.all(info.cg_iterations == expected_info.cg_iterations)
    assert expected_values[-1] < 0.9 * expected_values[0]


def test_steps_of_make_train_step(share_all):
    tx = ncg.newton_cg(curvature=ncg.gauss_newton(), **settings())
    params, x, y = problem()
    step = ncg.make_train_step(make_loss(), tx)
    state, batch = tx.init(params), {"x": x, "y": y}
    params, state, batch = (
        place(tree, mesh(), spec)
        for tree, spec in ((params, P()), (state, P()), (batch, P(AXIS)))
    )
    program = step.lower(params, state, batch).compile().as_text()
    assert "all-gather" in program
    run = jax.jit(lambda p, x, y: run_steps(tx, make_loss(), p, x, y))
    (expected, _), _ = run(*problem())
    for k in range(4):
        params, state, _ = step(params, state, batch)
        row = jax.tree.map(lambda x, k=k: x[k], expected)
        assert largest_difference(params, row) < 1e-10


@pytest.mark.parametrize("mapping", ["pmap", "shard_map unchecked", "jit(vmap)"])
def test_replicas_stay_identical(mapping, share_all):
    tx = ncg.newton_cg(curvature=ncg.gauss_newton(), **settings(), axis_name=AXIS)
    assert_replicas_are_identical(mapping, tx, steps=200)

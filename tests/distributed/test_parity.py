"""Data-parallel steps equal the steps on the full batch, whatever the mapping."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P
from mappings import (
    AXIS,
    DEVICES,
    MAPPINGS,
    assert_replicas_are_identical,
    largest_difference,
    make_loss,
    mesh,
    place,
    problem,
    run_steps,
)

import ncg_optax as ncg

TOLERANCE = 1e-10
LOSSES = {"local loss": (), "averaged loss": (AXIS,)}
CURVATURES = {
    "hessian": ncg.hessian,
    "gauss_newton": ncg.gauss_newton,
    "empirical_fisher": ncg.empirical_fisher,
}
SOLVERS = {
    "cg": {"solver": ncg.cg(maxiter=8, warm_start=0.9)},
    "minres": {"solver": ncg.minres(maxiter=8)},
    "steihaug": {"solver": ncg.steihaug(maxiter=8), "linesearch": None},
    "averaged": {"solver": ncg.averaged_gradient(), "linesearch": None},
}

# Between them the two losses see every curvature twice, and every solver.
PAIRS = {
    "local loss": {
        "hessian": "cg",
        "gauss_newton": "steihaug",
        "empirical_fisher": "minres",
    },
    "averaged loss": {
        "hessian": "minres",
        "gauss_newton": "cg",
        "empirical_fisher": "averaged",
    },
}

by_loss = pytest.mark.parametrize("loss", LOSSES)


def settings(curvature, solver):
    return {"curvature": CURVATURES[curvature](), **SOLVERS[solver]}


@functools.cache
def reference(curvature, solver):
    tx = ncg.newton_cg(**settings(curvature, solver))
    loss = make_loss()
    run = jax.jit(lambda params, x, y: run_steps(tx, loss, params, x, y))
    return run(*problem())


@functools.cache
def mapped(mapping, loss):
    """The trajectories under one mapping, all curvatures in one compilation."""

    def run(params, x, y):
        return {
            curvature: run_steps(
                ncg.newton_cg(**settings(curvature, solver), axis_name=AXIS),
                make_loss(LOSSES[loss]),
                params,
                x,
                y,
                AXIS,
            )
            for curvature, solver in PAIRS[loss].items()
        }

    return MAPPINGS[mapping](run)(*problem())


@pytest.mark.parametrize("mapping", MAPPINGS)
@by_loss
@pytest.mark.parametrize("curvature", CURVATURES)
def test_steps_equal_those_of_one_device(mapping, loss, curvature, record_property):
    solver = PAIRS[loss][curvature]
    (trajectory, values), info = mapped(mapping, loss)[curvature]
    (expected, expected_values), expected_info = reference(curvature, solver)
    difference = largest_difference(trajectory, expected)
    # `pytest --junitxml` shows it.
    record_property("difference", difference)
    assert difference < TOLERANCE
    assert largest_difference(values, expected_values) < TOLERANCE
    assert np.all(info.cg_iterations == expected_info.cg_iterations)
    assert np.all(info.status == expected_info.status)
    assert np.allclose(info.predicted_reduction, expected_info.predicted_reduction)
    assert expected_values[-1] < 0.9 * expected_values[0]


@pytest.mark.slow
def test_eager_vmap_of_an_update():
    """No jit, scan or loop around it: pcast is refused by another exception there."""
    params, x, y = problem()
    loss = make_loss()
    tx = ncg.newton_cg(curvature=ncg.gauss_newton(), axis_name=AXIS)
    alone = ncg.newton_cg(curvature=ncg.gauss_newton())

    def update(tx, axis_name, x, y):
        bound = loss.bind(x=x, y=y)
        grads = ncg.value_and_grad(bound, axis_name)(params)[1]
        return tx.update(grads, tx.init(params), params, value_fn=bound)[0]

    updates = jax.vmap(lambda x, y: update(tx, AXIS, x, y), axis_name=AXIS)(
        x.reshape(4, 4, 3), y.reshape(4, 4, 2)
    )
    assert largest_difference(updates, update(alone, None, x, y)) < TOLERANCE


@pytest.mark.parametrize("mapping", ["pmap", "shard_map unchecked", "jit(vmap)"])
def test_replicas_stay_bit_identical(mapping):
    # Unreduced gradients, as everybody writes them: the transform reduces them.
    tx = ncg.newton_cg(solver=ncg.cg(maxiter=8, warm_start=0.9), axis_name=AXIS)
    assert_replicas_are_identical(mapping, tx, steps=20)


@pytest.mark.parametrize("mapping", ["shard_map checked", "shard_map unchecked"])
@by_loss
def test_mask(mapping, loss):
    mask = {"w1": False, "w2": True, "b2": True}
    make = functools.partial(ncg.newton_cg, curvature=ncg.gauss_newton(), mask=mask)

    def run(params, x, y):
        tx = make(axis_name=AXIS)
        return run_steps(tx, make_loss(LOSSES[loss]), params, x, y, AXIS, steps=2)

    params, x, y = problem()
    (trajectory, _), _ = MAPPINGS[mapping](run)(params, x, y)
    (expected, _), _ = run_steps(make(), make_loss(), params, x, y, steps=2)
    assert largest_difference(trajectory, expected) < TOLERANCE
    assert np.all(trajectory["w1"] == np.asarray(params["w1"]))
    assert np.all(expected["w2"][-1] != params["w2"])


@pytest.mark.parametrize(
    "check_vma, averaged",
    [
        (True, ()),
        (True, ("a",)),
        (True, ("b",)),
        (True, ("a", "b")),
        (False, ()),
        (False, ("a",)),
    ],
)
def test_two_mesh_axes(check_vma, averaged):
    axes = ("a", "b")
    config = settings("hessian", "cg")
    step = jax.shard_map(
        lambda params, x, y: run_steps(
            ncg.newton_cg(**config, axis_name=axes),
            make_loss(averaged),
            params,
            x,
            y,
            axes,
        ),
        mesh=mesh((2, 2), axes),
        in_specs=(P(), P(axes), P(axes)),
        out_specs=P(),
        check_vma=check_vma,
    )
    trajectory, _ = jax.jit(step)(*problem())
    expected, _ = reference("hessian", "cg")
    assert largest_difference(trajectory, expected) < TOLERANCE


class TestAutomaticSharding:
    """Plain jit of the single-device code: the compiler does the communication."""

    @pytest.mark.parametrize("curvature", CURVATURES)
    def test_sharded_batch(self, curvature):
        params, x, y = problem()
        devices = mesh()
        tx = ncg.newton_cg(**settings(curvature, "cg"))
        run = jax.jit(lambda params, x, y: run_steps(tx, make_loss(), params, x, y))
        trajectory, _ = run(
            place(params, devices, P()),
            place(x, devices, P(AXIS)),
            place(y, devices, P(AXIS)),
        )
        expected, _ = reference(curvature, "cg")
        assert largest_difference(trajectory, expected) < TOLERANCE
        assert trajectory[0]["w1"].sharding.num_devices == DEVICES

    def test_sharded_parameters(self):
        params, x, y = problem()
        devices = mesh()
        tx = ncg.newton_cg(**settings("gauss_newton", "cg"))
        params = {
            "w1": place(params["w1"], devices, P(None, AXIS)),
            "w2": place(params["w2"], devices, P(AXIS)),
            "b2": place(params["b2"], devices, P()),
        }
        run = jax.jit(lambda params, x, y: run_steps(tx, make_loss(), params, x, y))
        trajectory, _ = run(params, *(place(a, devices, P(AXIS)) for a in (x, y)))
        expected, _ = reference("gauss_newton", "cg")
        assert largest_difference(trajectory, expected) < TOLERANCE

    def test_a_mesh_with_explicit_axes(self):
        params, x, y = problem()
        devices = jax.make_mesh((DEVICES,), (AXIS,), (AxisType.Explicit,))
        tx = ncg.newton_cg(**settings("gauss_newton", "cg"))
        run = jax.jit(lambda params, x, y: run_steps(tx, make_loss(), params, x, y))
        placed = [place(a, devices, P(AXIS)) for a in (x, y)]
        trajectory, _ = run(place(params, devices, P()), *placed)
        expected, _ = reference("gauss_newton", "cg")
        assert largest_difference(trajectory, expected) < TOLERANCE

    def test_an_ensemble_with_a_network_on_each_device(self):
        params, x, y = problem()
        tx = ncg.newton_cg(**settings("gauss_newton", "cg"))
        scales = jnp.linspace(0.5, 1.0, DEVICES)
        ensemble = jax.vmap(lambda s: jax.tree.map(lambda p: s * p, params))(scales)

        def run(params):
            return run_steps(tx, make_loss(), params, x, y)[0]

        trajectories = jax.jit(jax.vmap(run))(place(ensemble, mesh(), P(AXIS)))
        assert trajectories[0]["w1"].sharding.num_devices == DEVICES
        assert not trajectories[0]["w1"].sharding.is_fully_replicated
        last = jax.tree.map(lambda a: a[-1], trajectories)
        expected, _ = reference("gauss_newton", "cg")
        assert largest_difference(last, expected) < TOLERANCE


def test_an_unbound_axis_is_named():
    params, x, y = problem()
    tx = ncg.newton_cg(axis_name="nowhere")
    state = tx.init(params)  # touches no axis
    bound = make_loss().bind(x=x, y=y)
    with pytest.raises(NameError, match="nowhere"):
        tx.update(jax.tree.map(jnp.zeros_like, params), state, params, value_fn=bound)

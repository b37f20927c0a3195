"""A state stored by one version opens in the next ones.

What is promised: the state of an optimizer made with the same arguments opens in every
later version with the same minor number (0.1.0 in 0.1.7), and the run goes on as it
would have. A version that changes the format (a field of a state is added, removed,
renamed or gets another shape, dtype or place) raises the minor number and says so in
the changelog. Parameters are the user's own and always open, and a fresh
``tx.init(params)`` loses little: damping, momentum and preconditioner are found again
within some steps. `test_what_an_older_state_has` is the recipe to keep what there is.
Numbers are not promised to be the same: a version may take better steps from the same
state.

If a test here fails because the format has changed: first see whether it has to. If so,

1. raise the minor number in ``ncg_optax/__init__.py`` and say in the changelog, under
   "Changed", which states do not open any more;
2. run ``python tests/integration/make_state_fixture.py``, which stores the states of
   the new version, and delete the folder of the old one in
   ``tests/integration/states``.

If only the comparison with the stored next step fails, steps have become others: decide
whether they are better, and store them anew (delete the folder, run the script).
"""

import jax
import numpy as np
import pytest

import ncg_optax as ncg

serialization = pytest.importorskip("flax.serialization")

import make_state_fixture as fixture  # noqa: E402

FILES = sorted(fixture.FOLDER.glob("*/*.msgpack"))


def minor(version):
    return tuple(version.split(".")[:2])


def template(name):
    """A stored run with another content: what a user has who opens one."""
    params = jax.tree.map(lambda x: 0 * x, fixture.start())
    run = {"params": params, "state": fixture.TX[name].init(params)}
    return {"run": run, "next_params": params}


def kinds(tree):
    return jax.tree.map(lambda x: (np.shape(x), np.asarray(x).dtype), tree)


@pytest.fixture(params=FILES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def path(request):
    return request.param


def test_all_of_this_minor_version_and_no_others_are_here():
    found = {(minor(p.parent.name), p.stem) for p in FILES}
    assert found == {(minor(ncg.__version__), name) for name in fixture.TX}, __doc__


def test_opens_and_goes_on(path):
    fresh = template(path.stem)
    stored = serialization.from_bytes(fresh, path.read_bytes())
    assert jax.tree.structure(stored) == jax.tree.structure(fresh), __doc__
    assert kinds(stored) == kinds(fresh), __doc__

    run = stored["run"]
    info = ncg.get_info(run["state"])
    assert run["state"][0].count == fixture.STEPS
    assert ncg.explain(info.status).endswith(".")
    loss = float(fixture.LOSS(run["params"]))
    assert info.damping > 0

    after = fixture.make_step(fixture.TX[path.stem])(run)
    next_loss = float(fixture.LOSS(after["params"]))
    assert next_loss < loss
    # Another jax version rounds differently, in every product of the step.
    expected = float(fixture.LOSS(stored["next_params"]))
    np.testing.assert_allclose(loss - next_loss, loss - expected, rtol=0.05)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=0.05, atol=0.01),
        after["params"],
        stored["next_params"],
    )


def test_files_are_small(path):
    assert path.stat().st_size < 8192


def what_there_is(fresh, stored):
    """A state dict: the stored one where it has the same fields, else the fresh one."""
    if not isinstance(fresh, dict):
        same = np.shape(fresh) == np.shape(stored)
        return stored if same and not isinstance(stored, dict) else fresh
    if not isinstance(stored, dict):
        return fresh
    return {
        name: what_there_is(x, stored[name]) if name in stored else x
        for name, x in fresh.items()
    }


def test_what_an_older_state_has(path):
    stored = serialization.msgpack_restore(path.read_bytes())
    # As if 0.1.0 had not counted steps, and its damping had another name.
    newton = stored["run"]["state"]["0"]
    del newton["count"]
    newton["damping"]["strength"] = newton["damping"].pop("damping")
    fresh = template(path.stem)
    with pytest.raises(ValueError, match="count"):
        serialization.from_state_dict(fresh, stored)

    merged = what_there_is(serialization.to_state_dict(fresh), stored)
    state = serialization.from_state_dict(fresh, merged)["run"]["state"]
    assert jax.tree.structure(state) == jax.tree.structure(fresh["run"]["state"])
    assert state[0].count == 0
    assert state[0].damping.damping == fresh["run"]["state"][0].damping.damping
    assert state[0].info.loss == newton["info"]["loss"] > 0

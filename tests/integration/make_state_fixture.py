"""Stores optimizer states of this version for test_stored_states.py.

Run it once per version whose state has another format than the last one's::

  python tests/integration/make_state_fixture.py

It writes tests/integration/states/VERSION/NAME.msgpack, and refuses to overwrite: what
a version has stored does not change any more.
"""

import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import optax

import ncg_optax as ncg

FOLDER = pathlib.Path(__file__).with_name("states")
# The step after these is one whose solve converges: it hardly depends on rounding.
STEPS = 2

X = jnp.sin(jnp.arange(36.0)).reshape(12, 3)
LOSS = ncg.CompositeLoss(
    lambda params: jnp.tanh(X @ params["w"] + params["b"]) @ params["v"],
    lambda outputs: jnp.mean((outputs - jnp.cos(3 * X[:, 0])) ** 2),
)
# The presets as they come, and most of the parts that they do not have.
TX = {
    "newton_cg": ncg.newton_cg(),
    "hessian_free": ncg.hessian_free(),
    # Averaged steps of full length overshoot for the first few.
    "stochastic_hessian_free": ncg.stochastic_hessian_free(0.1),
    "quadratic_momentum": ncg.newton_cg(solver=ncg.quadratic_momentum()),
    "scale_by_newton_cg": optax.chain(
        ncg.scale_by_newton_cg(
            solver=ncg.cg(warm_start=0.5),
            preconditioner=ncg.compose(ncg.jacobi(), ncg.nystrom(2)),
        ),
        optax.scale_by_learning_rate(0.5),
    ),
}


def start() -> dict[str, jax.Array]:
    """The first parameters."""
    return {
        "w": jnp.cos(jnp.arange(6.0)).reshape(3, 2),
        "b": jnp.zeros(2),
        "v": jnp.full(2, 0.3),
    }


def make_step(tx: optax.GradientTransformation):
    """A jitted step of ``{"params": ..., "state": ...}``."""

    @jax.jit
    def step(run):
        params, state = run["params"], run["state"]
        grads = jax.grad(LOSS)(params)
        updates, state = tx.update(grads, state, params, value_fn=LOSS)
        return {"params": optax.apply_updates(params, updates), "state": state}

    return step


def stored_run(name: str) -> dict[str, Any]:
    """What is stored: a run after some steps, and where its next step leads."""
    tx = TX[name]
    step = make_step(tx)
    run = {"params": start(), "state": tx.init(start())}
    for _ in range(STEPS):
        run = step(run)
    return {"run": run, "next_params": step(run)["params"]}


def main() -> None:
    """Writes the files of this version."""
    from flax import serialization

    folder = FOLDER / ncg.__version__
    folder.mkdir(parents=True)
    for name in TX:
        data = serialization.to_bytes(stored_run(name))
        (folder / f"{name}.msgpack").write_bytes(data)
        print(f"{name}: {len(data)} bytes")


if __name__ == "__main__":
    main()

"""What sending curvature products in bfloat16 does to convergence.

Four fake devices share each batch, with ``product_dtype=None`` and ``jnp.bfloat16`` in
``make_train_step``; everything else is the same. The products are computed in float32
and rounded before they are averaged, so half the bytes are sent.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import ncg_optax as ncg
from benchmarks.reports.records import Record
from benchmarks.scenarios import SCENARIOS, Scenario

DEVICES = 4
DTYPES: dict[str, Any] = {"float32": None, "bfloat16": jnp.bfloat16}
OPTIMIZERS: dict[str, Callable[[], Any]] = {
    "newton_cg": lambda: ncg.newton_cg(curvature=ncg.gauss_newton()),
    "hessian_free": ncg.hessian_free,
}


def use_fake_devices() -> None:
    """Before JAX starts.

    Raises:
        RuntimeError: if it has started with fewer devices.
    """
    if jax.config.jax_num_cpu_devices != DEVICES:
        jax.config.update("jax_num_cpu_devices", DEVICES)


def train(
    scenario: Scenario, step: Any, tx: Any, batch: Any, seed: int, budget: float
) -> Record:
    """One run: the loss before each step, by the gradients spent until then."""
    params = scenario.init(seed)
    state = jax.jit(tx.init)(params)
    units, losses, spent = [], [], 0.0
    while spent < budget:
        params, state, metrics = step(params, state, batch)
        units.append(spent)
        losses.append(float(metrics.loss))
        spent += float(metrics.info.gradient_equivalents)
    return {
        "seed": seed,
        "loss": float(metrics.info.next_loss),
        "units": units + [spent],
        "losses": losses + [float(metrics.info.next_loss)],
    }


def compare(
    names: Sequence[str],
    optimizers: Sequence[str] = tuple(OPTIMIZERS),
    seeds: int = 3,
    budget: float = 300.0,
    progress: Callable[[str], None] = lambda text: None,
) -> list[Record]:
    """Trains with products in both precisions, from the same parameters.

    The budget is in gradients, by the library's own account.
    """
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:DEVICES]), ("data",))
    found = []
    for name in names:
        scenario = SCENARIOS[name]
        data = scenario.load().train
        rows = len(data["y"]) // DEVICES * DEVICES
        batch = jax.tree.map(lambda x, rows=rows: x[:rows], data)
        loss = ncg.CompositeLoss(scenario.model, scenario.loss)
        for optimizer in optimizers:
            for dtype, value in DTYPES.items():
                progress(f"{name}: {optimizer}, {dtype}")
                tx = OPTIMIZERS[optimizer]()
                step = ncg.make_train_step(loss, tx, mesh, product_dtype=value)
                runs = [
                    train(scenario, step, tx, batch, seed, budget)
                    for seed in range(seeds)
                ]
                about = {"scenario": name, "optimizer": optimizer}
                about |= {"product_dtype": dtype, "devices": DEVICES, "budget": budget}
                found.append(about | {"runs": runs})
    return found

"""What sending curvature products in bfloat16 does to convergence.

Four fake devices share each batch, with ``product_dtype=None`` and ``jnp.bfloat16`` in
``make_train_step``; everything else is the same. The products are computed in float32
and rounded before they are averaged, so half the bytes are sent.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import ncg_optax as ncg
from benchmarks.peers import Method, Problem
from benchmarks.reports.records import Record, as_record
from benchmarks.scenarios import SCENARIOS, Scenario
from benchmarks.training.run import compile_method, train

DEVICES = 4
DTYPES: dict[str, Any] = {"float32": None, "bfloat16": jnp.bfloat16}
OPTIMIZERS: dict[str, Callable[[], Any]] = {
    "newton_cg": lambda: ncg.newton_cg(curvature=ncg.gauss_newton()),
    "hessian_free": ncg.hessian_free,
}


def compare(
    names: Sequence[str],
    seeds: int = 3,
    budget: float = 300.0,
    progress: Callable[[str], None] = lambda text: None,
) -> list[Record]:
    """Trains with products in both precisions, from the same parameters.

    The budget is in gradients, by the library's own account.
    """
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:DEVICES]), ("data",))
    found = []
    for name, optimizer, dtype in itertools.product(names, OPTIMIZERS, DTYPES):
        progress(f"{name}: {optimizer}, {dtype}")
        scenario = SCENARIOS[name]
        data = scenario.load().train
        rows = len(data["y"]) // DEVICES * DEVICES
        batch = jax.tree.map(lambda x, rows=rows: x[:rows], data)
        problem = Problem(scenario, batch, batch, budget)
        compiled = compile_method(_method(scenario, optimizer, dtype, mesh), problem)
        runs = [as_record(train(compiled, problem, seed)) for seed in range(seeds)]
        about = {"scenario": name, "optimizer": optimizer, "product_dtype": dtype}
        found.append(about | {"devices": DEVICES, "budget": budget, "runs": runs})
    return found


def _method(scenario: Scenario, optimizer: str, dtype: str, mesh: Any) -> Method:
    tx = OPTIMIZERS[optimizer]()
    loss = ncg.CompositeLoss(scenario.model, scenario.loss)
    step = ncg.make_train_step(
        loss, tx, mesh, product_dtype=DTYPES[dtype], donate=False
    )
    return Method(
        init=lambda params, seed, rate: tx.init(params),
        advance=lambda params, state, data: step(params, state, data)[:2],
        spent=lambda state: float(ncg.get_info(state).gradient_equivalents),
        compiles=True,
    )

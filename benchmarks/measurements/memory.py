"""The memory of a training step, as XLA plans it, against Adam's.

Compiled for one device and not run: what XLA needs for arguments, results and
everything in between, in multiples of the parameters. Donated arguments lie where the
results go and count once.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np

import ncg_optax as ncg
from benchmarks.measurements.preconditioners import bytes_of
from benchmarks.reports.records import Record
from benchmarks.scaling.models import MODELS, OPTIMIZERS, Model

PIECES = 16  # that the batch goes through memory in


# Optimizers of `models.OPTIMIZERS`, and whether the batch goes through in pieces.
CANDIDATES = {
    f"{name}{', in pieces' if pieces else ''}": (name, pieces)
    for name in ("adam", "newton_cg", "hessian_free")
    for pieces in (False, True)
}


class Memory(NamedTuple):
    """Bytes."""

    parameters: int  # the network's
    state: int  # of the optimizer
    batch: int  # the examples
    temporary: int  # everything in between
    peak: int  # all of it, and what of the results lies elsewhere


def plan(model: Model, candidate: tuple[str, bool], batch_size: int) -> Memory:
    """XLA's plan for a step.

    Raises:
        ValueError: if the batch cannot be divided into `PIECES`.
    """
    if batch_size % PIECES:
        raise ValueError(
            f"batch_size must be a multiple of {PIECES}, got {batch_size}."
        )
    name, in_pieces = candidate
    piece = batch_size // PIECES if in_pieces else None
    tx = OPTIMIZERS[name](model._replace(microbatch=piece))
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("data",))
    step = ncg.make_train_step(model.composite(), tx, mesh, microbatch_size=piece)
    params = model.init(0)
    state, batch = jax.jit(tx.init)(params), model.batch(batch_size)
    planned = step.lower(params, state, batch).compile().memory_analysis()
    return Memory(
        *map(bytes_of, (params, state, batch)),
        temporary=planned.temp_size_in_bytes,
        peak=planned.argument_size_in_bytes
        + planned.output_size_in_bytes
        - planned.alias_size_in_bytes
        + planned.temp_size_in_bytes,
    )


def measure(
    names: tuple[str, ...],
    progress: Callable[[str], None] = lambda text: None,
) -> Record:
    """Plans of all candidates for some of `MODELS`."""
    found: Record = {}
    for name in names:
        model = MODELS[name]
        size = model.batch_size
        plans = {}
        for title, candidate in CANDIDATES.items():
            progress(f"{name}: {title}")
            plans[title] = plan(model, candidate, size)._asdict()
        found[name] = {
            "description": model.description,
            "batch": size,
            "piece": size // PIECES,
            "plans": plans,
        }
    return found

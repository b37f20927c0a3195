"""Steps on one GPU: seconds, the preconditioner's share, TF32, memory.

The data are made up, of the right shapes. Each part of the measurement runs in a
process of its own, so that its peak of memory is its own, and none can spend more than
its share of the time.
"""

import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from benchmarks.reports.records import Record
from benchmarks.scaling import measure as scaling
from benchmarks.scaling.measure import Spec
from benchmarks.scaling.models import MODELS, STOCHASTIC

BUDGET = 450.0  # seconds: with the start, less than eight minutes
ENDING = 10.0  # seconds in which a process ends after its last step
OPTIMIZERS = ("hessian_free", STOCHASTIC, "adam", "soap")
TF32 = "hessian_free_tf32"  # beside the first of them, on the autoencoder
TINY = {"mlp": "tiny", "transformer_512": "transformer_tiny", "resnet50": "resnet_tiny"}


class Part(NamedTuple):
    """One optimizer on one model."""

    model: str  # of `models.MODELS`
    optimizer: str  # of `models.OPTIMIZERS`
    batch: int  # examples
    steps: int = scaling.CYCLE  # that are timed
    least: float = 25.0  # it is skipped if fewer seconds are left
    most: float = 75.0  # seconds that it may take


def parts(small: bool = False) -> list[Part]:
    """What is measured, the most important parts of each model first."""
    found = [Part("mlp", name, 512) for name in OPTIMIZERS[1:]]
    for name in (TF32, OPTIMIZERS[0]):  # steps in which losses can come apart
        found.insert(0, Part("mlp", name, 4000, steps=50))
    found += [Part("transformer_512", name, 64) for name in OPTIMIZERS]
    for name in ("adam", *OPTIMIZERS[:2], "soap"):
        found.append(Part("resnet50", name, 512, least=45.0, most=180.0))
    if not small:
        return found
    return [p._replace(model=TINY[p.model], batch=64, steps=2) for p in found]


def backend() -> str:
    """What JAX computes on, asked in a process of its own: this one leaves it alone."""
    program = [sys.executable, "-c", "import jax; print(jax.default_backend())"]
    return subprocess.run(program, capture_output=True, text=True).stdout.strip()


def measure(
    wanted: Sequence[Part],
    budget: float = BUDGET,
    progress: Callable[[str], None] = lambda text: None,
) -> Record:
    """Measures parts one by one until the seconds of the budget are spent.

    Every part of the result has a status: measured, skipped or failed, and why.
    """
    start, found, machine = time.monotonic(), [], {}
    for part in wanted:
        model = MODELS[part.model]
        about = {"model": part.model, "description": model.description}
        about |= {"optimizer": part.optimizer, "batch": part.batch}
        spent = time.monotonic() - start
        progress(f"{spent:4.0f} s  {part.model}, {part.optimizer}")
        status, numbers = f"skipped: {max(budget - spent, 0):.0f} s were left", {}
        if budget - spent >= part.least:
            status, numbers = _measured(part, min(budget - spent, part.most))
            machine = numbers.pop("machine", machine)
        step = f"{1e3 * numbers['seconds']:.4g} ms a step" if numbers else status
        progress(f"        {step}")
        found.append(
            about | {"microbatch": model.microbatch, "status": status} | numbers
        )
    return {"machine": machine, "seconds": time.monotonic() - start, "parts": found}


def _measured(part: Part, limit: float) -> tuple[str, Record]:
    """The status of a part, and what was measured of it in so many seconds."""
    deadline = time.time() + limit - ENDING
    spec = Spec(*part[:3], 1, part.steps, deadline=deadline, share=True)
    try:
        numbers = scaling.run(spec, timeout=limit)
    except subprocess.TimeoutExpired:
        return f"failed: not done within {limit:.0f} s", {}
    except RuntimeError as error:
        memory = "RESOURCE_EXHAUSTED" in str(error)
        reason = "out of memory" if memory else str(error).splitlines()[-1]
        return f"failed: {reason}", {}
    return "measured", numbers

"""Weak and strong scaling of a training step, measured.

Each number of devices is measured in a process of its own (`worker`), as the number is
fixed when JAX starts. Three kinds of devices:

- those of an accelerator, as many as there are;
- fake ones, where JAX finds only a CPU. They share its cores, so that nothing can get
  faster: a check that everything works, and of what is sent around. It says so
  wherever it is shown;
- processes with one core each, which talk over the loopback interface.
"""

import itertools
import json
import math
import os
import pathlib
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

import ncg_optax as ncg
from benchmarks.measurements import preconditioners
from benchmarks.reports import records
from benchmarks.reports.records import Record
from benchmarks.scaling import communication, models
from benchmarks.scaling.communication import Collective

ROOT = pathlib.Path(__file__).parents[2]  # from where workers find this package
CYCLE = 10  # steps after which the work of every optimizer repeats
SETTLING = 20  # first steps of stochastic_hessian_free, which decompose more often
TIMEOUT = 3600.0
FUNCTIONAL = {
    "fake devices": "fake devices share the cores: a functional check, not a timing",
    "shared cores": "processes share a core: a functional check, not a timing",
}


class Spec(NamedTuple):
    """What a worker measures."""

    model: str  # of `models.MODELS`
    optimizer: str  # of `models.OPTIMIZERS`
    batch: int  # examples of all devices
    devices: int  # in the mesh, of all processes
    steps: int = CYCLE  # that are timed
    warmup: int = 5  # steps before them, at least
    processes: int = 1  # that the devices are spread over
    process: int = 0  # number of this one
    port: int = 0  # of process 0
    core: int | None = None  # that the process may use, or None for all
    deadline: float = math.inf  # of time.time(), after which no further step is begun
    share: bool = False  # whether to time the preconditioner's part of a step


def bytes_of_a_step(
    found: Iterable[Collective], weights: int, products: float, evaluations: float
) -> float:
    """Bytes that a step sends: each product and trial value, and all else once."""
    found = list(found)
    vectors = [c.bytes for c in found if c.elements == weights]
    numbers = [c.bytes for c in found if c.elements == 1]
    rest = sum(c.bytes for c in found) - sum(vectors) - sum(numbers)
    made = products * statistics.fmean(vectors) if vectors else 0
    return rest + made + (evaluations * statistics.fmean(numbers) if numbers else 0)


def steady(seconds: Sequence[float], cycle: int = CYCLE) -> float:
    """Seconds of a step whose work repeats: the mean over a cycle of the medians."""
    if len(seconds) < cycle:
        return statistics.fmean(seconds)
    positions = [seconds[start::cycle] for start in range(cycle)]
    return statistics.fmean(statistics.median(taken) for taken in positions)


def measure(spec: Spec) -> Record:
    """Compiles and times a step. Called in a worker, whose devices are set up."""
    model, devices = models.MODELS[spec.model], jax.devices()
    tx = models.OPTIMIZERS[spec.optimizer](model)
    if len(devices) < spec.devices:
        raise ValueError(
            f"devices: {spec.devices} are wanted, there are {len(devices)}."
        )
    mesh = jax.sharding.Mesh(np.array(devices[: spec.devices]), ("data",))
    step = ncg.make_train_step(
        model.composite(), tx, mesh, microbatch_size=model.microbatch
    )
    params = model.init(0)
    weights = sum(leaf.size for leaf in jax.tree.leaves(params))
    carry = ncg.parallel.replicate((params, jax.jit(tx.init)(params)), mesh)
    each = spec.batch // spec.processes
    mine = slice(spec.process * each, (spec.process + 1) * each)
    rows = jax.tree.map(lambda x: x[mine], model.batch(spec.batch))
    batch = ncg.parallel.shard_batch(rows, mesh)

    start = time.perf_counter()
    program = step.lower(*carry, batch).compile()
    compiling = time.perf_counter() - start
    timed = _timed(spec, tx, model.composite(), program, carry, batch)
    infos = [info for info in timed.pop("infos") if info is not None]

    def mean(name: str, otherwise: float) -> float:
        numbers = (float(getattr(info, name)) for info in infos)
        return statistics.fmean(numbers) if infos else otherwise

    # The program of one device has them, but nothing is sent.
    found = communication.collectives(program.as_text()) if spec.devices > 1 else []
    products, evaluations = mean("products", 0.0), mean("evaluations", 0.0)
    memory = jax.local_devices()[0].memory_stats() or {}
    return timed | {
        "machine": records.machine(),
        "backend": jax.default_backend(),
        "weights": weights,
        "compile_seconds": compiling,
        "seconds": steady(timed["all_seconds"]),
        "median_seconds": statistics.median(timed["all_seconds"]),
        "loss": timed["losses"][-1],
        "products": products,
        "evaluations": evaluations,
        "gradient_equivalents": mean("gradient_equivalents", 1.0),
        "peak_bytes": memory.get("peak_bytes_in_use"),
        "bytes": float(bytes_of_a_step(found, weights, products, evaluations)),
    }


def _timed(
    spec: Spec, tx: Any, loss: Any, program: Any, carry: Sequence[Any], batch: Any
) -> Record:
    """Seconds of steps and their measurements; the loss before each step of all."""
    own = None
    warmup = SETTLING if spec.optimizer == models.STOCHASTIC else spec.warmup
    settings = ncg.presets.DEFAULTS.get(spec.optimizer, {})
    if spec.share and settings.get("preconditioner"):
        own = preconditioners.parts(loss, tx, settings["preconditioner"])
    seconds, own_seconds, infos, losses = [], [], [], []
    for count in range(warmup + spec.steps):
        taken = 0.0
        if own:  # what the values of the gradient are does not matter to the clock
            taken, (_, prepared) = _clock(own[0], *carry, carry[0], batch)
        step_taken, (*carry, metrics) = _clock(program, *carry, batch, {})
        if own:
            info = metrics.info
            args = prepared, carry[0], info.damping, info.cg_iterations
            taken += _clock(own[1], *args)[0]
        losses.append(float(metrics.loss))
        late = time.time() > spec.deadline
        if count >= warmup or late:
            seconds.append(step_taken)
            own_seconds.append(taken)
            infos.append(metrics.info)
        if late:
            break
    complete = len(losses) == warmup + spec.steps
    share = sum(own_seconds) / sum(seconds) if own and complete else None
    found = {"all_seconds": seconds, "losses": losses, "infos": infos}
    return found | {"complete": complete, "preconditioner_share": share}


def _clock(function: Callable[..., Any], *args: Any) -> tuple[float, Any]:
    """The seconds of a call, and what it returns."""
    start = time.perf_counter()
    returned = jax.block_until_ready(function(*args))
    return time.perf_counter() - start, returned


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def run(spec: Spec, timeout: float = TIMEOUT) -> Record:
    """Measures in workers, one for each process, and returns what process 0 says.

    Raises:
        RuntimeError: if a worker fails, with the end of what it said.
    """
    spec = spec._replace(port=_free_port())
    pinned = spec.core is not None
    cores = sorted(os.sched_getaffinity(0)) if pinned else [None]
    program = [sys.executable, "-m", "benchmarks.scaling.worker"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    workers = []
    for index in range(spec.processes):
        own = spec._replace(process=index, core=cores[index % len(cores)])
        command = [*program, json.dumps(own._asdict())]
        workers.append(subprocess.Popen(command, cwd=ROOT, **pipes))
    try:
        said = [worker.communicate(timeout=timeout) for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    for worker, (_, errors) in zip(workers, said, strict=True):
        if worker.returncode:
            raise RuntimeError(f"a worker failed: {errors.strip()[-2000:]}")
    return json.loads(said[0][0].splitlines()[-1])


def kind_of(found: Record, processes: bool, cores: int) -> str:
    """What the devices of a point were, for its label."""
    if processes:
        return "processes" if found["devices"] <= cores else "shared cores"
    return "fake devices" if found["backend"] == "cpu" else "devices"


def sweep(
    model: str,
    runs: Sequence[tuple[str, int]],
    counts: Sequence[int],
    scalings: Sequence[str] = ("strong", "weak"),
    steps: int = CYCLE,
    processes: bool = False,
    progress: Callable[[str], None] = lambda text: None,
) -> list[Record]:
    """Measures pairs of an optimizer and a batch on every number of devices.

    The first number of devices is the reference. The batch is its own; it stays (strong
    scaling) or grows with the devices (weak).
    """
    for count, (_, batch) in itertools.product(counts, runs):
        if batch % count:
            raise ValueError(f"batch must be a multiple of {count}, got {batch}.")
    points: list[Record] = []
    for optimizer, batch in runs:
        known: dict[tuple[int, int], Record] = {}  # the reference serves both
        for scaling in scalings:
            reference = None
            for count in counts:
                rows = batch if scaling == "strong" else batch * count // counts[0]
                progress(f"{optimizer}, {scaling}, {count} x {rows // count}")
                if (count, rows) not in known:
                    spec = Spec(model, optimizer, rows, count, steps)
                    if processes:
                        spec = spec._replace(processes=count, core=0)
                    known[count, rows] = run(spec)
                point = {
                    "optimizer": optimizer,
                    "scaling": scaling,
                    "devices": count,
                    "batch": rows,
                    "reference_batch": batch,
                } | known[count, rows]
                point["kind"] = kind_of(point, processes, len(os.sched_getaffinity(0)))
                point["throughput"] = rows / point["seconds"]
                reference = reference or point
                point["speedup"] = point["throughput"] / reference["throughput"]
                point["efficiency"] = (
                    point["speedup"] * reference["devices"] / point["devices"]
                )
                points.append(point)
    return points


def labels(points: Sequence[Record]) -> list[str]:
    """What has to be said of points that are no timings."""
    kinds = dict.fromkeys(point["kind"] for point in points)
    return [FUNCTIONAL[kind] for kind in kinds if kind in FUNCTIONAL]


def summary(points: Sequence[Record]) -> list[Record]:
    """The points without the machine, which is the same for all."""
    dropped = {"machine", "backend"}
    return [{k: v for k, v in point.items() if k not in dropped} for point in points]

"""What a preconditioner takes of a step of `hessian_free`: seconds, products, memory.

Its share of the seconds is what a step takes longer than the same step without it, from
the same state, with as many iterations on the same examples. Its own work is its
`update` (products, means, eigenvectors) with its `prepare` (the inverses), once in each
step, and its `apply`, once in each iteration. Seconds are measured in one process over
the steps after which the work repeats: every step is repeated, the step, the one
without it and its parts taking turns, and the medians count.
"""

import dataclasses
import functools
import math
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import ncg_optax as ncg
from benchmarks.peers.newton import newton_step
from benchmarks.reports.records import Record
from benchmarks.reports.scaling import table
from benchmarks.scenarios import Scenario
from benchmarks.scenarios._base import Batch, Params
from benchmarks.training import cost
from ncg_optax.losses.objective import MappedLoss, as_objective

SHARE_TARGET = 0.25  # of the seconds of a step
# As many iterations with every preconditioner, as few as in the first steps of
# `hessian_free`: with more its share is less.
SOLVER = ncg.quasi_newton(ncg.cg(maxiter=4, rtol=0.0, forcing=None))
MEMORY_TARGET = 3.0  # in multiples of the parameters, beside the factors
# The matrices in the states of preconditioners; the rest is as large as the parameters.
FACTORS = {"gram", "basis", "vectors"}


class Candidate(NamedTuple):
    """A preconditioner, and the number of steps after which its work repeats."""

    make: Callable[[], ncg.preconditioners.Preconditioner]
    cycle: int


CANDIDATES: dict[str, Candidate] = {
    "none": Candidate(ncg.identity, 1),
    "jacobi": Candidate(ncg.jacobi, 5),
    "nystrom": Candidate(lambda: ncg.nystrom(30), 20),
    "compose": Candidate(
        lambda: ncg.compose(ncg.jacobi(), ncg.nystrom(30, refresh=10)), 10
    ),
    # As in a long run: at first the factors of the default are due more often.
    "kronecker": Candidate(lambda: ncg.kronecker(refresh=10), 10),
}


class Cost(NamedTuple):
    """Means over the steps of a cycle. A unit is a gradient, as XLA counts it."""

    step_seconds: float  # of the whole step, its gradient included
    bare_seconds: float  # of the same step without a preconditioner
    # of the preconditioner's update and prepare, as a program of their own. An upper
    # bound: the step linearises once for solver and preconditioner where both see the
    # same examples, and it has no call of its own.
    update_seconds: float
    apply_seconds: float  # of all its applications, likewise
    iterations: float  # of the solver
    products: float  # of the preconditioner, in units of those with the whole batch
    product_units: float  # what these cost
    step_units: float  # of the step, without the work on the factors

    @property
    def share(self) -> float:
        """Of the preconditioner, in the seconds of a step."""
        return 1 - self.bare_seconds / self.step_seconds


class Memory(NamedTuple):
    """Of the compiled step, in multiples of the bytes of the parameters."""

    arguments: float  # parameters, state and data
    outputs: float  # new parameters and state; none of the arguments is donated
    temporary: float  # what XLA plans for everything in between
    state: float  # of the optimizer
    factors: float  # of this, the matrices of the preconditioner
    # state and temporary arrays, less those of a step without a preconditioner
    beyond_none: float = 0.0

    @property
    def beside_factors(self) -> float:
        """What the preconditioner adds to a step, its matrices apart."""
        return self.beyond_none - self.factors


class Measured(NamedTuple):
    """What was measured of one preconditioner."""

    cost: Cost
    memory: Memory


class _Counted(NamedTuple):
    inner: Any
    products: jax.Array


class _Program(NamedTuple):
    """The step of a trainer, and the parts of it that are the preconditioner's."""

    step: Any  # ``step(params, state, data) -> (params, state)``, an executable
    bare: Any  # the same without a preconditioner, from the same state
    # of (params, state, grads, data): its state, and what it prepares for the solve
    update: Callable[..., tuple[_Counted, Any]]
    apply: Callable[..., Params]  # of (what is prepared, r, damping, times)


class _Step(NamedTuple):
    # of the step, the bare one, the update, the applications
    seconds: tuple[float, ...]
    info: ncg.step.NewtonCGInfo
    products: float


def measure(
    scenario: Scenario,
    data: Batch,
    repeats: int = 5,
    progress: Callable[[str], None] = lambda name: None,
) -> dict[str, Measured]:
    """Measures `CANDIDATES` on the full batch; ``progress`` gets the name of each."""
    params = scenario.init(0)
    prices = cost.measure(scenario, data, "gauss_newton")
    measured: dict[str, Measured] = {}
    for name, candidate in CANDIDATES.items():
        progress(name)
        preconditioner = Counting(candidate.make())
        tx = ncg.hessian_free(preconditioner=preconditioner, solver=SOLVER)
        state = jax.jit(tx.init)(params)
        start = params, state, data
        program = _compile(scenario, tx, preconditioner, *start)
        steps = _cycle(program, candidate.cycle, scenario, start, repeats)
        memory = _memory(program.step, params, state)
        none = measured["none"].memory if measured else memory
        added = memory.state + memory.temporary - none.state - none.temporary
        measured[name] = Measured(
            _cost(steps, prices), memory._replace(beyond_none=added)
        )
    return measured


@dataclasses.dataclass(frozen=True)
class Counting(ncg.preconditioners.Preconditioner):
    """A preconditioner, with the products of its last update in its state."""

    inner: ncg.preconditioners.Preconditioner

    @property
    def fraction(self) -> float:
        return self.inner.fraction

    def init(self, params: Params) -> _Counted:
        return _Counted(self.inner.init(params), jnp.zeros(()))

    def update(self, state: _Counted, product: Any, *args: Any) -> tuple[_Counted, Any]:
        following, products = self.inner.update(state.inner, product, *args)
        share = getattr(product, "share", 1.0)
        return _Counted(following, jnp.asarray(products * share, float)), products

    def over(self, axes: tuple[str, ...]) -> "Counting":
        return Counting(self.inner.over(axes))

    def prepare(self, state: _Counted, damping: jax.Array) -> Any:
        return self.inner.prepare(state.inner, damping)

    def apply(self, state: Any, r: Params, damping: jax.Array) -> Params:
        return self.inner.apply(state, r, damping)


def _compile(
    scenario: Scenario,
    tx: optax.GradientTransformationExtraArgs,
    preconditioner: ncg.preconditioners.Preconditioner,
    *args: Any,
) -> _Program:
    """The programs for parameters, state and data."""
    loss = ncg.CompositeLoss(scenario.model, scenario.loss)
    executable = jax.jit(newton_step(scenario, tx)).lower(*args).compile()
    without = newton_step(
        scenario, ncg.hessian_free(preconditioner=None, solver=SOLVER)
    )

    def bare(params: Params, state: Any, data: Batch) -> tuple[Params, Any]:
        state = state[0]._replace(preconditioner=()), *state[1:]
        return without(params, state, data)

    return _Program(executable, jax.jit(bare), *parts(loss, tx, preconditioner))


def parts(
    loss: ncg.CompositeLoss,
    tx: optax.GradientTransformationExtraArgs,
    preconditioner: ncg.preconditioners.Preconditioner,
) -> tuple[Any, Any]:
    """The parts of a step that are the preconditioner's: its update, applications.

    Two jitted functions: ``update(params, state, grads, data)`` returns the state of
    the preconditioner and what it prepares for its applications, and ``apply(prepared,
    r, damping, times)`` applies it repeatedly.
    """

    def update(
        params: Params, state: Any, grads: Params, data: Batch
    ) -> tuple[Any, Any]:
        # XLA drops everything that the preconditioner does not need: the solve and the
        # line search; and the loss, as it is said to be known.
        known = as_objective(loss, data)._replace(reduced_value=jnp.zeros(()))
        _, state = tx.update(grads, state, params, value_fn=MappedLoss(known))
        own = optax.tree.get(state, "preconditioner")
        return own, preconditioner.prepare(own, ncg.get_info(state).damping)

    def apply(prepared: Any, r: Params, damping: Any, times: Any) -> Params:
        return jax.lax.fori_loop(
            0, times, lambda _, r: preconditioner.apply(prepared, r, damping), r
        )

    return jax.jit(update), jax.jit(apply)


def _cycle(
    program: _Program, cycle: int, scenario: Scenario, start: tuple, repeats: int
) -> list[_Step]:
    """The second cycle of a training: the first step of all does more than others."""
    gradient = jax.jit(lambda p, d: jax.grad(scenario.value)(p, **d))
    params, state, data = start
    for _ in range(cycle):
        params, state = program.step(params, state, data)
    steps = []
    for _ in range(cycle):
        grads = gradient(params, data)
        following, new_state = program.step(params, state, data)
        info = ncg.get_info(new_state)
        own, prepared = program.update(params, state, grads, data)
        args = prepared, grads, info.damping, info.cg_iterations
        calls = (
            functools.partial(program.step, params, state, data),
            functools.partial(program.bare, params, state, data),
            functools.partial(program.update, params, state, grads, data),
            functools.partial(program.apply, *args),
        )
        seconds = _medians(calls, repeats)
        steps.append(_Step(seconds, info, float(own.products)))
        params, state = following, new_state
    return steps


def _medians(calls: tuple[Callable[[], Any], ...], repeats: int) -> tuple[float, ...]:
    """Seconds of each call, all of them taking turns."""
    for call in calls:
        jax.block_until_ready(call())  # compiles, and starts threads
    rounds = []
    for _ in range(repeats):
        taken = []
        for call in calls:
            start = time.perf_counter()
            jax.block_until_ready(call())
            taken.append(time.perf_counter() - start)
        rounds.append(taken)
    return tuple(map(statistics.median, zip(*rounds, strict=True)))


def _cost(steps: list[_Step], prices: cost.CostModel) -> Cost:
    def mean(pick: Callable[[_Step], Any]) -> float:
        return statistics.fmean(float(pick(step)) for step in steps)

    seconds = (mean(lambda step, part=part: step.seconds[part]) for part in range(4))
    iterations = mean(lambda step: step.info.cg_iterations)
    products = mean(lambda step: step.products)
    units = prices.price(
        mean(lambda step: step.info.batch_products),
        mean(lambda step: step.info.batch_evaluations),
    )
    return Cost(*seconds, iterations, products, products * prices.product, units)


def _memory(executable: Any, params: Params, state: optax.OptState) -> Memory:
    planned, unit = executable.memory_analysis(), bytes_of(params)
    names = ("argument", "output", "temp")
    sizes = (getattr(planned, f"{name}_size_in_bytes") / unit for name in names)
    matrices = [
        leaf
        for path, leaf in jax.tree.leaves_with_path(state)
        if FACTORS & {getattr(key, "name", None) for key in path}
    ]
    return Memory(*sizes, bytes_of(state) / unit, bytes_of(matrices) / unit)


def bytes_of(tree: Any) -> int:
    """All arrays of a tree."""
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))


def as_record(measured: dict[str, Measured]) -> Record:
    """The measurements and what follows from them, as plain numbers."""
    return {
        name: {
            "cost": cost._asdict() | {"share": cost.share},
            "memory": memory._asdict() | {"beside_factors": memory.beside_factors},
        }
        for name, (cost, memory) in measured.items()
    }


def tables(title: str, measured: dict[str, Measured]) -> str:
    """Cost and memory in Markdown; what misses its target is bold."""
    targets = {"share": SHARE_TARGET, "beside_factors": MEMORY_TARGET}

    def cell(name: str, value: float) -> str:
        missed = value >= targets.get(name, math.inf)
        return f"**{value:.3g}**" if missed else f"{value:.3g}"

    parts = [f"{title}. Units are gradients, memory is in multiples of the parameters."]
    for part in ("cost", "memory"):
        found = {name: record[part] for name, record in as_record(measured).items()}
        rows = ((name, *map(cell, r, r.values())) for name, r in found.items())
        parts.append(table(("preconditioner", *found["none"]), rows))
    goals = (f"{name} below {target:g}" for name, target in targets.items())
    return "\n\n".join([*parts, f"Targets: {', '.join(goals)}."])

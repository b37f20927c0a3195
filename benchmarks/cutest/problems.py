"""The problems: read from `sif2jax`, compiled, and left out where they cannot run."""

import dataclasses
import importlib
import importlib.util
import math
import sys
import types
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from benchmarks.commands.options import one_of
from benchmarks.cutest.collections import Collection


@dataclasses.dataclass(frozen=True)
class Settings:
    """What all runs of one file share."""

    gtol: float = 1e-6
    maxiter: int = 10_000
    time_limit: float = 10.0


@dataclasses.dataclass(frozen=True)
class Problem:
    """One problem, with its compiled functions of a flat float64 vector."""

    name: str
    objective: Callable[[Any], jax.Array]
    start: Any
    value_and_grad: Callable[[np.ndarray], tuple[float, np.ndarray]]
    product: Callable[[np.ndarray, np.ndarray], np.ndarray]
    low: Any = None  # bounds in the structure of the start, or None
    high: Any = None

    @property
    def x0(self) -> np.ndarray:
        return flat(self.start)

    @property
    def bounds(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Lower and upper bounds as vectors."""
        return None if self.low is None else (flat(self.low), flat(self.high))

    def gradient_norm(self, x: np.ndarray, gradient: np.ndarray) -> float:
        """The largest entry of the gradient, or of ``x - P(x - gradient)``."""
        if self.bounds is None:
            return max_norm(gradient)
        return max_norm(x - np.clip(x - gradient, *self.bounds))


def flat(tree: Any) -> np.ndarray:
    """Returns the leaves of a pytree as one float64 vector."""
    return np.asarray(ravel_pytree(tree)[0], np.float64)


def import_problems(kind: str) -> list[Any]:
    """Imports the "unconstrained" or the "bounded" problems of sif2jax, in seconds.

    The import of all of sif2jax takes more than a minute, which a constrained problem
    spends on filling a matrix entry by entry. So bare packages stand in for ``sif2jax``
    and ``sif2jax.cutest`` while the one package that is needed is imported. Call this
    after x64 is on: some constants are made at import.
    """
    package = f"sif2jax.cutest._{kind}_minimisation"
    if package not in sys.modules and "sif2jax" not in sys.modules:
        root = importlib.util.find_spec("sif2jax").submodule_search_locations[0]
        for name, folder in {
            "sif2jax": root,
            "sif2jax.cutest": f"{root}/cutest",
        }.items():
            sys.modules[name] = types.ModuleType(name)
            sys.modules[name].__path__ = [folder]
        try:
            importlib.import_module(package)
        finally:
            del sys.modules["sif2jax"], sys.modules["sif2jax.cutest"]
    if package not in sys.modules:
        importlib.import_module(package)
    return list(getattr(sys.modules[package], f"{kind}_minimisation_problems"))


def select_problems(
    collection: Collection, max_variables: int, names: Iterable[str] = ()
) -> dict[str, Any]:
    """Returns the problems of a collection by name: those named, or all.

    Raises:
        UsageError: If a name is unknown.
    """
    problems = {p.name: p for p in import_problems(collection.package)}
    if names:
        return {one_of(name, problems, "problem"): problems[name] for name in names}
    return {
        name: problem
        for name, problem in problems.items()
        if collection.least <= flat(problem.y0).size <= max_variables
    }


def load(name: str, problem: Any) -> Problem:
    """Compiles the value with its gradient, and the Hessian product, of a problem."""
    y0 = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), problem.y0)
    vector, unravel = ravel_pytree(y0)
    low, high = None, None
    if getattr(problem, "bounds", None) is not None:
        low, high = (
            jax.tree.map(
                lambda bound, leaf: jnp.broadcast_to(
                    jnp.asarray(bound, jnp.float64), leaf.shape
                ),
                side,
                y0,
            )
            for side in problem.bounds
        )
        y0 = jax.tree.map(jnp.clip, y0, low, high)
        vector = ravel_pytree(y0)[0]

    def objective(y):
        return jnp.asarray(problem.objective(y, problem.args)).reshape(())

    def of_vector(x):
        return objective(unravel(x))

    grad = jax.grad(of_vector)

    def product(x, v):
        return jax.jvp(grad, (x,), (v,))[1]

    value_and_grad_fn = jax.jit(jax.value_and_grad(of_vector)).lower(vector).compile()
    product_fn = jax.jit(product).lower(vector, vector).compile()

    def value_and_grad(x):
        value, gradient = value_and_grad_fn(x)
        return float(value), np.array(gradient)

    def hessian_product(x, v):
        return np.array(product_fn(x, v))

    return Problem(name, objective, y0, value_and_grad, hessian_product, low, high)


def max_norm(vector: np.ndarray) -> float:
    """Returns the largest absolute entry; nan if there is a nan."""
    return float(np.max(np.abs(vector)))


def why_excluded(problem: Problem, settings: Settings) -> str | None:
    """Returns the reason why a problem cannot be run, or None if it can."""
    value, gradient = problem.value_and_grad(problem.x0)
    if not math.isfinite(value):
        return f"the value at the start is {value}"
    if not np.all(np.isfinite(gradient)):
        return "the gradient at the start is not finite"
    if not np.all(np.isfinite(problem.product(problem.x0, gradient))):
        return "the Hessian product at the start is not finite"
    norm = problem.gradient_norm(problem.x0, gradient)
    if norm <= settings.gtol:
        return f"the gradient at the start is already {norm:.1e}"
    return None

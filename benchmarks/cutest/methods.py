"""The methods: each run on a problem, with its work counted."""

import dataclasses
import functools
import math
import time
import warnings
from typing import Any

import jax
import numpy as np
import scipy.optimize
import threadpoolctl

import ncg_optax
from benchmarks.cutest import jax_methods
from benchmarks.cutest.collections import OURS
from benchmarks.cutest.problems import Problem, Settings, flat, max_norm

SCIPY = {
    "newton-cg": {"xtol": 0.0},
    "trust-ncg": {"gtol": 0.0},
    "trust-krylov": {"gtol": 0.0},
    "l-bfgs-b": {"gtol": 0.0, "ftol": 0.0, "maxfun": 10**9},
    "tnc": {"gtol": 0.0, "ftol": 0.0, "xtol": 0.0, "maxfun": 10**9},
}
WITH_BOUNDS = ("l-bfgs-b", "tnc")  # of scipy's
LARGEST_HESSIAN = 100
COSTS = {"gradients": 1.0, "values": 1 / 3, "products": 1.5}


@dataclasses.dataclass
class Outcome:
    """Where a method ended and what it spent. ``seconds`` leaves out compilation."""

    point: np.ndarray
    status: str
    iterations: int
    gradients: int | None
    values: int | None
    products: int
    gradient_equivalents: float
    seconds: float


class TimeLimitError(Exception):
    """A run took longer than its time limit."""


class SolvedError(Exception):
    """A method without a callback has evaluated a point that counts as solved."""


class Counter:
    """The functions of a problem, with a count of calls; the clock starts here."""

    def __init__(self, problem: Problem, settings: Settings):
        self._problem = problem
        self._gtol = settings.gtol
        self._start = time.perf_counter()
        self._deadline = self._start + settings.time_limit
        self._at = functools.lru_cache(maxsize=8)(self._evaluate)
        self._values: set[bytes] = set()
        self._gradients: set[bytes] = set()
        self.solved = False
        self.point = problem.x0
        self.iterations = 0
        self.products = 0

    def _evaluate(self, key: bytes) -> tuple[float, np.ndarray]:
        return self._problem.value_and_grad(np.frombuffer(key))

    def _key(self, x: np.ndarray) -> bytes:
        self._check_time()
        return np.asarray(x, np.float64).tobytes()

    def _check_time(self) -> None:
        if time.perf_counter() > self._deadline:
            raise TimeLimitError

    def value(self, x: np.ndarray) -> float:
        self._values.add(key := self._key(x))
        return self._at(key)[0]

    def gradient(self, x: np.ndarray) -> np.ndarray:
        self._gradients.add(key := self._key(x))
        gradient = self._at(key)[1].copy()
        if self._problem.bounds is not None:
            self._note(np.array(x), gradient)
        return gradient

    def _note(self, x: np.ndarray, gradient: np.ndarray) -> None:
        """Ends a run with bounds at the first point that counts as solved."""
        self.point = x
        if self._problem.gradient_norm(x, gradient) <= self._gtol:
            self.solved = True
            raise SolvedError

    def product(self, x: np.ndarray, v: np.ndarray) -> np.ndarray:
        self._check_time()
        self.products += 1
        return self._problem.product(x, v)

    def callback(self, intermediate_result: scipy.optimize.OptimizeResult) -> None:
        """Takes note of an iterate; ends the run if it counts as solved."""
        self.iterations += 1
        self.point = np.array(intermediate_result.x, np.float64)
        self.solved = max_norm(self.gradient(self.point)) <= self._gtol
        if self.solved:
            raise StopIteration

    def outcome(self, status: str) -> Outcome:
        """Returns the last iterate and the counts so far."""
        counts = {
            "gradients": len(self._gradients),
            "values": len(self._values - self._gradients),
            "products": self.products,
        }
        return Outcome(
            point=self.point,
            status=status,
            iterations=self.iterations,
            gradient_equivalents=cost(**counts),
            seconds=time.perf_counter() - self._start,
            **counts,
        )


def cost(**counts: int) -> float:
    """Returns the gradient-equivalents of gradients, extra values and products."""
    return float(sum(COSTS[name] * count for name, count in counts.items()))


def run_scipy(problem: Problem, method: str, settings: Settings) -> Outcome:
    """Runs one of scipy's methods on a problem."""
    counter = Counter(problem, settings)
    options = dict(SCIPY[method])
    more: dict[str, Any] = {}
    if method != "tnc":
        options["maxiter"] = 10**9
    if method not in WITH_BOUNDS:
        more["hessp"] = counter.product
    if problem.bounds is None:
        more["callback"] = counter.callback
    else:
        more["bounds"] = np.stack(problem.bounds, axis=1)
    try:
        with (
            warnings.catch_warnings(),
            np.errstate(all="ignore"),
            threadpoolctl.threadpool_limits(1, user_api="blas"),
        ):
            warnings.simplefilter("ignore")
            result = scipy.optimize.minimize(
                counter.value,
                problem.x0,
                jac=counter.gradient,
                method=method,
                options=options,
                **more,
            )
        status = "gradient below gtol" if counter.solved else str(result.message)
    except SolvedError:
        status = "gradient below gtol"
    except TimeLimitError:
        status = "time limit"
    except (ArithmeticError, ValueError, np.linalg.LinAlgError) as error:
        status = f"{type(error).__name__}: {error}"
    return counter.outcome(status)


def run_ours(problem: Problem, settings: Settings) -> Outcome:
    """Runs ``ncg_optax.minimize`` with its default method on a problem."""
    bounds = None if problem.low is None else (problem.low, problem.high)

    def solve(maxiter, seconds):
        return ncg_optax.minimize(
            problem.objective,
            problem.start,
            bounds=bounds,
            maxiter=maxiter,
            gtol=settings.gtol,
            max_seconds=seconds,
            every=20,
        )

    jax.block_until_ready(solve(1, 3600.0))  # compiles
    started = time.perf_counter()
    params, _, result = jax.block_until_ready(
        solve(settings.maxiter, settings.time_limit)
    )
    return _outcome(params, result, time.perf_counter() - started)


def _outcome(params: Any, result: Any, seconds: float) -> Outcome:
    """What ``minimize`` reports."""
    return Outcome(
        point=flat(params),
        status=ncg_optax.explain(int(result.status)),
        iterations=int(result.iterations),
        gradients=None,
        values=int(result.evaluations),
        products=int(result.products),
        gradient_equivalents=float(result.gradient_equivalents),
        seconds=seconds,
    )


def run_in_jax(problem: Problem, method: str, settings: Settings) -> Outcome:
    """Runs optax's L-BFGS or optimistix's BFGS on a problem."""
    ended, status, seconds = jax_methods.run(problem, method, settings)
    counts = {"gradients": int(ended.gradients), "values": int(ended.values)}
    return Outcome(
        point=flat(ended.point),
        status=status,
        iterations=int(ended.iterations),
        products=0,
        gradient_equivalents=cost(**counts),
        seconds=seconds,
        **counts,
    )


def eigenvalues(problem: Problem, x: np.ndarray) -> tuple[float, float]:
    """Returns the lowest and the largest absolute eigenvalue of the Hessian at x.

    NaN for many variables, where it is not computed, and with bounds, where it says
    little.
    """
    if x.size > LARGEST_HESSIAN or problem.bounds is not None:
        return math.nan, math.nan
    hessian = np.array([problem.product(x, e) for e in np.eye(x.size)])
    if not np.all(np.isfinite(hessian)):
        return math.nan, math.nan
    spectrum = np.linalg.eigvalsh((hessian + hessian.T) / 2)
    return float(spectrum[0]), max_norm(spectrum)


def run_one(problem: Problem, method: str, settings: Settings) -> dict[str, Any]:
    """Runs a method on a problem and returns the entry for the file.

    It holds the counts of `Outcome`, and the value, the max norm of the gradient and
    the extreme eigenvalues of the Hessian where the method ended, computed afresh.
    Numbers that are not finite become None.
    """
    if method == OURS:
        outcome = run_ours(problem, settings)
    elif method in jax_methods.METHODS:
        outcome = run_in_jax(problem, method, settings)
    else:
        outcome = run_scipy(problem, method, settings)
    value, gradient = problem.value_and_grad(outcome.point)
    norm = problem.gradient_norm(outcome.point, gradient)
    lowest, largest = eigenvalues(problem, outcome.point)
    counts = dataclasses.asdict(outcome)
    del counts["point"]
    numbers = {
        "value": value,
        "gradient_norm": norm,
        "lowest_eigenvalue": lowest,
        "largest_eigenvalue": largest,
    }
    return {
        "problem": problem.name,
        "method": method,
        "variables": outcome.point.size,
        "solved": norm <= settings.gtol,
        **{k: v if math.isfinite(v) else None for k, v in numbers.items()},
        **counts,
    }

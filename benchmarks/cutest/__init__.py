"""The small unconstrained CUTEst problems: scipy's Newton methods against ours.

The problems are those of ``sif2jax`` with at most 100 variables, in float64. A problem
is *solved* if the largest absolute entry of the gradient, computed afresh at the point
that a method returns, is at most ``gtol`` (1e-6).

Cost is counted in gradient-equivalents: 1 per gradient, 1/3 per extra value and 1.5 per
Hessian product. The value at a point where the gradient is also asked for is part of
that gradient, and asking twice at one point costs once, so scipy is charged for what
its algorithms need and not for the way its code asks.

scipy's settings: all defaults, except that its own stopping rules are made too tight to
matter and the iteration limits too high. A callback stops every method at the first
iterate that counts as solved, so none pays for polishing. A run beyond ``time_limit``
seconds (compilation apart) is unsolved. BLAS gets one thread: with more, its threads
cost L-BFGS-B a factor of ten on vectors as short as these.

Ours has ``maxiter`` and the same time limit. It reports its own count, at the same
prices but a little stricter: a trial value that is accepted costs its third beside the
gradient there, and the search for negative curvature before convergence is claimed
costs its products.

Problems are excluded, with the reason, if the value, the gradient or a Hessian product
along the gradient is not finite at the start, or if the start already counts as solved.

    python -m benchmarks.cutest run --resume
    python -m benchmarks.cutest table results/cutest.json [--readme README.md]
    python -m benchmarks.cutest plot results/cutest.json
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import importlib.metadata
import importlib.util
import json
import math
import pathlib
import statistics
import sys
import tempfile
import time
import types
import warnings
from collections.abc import Callable, Iterable
from typing import Annotated, Any

import jax
import jax.experimental
import jax.numpy as jnp
import numpy as np
import optax
import rich.console
import rich.progress
import rich.table
import scipy.optimize
import threadpoolctl
import typer
from jax.flatten_util import ravel_pytree

import ncg_optax
from benchmarks.reports import records
from benchmarks.reports import tables as report

OURS = "ours"
SCIPY = {
    "newton-cg": {"xtol": 0.0},
    "trust-ncg": {"gtol": 0.0},
    "trust-krylov": {"gtol": 0.0},
    "l-bfgs-b": {"gtol": 0.0, "ftol": 0.0, "maxfun": 10**9},
}
METHODS = (OURS, *SCIPY)
MARKS = ("<!-- cutest-table:begin -->", "<!-- cutest-table:end -->")
COSTS = {"gradients": 1.0, "values": 1 / 3, "products": 1.5}


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

    @property
    def x0(self) -> np.ndarray:
        return flat(self.start)


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


def flat(tree: Any) -> np.ndarray:
    """Returns the leaves of a pytree as one float64 vector."""
    return np.asarray(ravel_pytree(tree)[0], np.float64)


def unconstrained_problems() -> list[Any]:
    """Imports the unconstrained problems of sif2jax, in three seconds.

    The import of all of sif2jax takes more than a minute, which a constrained problem
    spends on filling a matrix entry by entry. So bare packages stand in for ``sif2jax``
    and ``sif2jax.cutest`` while the one package that is needed is imported. Call this
    after x64 is on: some constants are made at import.
    """
    package = "sif2jax.cutest._unconstrained_minimisation"
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
    return list(sys.modules[package].unconstrained_minimisation_problems)


def select_problems(max_variables: int, names: Iterable[str] = ()) -> dict[str, Any]:
    """Returns the problems of sif2jax by name.

    Args:
        max_variables: Larger problems are left out, unless they are named.
        names: The problems to take; all if empty.

    Raises:
        typer.BadParameter: If a name is unknown.
    """
    problems = {p.name: p for p in unconstrained_problems()}
    if unknown := set(names) - set(problems):
        raise typer.BadParameter(f"no such problem: {', '.join(sorted(unknown))}")
    if names:
        return {name: problems[name] for name in names}
    return {k: p for k, p in problems.items() if flat(p.y0).size <= max_variables}


def load(name: str, problem: Any) -> Problem:
    """Compiles the value with its gradient, and the Hessian product, of a problem."""
    y0 = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), problem.y0)
    vector, unravel = ravel_pytree(y0)

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

    return Problem(
        name,
        objective,
        y0,
        value_and_grad,
        lambda x, v: np.array(product_fn(x, v)),
    )


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
    if max_norm(gradient) <= settings.gtol:
        return f"the gradient at the start is already {max_norm(gradient):.1e}"
    return None


class Counter:
    """The functions of a problem, counting what is asked of them.

    Args:
        problem: The problem.
        settings: Tolerance and time limit; the clock starts here.
    """

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

    def _check_time(self) -> None:
        if time.perf_counter() > self._deadline:
            raise TimeLimitError

    def value(self, x: np.ndarray) -> float:
        self._check_time()
        key = np.asarray(x, np.float64).tobytes()
        self._values.add(key)
        return self._at(key)[0]

    def gradient(self, x: np.ndarray) -> np.ndarray:
        self._check_time()
        key = np.asarray(x, np.float64).tobytes()
        self._gradients.add(key)
        return self._at(key)[1].copy()

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
    """Returns the gradient-equivalents of gradients, extra values and products.

    >>> cost(gradients=2, values=3, products=2)
    6.0
    """
    return float(sum(COSTS[name] * count for name, count in counts.items()))


def run_scipy(problem: Problem, method: str, settings: Settings) -> Outcome:
    """Runs one of scipy's methods on a problem."""
    counter = Counter(problem, settings)
    options = {"maxiter": 10**9} | SCIPY[method]
    hessp = {} if method == "l-bfgs-b" else {"hessp": counter.product}
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
                callback=counter.callback,
                options=options,
                **hessp,
            )
        status = "gradient below gtol" if counter.solved else str(result.message)
    except TimeLimitError:
        status = "time limit"
    except (ArithmeticError, ValueError, np.linalg.LinAlgError) as error:
        status = f"{type(error).__name__}: {error}"
    return counter.outcome(status)


def stopped_when(
    optimizer: optax.GradientTransformationExtraArgs, is_over: Callable[[], bool]
) -> optax.GradientTransformationExtraArgs:
    """Returns the optimizer, standing still once ``is_over()``, asked at each update.

    `ncg_optax.minimize` gives up after some updates without progress, so this is a way
    to end it from outside.
    """

    def update(grads, state, params=None, **extra):
        updates, state = optimizer.update(grads, state, params, **extra)
        shape = jax.ShapeDtypeStruct((), bool)
        over = jax.experimental.io_callback(lambda: np.bool_(is_over()), shape)
        updates = jax.tree.map(lambda u: jnp.where(over, jnp.zeros_like(u), u), updates)
        return updates, state

    return optax.GradientTransformationExtraArgs(optimizer.init, update)


def run_ours(problem: Problem, settings: Settings) -> Outcome:
    """Runs ``ncg_optax.minimize`` with its default optimizer on a problem."""
    started = math.inf

    def is_over():
        return time.perf_counter() - started > settings.time_limit

    def solve(params):
        return ncg_optax.minimize(
            problem.objective,
            params,
            optimizer=stopped_when(ncg_optax.newton_cg(), is_over),
            maxiter=settings.maxiter,
            gtol=settings.gtol,
        )

    compiled = jax.jit(solve).lower(problem.start).compile()
    started = time.perf_counter()
    params, _, result = jax.block_until_ready(compiled(problem.start))
    return Outcome(
        point=flat(params),
        status="time limit" if is_over() else ncg_optax.explain(int(result.status)),
        iterations=int(result.iterations),
        gradients=None,
        values=int(result.evaluations),
        products=int(result.products),
        gradient_equivalents=float(result.gradient_equivalents),
        seconds=time.perf_counter() - started,
    )


def eigenvalues(problem: Problem, x: np.ndarray) -> tuple[float, float]:
    """Returns the lowest and the largest absolute eigenvalue of the Hessian at x."""
    hessian = np.array([problem.product(x, e) for e in np.eye(x.size)])
    if not np.all(np.isfinite(hessian)):
        return math.nan, math.nan
    spectrum = np.linalg.eigvalsh((hessian + hessian.T) / 2)
    return float(spectrum[0]), max_norm(spectrum)


def run_one(problem: Problem, method: str, settings: Settings) -> dict[str, Any]:
    """Runs one method on one problem.

    Args:
        problem: From `load`.
        method: One of `METHODS`.
        settings: Tolerance and limits.

    Returns:
        What goes into the file: the counts of `Outcome`, and the value, the max norm of
        the gradient and the extreme eigenvalues of the Hessian where the method ended,
        computed afresh. Numbers that are not finite become None.
    """
    if method == OURS:
        outcome = run_ours(problem, settings)
    else:
        outcome = run_scipy(problem, method, settings)
    value, gradient = problem.value_and_grad(outcome.point)
    lowest, largest = eigenvalues(problem, outcome.point)
    counts = dataclasses.asdict(outcome)
    del counts["point"]
    numbers = {
        "value": value,
        "gradient_norm": max_norm(gradient),
        "lowest_eigenvalue": lowest,
        "largest_eigenvalue": largest,
    }
    return {
        "problem": problem.name,
        "method": method,
        "variables": outcome.point.size,
        "solved": max_norm(gradient) <= settings.gtol,
        **{k: v if math.isfinite(v) else None for k, v in numbers.items()},
        **counts,
    }


def header(command: str, settings: Settings) -> dict[str, Any]:
    """Returns a results file without results."""
    return {
        "command": command,
        "settings": dataclasses.asdict(settings),
        "versions": records.versions()
        | {name: importlib.metadata.version(name) for name in ("scipy", "sif2jax")},
        "machine": records.machine(),
        "excluded": {},
        "runs": [],
    }


def write(path: pathlib.Path, results: dict[str, Any]) -> None:
    """Writes the results so that a stop at any time leaves a whole file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".part")
    temporary.write_text(json.dumps(results, indent=1) + "\n")
    temporary.replace(path)


def read(path: pathlib.Path) -> dict[str, Any]:
    """Reads a results file.

    Raises:
        typer.BadParameter: If it is not one.
    """
    try:
        results = json.loads(path.read_text())
        results["runs"], results["excluded"], results["settings"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise typer.BadParameter(f"{path} is not a file that run wrote") from error
    return results


def by_method(results: dict[str, Any]) -> dict[str, dict[str, dict[str, Any]]]:
    """Returns the runs as ``{method: {problem: run}}``, in the order of `METHODS`."""
    runs: dict[str, dict[str, dict[str, Any]]] = {m: {} for m in METHODS}
    for run in results["runs"]:
        runs[run["method"]][run["problem"]] = run
    return {method: found for method, found in runs.items() if found}


def solved_costs(runs: dict[str, dict[str, Any]]) -> dict[str, float]:
    """Returns the gradient-equivalents by problem, of the solved ones only."""
    return {k: r["gradient_equivalents"] for k, r in runs.items() if r["solved"]}


def ends_at_saddle(run: dict[str, Any]) -> bool:
    """Tells whether the Hessian is clearly indefinite where a solved run ended."""
    lowest, largest = run["lowest_eigenvalue"], run["largest_eigenvalue"]
    return run["solved"] and lowest is not None and lowest < -1e-6 * max(largest, 1e-30)


def compare(costs: dict[str, float], reference: dict[str, float]) -> dict[str, Any]:
    """Compares a method with a reference.

    Args:
        costs: Gradient-equivalents by problem, of the problems the method solves.
        reference: The same of the reference.

    Returns:
        The medians of both over the problems that both solve (nan if there is none),
        the median of the ratios, and the names that only one of them solves.
    """
    both = sorted(costs.keys() & reference.keys())

    def median(numbers: list[float]) -> float:
        return statistics.median(numbers) if numbers else math.nan

    return {
        "both": len(both),
        "median": median([costs[k] for k in both]),
        "reference_median": median([reference[k] for k in both]),
        "ratio": median([costs[k] / reference[k] for k in both]),
        "only": sorted(costs.keys() - reference.keys()),
        "only_reference": sorted(reference.keys() - costs.keys()),
    }


def profile(costs: dict[str, dict[str, float]]) -> dict[str, list[float]]:
    """Returns the sorted ratios to the cheapest method (Dolan and Moré 2002).

    Args:
        costs: Gradient-equivalents of the solved problems, by method and problem.

    Returns:
        By method, one ratio for each problem it solves.
    """
    problems = set().union(*costs.values())
    best = {k: min(c[k] for c in costs.values() if k in c) for k in problems}
    return {m: sorted(c[k] / best[k] for k in c) for m, c in costs.items()}


def chosen_reference(runs: dict[str, Any], reference: str) -> str:
    """Returns the reference if the file has it, else the first method it has."""
    return reference if reference in runs else next(iter(runs))


def summary_table(results: dict[str, Any], reference: str) -> rich.table.Table:
    """Returns the table of all methods, compared with a reference."""
    runs = by_method(results)
    reference = chosen_reference(runs, reference)
    reference_costs = solved_costs(runs[reference])
    columns = (
        "method",
        "solved",
        "saddle",
        "both",
        "cost",
        f"cost of {reference}",
        "ratio",
        "seconds",
    )
    table = rich.table.Table(
        title=f"max norm of the gradient <= {results['settings']['gtol']:g}",
        caption=(
            "saddle: solved, but the Hessian is indefinite there. cost, ratio: medians,"
            f" in gradient-equivalents, over the problems that {reference} solves too"
        ),
    )
    for column in columns:
        is_name = column == "method"
        table.add_column(
            column, justify="left" if is_name else "right", no_wrap=is_name
        )
    for method, found in runs.items():
        costs = solved_costs(found)
        against = compare(costs, reference_costs)
        table.add_row(
            method,
            f"{len(costs)}/{len(found)}",
            str(sum(map(ends_at_saddle, found.values()))),
            str(against["both"]),
            f"{against['median']:.1f}",
            f"{against['reference_median']:.1f}",
            f"{against['ratio']:.2f}",
            f"{sum(run['seconds'] for run in found.values()):.1f}",
        )
    return table


def markdown(results: dict[str, Any]) -> str:
    """Returns the README's table: every method beside ours."""
    runs = by_method(results)
    ours = solved_costs(runs[OURS])
    settings, versions = results["settings"], results["versions"]
    lines = [
        "| CUTEst | solved | at a saddle | cost | ours on the same problems |",
        "|---|--:|--:|--:|--:|",
    ]
    for method, found in runs.items():
        costs = solved_costs(found)
        against = compare(costs, ours)
        name = "`minimize(f, x)`" if method == OURS else f"scipy {method}"
        saddles = sum(map(ends_at_saddle, found.values()))
        lines.append(
            f"| {name} | {len(costs)} of {len(found)} | {saddles} "
            f"| {against['median']:.1f} | {against['reference_median']:.1f} |"
        )
    note = (
        "Unconstrained problems of at most 100 variables, float64, solved to a largest "
        f"gradient entry of {settings['gtol']:g}. Cost: the median, in gradients, over "
        "the problems that both solve. "
        f"jax {versions['jax']}, scipy {versions['scipy']}."
    )
    return "\n".join([*lines, "", note])


def listings(results: dict[str, Any], reference: str) -> list[str]:
    """Returns the lines below the table: who solves what alone, and what is left."""
    runs = by_method(results)
    reference = chosen_reference(runs, reference)
    costs = {method: solved_costs(found) for method, found in runs.items()}

    def line(title: str, names: Iterable[str]) -> str:
        names = sorted(names)
        return f"{title} ({len(names)}): {', '.join(names) or '-'}"

    lines = []
    for method in runs.keys() - {reference}:
        against = compare(costs[method], costs[reference])
        lines.append(line(f"{method} and not {reference}", against["only"]))
        lines.append(line(f"{reference} and not {method}", against["only_reference"]))
    lines.sort()
    for method, found in runs.items():
        lines.append(line(f"unsolved by {method}", found.keys() - costs[method].keys()))
    for method, found in runs.items():
        saddles = [name for name, run in found.items() if ends_at_saddle(run)]
        lines.append(line(f"at a saddle: {method}", saddles))
    everything = set().union(*runs.values())
    solved = set().union(*costs.values())
    lines.append(line("solved by none", everything - solved))
    lines += [f"excluded: {k}, {why}" for k, why in results["excluded"].items()]
    return lines


def show(results: dict[str, Any], reference: str) -> None:
    """Prints the table and the lists of names."""
    console = rich.console.Console()
    if not results["runs"]:
        console.print("There is no run in this file.")
    else:
        console.print(summary_table(results, reference))
        for line in listings(results, reference):
            console.print(line, markup=False, highlight=False)


def draw_profile(results: dict[str, Any], path: pathlib.Path) -> None:
    """Draws the performance profile over the problems that all methods were run on."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    runs = by_method(results)
    common = set.intersection(*(set(found) for found in runs.values()))
    costs = {
        method: {k: c for k, c in solved_costs(found).items() if k in common}
        for method, found in runs.items()
    }
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    ratios = profile(costs)
    end = 2 * max((r[-1] for r in ratios.values() if r), default=1.0)
    for method, found in ratios.items():
        shares = [i / len(common) for i in range(len(found) + 1)]
        shares.append(shares[-1])
        axes.step([1.0, *found, end], shares, where="post", label=method)
    axes.set_xscale("log", base=2)
    axes.set_xlim(1.0, end)
    axes.set_ylim(0.0, 1.0)
    axes.set_xlabel("gradient-equivalents, relative to the cheapest method")
    axes.set_ylabel("share of problems solved")
    axes.set_title(f"{len(common)} unconstrained CUTEst problems")
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def split(names: str | None) -> list[str]:
    """Splits names at commas.

    >>> split("ROSENBR, BEALE"), split(None)
    (['ROSENBR', 'BEALE'], [])
    """
    return [name.strip() for name in (names or "").split(",") if name.strip()]


app = typer.Typer(
    help="Small unconstrained CUTEst problems: scipy's Newton methods against ours.",
    no_args_is_help=True,
    add_completion=False,
)
File = Annotated[pathlib.Path, typer.Argument(help="A file that run wrote.")]
Reference = Annotated[
    str, typer.Option(help="The method that the others are compared with.")
]


@app.command()
def run(
    methods: Annotated[
        str, typer.Option(help="Methods, separated by commas.")
    ] = ",".join(METHODS),
    problems: Annotated[
        str | None,
        typer.Option(help="Problems, separated by commas.", show_default="all"),
    ] = None,
    max_variables: Annotated[
        int, typer.Option(min=1, help="Leave larger problems out.")
    ] = 100,
    output: Annotated[
        pathlib.Path, typer.Option(help="Where the results go (JSON).")
    ] = pathlib.Path("results/cutest.json"),
    resume: Annotated[
        bool, typer.Option("--resume", help="Keep what the output file has.")
    ] = False,
    maxiter: Annotated[
        int, typer.Option(min=1, help="Most iterations of ours.")
    ] = Settings.maxiter,
    time_limit: Annotated[
        float, typer.Option(min=0, help="Seconds per problem and method.")
    ] = Settings.time_limit,
    cache: Annotated[
        pathlib.Path | None,
        typer.Option(
            help="Keep compiled functions in this folder.",
            show_default="a temporary one",
        ),
    ] = None,
) -> None:
    """Run methods on problems. The file is written as it goes: stop and --resume."""
    chosen, names = split(methods), split(problems)
    if unknown := [m for m in chosen if m not in METHODS]:
        raise typer.BadParameter(f"no such method: {', '.join(unknown)}")
    jax.config.update("jax_enable_x64", True)
    folder = cache or pathlib.Path(tempfile.gettempdir()) / "ncg_optax_jax_cache"
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)

    settings = Settings(maxiter=maxiter, time_limit=time_limit)
    selected = select_problems(max_variables, names)
    command = (
        f"python -m benchmarks.cutest run --methods {','.join(chosen)}"
        f" --maxiter {maxiter} --time-limit {time_limit:g}"
    )
    command += f" --problems {','.join(names)}" if names else ""
    command += "" if names else f" --max-variables {max_variables}"
    results = header(command, settings)
    if resume and output.exists():
        results = resumed(read(output), results)
    run_all(selected, chosen, settings, results, output)
    show(results, OURS)


def resumed(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """Returns the new header with the old runs.

    Raises:
        typer.BadParameter: If the settings differ.
    """
    if old["settings"] != new["settings"]:
        raise typer.BadParameter(
            f"the output file was made with {old['settings']}, not {new['settings']}"
        )
    return new | {"excluded": old["excluded"], "runs": old["runs"]}


def run_all(
    selected: dict[str, Any],
    methods: list[str],
    settings: Settings,
    results: dict[str, Any],
    output: pathlib.Path,
) -> None:
    """Runs what is missing in the results, and writes them after each problem."""
    done = {(r["problem"], r["method"]) for r in results["runs"]}
    with rich.progress.Progress(
        *rich.progress.Progress.get_default_columns(),
        rich.progress.TimeElapsedColumn(),
    ) as progress:
        task = progress.add_task("", total=len(selected))
        for name, raw in selected.items():
            missing = [m for m in methods if (name, m) not in done]
            if missing and name not in results["excluded"]:
                progress.update(task, description=f"{name}: compiling")
                problem = load(name, raw)
                if reason := why_excluded(problem, settings):
                    results["excluded"][name] = reason
                    missing = []
                for method in missing:
                    progress.update(task, description=f"{name}: {method}")
                    results["runs"].append(run_one(problem, method, settings))
                write(output, results)
            progress.advance(task)


@app.command()
def table(
    file: File,
    reference: Reference = OURS,
    readme: Annotated[
        pathlib.Path | None,
        typer.Option(
            metavar="FILE",
            exists=True,
            dir_okay=False,
            help="Write a Markdown table into this file, between its marks "
            f"{MARKS[0]} and {MARKS[1]}.",
        ),
    ] = None,
) -> None:
    """Show who solves what, and at what cost."""
    if readme is None:
        show(read(file), reference)
    else:
        report.write_into(readme, markdown(read(file)), *MARKS)
        typer.echo(f"Wrote the table into {readme}")


@app.command()
def plot(
    file: File,
    output: Annotated[
        pathlib.Path | None,
        typer.Option(help="The picture (PNG).", show_default="beside the file"),
    ] = None,
) -> None:
    """Draw the performance profile: the share solved within a factor of the best."""
    target = output or file.with_suffix(".png")
    draw_profile(read(file), target)
    typer.echo(f"wrote {target}")


if __name__ == "__main__":
    app()

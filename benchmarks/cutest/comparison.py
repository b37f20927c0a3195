"""Comparison of the methods: tables and the performance profile."""

import math
import pathlib
import statistics
from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.cutest.collections import (
    COLLECTIONS,
    METHODS,
    OURS,
    PEERS,
    Collection,
)
from benchmarks.reports.figures import plt, save
from benchmarks.reports.scaling import table as markdown_table
from benchmarks.reports.tables import make_table

Results = dict[str, Any]
Runs = dict[str, dict[str, Any]]  # by problem


def collection_of(results: Results) -> Collection:
    """Returns the collection that was run; files of old have the small problems."""
    return COLLECTIONS[results.get("collection", "small")]


def marks(collection: Collection) -> tuple[str, str]:
    """Returns the two lines of a page that its table is between."""
    name = collection.file.replace("_", "-")
    return f"<!-- {name}-table:begin -->", f"<!-- {name}-table:end -->"


def by_method(results: Results) -> dict[str, Runs]:
    """Returns the runs as ``{method: {problem: run}}``, in the order of `METHODS`."""
    runs: dict[str, Runs] = {m: {} for m in METHODS}
    for run in results["runs"]:
        runs[run["method"]][run["problem"]] = run
    return {method: found for method, found in runs.items() if found}


def solved_costs(runs: Runs) -> dict[str, float]:
    """Returns the gradient-equivalents by problem, of the solved ones only."""
    return {k: r["gradient_equivalents"] for k, r in runs.items() if r["solved"]}


def ends_at_saddle(run: dict[str, Any]) -> bool:
    """Tells whether the Hessian is clearly indefinite where a solved run ended."""
    lowest, largest = run["lowest_eigenvalue"], run["largest_eigenvalue"]
    return run["solved"] and lowest is not None and lowest < -1e-6 * max(largest, 1e-30)


def compare(costs: dict[str, float], reference: dict[str, float]) -> dict[str, Any]:
    """Compares the costs of the problems that a method solves with a reference's.

    Returns the medians of both over the problems that both solve (nan if there is
    none), the median and the geometric mean of the ratios, and the names that only one
    of them solves.
    """
    both = sorted(costs.keys() & reference.keys())
    ratios = [costs[k] / reference[k] for k in both]

    def median(numbers: list[float]) -> float:
        return statistics.median(numbers) if numbers else math.nan

    return {
        "both": len(both),
        "median": median([costs[k] for k in both]),
        "reference_median": median([reference[k] for k in both]),
        "ratio": median(ratios),
        "mean_ratio": statistics.geometric_mean(ratios) if ratios else math.nan,
        "only": sorted(costs.keys() - reference.keys()),
        "only_reference": sorted(reference.keys() - costs.keys()),
    }


def profile(costs: dict[str, dict[str, float]]) -> dict[str, list[float]]:
    """Returns the sorted ratios to the cheapest method (Dolan and Moré 2002).

    One for each problem that a method solves, from the costs by method and problem.
    """
    problems = set().union(*costs.values())
    best = {k: min(c[k] for c in costs.values() if k in c) for k in problems}
    return {m: sorted(c[k] / best[k] for k in c) for m, c in costs.items()}


def chosen_reference(runs: dict[str, Any], reference: str) -> str:
    """Returns the reference if the file has it, else the first method it has."""
    return reference if reference in runs else next(iter(runs))


def summary_table(results: Results, reference: str) -> Table:
    """Returns the table of all methods, compared with a reference."""
    runs = by_method(results)
    reference = chosen_reference(runs, reference)
    reference_costs = solved_costs(runs[reference])
    cost_of = f"cost of {reference}"
    columns = "method", "solved", "saddle", "both", "cost", cost_of, "ratio", "seconds"
    table = make_table(
        columns,
        title=f"max norm of the gradient <= {results['settings']['gtol']:g}",
        caption="saddle: solved, but the Hessian is indefinite there. cost, ratio: "
        f"medians, in gradients, over the problems that {reference} solves too",
    )
    table.columns[0].no_wrap = True
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


def markdown(results: Results) -> str:
    """Returns the table for a page: every method beside ours."""
    runs = by_method(results)
    ours = solved_costs(runs[OURS])
    settings, versions = results["settings"], results["versions"]
    collection = collection_of(results)
    headings = (
        *("CUTEst", "solved", "at a saddle", "cost", "ours on the same"),
        *("ratio, median", "geometric mean"),
    )
    rows = []
    for method, found in runs.items():
        costs = solved_costs(found)
        against = compare(costs, ours)
        name = method if method in PEERS else f"scipy {method}"
        name = collection.call if method == OURS else name
        saddles = sum(map(ends_at_saddle, found.values()))
        medians = [f"{against[key]:.1f}" for key in ("median", "reference_median")]
        cells = f"{len(costs)} of {len(found)}", f"{saddles}", *medians
        ratios = (f"{1 / against[key]:.2f}" for key in ("ratio", "mean_ratio"))
        rows.append((name, *cells, *ratios))
    note = (
        f"{collection.title[0].upper()}{collection.title[1:]}, float64, solved to a "
        f"largest {collection.gradient} entry of {settings['gtol']:g}. Cost: the "
        "median, in gradients, over the problems that both solve. Ratio: our "
        "cost over theirs on the same problem. "
        f"jax {versions['jax']}, scipy {versions['scipy']}."
    )
    return f"{markdown_table(headings, rows)}\n\n{note}"


def listings(results: Results, reference: str) -> list[str]:
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
        saddles = (name for name in found if ends_at_saddle(found[name]))
        lines.append(line(f"at a saddle: {method}", saddles))
    everything = set().union(*runs.values())
    solved = set().union(*costs.values())
    lines.append(line("solved by none", everything - solved))
    lines += [f"excluded: {k}, {why}" for k, why in results["excluded"].items()]
    return lines


def show(results: Results, reference: str) -> None:
    """Prints the table and the lists of names."""
    console = Console()
    if not results["runs"]:
        console.print("There is no run in this file.")
    else:
        console.print(summary_table(results, reference))
        for line in listings(results, reference):
            console.print(line, markup=False, highlight=False)


def draw_profile(results: Results, path: pathlib.Path) -> None:
    """Draws the performance profile over the problems that all methods were run on."""
    runs = by_method(results)
    common = set.intersection(*(set(found) for found in runs.values()))
    costs = {
        method: {k: c for k, c in solved_costs(found).items() if k in common}
        for method, found in runs.items()
    }
    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    ratios = profile(costs)
    end = 2 * max((r[-1] for r in ratios.values() if r), default=1.0)
    for method, found in ratios.items():
        shares = [i / len(common) for i in range(len(found) + 1)]
        shares.append(shares[-1])
        axes.step([1.0, *found, end], shares, where="post", label=method)
    axes.set_xscale("log", base=2)
    axes.set(xlim=(1.0, end), ylim=(0.0, 1.0), ylabel="share of problems solved")
    axes.set_xlabel("gradient-equivalents, relative to the cheapest method")
    axes.set_title(f"{len(common)} {collection_of(results).title}")
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    save(figure, path, dpi=150)

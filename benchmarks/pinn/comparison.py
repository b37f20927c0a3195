"""All runs of the comparison, the table of their results, and their figure."""

import math
import pathlib
import time
from collections import Counter
from collections.abc import Callable, Iterator
from statistics import median
from typing import Any

from benchmarks.pinn.methods import METHODS
from benchmarks.pinn.race import Race, tune
from benchmarks.pinn.tasks import SETTINGS, task
from benchmarks.reports import records
from benchmarks.reports.records import Record
from benchmarks.reports.scaling import table

OURS, REFERENCE = "scientific", "adam_lbfgs"
# Lowest published relative L2 errors known to us, with more points or weights and in
# minutes to hours. Burgers and wave: DSGNAR (arXiv 2607.02194); Allen-Cahn: Adam, then
# self-scaled Broyden; Helmholtz: SPRING in 540 s; convection and reaction: Rathore et
# al. (2024), on inputs that are not scaled.
PUBLISHED = {
    "poisson_5d": 3e-16,
    "helmholtz": 2.0e-9,
    "burgers": 8.0e-14,
    "burgers_4000": 8.0e-14,
    "convection_40": 1.9e-3,
    "reaction": 9.9e-3,
    "wave": 5.4e-7,
    "allen_cahn": 9.4e-7,
    "kuramoto_sivashinsky": 5.1e-7,
}


def missing(name: str) -> str:
    """Why a method cannot run here; empty if it can."""
    return METHODS[name].missing


def compete(
    record: Record, problem: str, methods: list[str], seed: int, say: Callable
) -> Iterator[Record]:
    """Makes the runs of a problem and seed that a record lacks, and adds them to it."""
    done = {(r["problem"], r["method"], r["seed"]) for r in record["runs"]}
    rates = record["tuned"].setdefault(problem, {})
    for name in methods:
        method = METHODS[name]
        if (problem, name, seed) in done:
            continue
        of = name if method.rate == "tuned" else method.rate
        if method.rate not in ("", "tuned") and of not in rates:
            say(f"{problem}, {name}: left out, it takes the learning rate of {of}")
            continue
        begin = time.perf_counter()
        race = Race(task(problem, record["recommended"]), method)
        if of and of not in rates:
            rates[of], run = tune(race, seed, record["seconds"], say)
        else:
            rate = rates[of]["rate"] if of else math.nan
            run = race.run(seed, record["seconds"], rate)
        what = {"problem": problem, "method": name, "seed": seed}
        version = {"ncg_optax": records.version("ncg_optax")}
        record["runs"].append(what | version | run)
        say(
            f"{problem}, {name}, seed {seed}: loss {run['best']['loss']:.2e}, error "
            f"{run['best']['error']:.2e}, wall {time.perf_counter() - begin:.0f} s"
        )
        yield record


def markdown(record: Record) -> str:
    """The table of a stored record, and below it how it was made."""
    methods = [name for name in METHODS if any(_runs(record, method=name))]
    headings = ["relative error", *(METHODS[name].title for name in methods)]
    rows = []
    for problem in SETTINGS:
        if not any(_runs(record, problem=problem)):
            continue
        errors = {name: _errors(record, problem, name) for name in methods}
        lowest = min(e[0] for e in errors.values() if e)
        cells = [_cell(errors[name], lowest) for name in methods]
        record_error = f"{PUBLISHED[problem]:.1e}" if problem in PUBLISHED else "-"
        after = _catch_up(record, problem)
        rows.append((f"`{problem}`", *cells, after, record_error))
    headings += [f"`{OURS}` is there after", "published"]
    won = {
        key: [p for p in SETTINGS if _lowest(record, p, key) == OURS]
        for key in ("loss", "error")
    }
    has_coefficient = any("coefficient_error" in r["best"] for r in record["runs"])
    versions, machine = record["versions"], record["machine"]
    notes = [
        f"Relative L2 error where the loss was lowest, after {record['seconds']:g} "
        f"processor seconds on one core ({machine['cpu']}), compilation apart, "
        f"{record['dtype']}, {_seeds(record)}. "
        + "Of inverse problems also the relative error of the coefficient. "
        * has_coefficient
        + f"Last but one: seconds until `{OURS}` has the error with which "
        f"{METHODS[REFERENCE].title} ended. Of {len(rows)} problems `{OURS}` ends with "
        f"the lowest loss on {len(won['loss'])} and with the lowest error on "
        f"{len(won['error'])}. ncg_optax {_our_versions(record)}, "
        f"jax {versions['jax']}."
    ]
    if record["missing"]:
        left_out = ", ".join(METHODS[name].title for name in record["missing"])
        notes.append(f"Not installed: {left_out}.")
    return "\n\n".join([table(headings, rows), *notes])


def _seeds(record: Record) -> str:
    """How many seeds the methods have."""
    counts = Counter((run["problem"], run["method"]) for run in record["runs"])
    most = max(counts.values())
    if most == 1:
        return "1 seed"
    return f"{'up to ' * (min(counts.values()) < most)}{most} seeds, medians"


def _our_versions(record: Record) -> str:
    """The versions of this library with which the runs were made."""
    return " and ".join(sorted({run["ncg_optax"] for run in record["runs"]}))


def _runs(record: Record, **wanted: Any) -> list[Record]:
    """The runs of a record with these values."""
    return [
        run
        for run in record["runs"]
        if all(run[key] == value for key, value in wanted.items())
    ]


def _errors(record: Record, problem: str, method: str) -> tuple[float, ...]:
    """Medians of the errors of a method; empty if there is no run."""
    runs = _runs(record, problem=problem, method=method)
    keys = ("error", "coefficient_error")
    return tuple(
        median(run["best"][key] for run in runs)
        for key in keys
        if runs and key in runs[0]["best"]
    )


def _lowest(record: Record, problem: str, key: str) -> str | None:
    """The method with the lowest median loss or error; None if there is no run."""
    runs = _runs(record, problem=problem)
    found = {
        name: median(r["best"][key] for r in runs if r["method"] == name)
        for name in {r["method"] for r in runs}
    }
    return min(found, key=lambda name: found[name], default=None)


def _cell(errors: tuple[float, ...], lowest: float) -> str:
    texts = [f"{x:.1e}" for x in errors]
    if errors and errors[0] == lowest:
        texts[0] = f"**{texts[0]}**"
    return ", ".join(texts) or "-"


def _catch_up(record: Record, problem: str) -> str:
    """Seconds until ours has the error with which the reference ended."""
    found = []
    for run in _runs(record, problem=problem, method=OURS):
        for other in _runs(record, problem=problem, method=REFERENCE, seed=run["seed"]):
            seconds, errors = followed(run["curve"])
            reached = zip(seconds, errors, strict=True)
            end = other["best"]["error"]
            found.append(next((s for s, e in reached if e <= end), math.inf))
    if not found:
        return "-"
    middle = median(found)
    return f"{middle:.1f} s" if math.isfinite(middle) else "not reached"


def followed(curve: Record) -> tuple[list[float], list[float]]:
    """Seconds of a curve, and the error where the loss has been lowest until then."""
    errors, lowest = [], math.inf
    for loss, error in zip(curve["loss"], curve["error"], strict=True):
        better = loss is not None and loss < lowest
        lowest = loss if better else lowest
        errors.append(error if better or not errors else errors[-1])
    return curve["seconds"], errors


# Okabe and Ito's colours. Ours are drawn thick and in full, the others are dashed.
STYLES: dict[str, tuple[str, Any]] = {
    "scientific": ("#D55E00", "-"),
    "hessian_free": ("#0072B2", "-"),
    "residual_space": ("#56B4E9", "-"),
    "adam_lbfgs": ("#009E73", "--"),
    "ssbroyden": ("#CC79A7", "--"),
    "soap": ("#8C564B", "--"),
    "nncg": ("#444444", ":"),
    "jinns": ("#CC79A7", ":"),
}
COLUMNS = 4


def draw(record: Record, path: pathlib.Path) -> pathlib.Path:
    """Draws error against seconds, a panel for each problem, a line for each run."""
    from benchmarks.reports.figures import open_frame, plt, save

    names = [name for name in SETTINGS if _runs(record, problem=name)]
    count = math.ceil(len(names) / COLUMNS)
    size = (3 * COLUMNS, 2.5 * count + 0.9)
    figure, axes = plt.subplots(
        count, COLUMNS, figsize=size, sharex=True, squeeze=False
    )
    panels = axes.ravel()
    for axis, name in zip(panels, names, strict=False):
        for method, (colour, dashes) in STYLES.items():
            for run in _runs(record, problem=name, method=method):
                seconds, errors = followed(run["curve"])
                width = 2.4 if method == OURS else 1.4
                axis.plot(
                    seconds[1:], errors[1:], color=colour, ls=dashes, lw=width,
                    label=METHODS[method].title, zorder=4 if method == OURS else 3,
                )  # fmt: skip
        axis.set(xscale="log", yscale="log", title=name.replace("_", " "))
        axis.set_xlim(record["seconds"] / 50, record["seconds"] * 1.05)
        low, high = (math.log10(limit) for limit in axis.dataLim.intervaly)
        axis.set_ylim(10 ** math.floor(low), 10 ** math.ceil(high))
        axis.yaxis.set_minor_formatter("")
        axis.grid(which="major", color="#e4e4e4", linewidth=0.8)
        open_frame(axis)
    for index, axis in enumerate(panels):
        axis.set_visible(index < len(names))
        # The axes are shared, and the lowest panel of a column has the numbers.
        if index + COLUMNS >= len(names):
            axis.tick_params(labelbottom=True)
            axis.set_xlabel("seconds on one core")
    for row in axes:
        row[0].set_ylabel("relative L2 error")
    handles = {
        label: handle
        for axis in panels
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    figure.tight_layout(rect=(0, 0.7 / size[1], 1, 1))
    figure.legend(
        handles.values(), handles, loc="lower center", ncols=COLUMNS, frameon=False
    )
    return save(figure, path)

"""The command line of ``python -m benchmarks.cutest``."""

import dataclasses
import importlib.metadata
import json
import pathlib
import tempfile
from collections.abc import Sequence
from typing import Annotated, Any

import jax
import typer
from rich.progress import Progress, TimeElapsedColumn

from benchmarks.commands import options
from benchmarks.cutest.collections import COLLECTIONS, METHODS, OURS
from benchmarks.cutest.comparison import (
    Results,
    collection_of,
    draw_profile,
    markdown,
    marks,
    show,
)
from benchmarks.cutest.methods import run_one
from benchmarks.cutest.problems import Settings, load, select_problems, why_excluded
from benchmarks.reports import records, tables
from benchmarks.training.resume import write_atomically

app = typer.Typer(
    cls=options.Commands,
    help="Small unconstrained CUTEst problems: scipy's Newton methods against ours.",
    no_args_is_help=True,
    add_completion=False,
)
PACKAGES = ("scipy", "sif2jax", "optimistix")
ALL_MARKS = tuple(map(marks, COLLECTIONS.values()))
File = Annotated[pathlib.Path, typer.Argument(help="A file that run wrote.")]
Reference = Annotated[
    str, typer.Option(help="The method that the others are compared with.")
]


def header(command: str, collection: str, settings: Settings) -> Results:
    """Returns a results file without results."""
    return {
        "command": command,
        "collection": collection,
        "settings": dataclasses.asdict(settings),
        "versions": records.versions()
        | {name: importlib.metadata.version(name) for name in PACKAGES},
        "machine": records.machine(),
        "excluded": {},
        "runs": [],
    }


def write(path: pathlib.Path, results: Results) -> None:
    """Writes the results so that a stop at any time leaves a whole file."""
    write_atomically(path, json.dumps(results, indent=1) + "\n")


def read(path: pathlib.Path) -> Results:
    """Reads a results file.

    Raises:
        UsageError: If it is not one.
    """
    try:
        results = json.loads(path.read_text())
        results["runs"], results["excluded"], results["settings"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise options.UsageError(f"{path} is not a file that run wrote") from error
    return results


@app.command()
def run(
    collection: Annotated[
        str, typer.Option(help=f"Which problems: {', '.join(COLLECTIONS)}.")
    ] = "small",
    methods: Annotated[
        str | None,
        typer.Option(
            help="Methods, separated by commas.", show_default="the collection's"
        ),
    ] = None,
    problems: Annotated[
        str | None,
        typer.Option(help="Problems, separated by commas.", show_default="all"),
    ] = None,
    max_variables: Annotated[
        int | None,
        typer.Option(
            min=1, help="Leave larger problems out.", show_default="the collection's"
        ),
    ] = None,
    output: Annotated[
        pathlib.Path | None,
        typer.Option(
            help="Where the results go (JSON).",
            show_default="results/cutest[_large|_bounds].json",
        ),
    ] = None,
    resume: options.Resume = False,
    maxiter: Annotated[
        int, typer.Option(min=1, help="Most iterations of ours.")
    ] = Settings.maxiter,
    time_limit: Annotated[
        float, typer.Option(min=0, help="Seconds per problem and method.")
    ] = Settings.time_limit,
) -> None:
    """Run methods on problems. The file is written as it goes: stop and --resume."""
    kind = COLLECTIONS[options.one_of(collection, COLLECTIONS, "collection")]
    chosen = options.names_of(methods or ",".join(kind.methods), METHODS, "method")
    max_variables = max_variables or kind.most
    output = output or pathlib.Path("results") / f"{kind.file}.json"
    names = [name.strip() for name in (problems or "").split(",") if name.strip()]
    if output.is_dir():
        raise options.UsageError(f"--output {output}: this is a folder, not a file.")
    options.check_output(output.parent)
    jax.config.update("jax_enable_x64", True)
    if not jax.config.jax_compilation_cache_dir:
        folder = pathlib.Path(tempfile.gettempdir()) / "ncg_optax_jax_cache"
        jax.config.update("jax_compilation_cache_dir", str(folder))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)

    settings = Settings(maxiter=maxiter, time_limit=time_limit)
    selected = select_problems(kind, max_variables, names)
    command = (
        f"python -m benchmarks.cutest run --collection {collection}"
        f" --methods {','.join(chosen)}"
        f" --maxiter {maxiter} --time-limit {time_limit:g}"
    )
    command += f" --problems {','.join(names)}" if names else ""
    command += "" if names else f" --max-variables {max_variables}"
    results = header(command, collection, settings)
    if resume and output.exists():
        results = resumed(read(output), results)
    run_all(selected, chosen, settings, results, output)
    show(results, OURS)


def resumed(old: Results, new: Results) -> Results:
    """Returns the new header with the old runs.

    Raises:
        UsageError: If the settings differ.
    """
    if old["settings"] != new["settings"]:
        raise options.UsageError(
            f"the output file was made with {old['settings']}, not {new['settings']}"
        )
    return new | {"excluded": old["excluded"], "runs": old["runs"]}


def run_all(
    selected: dict[str, Any],
    methods: Sequence[str],
    settings: Settings,
    results: Results,
    output: pathlib.Path,
) -> None:
    """Runs what is missing in the results, and writes them after each problem."""
    done = {(r["problem"], r["method"]) for r in results["runs"]}
    columns = (*Progress.get_default_columns(), TimeElapsedColumn())
    with Progress(*columns) as progress:
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
    readme: Annotated[pathlib.Path | None, options.readme_option(*ALL_MARKS)] = None,
) -> None:
    """Show which method solves what, and at what cost."""
    if readme is None:
        show(read(file), reference)
        return
    with options.explained(ValueError):
        results = read(file)
        tables.write_into(readme, markdown(results), *marks(collection_of(results)))
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

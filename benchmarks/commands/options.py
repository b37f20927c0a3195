"""Options that several commands have, and how a command says what is wrong."""

import contextlib
import difflib
import os
import pathlib
import tempfile
from collections.abc import Iterable, Iterator
from typing import Annotated, Any

import typer
from rich import progress
from rich.console import Console
from typer.core import TyperGroup

COMMITTED = pathlib.Path(__file__).parents[1] / "results"
UNAVAILABLE = (FileNotFoundError, ModuleNotFoundError, ValueError)  # of data
SHOWN = "benchmarks/results"  # its name in the help, which is the same everywhere

Output = Annotated[
    pathlib.Path, typer.Option(metavar="DIR", help="Where results are written.")
]
CommittedOutput = Annotated[
    pathlib.Path,
    typer.Option(metavar="DIR", help="Where results are written.", show_default=SHOWN),
]
Stored = Annotated[
    pathlib.Path, typer.Argument(help="Where stored results lie.", show_default=SHOWN)
]
Resume = Annotated[
    bool, typer.Option("--resume", help="Keep what the output file has.")
]


def budget(default: str) -> Any:
    """The option ``--budget``; ``default`` says which budget there is without it."""
    return typer.Option(
        metavar="UNITS",
        help="Full-batch gradients that a run may spend.",
        show_default=default,
    )


class UsageError(Exception):
    """What the user has to change, in one sentence."""


class Commands(TyperGroup):
    """Commands that write what is wrong as one line to stderr, with exit code 2."""

    def invoke(self, ctx: typer.Context) -> Any:
        try:
            return super().invoke(ctx)
        except UsageError as error:
            message = str(error)
        except typer.BadParameter.__base__ as error:  # of all that parsing refuses
            message = error.format_message()
        except OSError as error:
            if error.filename is None:
                raise
            message = f"{error.filename}: {error.strerror}."
        typer.echo(f"Error: {' '.join(message.split())}", err=True)
        raise typer.Exit(2)


@contextlib.contextmanager
def explained(*errors: type[Exception]) -> Iterator[None]:
    """Turns errors whose text is meant for the user into a `UsageError`."""
    try:
        yield
    except errors as error:
        raise UsageError(str(error)) from error


def readme_option(*marks: tuple[str, str]) -> Any:
    """The option to write tables into a Markdown file, each between two marks."""
    pairs = ", ".join(f"`{begin}` and `{end}`" for begin, end in marks)
    return typer.Option(
        metavar="FILE",
        exists=True,
        dir_okay=False,
        help=f"Write the table into this file, between its marks: {pairs}.",
    )


def one_of(name: str, known: Iterable[str], what: str) -> str:
    """The name if it is known, or a `UsageError` that shows what it may have been."""
    names = list(known)
    if name in names:
        return name
    close = difflib.get_close_matches(name, names, n=1)
    if close:
        raise UsageError(f"no {what} {name!r}; did you mean {close[0]!r}?")
    raise UsageError(f"no {what} {name!r}; there are {', '.join(names)}.")


def names_of(text: str, known: Iterable[str], what: str) -> list[str]:
    """Names separated by commas, each of them known and returned once."""
    known = list(known)
    found = dict.fromkeys(name.strip() for name in text.split(","))
    return [one_of(name, known, what) for name in found]


def counts_of(text: str, option: str) -> list[int]:
    """Numbers separated by commas, in increasing order."""
    try:
        counts = sorted({int(part) for part in text.split(",")})
    except ValueError:
        counts = [0]
    if counts[0] < 1:
        raise UsageError(
            f"{option}: expected positive whole numbers, such as 1,2,4, got {text!r}."
        )
    return counts


def positive(budget: float | None) -> float | None:
    """A budget, or a `UsageError` if nothing can be spent of it."""
    if budget is not None and not 0 < budget < float("inf"):
        raise UsageError(f"a budget is a positive number, not {budget:g}.")
    return budget


def check_output(folder: pathlib.Path, option: str = "--output") -> None:
    """Finds out before hours of work whether results can be written into a folder.

    Raises:
        UsageError: if they cannot.
    """
    parent = next(filter(os.path.exists, (folder, *folder.absolute().parents)))
    if not parent.is_dir():
        raise UsageError(f"{option} {folder}: {parent} is a file, not a folder.")
    try:
        with tempfile.TemporaryFile(dir=parent):
            pass
    except OSError as error:
        reason = error.strerror
        raise UsageError(f"{option} {folder}: cannot be written: {reason}.") from error


def progress_bar(console: Console) -> progress.Progress:
    columns = (
        progress.SpinnerColumn(),
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.TextColumn("{task.percentage:>3.0f}%"),
        progress.TimeElapsedColumn(),
    )
    return progress.Progress(*columns, console=console, transient=True)

"""Changes one place of a module at a time, and tells which changes no test notices.

    python -m nox -s mutants -- ncg_optax/solvers/linear_cg.py --number 30 --seed 0

A *mutant* is a copy of the project with one change: another comparison, operator,
number or branch. The test files that ``tests/mutants.toml`` names for its module run
on it, up to the first failure. A mutant that fails is killed, one that passes survives.
A survivor is a gap in the tests, or it computes the same; those of the second kind are
listed in the same file, with the reason.
"""

import argparse
import ast
import contextlib
import multiprocessing
import os
import pathlib
import random
import shutil
import signal
import sys
import tempfile
import time
import tomllib
import warnings
from collections.abc import Iterator
from typing import NamedTuple

ROOT = pathlib.Path(__file__).resolve().parents[1]
TABLE = ROOT / "tests" / "mutants.toml"
COPIED = ("ncg_optax", "tests", "benchmarks", "conftest.py", "pyproject.toml")
# Imported once, and no plugins of pytest. Each mutant is tested in a fork of the
# process that did.
SHARED = ["chex", "jax", "numpy", "optax", "pytest", "scipy.linalg"]

COMPARISONS = {
    ast.Lt: (ast.LtE, ast.GtE),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
}
OPERATORS = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.Pow: ast.Mult,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
    ast.And: ast.Or,
    ast.Or: ast.And,
}
PAIRS = [
    ("maximum", "minimum"),
    ("max", "min"),
    ("logical_and", "logical_or"),
    ("any", "all"),
    ("zeros", "ones"),
    ("zeros_like", "ones_like"),
    ("isfinite", "isnan"),
    ("square", "sqrt"),
    ("psum", "pmean"),
]
NAMES = {a: b for pair in PAIRS for a, b in (pair, pair[::-1])}


class Mutant(NamedTuple):
    """One change of a module."""

    module: str
    function: str  # that holds the change; class and function joined by a dot
    line: int
    on: str  # the text of that line
    before: str
    after: str
    source: str  # of the whole module, changed

    @property
    def change(self) -> str:
        """The change in one line."""
        return f"{self.before}  ->  {self.after}"


def mutants(module: str, source: str) -> list[Mutant]:
    """All mutants of a module, in the order of the source."""
    lines = [line.encode() for line in source.splitlines(keepends=True)]
    starts = [sum(map(len, lines[:i])) for i in range(len(lines))]
    raw = source.encode()

    def made(function: str, node: ast.expr, other: ast.expr) -> Mutant:
        start = starts[node.lineno - 1] + node.col_offset
        end = starts[node.end_lineno - 1] + node.end_col_offset
        after = ast.unparse(ast.fix_missing_locations(other))
        changed = raw[:start] + f"({after})".encode() + raw[end:]
        before = ast.unparse(node)
        on = lines[node.lineno - 1].decode().strip()
        text = changed.decode()
        return Mutant(module, function, node.lineno, on, before, after, text)

    return [made(*place) for place in _places(ast.parse(source), ())]


def _places(
    node: ast.AST, inside: tuple[str, ...]
) -> Iterator[tuple[str, ast.expr, ast.expr]]:
    """The function, an expression in it, and another for it."""
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
        inside = (*inside, node.name)
    elif isinstance(node, (ast.Raise, ast.JoinedStr)):
        return  # the words of an error
    elif isinstance(node, ast.keyword) and node.arg == "strict":
        return  # of zip: a check of the lengths
    if inside and isinstance(node, ast.expr):
        for other in _others(node):
            yield ".".join(inside), node, other
    negated = (ast.Compare, ast.UnaryOp)  # by ``_others``
    if inside and isinstance(node, ast.If) and not isinstance(node.test, negated):
        yield ".".join(inside), node.test, ast.UnaryOp(ast.Not(), node.test)
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns", "decorator_list", "bases"):
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST):
                yield from _places(child, inside)


def _others(node: ast.expr) -> Iterator[ast.expr]:
    """What one expression is changed into."""
    match node:
        case ast.Compare(left, [operator], right):
            for kind in COMPARISONS[type(operator)]:
                yield ast.Compare(left, [kind()], right)
        case ast.BinOp(left, operator, right) if type(operator) in OPERATORS:
            yield ast.BinOp(left, OPERATORS[type(operator)](), right)
        case ast.BoolOp(operator, values):
            yield ast.BoolOp(OPERATORS[type(operator)](), values)
        case ast.UnaryOp(_, operand):
            yield operand
        case ast.IfExp(test, body, orelse):
            yield ast.IfExp(test, orelse, body)
        case ast.Call(ast.Attribute(_, "where"), [test, yes, no]):
            yield ast.Call(node.func, [test, no, yes], node.keywords)
        case ast.Attribute(value, name) if name in NAMES:
            yield ast.Attribute(value, NAMES[name])
        case ast.Constant(bool(value)):
            yield ast.Constant(not value)
        case ast.Constant(int(value)):
            yield ast.Constant(value + 1)
        case ast.Constant(float(value)):
            yield ast.Constant(10 * value if value else 1.0)


def run_tests(folder: str, files: list[str], log: str) -> None:
    """Runs test files in the copy, in a process of its own; exits as pytest does."""
    os.setsid()  # so that what the tests start can be ended with them
    with open(log, "w") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    warnings.resetwarnings()
    os.chdir(folder)
    here = {str(ROOT), str(ROOT / "tests"), ""}
    sys.path[:] = [folder, *(path for path in sys.path if path not in here)]
    os.environ["PYTHONPATH"] = folder  # for processes that the tests start
    import pytest

    import ncg_optax

    assert ncg_optax.__file__.startswith(folder), ncg_optax.__file__
    sys.exit(int(pytest.main(["-x", "-q", "-p", "no:cacheprovider", *files])))


class Bench:
    """A copy of the project in which mutants are tested, one at a time."""

    def __init__(self, folder: str):
        self.folder, self.log = folder, os.path.join(folder, "log.txt")
        for name in COPIED:
            copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
            copy(ROOT / name, os.path.join(folder, name))
        self.processes = multiprocessing.get_context("forkserver")
        self.processes.set_forkserver_preload(SHARED)

    def outcome(self, files: list[str], limit: float | None = None) -> tuple[str, str]:
        """``passed``, ``failed`` or ``timeout``, and what failed."""
        arguments = (self.folder, files, self.log)
        process = self.processes.Process(target=run_tests, args=arguments)
        process.start()
        try:
            process.join(limit)
        finally:
            late = process.is_alive()
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # and what the tests started
        if late:
            process.join()
            return "timeout", ""
        if process.exitcode == 0:
            return "passed", ""
        words = pathlib.Path(self.log).read_text().splitlines()
        failed = [line for line in words if line.startswith(("FAILED", "ERROR", "E  "))]
        return "failed", (failed or words or [""])[-1][:120]

    def of_mutant(self, mutant: Mutant, files: list[str], limit: float):
        """The outcome with one change, which is taken back."""
        path = pathlib.Path(self.folder, mutant.module)
        original = path.read_text()
        path.write_text(mutant.source)
        try:
            return self.outcome(files, limit)
        finally:
            path.write_text(original)


def is_known_to_be_equal(mutant: Mutant, known: list[dict]) -> bool:
    """Whether the table says that a mutant computes the same."""
    found = {"module": mutant.module, "on": mutant.on, "change": mutant.change}
    return any(found.items() <= entry.items() for entry in known)


def arguments(table: dict) -> tuple[list[str], int, int]:
    """Modules, number and seed of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("modules", nargs="*", help="default: all of the table")
    parser.add_argument("--number", type=int, default=30, help="of mutants, in all")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    given = parser.parse_args()
    modules = given.modules or list(table["tests"])
    if unknown := [name for name in modules if name not in table["tests"]]:
        parser.error(f"tests/mutants.toml names no tests for {', '.join(unknown)}.")
    return modules, given.number, given.seed


def outcomes(sample: list[Mutant], table: dict) -> Iterator[tuple[Mutant, str, str]]:
    """Each mutant with its outcome, ``equal`` if it is known to compute the same."""
    limits: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(os.path.realpath(folder))
        for mutant in sample:
            files = table["tests"][mutant.module]
            if mutant.module not in limits:
                start = time.monotonic()
                outcome, what = bench.outcome(files)
                if outcome != "passed":
                    sys.exit(
                        f"{mutant.module}: its tests fail without a change: {what}"
                    )
                limits[mutant.module] = 60 + 4 * (time.monotonic() - start)
            outcome, what = bench.of_mutant(mutant, files, limits[mutant.module])
            if outcome == "passed" and is_known_to_be_equal(mutant, table["equal"]):
                outcome = "equal"
            yield mutant, outcome, what


def main() -> int:
    """Tests a sample of the mutants of some modules; 1 if an unknown one survives."""
    table = tomllib.loads(TABLE.read_text())
    modules, number, seed = arguments(table)
    every = [m for name in modules for m in mutants(name, (ROOT / name).read_text())]
    number = min(number, len(every))
    chosen = sorted(random.Random(seed).sample(range(len(every)), number))
    print(f"{number} of {len(every)} mutants of {len(modules)} modules", flush=True)
    counts = dict.fromkeys(("failed", "timeout", "passed", "equal"), 0)
    try:
        for mutant, outcome, what in outcomes([every[i] for i in chosen], table):
            counts[outcome] += 1
            place = f"{mutant.module}:{mutant.line} ({mutant.function})"
            mark = "SURVIVED" if outcome == "passed" else outcome
            print(f"{mark:8} {place}: {mutant.change}  {what}", flush=True)
    finally:  # also of a part
        killed = counts["failed"] + counts["timeout"]
        differ = killed + counts["passed"]
        print(
            f"{killed} of {differ} killed ({counts['timeout']} by the time limit), "
            f"{killed / max(1, differ):.0%}; {counts['equal']} more are known to "
            "compute the same."
        )
    return int(counts["passed"] > 0)


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    import conftest  # noqa: F401  what JAX reads in the environment, before its import

    os.environ["PYTHONWARNINGS"] = "ignore::RuntimeWarning"  # of forks, by JAX
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended"))
    sys.exit(main())

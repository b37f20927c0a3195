"""The order of the folders of `ncg_optax`, and other rules that its source keeps.

The sources are parsed and not imported, so that an import inside a function counts too.
"""

import ast
import pathlib

import pytest

PACKAGE = pathlib.Path(__file__).parents[2] / "ncg_optax"
MODULES = sorted(PACKAGE.rglob("*.py"))

# A folder or module of a row may import from itself and from the rows above it only.
ORDER = (
    ("_utils",),
    ("losses",),
    ("curvature", "globalization"),
    ("solvers",),
    ("preconditioners",),
    ("step",),
    ("minibatch",),
    ("presets",),
    ("minimization", "parallel", "diagnostics", "flax", "scientific_preset", "switch"),
    ("evidence",),
)
ROW = {name: row for row, names in enumerate(ORDER) for name in names}

MAX_MODULE_LINES = 350
MAX_FUNCTION_LINES = 80

# What only _utils/reductions.py may use: functions that need a mapped axis.
COLLECTIVES = {
    "all_gather",
    "all_gather_reduced",
    "all_to_all",
    "axis_index",
    "axis_size",
    "pbroadcast",
    "pcast",
    "pmax",
    "pmean",
    "pmin",
    "ppermute",
    "pshuffle",
    "psum",
    "psum_scatter",
    "pswapaxes",
    "pvary",
    "ragged_all_to_all",
}


def package_of(path):
    """The dotted name of the package that a file of ``ncg_optax`` is in."""
    return ".".join(path.relative_to(PACKAGE.parent).parent.parts)


def imported_modules(source, package):
    """Dotted names of what a module of ``package`` imports.

    ``from a import b`` may import the module ``a.b``: the name ``b`` is included.
    """
    names = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: 1 - node.level or None] if node.level else []
            base = ".".join([*above, *filter(None, [node.module])])
            names += [f"{base}.{alias.name}" for alias in node.names]
    return names


def outside_of_the_order(source, wing, package):
    """What a module of the wing imports although that is not below it."""
    refused = []
    for name in imported_modules(source, package):
        root, _, inside = name.partition(".")
        target = inside.partition(".")[0]
        if root != "ncg_optax" or target == wing:
            continue
        if target not in ROW or ROW[target] >= ROW[wing]:
            refused.append(name)
    return refused


def long_functions(source, limit=MAX_FUNCTION_LINES):
    """Names and lines of functions that are too long, their docstrings not counted."""
    found = {}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = node.end_lineno - node.lineno + 1
            if ast.get_docstring(node) is not None:
                lines -= node.body[0].end_lineno - node.body[0].lineno + 1
            if lines > limit:
                found[node.name] = lines
    return found


def names_used(source):
    """All names and attributes in a module, and what it imports by name."""
    used = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute):
            used.add(node.attr)
        elif isinstance(node, ast.Name):
            used.add(node.id)
        elif isinstance(node, ast.ImportFrom):
            used |= {alias.name for alias in node.names}
            used |= set((node.module or "").split("."))
        elif isinstance(node, ast.Import):
            used |= {part for alias in node.names for part in alias.name.split(".")}
    return used


def found_by(check, modules=MODULES):
    """What ``check(source, wing, package)`` finds, by module; nothing is left out."""
    found = {}
    for path in modules:
        inside = path.relative_to(PACKAGE)
        wing = inside.parts[0].removesuffix(".py")
        refused = check(path.read_text(), wing, package_of(path))
        if refused:
            found[inside.as_posix()] = refused
    return found


def test_imports_from_the_rows_above_only():
    # The package itself names what all its folders offer.
    modules = [path for path in MODULES if path != PACKAGE / "__init__.py"]
    assert found_by(outside_of_the_order, modules) == {}


def test_imports_nothing_from_benchmarks_and_tests():
    def check(source, wing, package):
        roots = {name.partition(".")[0] for name in imported_modules(source, package)}
        return roots & {"benchmarks", "tests"}

    assert found_by(check) == {}


def test_public_apis_only():
    assert found_by(lambda source, *_: names_used(source) & {"_src"}) == {}


def test_only_reductions_knows_of_mapped_axes():
    found = found_by(lambda source, *_: names_used(source) & COLLECTIVES)
    assert set(found) == {"_utils/reductions.py"}


def test_length_of_modules():
    lengths = found_by(lambda source, *_: len(source.splitlines()))
    assert {k: n for k, n in lengths.items() if n > MAX_MODULE_LINES} == {}


def test_length_of_functions():
    assert found_by(lambda source, *_: long_functions(source)) == {}


def test_the_sources_are_found():
    found = {path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in MODULES}
    assert found == {"__init__", *ROW}


class TestTheChecks:
    """On sources of a few lines."""

    @pytest.mark.parametrize(
        ("source", "expected"),
        [
            ("import jax.numpy as jnp", ["jax.numpy"]),
            ("from ncg_optax.step import info", ["ncg_optax.step.info"]),
            ("from . import cg", ["ncg_optax.solvers.cg"]),
            ("from .cg import solve", ["ncg_optax.solvers.cg.solve"]),
            ("from ..step import info", ["ncg_optax.step.info"]),
            ("def f():\n  import ncg_optax.flax", ["ncg_optax.flax"]),
        ],
    )
    def test_imports(self, source, expected):
        assert imported_modules(source, "ncg_optax.solvers") == expected

    @pytest.mark.parametrize(
        ("source", "refused"),
        [
            ("from ncg_optax._utils import pytree", False),
            ("from ncg_optax import losses", False),
            ("from ncg_optax.curvature.base import Curvature", False),
            ("from ncg_optax.globalization import Outcome", True),
            ("def f():\n  from ncg_optax import step", True),
            ("import ncg_optax as ncg", True),
            ("from ncg_optax import hessian", True),
        ],
    )
    def test_order(self, source, refused):
        found = outside_of_the_order(source, "curvature", "ncg_optax.curvature")
        assert bool(found) is refused

    def test_length_of_a_function(self):
        source = 'def f():\n  """One.\n\n  Two.\n  """\n  a = 1\n  return a\n'
        assert long_functions(source, limit=2) == {"f": 3}
        assert not long_functions(source, limit=3)

    @pytest.mark.parametrize(
        "source",
        ["jax.lax.psum(x, 'a')", "from jax.lax import psum", "lax.psum", "psum(x)"],
    )
    def test_names(self, source):
        assert "psum" in names_used(source)

    @pytest.mark.parametrize(
        "source", ["import jax._src.core", "from optax._src import base", "jax._src"]
    )
    def test_private_modules(self, source):
        assert "_src" in names_used(source)

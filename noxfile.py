"""The commands of everyday work: ``python -m nox -l`` lists them.

They run in the environment at hand, which ``pip install -e ".[dev]"`` has prepared.
What follows ``--`` is passed on: ``python -m nox -s tests -- tests/unit/test_cg.py``.
"""

import pathlib
import re
import sys
import tempfile

import nox

nox.options.default_venv_backend = "none"
nox.options.sessions = ["lint", "types"]

PARALLEL = ("-n", "auto", "--dist", "loadfile")
# What the test with the oldest versions runs: presets and parts, a few minutes.
OLDEST = ["tests/unit/test_presets.py", "tests/unit/test_transform.py"]
README = pathlib.Path(__file__).with_name("README.md")
PROGRAM = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)


def run(session, *command, **options):
    """Runs a module of this environment, as ``python -m`` does."""
    session.run(sys.executable, "-m", *map(str, command), **options)


@nox.session
def lint(session):
    """Checks style and layout. ``python -m ruff format`` sets the layout right."""
    run(session, "ruff", "check", *session.posargs)
    run(session, "ruff", "format", "--check", *session.posargs)


@nox.session
def types(session):
    """Checks the types of the package and of the programs in the README."""
    with tempfile.TemporaryDirectory() as folder:
        programs = []
        for i, program in enumerate(PROGRAM.findall(README.read_text()), start=1):
            programs.append(pathlib.Path(folder, f"readme_program_{i}.py"))
            programs[-1].write_text(program)
        assert programs, "no program was found in the README"
        options = ("--pythonpath", sys.executable)
        run(session, "pyright", *options, "ncg_optax", *programs)


@nox.session
def tests(session):
    """Runs the tests on all cores, without the slow ones."""
    run(session, "pytest", *PARALLEL, *session.posargs)


@nox.session
def slow(session):
    """Runs the slow tests only, compiled with all optimisations, as for users."""
    as_for_users = {"XLA_FLAGS": "", "JAX_DISABLE_MOST_OPTIMIZATIONS": "0"}
    command = ("pytest", "-m", "slow", *PARALLEL)
    run(session, *command, *session.posargs, env=as_for_users)


@nox.session(venv_backend="venv")
def oldest(session):
    """Runs some tests with the oldest JAX and optax that pyproject.toml allows."""
    project = nox.project.load_toml("pyproject.toml")["project"]
    versions = [name.replace(">=", "==") for name in project["dependencies"]]
    needed = ("flax", "hypothesis", "orbax-checkpoint", "pytest>=8", "pytest-xdist")
    session.install(".", *versions, *needed)
    command = ("python", "-m", "pytest", *PARALLEL)
    session.run(*command, *(session.posargs or OLDEST))


@nox.session
def coverage(session):
    """Measures which branches of the package the tests take; in half an hour."""
    names = ("unit", "contract", "integration", "distributed")
    folders = [f"tests/{name}" for name in names]
    command = ("coverage", "run", "-m", "pytest", *PARALLEL)
    run(session, *command, *(session.posargs or folders))
    run(session, "coverage", "combine")
    run(session, "coverage", "report")


@nox.session
def mutants(session):
    """Changes a module in places, and lists the changes that no test notices."""
    session.run(sys.executable, "tests/mutants.py", *session.posargs)


@nox.session
def audit(session):
    """Compares the versions that are installed with known vulnerabilities."""
    run(session, "pip_audit", "--skip-editable", *session.posargs)


@nox.session
def docs(session):
    """Builds the site into ``site/``. ``python -m mkdocs serve`` shows it."""
    run(session, "mkdocs", "build", "--strict", env={"NO_MKDOCS_2_WARNING": "1"})

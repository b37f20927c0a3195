"""The examples of CONTRIBUTING.md, written into a copy of the sources and tested."""

import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf8")
FILE = re.compile(
    r"`([\w/]+[a-z]\.py)`[.:]\n\n```python\n(.*?)^```", re.DOTALL | re.MULTILINE
)
IMPORT = re.compile(r"from ncg_optax\.[\w.]+ import (?:diagonal|nielsen)\b")

SCENARIO_TEST = """
from benchmarks.scenarios.sine import SCENARIO


def test_the_loss_is_a_number():
    data = SCENARIO.load()
    assert SCENARIO.value(SCENARIO.init(0), **data.train).shape == ()
    outputs = SCENARIO.outputs(SCENARIO.init(0), data.held_out)
    assert outputs.shape == data.held_out["y"].shape
"""


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """The repository without results, with the files of the examples in it."""
    folder = tmp_path_factory.mktemp("copy")
    without = shutil.ignore_patterns("results", "__pycache__")
    for name in ("ncg_optax", "benchmarks"):
        shutil.copytree(ROOT / name, folder / name, ignore=without)
    for name in (
        "conftest.py",
        "pyproject.toml",
        "README.md",
        "tests/unit/oracles.py",
        "tests/integration/test_architecture.py",
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    for path, source in FILE.findall(TEXT):
        (folder / path).write_text(source, encoding="utf8")
    with open(folder / "ncg_optax" / "__init__.py", "a", encoding="utf8") as init:
        init.writelines(f"{line}\n" for line in sorted(set(IMPORT.findall(TEXT))))
    (folder / "tests" / "unit" / "test_sine.py").write_text(SCENARIO_TEST)
    return folder


def run(folder, *command):
    done = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_examples_are_found():
    assert [path for path, _ in FILE.findall(TEXT)] == [
        "ncg_optax/preconditioners/diagonal.py",
        "tests/unit/test_diagonal.py",
        "ncg_optax/globalization/nielsen.py",
        "tests/unit/test_nielsen.py",
        "benchmarks/scenarios/sine.py",
    ]
    assert len(set(IMPORT.findall(TEXT))) == 2


def test_the_examples_pass_their_tests(copy):
    parts = [path for path, _ in FILE.findall(TEXT) if path.startswith("ncg_optax")]
    shown = run(copy, "pytest", "-q", "-p", "no:cacheprovider", "tests", *parts)
    assert " passed" in shown and "failed" not in shown


def test_the_examples_are_in_style(copy):
    paths = [path for path, _ in FILE.findall(TEXT)]
    run(copy, "ruff", "check", "--no-cache", *paths)
    run(copy, "ruff", "format", "--no-cache", "--check", *paths)

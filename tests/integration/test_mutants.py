"""The program that changes the package to see whether the tests notice."""

import importlib.util
import pathlib
import tomllib

import pytest

ROOT = pathlib.Path(__file__).parents[2]
TABLE = tomllib.loads((ROOT / "tests" / "mutants.toml").read_text())


@pytest.fixture(scope="module")
def program():
    spec = importlib.util.spec_from_file_location("mutants", ROOT / "tests/mutants.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SOURCE = '''
def f(x: int = 1) -> int:
    """Not changed: 1 < 2."""
    if x:
        raise ValueError(f"not changed: {x + 1}")
    return jnp.where(x <= 2.0, -x, True)
'''


def test_each_place_is_changed_in_turn(program):
    changes = {mutant.change for mutant in program.mutants("f.py", SOURCE)}
    assert changes == {
        "1  ->  2",
        "x  ->  not x",
        "jnp.where(x <= 2.0, -x, True)  ->  jnp.where(x <= 2.0, True, -x)",
        "x <= 2.0  ->  x < 2.0",
        "x <= 2.0  ->  x > 2.0",
        "2.0  ->  20.0",
        "-x  ->  x",
        "True  ->  False",
    }


@pytest.mark.parametrize("module", TABLE["tests"])
def test_mutants_differ_and_can_be_compiled(program, module):
    source = (ROOT / module).read_text()
    for mutant in program.mutants(module, source):
        compile(mutant.source, module, "exec")
        assert mutant.source != source and mutant.before != mutant.after


def test_the_table_is_up_to_date(program):
    for files in TABLE["tests"].values():
        assert [name for name in files if not (ROOT / name).exists()] == []
    known = [(x["module"], x["on"], x["change"]) for x in TABLE["equal"]]
    assert len(set(known)) == len(known)
    found = {
        (mutant.module, mutant.on, mutant.change)
        for module in TABLE["tests"]
        for mutant in program.mutants(module, (ROOT / module).read_text())
    }
    assert set(known) <= found
    assert all(x["reason"] for x in TABLE["equal"])

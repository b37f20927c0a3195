import dataclasses
import json
import math
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest
from typer.testing import CliRunner

from benchmarks.commands.options import UsageError
from benchmarks.cutest import (
    collections,
    commands,
    comparison,
    jax_methods,
    methods,
    problems,
)

ROOT = pathlib.Path(__file__).parents[2]


def bowl(gradient_at_start=1.0):
    """A quadratic whose functions are plain NumPy, so that nothing is compiled."""
    scales = np.array([1.0, 4.0])
    return problems.Problem(
        name="BOWL",
        objective=None,
        start=np.array([gradient_at_start, 1.0]),
        value_and_grad=lambda x: (float(0.5 * x @ (scales * x)), scales * x),
        product=lambda x, v: scales * v,
    )


def record(problem, method, solved=True, cost=1.0, lowest=1.0):
    return {
        "problem": problem,
        "method": method,
        "solved": solved,
        "gradient_equivalents": cost,
        "lowest_eigenvalue": lowest,
        "largest_eigenvalue": 1.0,
        "seconds": 0.5,
    }


def results(*runs):
    return {"settings": {"gtol": 1e-6}, "excluded": {"BAD": "nan"}, "runs": list(runs)}


def test_a_value_costs_nothing_beside_the_gradient_and_repeats_are_free():
    counter = methods.Counter(bowl(), problems.Settings())
    for x in ([1.0, 1.0], [2.0, 1.0], [1.0, 1.0]):
        counter.value(np.array(x))
    counter.gradient(np.array([1.0, 1.0]))
    counter.product(np.ones(2), np.ones(2))
    outcome = counter.outcome("")
    assert (outcome.gradients, outcome.values, outcome.products) == (1, 1, 1)
    assert outcome.gradient_equivalents == pytest.approx(1 + 1 / 3 + 1.5)


@pytest.mark.parametrize("method", methods.WITH_BOUNDS)
def test_scipy_solves_a_quadratic_with_bounds(method):
    low, high = np.array([0.5, -1.0]), np.array([2.0, 1.0])
    problem = dataclasses.replace(bowl(), low=low, high=high)
    found = methods.run_one(problem, method, problems.Settings())
    assert found["solved"]
    assert found["status"] == "gradient below gtol"
    assert found["value"] == pytest.approx(0.125)  # at (0.5, 0)
    assert found["lowest_eigenvalue"] is None


@pytest.mark.parametrize("method", jax_methods.METHODS)
def test_a_peer_in_jax_solves_a_quadratic(method):
    problem = dataclasses.replace(
        bowl(), objective=lambda x: 0.5 * x[0] ** 2 + 2 * x[1] ** 2
    )
    with jax.enable_x64(True):
        found = methods.run_one(problem, method, problems.Settings())
    assert found["solved"]
    assert found["gradient_equivalents"] >= found["iterations"] / 3 > 0


def test_bfgs_is_not_run_on_many_variables():
    problem = dataclasses.replace(bowl(), start=np.ones(1001))
    ended, status, _ = jax_methods.run(problem, "optimistix-bfgs", problems.Settings())
    assert ended.gradients == 0
    assert "more than 1000 variables" in status


def test_each_collection_has_its_table():
    for name, collection in collections.COLLECTIONS.items():
        runs = [record("A", method) for method in collection.methods]
        versions = {"versions": {"jax": "1", "scipy": "2"}, "collection": name}
        text = comparison.markdown(results(*runs) | versions)
        assert collection.call in text
        assert collection.title[1:] in text


@pytest.mark.parametrize("method", sorted(set(methods.SCIPY) - {"tnc"}))
def test_scipy_solves_a_quadratic(method):
    found = methods.run_one(bowl(), method, problems.Settings())
    assert found["solved"]
    assert found["status"] == "gradient below gtol"
    assert found["lowest_eigenvalue"] == pytest.approx(1.0)
    assert found["largest_eigenvalue"] == pytest.approx(4.0)


@pytest.mark.parametrize("method", methods.SCIPY)
def test_a_run_beyond_the_time_limit_is_unsolved(method):
    found = methods.run_one(bowl(), method, problems.Settings(time_limit=0.0))
    assert not found["solved"]
    assert found["status"] == "time limit"


def test_what_is_not_finite_becomes_null():
    problem = bowl()
    outcome = methods.Outcome(np.array([math.nan, 1.0]), "", 1, 1, 0, 0, 1.0, 0.1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(methods, "run_scipy", lambda *_: outcome)
        found = methods.run_one(problem, "newton-cg", problems.Settings())
    assert not found["solved"]
    assert found["value"] is None
    json.dumps(found, allow_nan=False)


def test_exclusions_name_the_reason():
    settings = problems.Settings()
    assert problems.why_excluded(bowl(), settings) is None
    assert "value" in problems.why_excluded(bowl(math.inf), settings)
    still = dataclasses.replace(bowl(), start=np.zeros(2))
    assert "already" in problems.why_excluded(still, settings)


def test_comparison_is_over_what_both_solve():
    found = comparison.compare(
        {"A": 4.0, "B": 2.0, "C": 1.0}, {"A": 2.0, "B": 2.0, "D": 9}
    )
    assert found["both"] == 2
    assert (found["median"], found["reference_median"], found["ratio"]) == (3, 2, 1.5)
    assert found["mean_ratio"] == pytest.approx(2**0.5)
    assert (found["only"], found["only_reference"]) == (["C"], ["D"])


def test_profile_is_relative_to_the_cheapest():
    ratios = comparison.profile({"x": {"A": 1.0, "B": 6.0}, "y": {"B": 3.0}, "z": {}})
    assert ratios == {"x": [1.0, 2.0], "y": [1.0], "z": []}


def test_table_and_plot(tmp_path):
    file = tmp_path / "cutest.json"
    runs = [
        record("A", "ours", cost=3.0),
        record("B", "ours", solved=False),
        record("A", "newton-cg", cost=6.0, lowest=-1.0),
        record("B", "newton-cg"),
    ]
    commands.write(file, results(*runs))
    shown = CliRunner().invoke(commands.app, ["table", str(file)])
    assert shown.exit_code == 0, shown.output
    for text in ("1/2", "2/2", "2.00", "newton-cg and not ours (1): B", "BAD, nan"):
        assert text in shown.output
    drawn = CliRunner().invoke(commands.app, ["plot", str(file)])
    assert drawn.exit_code == 0, drawn.output
    assert (tmp_path / "cutest.png").read_bytes().startswith(b"\x89PNG")


def test_bad_requests_are_one_line(tmp_path):
    file = tmp_path / "other.json"
    file.write_text("[]")
    with pytest.raises(UsageError, match="not a file that run wrote"):
        commands.read(file)
    new = {"settings": {"gtol": 1e-6}}
    with pytest.raises(UsageError, match="made with"):
        commands.resumed({"settings": {"gtol": 1e-3}}, new)
    (tmp_path / "file").write_text("")
    for args, message in (
        (["run", "--methods", "newtoncg"], "did you mean 'newton-cg'?"),
        (["run", "--output", tmp_path], "this is a folder, not a file"),
        (["run", "--output", tmp_path / "file" / "x.json"], "is a file, not a folder"),
        (["table", file], "is not a file that run wrote"),
    ):
        answer = CliRunner().invoke(commands.app, list(map(str, args)))
        assert answer.exit_code == 2
        assert message in answer.stderr and answer.stderr.count("\n") == 1


@pytest.mark.slow
def test_command_resumes_on_a_real_problem(tmp_path):
    """In a process of its own: sif2jax makes constants at import, and wants x64."""
    file = tmp_path / "cutest.json"

    def command(methods):
        options = ["--problems", "BEALE", "--output", str(file), "--resume"]
        program = [sys.executable, "-m", "benchmarks.cutest", "run"]
        subprocess.run([*program, "--methods", methods, *options], cwd=ROOT, check=True)
        return json.loads(file.read_text())

    first = command("newton-cg")
    assert str(tmp_path) not in first["command"]
    both = command("newton-cg,ours")
    assert both["runs"][0] == first["runs"][0]
    assert [run["method"] for run in both["runs"]] == ["newton-cg", "ours"]
    assert all(run["solved"] for run in both["runs"])

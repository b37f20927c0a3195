"""The comparison on equations: a tiny run, its table and figure, and wrong names."""

import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from typer.testing import CliRunner

from benchmarks.commands import app
from benchmarks.commands.pinn import MARKS, RECOMMENDED_MARKS, header, resumed
from benchmarks.pinn import comparison, methods, problems, race, tasks
from benchmarks.reports import records


@pytest.fixture
def tiny(monkeypatch):
    """All tasks with small networks, few rows and coarse grids."""
    grid = problems._tensor_grid
    small = {"hidden": (6,), "points": 12, "others": 12}
    for settings in (tasks.SETTINGS, tasks.RECOMMENDED):
        for name, setting in settings.items():
            data = 24 if setting.data else 0
            changed = dataclasses.replace(setting, data=data, **small)
            monkeypatch.setitem(settings, name, changed)
    monkeypatch.setattr(
        problems, "_tensor_grid", lambda low, high, side: grid(low, high, 11)
    )
    monkeypatch.setattr(problems, "_KNOWN", {})
    tasks.task.cache_clear()
    yield
    tasks.task.cache_clear()


def invoke(*options):
    return CliRunner().invoke(app, ["pinn", *map(str, options)])


def test_a_run_is_stored_and_resumed(tiny, tmp_path):
    options = ["--problems", "reaction", "--seconds", 0.1, "--output", tmp_path]
    done = invoke(*options, "--methods", "adam_lbfgs")
    assert done.exit_code == 0, done.output
    options += ["--methods", "adam_lbfgs,residual_space", "--resume"]
    done = invoke(*options)
    assert done.exit_code == 0, done.output
    stored = json.loads((tmp_path / "pinn.json").read_text())
    adam, ours = stored["runs"]
    assert (adam["method"], ours["method"]) == ("adam_lbfgs", "residual_space")
    rates = stored["tuned"]["reaction"]["adam_lbfgs"]["losses"]
    assert len(rates) >= 3 and min(rates.values()) == adam["best"]["loss"]
    for run in (adam, ours):
        curve = run["curve"]
        assert curve["seconds"][0] == 0 and run["final"]["seconds"] >= 0.1
        assert run["best"]["loss"] == min(curve["loss"]) < curve["loss"][0] / 2
        assert all(np.diff(curve["seconds"]) >= 0) and curve["gradients"][-1] > 5
    assert stored["dtype"] == "float64" and stored["versions"]["jax"]
    again = invoke(*options[:-3], "--methods", "adam_lbfgs", "--resume")
    assert again.exit_code == 0 and "seed 0" not in again.output
    other = invoke(*options, "--seconds", 7)
    assert other.exit_code == 2
    assert other.stderr.count("\n") == 1 and "made with seconds 0.1" in other.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--problems", "burger"], "Error: no problem 'burger'; did you mean"),
        (["--methods", "adam_lbgfs"], "Error: no method 'adam_lbgfs'; did you mean"),
        (["--methods", "gone"], "Error: nowhere is not installed: python -m pip"),
        (["--seconds", "-1"], "Error: a budget is a positive number, not -1."),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence(options, message, monkeypatch, tmp_path):
    gone = methods.Method("gone", (), package="nowhere")
    monkeypatch.setitem(methods.METHODS, "gone", gone)
    done = invoke(*options, "--output", tmp_path)
    assert done.exit_code == 2
    assert done.stderr.startswith(message) and done.stderr.count("\n") == 1


def test_resumed_runs_keep_the_versions_of_packages_that_are_not_here():
    new = header(2.0, False, False)
    here, gone = new["versions"]["jax"], records.NOT_INSTALLED
    old = new | {"versions": {"jax": "0.1", "jinns": "2.0"}, "runs": [1]}
    new["versions"] |= {"jinns": gone, "equinox": gone}
    found = resumed(old, new)
    assert found["runs"] == [1]
    wanted = {"jax": here, "jinns": "2.0", "equinox": gone}
    assert found["versions"] == new["versions"] | wanted


def stored_run(method, seed, errors, coefficient=None, **changed):
    problem = changed.get("problem", "burgers_viscosity")
    curve = {
        "seconds": [0.0, 1.0, 2.0],
        "gradients": [0.0, 9.0, 18.0],
        "loss": [1.0, 0.1, 0.01],
        "error": errors,
    }
    loss = changed.get("loss", 0.01 if method == "scientific" else 0.02)
    best = {"error": errors[-1], "loss": loss, "seconds": 2.0, "gradients": 18.0}
    if coefficient:
        best["coefficient_error"] = coefficient
    version = "1" if method == "scientific" else "0.9"
    run = {"problem": problem, "method": method, "seed": seed, "ncg_optax": version}
    return run | {"final": best, "best": best, "curve": curve}


def test_table_and_figure_of_stored_results(tmp_path):
    record = {
        "versions": {"ncg_optax": "1", "jax": "2"},
        "machine": {"cpu": "a processor"},
        "seconds": 2.0,
        "dtype": "float64",
        "missing": {"jinns": "jinns is not installed"},
        "runs": [
            stored_run("scientific", 0, [1.0, 0.02, 0.001], 1e-4),
            stored_run("scientific", 1, [1.0, 0.04, 0.003], 3e-4),
            stored_run("adam_lbfgs", 0, [1.0, 0.5, 0.02], 5e-3),
            stored_run("adam_lbfgs", 1, [1.0, 0.5, 0.02], 5e-3),
            stored_run("adam_lbfgs", 0, [1.0, 0.5, 1e-4], problem="wave", loss=1e-5),
            stored_run("scientific", 0, [1.0, 0.5, 0.02], problem="wave", loss=1e-3),
        ],
    }
    (tmp_path / "pinn.json").write_text(json.dumps(record))
    page, picture = tmp_path / "page.md", tmp_path / "picture.png"
    page.write_text("\n".join(MARKS))
    done = invoke("--readme", page, "--plot", picture, "--output", tmp_path)
    assert done.exit_code == 0, done.output
    text = page.read_text()
    row = (
        "| `burgers_viscosity` | **2.0e-03**, 2.0e-04 | 2.0e-02, 5.0e-03 | 1.5 s | - |"
    )
    assert row in text
    assert "| `wave` | 2.0e-02 | **1.0e-04** | not reached | 5.4e-07 |" in text
    won = "`scientific` ends with the lowest loss on 1 and with the lowest error on 1."
    assert f"Of 2 problems {won} ncg_optax 0.9 and 1, jax 2." in text
    assert "2 seeds, medians. Of inverse problems also the relative error of" in text
    assert (
        "Not installed: Adam, SSBroyden of jinns." in text
        and "up to 2 seeds, medians" in text
    )
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_the_error_is_that_of_the_lowest_loss_so_far():
    curve = {"seconds": [0, 1, 2, 3], "loss": [3, 1, None, 2], "error": [4, 3, 9, 1]}
    assert comparison.followed(curve) == ([0, 1, 2, 3], [4, 3, 3, 3])


class Rates:
    """Runs whose loss is lowest at a rate."""

    def __init__(self, best):
        self.best = best

    def run(self, seed, seconds, rate):
        return {"best": {"loss": abs(math.log10(rate / self.best))}}


def test_the_bracket_grows_until_the_best_rate_is_inside():
    tuned, run = race.tune(Rates(0.1), 0, 1.0, say=lambda text: None)
    assert tuned["rate"] == pytest.approx(0.1) and tuned["inside"]
    assert run["best"]["loss"] == pytest.approx(0, abs=1e-12)
    tuned, _ = race.tune(Rates(1e3), 0, 1.0, say=lambda text: None)
    assert not tuned["inside"]


def test_the_recommended_settings_have_a_file_of_their_own(tiny, tmp_path):
    options = ["--problems", "reaction", "--seconds", 0.1, "--output", tmp_path]
    done = invoke(*options, "--methods", "residual_space", "--recommended")
    assert done.exit_code == 0, done.output
    stored = json.loads((tmp_path / "pinn_recommended.json").read_text())
    assert stored["recommended"] and stored["command"].endswith(" --recommended")
    page = tmp_path / "page.md"
    page.write_text("\n".join([*MARKS, *RECOMMENDED_MARKS]))
    done = invoke("--readme", page, "--recommended", "--output", tmp_path)
    assert done.exit_code == 0, done.output
    before, after = page.read_text().split(RECOMMENDED_MARKS[0])
    assert "| `reaction` |" in after and "reaction" not in before
    assert "1 seed. Last but one" in after  # no coefficient is sought
    # An inverse problem is in the other table alone.
    wrong = invoke("--recommended", "--problems", "antiderivative")
    assert wrong.exit_code == 2 and "no problem 'antiderivative'" in wrong.stderr


def test_recommended_points_are_spread_evenly_over_each_face():
    counts = {"equation": 64, "boundary": 64}
    problem = problems.recommended(problems.PROBLEMS["poisson_2d"]())
    points = problem.points(counts, seed=0)
    cells = np.floor(8 * points["equation"]).astype(int)
    assert len(np.unique(cells, axis=0)) == 64  # one point in each of 8 x 8 cells
    for coordinate, value in problem.places["boundary"]:
        face = points["boundary"][points["boundary"][:, coordinate] == value]
        along = np.floor(16 * face[:, 1 - coordinate]).astype(int)
        assert sorted(along) == list(range(16))
    other = problem.points(counts, seed=1)["equation"]
    assert not np.allclose(points["equation"], other)


def test_a_recommended_network_is_periodic_where_the_solution_is():
    with jax.enable_x64(True):
        problem = problems.recommended(problems.PROBLEMS["convection_40"]())
        assert problem.conditions.keys() == {"equation", "initial"}
        assert problem.weights == {"initial": problems.WEIGHT}
        params = problems.initial_params((problem.inputs, 6, 1), seed=0)
        x = jnp.array([[0.3, 0.2], [5.0, 0.9]])
        there = x + jnp.array([2 * np.pi, 0.0])
        np.testing.assert_allclose(
            problem.field(params, x), problem.field(params, there), rtol=1e-12
        )
        assert abs(problem.field(params, x)[0] - problem.field(params, x + 1)[0]) > 1e-3
        # The Gaussian of `reaction` has a kink where its ends meet.
        kept = problems.recommended(problems.PROBLEMS["reaction"]())
        assert "periodic" in kept.conditions and kept.inputs == 2


@pytest.mark.parametrize(
    ("name", "recommended"),
    [(name, False) for name in tasks.SETTINGS]
    + [(name, True) for name in tasks.RECOMMENDED],
)
def test_the_rows_and_the_errors_belong_to_the_task(tiny, name, recommended):
    with jax.enable_x64(True):
        task = tasks.task(name, recommended)
        rows = task.rows(0)
        params = task.init(0)
        assert rows.keys() == task.residuals.keys()
        loss = task.loss(jax.tree.map(jnp.asarray, rows))
        assert jnp.isfinite(jax.jit(loss)(params))
        errors = task.errors(params)
        assert 0.2 < errors["error"] < 100
        if name == "burgers_viscosity":
            assert errors["coefficient_error"] == pytest.approx(5 * np.pi - 1)


def test_the_data_of_an_inverse_problem_vanish_at_the_solution(tiny):
    """The misfit is that of the reference solution, and the equation has the leaf."""
    with jax.enable_x64(True):
        task = tasks.task("reaction_rate")
        rows, params = task.rows(0), task.init(0)
        x = rows["equation"]
        flat = params | {"network": jax.tree.map(jnp.zeros_like, params["network"])}
        np.testing.assert_allclose(
            task.residuals["data"](flat, rows["data"]), -rows["data"][:, -1]
        )
        half = flat | {
            "network": [
                *flat["network"][:-1],
                {"w": jnp.zeros((6, 1)), "b": jnp.full(1, 0.5)},
            ]
        }
        # u = 1/2: u_t - rate u (1 - u) = -rate / 4
        np.testing.assert_allclose(task.residuals["equation"](half, x), -0.25)
        faster = half | {"log": jnp.log(8.0)}
        np.testing.assert_allclose(task.residuals["equation"](faster, x), -2.0)

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
from benchmarks.commands.pinn import MARKS
from benchmarks.pinn import comparison, methods, problems, race, tasks


@pytest.fixture
def tiny(monkeypatch):
    """All tasks with small networks, few rows and coarse grids."""
    grid = problems._tensor_grid
    small = {"hidden": (6,), "points": 12, "others": 12}
    for name, setting in tasks.SETTINGS.items():
        data = 24 if setting.data else 0
        changed = dataclasses.replace(setting, data=data, **small)
        monkeypatch.setitem(tasks.SETTINGS, name, changed)
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
    run = {"problem": problem, "method": method, "seed": seed}
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
    assert "lowest loss on 1 of 2 problems" in text
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


@pytest.mark.parametrize("name", tasks.SETTINGS)
def test_the_rows_and_the_errors_belong_to_the_task(tiny, name):
    with jax.enable_x64(True):
        task = tasks.task(name)
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
